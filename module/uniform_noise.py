"""NoisyTune's noise (Wu et al., ACL 2022, arXiv 2202.12024): uniform, on the pretrained weights, once."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .checks import at_least, check
from .choice import named_parameters
from .param_index import ParamIndex, ParamInfo
from .seeds import stream_seed

if TYPE_CHECKING:
    from torch import nn


def noisytune(
    model: "nn.Module | Iterable[tuple[str, nn.Parameter]]",
    *,
    noise_scale: float = 0.15,
    seed: int = 0,
    include_head: bool = False,
) -> None:
    """Perturb a model in place, after its pretrained weights are loaded and before training.

    Example::

        noisytune(model, noise_scale=0.15, seed=1)

    Args:
        model: Any model, or its ``named_parameters()``, in any wrapper.
        noise_scale: lambda, at least 0; the paper uses 0.15 on GLUE.
        seed: Of the noise, in [0, 2**63).
        include_head: Whether parameters that are not pretrained (task head) are perturbed too.

    Raises:
        ValueError: If the noise scale is out of range, or there are no names.
        TypeError: If a parameter is quantised, sharded or flattened; nothing has been changed then.
    """
    check("noise_scale", noise_scale, at_least(0.0))
    params = ParamIndex(named_parameters(model, "noisytune"), needs_layers=False)
    add_uniform_noise(params, noise_scale, seed, include_head)


def add_uniform_noise(params: Iterable[ParamInfo], noise_scale: float, seed: int, include_head: bool) -> None:
    r"""Equation 1: ``W += U(-lambda/2, lambda/2) * std(W)`` for each tensor W.

    ``std`` is torch's (unbiased, N - 1). Tensors of one entry have none and are left alone; constant tensors have 0.
    Each tensor draws from a stream of its own, so its noise does not depend on which others there are.

    Args:
        params: The model's parameters.
        noise_scale: lambda.
        seed: Of the run.
        include_head: Whether tensors that are not pretrained are perturbed too.
    """
    import torch

    from .kernels.guard import PARAMETER, check_float, check_plain, check_whole

    chosen = [info for info in params if info.pretrained or include_head]
    for info in chosen:  # before any is changed
        check_plain(info.name, PARAMETER, info.parameter)
        check_whole(info.name, info.parameter)
        check_float(info.name, info.parameter, (info.parameter.dtype,))
    for info in chosen:
        weights = info.parameter.detach()
        if weights.numel() <= 1:
            continue
        generator = torch.Generator().manual_seed(stream_seed(seed, f"noisytune/{info.path}"))
        uniform = torch.rand(weights.shape, generator=generator, dtype=torch.float32, device="cpu") - 0.5
        std = weights.std()
        weights.add_((uniform * noise_scale).to(weights.device) * std)
