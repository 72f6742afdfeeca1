"""Dropout of a model that is built already: found in its modules, and set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ..context import DropoutRates
from ..dropout import DropoutStream, replace_dropout

Part = Literal["hidden", "attention", "head"]

# A module with one of these is an attention, whose own ``dropout`` is that of the probabilities.
_QUERIES = ("query", "q_proj", "query_proj", "q_lin", "q", "c_attn", "Wqkv", "qkv", "qkv_proj", "in_proj")


@dataclass(frozen=True, slots=True)
class _Place:
    """A dropout probability in a model."""

    part: Part
    module: nn.Module
    attribute: str

    @property
    def rate(self) -> float:
        return float(getattr(self.module, self.attribute))

    def set(self, rate: float) -> None:
        setattr(self.module, self.attribute, rate)


def take_over_dropout(
    model: nn.Module, configure: Callable[[DropoutRates], DropoutRates], stream: DropoutStream
) -> Callable[[], None]:
    """Let a function choose the dropout of a model: ``nn.Dropout`` and numbers that its modules keep.

    Args:
        model: Of transformers, or built alike; its configuration stays.
        configure: Of a method. It gets the largest rate of each part; where it changes one, all of the part are set.
        stream: From which ``nn.Dropout`` draws from now on.

    Returns:
        A function that gives the model its own dropout back.
    """
    places = list(_places(model))
    rates = [place.rate for place in places]
    own = [(module, name, child) for module in model.modules() for name, child in module.named_children()]
    before = DropoutRates(*(max((p.rate for p in places if p.part == part), default=0.0) for part in _PARTS))
    after = configure(before)
    for place in places:
        if (rate := getattr(after, place.part)) != getattr(before, place.part):
            place.set(rate)
    replace_dropout(model, stream)

    def give_back() -> None:
        for module, name, child in own:
            if type(child) is nn.Dropout:
                setattr(module, name, child.train(module.training))
        for place, rate in zip(places, rates, strict=True):
            place.set(rate)

    return give_back


_PARTS: tuple[Part, Part, Part] = ("hidden", "attention", "head")


def _places(model: nn.Module) -> Iterator[_Place]:
    prefix = getattr(model, "base_model_prefix", "")
    base = f"{prefix}." if prefix and hasattr(model, prefix) else ""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            parent, _, leaf = name.rpartition(".")
            owner = model.get_submodule(parent) if parent else model
            yield _Place(_part(owner, leaf, f"{name}.".startswith(base)), module, "p")
            continue
        for attribute, value in vars(module).items():
            if isinstance(value, float) and "drop" in attribute.lower() and 0.0 <= value < 1.0:
                yield _Place(_part(module, attribute, f"{name}.".startswith(base)), module, attribute)


def _part(owner: nn.Module, name: str, in_base: bool) -> Part:
    if not in_base:
        return "head"
    words = name.lower()
    if "attention" in words or "attn" in words:
        return "attention"
    attends = any(hasattr(owner, query) for query in _QUERIES)
    return "attention" if attends and words in ("dropout", "dropout_prob", "dropout_p") else "hidden"
