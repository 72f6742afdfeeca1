"""The Triton kernels compile for GPUs that are not here, to code that does not round differently from the CPU's."""

import subprocess
import sys

import pytest

pytest.importorskip("triton")

PROGRAM = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from module.kernels import cuda

TABLES = {"table": "*i64", "settings": "*fp64", "block_rows": "*i32", "first": "i32", "n_rows": "i32", "sums": "*fp64",
          "row_sums": "*fp64", "records": "*fp32", "draws": "*i32", "flags": "*i32", "grad_scale": "*fp32",
          "found_inf": "*fp32"}


def assembly(kernel, warps, **constants):
    signature = {name: TABLES.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    code = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]
    for rounded_differently in ("fma.rn.f32", "div.full.f32", "div.approx.f32", "sqrt.approx.f32"):
        assert rounded_differently not in code, (capability, kernel, rounded_differently)
    return code


fp32 = {"THETA": tl.float32, "GRADIENT": tl.float32, "ALIGNED": True}
bf16 = {"THETA": tl.bfloat16, "GRADIENT": tl.bfloat16, "ALIGNED": False}
pats = {"RULE": 1, "TRACK": True, "SCALE": False, "NOISE": True}
sage = {"RULE": 2, "TRACK": True, "SCALE": True, "NOISE": False}
for capability in (70, 90):
    measured = assembly(cuda.measure_blocks, 2, TRACK=True, **fp32)
    assert measured.count("ld.global.v4") == 8, "theta and gradient of four quarters, 16 bytes each"
    updated = assembly(cuda.update_blocks, 2, **pats, **fp32)
    assert updated.count("ld.global.v4") == 20 and updated.count("st.global.v4") == 16
    assembly(cuda.update_blocks, 2, **sage, **bf16)
    assembly(cuda.reduce_rows, 4, CHUNK=1024)
    assembly(cuda.advance_rows, 8, ROWS=256)
"""


def test_kernels_compile_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
