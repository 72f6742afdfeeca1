"""PAC-tuning (Liu et al., EMNLP 2023, arXiv 2310.17588): learn how much noise each weight takes, then train under it.

For few examples: the authors train 300 epochs on 100.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ..checks import CheckedSettings, Positive, Share, at_least
from ..context import Accumulate, DropoutRates, MethodContext
from ..lazy import torch
from ..method import AnyMethod, FineTuningMethod, Resource
from ..param_index import ParamInfo, Role
from .controls import FrozenEmbeddings, HeadLearningRate, HeadLearningRateSettings, NoDropout
from .parts.pac_bayes import KCurve, NoiseWidths, fit_k
from .parts.perturbation import check_weight_noise, moved, trainable

_LOWEST, _HIGHEST = -6.0, -2.0  # logarithms of the prior widths at which K is fitted, as in the authors' code
_CLIP = 2.0  # of the standard noise, as in the authors' code


@dataclass(frozen=True, slots=True)
class PACTuningSettings(CheckedSettings):
    """Settings of PAC-tuning."""

    gamma: Positive = 10.0
    """gamma, weight between bound and fit, above 0. The paper: 10 on SST and CoLA, 5 on other tasks."""
    stage1_share: Share = 250 / 300
    """Share of the run's steps in which the noise is learned, in [0, 1]. The paper: 250 of 300 epochs."""
    stage1_epochs: Annotated[int, at_least(0, "an integer")] | None = None
    """The same as a number of epochs, at least 0, which then counts instead of the share."""
    head_learning_rate: Positive = 1e-2
    """Peak learning rate of the head, above 0. The paper: 1e-2. The pooler goes with the layers below it."""
    noise_step_size: Positive = 0.1
    """Step of Adam on the logarithms of the noise below the head, above 0. The authors' code: 0.1."""
    head_noise_factor: Annotated[float, at_least(1.0)] = 50.0
    """The same for the head, in units of head_learning_rate, at least 1; shrinks to 1 by a tenth every ten
    steps. The authors' code: 50."""
    initial_width: Literal["part", "weight"] = "part"
    """First noise: one size below the head, (mean|w|)^2, and one for the head, mean|w| (the authors' code); or
    |w| of each weight, at least 1e-6 (the paper)."""
    k_levels: Annotated[int, at_least(2, "an integer")] = 8
    """Widths of the prior at which K is fitted before training, at least 2. The authors' code: 8."""
    k_models: Annotated[int, at_least(1, "an integer")] = 10
    """Random networks per level, each a pass over the training set, at least 1. The authors' code: 10."""
    k_curve: Literal["straight", "authors"] = "straight"
    """K between its levels: straight lines; or the authors' code, which leaves its points at the third level."""
    k_examples: Annotated[int, at_least(1, "an integer")] | None = None
    """Examples of such a pass, at least 1, of several tasks as many of each; none: the whole training set, which the
    authors keep at 100."""


class PACTuning(FineTuningMethod[PACTuningSettings]):
    """Stage 1: loss under noise plus the bound of ``parts.pac_bayes``. Stage 2: loss under the noise that was learned.

    Dropout is off and the embeddings are frozen in both.
    """

    name = "pac_tuning"
    title = "PAC-tuning"
    exclusive = frozenset({Resource.WEIGHT_ESTIMATOR, Resource.FORWARD_WEIGHTS})
    rank = -50  # around the estimators that perturb embeddings: they see one noise on the weights
    control = "no_dropout+head_learning_rate+frozen_embeddings"
    needs_dense_gradients = False  # the word embeddings have no gradient
    divisible = True  # noise, widths and the gradients they learn from are the same in all processes
    _widths: NoiseWidths  # from param_groups on

    def __init__(self, settings: PACTuningSettings | None = None) -> None:
        super().__init__(settings)
        self._infos: list[ParamInfo] = []
        self._curve: KCurve | None = None

    def check_beside(self, others: Sequence[AnyMethod]) -> None:
        """Refuse methods with noise of their own: the widths would be learned for the wrong network."""
        for other in others:
            if other.name in ("hype", "pats"):
                raise ValueError(
                    f"Methods 'pac_tuning' and {other.name!r} both add noise, and PAC-tuning learns how much the "
                    "network takes: use them in separate runs"
                )

    def configure(self, rates: DropoutRates) -> DropoutRates:
        """Switch dropout off."""
        return NoDropout().configure(rates)

    def setup(self, context: MethodContext) -> None:
        """Freeze the embeddings."""
        FrozenEmbeddings().setup(context)

    def param_groups(self, context: MethodContext, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Start the noise from the weights, now set up by all methods; give the head its learning rate."""
        settings = self.settings
        self._infos = trainable(context)
        self._widths = NoiseWidths(
            self._weights(),
            [info.role is Role.HEAD for info in self._infos],
            settings.initial_width == "weight",
            settings.noise_step_size,
            settings.head_learning_rate,
            settings.head_noise_factor,
        )
        head = HeadLearningRate(HeadLearningRateSettings(settings.head_learning_rate))
        return head.param_groups(context, groups)

    def before_fit(self, context: MethodContext) -> None:
        """Fit K, unless there is no stage 1.

        Raises:
            ValueError: If the loss of a random network is not finite.
        """
        if not self._learns(context):
            return
        settings = self.settings
        widths = torch.linspace(_LOWEST, _HIGHEST, settings.k_levels, dtype=torch.float64, device="cpu").exp()
        values = [fit_k(self._random_losses(context, float(width)), settings.gamma) for width in widths]
        if not all(map(math.isfinite, values)):
            raise ValueError(
                f"pac_tuning: the loss of random networks around this encoder is not finite: K is {values}"
            )
        self._set_curve(widths, torch.tensor(values, dtype=torch.float64, device="cpu"))

    def gradients(self, context: MethodContext, batches: Sequence[Any], inner: Accumulate) -> torch.Tensor:
        """Take the gradient under noise; in stage 1 add the bound's and learn the noise.

        Returns:
            () the loss under noise.
        """
        check_weight_noise(context, self.name, lambda: float(self._widths.mean_width()), self._infos)
        weights = self._weights()
        stream = context.stream(self.name)
        draws = [stream.normal(weight).clamp_(-_CLIP, _CLIP).to(weight.dtype) for weight in weights]
        with moved(weights):
            torch._foreach_add_(weights, self._widths.noise(draws))
            loss = inner(batches)
        if self._learns(context):
            context.complete_gradients()
            self._learn(context, draws)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the widths and the points of K."""
        curve = None if self._curve is None else (self._curve.levels, self._curve.values)
        return {"widths": self._widths.state_dict(), "curve": curve}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of :meth:`state_dict`."""
        self._widths.load_state_dict(state["widths"])
        if state["curve"] is not None:
            self._set_curve(*state["curve"])

    def metrics(self, context: MethodContext) -> dict[str, float]:
        """Return the mean size of the noise, and in stage 1 the bound."""
        found = {"noise_std": float(self._widths.mean_width())}
        if self._learns(context) and self._curve is not None:
            examples = context.model.n_examples
            found["bound"] = float(self._widths.bound(self._weights(), self._curve, self.settings.gamma, examples))
        return found

    def _weights(self) -> list[torch.Tensor]:
        return [info.parameter.detach() for info in self._infos]

    def _learns(self, context: MethodContext) -> bool:
        """Whether the step is in stage 1."""
        settings = self.settings
        if settings.stage1_epochs is not None:
            return context.epoch < settings.stage1_epochs
        return context.step < round(settings.stage1_share * context.total_steps)

    def _learn(self, context: MethodContext, draws: Sequence[torch.Tensor]) -> None:
        """Update the widths, then add the bound's gradients to the weights' gradients."""
        assert self._curve is not None
        gamma, examples, weights = self.settings.gamma, context.model.n_examples, self._weights()
        scale = 1.0 if context.gradient_scale is None else context.gradient_scale
        gradients = [None if (g := info.parameter.grad) is None else g / scale for info in self._infos]
        pulls = self._widths.pulls(weights, gamma, examples)
        self._widths.learn(weights, gradients, draws, self._curve, gamma, examples)
        for info, pull in zip(self._infos, pulls, strict=True):
            if info.parameter.grad is not None:
                info.parameter.grad.add_(pull * scale)

    def _random_losses(self, context: MethodContext, width: float) -> torch.Tensor:
        """Return the (models, examples) losses, float32 on the CPU, of networks drawn from a prior of this width."""
        weights, stream = self._weights(), context.stream(f"{self.name}/K")
        rows = []
        training = context.network.training
        context.network.eval()  # so that no other method's hook is in the way
        for _ in range(self.settings.k_models):
            with moved(weights), torch.no_grad():
                for weight in weights:
                    weight.add_(stream.normal(weight).to(weight.dtype), alpha=width)
                rows.append(self._losses(context))
        context.network.train(training)
        return torch.stack(rows)

    def _losses(self, context: MethodContext) -> torch.Tensor:
        """Return the (examples,) losses on the training sets, or on ``k_examples`` of them, of each task as many."""
        model, limit = context.model, self.settings.k_examples
        found: dict[str, list[torch.Tensor]] = {kind.name: [] for kind in model.task_kinds}
        each = model.n_examples if limit is None else math.ceil(limit / len(found))
        for batches in model.training_batches():
            for batch in batches:
                of_task = found[model.task_kind(batch).name]
                if sum(map(len, of_task)) < each:
                    of_task.append(model.example_losses(model.logits(batch), batch))
            if all(sum(map(len, of_task)) >= each for of_task in found.values()):
                break
        return torch.cat([torch.cat(of_task)[:each] for of_task in found.values()])[:limit].cpu()

    def _set_curve(self, levels: torch.Tensor, values: torch.Tensor) -> None:
        device = self._widths.prior.device
        self._curve = KCurve(levels.to(device), values.to(device), self.settings.k_curve == "authors")
