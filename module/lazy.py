"""Slow modules, imported at their first use: ``from ..lazy import torch`` in files whose settings are read without it.

``train.py --help`` and a study's tables import the file of every method, and torch takes most of a second.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from . import bert_optim, criteria, pats, sensitivity
    from .kernels import guard
else:

    class _Lazy:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            if attribute.startswith("__"):  # asked of every global of a file by whoever inspects it
                raise AttributeError(attribute)
            if "_module" not in self.__dict__:
                self._module = import_module(self._name, __package__)
            return getattr(self._module, attribute)

    torch, guard, sensitivity = _Lazy("torch"), _Lazy(".kernels.guard"), _Lazy(".sensitivity")
    bert_optim, criteria, pats = _Lazy(".bert_optim"), _Lazy(".criteria"), _Lazy(".pats")

__all__ = ["bert_optim", "criteria", "guard", "pats", "sensitivity", "torch"]
