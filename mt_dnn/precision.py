"""The number format of forward and backward: autocast and gradient scaling by device; weights stay float32."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from data_utils.errors import SettingError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_BF16_CAPABILITY = (8, 0)  # tensor cores take bf16 from Ampere on; before that it is emulated


@dataclass(frozen=True, slots=True)
class Precision:
    """A precision that was decided for one device.

    Attributes:
        name: "fp32", "bf16" or "fp16".
        device_type: "cpu" or "cuda".
    """

    name: str
    device_type: str

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which forward passes run; does nothing for fp32."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device_type, dtype=_DTYPES[self.name])

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Scaler of the loss: active for fp16, whose smallest gradients would be zero; passes through otherwise."""
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "fp16")


def resolve_precision(setting: str, device: torch.device) -> Precision:
    """Decide the precision of a run.

    Args:
        setting: "auto", "fp32", "bf16" or "fp16". "auto" is bf16 where the device has bf16 instructions (CUDA compute
            capability 8.0 and up, CPUs with AVX512-BF16 or AMX), fp16 on older CUDA devices and fp32 elsewhere.
        device: where the network runs.

    Raises:
        SettingError: for an unknown setting, and for one that the device cannot run.
    """
    if setting not in PRECISIONS:
        raise SettingError(f"precision: {setting!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    name = _automatic(device) if setting == "auto" else setting
    if name == "fp16":
        from mt_dnn.requirements import check_fp16  # it brings the methods, which a peer of a benchmark has not

        check_fp16(device.type)
    if name == "bf16" and device.type == "cuda" and _capability(device) < _BF16_CAPABILITY:
        raise SettingError(f"precision: {device} has no bf16 instructions (compute capability 8.0 and up); use fp16")
    return Precision(name, device.type)


def _automatic(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if _capability(device) >= _BF16_CAPABILITY else "fp16"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (elsewhere bf16 is slower than fp32)."""
    # Private names of torch.cpu, the only place that tells: a torch without them means "no".
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check() for check in checks if check is not None)
