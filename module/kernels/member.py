"""One tensor of a step: checks, working copies where they are needed, and where everything lies."""

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..noise import MAX_ENTRIES
from .backend import PACKAGES, is_plain, on_device
from .guard import (
    PARAMETER,
    address,
    at_hand,
    check,
    check_apart,
    check_float,
    check_plain,
    check_whole,
    check_writable,
)
from .rows import ARRAYS, SCALARS, new_table
from .sparse import touched_rows
from .state import (
    COLUMNS,
    INFINITY_NORM,
    MOMENTUM,
    SENSITIVITY,
    TRACKED,
    State,
    at_home,
    check_mapping,
    entry_device,
    entry_dtype,
    entry_shape,
    new_entries,
)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class NonFiniteGradient(RuntimeError):
    """A gradient (or the parameter it belongs to) holds NaN or infinity; the step was refused, nothing was changed."""

    def __init__(self, parameter: str, refused: int = 1) -> None:
        more = "" if refused == 1 else f" ({refused} refused steps, this name is the first one's)"
        super().__init__(
            f"The gradient of {parameter!r} is not finite: the step is refused, all state is as before{more}"
        )
        self.parameter = parameter


class Member:
    """A parameter that steps are made of, and after :meth:`prepare` what the next one reads and writes.

    Attributes:
        identity: In the noise stream; None: no sensitivity and no noise.
        key: Of the state where that is kept.
        touched: (R,) sorted rows that ``gradient`` (R, ...) holds, where it is row-sparse; None where it is dense.
        update_gradient: What the update takes. It is not ``gradient``, of which sensitivities are, where a method has
            masked the parameter's ``grad`` and left the whole one as its attribute ``unmasked_grad``.
        addresses: By columns of the table of tensors.
        direct: Whether no copy is involved, so that the next step may find all but the gradients as it is now.
    """

    __slots__ = (
        "__weakref__", "addresses", "direct", "gradient", "group", "identity", "key", "keys", "name", "parameter",
        "state", "theta", "touched", "update_gradient",
    )  # fmt: skip

    def __init__(self, name: str, parameter: Tensor, group: int, identity: int | None, key: Hashable) -> None:
        self.name, self.parameter, self.group, self.identity, self.key = name, parameter, group, identity, key
        self.release()

    def release(self) -> None:
        """Let go of gradients and working copies, which are of one step."""
        self.theta = self.gradient = self.update_gradient = self.parameter
        self.touched: Tensor | None = None

    def prepare(self, state: State | None, moments: Sequence[str], gradient: Tensor | None) -> None:
        """Check everything and take the addresses.

        Args:
            state: As it is kept; None: none yet.
            moments: Entries of the state but those of a sensitivity.
            gradient: None: what follows does without.

        Raises:
            TypeError: If a tensor is no plain one, or of another dtype.
            ValueError: If the shape, device, layout or storage of a tensor is another than the parameter's.
            RuntimeError: If the gradient is sparse, or masked, in a way that is not supported there.
        """
        name, parameter = self.name, self.parameter
        check_parameter(name, parameter, self.identity is not None)
        self.release()
        working = None if on_device(parameter) else torch.float32
        self.theta, theta_at = at_hand(name, PARAMETER, parameter, working)
        self.gradient = self.update_gradient = self.theta
        self.addresses = {"theta": theta_at, "gradient": theta_at, "update_gradient": theta_at}
        unmasked = getattr(parameter, "unmasked_grad", None)
        as_given = gradient is not None and self._prepare_gradient(gradient, unmasked, working)
        if state is not None:
            check_mapping(name, state, moments)
        self.state = at_home(state or new_entries(parameter, moments), parameter)
        if self.identity is not None and not any(key in self.state for key in TRACKED):
            self.state = {**self.state, **new_entries(parameter, TRACKED)}
        self.keys = (*moments, *(TRACKED if self.identity is not None else ()))
        for key in self.keys:
            shape, dtype = entry_shape(key, parameter), entry_dtype(key)
            entry = self.state.get(key)
            there = entry_device(key, parameter)
            self.addresses[COLUMNS[key]] = address(name, key, entry, shape, dtype, there)
        self.direct = self.theta is parameter and as_given and unmasked is None

    def _prepare_gradient(self, gradient: Tensor, unmasked: Tensor | None, working: torch.dtype | None) -> bool:
        """Check a gradient; returns whether the kernels take it as it was given."""
        name, parameter, place = self.name, self.parameter, self.parameter.device.type
        if type(gradient) is Tensor and gradient.layout != torch.strided:
            if working is None:
                raise RuntimeError(
                    f"The gradient of {name!r} is sparse: on {place} dense gradients are needed "
                    "(Embedding(sparse=False))"
                )
            if unmasked is not None:
                raise RuntimeError(f"The gradient of {name!r} is sparse and masked: masks need dense gradients")
            if self.identity is not None:
                raise RuntimeError(
                    f"The gradient of {name!r} is sparse: tensors with a sensitivity need dense gradients "
                    "(Embedding(sparse=False))"
                )
            touched, gradient = touched_rows(name, parameter, gradient)
            given = None
            if touched is not None and is_plain(parameter):
                gradient = torch.zeros_like(parameter).index_copy_(0, touched, gradient)
            elif touched is not None:
                self.touched, given = touched, gradient
        else:
            given = gradient
            check_gradient(name, "gradient", parameter, gradient)
        if working is None and gradient.dtype not in _DTYPES:
            raise TypeError(f"gradient of {name!r} is {gradient.dtype}: float32, bfloat16 or float16 is needed")
        self.gradient, gradient_at = self.update_gradient, update_at = at_hand(name, "gradient", gradient, working)
        if unmasked is not None:
            check_gradient(name, "unmasked_grad", parameter, unmasked)
            if working is None and unmasked.dtype != gradient.dtype:
                raise TypeError(f"unmasked_grad of {name!r} is {unmasked.dtype}: {gradient.dtype} is needed")
            self.gradient, gradient_at = at_hand(name, "unmasked_grad", unmasked, working)
        self.addresses |= {"gradient": gradient_at, "update_gradient": update_at}
        return self.update_gradient is given

    def take_rows(self, gradient: Tensor) -> bool:
        """Take another row-sparse gradient, checked; returns whether the kernels can take it as it is."""
        self.touched, values = touched_rows(self.name, self.parameter, gradient)
        self.gradient = self.update_gradient = values
        return self.touched is not None and values.dtype == torch.float32 and values.is_contiguous()

    def write_back(self) -> None:
        """Copy the updated values into the parameter if they were worked out in a copy."""
        if self.theta is not self.parameter:
            self.parameter.detach().copy_(self.theta)


def check_parameter(name: str, parameter: Tensor, is_special: bool = False) -> None:
    """Refuse what the kernels do not handle.

    Args:
        name: Of the parameter.
        parameter: To be checked.
        is_special: Whether it has a sensitivity, so that it must be a whole tensor.

    Raises:
        TypeError: If it is no plain tensor (a DTensor, say), or the dtype is not float32, bfloat16 or float16.
        NotImplementedError: If the parameter is on meta, without memory.
        ValueError: If it has too many entries for the noise stream, or several in one place of memory.
    """
    if parameter.is_meta:
        raise NotImplementedError(
            f"{name!r} is on meta: there are kernels for {' and '.join(PACKAGES)}: move the model there"
        )
    if is_lazy(parameter):  # it has no shape yet
        check_plain(name, PARAMETER, parameter)
    check(name, PARAMETER, parameter, parameter.shape, parameter.device)
    check_float(name, parameter, _DTYPES)
    if is_special:
        check_whole(name, parameter)
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


def tensor_table(members: Sequence[Member], kind: np.dtype) -> np.ndarray:
    """Return the table of prepared members.

    Args:
        members: In the order of the rows.
        kind: Type of a row, which begins with the columns of ``TENSOR``.

    Raises:
        ValueError: If two tensors share memory.
    """
    rows = new_table([member.gradient.numel() for member in members], kind)
    for column in (*ARRAYS, *SCALARS):
        rows[column] = [member.addresses.get(column, 0) for member in members]
    rows["identity"] = np.array([member.identity or 0 for member in members], np.uint64).view(np.int64)
    rows["group"] = [member.group for member in members]
    parts = {key: rows[COLUMNS[key]] for key in (MOMENTUM, INFINITY_NORM, SENSITIVITY)}
    check_apart([member.name for member in members], [member.parameter for member in members], parts)
    return rows
