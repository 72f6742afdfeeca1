"""Hooks on modules: where one is, a module must be called, and see whole inputs and outputs."""

from torch import nn


def hooked(module: nn.Module) -> bool:
    """Whether a module has a hook on its calls."""
    return bool(module._forward_pre_hooks) or sees_output(module)


def sees_output(module: nn.Module) -> bool:
    """Whether a hook of a module sees its output or the output's gradient."""
    return bool(module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)
