"""The other name of this package: plug-ins may be written against either, and get the same classes.

In a clone the package is ``module``, installed it is ``pats_finetuning``. Imported under both names, every class would
be there twice, and a method of the one no method to the other.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

_NAMES = ("module", "pats_finetuning")


class _Twin(MetaPathFinder, Loader):
    """Finds this package's modules under the other name."""

    def __init__(self, own: str, other: str) -> None:
        self._own, self._other = own, other
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module by its other name; None: it is none of this package."""
        return spec_from_loader(fullname, self) if fullname.partition(".")[0] == self._other else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Give the module of this package."""
        found = import_module(self._own + spec.name.removeprefix(self._other))
        self._specs[spec.name] = found.__spec__
        return found

    def exec_module(self, module: ModuleType) -> None:
        """Leave it as it is: it ran when it was imported, under its own name."""
        assert module.__spec__ is not None
        module.__spec__ = self._specs.pop(module.__spec__.name)


def answer_to_both_names() -> None:
    """Let imports of the other name find this package, unless another package has it or it was imported already."""
    own = __name__.partition(".")[0]
    for other in _NAMES:
        if other != own and other not in sys.modules and _is_ours(other):
            sys.meta_path.insert(0, _Twin(own, other))
            import_module(other)


def _is_ours(name: str) -> bool:
    """Whether a name is free, or that of a copy of this package."""
    spec = find_spec(name)
    return spec is None or (spec.origin is not None and Path(spec.origin).with_name("pats_rule.py").is_file())
