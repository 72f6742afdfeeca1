"""The step in plain torch operations, for devices without kernels: slower, and the same to the last bits.

The same stream, polynomials and order of float32 operations as :mod:`module.kernels.cpu`. Integers stay below 2**49 in
int64, and nothing on the device is float64: MPS has none, and no unsigned products.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..noise import BLOCK, LANES, PHILOX_KEY_STEPS, PHILOX_MULTIPLIERS, PHILOX_ROUNDS, WORD
from .backend import PACKAGES
from .host_step import Adjust, HostStep
from .member import Member
from .polynomial import COSINE, LN2, LOG, SINE, SQRT_HALF_BITS
from .rows import RULE_MTDNN, RULE_NONE
from .state import INFINITY_NORM, MOMENTUM, SENSITIVITY, SENSITIVITY_MEAN, STEP, State

_CHUNK = 1 << 12  # blocks whose noise is made at a time, 4 million entries


class PlainStep(HostStep):
    """The step of one optimizer on one device that has no kernels; everything is laid out anew at each step.

    Raises:
        NotImplementedError: If rows are to be adjusted, by addresses.
    """

    def __init__(self, adjust: Adjust | None = None) -> None:
        if adjust is not None:
            raise NotImplementedError("Noise on other entries needs the compiled step of the CPU: pip install numba")
        super().__init__()
        self._tensors: list[tuple[Tensor, Tensor, Tensor, State]] = []

    def lay_out(self, members: Sequence[Member]) -> None:
        """Make the table of prepared members, none of them empty, and keep their tensors for this step."""
        super().lay_out(members)
        self._tensors = [(m.theta.detach(), m.gradient, m.update_gradient, m.state) for m in members]

    def update(self, before: bool, after: bool) -> None:
        """Do the step itself, and let go of the tensors."""
        super().update(before, after)
        self._tensors = []

    def _load_scalars(self) -> tuple[np.ndarray, np.ndarray]:
        states = [state for *_, state in self._tensors]
        steps = torch.stack([state[STEP] for state in states]).cpu().double().numpy()
        means = np.zeros(len(states))
        tracked = [state[SENSITIVITY_MEAN] for state, is_so in zip(states, self._tracked, strict=True) if is_so]
        if tracked:
            means[self._tracked] = torch.stack(tracked).cpu().numpy()
        return steps, means

    def _store_scalars(self, steps: np.ndarray, means: np.ndarray) -> None:
        for (*_, state), step, mean, tracked in zip(self._tensors, steps, means, self._tracked, strict=True):
            state[STEP].fill_(float(step))
            if tracked:
                state[SENSITIVITY_MEAN].fill_(float(mean))

    def _sum(self, rows: np.ndarray, squares: np.ndarray | None = None) -> np.ndarray:
        sums, of_squares = [], []
        for row, (theta, gradient, *_) in zip(rows, self._tensors, strict=True):
            scaled = gradient * float(row["inverse_scale"])
            sums.append(_by_block((theta * scaled).abs() if row["track"] else gradient * 0.0))
            if squares is not None:
                of_squares.append(_by_block(scaled * scaled))
        if squares is not None:
            squares[:] = _by_row(of_squares, rows)
        return _by_row(sums, rows)

    def _apply(self, rows: np.ndarray) -> None:
        for row, (theta, gradient, update_gradient, state) in zip(rows, self._tensors, strict=True):
            factor = _track(row, theta, gradient, state[SENSITIVITY]) if row["track"] else None
            if row["rule"] != RULE_NONE:
                direction = _direction(row, theta, update_gradient, state[MOMENTUM], state[INFINITY_NORM])
                if row["scale"] and factor is not None:
                    direction = direction * factor
                theta.copy_(theta - float(row["step_size"]) * direction)
            if row["noise"]:
                flat, sensitivity = theta.view(-1), state[SENSITIVITY].view(-1)
                for start, z, mask in _draws(row, theta.numel(), theta.device):
                    part = slice(start, start + len(z))
                    _subtract_noise(row, flat[part], sensitivity[part], z, mask)


def _by_block(entries: Tensor) -> Tensor:
    """Sums of the blocks of a tensor."""
    padded = entries.new_zeros(-(-entries.numel() // BLOCK) * BLOCK)
    padded[: entries.numel()] = entries.flatten()
    blocks = padded.view(-1, BLOCK)
    while (width := blocks.shape[1] // 2) >= 1:  # halving, in the kernels' order
        blocks = blocks[:, :width] + blocks[:, width:]
    return blocks[:, 0]


def _by_row(blocks: list[Tensor], rows: np.ndarray) -> np.ndarray:
    sums: np.ndarray = np.add.reduceat(torch.cat(blocks).cpu().double().numpy(), rows["first_block"])
    return sums


def _track(row: np.void, theta: Tensor, gradient: Tensor, sensitivity: Tensor) -> Tensor:
    """Advance the sensitivities and return SAGE's factor."""
    now = (theta * (gradient * float(row["inverse_scale"]))).abs()
    average = float(row["beta"]) * sensitivity + float(row["one_minus_beta"]) * now
    sensitivity.copy_(average)
    return (now - average).abs() / (average + float(row["sensitivity_eps"]))


def _direction(row: np.void, theta: Tensor, gradient: Tensor, momentum: Tensor, norm: Tensor) -> Tensor:
    """Advance the moments and return the direction of the update."""
    eps, decay = float(row["eps"]), float(row["weight_decay"])
    g = gradient * float(row["inverse_scale"])
    if row["rule"] != RULE_MTDNN:
        g = g + decay * theta
    m = float(row["beta1"]) * momentum + float(row["one_minus_beta1"]) * g
    u = torch.maximum(float(row["beta2"]) * norm, g.abs() + eps)
    momentum.copy_(m)
    norm.copy_(u)
    return m / (u + eps) + decay * theta if row["rule"] == RULE_MTDNN else m / u


def _subtract_noise(row: np.void, theta: Tensor, sensitivity: Tensor, z: Tensor, mask: Tensor) -> None:
    mean, cap = (torch.full_like(theta[:1], float(row[column])) for column in ("mean", "max_ratio"))
    ratio = mean / (sensitivity + float(row["sensitivity_eps"]))  # of two tensors: a number's would be rounded twice
    capped = torch.where(ratio > cap, cap, ratio)
    perturbed = (mask < int(row["mask_threshold"])) & (sensitivity < float(row["upper"]))
    perturbed &= ratio >= float(row["lower"])
    theta.copy_(torch.where(perturbed, theta - (float(row["amplitude"]) * capped) * z, theta))


def _draws(row: np.void, size: int, device: torch.device) -> Iterator[tuple[int, Tensor, Tensor]]:
    """First entry, normals and mask bits of parts of a tensor, in order."""
    identity = int(row["identity"])
    counter = int(row["step"]), identity & WORD, (identity >> 32) & WORD
    key = int(row["key_low"]), int(row["key_high"])
    blocks = -(-size // BLOCK)
    for first in range(0, blocks, _CHUNK):
        last = min(first + _CHUNK, blocks)
        lanes = torch.arange(first * LANES, last * LANES, dtype=torch.int64, device=device)  # block << 8 | lane
        w0, w1, w2, w3 = philox(lanes, counter, key)
        quarters = [
            part for pair in ((w0, w1), (w2, w3)) for part in zip(normals(*pair), mask_bits(*pair), strict=True)
        ]
        z, mask = (torch.stack([q.view(-1, LANES) for q in some], 1).flatten() for some in zip(*quarters, strict=True))
        start, stop = first * BLOCK, min(last * BLOCK, size)
        yield start, z[: stop - start], mask[: stop - start]


def philox(c0: Tensor, counter: tuple[int, int, int], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 of int64 counters ``(c0, *counter)``: four words in [0, 2**32)."""
    x0, x1, x2, x3 = c0, *(torch.full_like(c0, word) for word in counter)
    k0, k1 = key
    for _ in range(PHILOX_ROUNDS):
        high0, low0 = _product(PHILOX_MULTIPLIERS[0], x0)
        high1, low1 = _product(PHILOX_MULTIPLIERS[1], x2)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = (k0 + PHILOX_KEY_STEPS[0]) & WORD, (k1 + PHILOX_KEY_STEPS[1]) & WORD
    return x0, x1, x2, x3


def _product(multiplier: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower word of the product of two words, by halves: nothing overflows."""
    upper, lower = multiplier * (x >> 16), multiplier * (x & 0xFFFF)
    return (upper + (lower >> 16)) >> 16, (((upper & 0xFFFF) << 16) + lower) & WORD


def normals(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Word pairs to the normals of the even and of the odd quarter, float32."""
    u = ((a >> 8).to(torch.float32) + 0.5) * 2.0**-24
    bits = u.view(torch.int32)
    exponent = (bits - SQRT_HALF_BITS) >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1.0
    f2 = f * f
    q0, q1, q2, q3, q4, q5, q6, q7 = LOG
    low, high = (q0 + f * q1) + f2 * (q2 + f * q3), (q4 + f * q5) + f2 * (q6 + f * q7)
    log1p = f + (f2 * f * (low + f2 * f2 * high) - 0.5 * f2)
    minus_log = -(exponent.to(torch.float32) * LN2 + log1p)
    radius = _root(minus_log + minus_log)

    n = b >> 16
    quadrant = (n + 8192) >> 14
    t = ((n - (quadrant << 14)).to(torch.float32) + 0.5) * 2.0**-16
    t2 = t * t
    s0, s1, s2, s3 = SINE
    c0, c1, c2, c3, c4 = COSINE
    sine = t * ((s0 + t2 * s1) + (t2 * t2) * (s2 + t2 * s3))
    cosine = (c0 + t2 * c1) + (t2 * t2) * ((c2 + t2 * c3) + (t2 * t2) * c4)
    swap = (quadrant & 1) != 0
    x, y = torch.where(swap, sine, cosine), torch.where(swap, cosine, sine)
    # Quadrants 1 and 2 have a negative cosine, 2 and 3 a negative sine.
    return (
        radius * torch.where(((quadrant + 1) & 2) != 0, -x, x),
        radius * torch.where((quadrant & 2) != 0, -y, y),
    )


def _root(x: Tensor) -> Tensor:
    """The square root, rounded to nearest where float64 is sure to be there; torch's own may be off by the last bit."""
    return x.double().sqrt().float() if x.device.type in PACKAGES else x.sqrt()


def mask_bits(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Word pairs to the mask bits of the even and of the odd quarter."""
    return b & 4095, ((a & 255) << 4) | ((b >> 12) & 15)
