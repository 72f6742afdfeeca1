"""The registry of fine-tuning methods, and the names by which they compose."""

from collections.abc import Mapping
from typing import Any

from module.method import Composition, FineTuningMethod, check_exclusive
from module.methods.noisytune import NoisyTune
from module.methods.pats import PATS
from module.methods.sage import SAGE
from module.methods.vanilla import Vanilla

METHODS: dict[str, type[FineTuningMethod]] = {
    "vanilla": Vanilla,
    "noisytune": NoisyTune,
    "sage": SAGE,
    "pats": PATS,
}


def parse_method(spec: str) -> tuple[str, ...]:
    """Split and check a method's name, such as ``pats`` or ``noisytune+pats``.

    Args:
        spec: Names of the registry, joined with ``+``, in the order their hooks are called.

    Raises:
        ValueError: If a name is unknown or stands twice, or two of them own one exclusive resource.
    """
    names = tuple(spec.split("+"))
    for name in names:
        if name not in METHODS:
            raise ValueError(f"Invalid method: {name!r} in {spec!r}: known are {', '.join(METHODS)}, joined with +")
    if len(set(names)) < len(names):
        raise ValueError(f"Invalid method: {spec!r} names a method twice: name each once")
    if len(names) > 1 and "vanilla" in names:
        raise ValueError(f"Invalid method: {spec!r}: vanilla is what remains without a method: leave it out")
    check_exclusive([METHODS[name] for name in names])
    return names


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
