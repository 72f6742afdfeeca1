"""The role of each parameter of a network: embeddings, encoder layer i, pooler or head; weight, bias or norm.

Nobody else matches parameter names. Known trees: BERT, RoBERTa, XLM-R, ELECTRA, DeBERTa-v2 and DistilBERT of
``transformers``, bare or inside any other module.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import nn

K = TypeVar("K", bound=Hashable)

# Components that wrappers insert into names: DistributedDataParallel, torch.compile, FSDP, activation checkpointing,
# and peft around a layer that has an adapter.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"})
_ADAPTER = re.compile(r"(?:^|\.)lora_\w+\.")  # peft's low-rank matrices, new ones inside the pretrained tree
_LAYER = re.compile(r"^(?P<base>(?:.*\.)?)(?:encoder|transformer)\.(?P<path>layer\.(?P<layer>\d+)\..+)$")
_LAYER_NORM = re.compile(r"^(?:.+_)?layer_?norm$", re.IGNORECASE)
# What may stand beside the layers under the encoder's base. DeBERTa-v2 keeps its relative positions, their norm and
# a convolution in `encoder`; ELECTRA projects its embeddings.
_BESIDE_LAYERS = re.compile(
    r"^(?:(?P<embeddings>embeddings\.|embeddings_project\.|encoder\.rel_embeddings\.|encoder\.LayerNorm\.)"
    r"|(?P<encoder>encoder\.conv\.)"
    r"|(?P<pooler>pooler\.))"
)


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


@dataclass(frozen=True, slots=True)
class ParamInfo:
    """One parameter with its role and kind."""

    name: str
    """Name in the network, as given."""
    path: str
    """Name without the modules around the encoder: ``layer.<i>.<suffix>`` for encoder layers."""
    role: Role
    layer: int | None
    """Number of the encoder layer from 0; None outside the layers."""
    kind: Kind
    pretrained: bool
    """Whether the parameter came with the pretrained weights: it is in the encoder's own tree and no adapter."""
    parameter: "nn.Parameter"

    @property
    def in_layer(self) -> bool:
        """Whether the parameter belongs to a numbered encoder layer."""
        return self.layer is not None

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

    Args:
        named_parameters: Pairs of name and parameter, as ``network.named_parameters()`` gives them. At least one must
            belong to an encoder layer.

    Raises:
        ValueError: If the names are of no known encoder, of more than one encoder, or not unique.
    """

    def __init__(self, named_parameters: "Iterable[tuple[str, nn.Parameter]]") -> None:
        named = list(named_parameters)
        plain = [strip_wrappers(name) for name, _ in named]
        base = _encoder_base(plain)
        self._infos: dict[str, ParamInfo] = {}
        seen: dict[str, str] = {}
        for (name, parameter), short in zip(named, plain, strict=True):
            if short in seen:
                raise ValueError(
                    f"Parameters {seen[short]!r} and {name!r} have the same name once wrappers are stripped"
                )
            seen[short] = name
            self._infos[name] = _describe(name, short, base, parameter, plain)

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
        """Number of encoder layers."""
        return len({p.layer for p in self if p.layer is not None})


def strip_wrappers(name: str) -> str:
    """Remove the parts of a parameter's name that come from DDP, ``torch.compile``, FSDP, checkpointing and peft."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def encoder_path(name: str) -> str:
    """Return ``layer.<i>.<suffix>`` for a parameter of an encoder layer, else the name without wrappers."""
    short = strip_wrappers(name)
    match = _LAYER.match(short)
    return match["path"] if match else short


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


def _encoder_base(names: list[str]) -> str:
    bases = {match["base"] for match in map(_LAYER.match, names) if match}
    if len(bases) == 1:
        return bases.pop()
    known = "BERT, RoBERTa, ELECTRA, DeBERTa-v2, DistilBERT"
    if bases:
        raise ValueError(f"More than one encoder among the parameters: {', '.join(sorted(map(repr, bases)))}; pass one")
    raise ValueError(
        f"No encoder layers among the parameters: prefixes found: {_prefixes(names)}; known trees: {known} "
        "(names like encoder.layer.0.output.dense.weight). Pass model.named_parameters() of a known encoder"
    )


def _describe(name: str, short: str, base: str, parameter: "nn.Parameter", names: list[str]) -> ParamInfo:
    kind = _kind(short)
    pretrained = not _ADAPTER.search(short)
    match = _LAYER.match(short)
    if match:
        return ParamInfo(name, match["path"], Role.ENCODER, int(match["layer"]), kind, pretrained, parameter)
    if not short.startswith(base):
        # Outside the encoder's tree everything is ours: a pooler (also DeBERTa's ContextPooler), task heads.
        role = Role.POOLER if "pooler" in short.split(".") else Role.HEAD
        return ParamInfo(name, short, role, None, kind, False, parameter)
    path = short[len(base) :]
    beside = _BESIDE_LAYERS.match(path)
    if beside and beside.lastgroup:
        return ParamInfo(name, path, Role(beside.lastgroup), None, kind, pretrained, parameter)
    raise ValueError(
        f"Unknown parameter {name!r} beside the encoder layers under {base!r}: known there are embeddings, "
        "encoder.layer, transformer.layer, encoder.rel_embeddings, encoder.conv, encoder.LayerNorm, "
        f"embeddings_project and pooler; prefixes found: {_prefixes(names)}"
    )


def _kind(short: str) -> Kind:
    *modules, _ = short.split(".")
    if modules and _LAYER_NORM.match(modules[-1]):
        return Kind.LAYER_NORM
    return Kind.BIAS if _is_bias(short) else Kind.WEIGHT


def _is_bias(name: str) -> bool:
    leaf = name.rsplit(".", maxsplit=1)[-1]
    return leaf == "bias" or leaf.endswith("_bias")


def _prefixes(names: list[str], depth: int = 2, limit: int = 12) -> str:
    found = sorted({".".join(name.split(".")[:depth]) for name in names})
    shown = ", ".join(found[:limit]) or "none (no parameters)"
    return shown + (f" and {len(found) - limit} more" if len(found) > limit else "")
