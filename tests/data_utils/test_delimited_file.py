import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_utils.delimited_file import read_delimited
from data_utils.errors import SettingError

PATH = Path("a.tsv")
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=12)


def read(text: str, delimiter: str = "\t", quoting: str = "auto") -> dict[str, list[str]]:
    return read_delimited(text.encode(), PATH, delimiter, quoting)


ROWS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5)


@given(ROWS, st.sampled_from(",\t;"), st.sampled_from(["\n", "\r\n"]))
def test_what_a_csv_writer_writes_is_read_as_it_was(rows: list[tuple[str, str]], delimiter: str, end: str) -> None:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, lineterminator=end).writerows([("a", "b"), *rows])
    assert list(zip(*read(file.getvalue(), delimiter, "csv").values(), strict=True)) == rows


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("a\tb\n1\tx\n", ["x"]),  # no quote: both readings are one
        ('a\tb\n1\t"x"" y"\n2\tNA\n', ['x" y', "NA"]),  # doubled quotes: a CSV writer's
        ('a\tb\n1\t"x\ny"\n', ["x\ny"]),  # a line end inside quotes
        ('a\tb\n1\t"x\ty"\n', ["x\ty"]),
        ('"a"\t"b"\n"1"\t"x"\n', ["x"]),  # all in quotes, the header too
        ('a\tb\n1\t"He said.\n2\tshe "did"\n', ['"He said.', 'she "did"']),  # as in GLUE: quotes are text
        ('a\tb\n1\t"quoted" and more\n', ['"quoted" and more']),
    ],
)
def test_a_tab_separated_file_is_read_as_it_was_written(text: str, column: list[str]) -> None:
    assert read(text)["b"] == column
    assert read("\ufeff" + text.replace("\n", "\r\n").replace("x\r\ny", "x\ny"))["b"] == column


def test_a_quoted_field_behind_a_space_is_refused() -> None:
    for text in ('a, b\n"x, y", "z"\n', 'a,b\n"x\n""q""",  "z"\n'):
        with pytest.raises(SettingError, match=r"a\.csv: line [23]: a space before a quote; take it out"):
            read_delimited(text.encode(), Path("a.csv"), ",")
    assert read_delimited(b'a, b\nx, "z"\n', Path("a.csv"), ",", "none") == {"a": ["x"], " b": [' "z"']}
    doubled = b'a,b\n"he said, ""x"" and, """,1\n" ""y""",2\n'
    assert read_delimited(doubled, Path("a.csv"), ",")["a"] == ['he said, "x" and, "', ' "y"']


def test_quotes_that_could_be_meant_either_way_are_refused_until_it_is_said() -> None:
    text = 'a\tb\n1\t"hello"\n'
    with pytest.raises(SettingError, match=r"a\.tsv: 1 texts stand in quotes, such as '\"hello\"'; give --quoting csv"):
        read(text)
    assert read(text, quoting="csv")["b"] == ["hello"]
    assert read(text, quoting="none")["b"] == ['"hello"']


@pytest.mark.parametrize(
    ("text", "delimiter", "error"),
    [
        ("a,b\n1,x\n2\n", ",", r"line 3: 1 columns instead of 2; the row is cut off"),
        ("a,b\n1,x,y\n", ",", "line 2: 3 columns instead of 2"),
        ('a,b\n1,"x\n', ",", "line 2: unexpected end of data; quotes inside a quoted field are doubled"),
        ('a,b\n1,"x" y\n', ",", "line 2: ',' expected after '\"'"),
        ("a,b\n\n1,x\n", ",", "line 2 is empty"),
        ("a,b\n1,x\ry\n", ",", "line 2: a carriage return outside quotes; save the file with LF or CRLF line ends"),
        ("a,b\r1,x\r", ",", "line 1: a carriage return outside quotes; save the file with LF or CRLF line ends"),
        ('a;b\n1;"x" and more\n', ",", "line 1 has no ',', but ';'; give --delimiter ';'"),
        ("a\tb\n1\tx\n", ",", r"line 1 has no ',', but '\\t'; give --delimiter '\\t'"),
        ("a,a\n1,x\n", ",", "line 1: two columns are called 'a'"),
        ("a,b\n", ",", "holds no rows under a header"),
        ("", ",", "holds no rows under a header"),
        ("a\tb\n1\n", "\t", "line 2: 1 columns instead of 2"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(text: str, delimiter: str, error: str) -> None:
    with pytest.raises(SettingError, match=error):
        read(text, delimiter)


def test_a_file_that_is_not_utf8_names_the_line() -> None:
    with pytest.raises(SettingError, match=r"line 2: not UTF-8 \(byte 0xe9"):
        read_delimited("a,b\n1,\xe9\n".encode("latin-1"), PATH, ",")


def test_a_long_text_is_read() -> None:
    assert read(f"a,b\n1,{'x' * 200_000}\n", ",")["b"] == ["x" * 200_000]
