"""The role of each parameter of a network: embeddings, encoder layer i, pooler or head; weight, bias or norm.

Nobody else matches parameter names. The layers are found in any network (:mod:`module.layer_stack`), in whatever it is
wrapped; norms by their shape; embeddings, pooler and head by where they stand around the layers, and by a few names.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from .layer_stack import EMBEDDING, KNOWN_LAYER, LayerStack, Shapes, base_of, common_parts, find_stacks, towers

if TYPE_CHECKING:
    from torch import nn

K = TypeVar("K", bound=Hashable)

# Components that wrappers insert into names: DistributedDataParallel, torch.compile, FSDP, activation checkpointing,
# and peft around a layer that has an adapter.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"})
_ADAPTER = re.compile(r"(?:^|\.)lora_\w+\.")  # peft's low-rank matrices, new ones inside the pretrained tree
_LAYER_NORM = re.compile(r"^(?:.+_)?layer_?norm$", re.IGNORECASE)
_NORM = re.compile(r"norm|^ln(?:_|\d|$)", re.IGNORECASE)  # where a bias comes without its weight
_NUMBER = re.compile(r"\.\d+\..*\..*$")  # of a layer, and what is in it
_HEAD = re.compile(r"(?:\w+_)?heads?|cls|\w*classifi\w*|scorer?|predictions?|logit\w*|qa_outputs")
_RELATIVE = re.compile(r"^(?:rel|relative)_")  # tables of relative positions beside the layers
_NORM_OF_POSITIONS = "encoder.LayerNorm."  # of DeBERTa's relative positions


class Role(StrEnum):
    """Part of the network that a parameter belongs to."""

    EMBEDDINGS = "embeddings"
    ENCODER = "encoder"
    POOLER = "pooler"
    HEAD = "head"


class Kind(StrEnum):
    """Function of a parameter in its module."""

    WEIGHT = "weight"
    BIAS = "bias"
    LAYER_NORM = "layer_norm"
    """Of a norm of any type, or another vector in a layer that scales."""


@dataclass(frozen=True, slots=True)
class ParamInfo:
    """One parameter with its role and kind."""

    name: str
    """Name in the network, as given."""
    path: str
    """Name without the modules around the encoder: ``layer.<i>.<suffix>`` for encoder layers; a second stack's begins
    with its name, such as ``decoder.``."""
    role: Role
    layer: int | None
    """Number of the encoder layer from 0, a second stack's after the first one's; None outside the layers."""
    kind: Kind
    pretrained: bool
    """Whether the parameter came with the pretrained weights: it is in the encoder's own tree and no adapter."""
    parameter: "nn.Parameter"

    @property
    def in_layer(self) -> bool:
        """Whether the parameter belongs to a numbered encoder layer."""
        return self.layer is not None

    def is_inner(self, with_biases: bool) -> bool:
        """Whether it is a weight, or one of the biases that count too, of a layer and no norm's."""
        return self.in_layer and (self.kind == Kind.WEIGHT or (self.kind == Kind.BIAS and with_biases))

    @property
    def stream(self) -> str:
        """Name in the noise stream: the path of a layer's parameter, else its name without wrappers."""
        return self.path if self.in_layer else strip_wrappers(self.name)

    @property
    def is_weight(self) -> bool:
        """Whether its name in its module is ``weight``: matrices, tables and the scales of layer norms."""
        return self.path.rpartition(".")[2] == "weight"

    @property
    def is_bias(self) -> bool:
        """Whether the parameter is a bias; biases of layer norms are."""
        return _is_bias(self.path)


class ParamIndex:
    """Role and kind of every parameter of a network, by name.

    The layers are found, not listed: see :mod:`module.layer_stack`. Those of a second stack are numbered on.

    Args:
        named_parameters: Pairs of name and parameter, as ``network.named_parameters()`` gives them.
        needs_layers: Whether at least one must belong to a layer.

    Raises:
        ValueError: If the names are not unique, or none is of a layer where that is needed.
    """

    def __init__(self, named_parameters: "Iterable[tuple[str, nn.Parameter]]", *, needs_layers: bool = True) -> None:
        named = list(named_parameters)
        names: dict[str, str] = {}  # without wrappers: as given
        for name, _ in named:
            if twin := names.get(short := strip_wrappers(name)):
                raise ValueError(f"Parameters {twin!r} and {name!r} have the same name once wrappers are stripped")
            names[short] = name
        shapes = {short: _shape(parameter) for short, (_, parameter) in zip(names, named, strict=True)}
        self.stacks: list[LayerStack] = find_stacks(shapes)
        """The stacks of layers, in the network's order."""
        if needs_layers and not self.stacks:
            raise ValueError(_no_layers(list(names)))
        tree = _Tree(shapes, self.stacks)
        self._infos = {
            name: tree.describe(name, short, parameter) for short, (name, parameter) in zip(names, named, strict=True)
        }

    def __getitem__(self, name: str) -> ParamInfo:
        """Return the information about the parameter of this name."""
        return self._infos[name]

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def __iter__(self) -> Iterator[ParamInfo]:
        return iter(self._infos.values())

    def __len__(self) -> int:
        return len(self._infos)

    def select(self, role: Role | None = None, kind: Kind | None = None) -> list[ParamInfo]:
        """Return the parameters of a role and a kind, in the network's order; None means any."""
        return [p for p in self if (role is None or p.role == role) and (kind is None or p.kind == kind)]

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len({p.layer for p in self if p.layer is not None})


def stack_modules(network: "nn.Module") -> "list[nn.Module]":
    """Return the layers of a network, from the one next to the embeddings on; a second stack's after the first one's.

    Raises:
        ValueError: If there are none.
    """
    modules = {strip_wrappers(name): module for name, module in network.named_modules()}
    stacks = ParamIndex(network.named_parameters()).stacks
    return [modules[".".join([*stack.parts, str(number)])] for stack in stacks for number in stack.numbers]


def strip_wrappers(name: str) -> str:
    """Remove the parts of a parameter's name that come from DDP, ``torch.compile``, FSDP, checkpointing and peft."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def encoder_path(name: str) -> str:
    """Return ``layer.<i>.<suffix>`` if the name alone tells that (BERT and its kin), else it without wrappers."""
    short = strip_wrappers(name)
    match = KNOWN_LAYER.match(short)
    return f"layer.{match['layer']}.{match['suffix']}" if match else short


def are_one_place(name: str, other: str) -> bool:
    """Whether two names may be one parameter's in different wrappers; where neither has a layer's number, they may."""
    paths = encoder_path(name), encoder_path(other)
    if any(path.startswith("layer.") for path in paths):
        return paths[0] == paths[1]
    one, two = (path[match.start() :] if (match := _NUMBER.search(path)) else "" for path in paths)
    return not one or not two or one.endswith(two) or two.endswith(one)


def weight_decay_groups(index: ParamIndex, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters by MT-DNN's rule: no decay on biases and layer norms.

    Args:
        index: The network's parameters.
        weight_decay: Decay of all other weights, at least 0.

    Returns:
        At most two optimizer groups of named parameters; a group without parameters is left out.
    """
    decayed: dict[str, Any] = {"params": [], "weight_decay": weight_decay}
    plain: dict[str, Any] = {"params": [], "weight_decay": 0.0}
    for info in index:
        if info.parameter.requires_grad:
            group = decayed if info.kind == Kind.WEIGHT else plain
            group["params"].append((info.name, info.parameter))
    return [group for group in (decayed, plain) if group["params"]]


def split_groups(
    groups: Iterable[dict[str, Any]], index: ParamIndex, key: Callable[[ParamInfo], K]
) -> list[tuple[K, dict[str, Any]]]:
    """Divide optimizer groups of named parameters by a key of the parameters.

    Args:
        groups: As :func:`weight_decay_groups` makes them.
        index: The network's parameters.
        key: Of a parameter; equal keys of one group stay together.

    Returns:
        Pairs of key and group, in the order of the parameters; every other entry of a group is kept.
    """
    divided: list[tuple[K, dict[str, Any]]] = []
    for group in groups:
        parts: dict[K, list[Any]] = {}
        for name, parameter in group["params"]:
            parts.setdefault(key(index[name]), []).append((name, parameter))
        divided += [(k, {**group, "params": params}) for k, params in parts.items()]
    return divided


class _Tree:
    """The modules around the stacks of layers.

    Where no tensor in the layers has two dimensions (flattened, or norms and biases alone), shapes do not tell norms.
    """

    def __init__(self, shapes: Shapes, stacks: Sequence[LayerStack]) -> None:
        self._shapes = shapes
        self._places = {name: i for i, name in enumerate(shapes)}
        self._stacks = stacks
        self._flat = all(len(shapes[name]) < 2 for name in shapes if any(stack.split(name) for stack in stacks))
        self._towers = towers(stacks) if stacks else []
        ends = [0]  # of the layers' numbers
        for stack in stacks:
            ends.append(ends[-1] + stack.numbers[-1] + 1)
        self._offsets = ends
        base = base_of(shapes, stacks)
        self._depth = len(base)
        self._base = "".join(f"{part}." for part in base)

    def describe(self, name: str, short: str, parameter: "nn.Parameter") -> ParamInfo:
        pretrained = not _ADAPTER.search(short)
        for stack, tower, offset in zip(self._stacks, self._towers, self._offsets, strict=False):
            if place := stack.split(short):
                number, suffix = place
                path, kind = f"{tower}layer.{number}.{suffix}", self._kind(short, in_layer=True)
                return ParamInfo(name, path, Role.ENCODER, offset + number, kind, pretrained, parameter)
        kind = self._kind(short, in_layer=False)
        if not short.startswith(self._base):
            # Outside the encoder's tree everything is ours: a pooler (also DeBERTa's ContextPooler), task heads.
            role = Role.POOLER if "pooler" in short.split(".") else Role.HEAD
            return ParamInfo(name, short, role, None, kind, False, parameter)
        path = short[len(self._base) :]
        role = self._role(short, path, kind)
        return ParamInfo(name, path, role, None, kind, pretrained and role != Role.HEAD, parameter)

    def _role(self, short: str, path: str, kind: Kind) -> Role:
        """The role of a parameter in the tree, beside the layers."""
        parts = path.split(".")
        modules = parts[:-1] or parts
        if "pooler" in parts:
            return Role.POOLER
        if any(map(_HEAD.fullmatch, modules)):
            return Role.HEAD
        embeds = any(EMBEDDING.search(part) or _RELATIVE.search(part) for part in parts)
        if not self._stacks:
            return Role.EMBEDDINGS if embeds else Role.ENCODER
        name = short.split(".")[:-1]
        stack = max(self._stacks, key=lambda stack: common_parts((name, stack.parts)))
        before = self._places[short] < stack.first and bool(self._shapes[short])  # no number alone, as CLIP's scale is
        if embeds or before or (stack.known and path.startswith(_NORM_OF_POSITIONS)):
            return Role.EMBEDDINGS
        beside = common_parts((name, stack.parts)) > self._depth  # in the module that holds the layers
        return Role.ENCODER if beside or kind == Kind.LAYER_NORM else Role.HEAD

    def _kind(self, short: str, in_layer: bool) -> Kind:
        module, _, leaf = short.rpartition(".")
        name, bias = module.rpartition(".")[2], _is_bias(short)
        weight = self._shapes.get(f"{module}.weight")
        if leaf not in ("weight", "bias"):
            scales = in_layer and not bias and len(self._shapes[short]) == 1
        elif weight is not None and weight != (0,) and not self._flat:
            scales = len(weight) == 1 and not _ADAPTER.search(short)
        else:
            scales = bool(_NORM.search(name))
        if scales or _LAYER_NORM.match(name):
            return Kind.LAYER_NORM
        return Kind.BIAS if bias else Kind.WEIGHT


def _shape(parameter: "nn.Parameter") -> Sequence[int]:
    """The shape; (0,) where it is freed or not known yet."""
    try:
        return parameter.shape
    except RuntimeError:
        return (0,)


def _no_layers(names: list[str]) -> str:
    flat = any(name.endswith("flat_param") for name in names)
    return f"No layers among the parameters: prefixes found: {_prefixes(names)}: " + (
        "they were flattened by FSDP: train with DistributedDataParallel"
        if flat
        else "nothing repeats with numbers, as in encoder.layer.0.output.dense.weight: pass all named_parameters() of "
        "the model, or choose tensors yourself (perturb= of PATS and PATSAdamax, scale= of SAGEAdamax)"
    )


def _is_bias(name: str) -> bool:
    leaf = name.rsplit(".", maxsplit=1)[-1]
    return leaf == "bias" or leaf.endswith("_bias")


def _prefixes(names: list[str], depth: int = 2, limit: int = 12) -> str:
    found = sorted({".".join(name.split(".")[:depth]) for name in names})
    shown = ", ".join(found[:limit]) or "none (no parameters)"
    return shown + (f" and {len(found) - limit} more" if len(found) > limit else "")
