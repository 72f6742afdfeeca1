"""Two processes train what one does, under the environment that torchrun gives them."""

import io
import json
import socket
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from module.method import FineTuningMethod
from module.methods import METHODS
from tests.child import Child
from tests.module.integrations.models import make, rows, trainer

BERT = "BertForSequenceClassification"
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TRAINING = {
    "max_steps": 5, "adam_epsilon": 1e-3, "logging_strategy": "steps", "logging_steps": 1, "eval_strategy": "steps",
    "eval_steps": 5, "gradient_accumulation_steps": 1,
}  # fmt: skip
ONE, TWO = {"per_device_train_batch_size": 8}, {"per_device_train_batch_size": 4}
SAME = {  # without a draw of single processes
    "noisytune+pats": {"pats.noise_scale": 0.1, "pats.threshold_mode": "none", "pats.max_ratio": 10.0},
    "sam": {"sam.rho": 0.1},
    "freelb": {"freelb.init_magnitude": 0.0, "freelb.ascent_steps": 2},
    "child_tuning+ema": {"ema.decay": 0.8},
    "pac_tuning": {"pac_tuning.k_levels": 2, "pac_tuning.k_models": 1},
    "recadam": {"recadam.gamma": 10.0, "recadam.t0": 3},
}
NOISY = "hype+r3f"  # with dropout


def do_jobs(folder, jobs):
    (folder / "jobs.json").write_text(json.dumps(jobs))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    script = Path(__file__).with_name("two_processes.py")
    ranks = [Child([script, folder], **meeting, RANK=rank, LOCAL_RANK=rank) for rank in "01"]
    ended = [rank.wait(300) for rank in ranks]
    assert [rank.returncode for rank in ended] == [0, 0], [rank.stderr[-4000:] for rank in ended]
    return {job["name"]: [load_file(folder / f"{job['name']}-{rank}.safetensors") for rank in "01"] for job in jobs}


def job(name, method, settings, args, **changes):
    return {"name": name, "method": method, "settings": settings, "args": args, "model": {}, "rows": 24, **changes}


def test_two_processes_train_what_one_does(tmp_path):
    jobs = [job(name, name, settings, {**TRAINING, **TWO}, model=STILL) for name, settings in SAME.items()]
    noisy = {"hype.keep_dropout": True, "r3f.spectral_norm": True}
    saving = {**TRAINING, **TWO, "max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    jobs += [
        job("whole", NOISY, noisy, saving),
        job("resumed", NOISY, noisy, saving, resume=str(tmp_path / "whole" / "checkpoint-4")),
    ]
    done = do_jobs(tmp_path, jobs)
    for name, (one, other) in done.items():
        assert all(torch.equal(one[key], other[key]) for key in one), name
    for name, settings in SAME.items():
        model = make(BERT, **STILL)
        with redirect_stdout(io.StringIO()):
            alone = trainer(
                tmp_path / "one", name, model, settings, args={**TRAINING, **ONE}, eval_dataset=rows(8, seed=1)
            )
            alone.train()
        for key, value in model.state_dict().items():
            found = done[name][0][key]
            torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-6, msg=partial("{} {}: {}".format, name, key))
        losses = [line["loss"] for line in alone.state.log_history if "loss" in line]
        assert done[name][0]["loss"].tolist() == pytest.approx(losses, rel=1e-4)
    whole, resumed = done["whole"][0], done["resumed"][0]
    assert all(torch.equal(resumed[key], value) for key, value in whole.items() if "loss" not in key)
    with redirect_stdout(io.StringIO()):  # another number of processes: their own draws start anew
        alone = trainer(
            tmp_path / "one", NOISY, make(BERT), noisy, args={**saving, **ONE}, eval_dataset=rows(8, seed=1)
        )
        alone.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert alone.state.global_step == 6
    assert torch.load(tmp_path / "one" / "checkpoint-6" / "method.pt")["random"][0]["mark"] == "/rank 0/step 4"


def test_runs_that_cannot_be_divided_are_refused(tmp_path, monkeypatch):
    class Whole(FineTuningMethod):
        name = "whole"

        def gradients(self, context, batches, inner):
            return inner(batches)

    monkeypatch.setitem(METHODS._classes, "whole", Whole)
    made = trainer(tmp_path, "whole", make(BERT))
    monkeypatch.setattr(type(made.args), "world_size", property(lambda _: 2))
    with pytest.raises(
        ValueError, match=r"2 processes, but whole does not say .* \(divisible\): run it without torchrun"
    ):
        trainer(tmp_path, "whole", make(BERT))
    with pytest.raises(ValueError, match=r"even_batches=False, which deals .*: leave it out"):
        trainer(tmp_path, "sam", make(BERT), args={"accelerator_config": {"even_batches": False}})
