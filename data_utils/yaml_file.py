"""YAML settings files: safe, without YAML 1.1's surprises about numbers and repeated keys."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from data_utils.errors import SettingError


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``1e-4`` as a float and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # keys that come in through << may be overridden: that is what << is for
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # the base class reports it with its place
            line = key_node.start_mark.line + 1
            if key in seen:
                raise SettingError(f"line {line}: key {key!r} is given twice (first on line {seen[key]}); keep one")
            seen[key] = line
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 wants a dot in every float, so "1e-4" would arrive as a string and fail far from its cause.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping with string keys; an empty file is an empty mapping.

    Args:
        path: UTF-8 file.

    Returns:
        The mapping; numbers such as ``1e-4`` are floats. Nothing in the file is executed.

    Raises:
        SettingError: not YAML, a key given twice, or a top level that is not a mapping with string keys; the message
            names the file and, where known, the line.
        OSError: the file cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        content = yaml.load(data, Loader=_Loader)
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}: " if mark is not None else ""
        raise SettingError(f"{path}: {place}not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SettingError(f"{path}: not valid YAML: {reason}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingError(f"{path}: the top level is a {type(content).__name__}; it must be a mapping (key: value)")
    for key in content:
        if not isinstance(key, str):
            raise SettingError(f"{path}: key {key!r} is a {type(key).__name__}; quote it to make it a name")
    return content
