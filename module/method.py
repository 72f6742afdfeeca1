"""A fine-tuning method: hooks around one training run, each with the vanilla default.

A method is one file in ``methods/``, where the registry finds it. Several compose (``noisytune+pats``): every hook is
called in the order they are named; a resource that only one method can own is exclusive.

Settings must be readable without torch, whose import takes most of a second: ``train.py --help`` and a study's table
need no more. So the files in ``methods/`` take torch and the modules on top of it from :mod:`module.lazy`; they have no
block ``if TYPE_CHECKING:``, which jsonargparse would run to read Settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeAlias, TypeVar, get_args

from .checks import CheckedSettings
from .context import Accumulate, DropoutRates, MethodContext
from .lazy import bert_optim, torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

S = TypeVar("S")


class Resource(StrEnum):
    """A part of a run that at most one of its methods can own."""

    UPDATE_RULE = "the update rule of the optimizer"
    WEIGHT_ESTIMATOR = "the weights at which gradients are taken"
    FORWARD_WEIGHTS = "noise on the weights of the forward pass"
    LINEAR_LAYERS = "the encoder's linear layers"
    EMBEDDINGS = "the perturbation of the word embeddings"
    EVALUATED_WEIGHTS = "the weights that are evaluated"


@dataclass(frozen=True, slots=True)
class OptimizerSettings(CheckedSettings):
    """The settings of a run's optimizer; the methods decide which optimizer it is."""

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

    def adamax_arguments(self) -> dict[str, Any]:
        """Keyword arguments of :class:`module.bert_optim.Adamax` and its subclasses."""
        return {
            "lr": self.learning_rate,
            "betas": self.betas,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "rule": self.adamax_rule,
        }


@dataclass(frozen=True, slots=True)
class NoSettings:
    """Settings of a method that has none."""


class FineTuningMethod(Generic[S]):
    """A fine-tuning method; without any hook overridden it is plain fine-tuning.

    A subclass names the dataclass of its settings: ``class SAM(FineTuningMethod[SAMSettings])``.

    Args:
        settings: Instance of that class; None: the defaults.
    """

    name: ClassVar[str] = "vanilla"
    title: ClassVar[str] = "vanilla"
    """Name in tables and figures; by default ``name``."""
    Settings: ClassVar[type] = NoSettings
    exclusive: ClassVar[frozenset[Resource]] = frozenset()
    rank: ClassVar[int] = 0
    """Hooks of lower ranks come first, ``gradients`` of lower ranks around those of higher ones."""
    control: ClassVar[str] = "vanilla"
    """The method's baseline: plain fine-tuning with the same changes of protocol."""
    is_control: ClassVar[bool] = False
    """Whether it is such a control itself."""
    has_noised_pass: ClassVar[bool] = False
    """Whether it compares the plain forward pass with one under noise."""
    anchors: frozenset[str] = frozenset()
    """Which ``context.anchor`` the method asks for."""
    evaluates_other_weights: bool = False
    """Whether ``evaluation`` puts other weights than the trained ones in; the run then scores both."""
    needs_dense_gradients: bool = False
    """Whether the word embeddings' gradient must be dense; by default if a hook that sees it is overridden.

    Elsewhere the run may keep only the rows of a batch's tokens (:mod:`module.row_sparse`).
    """
    reads_clipped_gradients: bool = False
    """Whether gradients are looked at after clipping; by default if ``after_backward`` or ``after_step`` is overridden.

    Elsewhere an optimizer of this package clips as it reads them, and they stay as backward left them.
    """
    plain_pass: bool = True
    """Whether forward and backward of a micro-batch are those of plain fine-tuning, on other weights at most; by
    default if none of ``setup``, ``before_fit``, ``gradients``, ``extra_loss`` and ``after_step`` is overridden.

    On CUDA they may then be recorded once and repeated (:mod:`mt_dnn.pass_graphs`): nothing that the host decides
    within them happens again, and gradients lie where those of another step lay.
    """
    recomputable: bool = True
    """Whether layers may compute themselves again in the backward pass (gradient checkpointing); not where a pass has
    weights that are gone by then."""
    divisible: bool = True
    """Whether processes may divide a step's examples among them; by default if ``gradients`` is not overridden.

    A ``gradients`` of its own is right there if it works on any part of the step's micro-batches, none included, uses
    ``context.examples`` for the size of the step, and calls ``context.complete_gradients`` before it looks at
    gradients. ``before_fit`` runs in every process on the whole training set, and its ``state_dict`` is then taken from
    the first; the other hooks see gradients of the whole step.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = vars(cls)
        for base in own.get("__orig_bases__", ()):
            for settings in get_args(base):
                if isinstance(settings, type) and "Settings" not in own:
                    cls.Settings = settings
        if "title" not in own:
            cls.title = cls.name
        for attribute, (hooks, value) in _BY_HOOKS.items():
            if attribute not in own and any(_overrides(cls, hook) for hook in hooks):
                setattr(cls, attribute, value)

    def __init__(self, settings: S | None = None) -> None:
        wanted: Any = type(self).Settings
        settings = wanted() if settings is None else settings
        if not isinstance(settings, wanted):
            raise TypeError(
                f"Settings of method {self.name!r} are {type(settings).__qualname__}, not {wanted.__qualname__}"
            )
        self.settings: S = settings

    def check_beside(self, others: Sequence[AnyMethod]) -> None:
        """Refuse other methods of the run, beyond the rule of ``exclusive``.

        Raises:
            ValueError: Names both methods and the reason.
        """

    def check_run(self, settings: OptimizerSettings) -> None:
        """Refuse an impossible run before its data and encoder are loaded, such as one that lacks a package.

        Args:
            settings: Of the run's optimizer.

        Raises:
            ValueError: Names the method, the reason and a remedy.
        """

    def check_device(self, device_type: str) -> None:
        """Refuse a device on which the method cannot run, before data and encoder are loaded.

        Args:
            device_type: ``cpu`` or ``cuda``.

        Raises:
            ValueError: Names the method, the device and a remedy.
        """

    def configure(self, rates: DropoutRates) -> DropoutRates:
        """Choose the network's dropout, before it is built."""
        return rates

    def setup(self, context: MethodContext) -> None:
        """Change, replace or freeze parameters, after the weights are loaded and before the optimizer is built."""

    def param_groups(self, context: MethodContext, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Divide or change the optimizer's groups of named parameters; ``lr`` in a group is its own learning rate.

        Args:
            context: With the learning rate of the run in no group yet.
            groups: As :func:`module.param_index.weight_decay_groups` makes them, each with its ``lr``.
        """
        return groups

    def make_optimizer(
        self, groups: Sequence[dict[str, Any]], settings: OptimizerSettings, made: Optimizer | None
    ) -> Optimizer | None:
        """Build the optimizer, or attach to one, or return None to leave that to others.

        Args:
            groups: Groups of named parameters.
            settings: Of the run's optimizer.
            made: The optimizer that a method before this one has built.
        """
        return None

    def before_fit(self, context: MethodContext) -> None:
        """Prepare from the data when everything is built, once per run, not on resume. Random draws are forgotten."""

    def extra_loss(self, context: MethodContext, batch: Any, logits: Tensor) -> Tensor | None:
        """Return a term to add to the task's loss, summed over the examples of the batch.

        Args:
            context: With the model to call.
            batch: The micro-batch.
            logits: (B, K) of its plain forward pass, with the graph.
        """
        return None

    def gradients(self, context: MethodContext, batches: Sequence[Any], inner: Accumulate) -> Tensor:
        """Accumulate the gradients of one optimizer step.

        Args:
            context: Of the step.
            batches: Its micro-batches, or some of them where a method around this one divides them.
            inner: Does it, with the methods of higher rank around the plain pass.

        Returns:
            () the loss to log, summed over the examples, from ``inner``.
        """
        return inner(batches)

    def after_backward(self, context: MethodContext) -> None:
        """Change the final gradients: accumulated, unscaled, reduced and clipped."""

    def after_step(self, context: MethodContext) -> None:
        """Act on the weights after the optimizer's step."""

    def check_step(self, context: MethodContext) -> None:
        """Raise the errors that a GPU found in steps since the last call; called on logging steps only.

        The default asks an optimizer that has ``check_refused``.
        """
        if check := getattr(context.optimizer, "check_refused", None):
            check()

    def evaluation(self, context: MethodContext) -> AbstractContextManager[None]:
        """Return the context for evaluating the network and saving its weights as the result."""
        return nullcontext()

    def hand_over(self, context: MethodContext) -> None:
        """Leave the network as its own class makes, saves and loads it, with the weights that it computes with.

        Another library's loop calls it behind the last step. This project's own run keeps what ``setup`` has made.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a resume beyond network, optimizer and ``context.streams``: tensors and plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of :meth:`state_dict`; its tensors are on the CPU."""

    def metrics(self, context: MethodContext) -> dict[str, float]:
        """Return numbers to log; called on logging steps only."""
        return {}


# Attributes whose default follows from the hooks that a class overrides, and its value then.
_BY_HOOKS: dict[str, tuple[tuple[str, ...], bool]] = {
    "divisible": (("gradients",), False),
    "plain_pass": (("setup", "before_fit", "gradients", "extra_loss", "after_step"), False),
    "needs_dense_gradients": (("gradients", "after_backward"), True),
    "reads_clipped_gradients": (("after_backward", "after_step"), True),
}


def _overrides(cls: type, hook: str) -> bool:
    """Whether a class itself, or one beside the methods that it derives from, has a hook of its own."""
    owner = next(parent for parent in cls.__mro__ if hook in vars(parent))
    return owner is cls or not issubclass(owner, FineTuningMethod)


AnyMethod: TypeAlias = FineTuningMethod[Any]


def plain_optimizer(groups: Sequence[dict[str, Any]], settings: OptimizerSettings) -> Optimizer:
    """Build the optimizer of a run whose methods do not need one of their own."""
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(
            own_groups(groups),
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=1e-8 if settings.eps is None else settings.eps,
            weight_decay=settings.weight_decay,
            fused=True if _on_cuda(groups) else None,
        )
        optimizer.register_load_state_dict_pre_hook(_keep_fused)
        return optimizer
    return bert_optim.Adamax(own_groups(groups), **settings.adamax_arguments())


def _on_cuda(groups: Sequence[dict[str, Any]]) -> bool:
    """Whether all parameters, named or not, are on CUDA, where one kernel does AdamW's whole step."""
    parameters = [pair[1] if isinstance(pair, tuple) else pair for group in groups for pair in group["params"]]
    return all(parameter.is_cuda for parameter in parameters)


def _keep_fused(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Step as the device wants it, wherever the state was saved."""
    fused = optimizer.defaults["fused"]
    return {**state_dict, "param_groups": [{**saved, "fused": fused} for saved in state_dict["param_groups"]]}


def own_groups(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copy parameter groups for an optimizer to keep: torch writes into the ones it is given."""
    return [dict(group) for group in groups]
