"""The stacks of layers in a network: found where parameter names repeat with numbers, whatever they are called."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from math import prod

Shapes = Mapping[str, Sequence[int]]
"""Shapes of parameters by their names, without wrappers, in the network's order."""

KNOWN_LAYER = re.compile(r"^(?P<base>(?:.*\.)?)(?P<stack>encoder|transformer)\.layer\.(?P<layer>\d+)\.(?P<suffix>.+)$")
"""Layers of BERT, RoBERTa, XLM-R, ELECTRA, DeBERTa and DistilBERT, which a name tells without its neighbours."""
EMBEDDING = re.compile(r"embed|^(?:wte|wpe|shared|emb)$|_(?:emb|token)$")
"""Components of names of word, position and patch embeddings."""


@dataclass(frozen=True, slots=True)
class LayerStack:
    """Layers that follow each other under one name."""

    prefix: str
    """Name of the container, such as ``bert.encoder.layer``; empty: the layers stand in the network itself."""
    numbers: tuple[int, ...]
    """Of the layers, rising."""
    first: int
    """Place of its first parameter among all."""
    size: int
    """Entries of all its parameters."""
    suffixes: frozenset[str]
    """Names of the weights in its layers that are no vectors, or of everything if all are."""
    known: bool
    """Whether the names are those of a tree that is read without its neighbours."""
    embeds: bool
    """Whether embeddings are repeated with it. If stacks are, too, it is a list of networks, not of layers."""

    def split(self, name: str) -> tuple[int, str] | None:
        """Return the layer's number and the rest of a parameter's name; None: it is not in this stack."""
        number, _, suffix = name[len(self.prefix) + 1 if self.prefix else 0 :].partition(".")
        if not (_within(name, self.prefix) and suffix and number.isdecimal() and int(number) in self.numbers):
            return None
        return int(number), suffix

    @property
    def parts(self) -> list[str]:
        """Components of the prefix."""
        return self.prefix.split(".") if self.prefix else []


def find_stacks(shapes: Shapes) -> list[LayerStack]:
    """Return the stacks of a network in its order, mostly one; two in encoder-decoders and pairs of towers.

    The stack with the most entries counts, and those beside it whose layers hold weights of the same names, or that are
    encoder and decoder. One layer alone is a stack if no other numbers stand beside it.
    """
    layers: dict[str, dict[int, list[str]]] = {}
    known = {f"{match['base']}{match['stack']}.layer" for match in map(KNOWN_LAYER.match, shapes) if match}
    for name in shapes:
        parts = name.split(".")
        for i, part in enumerate(parts[:-1]):
            if part.isdecimal():
                layers.setdefault(".".join(parts[:i]), {}).setdefault(int(part), []).append(name)
    places = {name: i for i, name in enumerate(shapes)}
    found = [
        stack
        for prefix, named in layers.items()
        if prefix in known or not any(_nested(prefix, other) for other in known)
        if (stack := _stack(prefix, named, shapes, places, prefix in known))
    ]
    networks = [s for s in found if s.embeds and any(o is not s and _within(o.prefix, s.prefix) for o in found)]
    chosen: list[LayerStack] = []
    for stack in sorted([s for s in found if s not in networks] or found, key=_rank, reverse=True):
        apart = not any(_nested(stack.prefix, other.prefix) for other in chosen)
        if not chosen or (apart and _are_twins(stack, chosen[0])):
            chosen.append(stack)
    return sorted(chosen, key=lambda stack: stack.first)


def towers(stacks: Sequence[LayerStack]) -> list[str]:
    """Return per stack what stands before ``layer`` in its paths: nothing, but for decoders and other second stacks."""
    if len(stacks) == 1:
        return ["decoder." if "decoder" in stacks[0].parts and not stacks[0].known else ""]
    shared = common_parts(stack.parts for stack in stacks)
    names = [stack.parts[shared] for stack in stacks]
    if len({*names}) < len(names):
        names = [".".join(stack.parts[shared:]) for stack in stacks]
    return ["" if name == "encoder" else f"{name}." for name in names]


def base_of(shapes: Shapes, stacks: Sequence[LayerStack]) -> list[str]:
    """Return the components of the name of the module that holds the stacks and the embeddings."""
    if not stacks:
        return []
    if len(stacks) == 1 and stacks[0].known:
        return stacks[0].parts[:-2]
    around = [stack.parts[:-1] for stack in stacks]
    base = around[0][: common_parts(around)]
    beside = [name.split(".") for name in shapes if not any(stack.split(name) for stack in stacks)]
    before = {*islice(shapes, stacks[0].first)}
    embeddings = [parts for parts in beside if any(map(EMBEDDING.search, parts))]
    embeddings = embeddings or [parts for parts in beside if ".".join(parts) in before]

    def count(tree: list[str]) -> int:
        return sum(parts[: len(tree)] == tree for parts in embeddings)

    while base and embeddings and not count(base):
        base = base[:-1]
    if base[-1:] in (["encoder"], ["decoder"]) and count(base[:-1]) > count(base):
        base = base[:-1]  # the encoder holds positions, say, and the words stand beside it
    return base


def common_parts(names: Iterable[Sequence[str]]) -> int:
    """Return how many components several names begin with together."""
    return sum(1 for _ in takewhile(lambda column: len({*column}) == 1, zip(*names, strict=False)))


def _stack(
    prefix: str, layers: dict[int, list[str]], shapes: Shapes, places: Mapping[str, int], known: bool
) -> LayerStack | None:
    """The layers under a prefix that are alike; None: there are none."""
    start = len(prefix) + 1 if prefix else 0
    suffixes = {n: {name[start:].partition(".")[2] for name in named} for n, named in layers.items()}
    sizes = {n: sum(prod(shapes[name]) for name in named) for n, named in layers.items()}
    largest = suffixes[max(sizes, key=lambda n: sizes[n])]
    alike = sorted(n for n, own in suffixes.items() if known or _overlap(own, largest))
    union = set().union(*(suffixes[n] for n in alike))
    alone = len(alike) == 1 and len(layers) > 1
    if not known and (alone or union <= {"weight", "bias"}):  # a row of matrices is no row of layers
        return None
    names = [name for n in alike for name in layers[n]]
    matrices = {name[start:].partition(".")[2] for name in names if len(shapes[name]) > 1}
    return LayerStack(
        prefix,
        tuple(alike),
        min(places[name] for name in names),
        sum(sizes[n] for n in alike),
        frozenset(matrices or union),
        known,
        any(EMBEDDING.search(part) for suffix in matrices for part in suffix.split(".")),
    )


def _rank(stack: LayerStack) -> tuple[bool, int, int]:
    return stack.known or len(stack.numbers) > 1, stack.size, len(stack.parts)


def _are_twins(one: LayerStack, other: LayerStack) -> bool:
    apart = common_parts((one.parts, other.parts))
    return {one.parts[apart], other.parts[apart]} == {"encoder", "decoder"} or _overlap(one.suffixes, other.suffixes)


def _overlap(some: Iterable[str], others: Iterable[str]) -> bool:
    """Whether two sets of names share at least half of the smaller one."""
    one, other = {*some}, {*others}
    return 2 * len(one & other) >= min(len(one), len(other))


def _within(name: str, prefix: str) -> bool:
    return not prefix or name.startswith(f"{prefix}.")


def _nested(one: str, other: str) -> bool:
    """Whether a prefix is the other's or stands in it or around it."""
    return one == other or _within(one, other) or _within(other, one)
