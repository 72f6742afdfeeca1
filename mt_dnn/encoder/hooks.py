"""Hooks on modules: where one is, a module must be called, and see whole inputs and outputs."""

from torch import nn
from torch.nn.modules.module import _has_any_global_hook


def every_call_hooked() -> bool:
    """Whether a hook is on the calls of all modules."""
    return bool(_has_any_global_hook())  # type: ignore[no-untyped-call]


def must_be_called(module: nn.Module) -> bool:
    """Whether computing what a module computes would pass over a hook on it, or over a forward put in its place."""
    return hooked(module) or "forward" in vars(module)


def hooked(module: nn.Module) -> bool:
    """Whether a module has a hook on its calls."""
    return bool(module._forward_pre_hooks) or sees_output(module)


def sees_output(module: nn.Module) -> bool:
    """Whether a hook of a module sees its output or the output's gradient."""
    return bool(module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)
