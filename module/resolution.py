"""A guard: noise that a tensor's number format would round away is refused instead of trained with."""

from __future__ import annotations

import logging

from .lazy import torch

log = logging.getLogger(__name__)


class LostNoise(ValueError):
    """Noise below the resolution of the tensor that it is added to."""


def check_resolution(what: str, noise: float, tensor: torch.Tensor) -> None:
    """Refuse noise that adding to a tensor would mostly round away; looks at the tensor, so the host waits for it.

    Numbers of size x are spaced eps x apart, eps the dtype's (1.2e-7 float32, 9.8e-4 float16, 7.8e-3 bfloat16), and
    a sum is rounded to the nearest: noise below half of that changes nothing.

    Args:
        what: Name of the noise and its tensor, for the message.
        noise: Size of the noise, at least 0.
        tensor: The tensor that gets it.

    Raises:
        LostNoise: If the noise is above 0 and below half the spacing at the tensor's mean magnitude.
    """
    if noise == 0.0:
        return
    size = float(tensor.detach().abs().mean(dtype=torch.float32))
    resolution = size * torch.finfo(tensor.dtype).eps / 2
    if noise < resolution:
        raise LostNoise(
            f"{what}: noise of {noise:.1e} is lost in {tensor.dtype}, which resolves {resolution:.1e} at this tensor's "
            f"mean size {size:.1e}: use precision fp32 or larger noise"
        )
    kind = tensor.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        if noise < size * torch.finfo(dtype).eps / 2:
            log.warning(
                "%s: noise of %.1e survives where values stay float32, but matrix products round to %s, which loses it",
                what, noise, dtype,
            )  # fmt: skip
