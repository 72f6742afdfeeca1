"""PATS inside transformers.Trainer and Lightning: what their own checkpoints must bring back."""

import copy
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from module import PATS, PATSAdamax
from tests.module.models import assert_nested_equal

LOUD = {"noise_scale": 0.05, "threshold_mode": "none", "noise_seed": 7}
ROWS = np.random.default_rng(0).integers(5, 60, (40, 8))


def make_model(seed, dtype=torch.float32, dropout=0.1):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    return BertForSequenceClassification(config).to(dtype)


def patsadamax(model, **changes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # updates that bfloat16 cannot resolve
        return PATSAdamax(model.named_parameters(), 1e-2, **{**LOUD, **changes})


def attached(model, **changes):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    PATS(model.named_parameters(), **{**LOUD, **changes}).attach(optimizer)
    return optimizer


def in_trainer(folder, make_optimizer, dtype, *, resume=None, seed=0, **changes):
    """Ten steps of transformers.Trainer, a checkpoint every three (the third in the middle of an epoch)."""
    from transformers import Trainer, TrainingArguments

    model = make_model(seed, dtype)
    optimizer = make_optimizer(model, **changes)
    arguments = TrainingArguments(
        str(folder), max_steps=10, save_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        use_cpu=True, report_to=[], disable_tqdm=True, logging_strategy="no", save_only_model=False,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": int(row.sum() % 2)} for row in ROWS]
    Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None)).train(resume_from_checkpoint=resume)
    return SimpleNamespace(weights=model.state_dict(), optimizer=optimizer.state_dict())


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("make_optimizer", [patsadamax, attached])
def test_trainers_checkpoints_resume_bit_for_bit(make_optimizer, dtype, tmp_path):
    whole = in_trainer(tmp_path / "whole", make_optimizer, dtype)
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    # Other first weights, another seed and another rule: all of it comes from the checkpoint.
    again = in_trainer(
        tmp_path / "again", make_optimizer, dtype, resume=str(checkpoint), seed=5, noise_seed=1, noise_scale=1.0
    )
    assert_nested_equal(again.weights, whole.weights)
    assert_nested_equal(again.optimizer, whole.optimizer)
    states = whole.optimizer["pats" if make_optimizer is attached else "state"]
    states = states["state"] if make_optimizer is attached else states
    tracked = [state for state in states.values() if "sensitivity" in state]
    assert len(tracked) == 24  # query, key, value, three dense layers: weights and biases of two layers
    for state in tracked:
        assert state["sensitivity"].dtype == torch.float32
        assert state["sensitivity_mean"].dtype == torch.float64
        assert state["step"] == 10


def test_a_checkpoint_without_its_state_is_noticed():
    model = make_model(0)
    optimizer = attached(model)
    optimizer.load_state_dict(torch.optim.AdamW(model.parameters(), 1e-3).state_dict())  # nothing to lose yet
    model(torch.tensor(ROWS[:4]), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["pats"]
    optimizer.load_state_dict(saved)  # as torch.distributed.checkpoint leaves it: the parameters' entries are enough
    for state in saved["state"].values():
        for key in [key for key in state if key.startswith("pats")]:
            del state[key]
    with pytest.warns(UserWarning, match="was written without PATS"):
        optimizer.load_state_dict(saved)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make_optimizer", [patsadamax, attached])
def test_lightnings_checkpoints_resume_bit_for_bit(make_optimizer, tmp_path):
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader, TensorDataset

    class Classifier(pl.LightningModule):
        def __init__(self, seed):
            super().__init__()
            self.model = make_model(seed, dropout=0.0)  # Lightning does not restore the random state

        def training_step(self, batch, _):
            return self.model(input_ids=batch[0], labels=batch[0].sum(1) % 2).loss

        def configure_optimizers(self):
            return make_optimizer(self)

    def fit(epochs, seed, resume=None):
        trainer = pl.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            gradient_clip_val=1.0, enable_checkpointing=False,
        )  # fmt: skip
        module = Classifier(seed)
        trainer.fit(module, DataLoader(TensorDataset(torch.from_numpy(ROWS)), 8), ckpt_path=resume)
        return trainer, module

    _, whole = fit(2, 0)
    trainer, _ = fit(1, 0)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, again = fit(2, 5, str(tmp_path / "half.ckpt"))
    assert_nested_equal(again.state_dict(), whole.state_dict())
    assert_nested_equal(again.optimizers().state_dict(), whole.optimizers().state_dict())


def test_two_attachments_are_refused_and_a_detached_one_leaves_no_trace():
    model = make_model(0)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    pats = PATS(model.named_parameters()).attach(optimizer)
    with pytest.raises(ValueError, match=r"another PATS attached: call its detach\(\) first"):
        PATS(model.named_parameters()).attach(optimizer)
    assert "pats" in optimizer.state_dict()
    pats.detach()
    assert "pats" not in optimizer.state_dict()
    PATS(model.named_parameters()).attach(optimizer)


def with_accelerate(how, folder=None, load=None):
    """Five batches of a loop with accelerate; PATS comes before or after ``prepare``, or is not there."""
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, TensorDataset

    accelerator, model = Accelerator(cpu=True), make_model(0, dropout=0.0)
    optimizer = patsadamax(model) if how == "patsadamax" else torch.optim.AdamW(model.parameters(), 1e-3)
    pats = PATS(model, **LOUD) if how in ("before", "after") else None
    if how == "before":
        pats.attach(optimizer)
    model, optimizer, loader = accelerator.prepare(
        model, optimizer, DataLoader(TensorDataset(torch.from_numpy(ROWS)), 8)
    )
    if how == "after":
        pats.attach(optimizer)
    if load:
        accelerator.load_state(load)
    for (rows,) in loader:
        accelerator.backward(model(input_ids=rows, labels=rows.sum(1) % 2).loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    if folder:
        accelerator.save_state(folder)
    return model.state_dict(), optimizer, pats


@pytest.mark.filterwarnings("ignore")
def test_accelerate_takes_pats_before_and_after_prepare(tmp_path):
    before, after, plain = (with_accelerate(how)[0] for how in ("before", "after", "without"))
    assert_nested_equal(dict(before), dict(after))
    assert not torch.equal(before["bert.pooler.dense.weight"], plain["bert.pooler.dense.weight"])
    with_accelerate("before", folder=tmp_path / "saved")
    resumed = {how: with_accelerate(how, load=tmp_path / "saved") for how in ("before", "after")}
    assert_nested_equal(dict(resumed["before"][0]), dict(resumed["after"][0]))
    assert_nested_equal(resumed["before"][1].state_dict(), resumed["after"][1].state_dict())
    states = resumed["after"][2].state_dict()["state"].values()
    assert {(int(state["step"]), state["sensitivity"].dtype) for state in states} == {(10, torch.float32)}


@pytest.mark.filterwarnings("ignore")
def test_accelerate_prepares_patsadamax_and_a_detached_pats_leaves_its_optimizer():
    with_accelerate("patsadamax")
    _, optimizer, pats = with_accelerate("after")
    assert "pats" in optimizer.state_dict()
    pats.detach()
    assert "pats" not in optimizer.state_dict()
    assert pats.attach(optimizer)._optimizer is optimizer.optimizer


def test_lightnings_wrapper_is_looked_through():
    from pytorch_lightning.core.optimizer import LightningOptimizer

    model = make_model(0)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    assert PATS(model).attach(LightningOptimizer(optimizer))._optimizer is optimizer
