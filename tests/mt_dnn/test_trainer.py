"""The loop: few frames from train.py to backward(), the schedule, the hook that asks for refused steps."""

import json
import sys
from pathlib import Path

import pytest
import torch

import train
from module.bert_optim import NonFiniteGradient
from module.method import FineTuningMethod
from module.methods import METHODS
from mt_dnn.results import Status
from mt_dnn.run import run
from mt_dnn.run_id import run_dir
from mt_dnn.schedule import learning_rate_multiplier

ROOT = Path(__file__).resolve().parents[2]
OURS = ("train.py", "mt_dnn", "module", "data_utils")


def test_train_py_reaches_backward_in_six_frames_and_four_files(tiny_task, tiny_encoder, tmp_path, monkeypatch):
    backward, chains = torch.Tensor.backward, set()

    def watched(tensor, *arguments, **options):
        chain, frame = [], sys._getframe(1)
        while frame.f_code is not train.main.__code__:
            chain.append(frame)
            frame = frame.f_back
        found = [(Path(f.f_code.co_filename), f.f_code.co_qualname) for f in (frame, *reversed(chain))]
        ours = [(path.relative_to(ROOT), name) for path, name in found if path.is_relative_to(ROOT)]
        chains.add(tuple((path.as_posix(), name) for path, name in ours if path.parts[0] in OURS))
        return backward(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "backward", watched)
    arguments = [
        "--task_def", str(tiny_task / "task_def.yml"), "--data_dir", str(tiny_task), "--train_datasets", "toy",
        "--init_checkpoint", str(tiny_encoder), "--output_dir", str(tmp_path), "--epochs", "1", "--device", "cpu",
    ]  # fmt: skip
    assert train.main(arguments) == 0
    (frames,) = chains
    assert frames[0] == ("train.py", "main")
    assert len(frames) <= 6, frames
    assert len({file for file, _ in frames}) <= 4, frames


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class OwnOptimizer(FineTuningMethod):
    """A plug-in whose optimizer finds out late that it should have refused a step."""

    name = "own_optimizer"

    def make_optimizer(self, groups, settings, made):
        class Late(torch.optim.AdamW):
            def check_refused(self):
                if self.param_groups[0]["lr"] > 0.0:  # in all steps but the first
                    raise NonFiniteGradient("encoder.weight", 1)

        return Late([dict(group) for group in groups])


class OwnCheck(FineTuningMethod):
    name = "own_check"

    def check_step(self, context):
        if context.step == 3:
            raise NonFiniteGradient("encoder.bias", 1)


@pytest.mark.parametrize(
    ("method", "step", "said"), [(OwnOptimizer, 2, "encoder.weight"), (OwnCheck, 4, "encoder.bias")]
)
def test_a_plug_in_is_asked_for_refused_steps_at_every_logging_step(tiny_run, monkeypatch, method, step, said):
    monkeypatch.setitem(METHODS._classes, method.name, method)
    config = tiny_run(method=method.name, log_per_updates=1)
    result = run(config)
    assert (result.status, result.steps) == (Status.DIVERGED, step)
    assert f"'{said}' is not finite" in result.error
    assert [line["step"] for line in lines(run_dir(config))] == list(range(1, step + 1))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "linear_legacy"])
def test_every_step_has_the_learning_rate_of_its_schedule(tiny_run, schedule):
    config = tiny_run(schedule=schedule, warmup=0.2, log_per_updates=1, learning_rate=1e-3)
    run(config)
    found = [line["learning_rate"] for line in lines(run_dir(config)) if "loss" in line]
    assert found == [1e-3 * learning_rate_multiplier(step, 15, 0.2, schedule) for step in range(15)]
