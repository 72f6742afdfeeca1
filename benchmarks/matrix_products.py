"""The matrix products of a step: recorded as they are made, then computed alone.

The few products of attention from first tokens alone are made inside of its pass on the CPU, a row at a time: they are
not in the list, so the floor is that much lower.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {"mm": 0, "addmm": 1, "addmm_": 1, "bmm": 0, "baddbmm": 1}
"""Operations that are one matrix product, with the place of its first factor among the arguments."""


@dataclass(frozen=True, slots=True)
class Operand:
    """A matrix of a product, or a batch of them: where it lay in memory and how."""

    address: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "Operand":
        """Describe a tensor."""
        return cls(tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def fill(self) -> Tensor:
        """Make a tensor of this form with numbers from N(0, 1)."""
        room = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        return torch.randn(room).to(self.dtype).as_strided(self.shape, self.stride)


@dataclass(frozen=True, slots=True)
class Product:
    """One matrix product of a step, (M, K) times (K, N), or a batch of them."""

    left: Operand
    right: Operand
    out: Operand

    @property
    def size(self) -> tuple[int, ...]:
        """(M, N, K), with the size of the batch before them if there is one."""
        return (*self.left.shape[:-1], self.right.shape[-1], self.left.shape[-1])

    @property
    def flop(self) -> int:
        """Multiplications and additions."""
        return 2 * math.prod(self.size)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lists the matrix products that are made in its context, backward passes included."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[Product] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation.

        Raises:
            RuntimeError: it makes products inside of itself, whose sizes are not known.
        """
        name = func._schema.name.removeprefix("aten::")
        if "attention" in name or "conv" in name or name.endswith("linear"):
            raise RuntimeError(f"{name} makes its matrix products inside of itself: a floor without them is too low")
        result = func(*args, **(kwargs or {}))
        if name in PRODUCTS:
            first = PRODUCTS[name]
            self.products.append(Product(*map(Operand.of, (*args[first : first + 2], result))))
        return result


def record(step: Callable[[], None]) -> list[Product]:
    """The matrix products of a step, which is made."""
    recorder = Recorder()
    with recorder:
        step()
    return recorder.products


def replay(products: Sequence[Product]) -> Callable[[], None]:
    """A function that computes these products and nothing else."""
    # What a product makes is never read by another: numbers would grow from one to the next.
    factors = {one: one.fill() for product in products for one in (product.left, product.right)}
    outs = {product.out: product.out.fill() for product in products}
    calls = [
        partial(torch.mm if len(p.size) == 3 else torch.bmm, factors[p.left], factors[p.right], out=outs[p.out])
        for p in products
    ]

    def compute() -> None:
        for call in calls:
            call()

    return compute
