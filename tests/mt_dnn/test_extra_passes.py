"""Whole runs of the methods that make more than one forward pass: SMART, FreeLB, R-Drop, R3F and R4F."""

import logging
from pathlib import Path

import pytest
import torch

from data_utils.errors import SettingError
from module.criteria import distance
from mt_dnn.results import Status
from mt_dnn.run import run
from mt_dnn.run_id import run_dir
from tests.mt_dnn.method_runs import build, final_weights, plain_weights
from tests.mt_dnn.test_resume import SLOWLY, assert_same_run, run_in_parts

METHODS = ["smart", "freelb", "rdrop", "r3f"]
# FreeLB's default is made for a large encoder: an example of the tiny one is about 0.3 long.
GENTLE = {"smart": {}, "rdrop": {}, "r3f": {}, "freelb": {"step_size": 0.02, "init_magnitude": 0.02, "max_norm": 0.05}}
NO_DROPOUT = {"bert_dropout_p": 0.0, "dropout_p": 0.0}


@pytest.mark.parametrize(
    ("method", "off", "changes"),
    [
        ("smart", {"smoothness_weight": 0.0, "proximal_weight": 0.0}, {}),
        ("smart", {"noise_std": 0.0, "proximal_weight": 0.0}, NO_DROPOUT),
        ("freelb", {"ascent_steps": 1, "init_magnitude": 0.0}, {}),
        ("r3f", {"weight": 0.0}, {}),
        ("r3f", {"noise_scale": 0.0}, NO_DROPOUT),
        ("rdrop", {"alpha": 2.0}, NO_DROPOUT),
    ],
)
def test_without_strength_they_are_plain_fine_tuning_bit_for_bit(tiny_run, method, off, changes):
    plain = plain_weights(tiny_run, **changes)
    quiet = final_weights(tiny_run(save="last", method=method, **{method: off}, **changes))
    assert all(torch.equal(plain[name], quiet[name]) for name in plain)


@pytest.mark.parametrize("method", METHODS)
def test_with_strength_they_are_not(tiny_run, method):
    plain = plain_weights(tiny_run, epochs=1)
    other = final_weights(tiny_run(save="last", epochs=1, method=method))
    assert not any(torch.equal(plain[name], other[name]) for name in plain if name.endswith("dense.weight"))


SEEDED = [  # without draws that depend on the layout or the size of a batch
    ("freelb", {"init_magnitude": 0.0, "ascent_steps": 3}),
    ("rdrop", {}),
    ("smart", {"smoothness_weight": 0.0, "proximal_weight": 5.0, "teacher_betas": [0.5, 0.5]}),
]
QUIET = {**NO_DROPOUT, "save": "last", "learning_rate": 1e-3, "adam_eps": 1e-4}


@pytest.mark.parametrize(("method", "settings"), SEEDED)
def test_packed_and_padded_give_the_same_run(tiny_run, method, settings):
    packed = final_weights(tiny_run(attention="packed", method=method, **{method: settings}, **QUIET))
    padded = final_weights(tiny_run(attention="padded", method=method, **{method: settings}, **QUIET))
    for name in packed:
        torch.testing.assert_close(packed[name], padded[name], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("method", "settings"), SEEDED)
def test_accumulation_equals_the_large_batch(tiny_run, method, settings):
    large = final_weights(tiny_run(batch_size=16, method=method, **{method: settings}, **QUIET))
    small = final_weights(
        tiny_run(batch_size=4, grad_accumulation_step=4, method=method, **{method: settings}, **QUIET)
    )
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_regression_learns(tiny_run, method):
    assert (
        run(tiny_run(train_datasets="toyscore", epochs=8, method=method, **{method: GENTLE[method]})).last.score > 50.0
    )


@pytest.mark.parametrize("method", METHODS)
def test_bf16_learns(tiny_run, method):
    assert run(tiny_run(precision="bf16", epochs=6, method=method, **{method: GENTLE[method]})).last.score > 40.0  # MCC


@pytest.mark.parametrize("method", ["smart", "r3f"])
def test_bf16_says_where_tiny_noise_goes(tiny_run, method, caplog):
    with caplog.at_level(logging.WARNING):
        run(tiny_run(precision="bf16", epochs=1, method=method))
    said = [record.message for record in caplog.records if "on the word embeddings: noise of 1.0e-05" in record.message]
    assert said
    assert "torch.bfloat16, which loses it" in said[0]


def test_noise_that_float32_loses_is_refused_in_one_line(tiny_run):
    config = tiny_run(method="r3f", r3f={"noise_scale": 1e-12})
    with pytest.raises(SettingError, match=r"r3f\.noise_scale on the word embeddings: noise of 1\.0e-12 is lost"):
        run(config)
    assert not (run_dir(config) / "result.json").exists()


@pytest.mark.parametrize(
    "spec", ["rdrop+freelb", "smart+rdrop", "smart+pats", "sage+r3f", "noisytune+freelb+pats", "no_dropout+r3f"]
)
def test_compositions_run(tiny_run, spec):
    assert run(tiny_run(method=spec, epochs=1)).status in (Status.OK, Status.DEGENERATE)


R4F = {"method": "r3f", "r3f": {"spectral_norm": True}}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_r4f_learns_and_its_head_has_norm_one(tiny_run, precision):
    config = tiny_run(save="last", epochs=8, precision=precision, **R4F)
    weights = final_weights(config)
    head = "heads.toy.1.parametrizations.weight"
    assert {name for name in weights if name.startswith("heads")} == {
        "heads.toy.1.bias", f"{head}.original", f"{head}.0._u", f"{head}.0._v",
    }  # fmt: skip
    sigma = weights[f"{head}.0._u"] @ weights[f"{head}.original"] @ weights[f"{head}.0._v"]
    torch.testing.assert_close(sigma, torch.linalg.matrix_norm(weights[f"{head}.original"], 2), rtol=0.02, atol=0.0)
    assert run(config).last.score > 40.0  # MCC


def test_r4f_continues_exactly(tiny_run, tmp_path):
    whole = tiny_run(output_dir=tmp_path / "whole", **R4F, **SLOWLY)
    run(whole)
    broken = tiny_run(output_dir=tmp_path / "broken", **R4F, **SLOWLY)
    run_in_parts(broken, 2, 7)
    assert_same_run(whole, broken)


AUTHORS = {
    "divergence": "NsSymKlCriterion",
    "ascent_divergence": "NsKlCriterion",
    "proximal_divergence": "NsKlCriterion",
    "projection": "dev_repo",
    "noise_place": "embeddings",
    "teacher_dropout": True,
    "weight_step": 1e-2,
}


@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_a_moved_pass_is_that_of_a_network_with_the_moved_weights(tiny_run, attention):
    quiet = {**NO_DROPOUT, "attention": attention, "precision": "fp32", "method": "smart"}
    smart = {"noise_std": 0.3, "step_size": 0.0, "radius": 9.0, "ascent_divergence": "NsKlCriterion"}
    smart["proximal_weight"] = 0.0
    parts, _, batches = build(tiny_run(**quiet, smart={**smart, "weight_step": 0.05}))
    other, _, _ = build(tiny_run(**quiet, smart=smart))
    model, (batch,) = parts.model, batches[0]
    named = dict(parts.network.named_parameters())
    start = {name: p.detach().clone() for name, p in named.items()}
    for one in (parts, other):
        one.network.train()
    with parts.streams.preserved():
        noise = 0.3 * parts.context.pass_stream("smart").normal(model.embed(batch))

    parts.method.extra_loss(parts.context, batch, model.logits(batch)).backward()
    ours = {name: p.grad.to_dense() for name, p in named.items() if p.grad is not None}
    assert all(torch.equal(p, start[name]) for name, p in named.items())

    parts.network.zero_grad()
    target = model.logits(batch).detach()
    ascended = model.logits(batch, inputs_embeds=model.embed(batch).detach() + noise)
    distance("NsKlCriterion", ascended, target).backward()
    moves = {name: p.grad for name, p in named.items() if p.grad is not None}
    norm = torch.stack([g.square().sum() for g in moves.values()]).sum().sqrt() + 1e-6 * target.numel()
    with torch.no_grad():
        for name, p in other.network.named_parameters():
            p.copy_(start[name] + (0.05 * moves[name] / norm if name in moves else 0.0))
    parts.network.zero_grad()
    clean, near = model.logits(batch), other.model.logits(batch, inputs_embeds=model.embed(batch) + noise)
    assert not torch.allclose(near, model.logits(batch, inputs_embeds=model.embed(batch) + noise), atol=1e-3)
    model.divergence(clean, near).backward()
    theirs = dict(other.network.named_parameters())
    for name, gradient in ours.items():
        there = [p.grad.to_dense() for p in (named[name], theirs[name]) if p.grad is not None]
        torch.testing.assert_close(gradient, sum(there), rtol=1e-4, atol=1e-6)


def test_moved_weights_and_layers_that_compute_again_are_refused(tiny_run):
    config = tiny_run(method="smart", smart={"weight_step": 1e-2}, gradient_checkpointing=True)
    with pytest.raises(SettingError, match=r"gradient_checkpointing is true, but smart has a pass at weights that are"):
        run(config)


@pytest.mark.parametrize(
    ("spec", "attention"),
    [
        ("smart", "packed"),
        ("smart", "padded"),
        ("smart+rdrop", "packed"),
        ("hype+smart", "packed"),
        ("smart+pats", "padded"),
    ],
)
def test_the_first_authors_smart_composes_and_continues_exactly(tiny_run, tmp_path, spec, attention):
    settings = {"method": spec, "smart": AUTHORS, "attention": attention, **SLOWLY}
    whole = tiny_run(output_dir=tmp_path / "whole", **settings)
    assert run(whole).status in (Status.OK, Status.DEGENERATE)
    parts = tiny_run(output_dir=tmp_path / "parts", **settings)
    run_in_parts(parts, 3)
    assert_same_run(whole, parts)


def test_the_task_definitions_adv_loss_is_the_criterion_of_its_name(tiny_run, tmp_path):
    definition = Path(tiny_run().task_def).read_text()
    named = tmp_path / "named.yml"
    named.write_text(definition.replace("  task_type:", "  adv_loss: JSCriterion\n  task_type:"))
    by_task = final_weights(tiny_run(method="smart", smart={"divergence": "task"}, task_def=named, save="last"))
    by_name = final_weights(tiny_run(method="smart", smart={"divergence": "JSCriterion"}, save="last"))
    paper = final_weights(tiny_run(method="smart", save="last"))
    assert all(torch.equal(by_name[name], weight) for name, weight in by_task.items())
    assert any(not torch.equal(by_name[name], weight) for name, weight in paper.items())
    config = tiny_run(method="smart", smart={"divergence": "task"}, output_dir=tmp_path / "without")
    with pytest.raises(SettingError, match=r"method smart on .*: smart\.divergence is task, but toy has no adv_loss"):
        run(config)
