"""Names that become parts of paths: task, encoder, method and run names."""

import difflib
import itertools
import re
from collections.abc import Iterable
from pathlib import PurePath

from data_utils.errors import SettingError, shown

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_MAX_LENGTH = 100
# Folder names of a kind, such as "best" or "checkpoint-500": the folder above them is named too.
_GENERIC = re.compile(
    r"models?|checkpoints?|best|last|final|export|encoder|tokenizer|"
    r"(?i:checkpoint|ckpt|(global_?)?step|epoch|iter|iteration|seed|fold|run|version)[-_=.]?\d+"
)


def check_name(kind: str, value: str) -> str:
    """Return ``value`` if it can stand in a path as it is.

    Args:
        kind: kind of the name, for the message ("task", "encoder").
        value: letters, digits and ``. _ + -``, beginning with a letter or digit, at most 100 long, without ``..``.

    Returns:
        ``value`` unchanged.

    Raises:
        SettingError: any other value.
    """
    if _NAME.fullmatch(value) and ".." not in value and len(value) <= _MAX_LENGTH:
        return value
    raise SettingError(
        f"{kind} name {shown(value)} is not allowed: use letters, digits and . _ + - "
        f"(first a letter or digit, no '..', at most {_MAX_LENGTH} long)"
    )


def did_you_mean(name: str, known: Iterable[str], group: str = "") -> str:
    """``" (did you mean rte?)"`` for a message about an unknown name, or nothing where no known one is near.

    Args:
        name: the unknown one.
        known: those that there are.
        group: stands before each in the message, such as ``pats.``.
    """
    near = difflib.get_close_matches(name[:_MAX_LENGTH], known, n=1)
    return f" (did you mean {group}{near[0]}?)" if near else ""


def slug(name: str) -> str:
    """Make a plain name of a hub name or a folder, for use in paths.

    ``org/model`` becomes ``org--model``. A path (it begins with ``/``, ``.`` or ``~``, ends with ``/``, or has more
    than one ``/``) becomes its last folder; where that is a word like ``best`` or ``checkpoint-500``, the folders above
    are put before it: ``/data/bert-x/best/`` becomes ``bert-x--best``.

    Raises:
        SettingError: nothing of the name can stand in a path.
    """
    parts = [part for part in PurePath(name).parts if part not in {"/", "~", ".", ".."}]
    is_path = name.startswith(("/", ".", "~")) or name.endswith("/") or len(parts) > 2
    generic = sum(1 for _ in itertools.takewhile(_GENERIC.fullmatch, reversed(parts)))
    keep = 1 + generic if is_path else 2
    text = "--".join(re.sub(r"[^A-Za-z0-9._+-]+", "-", part).strip(".-_+") for part in parts[-keep:])
    text = re.sub(r"\.{2,}", ".", text).strip("-")[:_MAX_LENGTH]
    if not text:
        raise SettingError(f"name {shown(name)} has no letter or digit to make a folder name of")
    return check_name("folder", text)
