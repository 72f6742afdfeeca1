import json
import math
import os
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_utils.errors import SettingError, shown
from data_utils.json_file import json_bytes, read_json, write_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
CONTENT = st.dictionaries(st.text().filter(lambda key: key != "checksum"), VALUES, max_size=5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(CONTENT)
def test_what_is_written_is_read(tmp_path, content):
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content


def test_nan_comes_back(tmp_path):
    write_json(tmp_path / "a.json", {"score": math.nan})
    assert math.isnan(read_json(tmp_path / "a.json")["score"])


def test_a_file_made_by_hand_is_taken_as_it_is(tmp_path):
    (tmp_path / "a.json").write_text('{"b": 1}')
    assert read_json(tmp_path / "a.json") == {"b": 1}


def test_no_flipped_bit_changes_what_is_read(tmp_path):
    path, content = tmp_path / "a.json", {"score": 12.5, "names": ["x", "y"]}
    whole = json_bytes(content)
    for place in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with suppress(SettingError):  # the others are white space, or in the name of the checksum itself
            found = read_json(path)
            assert {key: found[key] for key in content} == content


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff{}", "not JSON"),
        (b"[]", "holds a list"),
        (b"[" * 100_000, "nested too deeply"),
        (json_bytes({"b": 1}).replace(b'"b": 1', b'"b": 2'), "checksum does not fit"),
        (json.dumps({"checksum": None}).encode(), "checksum does not fit"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, data, reason):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(SettingError, match=reason) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(SettingError, match="no regular file"):
        read_json(tmp_path / "a.json")


def test_a_missing_file_is_the_callers(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "a.json")


def test_shown_bounds_what_a_value_takes():
    bomb: list[object] = ["x"]
    for _ in range(40):
        bomb = [bomb] * 9
    assert len(shown(bomb)) < 2000
    assert len(shown("x" * 10_000)) < 200
    assert shown(["no", 3]) == "['no', 3]"
