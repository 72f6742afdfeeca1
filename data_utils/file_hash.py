"""SHA-256 of files, computed once: a file that looks as it did then (`data_utils.stamp`) is not read again.

The hashes are remembered in this process and, for the next one, in ``$XDG_CACHE_HOME/pats_finetuning`` (default
``~/.cache``); where that cannot be written every process computes its own.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_utils.errors import SettingError
from data_utils.json_file import read_json, write_json
from data_utils.stamp import Look, is_settled, look

_MOST = 500  # files remembered between processes; the ones remembered first go first

_known: dict[str, tuple[Look, str]] = {}


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file's content, read in full.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file's content; the file is read only if it was touched since the last time.

    What was written within the last seconds is read again the next time: two writes in one tick look the same.

    Raises:
        OSError: it cannot be read.
    """
    path = path.resolve()
    now = look([path])
    found = _known.get(str(path)) or _stored().get(str(path))
    if now is not None and found is not None and found[0] == now:
        _known[str(path)] = found
        return found[1]
    digest = sha256_of(path)
    if now is not None and is_settled(now):
        _known[str(path)] = now, digest
        _store(str(path))
    return digest


def _file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "pats_finetuning" / "file_hashes.json"


def _stored() -> dict[str, tuple[Look, str]]:
    """Return the hashes of earlier processes; empty where their file is missing or damaged."""
    try:
        content: dict[str, Any] = read_json(_file())
        return {path: (entry["look"], entry["sha256"]) for path, entry in content.items()}
    except (OSError, SettingError, KeyError, TypeError):
        return {}


def _store(path: str) -> None:
    """Store the hash of a file for other processes. Of two written at the same time one is lost, and computed again."""
    kept = {**{other: entry for other, entry in _stored().items() if other != path}, path: _known[path]}
    content = {p: {"look": seen, "sha256": digest} for p, (seen, digest) in list(kept.items())[-_MOST:]}
    if not _file().is_absolute():
        return  # there is no home
    with suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_json(_file(), content)
