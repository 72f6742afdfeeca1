"""The step on the CPU: the settings of groups worked out for each tensor, and the calls of the numba kernels."""

import math
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from ..noise import MASK_LEVELS, tensor_mask_bits
from .guard import float_address, one_entry
from .member import Member, NonFiniteGradient, tensor_table
from .rows import AS_STATED, ROW, GroupSettings, new_table, number_blocks, settings_table
from .sparse import RowSparse
from .state import INFINITY_NORM, MOMENTUM, check_steps

Adjust = Callable[[np.ndarray, Sequence[Member]], None]
"""Is given a copy of the rows of a step, ready, and the members that they are of."""


class HostStep:
    """The table of one optimizer on the CPU, kept between its steps; it has the interface of ``DeviceStep``.

    Args:
        adjust: Changes the rows that noise is drawn by; None: nothing does.
    """

    def __init__(self, adjust: Adjust | None = None) -> None:
        self._adjust = adjust
        self.members: Sequence[Member] = []
        self._rows = new_table([])
        self.embeddings: WeakKeyDictionary[Member, RowSparse] = WeakKeyDictionary()
        self.live = True

    def lay_out(self, members: Sequence[Member]) -> None:
        """Make the table of prepared members, none of them empty."""
        self._rows = tensor_table(members, ROW)
        self.members, self._names = members, [member.name for member in members]
        self._row_sparse = [i for i, member in enumerate(members) if member.touched is not None]
        self._tracked = self._rows["mean_at"] != 0
        self._stated = b""

    def point(self, gradients: np.ndarray) -> None:
        """Say where the members' gradients, else as they were, lie now, int64 (members,)."""
        rows = self._rows
        rows["gradient"] = rows["update_gradient"] = gradients
        if self._row_sparse:
            rows["size"][self._row_sparse] = [self.members[i].gradient.numel() for i in self._row_sparse]
            number_blocks(rows)

    def set(self, groups: Sequence[GroupSettings], grad_scale: Tensor | None) -> None:
        """Take the settings of the parameter groups; gradients are divided by ``grad_scale``, a tensor of one entry."""
        scale = 1.0 if grad_scale is None else float(one_entry("grad_scale", grad_scale))
        self._rows["inverse_scale"] = 1.0 / scale
        table = settings_table(groups)
        stated = table.tobytes()
        if stated != self._stated:
            self._stated = b""  # whatever happens on the way
            self._expand(table)
            self._stated = stated
        rates = np.array([float(group.lr) for group in groups])
        self._lr = rates[self._rows["group"]]

    def _expand(self, table: np.ndarray) -> None:
        """Set the columns that follow from the settings alone."""
        rows, settings = self._rows, table[self._rows["group"]]
        for column in (*AS_STATED, "rule", "key_low", "key_high"):
            rows[column] = settings[column]
        rows["scale"] = settings["scale"] * self._tracked
        rows["mask_threshold"] = np.where(settings["tensor_mask"], MASK_LEVELS, settings["mask_threshold"])
        self._settings = settings

    def measure(self, found_inf: Tensor | None, max_norm: float | None = None) -> float:
        """Sum |theta g|, refuse gradients that are not finite, and advance counts and means.

        A step that a gradient scaler has found unfit (``found_inf`` is not 0) is left out.

        Args:
            found_inf: Of the gradient scaler; None: there is none.
            max_norm: Largest joint 2-norm of the gradients, to which the step clips them; None: it does not.

        Returns:
            The norm before clipping; 0 where nothing is clipped.
        """
        self.live = found_inf is None or not found_inf.item()
        if not self.live:
            return 0.0
        rows, tracked = self._rows, self._tracked
        steps, means = self._load_scalars()
        check_steps(self._names, steps)
        rows["track"] = tracked
        norm, sums = (0.0, self._sum(rows)) if max_norm is None else self._clip(max_norm)
        finite = np.isfinite(sums)
        if not finite.all():
            raise NonFiniteGradient(self.members[int(np.argmin(finite))].name)
        # The average is linear, so its mean needs no pass.
        now = sums / np.maximum(rows["size"], 1)
        means = self._settings["beta"] * means + self._settings["one_minus_beta"] * now
        self._store_scalars(steps + 1.0, means)
        return norm

    def _clip(self, max_norm: float) -> tuple[float, np.ndarray]:
        """Divide the gradients by what clipping asks for; returns their norm before and the sums of |theta g| after."""
        rows, squares = self._rows, np.empty(len(self._rows))
        sums = self._sum(rows, squares)
        norm, factor = clipping_factor(squares, max_norm)
        rows["inverse_scale"] *= factor
        # Sums of clipped gradients, to the bit. They also tell which gradients are not finite.
        again = factor != 1.0 and (self._tracked.any() or not np.isfinite(norm))
        return float(norm), self._sum(rows) if again else sums

    def update(self, before: bool, after: bool) -> None:
        """Do the step itself; ``before``: update sensitivities, ``after``: subtract the noise."""
        if not self.live:
            return
        self._work_out(before, after)
        rows = self._rows
        if after and self._adjust is not None:
            rows = rows.copy()
            self._adjust(rows, self.members)
        self._apply(self._divided(rows) if self._row_sparse else rows)

    def _divided(self, rows: np.ndarray) -> np.ndarray:
        """Replace the row of each tensor with a row-sparse gradient by rows of its parts."""
        table, done = [], 0
        for i in self._row_sparse:
            member, row = self.members[i], rows[i]
            tensors = member.parameter, member.state[MOMENTUM], member.state[INFINITY_NORM]
            embedding = self.embeddings.get(member)
            if embedding is None or not embedding.holds(*tensors, row):
                embedding = self.embeddings[member] = RowSparse(*tensors, row)
            assert member.touched is not None
            table += [rows[done:i], embedding.parts(row, member.touched)]
            done = i + 1
        # With the dtype named, numpy does not compare the fields of every two of them.
        divided = np.concatenate([*table, rows[done:]], dtype=rows.dtype)
        number_blocks(divided)
        return divided

    def _work_out(self, before: bool, after: bool) -> None:
        """Set the columns that follow from the step's counts, means and learning rates."""
        rows, tracked, settings, lr = self._rows, self._tracked, self._settings, self._lr
        steps, means = self._load_scalars()
        if settings["model_mean"].any():
            whole = model_mean(means[tracked], rows["size"][tracked])
            means = np.where(settings["model_mean"], whole, means)
        corrected = settings["bias_correction"] != 0.0
        step_size = lr.copy()
        if corrected.any():
            step_size[corrected] /= 1.0 - settings["beta1"][corrected] ** steps[corrected]
        rows["step"], rows["step_size"], rows["mean"] = steps, step_size, means
        rows["amplitude"] = settings["noise_scale"] * np.where(settings["noise_times_lr"], lr, 1.0)
        rows["upper"] = settings["threshold"] * np.where(settings["threshold_times_mean"], means, 1.0)
        noise = tracked & (settings["noise"] != 0.0) & after
        for i in np.flatnonzero(noise & (settings["tensor_mask"] != 0.0)):
            row, seed = rows[i], int(rows["key_high"][i]) << 32 | int(rows["key_low"][i])
            identity = int(row["identity"]) & ((1 << 64) - 1)
            noise[i] = tensor_mask_bits(seed, int(row["step"]), identity) < settings["mask_threshold"][i]
        rows["track"], rows["noise"] = tracked & before, noise

    # What the kernels do.

    def _load_scalars(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts of updates and mean sensitivities of the members, float64."""
        found: tuple[np.ndarray, np.ndarray] = _kernels().load_scalars(self._rows)
        return found

    def _store_scalars(self, steps: np.ndarray, means: np.ndarray) -> None:
        _kernels().store_scalars(self._rows, steps, means)

    def _sum(self, rows: np.ndarray, squares: np.ndarray | None = None) -> np.ndarray:
        return sum_rows(rows, squares)

    def _apply(self, rows: np.ndarray) -> None:
        update_rows(rows)


def sum_rows(rows: np.ndarray, squares: np.ndarray | None = None) -> np.ndarray:
    """Per row the sum of ``|theta g|``; not finite where a gradient is not. ``squares`` is filled with those of g^2."""
    sums: np.ndarray = _kernels().sum_rows(rows, squares)
    return sums


def update_rows(rows: np.ndarray) -> None:
    """Track, scale, update and perturb, as the rows say."""
    _kernels().update_rows(rows)


def _kernels() -> Any:
    """Numba's; their import takes a while: not before the first step."""
    from . import cpu

    return cpu


def clipping_factor(squares: np.ndarray, max_norm: float) -> tuple[np.float32, np.float32]:
    """Norm of all gradients, and the factor that clips them to ``max_norm``.

    Args:
        squares: Of each tensor the sum of its gradient's squares; their order does not matter.
        max_norm: Above 0.

    Returns:
        The norm; infinite where it passes float32, and then a factor of 0, as with torch. A factor of 0 also where a
        gradient is no number.
    """
    with np.errstate(over="ignore"):
        norm = np.sqrt(np.float32(math.fsum(squares)))
    if not np.isfinite(norm):
        return norm, np.float32(0.0)
    return norm, np.float32(1.0) / max((norm + np.float32(1e-6)) / np.float32(max_norm), np.float32(1.0))


def sum_squares(gradients: Sequence[Tensor]) -> np.ndarray:
    """Sum of squares of each of some contiguous float32 tensors on the CPU, none of them empty, as a step finds it."""
    rows = new_table([gradient.numel() for gradient in gradients])
    rows["gradient"] = [float_address("a parameter", "gradient", gradient, gradient.shape) for gradient in gradients]
    squares = np.empty(len(rows))
    sum_rows(rows, squares)
    return squares


def model_mean(means: np.ndarray, sizes: np.ndarray) -> float:
    """Mean over all entries of several tensors; exact summation, so the tensors' order does not matter."""
    total = int(sizes.sum())
    return math.fsum(float(mean) * int(size) for mean, size in zip(means, sizes, strict=True)) / total if total else 0.0
