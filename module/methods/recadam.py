"""RecAdam (Chen et al., EMNLP 2020, arXiv 2004.12651): the task takes over while a pull to the old weights fades."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ..checks import CheckedSettings, NonNegative, Positive, Share, at_least
from ..context import MethodContext
from ..lazy import torch
from ..method import AnyMethod, FineTuningMethod
from ..param_index import Kind, split_groups

_DECAY = "recadam_decay"  # in a group of the optimizer: its parameters are pulled, and this is their weight decay
_OFFICIAL_PRODUCT = 0.1  # learning rate x gamma of the authors' runs: 2e-5 x 5000


@dataclass(frozen=True, slots=True)
class RecAdamSettings(CheckedSettings):
    """Settings of RecAdam."""

    annealing: Literal["sigmoid", "linear", "constant"] = "sigmoid"
    """lambda(t), the task's share of step t = 1, 2, ...: w / (1 + exp(-k (t - t0))), w min(1, t / t0), or w."""
    k: Positive = 0.5
    """Steepness of the sigmoid, per step, above 0. The authors search 0.05, 0.1, 0.2, 0.5, 1."""
    t0: Annotated[int, at_least(1, "a step")] = 250
    """Step at which the sigmoid is at w / 2 and the linear share at w, at least 1. The authors search 250, 500, 1000
    (100, 250, 500 on small tasks)."""
    w: Share = 1.0
    """Upper end of lambda, in [0, 1]; 0 is plain fine-tuning. The authors' code: 1."""
    gamma: NonNegative = 5000.0
    """Strength of the pull, at least 0; learning rate x w x gamma must stay below 1. The paper: 5000, with 2e-5."""
    anchor: Literal["pretrained", "init"] = "pretrained"
    """What the weights are pulled to: as loaded, or with the noise that NoisyTune adds before training."""
    start: Literal["PI", "RI"] = "PI"
    """Where the pretrained weights begin: PI, as loaded; RI, random, as the authors' code does unless told."""
    initializer_range: Positive = 0.02
    """Standard deviation of RI's random weights, above 0. BERT's: 0.02."""

    def share(self, t: int) -> float:
        """Return lambda(t), the factor on the optimizer's own step, at step t from 1."""
        if self.annealing == "constant":
            return self.w
        if self.annealing == "linear":
            return self.w * min(1.0, t / self.t0)
        x = self.k * (t - self.t0)
        grown = math.exp(-abs(x))  # in (0, 1]: exp(-x) itself overflows long before t0
        return self.w / (1.0 + grown) if x >= 0.0 else self.w * grown / (1.0 + grown)

    @property
    def pulls(self) -> bool:
        """Whether there is a pull; a constant share leaves none."""
        return self.w > 0.0 and self.gamma > 0.0 and self.annealing != "constant"


class RecAdam(FineTuningMethod[RecAdamSettings]):
    """The step times lambda(t), then ``theta -= eta (w - lambda(t)) gamma (theta - theta0)``, then weight decay.

    Around any optimizer; on AdamW it is the authors' RecAdam, in the order of their code: the pull sees the updated
    theta and has no bias correction, weight decay comes last and is not scaled. What is not pretrained is trained as
    without it.
    """

    name = "recadam"
    title = "RecAdam"
    needs_dense_gradients = False  # after_backward does not look at gradients
    reads_clipped_gradients = False
    plain_pass = True

    def __init__(self, settings: RecAdamSettings | None = None) -> None:
        super().__init__(settings)
        self.anchors = frozenset({self.settings.anchor} if self.settings.pulls else ())
        self._anchor: dict[torch.Tensor, torch.Tensor] = {}
        self._rates: list[float] = []  # scheduled learning rates of the pulled groups, within a step

    def check_beside(self, others: Sequence[AnyMethod]) -> None:
        """Refuse noise on weights that are then drawn anew, and LoRA.

        Raises:
            ValueError: If NoisyTune's noise would be lost, or the pretrained weights are frozen.
        """
        settings = self.settings
        names = {other.name for other in others}
        if settings.w > 0.0 and "lora" in names and "bitfit" not in names:  # which leaves the biases
            raise ValueError(
                f"Methods {self.name!r} and 'lora' do not stand together: the one acts on the pretrained weights, "
                "which the other freezes: use them in separate runs"
            )
        if settings.start == "RI" and settings.anchor == "pretrained" and any(o.name == "noisytune" for o in others):
            raise ValueError(
                "Method recadam with start RI and anchor pretrained throws the noise of noisytune away: use start PI, "
                "or anchor init to pull to the noisy weights"
            )

    def setup(self, context: MethodContext) -> None:
        """Keep the anchor; draw the weights anew for RI."""
        settings = self.settings
        if settings.pulls:
            anchor = context.anchor(settings.anchor)
            self._anchor = {info.parameter: anchor[info.name] for info in context.params if info.pretrained}
        if settings.start == "RI":
            self._draw(context)

    def _draw(self, context: MethodContext) -> None:
        """Draw the pretrained weights anew by BERT's initialisation, each tensor from a stream of its own."""
        for info in context.params:
            weights = info.parameter.detach()
            if not info.pretrained:
                continue
            if info.is_bias or info.kind == Kind.LAYER_NORM:
                weights.fill_(0.0 if info.is_bias else 1.0)
            else:
                rng = context.rng(f"recadam/{info.path}")
                drawn = torch.randn(weights.shape, generator=rng, dtype=torch.float32, device="cpu")
                weights.copy_(drawn * self.settings.initializer_range)

    def param_groups(self, context: MethodContext, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Give the pretrained parameters their own groups, without weight decay: this method does it.

        Raises:
            ValueError: If the pull would overshoot, or nothing pretrained is trained.
        """
        if self.settings.w == 0.0:
            return groups
        divided = split_groups(groups, context.params, lambda info: info.pretrained)
        if not any(pretrained for pretrained, _ in divided):
            raise ValueError("Method recadam pulls pretrained weights, but all of them are frozen: leave it out")
        for pretrained, group in divided:
            if pretrained and self.settings.pulls:
                self._check_strength(group["lr"])
        return [
            {**group, "weight_decay": 0.0, _DECAY: group["weight_decay"]} if pretrained else group
            for pretrained, group in divided
        ]

    def _check_strength(self, rate: float) -> None:
        """Refuse a pull beyond the anchor: while lambda is 0 each step multiplies the distance by 1 - eta w gamma."""
        strength = rate * self.settings.w * self.settings.gamma
        if strength >= 1.0:
            raise ValueError(
                f"Invalid gamma: {self.settings.gamma:g} with learning rate {rate:g}: their product (x w) is "
                f"{strength:.3g} and must be below 1, or the pull overshoots its anchor: use gamma "
                f"{_OFFICIAL_PRODUCT / rate:.3g} for the authors' product of {_OFFICIAL_PRODUCT}"
            )

    def after_backward(self, context: MethodContext) -> None:
        """Scale the optimizer's step by lambda."""
        share = self.settings.share(context.step + 1)
        self._rates = []
        for group in _pulled(context):
            self._rates.append(group["lr"])
            group["lr"] = group["lr"] * share

    def after_step(self, context: MethodContext) -> None:
        """Pull, then decay, with the learning rate of the schedule."""
        settings = self.settings
        rest = settings.w - settings.share(context.step + 1)
        with torch.no_grad():
            for group, rate in zip(_pulled(context), self._rates, strict=True):
                group["lr"] = rate
                weights, pull, decay = group["params"], rate * rest * settings.gamma, rate * group[_DECAY]
                if pull > 0.0:
                    torch._foreach_lerp_(weights, [self._anchor[theta] for theta in weights], pull)
                if decay > 0.0:
                    torch._foreach_mul_(weights, 1.0 - decay)

    def metrics(self, context: MethodContext) -> dict[str, float]:
        """Return lambda of the last step."""
        return {"share": self.settings.share(context.step + 1)} if self.settings.w > 0.0 else {}


def _pulled(context: MethodContext) -> list[dict[str, Any]]:
    """Return the optimizer's groups of pretrained parameters."""
    return [group for group in context.optimizer.param_groups if _DECAY in group]
