"""SMART (Jiang et al., ACL 2020, arXiv 1911.03437): smooth around the inputs, near to its own past."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ..checks import CheckedSettings, NonNegative, Positive, Range, Share, at_least, check_ranges
from ..context import MethodContext, TaskKind
from ..lazy import criteria, torch
from ..method import FineTuningMethod, Resource
from .parts.first_layer import FirstLayer
from .parts.mean_teacher import MeanTeacher, predicting
from .parts.moved_weights import in_their_place, step_along

if TYPE_CHECKING:
    from ..criteria import Criterion

Projection = Literal["paper", "dev_repo", "mt_dnn"]
Norm = Literal["inf", "l2"]
Divergence = Literal[
    "paper", "task", "MseCriterion", "KlCriterion", "SymKlCriterion", "NsKlCriterion", "NsSymKlCriterion", "JSCriterion"
]
_DIVERGENCES = ("divergence", "ascent_divergence", "proximal_divergence")

_BETAS = Range(
    lambda betas: len(betas) == 2 and all(0.0 <= beta <= 1.0 for beta in betas), "two numbers in [0, 1]", "are"
)
_STEP_SIZE: dict[Projection, float] = {"paper": 1e-3, "dev_repo": 1e-3, "mt_dnn": 1e-5}
# What the two codes add to the norms that they divide by.
_GUARD: dict[Projection, float] = {"dev_repo": 1e-4, "mt_dnn": 1e-6}
_WEIGHT_GUARD = 1e-6  # the same, of the gradient by the weights


@dataclass(frozen=True, slots=True)
class SMARTSettings(CheckedSettings):
    """Settings of SMART. Norms are those of one token's embedding.

    ``step_size`` depends on ``projection`` and is filled in when left out.
    """

    smoothness_weight: NonNegative = 1.0
    """lambda_s, at least 0: weight of the distance from the prediction at a neighbour; 0: no such term, and no passes
    for it. The paper: 1, 3 or 5."""
    proximal_weight: NonNegative = 1.0
    """mu, at least 0: weight of the distance from the teacher's prediction; 0: no teacher. The paper: 1."""
    projection: Projection = "paper"
    """How a neighbour is found: inside a ball around the embeddings (paper); by one long step (the first author's
    repository); scaled to norm 1 (MT-DNN)."""
    norm: Norm = "inf"
    """Largest entry or 2-norm."""
    radius: Positive = 1e-5
    """epsilon, above 0: radius of the paper's ball. The paper: 1e-5."""
    noise_std: NonNegative = 1e-5
    """sigma, at least 0: standard deviation of the normal noise that the ascent starts from. The paper: 1e-5."""
    step_size: NonNegative | None = None
    """eta, at least 0. Default 1e-3 (the paper), with projection mt_dnn 1e-5."""
    ascent_steps: Annotated[int, at_least(0, "an integer")] = 1
    """T, at least 0: steps of the ascent; 0 leaves the noise that it starts from. The paper: 1."""
    teacher_betas: Annotated[tuple[float, float], _BETAS] = (0.99, 0.999)
    """beta of the teacher's moving average, each in [0, 1]: first, and later. The paper: 0.99 and 0.999."""
    teacher_switch: Share = 0.1
    """Share of the run's steps with the first beta, in [0, 1]. The paper: 0.1."""
    teacher_dropout: bool = False
    """Whether the teacher predicts with dropout, as in the first author's code."""
    divergence: Divergence = "paper"
    """Distance of the smoothness term: KL both ways with gradients into both (paper); the adv_loss of each task's
    definition (task); or MT-DNN's of that name, a score's being MseCriterion under every name but task."""
    ascent_divergence: Divergence = "paper"
    """The same for the ascent. Both codes: NsKlCriterion."""
    proximal_divergence: Divergence = "paper"
    """The same for the proximal term. The first author's code: NsKlCriterion, one way."""
    noise_place: Literal["words", "embeddings"] = "words"
    """What is perturbed: the word embeddings, or what the encoder's first layer gets, behind positions, norm and
    dropout, without a gradient of the embeddings at the neighbour (the first author's code)."""

    weight_step: NonNegative = 0.0
    """At least 0: how far the weights of the pass at a neighbour are moved along the gradient that the ascent's last
    step has by them, in the 2-norm of all; 0: not at all. The first author's code (use_advcopy): 1e-2."""

    def __post_init__(self) -> None:
        """Fill in the step size; check the ranges and choices."""
        check_ranges(self)
        if self.weight_step > 0.0 and self.smoothness_weight == 0.0:
            raise ValueError(
                f"weight_step is {self.weight_step}, but smoothness_weight is 0, so no pass has moved weights"
            )
        if self.weight_step > 0.0 and self.ascent_steps == 0:
            raise ValueError(
                f"weight_step is {self.weight_step}, but ascent_steps is 0, so no ascent gives a direction"
            )
        if self.step_size is None:
            object.__setattr__(self, "step_size", _STEP_SIZE[self.projection])

    @property
    def eta(self) -> float:
        """The step size as a plain number."""
        assert self.step_size is not None
        return self.step_size


class SMART(FineTuningMethod[SMARTSettings]):
    r"""``L + lambda_s D(f(x), f(x~)) + mu D(f(x), f_teacher(x))``, means over the examples, x the word embeddings.

    D is KL both ways for classes and the squared difference for scores; ``x~ = argmax D(f(x), .)`` near x, by
    ``ascent_steps`` steps from normal noise. The teacher is the moving average of the weights; it predicts as in
    evaluation. The passes at neighbours draw their dropout apart: with dropout on and neighbours as near as the
    paper's, nearly all of D is that of two dropout masks.
    """

    name = "smart"
    title = "SMART"
    exclusive = frozenset({Resource.EMBEDDINGS})
    control = "ema"
    has_noised_pass = True
    reads_clipped_gradients = False

    def __init__(self, settings: SMARTSettings | None = None) -> None:
        super().__init__(settings)
        self._teacher: MeanTeacher | None = None
        self._saved: Mapping[str, torch.Tensor] | None = None
        self._first_layer: FirstLayer | None = None
        self.recomputable = self.settings.weight_step == 0.0

    def setup(self, context: MethodContext) -> None:
        """Look for a distance of each task, and for the place of the noise.

        Raises:
            ValueError: A task has none under a setting's name.
        """
        for setting in _DIVERGENCES:
            for kind in context.model.task_kinds:
                self._criterion(setting, kind)
        if self.settings.noise_place == "embeddings":
            self._first_layer = FirstLayer(context.network, context.model.layers[0])

    def hand_over(self, context: MethodContext) -> None:
        """Take the hooks away."""
        if self._first_layer is not None:
            self._first_layer.release()

    def before_fit(self, context: MethodContext) -> None:
        """Start the teacher from the initial weights."""
        if self.settings.proximal_weight > 0.0:
            self._teacher_of(context)

    def extra_loss(self, context: MethodContext, batch: Any, logits: torch.Tensor) -> torch.Tensor | None:
        """Return both terms."""
        settings = self.settings
        terms = []
        if settings.smoothness_weight > 0.0:
            near = self._near(context, batch, logits.detach())
            terms.append(settings.smoothness_weight * self._distance(context, batch, "divergence", logits, near))
        if settings.proximal_weight > 0.0:
            past = self._past(context, batch)
            distance = self._distance(context, batch, "proximal_divergence", logits, past)
            terms.append(settings.proximal_weight * distance)
        return sum(terms[1:], start=terms[0]) if terms else None

    def after_step(self, context: MethodContext) -> None:
        """Update the teacher."""
        settings = self.settings
        if settings.proximal_weight > 0.0:
            early = context.step < settings.teacher_switch * context.total_steps
            self._teacher_of(context).follow(settings.teacher_betas[0 if early else 1])

    def state_dict(self) -> dict[str, Any]:
        """Return the teacher."""
        return {"teacher": self._saved if self._teacher is None else self._teacher.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep the teacher's weights until the network is at hand."""
        if self._teacher is not None and state["teacher"] is not None:
            self._teacher.load(state["teacher"])
        else:
            self._saved = state["teacher"]

    def _near(self, context: MethodContext, batch: Any, target: torch.Tensor) -> torch.Tensor:
        """Return the (B, K) logits, with the graph, at a neighbour with a distant prediction."""
        model = context.model
        settings = self.settings
        first = self._first_layer
        place = "word embeddings" if first is None else "embeddings"
        embeddings = model.embed(batch) if first is None else first.seen()  # (n_tokens, E) or (B, T, E)
        context.check_noise(f"smart on the {place}", embeddings, lambda: _sizes(settings))
        noise = settings.noise_std * context.pass_stream(self.name).normal(embeddings).to(embeddings.dtype)
        scale = 1.0 if context.gradient_scale is None else context.gradient_scale
        stepping = settings.weight_step > 0.0
        weights = [info.parameter for info in context.params if info.parameter.requires_grad] if stepping else []
        moved: list[torch.Tensor | None] = [None] * len(weights)
        for left in reversed(range(settings.ascent_steps)):
            noise.requires_grad_()
            other = self._noised_logits(context, batch, embeddings.detach() + noise)
            distance = scale * self._distance(context, batch, "ascent_divergence", other, target)
            if left > 0 or not stepping:
                (gradient,) = torch.autograd.grad(distance, noise)
            else:
                gradient, *by_weights = torch.autograd.grad(distance, [noise, *weights], allow_unused=True)
                # The guard is on the mean over examples and classes, as in his code.
                guard = _WEIGHT_GUARD * target.numel() * scale
                moved = step_along(weights, by_weights, settings.weight_step, guard)
            noise = climb(noise.detach(), gradient / scale, settings)
        with in_their_place(context.network, weights, moved):
            return self._noised_logits(context, batch, embeddings + noise)

    def _noised_logits(self, context: MethodContext, batch: Any, embeddings: torch.Tensor) -> torch.Tensor:
        with context.noised(), context.streams.apart(self.name):
            if self._first_layer is None:
                return context.model.logits(batch, inputs_embeds=embeddings)
            with self._first_layer.given(embeddings):
                return context.model.logits(batch)

    def _distance(
        self, context: MethodContext, batch: Any, setting: str, logits: torch.Tensor, other: torch.Tensor
    ) -> torch.Tensor:
        """Return the distance that a setting names, () summed over the examples."""
        name = self._criterion(setting, context.model.task_kind(batch))
        return context.model.divergence(logits, other) if name is None else criteria.distance(name, logits, other)

    def _criterion(self, setting: str, kind: TaskKind) -> Criterion | None:
        """Return MT-DNN's name of a task's distance; None: the paper's."""
        name: str = getattr(self.settings, setting)
        if name == "paper":
            return None
        what = f"smart.{setting}"
        if name == "task":
            if kind.adv_loss is None:
                raise ValueError(f"{what} is task, but {kind.name} has no adv_loss: name it in its definition, or here")
            name, what = kind.adv_loss, f"adv_loss of {kind.name}, which {what} takes,"
        elif kind.regression:
            name = "MseCriterion"
        return criteria.check_criterion(what, name, kind.regression)

    def _past(self, context: MethodContext, batch: Any) -> torch.Tensor:
        """Return the teacher's (B, K) logits, without a graph."""
        with self._teacher_of(context).in_place():
            if not self.settings.teacher_dropout:
                with predicting(context.network):
                    return context.model.logits(batch)
            with torch.no_grad(), context.streams.apart(f"{self.name}/teacher"):
                return context.model.logits(batch)

    def _teacher_of(self, context: MethodContext) -> MeanTeacher:
        """Return the teacher, made from the checkpoint or from the present weights."""
        if self._teacher is None:
            self._teacher = MeanTeacher((info.name, info.parameter) for info in context.params)
            if self._saved is not None:
                self._teacher.load(self._saved)
                self._saved = None
        return self._teacher


def _sizes(settings: SMARTSettings) -> list[float]:
    """Return the sizes of the ascent's first noise and of its steps."""
    steps = {"paper": settings.radius, "dev_repo": settings.eta, "mt_dnn": 1.0}
    return [settings.noise_std, steps[settings.projection] if settings.ascent_steps > 0 else 0.0]


def climb(noise: torch.Tensor, gradient: torch.Tensor, settings: SMARTSettings) -> torch.Tensor:
    """Make one step of the ascent.

    Args:
        noise: (..., E) where the neighbour stands, relative to the embeddings.
        gradient: Like noise: of the distance, summed over the examples.
        settings: Which step.
    """
    eta, norm = settings.eta, settings.norm
    if settings.projection == "mt_dnn":
        moved = noise + eta * gradient
        return moved / (token_norms(moved, norm) + _GUARD["mt_dnn"])
    if settings.projection == "dev_repo":
        return noise + eta * gradient / (token_norms(gradient, norm) + _GUARD["dev_repo"])
    size = token_norms(gradient, norm)
    moved = noise + eta * torch.where(size == 0.0, 0.0, gradient / size)
    if norm == "inf":
        return moved.clamp(-settings.radius, settings.radius)
    return moved * (settings.radius / token_norms(moved, norm)).clamp(max=1.0)


def token_norms(values: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Largest entry or 2-norm of each token: (..., E) -> (..., 1)."""
    if norm == "inf":
        return values.abs().amax(dim=-1, keepdim=True)
    norms: torch.Tensor = values.norm(dim=-1, keepdim=True)
    return norms
