"""The registry of fine-tuning methods, and the names by which they compose.

Methods of other packages join it through the entry point group ``pats.methods``: ``name = "package.module:Class"``.
"""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from module.composition import Composition, check_exclusive
from module.method import FineTuningMethod
from module.methods.bitfit import BitFit
from module.methods.child_tuning import ChildTuning
from module.methods.component_clip import ComponentClip
from module.methods.controls import FrozenEmbeddings, HeadLearningRate, NoDropout, NoHiddenDropout
from module.methods.ema import EMA
from module.methods.freelb import FreeLB
from module.methods.hype import HyPe
from module.methods.l2sp import L2SP
from module.methods.llrd import LLRD
from module.methods.lora import LoRA
from module.methods.matched_noise import MatchedNoise
from module.methods.mixout import Mixout
from module.methods.neftune import NEFTune
from module.methods.noisytune import NoisyTune
from module.methods.pac_tuning import PACTuning
from module.methods.pats import PATS
from module.methods.pgd import PGD
from module.methods.r3f import R3F
from module.methods.rdrop import RDrop
from module.methods.recadam import RecAdam
from module.methods.reinit import Reinit
from module.methods.sage import SAGE
from module.methods.sam import SAM
from module.methods.smart import SMART
from module.methods.swa import SWA
from module.methods.vanilla import Vanilla

ENTRY_POINTS = "pats.methods"
_OWN: tuple[type[FineTuningMethod], ...] = (
    Vanilla,
    NoHiddenDropout,
    NoDropout,
    HeadLearningRate,
    FrozenEmbeddings,
    NoisyTune,
    SAGE,
    PATS,
    MatchedNoise,
    HyPe,
    ComponentClip,
    ChildTuning,
    NEFTune,
    Reinit,
    SMART,
    FreeLB,
    RDrop,
    R3F,
    SAM,
    PGD,
    Mixout,
    PACTuning,
    RecAdam,
    L2SP,
    LLRD,
    EMA,
    SWA,
    BitFit,
    LoRA,
)


def find_methods() -> dict[str, type[FineTuningMethod]]:
    """Return this project's methods and those that installed packages bring, by name.

    Raises:
        ValueError: If an entry point cannot be loaded, is no method, or takes a name that is in use.
    """
    methods = {method.name: method for method in _OWN}
    for point in entry_points(group=ENTRY_POINTS):
        where = f"Entry point {point.name!r} of group {ENTRY_POINTS} ({point.value})"
        try:
            found = point.load()
        except Exception as error:
            raise ValueError(f"{where} cannot be loaded: {error}") from error
        if not (isinstance(found, type) and issubclass(found, FineTuningMethod)) or found.name != point.name:
            raise ValueError(f"{where} is no subclass of FineTuningMethod with name = {point.name!r}")
        if point.name in methods:
            raise ValueError(f"{where} takes the name of another method: rename it")
        methods[point.name] = found
    return methods


METHODS = find_methods()


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


def control_of(spec: str) -> str | None:
    """Return the method that one (or a composition) is to be compared with, None for a control itself.

    That is plain fine-tuning with the changes of protocol that its parts bring along.

    Raises:
        ValueError: As in :func:`parse_method`.
    """
    names = parse_method(spec)
    if all(METHODS[name].is_control for name in names):
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
