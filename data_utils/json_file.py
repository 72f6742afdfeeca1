"""JSON files of the project: written whole, with a checksum; a damaged one is refused in one line."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_utils.atomic import write_bytes_atomic
from data_utils.errors import SettingError
from data_utils.regular_file import read_regular

_CHECKSUM = "checksum"


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a mapping and its checksum, whole or not at all.

    Args:
        path: The file.
        content: JSON values; NaN and infinities stand as Python writes them. It has no key ``checksum``.

    Raises:
        OSError: As :func:`data_utils.atomic.open_atomic`.
    """
    write_bytes_atomic(path, json_bytes(content))


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Return the bytes of the file that :func:`write_json` writes."""
    return (json.dumps({**content, _CHECKSUM: _checksum(content)}, indent=2) + "\n").encode()


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a mapping; its checksum is compared and left out. A file without one, made by hand, is taken as it is.

    Raises:
        FileNotFoundError: There is no such file.
        NotADirectoryError: A file lies where its folder would be.
        SettingError: It cannot be read, is no JSON mapping, or was changed after it was written; names the file.
    """
    path = Path(path)
    try:
        data = read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise SettingError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_json(data, path)


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """Read a mapping from the content of the file ``path``, as :func:`read_json` does."""
    try:
        content = json.loads(data)
        if not isinstance(content, dict):
            raise SettingError(f"{path} is damaged: it holds a {type(content).__name__}, not a mapping")
        if _CHECKSUM in content and content.pop(_CHECKSUM) != _checksum(content):
            raise SettingError(f"{path} is damaged: its checksum does not fit its content")
    except RecursionError:
        raise SettingError(f"{path} is damaged: it is nested too deeply") from None
    except SettingError:
        raise
    except ValueError as error:
        raise SettingError(f"{path} is damaged: not JSON ({error})") from None
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
