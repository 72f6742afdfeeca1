"""Several methods as one, and the rule for their exclusive resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from .context import Accumulate, DropoutRates, MethodContext
from .method import AnyMethod, FineTuningMethod, NoSettings, OptimizerSettings, Resource, plain_optimizer

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer


class Composition(FineTuningMethod[NoSettings]):
    """Several methods as one: hooks by rank, those of one rank in the order named.

    Raises:
        ValueError: If two methods own the same resource, or one refuses another.
    """

    def __init__(self, methods: Sequence[AnyMethod]) -> None:
        super().__init__()
        check_exclusive([type(method) for method in methods])
        self.methods = tuple(sorted(methods, key=lambda method: method.rank))
        for method in self.methods:
            method.check_beside([other for other in self.methods if other is not method])
        self.anchors = frozenset().union(*(method.anchors for method in self.methods))
        self.evaluates_other_weights = any(method.evaluates_other_weights for method in self.methods)
        self.needs_dense_gradients = any(method.needs_dense_gradients for method in self.methods)
        self.reads_clipped_gradients = any(method.reads_clipped_gradients for method in self.methods)
        self.plain_pass = all(method.plain_pass for method in self.methods)
        self.recomputable = all(method.recomputable for method in self.methods)
        self.divisible = all(method.divisible for method in self.methods)

    def check_run(self, settings: OptimizerSettings) -> None:  # noqa: D102
        for method in self.methods:
            method.check_run(settings)

    def check_device(self, device_type: str) -> None:  # noqa: D102
        for method in self.methods:
            method.check_device(device_type)

    def configure(self, rates: DropoutRates) -> DropoutRates:  # noqa: D102
        for method in self.methods:
            rates = method.configure(rates)
        return rates

    def setup(self, context: MethodContext) -> None:  # noqa: D102
        for method in self.methods:
            method.setup(context)

    def param_groups(self, context: MethodContext, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:  # noqa: D102
        for method in self.methods:
            groups = method.param_groups(context, groups)
        return groups

    def make_optimizer(
        self, groups: Sequence[dict[str, Any]], settings: OptimizerSettings, made: Optimizer | None = None
    ) -> Optimizer:
        """Build the optimizer: the methods' own, else the plain one."""
        for method in self.methods:
            made = method.make_optimizer(groups, settings, made) or made
        return made or plain_optimizer(groups, settings)

    def before_fit(self, context: MethodContext) -> None:  # noqa: D102
        for method in self.methods:
            method.before_fit(context)

    def extra_loss(self, context: MethodContext, batch: Any, logits: Tensor) -> Tensor | None:
        """Return the sum of the methods' terms."""
        total: Tensor | None = None
        for method in self.methods:
            if (term := method.extra_loss(context, batch, logits)) is not None:
                total = term if total is None else total + term
        return total

    def gradients(self, context: MethodContext, batches: Sequence[Any], inner: Accumulate) -> Tensor:  # noqa: D102
        return self.around(context, inner)(batches)

    def around(self, context: MethodContext, inner: Accumulate) -> Accumulate:
        """Wrap a plain pass in the hooks ``gradients`` of the methods, to accumulate the gradients of a step."""
        for method in reversed(self.methods):
            inner = _around(method, context, inner)
        return inner

    def after_backward(self, context: MethodContext) -> None:  # noqa: D102
        for method in self.methods:
            method.after_backward(context)

    def after_step(self, context: MethodContext) -> None:  # noqa: D102
        for method in self.methods:
            method.after_step(context)

    def check_step(self, context: MethodContext) -> None:  # noqa: D102
        for method in self.methods:
            method.check_step(context)

    def evaluation(self, context: MethodContext) -> AbstractContextManager[None]:  # noqa: D102
        stack = ExitStack()
        for method in self.methods:
            stack.enter_context(method.evaluation(context))
        return stack  # type: ignore[return-value]

    def hand_over(self, context: MethodContext) -> None:  # noqa: D102
        for method in reversed(self.methods):
            method.hand_over(context)

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


def _around(method: AnyMethod, context: MethodContext, inner: Accumulate) -> Accumulate:
    """Wrap ``inner`` in a method's hook ``gradients``; the weight goes through to the plain pass."""
    if type(method).gradients is FineTuningMethod.gradients:
        return inner

    def accumulate(batches: Sequence[Any], weight: float = 1.0) -> Tensor:
        context.pass_weight = weight
        return method.gradients(context, batches, lambda inside, factor=1.0: inner(inside, weight * factor))

    return accumulate


def check_exclusive(methods: Sequence[type[AnyMethod]]) -> None:
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
