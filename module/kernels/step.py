"""From torch parameters to the table of a step: checks, float32 working copies, the refusal of non-finite gradients."""

import math
import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..noise import BLOCK, MASK_LEVELS, MAX_ENTRIES, WORD, mask_threshold, tensor_mask_bits
from ..pats_rule import PATSRule
from .cpu import sum_rows
from .guard import PARAMETER, at_hand, check, check_plain, check_writable
from .rows import new_table, number_blocks

_DEVICES = ("cpu", "cuda")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ZEROS = np.zeros(BLOCK, np.float32)  # the gradient of untouched rows


class NonFiniteGradient(RuntimeError):
    """A gradient (or the parameter it belongs to) holds NaN or infinity; the step was refused, nothing was changed."""

    def __init__(self, parameter: str, refused: int = 1) -> None:
        more = "" if refused == 1 else f" ({refused} refused steps, this name is the first one's)"
        super().__init__(
            f"The gradient of {parameter!r} is not finite: the step is refused, all state is as before{more}"
        )
        self.parameter = parameter


class Operand:
    """A parameter and its gradient as contiguous float32 tensors; copies where they are not that already.

    Attributes:
        touched: (R,) sorted rows that ``gradient`` (R, ...) holds, where it is row-sparse; None where it is dense.
        update_gradient: What the update takes. It is not ``gradient``, of which sensitivities are, where a method has
            masked the parameter's ``grad`` and left the whole one as its attribute ``unmasked_grad``.
    """

    __slots__ = ("addresses", "gradient", "name", "parameter", "theta", "touched", "update_gradient")

    def __init__(self, name: str, parameter: Tensor) -> None:
        check_parameter(name, parameter)
        gradient, unmasked = parameter.grad, getattr(parameter, "unmasked_grad", None)
        assert gradient is not None
        self.touched: Tensor | None = None
        if type(gradient) is Tensor and gradient.layout != torch.strided:
            if unmasked is not None:
                raise RuntimeError(f"The gradient of {name!r} is sparse and masked: masks need dense gradients")
            self.touched, gradient = _rows_of(name, parameter, gradient)
        else:
            check_gradient(name, "gradient", parameter, gradient)
        self.name = name
        self.parameter = parameter
        self.theta, theta_at = at_hand(name, PARAMETER, parameter, torch.float32)
        self.gradient, gradient_at = self.update_gradient, update_at = at_hand(
            name, "gradient", gradient, torch.float32
        )
        if unmasked is not None:
            check_gradient(name, "unmasked_grad", parameter, unmasked)
            self.gradient, gradient_at = at_hand(name, "unmasked_grad", unmasked, torch.float32)
        self.addresses = theta_at, gradient_at, update_at

    def write_back(self) -> None:
        """Copy the updated values into the parameter if they were worked out in a copy."""
        if self.theta is not self.parameter:
            self.parameter.detach().copy_(self.theta)


def _rows_of(name: str, parameter: Tensor, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
    """The touched rows of a sparse gradient, (R,) rising, and their values (R, ...); dense where none is touched."""
    if gradient.layout != torch.sparse_coo or gradient.sparse_dim() != 1:
        raise RuntimeError(f"The gradient of {name!r} is sparse in a way that is not supported: sparse rows are needed")
    if gradient.shape != parameter.shape or gradient.device != parameter.device:
        raise ValueError(
            f"gradient of {name!r} has shape {tuple(gradient.shape)} on {gradient.device}, the parameter "
            f"{tuple(parameter.shape)} on {parameter.device}: call zero_grad() and backward() again"
        )
    if gradient._nnz() == 0:
        return None, torch.zeros_like(parameter, memory_format=torch.contiguous_format)
    gradient = gradient.coalesce()
    touched, values = gradient.indices()[0], gradient.values()
    check_plain(name, "gradient", touched)
    check(name, "gradient", values, torch.Size((len(touched), *parameter.shape[1:])), parameter.device)
    # A tensor made without torch's checks may hold anything there.
    if touched[0] < 0 or touched[-1] >= len(parameter) or not (touched.diff() > 0).all():
        raise ValueError(
            f"gradient of {name!r} has rows that are not rising in [0, {len(parameter)}): make it with "
            "check_invariants=True to see where"
        )
    return touched, values


def check_parameter(name: str, parameter: Tensor) -> None:
    """Refuse what the kernels do not handle.

    Raises:
        TypeError: If it is no plain tensor (a DTensor, say), or the dtype is not float32, bfloat16 or float16.
        NotImplementedError: If the parameter is neither on the CPU nor on CUDA.
        ValueError: If it has too many entries for the noise stream, or several in one place of memory.
    """
    if parameter.device.type not in _DEVICES:
        raise NotImplementedError(
            f"{name!r} is on {parameter.device}: there are kernels for {' and '.join(_DEVICES)}: move the model there"
        )
    if is_lazy(parameter):  # it has no shape yet
        check_plain(name, PARAMETER, parameter)
    check(name, PARAMETER, parameter, parameter.shape, parameter.device)
    if parameter.dtype not in DTYPES:
        raise TypeError(f"{name!r} is {parameter.dtype}: float32, bfloat16 or float16 is needed: model.float()")
    if parameter.numel() > MAX_ENTRIES:
        raise ValueError(f"{name!r} has {parameter.numel()} entries: at most {MAX_ENTRIES} are supported")
    check_writable(name, parameter)


def check_gradient(name: str, part: str, parameter: Tensor, gradient: Tensor) -> None:
    """Refuse a dense gradient that does not fit its parameter.

    Raises:
        TypeError: If it is no plain tensor of floating-point numbers.
        ValueError: If its shape, device or storage is another than the parameter's.
    """
    check(name, part, gradient, parameter.shape, parameter.device)
    if not gradient.dtype.is_floating_point:
        raise TypeError(f"{part} of {name!r} is {gradient.dtype}: floating-point numbers are needed")


def warn_about_low_precision(named: Iterable[tuple[str, Tensor]]) -> None:
    """Warn once, by name, if updates and noise will be rounded to a 16-bit dtype."""
    for name, parameter in named:
        if parameter.dtype in (torch.bfloat16, torch.float16):
            warnings.warn(
                f"{name!r} is {parameter.dtype}: updates and noise below its resolution are rounded away; keep "
                "parameters in float32 and use torch.autocast for speed",
                stacklevel=3,
            )
            return


def warn_that_nothing_is_chosen(who: str, verb: str, stacklevel: int) -> None:
    """Warn that there is no tensor whose sensitivity counts."""
    warnings.warn(
        f"{who} has nothing to {verb}: every weight and bias of the encoder layers is frozen or excluded: unfreeze a "
        f"layer, or leave {who} out",
        stacklevel=stacklevel,
    )


def first_pass(operands: Sequence[Operand], track: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Make the table, read parameters and gradients once, and refuse the step if they are not finite.

    Args:
        operands: The tensors of this step.
        track: Which of them have a sensitivity.

    Returns:
        The table with addresses and ``track`` filled in, and per row the mean of ``|theta g|`` in float64.

    Raises:
        NonFiniteGradient: If any gradient is not finite.
    """
    for operand, tracked in zip(operands, track, strict=True):
        if tracked and operand.touched is not None:
            raise RuntimeError(
                f"The gradient of {operand.name!r} is sparse: tensors with a sensitivity need dense gradients "
                "(Embedding(sparse=False))"
            )
    rows = new_table([operand.gradient.numel() for operand in operands])
    rows["theta"], rows["gradient"], rows["update_gradient"] = np.array([o.addresses for o in operands], np.int64).T
    rows["track"] = track
    sums = sum_rows(rows)
    finite = np.isfinite(sums)
    if not finite.all():
        raise NonFiniteGradient(operands[int(np.argmin(finite))].name)
    return rows, sums / np.maximum(rows["size"], 1)


def split_row_sparse(rows: np.ndarray, operands: Sequence[Operand]) -> np.ndarray:
    """Replace each row of a tensor with a row-sparse gradient by rows of its touched and its untouched parts.

    Untouched parts move by momentum and decay: their gradient is a block of zeros. Entries are updated one by one, so
    the result is that of the dense gradient.

    Args:
        rows: The table, ready for :func:`module.kernels.cpu.update_rows`.
        operands: Its tensors.
    """
    sparse = [i for i, operand in enumerate(operands) if operand.touched is not None]
    if not sparse:
        return rows
    parts = []
    for before, i in pairwise([-1, *sparse]):
        parts += [rows[before + 1 : i], _parts(rows[i], operands[i])]
    parts.append(rows[sparse[-1] + 1 :])
    table = np.concatenate(parts)
    number_blocks(table)
    return table


def _parts(row: np.ndarray, operand: Operand) -> np.ndarray:
    assert operand.touched is not None
    width = operand.theta[0].numel()
    touched = operand.touched.numpy() * width  # (R,) first entries
    after = np.concatenate([[0], touched + width])  # (R + 1,) where the gaps between them start
    gaps = np.concatenate([touched, [operand.theta.numel()]]) - after
    starts = np.concatenate([touched, after[gaps > 0]])
    parts = np.repeat(row, len(starts))
    for column in ("theta", "momentum", "infinity_norm"):
        parts[column] += 4 * starts
    n = len(touched)
    parts["size"][:n], parts["size"][n:] = width, gaps[gaps > 0]
    parts["gradient"][:n] = row["gradient"] + 4 * width * np.arange(n)
    parts["gradient"][n:], parts["gradient_stride"][n:] = _ZEROS.ctypes.data, 0
    parts["update_gradient"] = parts["gradient"]
    return parts[np.argsort(starts)]


def fill_noise(rows: np.ndarray, rule: PATSRule, lr: float, means: np.ndarray, seed: int) -> None:
    """Set the noise columns of perturbed rows whose step and identity stand already.

    Args:
        rows: The perturbed rows of one parameter group, as a view of the table.
        rule: The rule of PATS.
        lr: The group's learning rate.
        means: Per row the mean sensitivity that the ratio is taken of (of the tensor, or of the model).
        seed: Seed of the noise stream.
    """
    threshold = mask_threshold(rule.noise_probability)
    rows["noise"] = not rule.is_silent
    rows["key_low"], rows["key_high"] = seed & WORD, seed >> 32
    rows["amplitude"] = rule.amplitude(lr)
    rows["mean"] = means
    limits = [rule.limits(float(mean)) for mean in means]
    rows["upper"] = [upper for upper, _ in limits]
    rows["lower"] = [lower for _, lower in limits]
    rows["max_ratio"] = np.inf if rule.max_ratio is None else rule.max_ratio
    rows["mask_threshold"] = threshold
    if rule.mask_scope == "tensor":
        for row in rows:
            identity = int(row["id_high"]) << 32 | int(row["id_low"])
            perturbed = tensor_mask_bits(seed, int(row["step"]), identity) < threshold
            row["noise"] = row["noise"] and perturbed
            row["mask_threshold"] = MASK_LEVELS


def fill_sensitivity(rows: np.ndarray, beta: float, eps: float) -> None:
    """Set the columns of the sensitivity's moving average, Equation 2."""
    rows["beta"], rows["one_minus_beta"], rows["sensitivity_eps"] = beta, 1.0 - beta, eps


def model_mean(means: np.ndarray, sizes: np.ndarray) -> float:
    """Mean over all entries of several tensors; exact summation, so the tensors' order does not matter."""
    total = int(sizes.sum())
    return math.fsum(float(mean) * int(size) for mean, size in zip(means, sizes, strict=True)) / total if total else 0.0
