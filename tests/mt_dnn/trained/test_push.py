"""Uploading an exported folder, to a stand-in for the Hub on this machine."""

import huggingface_hub
import pytest
from huggingface_hub import constants

from data_utils.errors import SettingError
from mt_dnn.trained.export import check_repository, main, push
from tests.hub_stand_in import hub_stand_in


@pytest.fixture
def hub(monkeypatch):
    with hub_stand_in() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


def test_an_exported_run_is_pushed_with_every_file(hub, tiny_trained, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(tiny_trained["cola"]), str(out), "--push", "lab/cola-pats", "--private"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(out), f"{hub.url}/lab/cola-pats/commit/{'0' * 40}"]
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert "model.safetensors" in files
    assert hub.repositories == {"lab/cola-pats": files}
    assert hub.private == {"lab/cola-pats": True}
    card = huggingface_hub.ModelCard(hub.repositories["lab/cola-pats"]["README.md"].decode())
    assert "model-index" in card.data.to_dict()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "config.json").write_text("{}")
    return tmp_path / "exported"


def test_a_repository_that_is_there_is_taken(hub, folder):
    hub.repositories["lab/old"] = {"notes.md": b"mine"}
    push(folder, "lab/old")
    assert hub.repositories["lab/old"] == {"notes.md": b"mine", "config.json": b"{}"}
    push(folder, "mine")  # of the account's own
    assert hub.repositories["me/mine"] == {"config.json": b"{}"}
    assert not hub.private["me/mine"]


@pytest.mark.parametrize("fault", ["account", "refusal", "network"])
def test_a_push_that_fails_is_one_line_and_keeps_the_folder(hub, folder, monkeypatch, fault):
    if fault == "account":
        monkeypatch.setenv("HF_TOKEN", "another")
    elif fault == "refusal":
        hub.refused = "/commit/main"
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SettingError) as caught:
        push(folder, "lab/new")
    told = str(caught.value)
    assert told.startswith("--push lab/new: ")
    assert {"account": "401", "refusal": "no quota left", "network": "offline mode"}[fault] in told
    assert told.endswith(f"{folder} is whole: log in (hf auth login) or set HF_TOKEN, and upload it with: "
                         f"hf upload lab/new {folder}")  # fmt: skip
    assert "\n" not in told
    assert [path.name for path in folder.iterdir()] == ["config.json"]


@pytest.mark.parametrize("name", ["a/b/c", "lab/", "-x", "a b"])
def test_a_name_that_cannot_be_is_refused_before_the_work(tiny_trained, tmp_path, capsys, name):
    with pytest.raises(SettingError, match=f"^--push {name}: .*"):
        check_repository(name)
    assert main([str(tiny_trained["cola"]), str(tmp_path / "out"), f"--push={name}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: --push {name}: ")
    assert not (tmp_path / "out").exists()


def test_private_alone_says_nothing(tmp_path, capsys):
    assert main([str(tmp_path), str(tmp_path / "out"), "--private"]) == 2
    assert capsys.readouterr().err == (
        "error: --private is given without --push; name the repository or leave --private out\n"
    )
