"""Hooks of an optimizer: those that go with its copies and pickles, as torch leaves all hooks and their objects out."""

from collections import OrderedDict
from collections.abc import Iterator
from types import MethodType
from typing import Any

from torch.optim import Optimizer

_DICTS = (
    "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks", "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks", "_optimizer_load_state_dict_post_hooks",
)  # fmt: skip


def unwrapped(optimizer: Any) -> Optimizer:
    """Return the optimizer inside of wrappers (accelerate's, Lightning's), whose hooks are the ones that are called.

    Raises:
        TypeError: If there is none.
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"attach() needs a torch optimizer, not a {type(optimizer).__name__}: pass the one whose step() trains"
        )
    return optimizer


def owners(optimizer: Optimizer, kind: type) -> Iterator[Any]:
    """Objects of a class whose methods are hooks before the optimizer's steps."""
    for hook in optimizer._optimizer_step_pre_hooks.values():
        if isinstance(owner := getattr(hook, "__self__", None), kind):
            yield owner


def keep_in_copies(optimizer: Optimizer, kind: type) -> None:
    """Let copies and pickles of the optimizer keep the hooks that are methods of a class, with their objects."""

    def state(self: Optimizer) -> dict[str, Any]:
        hooks = {
            name: OrderedDict(
                # Texts as keys: numbers could be given out again where a pickle is read.
                (f"copied {key}", hook)
                for key, hook in getattr(self, name).items()
                if isinstance(getattr(hook, "__self__", None), kind)
            )
            for name in _DICTS
        }
        return {**type(self).__getstate__(self), **hooks}

    optimizer.__getstate__ = MethodType(state, optimizer)  # type: ignore[method-assign]


def remove_hooks(optimizer: Optimizer, owner: object, kind: type) -> None:
    """Take away the hooks that are methods of an object; with the last of its class, copies are torch's again."""
    for name in _DICTS:
        hooks = getattr(optimizer, name)
        for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is owner]:
            del hooks[key]
    if not any(owners(optimizer, kind)):
        vars(optimizer).pop("__getstate__", None)
