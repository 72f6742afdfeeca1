"""Trained models are loaded as they were trained: their own weights, task definition and tokenizer, bytes checked."""

import shutil
import stat

import pytest
import torch
import yaml

import predict
from data_utils.errors import SettingError
from data_utils.json_file import read_json
from data_utils.task_def import load_task_defs, to_settings
from experiments.glue.glue_prepro import GLUE_TASK_DEF
from mt_dnn.data import open_datasets
from mt_dnn.run import run
from mt_dnn.run_id import run_dir
from mt_dnn.trained.export import export
from mt_dnn.trained.load import load_exported, load_run, read_run
from mt_dnn.trained.prediction import logits_of
from tests.edits import edit_json, flip

SHARES = (0.0, 0.01, 0.2, 0.5, 0.8, 1.0)


@pytest.fixture
def run_folder(tiny_trained, tmp_path):
    return shutil.copytree(tiny_trained["cola"], tmp_path / "seed=1")


@pytest.fixture(scope="module")
def exported_once(tiny_trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "cola"
    export(read_run(tiny_trained["cola"]), folder)
    return folder


@pytest.fixture
def exported(exported_once, tmp_path):
    return shutil.copytree(exported_once, tmp_path / "cola")


def answer(capsys, *arguments):
    """Exit status, standard output and lines on standard error of predict.py."""
    status = predict.main([*map(str, arguments), "--device", "cpu"])
    captured = capsys.readouterr()
    return status, captured.out, captured.err.splitlines()


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("epoch", ["best", "last"])
def test_a_flipped_bit_in_kept_weights_is_named(run_folder, epoch, share):
    flip(run_folder / "checkpoints" / epoch / "model.safetensors", share)
    with pytest.raises(
        SettingError, match=rf"{epoch}/model\.safetensors is damaged or of another run .*; delete .* run"
    ):
        load_run(read_run(run_folder), epoch, "cpu")


def test_weights_of_another_epoch_run_or_result_are_not_loaded(run_folder, tiny_trained, tiny_run, capsys):
    best, last = (run_folder / "checkpoints" / name / "model.safetensors" for name in ("best", "last"))
    content = best.read_bytes()
    shutil.copy(last, best)
    with pytest.raises(SettingError, match=r"best/model\.safetensors is damaged or of another run"):
        load_run(read_run(run_folder), "best", "cpu")
    status, out, errors = answer(capsys, run_folder, read_run(run_folder).config.data_dir / "cola_dev.tsv")
    assert (status, out, len(errors)) == (2, "", 1)
    assert "best/model.safetensors is damaged or of another run" in errors[0]
    best.write_bytes(content)
    files = read_json(run_folder / "result.json")["files"]
    edit_json(run_folder / "result.json", files={k: v for k, v in files.items() if "best" not in k})
    with pytest.raises(SettingError, match=r"best/model\.safetensors is not of this run"):
        load_run(read_run(run_folder), "best", "cpu")


def test_a_result_of_another_run_in_the_folder_is_refused(run_folder, tiny_trained):
    shutil.copy(tiny_trained["stsb"] / "result.json", run_folder / "result.json")
    with pytest.raises(SettingError, match=r"result\.json is of another run than run\.json \(task stsb, not cola\)"):
        read_run(run_folder)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "task_def.yml", "sha256.json"],
)
def test_a_flipped_bit_in_an_exported_folder_is_named(exported, name, share):
    flip(exported / name, share)
    with pytest.raises(SettingError, match=name.replace(".", r"\.")) as caught:
        load_exported(exported, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("harm", ["remove", "empty", "add"])
def test_an_exported_folder_with_other_files_is_refused(exported, harm):
    file = exported / ("vocab.txt" if harm == "add" else "tokenizer_config.json")
    file.unlink() if harm == "remove" else file.write_text("")
    with pytest.raises(SettingError, match=rf"{file.name} is not what was exported .*; export it again"):
        load_exported(exported, "cpu")


def test_an_exported_folder_from_before_is_loaded_with_a_warning(exported, caplog):
    (exported / "sha256.json").unlink()
    assert load_exported(exported, "cpu").task_def.name == "cola"
    assert "has no sha256.json (an earlier version exported it)" in caplog.text


def own_definition(run_folder, path, **changes):
    """Write the run's definition of cola to a file and let the run name it; returns the file."""
    settings = {**to_settings(load_task_defs(GLUE_TASK_DEF)["cola"]), **changes}
    path.write_text(yaml.safe_dump({"cola": settings}), encoding="utf-8")
    config = read_json(run_folder / "run.json")["config"]
    edit_json(run_folder / "run.json", config=config | {"task_def": str(path)})
    return path


def test_labels_that_were_reordered_after_training_turn_no_prediction(tiny_run, tiny_task, tmp_path, capsys):
    file = tmp_path / "task_def.yml"
    text = (tiny_task / "task_def.yml").read_text().replace("  n_class: 2", '  n_class: 2\n  labels: ["0", "1"]')
    file.write_text(text)
    config = tiny_run(task_def=file, epochs=6)
    run(config)
    dev = config.data_dir / "toy_dev.tsv"
    before = answer(capsys, run_dir(config), dev)
    assert before[0] == 0
    file.write_text(text.replace('["0", "1"]', '["1", "0"]'))
    said = (
        "is not what .*seed=1 was trained with: the task definition \\(labels: \\['0', '1'\\] against \\['1', '0'\\]\\)"
    )
    with pytest.raises(SettingError, match=said):
        read_run(run_dir(config))
    status, out, errors = answer(capsys, run_dir(config), dev)
    assert (status, out, len(errors)) == (2, "", 1)
    other = file.rename(tmp_path / "other.yml")
    with pytest.raises(SettingError, match=r"other\.yml is not what .* was trained with"):
        read_run(run_dir(config), other)
    assert answer(capsys, run_dir(config), dev) == before, "the file is gone: the run has its own"
    export(read_run(run_dir(config)), tmp_path / "out")
    assert read_json(tmp_path / "out" / "config.json")["id2label"] == {"0": "0", "1": "1"}
    assert answer(capsys, tmp_path / "out", dev)[1] == before[1]


def test_a_definition_file_is_needed_only_by_runs_of_earlier_versions(run_folder, tmp_path):
    file = own_definition(run_folder, tmp_path / "mine.yml")
    expected = load_task_defs(file)["cola"]
    assert read_run(run_folder).task_def == expected
    file.write_text(
        "rte: " + yaml.safe_dump(to_settings(load_task_defs(GLUE_TASK_DEF)["rte"]), default_flow_style=True)
    )
    assert read_run(run_folder).task_def == expected, "the file has other tasks now"
    with pytest.raises(SettingError, match=r"mine\.yml does not define cola; it defines rte"):
        read_run(run_folder, file)
    file.unlink()
    assert read_run(run_folder).task_def == expected
    edit_json(run_folder / "run.json", identity=None)
    with pytest.raises(
        SettingError, match=r"mine\.yml, which the run was trained with, does not exist; give --task_def"
    ):
        read_run(run_folder)
    assert read_run(run_folder, GLUE_TASK_DEF).task_def == expected


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors"])
def test_the_encoders_tokenizer_and_configuration_must_be_the_runs(tiny_run, tiny_encoder, tmp_path, name):
    encoder = shutil.copytree(tiny_encoder, tmp_path / "bert")
    config = tiny_run(init_checkpoint=str(encoder), epochs=1)
    run(config)
    if name == "tokenizer.json":
        (encoder / name).write_text((encoder / name).read_text().replace('"good"', '"goof"'))
    else:
        flip(encoder / name, 0.9)
    if name == "model.safetensors":  # the run has weights of its own
        load_run(read_run(run_dir(config)), "best", "cpu")
        return
    with pytest.raises(
        SettingError, match=rf"the encoder's {name} in .*bert is not what .* was trained with; restore it"
    ):
        load_run(read_run(run_dir(config)), "best", "cpu")


def test_another_commit_of_an_encoder_of_the_hub_is_told(run_folder, caplog):
    identity = read_json(run_folder / "run.json")["identity"]
    edit_json(run_folder / "run.json", identity=identity | {"encoder": {"commit": "a" * 40}})
    load_run(read_run(run_folder), "best", "cpu")
    assert f"the encoder (on the Hub: commit {'a' * 40} against a local folder) is not what" in caplog.text


def test_kept_weights_are_as_readable_as_the_other_files(tiny_trained):
    weights = {stat.S_IMODE(path.stat().st_mode) for path in tiny_trained["cola"].rglob("*.safetensors")}
    assert weights == {stat.S_IMODE((tiny_trained["cola"] / "result.json").stat().st_mode)}


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b"{}", b'{"config": 3}', b"\xff"])
def test_a_run_json_of_another_form_is_one_line(run_folder, content, capsys):
    (run_folder / "run.json").write_bytes(content)
    (run_folder.parent / "rows.tsv").write_text("")
    status, out, errors = answer(capsys, run_folder, run_folder.parent / "rows.tsv")
    assert (status, out, len(errors)) == (2, "", 1)
    assert "run.json" in errors[0]


def test_every_setting_of_training_is_read_back_and_changes_no_prediction(tiny_run, tmp_path):
    config = tiny_run(
        epochs=3, patience=1, schedule="cosine", label_smoothing=0.1, class_weights="0=1,1=2.5",
        gradient_checkpointing=True, learning_rate=1e-20,
    )  # fmt: skip
    result = run(config)
    assert result.stopped_early
    found = read_run(run_dir(config))
    assert found.config == config
    export(found, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "epoch 1 of 3 (best epoch); it stopped early, after epoch 2." in card
    assert "| label_smoothing | 0.1 |" in card
    assert "| class_weights | 0=1.0,1=2.5 |" in card
    assert "| tf32 |" not in card, "left at its default"
    model = load_run(found, "best", device="cpu")
    cache = open_datasets(config).dev["toy_dev"]
    expected = found.directory.read_predictions(result)["toy_dev.best_logits"]
    torch.testing.assert_close(torch.from_numpy(logits_of(model, cache, 8192)), torch.from_numpy(expected))
