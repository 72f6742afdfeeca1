"""The one place where addresses are taken: the kernels write through them, so what lies there must be what they expect.

A checked tensor is plain memory (no subclass, no wrapper of a transform, no lazy view), has the parameter's shape and
device, the dtype that the kernel reads, and a storage that holds all of it. Tensors that have been checked are not
checked again while they are as they were: :class:`Fingerprint`. Nothing here waits for a device.
"""

import operator
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, UntypedStorage, nn
from torch._C._dynamo.guards import TensorGuards

PARAMETER = ""
"""The name of the part that a parameter is of itself."""

_TYPES = frozenset({Tensor, nn.Parameter})
_is_nested = operator.attrgetter("is_nested")
_plain_keys: set[int] = set()  # sets of dispatch keys of tensors that are plain memory
_QUANTISERS = ("bitsandbytes", "torchao", "optimum", "hqq")
_QUANTISED = (
    "quantised weights cannot be changed: pass the trainable parameters alone (peft's adapters), or load the model "
    "without quantisation"
)
_PARTS = (
    "a part has neither the tensor's mean nor its entries' numbers: train with DistributedDataParallel (DeepSpeed: "
    "ZeRO stage 0)"
)
_CUTTERS = {  # attributes that they leave on parameters
    "FSDP (FullyShardedDataParallel)": ("_fsdp_flattened", "_is_flat_param"),
    "DeepSpeed's ZeRO-3": ("ds_tensor",),
}
_CPU = torch.device("cpu")
_SAME_MODEL = "load the state of the same model, or start anew"


def check_plain(name: str, part: str, tensor: object) -> None:
    """Refuse what is not plain strided memory.

    Args:
        name: Of the parameter.
        part: Which of its tensors, ``"gradient"``, or a key of its state; :data:`PARAMETER`: itself.
        tensor: To be checked.

    Raises:
        TypeError: If it is no tensor, or another one than torch's own strided one.
    """
    if type(tensor) in _TYPES:
        assert isinstance(tensor, Tensor)
        keys = torch._C._dispatch_keys(tensor).raw_repr()
        if keys in _plain_keys:
            return
        oddity = _oddity(tensor)
        if oddity is None:
            _plain_keys.add(keys)
            return
    elif isinstance(tensor, Tensor):
        oddity = f"is a {type(tensor).__name__}: plain, whole torch tensors are needed (no fully_shard)"
        if part == PARAMETER and is_quantised(tensor):
            oddity = f"is a {type(tensor).__name__}: {_QUANTISED}"
        elif type(tensor).__name__ == "DTensor":
            oddity += f": {_PARTS}"
    else:
        found = "is missing" if tensor is None else f"is {reprlib.repr(tensor)}, no tensor"
        oddity = f"{found}: {_fix(part)}"
    raise TypeError(f"{_what(name, part)} {oddity}")


def is_plain_float(tensor: Tensor) -> bool:
    """Whether a tensor is plain strided float32 memory on the CPU."""
    if type(tensor) not in _TYPES or tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        return False
    return torch._C._dispatch_keys(tensor).raw_repr() in _plain_keys or _oddity(tensor) is None


def is_quantised(tensor: Tensor) -> bool:
    """Whether a tensor's entries stand for others: integers, or a class of a library that quantises."""
    return not tensor.is_floating_point() or type(tensor).__module__.partition(".")[0] in _QUANTISERS


def check_whole(name: str, parameter: Tensor) -> None:
    """Refuse a part of a tensor: a flat parameter of FSDP, or what ZeRO-3 of DeepSpeed has left in its place.

    Raises:
        TypeError: If it is one.
    """
    for owner, attributes in _CUTTERS.items():
        if any(getattr(parameter, attribute, None) is not None for attribute in attributes):
            raise TypeError(f"{name!r} was cut or flattened by {owner}: {_PARTS}")


def check_float(name: str, parameter: Tensor, dtypes: Sequence[torch.dtype]) -> None:
    """Refuse a parameter of another dtype.

    Raises:
        TypeError: If it is so.
    """
    if not parameter.is_floating_point() and not parameter.is_complex():
        raise TypeError(f"{name!r} is {parameter.dtype}: {_QUANTISED}")
    if parameter.dtype not in dtypes:
        raise TypeError(f"{name!r} is {parameter.dtype}: float32, bfloat16 or float16 is needed: model.float()")


def check(name: str, part: str, tensor: Any, shape: torch.Size, device: torch.device) -> None:
    """Refuse what is no plain tensor of this shape, on this device, all of it in its storage.

    Args:
        name: Of the parameter.
        part: Which of its tensors.
        tensor: To be checked; any strides.
        shape: That it must have.
        device: That it must be on.

    Raises:
        TypeError: If it is no plain tensor.
        ValueError: If its shape, device or storage is another.
    """
    check_plain(name, part, tensor)
    if tensor.shape != shape:
        wanted = f"the parameter {tuple(shape)}" if shape else "one number is needed"
        raise ValueError(f"{_what(name, part)} has shape {tuple(tensor.shape)}, {wanted}: {_fix(part)}")
    if tensor.device != device:
        raise ValueError(f"{_what(name, part)} is on {tensor.device}, the parameter on {device}: {_fix(part)}")
    needed, held = _needed(tensor), tensor.untyped_storage().nbytes()
    if held < needed and tensor.numel():
        raise ValueError(
            f"{_what(name, part)} has shape {tuple(shape)}, but its storage holds {held} bytes of {needed}: it was "
            f"resized or freed (FSDP frees shards): {_fix(part)}"
        )


def check_saved(name: str, part: str, tensor: object, shape: torch.Size) -> Tensor:
    """Return a tensor out of a checkpoint, from whatever device, if it can be one of a parameter's.

    Raises:
        TypeError: If it is missing or no plain tensor.
        ValueError: If it has another shape.
    """
    check_plain(name, part, tensor)
    assert isinstance(tensor, Tensor)
    check(name, part, tensor, shape, tensor.device)
    return tensor


def check_writable(name: str, parameter: Tensor) -> None:
    """Refuse a parameter several of whose entries lie in one place.

    Raises:
        ValueError: If it is so, or may be so.
    """
    if parameter.is_contiguous() or not parameter.numel():
        return
    reach = 0  # of the dimensions with smaller strides
    for stride, size in sorted(zip(parameter.stride(), parameter.shape, strict=True)):
        if size > 1 and stride <= reach:
            raise ValueError(
                f"{name!r} has shape {tuple(parameter.shape)} with strides {parameter.stride()}: several entries lie "
                "in one place (expand): give the parameter memory of its own, nn.Parameter(x.contiguous())"
            )
        reach += (size - 1) * stride


def address(name: str, part: str, tensor: Any, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> int:
    """Return where a contiguous tensor lies.

    Args:
        name: Of the parameter.
        part: Which of its tensors.
        tensor: To be checked.
        shape: That it must have.
        dtype: That it must have.
        device: That it must be on.

    Raises:
        TypeError: If it is no plain tensor of this dtype.
        ValueError: If its shape, device, layout or storage is another.
    """
    check(name, part, tensor, shape, device)
    if tensor.dtype != dtype:
        raise TypeError(f"{_what(name, part)} is {tensor.dtype}, not {dtype}: {_fix(part)}")
    if not tensor.is_contiguous():
        raise ValueError(
            f"{_what(name, part)} of shape {tuple(shape)} has strides {tensor.stride()}: it must be contiguous: "
            "put .contiguous() in its place"
        )
    return int(tensor.data_ptr())


def float_address(name: str, part: str, tensor: Tensor, shape: torch.Size) -> int:
    """Return :func:`address` of a contiguous float32 tensor on the CPU; quick, for the many of a forward pass."""
    if (
        type(tensor) in _TYPES
        and torch._C._dispatch_keys(tensor).raw_repr() in _plain_keys
        and tensor.dtype == torch.float32
        and tensor.shape == shape
        and tensor.is_cpu
        and tensor.is_contiguous()
        and 4 * (tensor.storage_offset() + tensor.numel()) <= tensor.untyped_storage().nbytes()
    ):
        return int(tensor.data_ptr())
    return address(name, part, tensor, shape, torch.float32, _CPU)


def at_hand(name: str, part: str, tensor: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, int]:
    """Return a checked tensor if it is contiguous and of a dtype (None: its own), else a copy, and where that lies."""
    dtype = dtype or tensor.dtype
    if tensor.dtype == dtype and tensor.is_contiguous():
        return tensor, tensor.data_ptr()
    copy = tensor.detach().to(dtype).contiguous()
    return copy, address(name, part, copy, tensor.shape, dtype, tensor.device)


class Fingerprint:
    """The properties of checked tensors, compared in a few calls instead of one by one.

    Alike are those of the same types, dispatch keys, dtypes, devices, shapes and strides, at the same places of
    storages of the same sizes. No tensor and no storage is kept alive.

    Args:
        tensors: That have been checked.
        fixed: Whether they must lie at the same addresses, too.
    """

    def __init__(self, tensors: Sequence[Tensor], fixed: bool) -> None:
        self._guards = TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
        self._fixed = fixed
        self._places = self._places_of(tensors)

    def matches(self, tensors: Sequence[Any]) -> bool:
        """Whether as many tensors are like those, in order."""
        try:
            same = self._places_of(tensors) == self._places
        except (RuntimeError, TypeError):  # one has no storage, or is no tensor
            return False
        # Last: the process ends where sizes or strides raise, as a nested tensor's do.
        return same and bool(self._guards.check(*tensors))

    def _places_of(self, tensors: Sequence[Any]) -> list[Any]:
        sizes = map(UntypedStorage.nbytes, map(Tensor.untyped_storage, tensors))
        if self._fixed:
            return [*sizes, *map(Tensor.data_ptr, tensors)]
        return [*sizes, *map(Tensor.storage_offset, tensors), *map(_is_nested, tensors)]


def addresses_of(tensors: Iterable[Tensor]) -> np.ndarray:
    """Return where tensors lie that match a :class:`Fingerprint`."""
    return np.fromiter(map(Tensor.data_ptr, tensors), np.int64)


def check_apart(names: Sequence[str], parameters: Sequence[Tensor], parts: dict[str, np.ndarray]) -> None:
    """Refuse tensors to be written that share memory: they are written at the same time.

    Args:
        names: Of the parameters.
        parameters: That have been checked.
        parts: Key of the state -> (parameters,) int64 addresses, 0 where there is none, of float32 entries.

    Raises:
        ValueError: If two overlap.
    """
    starts = np.array([[parameter.data_ptr() for parameter in parameters], *parts.values()], np.int64)
    lengths = np.array([4 * parameter.numel() for parameter in parameters], np.int64)
    own = [_extent(parameter) for parameter in parameters]
    stops = starts + np.array([own] + [lengths] * len(parts))
    there = np.flatnonzero(starts)
    order = there[np.argsort(starts.flat[there], kind="stable")]
    shared = np.flatnonzero(starts.flat[order][1:] < stops.flat[order][:-1])
    if len(shared):
        keys = (PARAMETER, *parts)
        one, other = (
            _what(names[i % len(names)], keys[i // len(names)]) for i in sorted(order[shared[0] : shared[0] + 2])
        )
        raise ValueError(
            f"{one} and {other} share memory: pass a parameter once, and give each tensor memory of its own (.clone())"
        )


def one_entry(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor that a kernel reads one number of, a learning rate or a scale.

    Raises:
        TypeError: If it is no plain tensor.
        ValueError: If it has another number of entries.
    """
    check_plain(name, PARAMETER, tensor)
    if tensor.numel() != 1:
        raise ValueError(f"{name!r} has shape {tuple(tensor.shape)}: a tensor of one entry is needed")
    check(name, PARAMETER, tensor, tensor.shape, tensor.device)
    return tensor


def _oddity(tensor: Tensor) -> str | None:
    """Why a tensor of torch's own types is not plain memory all the same, and what to do; None: it is."""
    transformed = "belongs to a transform (torch.func, functionalization): step outside of it, on the plain parameters"
    lazy = "is a lazy view (negated, conjugated or zero): take .resolve_neg().clone()"
    odd = {
        f"is {tensor.layout}: a strided tensor is needed": tensor.layout != torch.strided,
        "is nested: a strided tensor is needed": tensor.is_nested,
        "is quantised: dequantize() it": tensor.is_quantized,
        transformed: torch._is_functional_tensor(tensor) or torch._C._functorch.is_functorch_wrapped_tensor(tensor),
        "was made under torch.inference_mode: make it, or clone() it, outside": tensor.is_inference(),
        "is on meta, without memory: give it some": tensor.is_meta,
        lazy: tensor.is_neg() or tensor.is_conj() or tensor._is_zerotensor(),
    }
    return next((why for why, found in odd.items() if found), None)


def _what(name: str, part: str) -> str:
    return f"{part} of {name!r}" if part else repr(name)


def _fix(part: str) -> str:
    if part == PARAMETER:
        return "leave parameters whole and in place between steps"
    return "call zero_grad() and backward() again" if part.endswith(("gradient", "grad")) else _SAME_MODEL


def _extent(tensor: Tensor) -> int:
    """Bytes from the first entry to the end of the last in memory."""
    if tensor.is_contiguous():
        return tensor.numel() * tensor.itemsize
    sizes = [size - 1 for size in tensor.shape]
    return int(1 + sum(map(operator.mul, sizes, tensor.stride()))) * tensor.itemsize if tensor.numel() else 0


def _needed(tensor: Tensor) -> int:
    """Bytes that the storage must have."""
    return int(tensor.storage_offset()) * tensor.itemsize + _extent(tensor)
