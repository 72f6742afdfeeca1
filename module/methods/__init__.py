"""The registry of fine-tuning methods, and the names by which they compose.

Methods of other packages join it through the entry point group ``pats.methods``: ``name = "package.module:Class"``.
"""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from ..composition import Composition, check_exclusive
from ..method import FineTuningMethod
from .bitfit import BitFit
from .child_tuning import ChildTuning
from .component_clip import ComponentClip
from .controls import FrozenEmbeddings, HeadLearningRate, NoDropout, NoHiddenDropout
from .ema import EMA
from .freelb import FreeLB
from .hype import HyPe
from .l2sp import L2SP
from .llrd import LLRD
from .lora import LoRA
from .matched_noise import MatchedNoise
from .mixout import Mixout
from .neftune import NEFTune
from .noisytune import NoisyTune
from .pac_tuning import PACTuning
from .pats import PATS
from .pgd import PGD
from .r3f import R3F
from .rdrop import RDrop
from .recadam import RecAdam
from .reinit import Reinit
from .sage import SAGE
from .sam import SAM
from .smart import SMART
from .swa import SWA
from .vanilla import Vanilla

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
