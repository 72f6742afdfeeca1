"""A model from ``model_init``: a fresh one for each training, and for each trial of a search."""

import io
from contextlib import redirect_stdout

import pytest
import torch

from module.integrations.transformers import MethodTrainer
from tests.module.integrations.models import arguments, collate, make, rows
from tests.module.integrations.test_trainer_features import BERT, PATS, assert_equal, some, trained, weights


def fresh(*_):
    """A model whose start leaves the data's order alone."""
    with torch.random.fork_rng():
        return make(BERT)


def trainer_of(folder, method, settings, **args):
    return MethodTrainer(
        method, settings, model_init=fresh, args=arguments(folder, **args), train_dataset=rows(),
        eval_dataset=rows(seed=1), data_collator=collate,
    )  # fmt: skip


@some
def test_each_training_starts_anew(tmp_path, method, settings):
    plain = trained(tmp_path, method, settings, args={"max_steps": 3})
    made = trainer_of(tmp_path, method, settings, max_steps=3)
    for _ in range(2):
        with redirect_stdout(io.StringIO()):
            made.train()
        assert_equal(weights(made.model), weights(plain.model))


def test_a_search_proposes_settings_of_trainer_and_method(tmp_path):
    pytest.importorskip("optuna")
    proposals = iter([(1e-3, 0.25), (2e-3, 0.5)])
    seen = []

    class Look(MethodTrainer):
        def _report_to_hp_search(self, trial, step, metrics):
            seen.append((self.optimizer.param_groups[0]["initial_lr"], self.method.methods[1].settings))
            super()._report_to_hp_search(trial, step, metrics)

    made = Look(
        "noisytune+pats", PATS, model_init=fresh, args=arguments(tmp_path, max_steps=2, eval_strategy="epoch"),
        train_dataset=rows(16), eval_dataset=rows(seed=1), data_collator=collate,
    )  # fmt: skip
    with redirect_stdout(io.StringIO()):
        best = made.hyperparameter_search(
            lambda _: dict(zip(("learning_rate", "pats.noise_scale"), next(proposals), strict=True)),
            n_trials=2, backend="optuna",
        )  # fmt: skip
    assert best.objective > 0.0
    assert [(rate, found.noise_scale, found.threshold_mode) for rate, found in seen] == [
        (1e-3, 0.25, "none"), (2e-3, 0.5, "none"),
    ]  # fmt: skip
    for name, text in (
        ("pat.noise_scale", "did you mean pats.noise_scale"),
        ("pats.noise_scale", "Invalid noise_scale"),
    ):
        with pytest.raises(ValueError, match=text) as error:
            made.hyperparameter_search(lambda _, n=name: {n: -1.0}, n_trials=1, backend="optuna")
        assert "\n" not in str(error.value)
