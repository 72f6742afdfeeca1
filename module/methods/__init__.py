"""The registry of fine-tuning methods, and the names by which they compose.

Methods of other packages join it through the entry point group ``pats.methods``: ``name = "package.module:Class"``.
"""

import difflib
from collections.abc import Mapping
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
from .registry import Registry
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
METHODS = Registry(_OWN, ENTRY_POINTS)


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
    """Return the method that one (or a composition) is to be compared with, None for a control itself.

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
