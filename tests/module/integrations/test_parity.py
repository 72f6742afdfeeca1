"""Every method in MethodTrainer ends at the weights of this project's own loop."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from module.methods import METHODS
from module.seeds import stream_seed
from mt_dnn.training_batches import TrainingBatches
from tests.module.integrations.own_loop import trainer_of
from tests.mt_dnn.method_runs import final_weights

# Settings with which a method acts within 20 steps; of the others the defaults.
STRONG = {
    "pats": {"noise_scale": 0.1, "threshold_mode": "none"},
    "matched_noise": {"noise_scale": 0.1, "threshold_mode": "none"},
    "hype": {"noise_scale": 1e-2},
    "pac_tuning": {"k_levels": 2, "k_models": 1},
    "recadam": {"gamma": 10.0, "t0": 6},
    "swa": {"start_epoch": 0, "start_step": 3, "interval": 2},
    "ema": {"decay": 0.9},
    "freelb": {"ascent_steps": 3},
}
OWN = [name for name in METHODS.own if name != "lora" or find_spec("peft") is not None]  # requirements-lora.txt
COMPOSED = ["noisytune+pats", "sage+pats", "hype+rdrop", "sam+freelb", "child_tuning+ema"]


def first_pass(batches):
    """A pass in MethodTrainer's order."""
    seed = stream_seed(batches.config.seed, "first pass")
    n_rows, size = len(batches.data[0].train_rows), batches.config.window
    order = np.random.default_rng(seed).permutation(n_rows)
    return (batches._batches(0, order[start : start + size]) for start in range(0, n_rows, size))


class Last(TrainerCallback):
    """Keeps the weights of the last step."""

    def on_step_end(self, args, state, control, model=None, **_):
        self.weights = {name: value.clone() for name, value in model.state_dict().items()}


# A score matters to methods that compare predictions; the others are held to it at leisure.
COMPARING = ("vanilla", "rdrop", "r3f", "smart", "pac_tuning", "hype+rdrop")


@pytest.mark.parametrize(
    ("method", "task"),
    [(method, "toy") for method in (*OWN, *COMPOSED)]
    + [
        pytest.param(method, "toyscore", marks=[pytest.mark.slow] * (method not in COMPARING))
        for method in (*OWN, *COMPOSED)
    ],
)
def test_weights_after_20_steps_are_those_of_the_own_loop(tiny_run, monkeypatch, tmp_path, method, task):
    monkeypatch.setattr(TrainingBatches, "one_pass", first_pass)
    settings = {name: STRONG[name] for name in method.split("+") if name in STRONG}
    config = tiny_run(
        method=method, train_datasets=task, epochs=4, batch_size=8, grad_accumulation_step=2, attention="padded",
        save="last", precision="fp32", seed=3, learning_rate=1e-2, **settings,
    )  # fmt: skip
    own = final_weights(config)
    trainer = trainer_of(config, tmp_path / "trainer", settings)
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    if method == "lora":  # the trained model has no adapters any more: as they are at the last step
        trainer.add_callback(last := Last())
    trainer.train()
    assert trainer.state.global_step == 20
    found = last.weights if method == "lora" else trainer.model.state_dict()
    assert own.keys() == found.keys()
    for name, value in own.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
    assert any(not torch.equal(start[name], found[name]) for name in start if name in found)
