"""Algorithms on tensors: noise stream, sensitivity, optimizers, fine-tuning methods.

The same folder is the package ``pats_finetuning`` when this project is installed; its files import each other
relatively, so both names work. What stands in ``__all__`` is for other people's training code; it is loaded at its
first use, so that a command line which imports a part of this folder does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bert_optim import Adamax, NonFiniteGradient, PATSAdamax, SAGEAdamax
    from .pats import PATS
    from .pats_rule import PATSRule
    from .sensitivity import noise_statistics, sensitivity_histogram, sensitivity_moments
    from .uniform_noise import noisytune

__version__ = "0.1.0"
__all__ = [
    "PATS",
    "Adamax",
    "NonFiniteGradient",
    "PATSAdamax",
    "PATSRule",
    "SAGEAdamax",
    "noise_statistics",
    "noisytune",
    "sensitivity_histogram",
    "sensitivity_moments",
]

_HOMES = {
    "bert_optim": ("Adamax", "NonFiniteGradient", "PATSAdamax", "SAGEAdamax"),
    "pats": ("PATS",),
    "pats_rule": ("PATSRule",),
    "sensitivity": ("noise_statistics", "sensitivity_histogram", "sensitivity_moments"),
    "uniform_noise": ("noisytune",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
