"""Two processes compute the run of one."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_utils.errors import SettingError
from data_utils.soft_labels import soft_text
from data_utils.task_def import load_task_defs
from module.composition import Composition
from module.method import FineTuningMethod
from mt_dnn import assembly
from mt_dnn.assembly import assemble
from mt_dnn.data_parallel import Ranks, join
from mt_dnn.encoder.source import resolve_encoder
from mt_dnn.interrupt import Interrupted, StopRequest
from mt_dnn.precision import resolve_precision
from mt_dnn.results import Status
from mt_dnn.run import run
from mt_dnn.run_id import run_dir
from tests.child import Child
from tests.mt_dnn.test_resume import StopAt, assert_same_run, newest_checkpoint
from tests.tiny import make_taught

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
CPU = torch.device("cpu")

QUIET = {"bert_dropout_p": 0.0, "dropout_p": 0.0, "save": "both", "learning_rate": 1e-3, "adam_eps": 1e-4}
TWENTY = {"method": "pats", "epochs": 4, **QUIET}  # 5 steps per epoch, of 16, 16, 16, 16 and 6 examples
LAST_ALONE = {"train_size": 17, "batch_size": 8, "epochs": 3, **QUIET}  # the last of 3 steps has 1 example
PARITY = {
    "pats": TWENTY,
    "pats on adamw, padded, accumulated": {
        "method": "pats", "optimizer": "adamw", "attention": "padded", "batch_size": 8, "grad_accumulation_step": 2,
        "train_datasets": "toyscore", **{**TWENTY, "epochs": 3},
    },
    "two tasks, pats": {
        "method": "pats", **LAST_ALONE, "train_datasets": "toyscore,toy", "task_weights": "toy=2,toyscore=1",
    },
    "two tasks in a step": {
        "train_datasets": "toy,toyscore", "grad_accumulation_step": 3, **LAST_ALONE, "batch_size": 4, "ratio": 0.5,
    },
    "two tasks, sam": {"train_datasets": "toy,toyscore", "method": "sam", "mix_temperature": 4.0, **LAST_ALONE},
    "a teacher of one of two tasks": {
        "train_datasets": "toyscore,toy", "mkd_opt": 1, "kd_loss": "CeCriterion", "kd_temperature": 2.0, **LAST_ALONE,
    },
    "smoothed and weighted": {"label_smoothing": 0.1, "class_weights": "balanced", **LAST_ALONE},
    "sam": {"method": "sam", "sam": {"rho": 0.5}, **LAST_ALONE},
    "asam and l2sp": {"method": "sam+l2sp", "sam": {"adaptive": True}, "l2sp": {"alpha": 0.1}, **LAST_ALONE},
    "pgd": {"method": "pgd", "pgd": {"two_point": True}, **LAST_ALONE},
    "pac_tuning": {"method": "pac_tuning", "pac_tuning": {"k_levels": 2, "k_models": 1}, **LAST_ALONE},
    "child_tuning": {"method": "child_tuning", **LAST_ALONE},
    "child_tuning F": {"method": "child_tuning", "child_tuning": {"variant": "F"}, **LAST_ALONE},
    "freelb": {"method": "freelb", "freelb": {"init_magnitude": 0.0}, **LAST_ALONE},
    "smart": {"method": "smart", "smart": {"smoothness_weight": 0.0, "teacher_betas": [0.5, 0.5]}, **LAST_ALONE},
}  # fmt: skip
NOISY = [  # dropout on: only that the copies stay equal
    ("noisytune+hype+component_clip+sage+pats+ema", {}),
    ("recadam+neftune+rdrop+swa", {"recadam": {"gamma": 10.0}}),
    ("sam+freelb+l2sp", {}),
    ("pgd+smart", {}),
    ("l2sp+smart", {"smart": {"divergence": "SymKlCriterion", "noise_place": "embeddings", "teacher_dropout": True}}),
    ("mixout+child_tuning+llrd", {"child_tuning": {"variant": "F"}}),
    ("child_tuning+pats", {"optimizer": "adamw"}),
    ("matched_noise", {}),
    ("hype+rdrop", {"gradient_checkpointing": True}),
    ("r3f+bitfit", {"r3f": {"spectral_norm": True}}),
]
BROKEN = {
    "method": "hype+pats+rdrop",
    "epochs": 2,
    "save": "last",
    "log_per_updates": 1,
    "hype": {"keep_dropout": True},
}


def plain(config):
    """A configuration as a mapping for JSON."""
    values = {key: value for key, value in config.as_dict().items() if key != "method_settings" and value is not None}
    return json.loads(json.dumps(values | config.as_dict()["method_settings"]))


def do_jobs(folder, jobs):
    """Let two processes do runs, with the environment that torchrun gives them; returns their report."""
    (folder / "jobs.pickle").write_bytes(pickle.dumps(jobs))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    script = ROOT / "tests/mt_dnn/two_processes.py"
    ranks = [Child([script, folder], **meeting, RANK=rank, LOCAL_RANK=rank) for rank in "01"]
    ended = [rank.wait(300) for rank in ranks]
    assert [rank.returncode for rank in ended] == [0, 0], [rank.stderr[-4000:] for rank in ended]
    return json.loads((folder / "report.json").read_text())


def weights_of(config, which="last"):
    return load_file(run_dir(config) / f"checkpoints/{which}/model.safetensors")


def assert_near(one, other, name):
    a, b = weights_of(one), weights_of(other)
    # An entry whose sensitivity is the threshold but for rounding gets noise in one run alone.
    tolerance = {"rtol": 2e-4, "atol": 5e-5} if "pats" in one.method else {"rtol": 1e-5, "atol": 1e-6}
    for key in a:
        # Its gradient is rounding alone, which PAC-tuning's Adam makes large.
        if not (one.method == "pac_tuning" and key.endswith("key.bias")):
            torch.testing.assert_close(b[key], a[key], **tolerance, msg=lambda m, key=key: f"{name}, {key}: {m}")


def assert_same_scores(one, other, name):
    """Equal but for rounding: logits of every dev example once in the order of their uids, metrics, logged losses."""
    with np.load(run_dir(one) / "predictions.npz") as a, np.load(run_dir(other) / "predictions.npz") as b:
        assert a.files == b.files
        for key in a.files:
            np.testing.assert_allclose(b[key], a[key], rtol=1e-3, atol=1e-4) if "logits" in key else (
                np.testing.assert_array_equal(b[key], a[key])
            )
    logs = [[json.loads(line) for line in (run_dir(c) / "metrics.jsonl").open()] for c in (one, other)]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]], name
    for key in ("loss", "grad_norm", "score"):
        found = [[line[key] for line in log if key in line] for log in logs]
        assert found[0] == pytest.approx(found[1], rel=1e-3), (name, key)


@pytest.fixture
def soft_labels(tiny_task, tmp_path):
    """Folder of the tasks, the first with a teacher's logits."""
    folder = make_taught(tiny_task, tmp_path / "taught")
    file = folder / "toy_train.tsv"
    rows = [line.split("\t") for line in file.read_text().splitlines()]
    taught = zip(rows, np.random.default_rng(5).normal(0.0, 2.0, (len(rows), 2)), strict=True)
    lines = ["\t".join([uid, label, soft_text(teacher), text]) for (uid, label, text), teacher in taught]
    file.write_text("\n".join(lines) + "\n")
    return folder


def test_two_processes_compute_what_one_does(tiny_run, tmp_path, soft_labels):
    taught = {"task_def": soft_labels / "task_def.yml", "data_dir": soft_labels}
    cases = {name: changes | (taught if "mkd_opt" in changes else {}) for name, changes in PARITY.items()}
    ones = {name: tiny_run(output_dir=tmp_path / "one", **changes) for name, changes in cases.items()}
    twos = {name: tiny_run(output_dir=tmp_path / "two", **changes) for name, changes in cases.items()}
    jobs = [{"name": name, "config": config} for name, config in twos.items()]
    for method, settings in NOISY:
        config = tiny_run(output_dir=tmp_path / "noisy", method=method, epochs=2, train_size=33, **settings)
        jobs.append({"name": method, "config": config})
    more, fewer = (tiny_run(output_dir=tmp_path / name, **TWENTY) for name in ("1 then 2", "2 then 1"))
    with pytest.raises(Interrupted):
        run(more, StopAt(7))
    jobs += [
        {"name": "1 then 2", "config": more},
        {"name": "2 then 1", "config": fewer, "stop": [1, 12]},
    ]
    whole, broken = (tiny_run(output_dir=tmp_path / name, **BROKEN) for name in ("whole", "broken"))
    jobs += [
        {"name": "whole", "config": whole},
        {"name": "broken", "config": broken, "stop": [0, 7]},
        {"name": "broken, again", "config": broken},
    ]
    still = {
        "learning_rate": 1e-30,
        "weight_decay": 0.0,
        "epochs": 1,
        "eval_batch_tokens": 40,
    }  # weights keep their bits
    once, dealt = (tiny_run(output_dir=tmp_path / name, **{**QUIET, **still}) for name in ("once", "dealt"))
    jobs.append({"name": "evaluation", "config": dealt})
    report = do_jobs(tmp_path, jobs)
    assert {name: found["unequal"] for name, found in report.items()} == {name: [] for name in report}
    assert all(found["steps"] for found in report.values())

    assert run(fewer).sessions == 2
    assert report["2 then 1"]["ended"].startswith("stopped at step 12 of 20")  # the signal came to rank 1 alone
    assert report["1 then 2"]["steps"] == list(range(7, 20))
    one = ones["pats"]
    for name, config in ones.items():
        run(config)
        assert report[name]["ended"] in ("ok", "degenerate"), (name, report[name]["ended"])
        assert_near(config, twos[name], name)
        assert_same_scores(config, twos[name], name)
    for name, config in (("1 then 2", more), ("2 then 1", fewer)):
        assert_near(one, config, name)
        assert_same_scores(one, config, name)
    run(once)
    with np.load(run_dir(once) / "predictions.npz") as a, np.load(run_dir(dealt) / "predictions.npz") as b:
        assert all(np.array_equal(a[key], b[key]) for key in a.files)
    assert report["broken, again"]["steps"] == [7, 8, 9]
    assert_same_run(whole, broken)
    assert report["pats"]["steps"] == list(range(20))
    assert report["pats"]["shares"][:5] == [[8, 8], [8, 8], [8, 8], [8, 8], [3, 3]]
    assert report["sam"]["shares"][:3] == [[4, 4], [4, 4], [1, 0]]
    assert json.loads((run_dir(twos["pats"]) / "run.json").read_text())["processes"] == 2


def start(config):
    """torchrun train.py in a process of its own."""
    file = config.output_dir.parent / "run.json"
    file.write_text(json.dumps(plain(config)))
    command = [*TORCHRUN, str(ROOT / "train.py"), "--config", str(file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_a_checkpoint(config, process):
    """Until there is another than now."""
    before, deadline = newest_checkpoint(config), time.monotonic() + 90
    while newest_checkpoint(config) in ("", before):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def rank_process(torchrun, rank):
    """Process id of a rank."""
    for child in Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split():
        if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise AssertionError("no such rank")


def test_a_killed_process_ends_the_job_and_the_run_goes_on(tiny_run, tmp_path):
    config = tiny_run(method="hype+pats", epochs=30, checkpoint_seconds=0.1, output_dir=tmp_path / "runs")
    job = start(config)
    wait_for_a_checkpoint(config, job)
    os.kill(rank_process(job, 1), signal.SIGKILL)
    killed = time.monotonic()
    out, _ = job.communicate(timeout=60)
    assert time.monotonic() - killed < 45.0  # torchrun's own limit is 30
    assert job.returncode != 0
    assert "process 0 of 2 lost the others" in out, out
    assert "the same command goes on from the last checkpoint" in out
    assert not (run_dir(config) / "result.json").exists()
    result = run(config)  # in one process
    assert (result.status, result.sessions, result.steps) == (Status.OK, 2, 150)


def test_a_method_that_does_not_say_that_it_can_be_divided_is_refused(tiny_run, monkeypatch):
    class Own(FineTuningMethod):
        name = "own"

        def gradients(self, context, batches, inner):
            return inner(batches)

    config = tiny_run()
    monkeypatch.setattr(assembly, "build_method", lambda *_: Composition([Own()]))
    arguments = (
        config, [load_task_defs(config.task_def)["toy"]], resolve_encoder(config.init_checkpoint), CPU,
        resolve_precision("fp32", CPU), 10,
    )  # fmt: skip
    assemble(*arguments)
    with pytest.raises(SettingError, match=r"hook gradients of own does not say .*run it in one process") as refused:
        assemble(*arguments, Ranks(0, 2))
    assert "\n" not in str(refused.value)


def test_every_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SettingError, match="2 processes on a machine with 1 CUDA devices"), join("auto"):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(SettingError, match="device is 'cuda:3', one GPU for 2 processes"), join("cuda:3"):
        pass
    joined = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *a, **k: joined.append(a))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with join("auto") as ranks:
        assert (ranks.rank, ranks.size, ranks.device) == (1, 2, "cuda:1")
    with join("cpu") as ranks:
        assert ranks.device is None
    assert joined == [("cpu:gloo,cuda:nccl",), ("gloo",)]


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with join("auto") as ranks:
        assert (ranks.size, ranks.first, ranks.gather("x"), ranks.all_reduce_max(3)) == (1, True, ["x"], 3)


def test_under_torchrun_a_ctrl_c_that_comes_twice_is_one():
    with StopRequest(patient=True) as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
