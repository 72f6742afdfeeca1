"""Tables as people have them: CSV, TSV, JSON lines, JSON, Parquet and Arrow files, also under gzip, in memory."""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.canonical_tsv import decode_lines
from data_utils.delimited_file import read_delimited
from data_utils.errors import SettingError, in_one_line, shown
from data_utils.regular_file import read_regular


@dataclass(frozen=True, slots=True)
class RawTable:
    """A table of N rows as its file has it."""

    path: Path
    columns: dict[str, list[Any]]
    """Name -> (N,) texts, numbers, lists or None."""
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Column -> names of its classes, where the file has them: the column then holds their numbers."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def column(self, name: str, setting: str) -> list[Any]:
        """Return the column that a setting names.

        Raises:
            SettingError: there is none; lists those there are.
        """
        if name not in self.columns:
            there = shown(", ".join(map(str, self.columns)))
            one = "--delimiter says what stands between columns" if len(self.columns) == 1 else ""
            raise SettingError(f"{self.path} has no column {shown(name)}; it has {there}", setting, one)
        return self.columns[name]


def read_table(
    path: Path, delimiter: str | None = None, quoting: str = "auto", kind: str | None = None, header: Sequence[str] = ()
) -> RawTable:
    """Read a table; its kind is told by its name, ``.gz`` at the end means gzip.

    Args:
        path: ``.csv``, ``.tsv``, ``.txt`` (tabs), ``.jsonl``, ``.ndjson``, ``.json``, ``.parquet``, ``.arrow`` or
            ``.feather``.
        delimiter: between columns of a CSV or TSV file; by default the comma or the tab.
        quoting: of a CSV or TSV file; see `read_delimited`.
        kind: such as ``.jsonl``, where the name does not tell it.
        header: names of the columns of a CSV or TSV file that has no header.

    Raises:
        SettingError: an unknown kind, one without delimiters where one is given, a malformed or damaged file, or a
            missing package; names file and fix.
        OSError: the file cannot be read.
    """
    kind = kind or kind_of(path)
    if kind not in {*_DELIMITERS, *_READERS}:
        legal = ", ".join((*_DELIMITERS, *_READERS))
        raise SettingError(f"{path}: no kind of table that is read; legal: {legal}, each also with .gz")
    for setting, given in (("--delimiter", delimiter is not None), ("--quoting", quoting != "auto")):
        if given and kind not in _DELIMITERS:
            raise SettingError(f"{path} is a {kind} file, which has neither delimiters nor quotes; drop it", setting)
    data = read_regular(path)
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise SettingError(f"{path}: damaged or cut off ({in_one_line(error)}); fetch it again") from None
    if kind in _DELIMITERS:
        return RawTable(path, dict(read_delimited(data, path, delimiter or _DELIMITERS[kind], quoting, header)))
    return _READERS[kind](data, path)


def kind_of(path: Path) -> str:
    """Return the ending of a file's name that tells its kind, such as ``.csv``, without ``.gz``."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def is_table(path: Path) -> bool:
    """Whether a file's name tells one of the kinds that are read."""
    return kind_of(path) in {*_DELIMITERS, *_READERS}


def _json(data: bytes, path: Path) -> RawTable:
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise SettingError(f"{path}: not UTF-8; save the file as UTF-8") from None
    except (json.JSONDecodeError, RecursionError) as error:
        if "Extra data" in str(error):  # JSON lines by the name of JSON, as several data sets have it
            return _json_lines(data, path)
        raise SettingError(f"{path}: not JSON: {in_one_line(error)}") from None
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if isinstance(content, dict) and content:  # pandas' column by column, a list or a mapping from the index
        columns = {name: list(c.values()) if isinstance(c, dict) else c for name, c in content.items()}
        if all(isinstance(c, list) for c in columns.values()) and len(set(map(len, columns.values()))) == 1:
            return RawTable(path, columns)
    return table_of_rows(path, content)


def _json_lines(data: bytes, path: Path) -> RawTable:
    rows = []
    for number, line in decode_lines(io.BytesIO(data), path):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except (json.JSONDecodeError, RecursionError) as error:
            raise SettingError(f"{path}: line {number}: not JSON ({in_one_line(error)}); is it cut off?") from None
    return table_of_rows(path, rows)


def table_of_rows(path: Path, rows: Any) -> RawTable:
    """Make a table of a list of objects; one without a column has None there.

    Raises:
        SettingError: it is no such list, or empty; names the row.
    """
    if not isinstance(rows, list):
        raise SettingError(f"{path}: no table; it must be a list of objects, one a row, or a list for each column")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise SettingError(f"{path}: row {number} is {shown(row)}; a row is an object, column: value")
    names = dict.fromkeys(name for row in rows for name in row)
    if not rows or not names:
        raise SettingError(f"{path}: holds no rows")
    return RawTable(path, {name: [row.get(name) for row in rows] for name in names})


def _parquet(data: bytes, path: Path) -> RawTable:
    from pyarrow import parquet

    return _from_arrow(parquet.read_table(io.BytesIO(data)), path)


def _arrow(data: bytes, path: Path) -> RawTable:
    import pyarrow as pa

    try:
        return _from_arrow(pa.ipc.open_file(io.BytesIO(data)).read_all(), path)
    except pa.ArrowInvalid:  # the streaming form, in which data sets keep their caches
        return _from_arrow(pa.ipc.open_stream(io.BytesIO(data)).read_all(), path)


def _with_pyarrow(read: Callable[[bytes, Path], RawTable]) -> Callable[[bytes, Path], RawTable]:
    """Let a reader name the missing package, and the file that pyarrow cannot read."""

    def reading(data: bytes, path: Path) -> RawTable:
        try:
            import pyarrow as pa
        except ImportError:
            raise SettingError(
                f"{path}: needs the package pyarrow, which is not installed: pip install -r requirements-parquet.txt"
            ) from None
        try:
            return read(data, path)
        except (pa.ArrowException, OSError) as error:
            raise SettingError(f"{path}: damaged, or not what its name says ({in_one_line(error)})") from None

    return reading


def _from_arrow(table: Any, path: Path) -> RawTable:
    import pyarrow as pa

    if len(set(table.column_names)) < len(table.column_names):
        raise SettingError(f"{path}: two columns have one name ({', '.join(table.column_names)}); rename one")
    if not len(table):
        raise SettingError(f"{path}: holds no rows")
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        values = column.to_pylist()
        if pa.types.is_float32(column.type):  # 3.8, not the 3.7999999523162842 that it is in double precision
            values = [None if value is None else np.float32(value) for value in values]
        columns[name] = values
    return RawTable(path, columns, class_names_of((table.schema.metadata or {}).get(b"huggingface", b"{}")))


def class_names_of(text: bytes | str) -> dict[str, tuple[str, ...]]:
    """Return column -> class names of a description as data sets of the Hub have it (``features`` in JSON)."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    features = content.get("info", content).get("features") if isinstance(content, dict) else None
    found = {}
    for name, feature in (features or {}).items() if isinstance(features, dict) else ():
        names = feature.get("names") if isinstance(feature, dict) else None
        if isinstance(names, list) and feature.get("_type") == "ClassLabel":
            found[name] = tuple(map(str, names))
    return found


_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_READERS: dict[str, Callable[[bytes, Path], RawTable]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".parquet": _with_pyarrow(_parquet),
    ".arrow": _with_pyarrow(_arrow),
    ".feather": _with_pyarrow(_arrow),
}
