"""Methods on models of many families and tasks, right after the class's own loss."""

import functools
import io
from contextlib import redirect_stdout
from importlib.util import find_spec

import pytest
import torch

from module.methods import METHODS
from tests.module.integrations.models import make, rows, trainer
from tests.module.integrations.test_parity import STRONG

OWN = [name for name in METHODS.own if name != "lora" or find_spec("peft") is not None]  # requirements-lora.txt
MODELS = {
    "ModernBertForSequenceClassification": {},
    "DebertaV2ForSequenceClassification": {},
    "Qwen2ForSequenceClassification": {},
    "BertForTokenClassification": {"per_token": True},
    "LlamaForCausalLM": {"per_token": True},
}


SLOW = ("DebertaV2ForSequenceClassification", "BertForTokenClassification")
OTHER = {**STRONG, "head_learning_rate": {"learning_rate": 3e-2}, "component_clip": {"max_norm": 1e-2}}
# Without dropout switching it off is nothing; R-Drop is plain fine-tuning then.
SILENT = {"vanilla", "no_hidden_dropout", "no_dropout", "rdrop"}


@functools.cache
def weights_after(method, model, optimizer):
    """The trained weights; every loss on the way is that of a small model."""
    still = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    made = trainer(
        "runs", method, make(model, **(still if "Bert" in model else {})),
        {method: OTHER[method]} if method in OTHER else {}, data=rows(**MODELS[model]), optimizer=optimizer,
        args={"logging_strategy": "steps", "logging_steps": 1},
    )  # fmt: skip
    with redirect_stdout(io.StringIO()):
        made.train()
    assert all(0.0 < line["loss"] < 20.0 for line in made.state.log_history if "loss" in line)
    return [parameter.detach() for parameter in made.model.parameters()]


@pytest.mark.parametrize("model", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS])
@pytest.mark.parametrize("method", OWN)
def test_every_method_trains_every_kind(tmp_path, monkeypatch, method, model):
    monkeypatch.chdir(tmp_path)
    optimizer = "adamax" if method == "sage" else "adamw"
    found, plain = (weights_after(name, model, optimizer) for name in (method, "vanilla"))
    assert all(bool(parameter.isfinite().all()) for parameter in found)
    same = len(found) == len(plain) and all(map(torch.equal, found, plain))
    assert same == (method in SILENT)


@pytest.mark.parametrize("model", ["BertForTokenClassification", "LlamaForCausalLM"])
@pytest.mark.parametrize("method", ["noisytune+pats", "rdrop", "sam", "smart", "recadam+ema"])
def test_a_step_is_the_mean_of_its_labelled_tokens_however_it_is_divided(tmp_path, method, model):
    """Of twelve examples four have no labelled token, the others from three to seven."""
    data = [
        {**row, "labels": [-100] * len(row["input_ids"]) if i % 3 == 1 else [-100, -100, *row["labels"][2:]]}
        for i, row in enumerate(rows(12, per_token=True))
    ]
    settings = {
        "noisytune+pats": {"pats.noise_scale": 0.1, "pats.max_ratio": 10.0}, "sam": {"sam.rho": 0.1},
        "smart": {"smart.smoothness_weight": 0.0, "smart.teacher_betas": [0.5, 0.5]},
        "recadam+ema": {"recadam.gamma": 10.0, "recadam.t0": 1},
    }.get(method, {})  # fmt: skip
    found = []
    for size, parts in ((6, 1), (1, 6)):
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if "Bert" in model else {}
        args = {
            "per_device_train_batch_size": size, "gradient_accumulation_steps": parts, "max_steps": 2,
            "adam_epsilon": 1e-3, "train_sampling_strategy": "sequential", "logging_strategy": "steps",
            "logging_steps": 1,
        }  # fmt: skip
        with redirect_stdout(io.StringIO()):
            made = trainer(tmp_path, method, make(model, **still), settings, data=data, args=args)
            made.train()
        losses = [line["loss"] for line in made.state.log_history if "loss" in line]
        found.append(([parameter.detach() for parameter in made.model.parameters()], losses))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=2e-6)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-4)
