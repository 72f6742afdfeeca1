"""The noise stream of the Triton kernels against the CPU kernel and the NumPy reference."""

import numpy as np
import pytest
import torch

from module.kernels.cpu_stream import normals_block, philox_block
from module.noise import LANES
from tests.reference import noise as reference

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from module.kernels.cuda_stream import mask_bits, normals, philox  # noqa: E402

SEED, PATH = 0x89ABCDEF01234567, "layer.3.output.dense.weight"
IDENTITY = reference.tensor_id(PATH)


@triton.jit
def words_kernel(out, numbers, LANES: tl.constexpr):
    lanes = tl.arange(0, LANES)
    c0 = (tl.load(numbers).to(tl.uint32) << 8) | lanes.to(tl.uint32)
    step, id_low, id_high = tl.load(numbers + 1), tl.load(numbers + 2), tl.load(numbers + 3)
    key_low, key_high = tl.load(numbers + 4).to(tl.uint32), tl.load(numbers + 5).to(tl.uint32)
    w0, w1, w2, w3 = philox(c0, step.to(tl.uint32), id_low.to(tl.uint32), id_high.to(tl.uint32), key_low, key_high)
    tl.store(out + lanes, w0.to(tl.int32, bitcast=True))
    tl.store(out + LANES + lanes, w1.to(tl.int32, bitcast=True))
    tl.store(out + 2 * LANES + lanes, w2.to(tl.int32, bitcast=True))
    tl.store(out + 3 * LANES + lanes, w3.to(tl.int32, bitcast=True))


@triton.jit
def normals_kernel(a, b, z, mask, LANES: tl.constexpr):
    lanes = tl.arange(0, LANES)
    first, second = tl.load(a + lanes).to(tl.uint32, bitcast=True), tl.load(b + lanes).to(tl.uint32, bitcast=True)
    even, odd = normals(first, second)
    tl.store(z + lanes, even)
    tl.store(z + LANES + lanes, odd)
    even_bits, odd_bits = mask_bits(first, second)
    tl.store(mask + lanes, even_bits)
    tl.store(mask + LANES + lanes, odd_bits)


def cpu_words(block, step):
    words = [np.empty(LANES, np.uint32) for _ in range(4)]
    halves = IDENTITY & 0xFFFFFFFF, IDENTITY >> 32, SEED & 0xFFFFFFFF, SEED >> 32
    philox_block(block, step, *halves, LANES, *words)
    return words


@pytest.mark.parametrize(("block", "step"), [(0, 1), (1, 1), (12345, 77), (2**24 - 1, 2**32 - 1)])
def test_words_are_those_of_the_cpu_kernel_and_of_the_reference(device, block, step):
    numbers = [block, step, IDENTITY & 0xFFFFFFFF, IDENTITY >> 32, SEED & 0xFFFFFFFF, SEED >> 32]
    out = torch.zeros(4, LANES, dtype=torch.int32, device=device)
    words_kernel[(1,)](out, torch.tensor(numbers, device=device), LANES=LANES)
    got = out.cpu().numpy().view(np.uint32)
    np.testing.assert_array_equal(got, np.stack(cpu_words(block, step)))
    expected = reference.words(SEED, step, PATH, (block << 8) + np.arange(LANES))
    np.testing.assert_array_equal(got, np.stack(expected))


def special_words():
    """Random pairs, and every corner: smallest and largest radius, the angles around each quadrant's edge."""
    generator = np.random.default_rng(1)
    a, b = generator.integers(0, 1 << 32, (2, 4096), dtype=np.uint64).astype(np.uint32)
    a[:8] = np.array([0, 1, 2, 0x7FFFFF, 0x800000, 0xB504F3, 0xFFFFFE, 0xFFFFFF], np.uint32) << 8
    edges = np.array([e + d for e in range(8191, 65536, 8192) for d in (-1, 0, 1)]) & 0xFFFF
    b[: len(edges)] = edges.astype(np.uint32) << 16
    return a, b


def test_normals_are_within_4_ulp_of_the_cpu_kernel_and_masks_equal(device):
    a, b = special_words()
    pairs = [torch.from_numpy(words.view(np.int32)).to(device) for words in (a, b)]
    z, mask = (torch.zeros(2, len(a), dtype=t, device=device) for t in (torch.float32, torch.int32))
    normals_kernel[(1,)](*pairs, z, mask, LANES=len(a), enable_fp_fusion=False)
    for first in range(0, len(a), LANES):
        part = slice(first, first + LANES)
        expected, bits = np.zeros(1024, np.float32), np.zeros(1024, np.int32)
        normals_block(a[part], b[part], LANES, 0, expected, bits)
        expected, bits = expected[: 2 * LANES].reshape(2, LANES), bits[: 2 * LANES].reshape(2, LANES)
        error = np.abs(z[:, part].cpu().numpy().astype(np.float64) - expected) / np.spacing(np.abs(expected))
        assert error.max() <= 4
        np.testing.assert_array_equal(mask[:, part].cpu().numpy(), bits)
