"""What a fine-tuning method is: hooks around one training run, each with the vanilla default.

A method is one file in ``methods/`` and one line in its registry. Several compose (``noisytune+pats``): every hook is
called in the order they are named, and what only one method can own is an exclusive resource.

Settings must be readable without torch, whose import takes most of a second: ``train.py --help`` and a study's table
need no more. So this file and those in ``methods/`` import what computes (torch, optimizers) inside the hooks. Files in
``methods/`` quote its types: with ``from __future__ import annotations`` jsonargparse imports them to read Settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from module.seeds import stream_seed

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from module.param_index import ParamIndex


class Resource(StrEnum):
    """What at most one method of a run can own."""

    UPDATE_RULE = "the update rule of the optimizer"
    GRADIENT_ESTIMATOR = "the gradient estimator"


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """What a run asks of its optimizer; the method decides which optimizer that becomes."""

    optimizer: Literal["adamax", "adamw"] = "adamax"
    learning_rate: float = 1e-4
    """Learning rate at the top of the schedule."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float | None = None
    """None: the optimizer's own default."""
    weight_decay: float = 0.01
    """Used by groups that do not say their own."""
    adamax_rule: Literal["mtdnn", "torch"] = "mtdnn"
    noise_seed: int = 0
    """Seed of the noise stream, in [0, 2**64)."""

    def __post_init__(self) -> None:
        """Check the choices."""
        if self.optimizer not in ("adamax", "adamw"):
            raise ValueError(f"Invalid optimizer: {self.optimizer!r}: one of adamax, adamw is needed")

    def adamax_arguments(self) -> dict[str, Any]:
        """Keyword arguments of :class:`module.bert_optim.Adamax` and its subclasses."""
        return {
            "lr": self.learning_rate,
            "betas": self.betas,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "rule": self.adamax_rule,
        }


@dataclass(slots=True)
class MethodContext:
    """What the hooks of a method may see of a run."""

    network: nn.Module
    params: ParamIndex
    seed: int
    optimizer: Optimizer | None = None
    """None until it is built."""
    step: int = 0
    """Optimizer steps done."""
    total_steps: int = 0
    """Optimizer steps of the whole run."""

    def rng(self, name: str) -> torch.Generator:
        """Return a fresh CPU generator of the stream (seed, name)."""
        import torch

        return torch.Generator().manual_seed(stream_seed(self.seed, name))


@dataclass(frozen=True, slots=True)
class NoSettings:
    """Settings of a method that has none."""


class FineTuningMethod:
    """A fine-tuning method; without any hook overridden it is plain fine-tuning.

    Args:
        settings: Instance of the class's ``Settings``; None: the defaults.
    """

    name: ClassVar[str] = "vanilla"
    Settings: ClassVar[type] = NoSettings
    exclusive: ClassVar[frozenset[Resource]] = frozenset()

    def __init__(self, settings: Any = None) -> None:
        settings = type(self).Settings() if settings is None else settings
        if not isinstance(settings, type(self).Settings):
            wanted = type(self).Settings.__qualname__
            raise TypeError(f"Settings of method {self.name!r} are {type(settings).__qualname__}, not {wanted}")
        self.settings: Any = settings

    def configure(self, encoder_config: Any) -> None:
        """Change the encoder's configuration before its weights are loaded."""

    def setup(self, context: MethodContext) -> None:
        """Weights are loaded, the optimizer is not built."""

    def before_fit(self, context: MethodContext) -> None:
        """Everything is built; called once per run, not on resume."""

    def make_optimizer(self, groups: Sequence[dict[str, Any]], settings: OptimizerSettings) -> Optimizer | None:
        """Build the optimizer, or return None to leave that to others.

        Args:
            groups: Groups of named parameters, as :func:`module.param_index.weight_decay_groups` makes them.
            settings: What the run asks for.
        """
        return None

    def gradients(self, batch: Any, forward: Callable[[Any], Tensor]) -> Tensor:
        """Accumulate the gradients of one micro-batch.

        Args:
            batch: The micro-batch.
            forward: Runs the network on a batch and returns the loss to call ``backward`` on, already scaled.

        Returns:
            The loss, detached.
        """
        loss = forward(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def after_backward(self, context: MethodContext) -> None:
        """Gradients are final: accumulated, unscaled, reduced and clipped."""

    def after_step(self, context: MethodContext) -> None:
        """The optimizer has stepped."""

    def evaluation(self, context: MethodContext) -> AbstractContextManager[None]:
        """Return the context in which the network is evaluated."""
        return nullcontext()

    @property
    def needs_dense_gradients(self) -> bool:
        """Whether the word embeddings' gradient must be dense; by default if a hook that sees it is overridden.

        Elsewhere the run may keep only the rows of a batch's tokens (:mod:`module.row_sparse`).
        """
        seen = ("gradients", "after_backward")
        return any(getattr(type(self), hook) is not getattr(FineTuningMethod, hook) for hook in seen)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs beyond the network and the optimizer: tensors and plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""

    def metrics(self, context: MethodContext) -> dict[str, float]:
        """Return numbers to log; called on logging steps only."""
        return {}


class Composition(FineTuningMethod):
    """Several methods as one: hooks in order; the optimizer of whichever builds one, else the plain one.

    Raises:
        ValueError: If two methods own the same resource.
    """

    def __init__(self, methods: Sequence[FineTuningMethod]) -> None:
        super().__init__()
        check_exclusive([type(method) for method in methods])
        self.methods = tuple(methods)

    def configure(self, encoder_config: Any) -> None:  # noqa: D102
        for method in self.methods:
            method.configure(encoder_config)

    def setup(self, context: MethodContext) -> None:  # noqa: D102
        for method in self.methods:
            method.setup(context)

    def before_fit(self, context: MethodContext) -> None:  # noqa: D102
        for method in self.methods:
            method.before_fit(context)

    def make_optimizer(self, groups: Sequence[dict[str, Any]], settings: OptimizerSettings) -> Optimizer:
        """Build the optimizer: a method's own, else the plain one."""
        for method in self.methods:
            if (optimizer := method.make_optimizer(groups, settings)) is not None:
                return optimizer
        return plain_optimizer(groups, settings)

    def gradients(self, batch: Any, forward: Callable[[Any], Tensor]) -> Tensor:  # noqa: D102
        for method in self.methods:
            if Resource.GRADIENT_ESTIMATOR in method.exclusive:
                return method.gradients(batch, forward)
        return super().gradients(batch, forward)

    def after_backward(self, context: MethodContext) -> None:  # noqa: D102
        for method in self.methods:
            method.after_backward(context)

    def after_step(self, context: MethodContext) -> None:  # noqa: D102
        for method in self.methods:
            method.after_step(context)

    def evaluation(self, context: MethodContext) -> AbstractContextManager[None]:  # noqa: D102
        stack = ExitStack()
        for method in self.methods:
            stack.enter_context(method.evaluation(context))
        return stack  # type: ignore[return-value]

    @property
    def needs_dense_gradients(self) -> bool:  # noqa: D102
        return any(method.needs_dense_gradients for method in self.methods)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {method.name: method.state_dict() for method in self.methods}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        for method in self.methods:
            method.load_state_dict(state[method.name])

    def metrics(self, context: MethodContext) -> dict[str, float]:
        """Return the numbers of all methods, as ``<method>/<number>``."""
        return {
            f"{method.name}/{key}": value for method in self.methods for key, value in method.metrics(context).items()
        }


def check_exclusive(methods: Sequence[type[FineTuningMethod]]) -> None:
    """Refuse two owners of one resource.

    Raises:
        ValueError: If there are; it names both methods and the resource.
    """
    owners: dict[Resource, str] = {}
    for method in methods:
        for resource in sorted(method.exclusive):
            if resource in owners:
                raise ValueError(
                    f"Methods {owners[resource]!r} and {method.name!r} both need {resource}, which only one can own: "
                    "use them in separate runs"
                )
            owners[resource] = method.name


def plain_optimizer(groups: Sequence[dict[str, Any]], settings: OptimizerSettings) -> Optimizer:
    """Build the optimizer of a run whose methods do not need one of their own."""
    if settings.optimizer == "adamw":
        import torch

        eps = 1e-8 if settings.eps is None else settings.eps
        return torch.optim.AdamW(
            own_groups(groups),
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=eps,
            weight_decay=settings.weight_decay,
        )
    from module.bert_optim import Adamax

    return Adamax(own_groups(groups), **settings.adamax_arguments())


def own_groups(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copy parameter groups for an optimizer to keep: torch writes into the ones it is given."""
    return [dict(group) for group in groups]
