"""A result is returned, and a run goes on, only for the data, task definition and encoder that it is of."""

import json
import os
import shutil

import pytest
from safetensors.torch import load_file, save_file

import train
from data_utils.errors import SettingError
from data_utils.json_file import read_json
from mt_dnn import run as run_module
from mt_dnn.encoder.source import hub_commit
from mt_dnn.identity import Identity, encoder_content, identity_of
from mt_dnn.interrupt import Interrupted
from mt_dnn.leftovers import leftovers
from mt_dnn.run import run
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_id import run_dir, run_id
from tests.edits import edit_json
from tests.mt_dnn.test_resume import SLOWLY, StopAt
from tests.tiny import make_encoder


@pytest.fixture
def own(tiny_run, tiny_task, tiny_encoder, tmp_path):
    """A short run on data, task definition and encoder of its own, which a test may change."""
    shutil.copytree(tiny_task, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    shutil.copytree(tiny_encoder, tmp_path / "bert")

    def make(**changes):
        places = {"data_dir": tmp_path / "data", "init_checkpoint": str(tmp_path / "bert")}
        return tiny_run(**{"epochs": 1, "task_def": tmp_path / "data" / "task_def.yml", **places, **changes})

    return make


def keep_look(file, write):
    """Write a file so that its size and times are what they were."""
    before = file.stat()
    write(file)
    assert file.stat().st_size == before.st_size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap_words(file):
    keep_look(file, lambda f: f.write_text(f.read_text().replace("good", "film", 1)))


def change_tsv(folder, split):
    swap_words(folder / "data" / f"toy_{split}.tsv")


def change_definition(folder):
    file = folder / "data" / "task_def.yml"
    file.write_text(file.read_text().replace("[ACC, MCC]", "[ACC, F1]"))


def reorder_labels(folder):
    file = folder / "data" / "task_def.yml"
    file.write_text(file.read_text().replace("  n_class: 2", '  n_class: 2\n  labels: ["1", "0"]'))


def change_weights(folder):
    """Other weights of the same shapes: equal headers, sizes and times."""
    weights = load_file(folder / "bert" / "model.safetensors")
    name = next(iter(weights))
    changed = {**weights, name: weights[name] + 1e-3}
    keep_look(folder / "bert" / "model.safetensors", lambda f: save_file(changed, f, metadata={"format": "pt"}))


def change_tokenizer(folder):
    file = folder / "bert" / "tokenizer.json"
    file.write_text(file.read_text().replace('"good"', '"goof"').replace('"bad"', '"good"'))


def change_config(folder):
    edit_json(folder / "bert" / "config.json", layer_norm_eps=1e-3)


CHANGES = [
    (lambda folder: change_tsv(folder, "train"), r"toy_train\.tsv"),
    (lambda folder: change_tsv(folder, "dev"), r"toy_dev\.tsv"),
    (change_definition, r"the task definition \(metric_meta: \['ACC', 'MCC'\] against \['ACC', 'F1'\]\)"),
    (reorder_labels, r"the task definition \(labels: None against \['1', '0'\]\)"),
    (change_weights, r"the encoder's model\.safetensors"),
    (change_tokenizer, r"the encoder's tokenizer\.json"),
    (change_config, r"the encoder's config\.json"),
]
NAMES = ["train", "dev", "metric", "labels", "weights", "tokenizer", "config"]


def assert_refused(config, said):
    files = {path: path.read_bytes() for path in run_dir(config).rglob("*") if path.is_file()}
    with pytest.raises(
        SettingError, match=rf"^{said} is not what .*seed=1 was run with; restore it, or delete "
    ) as caught:
        run(config)
    assert "\n" not in str(caught.value)
    assert files == {path: path.read_bytes() for path in run_dir(config).rglob("*") if path.is_file()}


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=NAMES)
def test_a_finished_run_is_returned_for_what_it_is_of_alone(own, tmp_path, change, said):
    config = own()
    result = run(config)
    saved = shutil.copytree(tmp_path, tmp_path.with_name("saved"), ignore=shutil.ignore_patterns("runs", "cache"))
    change(tmp_path)
    assert_refused(config, said)
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(saved)
    assert run(config, lambda _: pytest.fail("it was run again")) == result


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=NAMES)
def test_an_unfinished_run_does_not_go_on_with_something_else(own, tmp_path, change, said):
    config = own(**SLOWLY)
    with pytest.raises(Interrupted):
        run(config, StopAt(3))
    change(tmp_path)
    assert_refused(config, said)


def test_missing_files_have_lines_of_their_own(own, tmp_path):
    config = own()
    run(config)
    (tmp_path / "data" / "toy_dev.tsv").unlink()
    with pytest.raises(SettingError, match=r"data_dir: .*toy_dev\.tsv does not exist"):
        run(config)
    (tmp_path / "data" / "task_def.yml").unlink()
    with pytest.raises(SettingError, match=r"task_def: .*task_def\.yml does not exist"):
        run(config)


def test_a_run_without_a_record_of_its_contents_is_neither_returned_nor_gone_on_with(own):
    done, begun = own(), own(seed=2, **SLOWLY)
    run(done)
    with pytest.raises(Interrupted):
        run(begun, StopAt(3))
    for config in (done, begun):
        edit_json(run_dir(config) / "run.json", identity=None)
        with pytest.raises(
            SettingError, match=r"does not say what data and encoder it is of .*; delete .* to run again"
        ):
            run(config)
        (run_dir(config) / "run.json").unlink()
        with pytest.raises(SettingError, match="does not say what data"):
            run(config)
        for identity in (3, {"data": 7}, {"data": {}}):
            (run_dir(config) / "run.json").write_text(json.dumps({"identity": identity}))
            with pytest.raises(SettingError, match=r"identity is .* not in the form of this version; delete"):
                run(config)


def test_a_failed_run_without_a_checkpoint_starts_over_on_other_data(own, tmp_path):
    config = own()

    def fail(progress):
        raise ZeroDivisionError

    assert run(config, fail).status == "failed"
    change_tsv(tmp_path, "train")
    assert run(config).done
    assert read_json(run_dir(config) / "run.json")["identity"] == identity_of(config).as_dict()


def test_a_pruned_run_is_one_of_its_data(own, tmp_path):
    config = own(epochs=2)

    def give_up(epoch, score):
        return True

    assert run(config, prune=give_up).status == "pruned"
    change_tsv(tmp_path, "dev")
    for prune in (give_up, None):
        with pytest.raises(SettingError, match=r"^toy_dev\.tsv is not what"):
            run(config, prune=prune)


def test_two_encoders_with_one_folder_name_are_two_runs(own, tmp_path):
    results = {}
    for seed, name in enumerate("ab"):
        folder = make_encoder(tmp_path / name / "checkpoint-500", seed=seed)
        config = own(init_checkpoint=str(folder), epochs=2)
        assert config.encoder == f"{name}--checkpoint-500"
        results[name] = run(config)
    assert results["a"].run_id != results["b"].run_id
    assert results["a"].files["predictions.npz"] != results["b"].files["predictions.npz"]
    twin = make_encoder(tmp_path / "elsewhere" / "a" / "checkpoint-500", seed=7)
    config = own(init_checkpoint=str(twin), epochs=2)
    assert run_id(config) == results["a"].run_id
    with pytest.raises(SettingError, match=r"^the encoder's model\.safetensors is not what"):
        run(config)
    # The same contents elsewhere are the same encoder.
    copied = shutil.copytree(tmp_path / "a" / "checkpoint-500", tmp_path / "copy" / "a" / "checkpoint-500")
    assert run(own(init_checkpoint=str(copied), epochs=2)) == results["a"]


def test_data_that_change_while_the_run_starts_are_noticed(own, tmp_path, monkeypatch):
    def changed(config):
        data = opened(config)
        change_tsv(tmp_path, "train")
        return data

    opened = run_module.open_all
    monkeypatch.setattr(run_module, "open_all", changed)
    config = own()
    with pytest.raises(SettingError, match=r"toy_train\.tsv was changed while the run started"):
        run(config)
    assert not (run_dir(config) / "run.json").exists()


def test_a_finished_run_is_returned_without_opening_data_or_encoder(own, monkeypatch, capsys):
    config = own()
    result = run(config)
    for name in ("open_all", "Trainer"):
        monkeypatch.setattr(run_module, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    assert run(config) == result


def test_a_start_of_a_finished_run_sweeps_what_a_kill_left(own):
    config = own()
    run(config)
    directory = RunDirectory(run_dir(config))
    left = [directory.path / ".run.json.tmp-12-ab", directory.checkpoints / "last-00000003" / "state.pt"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with directory.lock():
        run(config)  # another process is at work
        assert all(path.exists() for path in left)
    run(config)
    assert leftovers(directory, done=True) == []
    assert not any(path.exists() for path in left)
    assert (directory.checkpoints / "best" / "model.safetensors").is_file()


def test_train_py_tells_in_one_line(own, tmp_path, capsys):
    config = own()
    file = tmp_path / "run.json"
    settings = {k: v for k, v in config.as_dict().items() if k != "method_settings" and v is not None}
    file.write_text(json.dumps({**settings, "betas": list(config.betas)}))
    assert train.main(["--config", str(file)]) == 0
    change_tsv(tmp_path, "dev")
    capsys.readouterr()
    assert train.main(["--config", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: toy_dev.tsv is not what ")


def test_an_encoder_of_the_hub_is_its_commit(tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "models--org--name" / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert encoder_content(folder) == {"commit": commit}
    plain = shutil.copytree(folder, tmp_path / "snapshots" / commit)
    assert hub_commit(plain) is None, "not in a cache of the Hub"
    assert list(encoder_content(plain)) == ["config.json"]
    one, other = (Identity({}, {}, {"commit": c * 40}) for c in "ab")
    assert one.difference(other) == f"the encoder (on the Hub: commit {'a' * 40} against {'b' * 40})"
    assert one.difference(Identity({}, {}, {"config.json": "x"})).endswith(f"commit {'a' * 40} against a local folder)")


def test_runs_on_different_dev_sets_of_one_task_differ_in_nothing():
    one = Identity({"mnli_train.tsv": "1", "mnli_matched_dev.tsv": "2"}, {"n_class": 3}, {"config.json": "3"})
    other = Identity({"mnli_train.tsv": "1", "mnli_mismatched_dev.tsv": "4"}, {"n_class": 3}, {"config.json": "3"})
    assert one.difference(other) == ""
    assert one.digest != other.digest


def test_one_task_and_encoder_are_hashed_once(own, monkeypatch):
    config = own()
    identity_of(config)
    monkeypatch.setattr("data_utils.file_hash.is_settled", lambda seen: True)
    first = identity_of(config)
    monkeypatch.setattr("data_utils.file_hash.sha256_of", lambda path: pytest.fail(f"{path} was read"))
    monkeypatch.setattr("mt_dnn.data.load_task_defs", lambda path: pytest.fail("it was parsed"))
    assert identity_of(config) == first
