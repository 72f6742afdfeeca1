"""Top-layer re-initialisation (Zhang et al., ICLR 2021, arXiv 2006.05987): the layers nearest the output start anew."""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import CheckedSettings, WholeNumber
from ..context import MethodContext
from ..lazy import torch
from ..method import FineTuningMethod
from ..param_index import Kind


@dataclass(frozen=True, slots=True)
class ReinitSettings(CheckedSettings):
    """Settings of re-initialisation."""

    n_layers: WholeNumber = 1
    """Encoder layers from the top to draw anew, at least 0. The authors search 1 to 6 of BERT-large's 24."""


class Reinit(FineTuningMethod[ReinitSettings]):
    """Weights of the top layers from N(0, initializer_range), biases 0, norms without effect, before training.

    The pooler above them is this project's own and random anyway.
    """

    name = "reinit"
    title = "re-init"
    plain_pass = True
    rank = -90  # after NoisyTune, whose noise is made for pretrained weights

    def setup(self, context: MethodContext) -> None:
        """Draw the layers anew.

        Raises:
            ValueError: If the encoder has fewer layers.
        """
        layers, wanted = context.params.num_layers, self.settings.n_layers
        if wanted > layers:
            raise ValueError(f"Invalid n_layers: {wanted}: this encoder has {layers}")
        homes = (getattr(context.network, name, None) for name in ("encoder", "config"))  # ours, transformers'
        std = next((found for home in homes if (found := getattr(home, "initializer_range", None)) is not None), 0.02)
        for info in context.params:
            if info.layer is None or info.layer < layers - wanted:
                continue
            values = info.parameter.detach()
            if info.kind == Kind.WEIGHT:
                rng = context.rng(f"reinit/{info.path}")
                noise = torch.randn(values.shape, generator=rng, dtype=torch.float32, device="cpu")
                values.copy_(noise * std)
            else:
                is_gain = info.kind == Kind.LAYER_NORM and info.name.endswith("weight")
                values.fill_(0.0)
                if is_gain and not _adds_one(context.network.get_submodule(info.name.rpartition(".")[0]), values):
                    values.fill_(1.0)


def _adds_one(norm: torch.nn.Module, gain: torch.Tensor) -> bool:
    """Whether a norm whose gain (n,) is 0 goes on to scale by 1, as Gemma's does."""
    if "RMSNorm" not in type(norm).__name__:
        return False
    with torch.no_grad():
        scaled: torch.Tensor = norm(torch.ones((1, len(gain)), dtype=gain.dtype, device=gain.device))
    return bool(scaled.any())
