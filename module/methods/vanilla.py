"""Plain fine-tuning: every hook's default."""

from ..method import FineTuningMethod


class Vanilla(FineTuningMethod):
    """Plain fine-tuning, the baseline of every comparison."""

    name = "vanilla"
    is_control = True
