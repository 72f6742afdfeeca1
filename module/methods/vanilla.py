"""Plain fine-tuning: every hook's default."""

from __future__ import annotations

from ..method import FineTuningMethod, NoSettings


class Vanilla(FineTuningMethod[NoSettings]):
    """Plain fine-tuning, the baseline of every comparison."""

    name = "vanilla"
    is_control = True
