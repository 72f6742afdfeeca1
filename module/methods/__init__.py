"""The registry of fine-tuning methods, and the names by which they compose.

Every method of a file in this folder is in it; their building blocks are in ``parts``. Methods of other packages
join through the entry point group ``pats.methods``: ``name = "package.module:Class"``.
"""

import difflib
from collections.abc import Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from ..composition import Composition, check_exclusive
from ..method import AnyMethod, FineTuningMethod
from .registry import Registry

ENTRY_POINTS = "pats.methods"
# Their order in tables and in --help; others come after them.
_FIRST = (
    "vanilla", "no_hidden_dropout", "no_dropout", "head_learning_rate", "frozen_embeddings", "noisytune", "sage",
    "pats", "matched_noise", "hype", "component_clip", "child_tuning", "neftune", "reinit", "smart", "freelb", "rdrop",
    "r3f", "sam", "pgd", "mixout", "pac_tuning", "recadam", "l2sp", "llrd", "ema", "swa", "bitfit", "lora",
)  # fmt: skip


def _own() -> Iterator[type[AnyMethod]]:
    """The methods of this folder's files."""
    for file in iter_modules(__path__):
        if not file.ispkg:
            found = import_module(f".{file.name}", __name__)
            own = [kind for kind in vars(found).values() if getattr(kind, "__module__", "") == found.__name__]
            yield from (kind for kind in own if isinstance(kind, type) and issubclass(kind, FineTuningMethod))


def _place(method: type[AnyMethod]) -> int:
    return _FIRST.index(method.name) if method.name in _FIRST else len(_FIRST)


METHODS = Registry(sorted(_own(), key=_place), ENTRY_POINTS)


def parse_method(spec: str) -> tuple[str, ...]:
    """Split and check a method's name, such as ``pats`` or ``noisytune+pats``.

    Args:
        spec: Names of the registry, joined with ``+``, in the order their hooks are called.

    Raises:
        ValueError: If a name is unknown or stands twice, the package that brings it is broken, or two of them own one
            exclusive resource.
    """
    names = tuple(spec.split("+"))
    for name in names:
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, n=1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(
                f"Invalid method: {name[:60]!r} in {spec[:60]!r}{meant}: known are {', '.join(METHODS)}, joined with "
                f"+; {METHODS.trouble or 'no installed package brings it'}"
            )
    if len(set(names)) < len(names):
        raise ValueError(f"Invalid method: {spec[:60]!r} names a method twice: name each once")
    if len(names) > 1 and "vanilla" in names:
        raise ValueError(f"Invalid method: {spec[:60]!r}: vanilla is what remains without a method: leave it out")
    check_exclusive([METHODS[name] for name in names])
    return names


def is_control(spec: str) -> bool:
    """Whether a method is plain fine-tuning, with other changes of protocol or without.

    Raises:
        ValueError: As in :func:`parse_method`.
    """
    return all(METHODS[name].is_control for name in parse_method(spec))


def control_of(spec: str) -> str | None:
    """Return the control of a method or composition, None for a control itself.

    That is plain fine-tuning with the changes of protocol that its parts bring along.

    Raises:
        ValueError: As in :func:`parse_method`.
    """
    names = parse_method(spec)
    if is_control(spec):
        return None if spec == "vanilla" else "vanilla"
    controls = [METHODS[name].control for name in names] + [name for name in names if METHODS[name].is_control]
    parts = sorted({part for control in controls for part in control.split("+")} - {"vanilla"})
    return "+".join(parts) or "vanilla"


def build_method(spec: str, settings: Mapping[str, Any] | None = None) -> Composition:
    """Build the method of a run.

    Args:
        spec: As in :func:`parse_method`.
        settings: Name of a method to an instance of its ``Settings``; those left out have their defaults.

    Raises:
        ValueError: As in :func:`parse_method`.
    """
    settings = settings or {}
    return Composition([METHODS[name](settings.get(name)) for name in parse_method(spec)])
