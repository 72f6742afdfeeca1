"""The little of SVG that the report's pictures need. All text and attributes are escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Point = tuple[float, float]
_MARGIN = 0.06  # of a scale's range, left free at each end


def element(tag: str, *children: str, **attributes: str | float | None) -> Markup:
    """One element.

    Args:
        tag: Its name.
        children: What stands in it: elements, and text.
        attributes: ``class_`` is class, ``data_method`` is data-method; None leaves one out. Lengths are rounded to
            a hundredth.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_value(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{written}>{''.join(map(escape, children))}</{tag}>")


def polyline(points: Iterable[Point], **attributes: str | float | None) -> Markup:
    """A line through points, broken where one is not finite; a point alone between two breaks is a short dash."""
    parts: list[str] = []
    pen_up = True
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen_up = True
            continue
        # The h0.01 gives a point without neighbours the round end of a line, so that it shows.
        parts.append(f"M{_value(x)} {_value(y)}h.01" if pen_up else f"L{_value(x)} {_value(y)}")
        pen_up = False
    return element("path", d="".join(parts), **attributes) if parts else Markup("")


@dataclass(frozen=True, slots=True)
class Scale:
    """Values to lengths, linear."""

    low: float
    high: float
    start: float
    """Length of ``low``, pixels; may be larger than ``end`` (an axis that points up)."""
    end: float

    def __call__(self, value: float) -> float:
        """Length of a value, pixels."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round values on the scale, in steps of 1, 2 or 5 times a power of ten, not more than ``most``."""
        raw = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(s * power for s in (1, 2, 5, 10, 20) if self._count(s * power) <= most)
        first = math.ceil(self.low / step - 1e-9)
        return [round(i * step, 12) for i in range(first, first + self._count(step))]

    def _count(self, step: float) -> int:
        return math.floor(self.high / step + 1e-9) - math.ceil(self.low / step - 1e-9) + 1


def scale_of(values: Sequence[float], start: float, end: float) -> Scale:
    """A scale that shows all finite values with a margin; at least one point wide.

    Args:
        values: What is to be shown; without a finite one it is 0 to 1.
        start: Length of the low end, pixels.
        end: Length of the high end.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    extra = max((high - low) * _MARGIN, 0.5 if high - low < 1e-9 else 0.0)
    return Scale(low - extra, high + extra, start, end)


def _value(value: str | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
