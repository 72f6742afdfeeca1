import builtins
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_utils.errors import SettingError
from data_utils.table_file import read_table

ROWS: list[dict[str, Any]] = [{"t": 'a "b", c', "y": 1, "x": None}, {"t": "NA", "y": 0, "x": [1, 2]}]
COLUMNS = {"t": ['a "b", c', "NA"], "y": [1, 0], "x": [None, [1, 2]]}
NAMES = {"info": {"features": {"y": {"names": ["no", "yes"], "_type": "ClassLabel"}, "t": {"dtype": "string"}}}}


def lines(rows: list[dict[str, Any]]) -> str:
    return "\n".join(map(json.dumps, rows)) + "\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lines(ROWS)),
        ("a.ndjson", lines(ROWS)),
        ("a.json", json.dumps(ROWS)),
        ("a.json", lines(ROWS)),  # JSON lines under JSON's name
        ("a.json", json.dumps(COLUMNS)),
        ("a.json", json.dumps({name: dict(enumerate(column)) for name, column in COLUMNS.items()})),  # pandas' own form
        ("a.json", json.dumps({"version": "1", "data": ROWS})),
    ],
)
def test_json_is_a_table_in_each_of_its_forms(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert read_table(tmp_path / name).columns == COLUMNS
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    assert read_table(tmp_path / f"{name}.gz").columns == COLUMNS


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t"), ("a.txt", "\t"), ("a.csv.gz", ",")])
def test_a_delimited_file_is_read_by_its_name(tmp_path: Path, name: str, delimiter: str) -> None:
    data = f'x{delimiter}y\n"1""{delimiter}"{delimiter}NA\n'.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read_table(tmp_path / name).columns == {"x": [f'1"{delimiter}'], "y": ["NA"]}


def test_parquet_and_arrow_have_the_class_names_of_the_hub(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (requirements-parquet.txt)")
    from pyarrow import feather, parquet

    table = pa.table({"t": ["a", None], "y": [1, -1], "s": pa.array([3.8, None], pa.float32())})
    table = table.replace_schema_metadata({"huggingface": json.dumps(NAMES)})
    parquet.write_table(table, tmp_path / "a.parquet")
    feather.write_feather(table, tmp_path / "a.arrow")
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    for name in ("a.parquet", "a.arrow", "b.arrow", "a.parquet.gz"):
        found = read_table(tmp_path / name)
        assert found.columns == {"t": ["a", None], "y": [1, -1], "s": [np.float32(3.8), None]}, name
        assert str(found.columns["s"][0]) == "3.8"
        assert found.class_names == {"y": ("no", "yes")}
        assert len(found) == 2


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.xlsx", b"x", r"no kind of table that is read; legal: \.csv, .*\.feather, each also with \.gz"),
        ("a.json", b"[1, 2]", "row 1 is 1; a row is an object"),
        ("a.json", b'{"a": 1}', "no table; it must be a list of objects"),
        ("a.json", b'{"a": [1], "b": [1, 2]}', "no table; it must be a list of objects"),
        ("a.json", b'[{"a": 1', "not JSON"),
        ("a.json", b"\xff", "not UTF-8"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"line 2: not JSON \(.*is it cut off\?"),
        ("a.jsonl", b"", "holds no rows"),
        ("a.csv.gz", b"no gzip", "damaged or cut off"),
        ("a.csv.gz", gzip.compress(b"a,b\n1,2\n" * 100, mtime=0)[:-9], "damaged or cut off"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, name: str, content: bytes, error: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingError, match=error):
        read_table(tmp_path / name)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_damaged_parquet_or_arrow_file_is_refused(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (requirements-parquet.txt)")
    (tmp_path / name).write_bytes(b"PAR1 and then nothing")
    with pytest.raises(SettingError, match="damaged, or not what its name says"):
        read_table(tmp_path / name)


def test_without_pyarrow_the_requirement_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(SettingError, match=r"needs the package pyarrow.*pip install -r requirements-parquet\.txt"):
        read_table(tmp_path / "a.parquet")


def test_a_missing_column_names_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x:y\n1:2\n")
    with pytest.raises(SettingError, match=r"--text: .*a\.csv has no column 'x'; it has 'x:y'; --delimiter says"):
        read_table(tmp_path / "a.csv").column("x", "--text")
    assert read_table(tmp_path / "a.csv", delimiter=":").column("x", "--text") == ["1"]
