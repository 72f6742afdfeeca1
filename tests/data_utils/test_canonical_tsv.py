import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_utils.canonical_tsv import iterate_canonical, iterate_lines, read_canonical, write_canonical
from data_utils.errors import SettingError
from data_utils.task_def import TaskDef

# Every character that UTF-8 can hold, but those that end a field or a row.
TEXT = st.text(st.characters(exclude_characters="\t\r\n", exclude_categories=["Cs"]), max_size=30)
UID = st.text(st.characters(exclude_characters="\t\r\n\0", exclude_categories=["Cs"]), max_size=8)
TRAPS = [
    "NA",
    "null",
    "nan",
    "",
    '"',
    'he said "no',
    "'",
    " leading and trailing ",
    "a\u2028b",
    "a\u0085b",
    "a\x0bb\x0c\x1c\x1d\x1e",
    "\u2029",
    "\ufeffword",
    "日本語 🙂",
    "\x00",
    "\\t",
    "#",
]


def test_bytes_are_mt_dnns(tmp_path: Path) -> None:
    write_canonical(tmp_path / "a.tsv", ["0", "x1"], ["yes", "0.50"], ['said "hi', "é"], ["NA", ""])
    assert (tmp_path / "a.tsv").read_bytes() == '0\tyes\tsaid "hi\tNA\nx1\t0.50\té\t\n'.encode()
    write_canonical(tmp_path / "b.tsv", ["0"], ["1"], ["one"])
    assert (tmp_path / "b.tsv").read_bytes() == b"0\t1\tone\n"


def test_traps_survive(tmp_path: Path, pair_task: TaskDef) -> None:
    path = tmp_path / "a.tsv"
    n = len(TRAPS)
    write_canonical(path, [str(i) for i in range(n)], ["no"] * n, TRAPS, TRAPS[::-1])
    rows = read_canonical(path, pair_task)
    assert rows.premise == TRAPS
    assert rows.hypothesis == TRAPS[::-1]
    assert rows.labels.tolist() == [0] * n
    assert rows.labels.dtype == np.int64
    assert len(rows) == n


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(UID, st.sampled_from(["no", "yes"]), TEXT, TEXT), min_size=1, max_size=8))
def test_any_text_round_trips(tmp_path: Path, pair_task: TaskDef, rows: list[tuple[str, str, str, str]]) -> None:
    path = tmp_path / "a.tsv"
    uids, labels, premise, hypothesis = (list(column) for column in zip(*rows, strict=True))
    write_canonical(path, uids, labels, premise, hypothesis)
    got = read_canonical(path, pair_task)
    # A BOM belongs to a file, not to its first word: the one case that is read as something else than was written.
    assert got.uids == [uids[0].removeprefix("\ufeff"), *uids[1:]]
    assert got.premise == premise
    assert got.hypothesis == hypothesis
    assert got.labels.tolist() == [("no", "yes").index(label) for label in labels]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_line_ends_bom_and_last_line(tmp_path: Path, single_task: TaskDef, end: str, last: bool, bom: bytes) -> None:
    text = end.join(["0\t1\ta b", "1\t0\t", "2\t2\tc\u2028d"]) + (end if last else "")
    (tmp_path / "a.tsv").write_bytes(bom + text.encode())
    rows = read_canonical(tmp_path / "a.tsv", single_task)
    assert rows.uids == ["0", "1", "2"]
    assert rows.premise == ["a b", "", "c\u2028d"]
    assert rows.hypothesis is None
    assert rows.labels.tolist() == [1, 0, 2]


def test_scores_are_float32(tmp_path: Path, score_task: TaskDef) -> None:
    (tmp_path / "a.tsv").write_text("0\t5.000\ta\tb\n1\t-1.25\ta\tb\n2\t3\ta\tb\n")
    rows = read_canonical(tmp_path / "a.tsv", score_task)
    assert rows.labels.dtype == np.float32
    assert rows.labels.tolist() == [5.0, -1.25, 3.0]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"1\tyes\ta", "3 columns instead of 4 (uid, label, premise, hypothesis)"),
        (b"1\tyes\ta\tb\tc", "5 columns instead of 4"),
        (b"", "1 columns instead of 4"),
        (b"1\tmaybe\ta\tb", "label 'maybe' is none of no, yes"),
        (b"1\t1\ta\tb", "label '1' is none of no, yes"),
        (b"1\tyes\ta\xff\tb", "not UTF-8 (byte 0xff at position 7)"),
        (b"a\0b\tyes\ta\tb", "uid"),
        (b"u" * 300 + b"\tyes\ta\tb", "uid"),
    ],
)
def test_malformed_rows_name_file_line_and_reason(tmp_path: Path, pair_task: TaskDef, row: bytes, reason: str) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b"0\tno\ta\tb\n" + row + b"\n2\tno\ta\tb\n")
    with pytest.raises(SettingError) as caught:
        read_canonical(path, pair_task)
    assert str(caught.value).startswith(f"{path}: line 2: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize("label", ["3", "-1", "1.0", "", "x", "²", "１", "1_0"])
def test_class_numbers_are_checked(tmp_path: Path, single_task: TaskDef, label: str) -> None:
    (tmp_path / "a.tsv").write_text(f"0\t{label}\ta\n", encoding="utf-8")
    with pytest.raises(SettingError, match="is none of 0, 1, 2"):
        read_canonical(tmp_path / "a.tsv", single_task)


@pytest.mark.parametrize("label", ["nan", "inf", "-inf", "1e39", "-1e39", "1e400", "", "x", "0x1"])
def test_scores_are_numbers_that_float32_holds(tmp_path: Path, score_task: TaskDef, label: str) -> None:
    (tmp_path / "a.tsv").write_text(f"0\t{label}\ta\tb\n")
    with pytest.raises(SettingError, match="is not a number"):
        read_canonical(tmp_path / "a.tsv", score_task)


def test_an_empty_file_is_refused(tmp_path: Path, single_task: TaskDef) -> None:
    (tmp_path / "a.tsv").write_bytes(b"")
    with pytest.raises(SettingError, match="holds no rows"):
        read_canonical(tmp_path / "a.tsv", single_task)


def test_labels_too_large_to_hold_are_refused(tmp_path: Path, score_task: TaskDef, single_task: TaskDef) -> None:
    for label, task, reason in (
        ("1e39", score_task, "label '1e39' is not a number that float32 holds"),
        ("-1e300", score_task, "is not a number that float32 holds"),
        ("9" * 5000, single_task, "is none of 0, 1, 2"),
    ):
        (tmp_path / "a.tsv").write_text(f"0\t{label}\ta" + ("\tb\n" if task is score_task else "\n"))
        with pytest.raises(SettingError, match=f"line 1: .*{reason}") as caught:
            read_canonical(tmp_path / "a.tsv", task)
        assert len(str(caught.value)) < 400


def test_a_header_is_told_as_one(tmp_path: Path, single_task: TaskDef) -> None:
    (tmp_path / "a.tsv").write_text("id\tlabel\ttext\n0\t1\ta\n")
    with pytest.raises(SettingError, match=r"line 1: label 'label' is none of .*; a canonical file has no header$"):
        read_canonical(tmp_path / "a.tsv", single_task)


def test_many_labels_are_not_all_listed(tmp_path: Path, single_task: TaskDef) -> None:
    (tmp_path / "a.tsv").write_text("0\tx\ta\n")
    with pytest.raises(SettingError, match=r"is none of 0, 1, .*, 29, \.\.\. \(1000 in all\)"):
        read_canonical(tmp_path / "a.tsv", dataclasses.replace(single_task, n_class=1000))


@pytest.mark.parametrize("end", ["\n\n", "\n\n\n\n", "\r\n\r\n", "\n\r\n"])
def test_empty_lines_at_the_end_are_no_rows(tmp_path: Path, single_task: TaskDef, end: str) -> None:
    (tmp_path / "a.tsv").write_bytes(b"0\t1\ta\n1\t0\t" + end.encode())
    assert read_canonical(tmp_path / "a.tsv", single_task).uids == ["0", "1"]
    (tmp_path / "a.tsv").write_bytes(b"0\t1\ta" + end.encode() + b"1\t0\tb\n")
    with pytest.raises(SettingError, match="line 2: 1 columns instead of 3"):
        read_canonical(tmp_path / "a.tsv", single_task)
    (tmp_path / "a.tsv").write_bytes(end.encode())
    with pytest.raises(SettingError, match="holds no rows"):
        read_canonical(tmp_path / "a.tsv", single_task)


def test_texts_that_a_csv_writer_quoted_are_warned_about_once(
    tmp_path: Path, single_task: TaskDef, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.tsv"
    texts = ["plain", 'A "red" box', '"all"', "x"]
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([i, 1, text] for i, text in enumerate(texts))
    pieces = list(iterate_canonical(path, single_task, 1))
    assert [piece.premise for piece in pieces] == [["plain"], ['"A ""red"" box"'], ['"""all"""'], ["x"]]  # as it stands
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{path}: 2 rows, the first on line 2, look quoted by a CSV writer; ")


@pytest.mark.parametrize(
    "text", ['"red"', 'a "red" box', '""', '"""', '"a" and "b"', '""a""', '"a ""b', 'a ""b""', '""a']
)
def test_quotes_of_ordinary_text_give_no_warning(
    tmp_path: Path, single_task: TaskDef, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    write_canonical(tmp_path / "a.tsv", ["0"], ["1"], [text])
    assert read_canonical(tmp_path / "a.tsv", single_task).premise == [text]
    assert not caplog.records


@pytest.mark.parametrize("text", ["a\tb", "a\nb", "a\rb"])
def test_what_the_format_cannot_hold_is_not_written(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingError, match=r"row 2: .* holds a tab or line end"):
        write_canonical(tmp_path / "a.tsv", ["0", "1"], ["0", "0"], ["fine", text])
    assert not list(tmp_path.iterdir())


def test_columns_of_different_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        write_canonical(tmp_path / "a.tsv", ["0", "1"], ["0"], ["a", "b"])


def test_lines_are_numbered_and_only_lf_ends_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufeffa\u2028b\r\nc\rd\x85\n\n".encode())
    assert list(iterate_lines(tmp_path / "a")) == [(1, "a\u2028b"), (2, "c\rd\x85"), (3, "")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2\t1", "line 2: 2 columns instead of 3 (uid, label, premise); the row is cut off, or without its tabs"),
        ("2", "line 2: 1 columns instead of 3 (uid, label, premise); the row is cut off, or without its tabs"),
        ("2\t1\ta\tb", "line 2: 4 columns instead of 3 (uid, label, premise); a sentence holds no tab"),
    ],
)
def test_a_row_cut_off_is_told_from_one_with_a_tab_too_many(
    tmp_path: Path, single_task: TaskDef, line: str, reason: str
) -> None:
    (tmp_path / "a.tsv").write_text(f"1\t1\ta\n{line}")
    with pytest.raises(SettingError) as caught:
        read_canonical(tmp_path / "a.tsv", single_task)
    assert str(caught.value).endswith(reason)
