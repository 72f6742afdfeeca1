import errno
import hashlib
import json
import os

import pytest
import torch
from torch import nn

from data_utils.errors import SettingError
from mt_dnn import checkpoint


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))


def _state(value: float) -> dict:
    return {"tensor": torch.full((3,), value, dtype=torch.float64), "text": "x", "pair": (1, 2.5), "none": None}


def test_round_trip_is_exact(tmp_path, network):
    checkpoint.save_last(tmp_path / "c", 7, network, _state(0.1))
    loaded = checkpoint.load_last(tmp_path / "c")
    assert loaded.step == 7
    assert all(torch.equal(loaded.model[k], v) for k, v in network.state_dict().items())
    assert torch.equal(loaded.state["tensor"], _state(0.1)["tensor"])
    assert loaded.state["pair"] == (1, 2.5)


def test_only_the_newest_stays(tmp_path, network):
    for step in (1, 2, 10):
        checkpoint.save_last(tmp_path, step, network, _state(step))
    assert [p.name for p in tmp_path.iterdir()] == ["last-00000010"]
    assert checkpoint.load_last(tmp_path).step == 10


def test_nothing_to_load(tmp_path):
    assert checkpoint.load_last(tmp_path / "missing") is None


@pytest.mark.parametrize("place", ["data_utils.json_file.read_regular", "mt_dnn.checkpoint.sha256_of"])
def test_a_machine_in_trouble_is_no_reason_to_delete_a_checkpoint(tmp_path, network, monkeypatch, place):
    checkpoint.save_last(tmp_path, 3, network, _state(1))

    def too_many(path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr(place, too_many)
    with pytest.raises(SettingError, match=r"last-00000003 cannot be read: .*Too many open files; .*ulimit -n") as told:
        checkpoint.load_last(tmp_path)
    assert "delete" not in str(told.value)


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "sha256.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_damage_is_named_in_one_line(tmp_path, network, name, harm):
    checkpoint.save_last(tmp_path, 3, network, _state(1))
    file = tmp_path / "last-00000003" / name
    content = bytearray(file.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 0x10
        file.write_bytes(content)
    elif harm == "truncate":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.unlink()
    with pytest.raises(SettingError) as caught:
        checkpoint.load_last(tmp_path)
    assert "last-00000003" in str(caught.value)
    assert "delete" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "null", "3", "{}", '{"model.safetensors": 3}', "[" * 100_000, "\0"])
def test_sums_of_another_form_are_one_line(tmp_path, network, content):
    checkpoint.save_last(tmp_path, 3, network, _state(1))
    (tmp_path / "last-00000003" / "sha256.json").write_text(content)
    with pytest.raises(SettingError, match=r"last-00000003.* is damaged.*delete") as caught:
        checkpoint.load_last(tmp_path)
    assert "\n" not in str(caught.value)


def test_checkpoints_of_earlier_versions_are_read(tmp_path, network):
    checkpoint.save_last(tmp_path, 3, network, _state(1))
    sums = tmp_path / "last-00000003" / "sha256.json"
    sums.write_text(json.dumps({name: value for name, value in json.loads(sums.read_text()).items() if "." in name}))
    assert checkpoint.load_last(tmp_path).step == 3


@pytest.mark.parametrize("failing", ["save_file", "torch.save", "rename"])
def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, network, monkeypatch, failing):
    checkpoint.save_last(tmp_path, 1, network, _state(1))

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "save_file":
        monkeypatch.setattr(checkpoint, "save_file", full)
    elif failing == "torch.save":
        monkeypatch.setattr(torch, "save", full)
    else:
        monkeypatch.setattr("pathlib.Path.rename", full)
    with pytest.raises(SettingError, match=r"No space left on device.*free space"):
        checkpoint.save_last(tmp_path, 2, network, _state(2))
    monkeypatch.undo()
    assert checkpoint.load_last(tmp_path).step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last-00000001"]


def test_a_half_written_checkpoint_is_not_taken_for_one(tmp_path, network):
    checkpoint.save_last(tmp_path, 1, network, _state(1))
    (tmp_path / ".last-00000002.tmp").mkdir()
    (tmp_path / ".last-00000002.tmp" / "model.safetensors").write_bytes(b"half")
    assert checkpoint.load_last(tmp_path).step == 1
    checkpoint.drop_last(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_code_in_a_state_file_is_not_executed(tmp_path, network):
    class Harm:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harm"),))

    checkpoint.save_last(tmp_path / "c", 1, network, {"harm": Harm()})
    with pytest.raises(SettingError, match="damaged"):
        checkpoint.load_last(tmp_path / "c")
    assert not (tmp_path / "harm").exists()


def test_weights_round_trip_and_errors(tmp_path, network):
    (tmp_path / "best").mkdir()
    left = tmp_path / "best" / ".model.safetensors.tmp"  # by a kill
    left.touch(mode=0o600)
    digest = checkpoint.save_weights(tmp_path, "best", network)
    file = checkpoint.weights_file(tmp_path, "best")
    (tmp_path / "other").touch()
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert file.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert not left.exists()
    loaded = checkpoint.load_weights(tmp_path, "best")
    assert all(torch.equal(loaded[k], v) for k, v in network.state_dict().items())
    with pytest.raises(SettingError, match="last"):
        checkpoint.load_weights(tmp_path, "last")


def test_weights_wait_for_the_disk_only_when_they_are_named(tmp_path, network, monkeypatch):
    def broken(_descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    metrics = tmp_path / "metrics.jsonl"
    monkeypatch.setattr(os, "fsync", broken)
    checkpoint.sync(metrics, tmp_path)  # there is nothing yet
    checkpoint.save_weights(tmp_path, "best", network)
    with pytest.raises(SettingError, match=r"^cannot write .*best/model.safetensors \(Input/output error\); .*intact$"):
        checkpoint.sync(metrics, tmp_path)
    metrics.touch()
    with pytest.raises(SettingError, match=r"^cannot write .*metrics.jsonl \(Input/output error\)"):
        checkpoint.sync(metrics, tmp_path)
