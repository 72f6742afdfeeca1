from pathlib import Path

import pytest

from data_utils.errors import SettingError
from mt_dnn.metrics_log import read_records

WHOLE = b'{"step": 1, "epoch": 1, "loss": NaN}\n{"step": 2, "epoch": 1, "score": 50.0, "evaluation": {}}\n'


@pytest.mark.parametrize("torn", [b"", b'{"step": 3, "epo', b'{"step": 3}'])
def test_a_torn_last_line_is_normal(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(WHOLE + torn)
    assert [record["step"] for record in read_records(path)] == [1, 2]
    assert read_records(path)[1]["score"] == 50.0
    assert read_records(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000, b"\xff\xfe", b"3", b"[1]", b'{"step": 1}', b'{"epoch": 1, "loss": 1.0}',
        b'{"step": 1, "epoch": "x"}', b'{"step": true, "epoch": 1}', b'{"step": 1, "epoch": 1, "loss": [1]}',
        b'{"epoch": 1, "step": 1' + b"0" * 400 + b"}", b'{"step": 1, "epoch": 4, "evaluation": {}}',
        b'{"step": 1, "epoch": 1, "score": null, "evaluation": {}}',
    ],
)  # fmt: skip
def test_any_other_damage_is_named_or_left_out(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(WHOLE + line + b"\n" + WHOLE)
    with pytest.raises(SettingError, match=r"metrics.jsonl is damaged: line 3 is no record; delete .* to run again"):
        read_records(path)
    assert len(read_records(path, strict=False)) == 4
