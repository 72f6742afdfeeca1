"""Kill a run at any instant and start it again: weights and metrics are those of a run never interrupted."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_utils.errors import SettingError
from data_utils.file_hash import sha256_of
from module.methods import METHODS as REGISTRY
from mt_dnn import checkpoint
from mt_dnn.config import RunConfig
from mt_dnn.data import open_datasets
from mt_dnn.interrupt import Interrupted, StopRequest
from mt_dnn.results import RunResult
from mt_dnn.run import run
from mt_dnn.run_directory import RunLocked
from mt_dnn.run_id import run_dir
from tests.child import FORKSERVER, Child

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, dict[str, object]] = {  # of methods whose defaults take long, or do nothing in a short run
    "pac_tuning": {"pac_tuning": {"k_levels": 2, "k_models": 1}},
    "noisytune+recadam": {"recadam": {"gamma": 10.0, "t0": 6, "anchor": "init"}},
    "recadam": {"recadam": {"gamma": 10.0, "t0": 6, "start": "RI"}},
    "l2sp": {"l2sp": {"alpha": 0.1}},
    "ema": {"ema": {"decay": 0.8}},
    "pats+swa": {"swa": {"start_step": 3, "start_epoch": 0, "interval": 2}},
    "lora": {"lora": {"layers": "all"}},
}
METHODS = [*REGISTRY, "noisytune+pats", "noisytune+recadam", "pats+swa"]
KILLED = os.environ.get("PATS_KILL_METHODS", "sage,pats")
KILLED = list(REGISTRY) if KILLED == "all" else KILLED.split(",")
SLOWLY = {"checkpoint_seconds": 0.0, "save": "last", "log_per_updates": 1}


def command(config: RunConfig) -> list[str]:
    """The run through train.py and a YAML file."""
    values = {k: v for k, v in config.as_dict().items() if k != "method_settings" and v is not None}
    values |= {"betas": list(values["betas"]), **config.as_dict()["method_settings"]}
    file = Path(values["output_dir"]).parent / f"{config.method}.json"
    file.write_text(json.dumps(values))
    return [str(ROOT / "train.py"), "--config", str(file)]


def assert_same_run(one: RunConfig, other: RunConfig) -> None:
    a, b = run_dir(one), run_dir(other)
    weights = [load_file(folder / "checkpoints/last/model.safetensors") for folder in (a, b)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert (a / "metrics.jsonl").read_text() == (b / "metrics.jsonl").read_text()
    results = [json.loads((folder / "result.json").read_text()) for folder in (a, b)]
    for key in ("best", "last", "status", "steps"):
        assert results[0][key] == results[1][key]
    with np.load(a / "predictions.npz") as one_npz, np.load(b / "predictions.npz") as other_npz:
        assert all(np.array_equal(one_npz[key], other_npz[key]) for key in one_npz)


class StopAt:
    """A progress callback that asks the run to stop after given steps, as a signal would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, progress: object) -> None:
        if progress.step == self.step:
            signal.raise_signal(signal.SIGTERM)


def run_in_parts(config: RunConfig, *steps: int) -> RunResult:
    """Run it, stopped after each of these steps as by a signal, and return the result of the session that ends it."""
    for step in steps:
        with pytest.raises(Interrupted, match=f"step {step} of "):
            run(config, StopAt(step))
        torch.manual_seed(999)  # a new process knows nothing of the old one's generators
    result = run(config)
    assert result.sessions == len(steps) + 1
    return result


@pytest.mark.parametrize("method", METHODS)
def test_stopping_and_going_on_changes_nothing(tiny_run, tmp_path, method):
    if method == "lora":
        pytest.importorskip("peft", reason="peft is missing: see requirements-lora.txt")
    changes = {**SLOWLY, **SETTINGS.get(method, {})}
    whole = tiny_run(method=method, output_dir=tmp_path / "whole", **{**changes, "checkpoint_seconds": 600.0})
    run(whole)
    broken = tiny_run(method=method, output_dir=tmp_path / "broken", **changes)
    # In an epoch, at its end, after it, before the last step.
    assert run_in_parts(broken, 1, 4, 5, 11, 14).steps == 15
    assert_same_run(whole, broken)


def newest_checkpoint(config: RunConfig) -> str:
    return max((path.name for path in (run_dir(config) / "checkpoints").glob("last-*")), default="")


@pytest.mark.parametrize(
    ("method", "changes"), [*((method, {}) for method in KILLED), ("pats", {"train_datasets": "toy,toyscore"})]
)
def test_sigkill_at_random_instants(tiny_run, tmp_path, method, changes):
    """PATS_KILLS sets the number of kills, PATS_KILL_METHODS the methods: names with commas, or all."""
    kills = int(os.environ.get("PATS_KILLS", "2"))
    length = {"epochs": 5 * kills, **SLOWLY, **SETTINGS.get(method, {}), **changes}
    whole = tiny_run(method=method, output_dir=tmp_path / "whole", **{**length, "checkpoint_seconds": 600.0})
    run(whole)
    broken = tiny_run(method=method, output_dir=tmp_path / "broken", **length)
    chance = random.Random(0)
    for _ in range(kills):
        before = newest_checkpoint(broken)
        process = Child(command(broken))
        deadline = time.monotonic() + 60
        while newest_checkpoint(broken) in ("", before) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.3)  # in a step, in a checkpoint, in an evaluation
        process.kill()
        assert process.wait().returncode == -signal.SIGKILL
        assert not (run_dir(broken) / "result.json").exists(), "the kill came after the end: make the run longer"
    assert run(broken).sessions == kills + 1
    assert_same_run(whole, broken)


def test_sigterm_gives_a_checkpoint_and_75(tiny_run, tmp_path):
    config = tiny_run(epochs=200, output_dir=tmp_path / "runs")
    process = subprocess.Popen([sys.executable, *command(config)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    metrics = run_dir(config) / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(RunLocked):
        run(config)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err.decode()
    assert "the same command goes on from there" in err.decode()
    assert len(list((run_dir(config) / "checkpoints").glob("last-*"))) == 1
    assert not (run_dir(config) / "result.json").exists()


def test_a_damaged_checkpoint_stops_the_run_without_a_result(tiny_run):
    config = tiny_run(**SLOWLY)
    with pytest.raises(Interrupted):
        run(config, StopAt(3))
    (file,) = (run_dir(config) / "checkpoints").glob("last-*/state.pt")
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(SettingError, match=r"state\.pt is damaged .* delete"):
        run(config)
    assert not (run_dir(config) / "result.json").exists()


def test_a_full_disk_in_mid_run_keeps_the_last_good_checkpoint(tiny_run, tmp_path, monkeypatch):
    import errno

    from mt_dnn import checkpoint

    whole = tiny_run(output_dir=tmp_path / "whole", **SLOWLY)
    run(whole)
    config = tiny_run(output_dir=tmp_path / "full", **SLOWLY)
    good, calls = torch.save, []

    def full_after_three(*args: object, **kwargs: object) -> None:
        calls.append(1)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        good(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", full_after_three)
        with pytest.raises(SettingError, match="No space left"):
            run(config)
    assert not (run_dir(config) / "result.json").exists()
    assert checkpoint.load_last(run_dir(config) / "checkpoints").step == 3
    run(config)
    assert_same_run(whole, config)


def test_a_disk_that_fills_while_metrics_are_written_gives_one_line(tiny_run, monkeypatch):
    import errno

    from mt_dnn.run_directory import RunDirectory

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    config = tiny_run(**SLOWLY)
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append_metrics", full)
        with pytest.raises(SettingError, match=r"output_dir: cannot write .*No space left on device.*free space"):
            run(config)
    assert not (run_dir(config) / "result.json").exists()
    assert run(config).done


def test_a_run_that_fails_after_a_checkpoint_goes_on_from_it(tiny_run, tmp_path):
    whole = tiny_run(output_dir=tmp_path / "whole", **SLOWLY)
    run(whole)
    config = tiny_run(output_dir=tmp_path / "failed", **SLOWLY)

    def fail(progress):
        if progress.step == 7:
            raise ZeroDivisionError

    assert run(config, fail).status == "failed"
    assert run(config).sessions == 2
    assert_same_run(whole, config)


def test_other_data_behind_the_same_name_is_refused_on_resume(tiny_run, tiny_task, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_task, data, ignore=shutil.ignore_patterns("cache"))
    config = tiny_run(data_dir=data, **SLOWLY)
    with pytest.raises(Interrupted):
        run(config, StopAt(3))
    file = data / "toy_train.tsv"
    file.write_text(file.read_text().replace("good", "bad", 1))
    with pytest.raises(SettingError, match=r"toy_train\.tsv is not what .*seed=1 was run with; restore it, or delete"):
        run(config)


def test_a_second_sigint_interrupts_at_once():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


# The tiny run learns late: its best epoch is the fourth of six, at step 20.
LATE_BEST: dict[str, object] = {"epochs": 6, "seed": 6, "checkpoint_seconds": 0.0, "log_per_updates": 1}


def run_and_die(config: RunConfig, step: int, after_saving: bool) -> None:
    """Kill this process with SIGKILL at a step, or right after the first weights that are saved from it on."""
    reached = False

    def at_step(progress: object) -> None:
        nonlocal reached
        reached = progress.step >= step
        if reached and not after_saving:
            os.kill(os.getpid(), signal.SIGKILL)

    save = checkpoint.save_weights

    def save_and_die(*arguments: object) -> str:
        digest = save(*arguments)
        if reached and after_saving:
            os.kill(os.getpid(), signal.SIGKILL)
        return digest

    checkpoint.save_weights = save_and_die
    run(config, at_step)


def kill_at(config: RunConfig, step: int, after_saving: bool = False) -> None:
    process = FORKSERVER.Process(target=run_and_die, args=(config, step, after_saving))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def kept(config: RunConfig) -> list[str]:
    return sorted(path.parent.name for path in (run_dir(config) / "checkpoints").glob("*/*.safetensors"))


def assert_weights_are_the_results(config: RunConfig, epoch: str) -> None:
    """What predict.py would load gives the predictions that the run has stored."""
    from data_utils.batching import evaluation_batches
    from mt_dnn.evaluation import all_logits
    from mt_dnn.trained.load import load_run, read_run

    model, dev = load_run(read_run(run_dir(config)), epoch, "cpu"), open_datasets(config).dev["toy_dev"]
    batches = evaluation_batches(dev.lengths, config.eval_batch_tokens)
    logits = all_logits(model.network, dev, batches, 2, model.device, model.precision)
    assert np.array_equal(logits, np.load(run_dir(config) / "predictions.npz")[f"toy_dev.{epoch}_logits"])


@pytest.mark.parametrize("after_saving", [False, True])
def test_weights_of_an_epoch_that_is_not_the_results_do_not_stay(tiny_run, after_saving):
    """Begun with --save best, killed in or at the end of epoch 2, gone on with --save none."""
    saving, config = tiny_run(save="best", **LATE_BEST), tiny_run(save="none", **LATE_BEST)
    kill_at(saving, 9 if after_saving else 7, after_saving)
    assert "best" in kept(config)
    result = run(config)
    assert result.sessions == 2
    assert result.best.epoch > 1, "the test needs a best epoch after the kill"
    assert kept(config) == []
    assert not [name for name in result.files if "safetensors" in name]
    with pytest.raises(SettingError, match=r"kept no weights \(save: none\)"):
        assert_weights_are_the_results(config, "best")


def test_weights_of_the_results_epoch_stay_whatever_the_session_that_wrote_them(tiny_run):
    with pytest.raises(Interrupted):
        run(tiny_run(save="best", **LATE_BEST), StopAt(21))
    config = tiny_run(save="last", **LATE_BEST)
    assert run(config).best.epoch == 4, "the test needs a best epoch before step 21"
    assert kept(config) == ["best", "last"]
    for epoch in kept(config):
        assert_weights_are_the_results(config, epoch)


def test_best_weights_that_a_power_cut_took_before_a_checkpoint_named_them_come_again(tiny_run, tmp_path):
    broken, whole = (tiny_run(save="best", **LATE_BEST, output_dir=tmp_path / name) for name in ("broken", "whole"))
    kill_at(broken, 19, after_saving=True)
    file = run_dir(broken) / "checkpoints" / "best" / "model.safetensors"
    assert [path.name for path in (run_dir(broken) / "checkpoints").glob("last-*")] == ["last-00000019"]
    os.truncate(file, 0)
    result = run(broken)
    assert result.best.epoch == 4, "the test needs the best epoch at step 20"
    assert result.files["checkpoints/best/model.safetensors"] == sha256_of(file)
    assert run(whole).files["checkpoints/best/model.safetensors"] == sha256_of(file)


@pytest.mark.parametrize("names", ["checkpoint", "result"])
def test_what_is_named_is_on_disk_before(tiny_run, monkeypatch, names):
    """Metrics and weights that a checkpoint or the result names, and the entries of them in their folders."""
    seconds, prefix = (0.0, "last-") if names == "checkpoint" else (1e9, "result.json")
    config = tiny_run(**{**LATE_BEST, "save": "both", "checkpoint_seconds": seconds})
    folder, content, moment, named = run_dir(config), {}, {}, set()
    files = [folder / "metrics.jsonl", *(checkpoint.weights_file(folder / "checkpoints", e) for e in ("best", "last"))]

    def sync(descriptor):
        status = os.fstat(descriptor)
        content[status.st_ino], moment[status.st_ino] = status.st_mtime_ns, time.time_ns()

    def replace(source, target):
        for file in filter(Path.exists, files) if target.name.startswith(prefix) else ():
            status = file.stat()
            assert content[status.st_ino] == status.st_mtime_ns, f"{file} before {target}"
            assert moment[file.parent.stat().st_ino] >= status.st_ctime_ns, f"the entry of {file} before {target}"
            named.add(file)
        os.replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(Path, name, replace)
    run(config)
    assert named >= set(files[:2] if names == "checkpoint" else files)


def test_weights_from_before_the_first_checkpoint_do_not_stay(tiny_run):
    """Killed in epoch 2 without any resume checkpoint: the run starts over, and nothing of the first start is left."""
    length = {"epochs": 2, "checkpoint_seconds": 1e9, "learning_rate": 1e-2}
    kill_at(tiny_run(save="best", **length), 7)
    config = tiny_run(save="none", **length)
    assert kept(config) == ["best"]
    assert run(config).sessions == 1
    assert kept(config) == []


def test_a_watch_that_was_killed_before_the_result_leaves_no_summary_behind(tiny_run):
    config = tiny_run(**SLOWLY)
    with pytest.raises(Interrupted):
        run(config, StopAt(14))
    (run_dir(config) / "sensitivity.json").write_text("{}")
    assert "sensitivity.json" not in run(config).files
    assert not (run_dir(config) / "sensitivity.json").exists()


def test_a_checkpoint_without_a_run_json_is_not_gone_on_from(tiny_run):
    config = tiny_run(**SLOWLY)
    with pytest.raises(Interrupted):
        run(config, StopAt(3))
    (run_dir(config) / "run.json").unlink()
    with pytest.raises(SettingError, match="does not say what data and encoder it is of"):
        run(config)


def test_a_run_stopped_where_its_rule_gives_it_up_is_given_up_when_it_goes_on(tiny_run):
    def prune(epochs, best):
        return epochs == 2

    config = tiny_run(epochs=3, **SLOWLY)
    with pytest.raises(Interrupted):
        run(config, StopAt(10), prune)
    result = run(config, prune=prune)
    assert (result.status, result.steps, result.sessions) == ("pruned", 10, 2)
