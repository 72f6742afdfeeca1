"""YAML settings files: safe, without YAML 1.1's surprises about numbers and repeated keys."""

import copy
import math
import re
from collections.abc import Collection, Hashable
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from data_utils.errors import SettingError, in_one_line, shown
from data_utils.regular_file import read_regular

_MAX_BYTES = 1 << 20
_MAX_VALUES = 100_000  # aliases written out: ten lines of them can stand for more than any memory holds

_OTHER_BASE = re.compile(r"[-+]?(0[0-9_]+|.*:.*)")  # 0x10 and 0b1 surprise nobody


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``1e-4`` as a float and refuses repeated keys and files that expand without end.

    Under the keys in ``texts`` entries of lists are texts as they were written: 01, no, 12:30 and 2001-01-01 are
    numbers, truth values and dates to YAML.
    """

    texts: Collection[str] = ()

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        for key_node, value_node in node.value:
            if key_node.value in self.texts and isinstance(value_node, yaml.SequenceNode):
                for entry in value_node.value:
                    if isinstance(entry, yaml.ScalarNode):
                        entry.tag = "tag:yaml.org,2002:str"
        return node

    def construct_document(self, node: yaml.Node) -> Any:
        if _expanded(node, {}) > _MAX_VALUES:
            raise SettingError(f"it stands for more than {_MAX_VALUES:,} values, aliases written out; settings are few")
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # keys that come in through << may be overridden: << is for that
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # the base class reports it with its place
            line = key_node.start_mark.line + 1
            if key in seen:
                raise SettingError(
                    f"line {line}: key {shown(key)} is given twice (first on line {seen[key]}); keep one"
                )
            seen[key] = line
        return super().construct_mapping(node, deep=deep)


def _number(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    """Read a number; refuse the other bases of YAML 1.1, to which 010 is 8 and 1:30 is 90."""
    if _OTHER_BASE.fullmatch(node.value):
        raise SettingError(
            f"line {node.start_mark.line + 1}: {shown(node.value)} is another number to YAML (base 8 or 60); write it "
            "without leading zeros and colons, or between quotes if it is a text"
        )
    is_int = node.tag == "tag:yaml.org,2002:int"
    number: int | float = loader.construct_yaml_int(node) if is_int else loader.construct_yaml_float(node)
    return number


for _tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
    _Loader.add_constructor(_tag, _number)


def _expanded(node: yaml.Node, known: dict[int, float]) -> float:
    """Return how many values a node stands for when its aliases are written out; infinitely many within itself."""
    size = known.get(id(node))
    if size is None:
        known[id(node)] = math.inf
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for entry in inner for part in (entry if isinstance(entry, tuple) else (entry,))]
        size = known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
    return size


# YAML 1.1 wants a dot in every float, so "1e-4" would arrive as a string and fail far from its cause.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def yaml_value(text: str) -> Any:
    """Read a value as it would stand in a file.

    Raises:
        SettingError: a number of another base, a key given twice, or aliases that expand without end.
        ValueError: no value, such as a date that there is not.
        yaml.YAMLError: not YAML.
    """
    return _Loader(text).get_single_data()


@lru_cache(maxsize=8)
def _content(data: bytes, texts: tuple[str, ...]) -> Any:
    """Read a file's content; a study reads the same few files for each of its runs."""
    loader = _Loader(data)
    loader.texts = texts
    return loader.get_single_data()


def read_yaml(path: str | Path, texts: Collection[str] = ()) -> dict[str, Any]:
    """Read a YAML mapping with string keys; an empty file is an empty mapping.

    Args:
        path: UTF-8 file of at most 1 MiB, which may stand for at most 100,000 values.
        texts: keys whose lists hold texts, as they were written: ``[01, no]`` is ``["01", "no"]``.

    Returns:
        The mapping; numbers such as ``1e-4`` are floats. Nothing in the file is executed.

    Raises:
        SettingError: not YAML, a key given twice, a file that is too large, or a top level that is not a mapping with
            string keys; the message names the file and, where known, the line.
        OSError: the file cannot be read.
    """
    data = read_regular(Path(path))
    if len(data) > _MAX_BYTES:
        raise SettingError(f"{path}: {len(data):,} bytes; a file of settings has at most {_MAX_BYTES:,}")
    try:
        content = copy.deepcopy(_content(data, tuple(texts)))
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}: " if mark is not None else ""
        raise SettingError(f"{path}: {place}not valid YAML: {error.problem or error.context}") from None
    except RecursionError:
        raise SettingError(f"{path}: not valid YAML: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise SettingError(f"{path}: not valid YAML: {in_one_line(error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingError(f"{path}: the top level is a {type(content).__name__}; it must be a mapping (key: value)")
    for key in content:
        if not isinstance(key, str):
            raise SettingError(f"{path}: key {shown(key)} is a {type(key).__name__}; quote it to make it a name")
    return content
