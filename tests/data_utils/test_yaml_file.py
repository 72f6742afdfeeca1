import os
from pathlib import Path

import pytest

from data_utils.errors import SettingError
from data_utils.yaml_file import read_yaml


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "settings.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_numbers_without_a_dot_are_floats(tmp_path: Path) -> None:
    content = read_yaml(write(tmp_path, "a: 1e-4\nb: -2E3\nc: 1.5e-3\nd: 10\ne: 1e\nf: e5\n"))
    assert content == {"a": 1e-4, "b": -2000.0, "c": 1.5e-3, "d": 10, "e": "1e", "f": "e5"}
    assert isinstance(content["a"], float)


def test_whole_numbers_are_what_they_look_like(tmp_path: Path) -> None:
    content = read_yaml(write(tmp_path, "a: 0\nb: -10\nc: 0x10\nd: '010'\ne: 08\nf: 0.5\ng: 1_000\nh: .inf\n"))
    assert content == {"a": 0, "b": -10, "c": 16, "d": "010", "e": "08", "f": 0.5, "g": 1000, "h": float("inf")}


def test_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path, "# nothing\n")) == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: key 'a' is given twice (first on line 1)"),
        ("x:\n  a: 1\n  a: 1\n", "line 3: key 'a' is given twice (first on line 2)"),
        ("- a\n- b\n", "the top level is a list"),
        ("just text\n", "the top level is a str"),
        ("1: a\n", "key 1 is a int; quote it"),
        ("a: [1, 2\n", "line 2: not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "line 1: not valid YAML"),
        (b"a: \xff\xfe\n", "not valid YAML"),
        ("a: 2001-99-99\n", "not valid YAML"),
        ("? [a]\n: b\n", "not valid YAML"),
        ("epochs: 1\nseed: 010\n", "line 2: '010' is another number to YAML (base 8 or 60)"),
        ("a: -0_7\n", "line 1: '-0_7' is another number to YAML (base 8 or 60)"),
        ("a: [1:30]\n", "line 1: '1:30' is another number to YAML (base 8 or 60)"),
        ("a: 1:30.5\n", "line 1: '1:30.5' is another number to YAML (base 8 or 60)"),
    ],
)
def test_bad_files_are_named_with_the_reason(tmp_path: Path, text: str | bytes, reason: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingError) as caught:
        read_yaml(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert reason in message
    assert "\n" not in message


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ALIASES + "n_class: *j\n", "more than 100,000 values"),  # half a kilobyte that stands for 9**10
        (MERGES, "more than 100,000 values"),
        ("a: &a [*a]\n", "more than 100,000 values"),
        ("a: &a {b: *a}\n", "more than 100,000 values"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: " + "x" * (1 << 20), "1,048,579 bytes; a file of settings has at most 1,048,576"),
    ],
)
def test_files_that_expand_without_end_are_one_line(tmp_path: Path, text: str, reason: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingError, match=reason) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 300


def test_ordinary_aliases_are_read(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path, "a: &a [1, 2]\nb: *a\nc: [*a, *a]\n"))["c"] == [[1, 2], [1, 2]]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yml")
    with pytest.raises(SettingError, match="no regular file"):
        read_yaml(tmp_path / "a.yml")


def test_texts_are_read_as_they_are_written(tmp_path: Path) -> None:
    written = ["01", "-0", "12:30", "no", "on", "2001-01-01", "null", "~", "1.0", "1e3", "0x1F", "1_000", ".inf", "+1"]
    path = write(tmp_path, f"a: {{names: [{', '.join(written)}, '02', \"x\"], other: [1, no]}}\nb: {{names: 1}}\n")
    content = read_yaml(path, texts=("names",))
    assert content["a"] == {"names": [*written, "02", "x"], "other": [1, False]}
    assert content["b"] == {"names": 1}
    merged = read_yaml(write(tmp_path, "x: &x {names: &n [01]}\ny: {<<: *x, k: 1}\nz: {names: *n}\n"), texts=("names",))
    assert merged == {"x": {"names": ["01"]}, "y": {"names": ["01"], "k": 1}, "z": {"names": ["01"]}}


def test_merge_keys_may_be_overridden(tmp_path: Path) -> None:
    content = read_yaml(write(tmp_path, "base: &b {a: 1, c: 2}\nx:\n  <<: *b\n  a: 3\n"))
    assert content["x"] == {"a": 3, "c": 2}


def test_missing_file_stays_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_yaml(tmp_path / "none.yml")
