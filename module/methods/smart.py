"""SMART (Jiang et al., ACL 2020, arXiv 1911.03437): smooth around the inputs, near to its own past."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..context import MethodContext
from ..method import FineTuningMethod, Resource

if TYPE_CHECKING:
    from torch import Tensor

    from .parts.mean_teacher import MeanTeacher

Projection = Literal["paper", "dev_repo", "mt_dnn"]
Norm = Literal["inf", "l2"]

_STEP_SIZE: dict[Projection, float] = {"paper": 1e-3, "dev_repo": 1e-3, "mt_dnn": 1e-5}
# What the two codes add to the norms that they divide by.
_GUARD: dict[Projection, float] = {"dev_repo": 1e-4, "mt_dnn": 1e-6}


@dataclass(frozen=True, slots=True)
class SMARTSettings:
    """Settings of SMART. Norms are those of one token's embedding.

    ``step_size`` depends on ``projection`` and is filled in when left out.

    Raises:
        ValueError: If a number is out of its range or a choice is unknown.
    """

    smoothness_weight: float = 1.0
    """lambda_s, at least 0: weight of the distance from the prediction at a neighbour; 0: no such term, and no passes
    for it. The paper: 1, 3 or 5."""
    proximal_weight: float = 1.0
    """mu, at least 0: weight of the distance from the teacher's prediction; 0: no teacher. The paper: 1."""
    projection: Projection = "paper"
    """How a neighbour is found: inside a ball around the embeddings (paper); by one long step (the first author's
    repository); scaled to norm 1 (MT-DNN)."""
    norm: Norm = "inf"
    """Largest entry or 2-norm."""
    radius: float = 1e-5
    """epsilon, above 0: radius of the paper's ball. The paper: 1e-5."""
    noise_std: float = 1e-5
    """sigma, at least 0: standard deviation of the normal noise that the ascent starts from. The paper: 1e-5."""
    step_size: float | None = None
    """eta, at least 0. Default 1e-3 (the paper), with projection mt_dnn 1e-5."""
    ascent_steps: int = 1
    """T, at least 0: steps of the ascent; 0 leaves the noise that it starts from. The paper: 1."""
    teacher_betas: tuple[float, float] = (0.99, 0.999)
    """beta of the teacher's moving average, each in [0, 1]: first, and later. The paper: 0.99 and 0.999."""
    teacher_switch: float = 0.1
    """Share of the run's steps with the first beta, in [0, 1]. The paper: 0.1."""

    def __post_init__(self) -> None:
        """Fill in the step size; check the ranges and choices."""
        for name, legal in (("projection", Projection), ("norm", Norm)):
            value, choices = getattr(self, name), get_args(legal)
            if value not in choices:
                raise ValueError(f"Invalid {name}: {value!r}: one of {', '.join(choices)} is needed")
        if self.step_size is None:
            object.__setattr__(self, "step_size", _STEP_SIZE[self.projection])
        for name in ("smoothness_weight", "proximal_weight", "noise_std", "step_size"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"Invalid {name}: {getattr(self, name)}: a number of at least 0 is needed")
        if not 0.0 < self.radius < float("inf"):
            raise ValueError(f"Invalid radius: {self.radius}: a number above 0 is needed")
        if self.ascent_steps < 0:
            raise ValueError(f"Invalid ascent_steps: {self.ascent_steps}: an integer of at least 0 is needed")
        if not (len(self.teacher_betas) == 2 and all(0.0 <= beta <= 1.0 for beta in self.teacher_betas)):
            raise ValueError(f"Invalid teacher_betas: {self.teacher_betas}: two numbers in [0, 1] are needed")
        if not 0.0 <= self.teacher_switch <= 1.0:
            raise ValueError(f"Invalid teacher_switch: {self.teacher_switch}: a number in [0, 1] is needed")

    @property
    def eta(self) -> float:
        """The step size as a plain number."""
        assert self.step_size is not None
        return self.step_size


class SMART(FineTuningMethod):
    r"""``L + lambda_s D(f(x), f(x~)) + mu D(f(x), f_teacher(x))``, means over the examples, x the word embeddings.

    D is KL both ways for classes and the squared difference for scores; ``x~ = argmax D(f(x), .)`` near x, by
    ``ascent_steps`` steps from normal noise. The teacher is the moving average of the weights; it predicts as in
    evaluation. The passes at neighbours draw their dropout apart: with dropout on and neighbours as near as the
    paper's, nearly all of D is that of two dropout masks.
    """

    name = "smart"
    Settings = SMARTSettings
    exclusive = frozenset({Resource.EMBEDDINGS})
    control = "ema"
    has_noised_pass = True

    def __init__(self, settings: SMARTSettings | None = None) -> None:
        super().__init__(settings)
        self._teacher: MeanTeacher | None = None
        self._saved: Mapping[str, Tensor] | None = None
        self._checked = False

    def before_fit(self, context: MethodContext) -> None:
        """Let the teacher start from the weights that training starts from."""
        if self.settings.proximal_weight > 0.0:
            self._teacher_of(context)

    def extra_loss(self, context: MethodContext, batch: Any, logits: "Tensor") -> "Tensor | None":
        """Return both terms."""
        assert context.model is not None
        settings: SMARTSettings = self.settings
        terms = []
        if settings.smoothness_weight > 0.0:
            near = self._near(context, batch, logits.detach())
            terms.append(settings.smoothness_weight * context.model.divergence(logits, near))
        if settings.proximal_weight > 0.0:
            past = self._past(context, batch)
            terms.append(settings.proximal_weight * context.model.divergence(logits, past))
        return sum(terms[1:], start=terms[0]) if terms else None

    def after_step(self, context: MethodContext) -> None:
        """Let the teacher follow."""
        settings: SMARTSettings = self.settings
        if settings.proximal_weight > 0.0:
            early = context.step < settings.teacher_switch * context.total_steps
            self._teacher_of(context).follow(settings.teacher_betas[0 if early else 1])

    def state_dict(self) -> dict[str, Any]:
        """Return the teacher."""
        return {"teacher": self._saved if self._teacher is None else self._teacher.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep the teacher until the parameters it stands for are at hand."""
        if self._teacher is not None and state["teacher"] is not None:
            self._teacher.load(state["teacher"])
        else:
            self._saved = state["teacher"]

    def _near(self, context: MethodContext, batch: Any, target: "Tensor") -> "Tensor":
        """Logits at a neighbour that moves the prediction far: (B, K) with the graph."""
        import torch

        assert context.model is not None
        model = context.model
        settings: SMARTSettings = self.settings
        embeddings = model.embed(batch)  # (n_tokens, E) or (B, T, E)
        self._check(context, embeddings)
        noise = settings.noise_std * context.pass_stream(self.name).normal(embeddings).to(embeddings.dtype)
        scale = 1.0 if context.gradient_scale is None else context.gradient_scale
        for _ in range(settings.ascent_steps):
            noise.requires_grad_()
            other = self._noised_logits(context, batch, embeddings.detach() + noise)
            (gradient,) = torch.autograd.grad(scale * model.divergence(other, target), noise)
            noise = climb(noise.detach(), gradient / scale, settings)
        return self._noised_logits(context, batch, embeddings + noise)

    def _noised_logits(self, context: MethodContext, batch: Any, embeddings: "Tensor") -> "Tensor":
        assert context.model is not None
        assert context.streams is not None
        with context.noised(), context.streams.apart(self.name):
            return context.model.logits(batch, inputs_embeds=embeddings)

    def _past(self, context: MethodContext, batch: Any) -> "Tensor":
        """Logits of the teacher: (B, K) without a graph."""
        from .parts.mean_teacher import predicting

        assert context.model is not None
        with self._teacher_of(context).in_place(), predicting(context.network):
            return context.model.logits(batch)

    def _teacher_of(self, context: MethodContext) -> "MeanTeacher":
        """The teacher, from the checkpoint or from the weights as they are."""
        if self._teacher is None:
            from .parts.mean_teacher import MeanTeacher

            self._teacher = MeanTeacher((info.name, info.parameter) for info in context.params)
            if self._saved is not None:
                self._teacher.load(self._saved)
                self._saved = None
        return self._teacher

    def _check(self, context: MethodContext, embeddings: "Tensor") -> None:
        """Compare the noise with the resolution of the embeddings, once."""
        if self._checked:
            return
        from ..resolution import check_resolution

        assert context.model is not None
        settings: SMARTSettings = self.settings
        moved = {"paper": settings.radius, "dev_repo": settings.eta, "mt_dnn": 1.0}[settings.projection]
        with context.model.autocast():
            for size in (settings.noise_std, moved if settings.ascent_steps > 0 else 0.0):
                check_resolution("smart on the word embeddings", size, embeddings)
        self._checked = True


def climb(noise: "Tensor", gradient: "Tensor", settings: SMARTSettings) -> "Tensor":
    """Make one step of the ascent.

    Args:
        noise: (..., E) where the neighbour stands, relative to the embeddings.
        gradient: Like noise: of the distance, summed over the examples.
        settings: Which step.
    """
    import torch

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


def token_norms(values: "Tensor", norm: Norm) -> "Tensor":
    """Largest entry or 2-norm of each token: (..., E) -> (..., 1)."""
    if norm == "inf":
        return values.abs().amax(dim=-1, keepdim=True)
    norms: Tensor = values.norm(dim=-1, keepdim=True)
    return norms
