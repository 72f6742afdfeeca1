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


def test_merge_keys_may_be_overridden(tmp_path: Path) -> None:
    content = read_yaml(write(tmp_path, "base: &b {a: 1, c: 2}\nx:\n  <<: *b\n  a: 3\n"))
    assert content["x"] == {"a": 3, "c": 2}


def test_missing_file_stays_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_yaml(tmp_path / "none.yml")
