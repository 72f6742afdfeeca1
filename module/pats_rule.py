"""The rule of PATS as settings: the paper's hyper-parameters, and a switch for each choice its text leaves open."""

import math
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from .checks import Share, ShareBelow1, check, check_ranges, one_of, within
from .noise import WORD, mask_threshold

FromZero = Annotated[float, within(0.0, math.inf)]
AboveZero = Annotated[float, within(1e-37, math.inf)]

# What `reading` presets: noise_scale, sensitivity_threshold, noise_times_lr, threshold_mode.
_PRESETS = {"gated": (5e-3, 1e-6, True, "absolute"), "constant": (1e-6, 5e-3, False, "ratio")}
_PRESET_FIELDS = ("noise_scale", "sensitivity_threshold", "noise_times_lr", "threshold_mode")


@dataclass(frozen=True, slots=True)
class PATSRule:
    """Hyper-parameters of PATS (Equations 1-5) and its switches.

    Four fields depend on ``reading`` and are filled in when left out, so the object always holds plain values. Change
    one with ``dataclasses.replace``; to change ``reading`` make a new rule.

    Raises:
        ValueError: If a value is out of range, or contradicts ``reading``.
    """

    reading: Literal["gated", "constant"] = "gated"
    """Which reading of the paper's Table 3 presets the next four. gated: lambda inside the learning rate and gamma a
    threshold on the sensitivity. constant: lambda outside it and gamma a threshold on the ratio mean/sensitivity."""
    noise_scale: FromZero | None = None
    """lambda, at least 0. Default 5e-3 (gated; the paper's range 1e-3 to 2e-2) or 1e-6 (constant; 5e-7 to 3e-6)."""
    sensitivity_threshold: FromZero | None = None
    """gamma, at least 0. Default 1e-6 (gated; the paper's range 5e-7 to 3e-6) or 5e-3 (constant; 1e-3 to 2e-2)."""
    noise_times_lr: bool | None = None
    """Whether the noise is multiplied by the learning rate, and so follows its schedule. Default: as reading says."""
    threshold_mode: Literal["absolute", "relative", "ratio", "none"] | None = None
    """What is not perturbed: sensitivity >= gamma (absolute); >= gamma times the mean (relative, not the paper's);
    mean/sensitivity < gamma (ratio); nothing is spared (none). Default: as reading says."""
    sensitivity_beta: ShareBelow1 = 0.75
    """beta of the sensitivity's moving average, in [0, 1). The paper searches 0.5 to 0.85."""
    noise_probability: Share = 0.5
    """p, the share of entries perturbed, in [0, 1], to the nearest 1/4096."""
    sensitivity_eps: AboveZero = 1e-12
    """epsilon added to the sensitivity in the ratio, above 0."""
    mean_scope: Literal["tensor", "model"] = "tensor"
    """Mean sensitivity of each tensor, or of all perturbed entries of the model (the paper: unstable)."""
    mask_scope: Literal["element", "tensor"] = "element"
    """One Bernoulli draw per entry, or per tensor and step."""
    perturb_biases: bool = True
    """Whether biases of the encoder layers are perturbed too."""
    max_ratio: AboveZero | None = None
    """Cap on the ratio mean/sensitivity, above 0; none: no cap. The threshold looks at the ratio before the cap."""

    @classmethod
    def of(cls, who: str, switches: dict[str, Any]) -> "PATSRule":
        """Return the rule of switches that a user has typed.

        Raises:
            TypeError: If there is no such switch; the nearest is named.
        """
        known = [field.name for field in fields(cls)]
        for name in switches:
            if name not in known:
                nearest = get_close_matches(name, known, 1, cutoff=0.5)
                meant = f"did you mean {nearest[0]}? There are" if nearest else "there are"
                raise TypeError(f"{who} has no switch {name!r}: {meant} {', '.join(known)}")
        return cls(**switches)

    def __post_init__(self) -> None:
        """Fill in the preset and check every value."""
        check("reading", self.reading, one_of(*_PRESETS))
        self._check_against_other_preset()
        for field, value in zip(_PRESET_FIELDS, _PRESETS[self.reading], strict=True):
            if getattr(self, field) is None:
                object.__setattr__(self, field, value)
        check_ranges(self)
        mask_threshold(self.noise_probability)

    @property
    def scale(self) -> float:
        """The noise scale (lambda) as a plain number."""
        assert self.noise_scale is not None
        return self.noise_scale

    @property
    def threshold(self) -> float:
        """The sensitivity threshold (gamma) as a plain number."""
        assert self.sensitivity_threshold is not None
        return self.sensitivity_threshold

    @property
    def is_silent(self) -> bool:
        """Whether no entry can ever be perturbed, so that nothing need be drawn."""
        return self.scale == 0.0 or mask_threshold(self.noise_probability) == 0

    @property
    def cap(self) -> float:
        """The cap on the ratio as a plain number."""
        return math.inf if self.max_ratio is None else self.max_ratio

    def settings(self, seed: int) -> dict[str, Any]:
        """State the rule and the seed of the noise, as :class:`module.kernels.rows.GroupSettings` names them."""
        upper, lower = self.limits(1.0)
        return {
            "beta": self.sensitivity_beta,
            "one_minus_beta": 1.0 - self.sensitivity_beta,
            "sensitivity_eps": self.sensitivity_eps,
            "lower": lower,
            "max_ratio": self.cap,
            "noise": not self.is_silent,
            "noise_scale": self.scale,
            "noise_times_lr": bool(self.noise_times_lr),
            "threshold": upper,
            "threshold_times_mean": self.threshold_mode == "relative",
            "model_mean": self.mean_scope == "model",
            "tensor_mask": self.mask_scope == "tensor",
            "mask_threshold": mask_threshold(self.noise_probability),
            "key_low": seed & WORD,
            "key_high": seed >> 32,
        }

    def amplitude(self, lr: float) -> float:
        """Return what multiplies the capped ratio and the standard normal: lambda, times ``lr`` if inside it."""
        return self.scale * lr if self.noise_times_lr else self.scale

    def limits(self, mean: float) -> tuple[float, float]:
        """Return (upper, lower): an entry is perturbed if sensitivity < upper and ratio >= lower.

        Args:
            mean: Mean sensitivity the entry is compared with.
        """
        match self.threshold_mode:
            case "absolute":
                return self.threshold, -math.inf
            case "relative":
                return self.threshold * mean, -math.inf
            case "ratio":
                return math.inf, self.threshold
            case _:
                return math.inf, -math.inf

    def opened(self, mean: float, sensitivity: Any) -> tuple[Any, Any]:
        """Return the ratios of Equation 4 before the cap, and which entries the threshold leaves to the noise.

        Args:
            mean: Mean sensitivity that entries are compared with.
            sensitivity: An array or a tensor, any shape.
        """
        ratio = mean / (sensitivity + self.sensitivity_eps)
        upper, lower = self.limits(mean)
        return ratio, (sensitivity < upper) & (ratio >= lower)

    def _check_against_other_preset(self) -> None:
        for other, values in _PRESETS.items():
            if other != self.reading and tuple(getattr(self, field) for field in _PRESET_FIELDS) == values:
                raise ValueError(
                    f"Invalid reading: {self.reading!r} with every value of {other!r} ({', '.join(_PRESET_FIELDS)}): "
                    f"leave them out to get the values of {self.reading!r}, or set reading to {other!r}"
                )
