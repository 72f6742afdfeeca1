"""SAM and ASAM: the reference, the length of the ascent, weights that come back, refusals, whole runs."""

import math

import numpy as np
import pytest
import torch

from module.methods import build_method, parse_method
from module.methods.sam import SAM, SAMSettings
from module.resolution import LostNoise
from mt_dnn.results import Status
from mt_dnn.run import run
from tests.module.landscape import Landscape
from tests.module.models import SHAPES
from tests.mt_dnn.method_runs import final_weights, plain_weights
from tests.reference import sam as reference

WEIGHTS = {name for name in SHAPES if name.endswith("weight")}


@pytest.mark.parametrize(("adaptive", "rho"), [(False, 0.05), (False, 2.0), (True, 0.5)])
def test_equals_the_reference(adaptive, rho):
    land = Landscape()
    method, context = SAM(SAMSettings(adaptive=adaptive, rho=rho)), land.context()
    w = land.thetas()
    for _ in range(25):
        land.descend(method, context, 0.02)
        w = reference.sam_step(w, land.gradient, 0.02, rho, adaptive=adaptive, normalized=WEIGHTS)
    land.assert_at(w)


def test_the_ascent_has_length_rho_and_the_weights_come_back():
    land = Landscape()
    before = land.thetas()
    loss = SAM(SAMSettings(rho=0.3)).gradients(land.context(), [0.25, 0.75], land.inner)
    first, second = land.seen
    e = {n: second[n] - first[n] for n in first}
    assert math.sqrt(sum((x**2).sum() for x in e.values())) == pytest.approx(0.3, rel=1e-9)
    assert all(np.array_equal(before[n], after) for n, after in land.thetas().items())
    assert float(loss) == pytest.approx(float(land.loss(before)))
    expected = land.gradient(second)
    for n, parameter in land.parameters.items():
        np.testing.assert_allclose(parameter.grad.numpy(), expected[n], rtol=1e-12)


def test_asam_measures_the_ascent_in_weights():
    land = Landscape()
    SAM(SAMSettings(adaptive=True, eta=0.1)).gradients(land.context(), [1.0], land.inner)
    first, second = land.seen
    size = {n: np.abs(first[n]) + 0.1 if n in WEIGHTS else 1.0 for n in first}
    relative = sum((((second[n] - first[n]) / size[n]) ** 2).sum() for n in first)
    assert math.sqrt(relative) == pytest.approx(0.5, rel=1e-9)


def test_the_scale_of_the_gradients_does_not_matter():
    lands = [Landscape() for _ in range(2)]
    for land, scale in zip(lands, (1.0, 2.0**16), strict=True):
        SAM().gradients(land.context(), [scale], land.inner)
    for n, e in lands[0].seen[1].items():
        np.testing.assert_allclose(lands[1].seen[1][n], e, rtol=1e-9, atol=1e-12)


def test_row_sparse_gradients_climb_as_dense_ones():
    lands = [Landscape() for _ in range(2)]
    table = "bert.embeddings.word_embeddings.weight"

    def rows_only(land, sparse):
        def inner(batches, weight=1.0):
            loss = land.inner(batches, weight)
            grad = land.parameters[table].grad
            kept = torch.tensor([1, 4, 7])
            values = grad[kept]
            dense = torch.zeros_like(grad).index_copy(0, kept, values)
            land.parameters[table].grad = (
                torch.sparse_coo_tensor(kept[None], values, grad.shape, check_invariants=True) if sparse else dense
            )
            return loss

        return inner

    for adaptive in (False, True):
        for land, sparse in zip(lands, (True, False), strict=True):
            land.seen.clear()
            SAM(SAMSettings(adaptive=adaptive)).gradients(land.context(), [1.0], rows_only(land, sparse))
            for parameter in land.parameters.values():
                parameter.grad = None
        for n, e in lands[0].seen[1].items():
            np.testing.assert_allclose(lands[1].seen[1][n], e, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("replay", [True, False])
def test_the_second_pass_replays_the_noise_of_the_first(replay):
    land, draws = Landscape(), []
    context = land.context()

    def inner(batches, weight=1.0):
        draws.append((context.stream("x").normal(torch.zeros(3)), context.streams.dropout.factors(torch.zeros(9), 0.5)))
        return land.inner(batches, weight)

    method = SAM(SAMSettings(replay_dropout=replay))
    for _ in range(2):
        method.gradients(context, [1.0], inner)
    same = [all(torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in (draws[:2], draws[2:], draws[1:3])]
    assert same == [replay, replay, False]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_first_gradient_that_is_not_finite_gives_no_step(bad):
    land = Landscape()
    before = land.thetas()

    def inner(batches, weight=1.0):
        loss = land.inner(batches, weight)
        if len(land.seen) == 1:
            land.parameters["classifier.bias"].grad.fill_(bad)
        return loss

    SAM().gradients(land.context(), [1.0], inner)
    assert all(p.grad.isnan().all() for p in land.parameters.values()), "for the optimizer or the loss scaler to refuse"
    assert all(np.array_equal(before[n], after) for n, after in land.thetas().items())


def test_a_run_with_such_a_gradient_is_diverged(tiny_run, monkeypatch):
    from mt_dnn import training_model

    calls, plain = [], training_model.task_loss

    def loss(*arguments, **keywords):
        calls.append(1)
        return plain(*arguments, **keywords) * (float("inf") if len(calls) == 5 else 1.0)

    monkeypatch.setattr(training_model, "task_loss", loss)
    result = run(tiny_run(method="sam"))
    assert result.status is Status.DIVERGED
    assert "is not finite: the step is refused" in result.error


def test_settings():
    assert (SAMSettings().rho, SAMSettings(adaptive=True).rho, SAMSettings(adaptive=True, rho=2).rho) == (0.05, 0.5, 2)
    for name in ("rho", "eta"):
        for value in (-0.1, float("inf"), float("nan")):
            with pytest.raises(ValueError, match=f"Invalid {name}: {value}: a number of at least 0 is needed"):
                SAMSettings(**{name: value})
    with pytest.raises(ValueError, match="both need the weights at which gradients are taken"):
        parse_method("sam+pgd")
    assert build_method("sam+pats").methods[0].name == "sam"


def test_a_radius_below_the_weights_resolution_is_refused():
    land = Landscape()
    with pytest.raises(LostNoise, match="sam: noise on the weights: noise of"):
        SAM(SAMSettings(rho=1e-17)).gradients(land.context(), [1.0], land.inner)


def test_radius_zero_is_plain_fine_tuning_bit_for_bit(tiny_run):
    plain = plain_weights(tiny_run)
    for settings in ({"rho": 0.0}, {"rho": 0.0, "adaptive": True}):
        flat = final_weights(tiny_run(save="last", method="sam", sam=settings))
        assert all(torch.equal(plain[name], flat[name]) for name in plain)
    moved = final_weights(tiny_run(save="last", method="sam"))
    assert not all(torch.equal(plain[name], moved[name]) for name in plain)


def test_accumulation_equals_the_large_batch(tiny_run):
    quiet = {
        "bert_dropout_p": 0.0, "dropout_p": 0.0, "save": "last", "learning_rate": 1e-3, "adam_eps": 1e-4,
        "method": "sam",
    }  # fmt: skip
    large = final_weights(tiny_run(batch_size=16, **quiet))
    small = final_weights(tiny_run(batch_size=4, grad_accumulation_step=4, **quiet))
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("method", ["sam", "sam+pats", "noisytune+sam", "mixout+sam"])
def test_it_runs_under_bf16_and_beside_others(tiny_run, method):
    assert run(tiny_run(method=method, precision="bf16", epochs=1)).status in (Status.OK, Status.DEGENERATE)


def test_bf16_products_that_round_the_ascent_away_give_a_warning(tiny_run, caplog):
    run(tiny_run(method="sam", precision="bf16", epochs=1, sam={"rho": 1e-3}))
    assert [r.message for r in caplog.records if "matrix products round to torch.bfloat16" in r.message] != []
