"""Token caches: a data set as memory-mapped arrays, built once and shared by all runs of a machine.

A cache is a folder ``<root>/<tokenizer>/<max_seq_len>/<dataset>/`` that holds

    tokens.npy     uint16 | uint32 (n_tokens,)  all examples end to end
    offsets.npy    int64 (N + 1,)               example i = tokens[offsets[i]:offsets[i + 1]]
    segment.npy    uint16 (N,)                  where token type 1 begins within the example; 0 = nowhere
    labels.npy     int64 | float32 (N,)
    uids.npy       bytes, fixed width (N,)
    manifest.json  its sources, and size and SHA-256 of every file

It is written to a temporary folder and renamed, under a lock, so that it is there whole or not at all; whatever a
killed build leaves behind bears a temporary name, and the next build of that data set removes it.

It is built in one pass over the TSV, piece by piece: memory does not grow with the data set.

Damage: `open_cache` checks sizes, array headers and the manifest's own checksum and takes milliseconds whatever the
size, but cannot see a flipped bit inside an array. `verify_cache` hashes every byte, at the speed of reading them.
`ensure_cache` runs it on a cache it has not seen before or whose files were touched since (``verified.json``, see
`data_utils.stamp`), so a run that starts through it does not train on damaged tokens: the damaged file is named in a
warning and the cache is made anew. ``prepro_std.py`` reads every byte of every cache, whatever was seen before.
"""

import contextlib
import fcntl
import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from data_utils.atomic import build_dir
from data_utils.cache_arrays import ARRAYS, write_arrays
from data_utils.errors import SettingError, in_one_line, naming
from data_utils.file_hash import sha256_of
from data_utils.json_file import json_bytes, parse_json, write_json
from data_utils.names import check_name
from data_utils.regular_file import read_regular
from data_utils.stamp import is_stamped, look, write_stamp
from data_utils.task_def import TaskDef
from data_utils.tokenizer import TokenizerHandle

FORMAT_VERSION = 1
_FORMAT = "pats token cache"
_MANIFEST = "manifest.json"
_STAMP = "verified.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TokenCache:
    """An open cache; the arrays are read-only memory maps."""

    path: Path
    tokens: NDArray[Any]
    offsets: NDArray[np.int64]
    segment: NDArray[np.uint16]
    labels: NDArray[Any]
    uids: NDArray[np.bytes_]
    manifest: dict[str, Any]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) tokens of each example, special tokens included."""
        return np.diff(self.offsets)

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the content of all arrays: equal for equal data, wherever and whenever it was built."""
        content = [self.manifest["files"][name]["sha256"] for name in ARRAYS]
        return hashlib.sha256("".join(content).encode()).hexdigest()


def cache_dir_for(root: str | Path, tokenizer_name: str, max_seq_len: int, dataset: str) -> Path:
    """Return the folder of a cache.

    Raises:
        SettingError: a name that cannot stand in a path.
    """
    return (
        Path(root) / check_name("tokenizer", tokenizer_name) / str(int(max_seq_len)) / check_name("data set", dataset)
    )


def open_cache(path: str | Path) -> TokenCache:
    """Open a cache after checking the manifest, file sizes and array headers (no full read; see the module).

    Raises:
        SettingError: no cache there, one of another format version, or a damaged one; names the file.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    arrays = {name: _open_array(path / f"{name}.npy", manifest["files"][name]) for name in ARRAYS}
    n, n_tokens = manifest["n"], manifest["n_tokens"]
    expected = {"tokens": n_tokens, "offsets": n + 1, "segment": n, "labels": n, "uids": n}
    for name, length in expected.items():
        if len(arrays[name]) != length:
            raise _damaged(path / f"{name}.npy", f"{len(arrays[name])} entries, the manifest says {length}")
    if arrays["offsets"][0] != 0 or arrays["offsets"][-1] != n_tokens:
        raise _damaged(path / "offsets.npy", f"runs from {arrays['offsets'][0]} to {arrays['offsets'][-1]}")
    return TokenCache(path=path, manifest=manifest, **arrays)


def verify_cache(path: str | Path) -> None:
    """Check every byte of a cache against its checksums.

    Raises:
        SettingError: as `open_cache`, or a file whose content has changed; names the file.
    """
    path = Path(path)
    manifest = open_cache(path).manifest
    for name in ARRAYS:
        if sha256_of(path / f"{name}.npy") != manifest["files"][name]["sha256"]:
            raise _damaged(path / f"{name}.npy", "its SHA-256 is not the manifest's")


def ensure_cache(
    tsv: str | Path,
    task_def: TaskDef,
    tokenizer: TokenizerHandle,
    cache_dir: str | Path,
    max_seq_len: int,
    *,
    read_all: bool = False,
) -> TokenCache:
    """Open a data set's cache; build it where there is none, or where it is stale or damaged.

    Stale means made of another TSV (SHA-256), tokenizer, task definition, ``max_seq_len`` or format version. What is
    there is verified in full, unless it and the TSV have not been touched since the last time. Any number of processes
    may call this for one cache: one builds, the others wait.

    Args:
        tsv: canonical file.
        task_def: its task.
        tokenizer: from `load_tokenizer`.
        cache_dir: the cache's own folder (`cache_dir_for`); parents are made.
        max_seq_len: most tokens of an example, special tokens included.
        read_all: verify every byte even of files that were not touched.

    Raises:
        SettingError: a malformed row in the TSV, or ``max_seq_len`` out of range.
        OSError: the TSV cannot be read or the cache not be written.
    """
    tsv, cache_dir = Path(tsv), Path(cache_dir)
    cache = None if read_all else _open_if_stamped(cache_dir, tsv)
    if cache is not None:
        key = _key(cache.manifest["tsv_sha256"], task_def, tokenizer, max_seq_len)
        if not _changed(cache, key):
            return cache
    checked = look(_stamped_files(cache_dir, tsv))
    key = _key(sha256_of(tsv), task_def, tokenizer, max_seq_len)
    cache = _open_if_fresh(cache_dir, key)
    if cache is not None:
        write_stamp(cache_dir / _STAMP, checked)
        return cache
    cache_dir.parent.mkdir(parents=True, exist_ok=True)
    with _build_lock(cache_dir):
        cache = _open_if_fresh(cache_dir, key, report=True)  # another process may have built it meanwhile
        if cache is None:
            _build(cache_dir, tsv, task_def, tokenizer, key)
            cache = open_cache(cache_dir)
    return cache


def _key(tsv_sha256: str, task_def: TaskDef, tokenizer: TokenizerHandle, max_seq_len: int) -> dict[str, Any]:
    """Return everything a cache's content depends on, as it stands in the manifest."""
    return {
        "format": _FORMAT,
        "format_version": FORMAT_VERSION,
        "tsv_sha256": tsv_sha256,
        "task_def_hash": task_def.fingerprint,
        "tokenizer_hash": tokenizer.hash,
        "max_seq_len": max_seq_len,
    }


def _changed(cache: TokenCache, key: dict[str, Any]) -> list[str]:
    """Return the entries of ``key`` in which a cache differs."""
    return [name for name in key if cache.manifest.get(name) != key[name]]


def _open_if_stamped(path: Path, tsv: Path) -> TokenCache | None:
    """Open a cache that was verified, as made of this TSV, and was not touched since; None otherwise."""
    if is_stamped(path / _STAMP, _stamped_files(path, tsv)):
        with contextlib.suppress(SettingError):
            return open_cache(path)
    return None


def _stamped_files(path: Path, tsv: Path) -> Sequence[Path]:
    return [tsv, path / _MANIFEST, *(path / f"{name}.npy" for name in ARRAYS)]


def _open_if_fresh(path: Path, key: dict[str, Any], report: bool = False) -> TokenCache | None:
    """Open and verify the cache at ``path`` if its entries are those of ``key``; None if it must be built."""
    if not path.exists():
        return None
    try:
        cache = open_cache(path)
        changed = _changed(cache, key)
        if not changed:
            verify_cache(path)
            return cache
        reason = f"{path}: made with another {', '.join(changed)}"
    except (SettingError, FileNotFoundError) as error:
        reason = str(error)
    if report:
        _log.warning("%s; building it anew", reason)
    return None


def _build(cache_dir: Path, tsv: Path, task_def: TaskDef, tokenizer: TokenizerHandle, key: dict[str, Any]) -> None:
    with build_dir(cache_dir) as folder:
        counts, files = write_arrays(folder, tsv, task_def, tokenizer, key["max_seq_len"])
        manifest = {
            **key,
            "dataset": cache_dir.name,
            "task": task_def.name,
            "tokenizer": tokenizer.name,
            **counts,
            "versions": {"tokenizers": tokenizers.__version__, "numpy": np.__version__},
            "files": files,
        }
        write_json(folder / _MANIFEST, manifest)


@contextlib.contextmanager
def _build_lock(cache_dir: Path) -> Iterator[None]:
    """Hold the lock of this cache's one build, and remove the folders of killed builds."""
    with cache_dir.with_name(f".{cache_dir.name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in cache_dir.parent.glob(f".{cache_dir.name}.tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def _open_array(path: Path, entry: dict[str, Any]) -> NDArray[Any]:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise _damaged(path, "it is missing") from None
    if size != entry["bytes"]:
        raise _damaged(path, f"{size} bytes, the manifest says {entry['bytes']}")
    try:
        with naming(path):
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, MemoryError):
        raise  # too many open files, no memory, no permission: the file itself may be sound
    except Exception as error:  # a broken header makes NumPy's parser raise nearly anything
        raise _damaged(path, f"not an array file: {in_one_line(error)}") from None
    if array.ndim != 1 or array.dtype.str != entry["dtype"]:
        raise _damaged(path, f"{array.ndim}-d {array.dtype.str}, the manifest says 1-d {entry['dtype']}")
    return array


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / _MANIFEST
    try:
        data = read_regular(file)
    except (FileNotFoundError, NotADirectoryError):
        raise SettingError(f"{path}: no token cache (no {_MANIFEST}); make it with prepro_std.py") from None
    try:
        manifest = parse_json(data, file)
    except SettingError:
        manifest = {}
    if data != json_bytes(manifest):  # a manifest without its checksum is none either
        raise _damaged(file, "its checksum does not fit its content")
    version = manifest.get("format_version")
    if manifest.get("format") != _FORMAT or version != FORMAT_VERSION:
        raise SettingError(f"{file}: format version {version} instead of {FORMAT_VERSION}; run prepro_std.py again")
    return manifest


def _damaged(file: Path, reason: str) -> SettingError:
    return SettingError(f"{file}: damaged ({reason}); run prepro_std.py again, or delete {file.parent}")
