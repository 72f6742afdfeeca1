import json
import math
import os
import signal
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import train
from data_utils.errors import SettingError
from module.bert_optim import Adamax, NonFiniteGradient
from mt_dnn.provenance import provenance
from mt_dnn.results import Status
from mt_dnn.run import run
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_id import run_dir
from mt_dnn.train_state import Checkpointer
from tests.mt_dnn.method_runs import final_weights, plain_weights


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_and_leaves_its_directory(tiny_run):
    config = tiny_run(epochs=6, save="both")
    seen = []
    result = run(config, seen.append)
    folder = run_dir(config)
    assert result.status is Status.OK
    assert result.last.score > 80.0  # the label is a word of the text; chance is about 50
    assert result.best.score >= result.last.score
    assert result.steps == 6 * math.ceil(70 / 16) == len(seen) == seen[-1].total_steps
    assert files(folder) == [
        ".lock", "checkpoints/best/model.safetensors", "checkpoints/last/model.safetensors",
        "metrics.jsonl", "predictions.npz", "result.json", "run.json",
    ]  # fmt: skip
    description = json.loads((folder / "run.json").read_text())
    assert description["config"]["epochs"] == 6
    assert description["versions"]["torch"] == torch.__version__  # with its build
    evaluations = [line for line in lines(folder) if "evaluation" in line]
    assert [line["epoch"] for line in evaluations] == [1, 2, 3, 4, 5, 6]
    assert evaluations[-1]["score"] == result.last.score


def test_run_json_has_the_versions_of_what_may_be_missing(monkeypatch):
    found = {"peft": "1.2", "triton": "3.4"}

    def version(package):
        if package == "optuna":
            raise PackageNotFoundError(package)
        return found.get(package, "1.0")

    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.version, "hip", None)
    versions = provenance.__wrapped__()["versions"]
    assert {name: versions.get(name) for name in ("peft", "triton", "optuna", "cuda", "rocm")} == {
        "peft": "1.2", "triton": "3.4", "optuna": None, "cuda": "12.8", "rocm": None,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_run_json_says_what_precision_auto_became(tiny_run, monkeypatch, name):
    monkeypatch.setattr("mt_dnn.precision.cpu_has_bf16", lambda: name == "bf16")
    config = tiny_run(epochs=1, precision="auto")
    run(config)
    description = json.loads((run_dir(config) / "run.json").read_text())
    assert (description["config"]["precision"], description["resolved_precision"]) == ("auto", name)


@pytest.mark.parametrize("task", ["toy", "toyscore"])
def test_predictions_give_the_scores(tiny_run, task):
    from scipy.stats import pearsonr
    from sklearn.metrics import accuracy_score, matthews_corrcoef

    config = tiny_run(train_datasets=task)
    result = run(config)
    with np.load(run_dir(config) / "predictions.npz", allow_pickle=False) as arrays:
        labels = arrays[f"{task}_dev.labels"]
        for which, score in (("best", result.best), ("last", result.last)):
            logits, metrics = arrays[f"{task}_dev.{which}_logits"], score.metrics[f"{task}_dev"]
            if task == "toy":
                predicted = logits.argmax(1)
                assert 100 * matthews_corrcoef(labels, predicted) == pytest.approx(metrics["MCC"])
                assert 100 * accuracy_score(labels, predicted) == pytest.approx(metrics["ACC"])
            else:
                assert 100 * pearsonr(logits[:, 0], labels).statistic == pytest.approx(metrics["Pearson"], rel=1e-5)
        assert arrays[f"{task}_dev.uids"].tolist() == [str(i).encode() for i in range(30)]
    assert result.primary_metric == {"toy": "MCC", "toyscore": "Pearson"}[task]


def test_a_finished_run_is_not_run_again(tiny_run):
    config = tiny_run()
    first = run(config)
    stamps = {f: os.stat(run_dir(config) / f).st_mtime_ns for f in files(run_dir(config))}
    assert run(config, lambda _: pytest.fail("it was run again")) == first
    assert stamps == {f: os.stat(run_dir(config) / f).st_mtime_ns for f in files(run_dir(config))}


@pytest.mark.parametrize(
    "method",
    ["vanilla", "noisytune", "sage", "pats", "noisytune+pats", "noisytune+sage", "smart", "freelb", "rdrop", "r3f"],
)
def test_every_method_trains_and_repeats_itself(tiny_run, tmp_path, method):
    weights = []
    for attempt in ("a", "b"):
        config = tiny_run(method=method, save="last", output_dir=tmp_path / attempt)
        assert run(config).status in (Status.OK, Status.DEGENERATE)
        weights.append(load_file(run_dir(config) / "checkpoints/last/model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("zero", [{"noise_scale": 0.0}, {"noise_probability": 0.0}, {"sensitivity_threshold": 0.0}])
def test_pats_without_noise_is_plain_fine_tuning_bit_for_bit(tiny_run, zero):
    plain = plain_weights(tiny_run)
    pats = final_weights(tiny_run(save="last", method="pats", pats=zero))
    assert all(torch.equal(plain[name], pats[name]) for name in plain)


def test_noisytune_without_noise_is_plain_fine_tuning_bit_for_bit(tiny_run):
    plain = plain_weights(tiny_run)
    quiet = final_weights(tiny_run(save="last", method="noisytune", noisytune={"noise_scale": 0.0}))
    assert all(torch.equal(plain[name], quiet[name]) for name in plain)


def test_a_method_changes_neither_head_nor_data_order(tiny_run):
    """With a learning rate of nearly nothing the loss sequence tells the order of the data and the first head."""
    losses = {}
    for method in ("vanilla", "pats", "sage", "smart", "rdrop", "r3f"):
        config = tiny_run(method=method, learning_rate=1e-12, log_per_updates=1, epochs=1)
        run(config)
        losses[method] = [line["loss"] for line in lines(run_dir(config)) if "loss" in line]
    for method, found in losses.items():
        assert found == pytest.approx(losses["vanilla"], rel=1e-6), method


def test_accumulation_equals_the_large_batch(tiny_run):
    quiet = {"bert_dropout_p": 0.0, "dropout_p": 0.0, "save": "last", "learning_rate": 1e-3, "adam_eps": 1e-4}
    large = final_weights(tiny_run(batch_size=16, **quiet))
    small = final_weights(tiny_run(batch_size=4, grad_accumulation_step=4, **quiet))
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=2e-4, atol=2e-5)


def test_packed_and_padded_give_the_same_run(tiny_run):
    quiet = {"bert_dropout_p": 0.0, "dropout_p": 0.0, "save": "last", "learning_rate": 1e-3, "adam_eps": 1e-4}
    packed = final_weights(tiny_run(attention="packed", **quiet))
    padded = final_weights(tiny_run(attention="padded", **quiet))
    for name in packed:
        torch.testing.assert_close(packed[name], padded[name], rtol=2e-4, atol=2e-5)


def test_regression_on_pairs(tiny_run):
    result = run(tiny_run(train_datasets="toyscore", epochs=8))
    assert result.primary_metric == "Pearson"
    assert set(result.last.metrics["toyscore_dev"]) == {"Pearson", "Spearman"}
    assert result.last.score > 50.0  # seeds and machines: 75 to 95


@pytest.mark.parametrize("changes", [{"optimizer": "adamw"}, {"optimizer": "adamw", "method": "pats"}])
def test_adamw(tiny_run, changes):
    assert run(tiny_run(learning_rate=1e-2, epochs=6, **changes)).status is Status.OK


def test_subsets_of_the_training_set(tiny_run):
    assert run(tiny_run(train_size=20)).train_examples == 20
    assert run(tiny_run(train_fraction=0.5)).train_examples == 35


def test_a_run_that_predicts_one_class_is_degenerate(tiny_run):
    result = run(tiny_run(learning_rate=1e-12, epochs=1))
    assert result.status is Status.DEGENERATE
    assert result.done
    assert result.last.metrics["toy_dev"]["MCC"] == 0.0


@pytest.mark.parametrize("optimizer", ["adamax", "adamw"])
def test_a_run_that_blows_up_is_diverged(tiny_run, optimizer):
    config = tiny_run(learning_rate=1e30, global_grad_clipping=0.0, optimizer=optimizer)
    result = run(config)
    assert result.status is Status.DIVERGED
    assert result.last is None
    assert result.error
    assert run(config) == result


def test_steps_that_a_gpu_refused_end_the_run_at_the_next_logging_step(tiny_run, monkeypatch):
    def refuse(optimizer):
        raise NonFiniteGradient("encoder.weight", 2)

    monkeypatch.setattr(Adamax, "check_refused", refuse)
    result = run(tiny_run())
    assert result.status is Status.DIVERGED
    assert "'encoder.weight' is not finite" in result.error


def test_an_unexpected_error_is_recorded_and_tried_again(tiny_run, monkeypatch):
    config = tiny_run()
    with monkeypatch.context() as patch:
        patch.setattr("mt_dnn.training_model.task_loss", lambda *a, **k: 1 / 0)
        result = run(config)
    assert result.status is Status.FAILED
    assert result.error == "ZeroDivisionError: division by zero"
    assert json.loads((run_dir(config) / "result.json").read_text())["status"] == "failed"
    assert run(config).done


def test_a_run_that_fails_before_its_last_epoch_has_no_score_of_it(tiny_run):
    def fail(progress):
        if progress.step == 7:  # in the second epoch
            raise RuntimeError("lost")

    result = run(tiny_run(epochs=3), fail)
    assert (result.status, result.best.epoch, result.last) == (Status.FAILED, 1, None)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train_datasets": "nothing"}, "nothing"),
        ({"data_dir": "/nowhere"}, "/nowhere"),
        ({"init_checkpoint": "/nowhere/bert"}, "/nowhere/bert"),
        ({"test_datasets": "mnli_matched"}, "mnli_matched"),
        ({"task_def": "/nowhere.yml"}, "/nowhere.yml"),
        ({"method": "sage", "optimizer": "adamw"}, "sage"),
        ({"precision": "fp16"}, "fp16 needs a CUDA device"),
    ],
)
def test_a_wrong_setting_gives_one_line_and_leaves_nothing(tiny_run, tmp_path, changes, named):
    with pytest.raises(SettingError) as caught:
        run(tiny_run(**changes))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "runs").rglob("*.json"))


def write_settings(config, folder):
    """The configuration as a file of settings for train.py."""
    values = config.as_dict()
    values |= values.pop("method_settings")
    file = folder / f"{config.output_dir.name}.json"
    file.write_text(json.dumps(values))
    return file


def test_train_py(tiny_run, tiny_encoder, tiny_task, tmp_path, capsys):
    arguments = [
        "--task_def", str(tiny_task / "task_def.yml"), "--data_dir", str(tiny_task), "--train_datasets", "toy",
        "--init_checkpoint", str(tiny_encoder), "--output_dir", str(tmp_path / "r"), "--epochs", "1",
        "--method", "pats", "--tensorboard", "true", "--device", "cpu",
    ]  # fmt: skip
    assert train.main(arguments) == 0
    out = capsys.readouterr().out
    assert "last epoch 1: MCC" in out
    assert list((tmp_path / "r").rglob("tb/events*"))
    assert train.main([*arguments, "--data_dir", "/nowhere", "--seed", "3"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: data_dir: /nowhere")


def test_train_py_tells_a_run_that_was_done_from_one_it_has_made(tiny_run, tmp_path, capsys):
    file = write_settings(tiny_run(epochs=6), tmp_path)
    assert train.main(["--config", str(file)]) == 0
    made = capsys.readouterr().out
    assert "done already" not in made
    assert train.main(["--config", str(file)]) == 0
    again = capsys.readouterr().out
    assert again == made.rstrip("\n") + " (done already: nothing was computed)\n"


def test_a_second_ctrl_c_ends_train_py_in_one_line_with_130_and_the_checkpoint_stands(
    tiny_run, tmp_path, monkeypatch, capsys
):
    whole = tiny_run(output_dir=tmp_path / "whole", save="last")
    run(whole)
    broken = tiny_run(output_dir=tmp_path / "broken", save="last", checkpoint_seconds=0.0)
    file = write_settings(broken, tmp_path)
    save_if_due = Checkpointer.save_if_due

    def impatient(checkpoints):
        save_if_due(checkpoints)
        if checkpoints.state.step == 7:
            signal.raise_signal(signal.SIGINT)  # asks for a checkpoint at the next step
            signal.raise_signal(signal.SIGINT)  # and does not wait for it

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save_if_due", impatient)
        assert train.main(["--config", str(file)]) == 130
    told = "stopped at once; the same command goes on from the last checkpoint, if there is one\n"
    assert capsys.readouterr().err == told
    assert train.main(["--config", str(file)]) == 0
    result = RunDirectory(run_dir(broken)).read_result()
    assert (result.sessions, result.steps) == (2, 15)
    one, other = (load_file(run_dir(c) / "checkpoints/last/model.safetensors") for c in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_first_ctrl_c_before_the_run_begins_is_one_line_too(monkeypatch, capsys):
    def interrupted(arguments, **defaults):
        raise KeyboardInterrupt

    monkeypatch.setattr("mt_dnn.config_parser.config_from_arguments", interrupted)
    assert train.main(["--epochs", "1"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_makes_its_gpu_the_current_one_before_anything_is_pinned(tiny_run, monkeypatch):
    class Chosen(BaseException):
        pass

    def choose(device):
        raise Chosen(str(device))

    config = tiny_run(device="cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SettingError, match="device is 'cuda:1', but this machine has"):
        run(config)
    assert not run_dir(config).exists()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", choose)
    with pytest.raises(Chosen, match="cuda:1"):
        run(config)
