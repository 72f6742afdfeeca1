"""EMA and SWA against their references; evaluation under the average; what becomes of the raw weights."""

import io

import pytest
import torch

from data_utils.errors import SettingError
from module.methods import parse_method
from module.methods.ema import EMASettings
from module.methods.swa import SWASettings
from mt_dnn.results import Status
from mt_dnn.run import run
from mt_dnn.run_id import run_dir
from tests.module.hooked import Hooked
from tests.module.models import assert_close, float64
from tests.mt_dnn.method_runs import final_weights, plain_weights
from tests.mt_dnn.test_run import lines
from tests.reference import averages

EVERY = {"ema": {"decay": 0.9}, "swa": {"start_epoch": 0}}
LENGTH = {"total_steps": 24, "total_epochs": 3}


def settings(method, **changes):
    kind = {"ema": EMASettings, "swa": SWASettings}[method]
    return {method: kind(**{**EVERY[method], **changes})}


def under_evaluation(hooked):
    with hooked.method.evaluation(hooked.context):
        return hooked.values()


@pytest.mark.parametrize(
    ("method", "changes", "counted"),
    [
        ("ema", {}, range(24)),
        ("ema", {"start_step": 7}, range(7, 24)),
        ("ema", {"start_epoch": 2}, range(16, 24)),
        ("ema", {"start_step": 20, "start_epoch": 1}, range(20, 24)),
        ("swa", {}, range(24)),
        ("swa", {"start_epoch": 1}, range(8, 24)),
        ("swa", {"start_epoch": 1, "interval": 5}, range(8, 24, 5)),
    ],
)
def test_equals_the_reference(method, changes, counted):
    hooked = Hooked(method, settings(method, **changes), **LENGTH)
    seen = []
    for step in range(1, 25):
        seen.append(float64(hooked.steps(1, first=step).values()))
    for name, value in float64(under_evaluation(hooked)).items():
        weights = [seen[step][name] for step in counted]
        expected = averages.ema(weights, 0.9) if method == "ema" else averages.swa(weights)
        assert_close(value, expected, name)


@pytest.mark.parametrize("method", ["ema", "swa"])
def test_the_raw_weights_come_back_bit_for_bit(method):
    hooked = Hooked(method, settings(method), **LENGTH).steps(9)
    raw = hooked.values()
    average = under_evaluation(hooked)
    assert all(torch.equal(raw[name], now) for name, now in hooked.values().items())
    assert not all(torch.equal(raw[name], average[name]) for name in raw)
    with pytest.raises(RuntimeError, match="in mid-evaluation"), hooked.method.evaluation(hooked.context):
        raise RuntimeError("in mid-evaluation")
    assert all(torch.equal(raw[name], now) for name, now in hooked.values().items())
    again = under_evaluation(hooked)
    assert all(torch.equal(average[name], again[name]) for name in raw), "nor does the average change"


@pytest.mark.parametrize("method", ["ema", "swa"])
def test_constant_weights_are_their_own_average(method):
    hooked = Hooked(method, settings(method), weight_decay=0.0, **LENGTH)
    before = hooked.values()
    hooked.steps(9, schedule=lambda step: 0.0)
    assert all(torch.equal(before[name], value) for name, value in under_evaluation(hooked).items())


@pytest.mark.parametrize("method", ["ema", "swa"])
def test_before_the_start_the_raw_weights_are_evaluated(method):
    hooked = Hooked(method, settings(method, start_step=5), **LENGTH).steps(4)
    assert all(torch.equal(hooked.parameters[name], value) for name, value in under_evaluation(hooked).items())


@pytest.mark.parametrize("method", ["ema", "swa"])
def test_a_state_goes_on_exactly(method):
    whole = Hooked(method, settings(method), **LENGTH).steps(4)
    file = io.BytesIO()
    states = {"m": whole.method.state_dict(), "o": whole.context.optimizer.state_dict(), "p": whole.values()}
    torch.save(states, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    whole.steps(6, first=5)
    other = Hooked(method, settings(method), **LENGTH)
    for name, parameter in other.parameters.items():
        parameter.data.copy_(saved["p"][name])
    other.method.load_state_dict(saved["m"])
    other.context.optimizer.load_state_dict(saved["o"])
    other.steps(6, first=5)
    one, two = under_evaluation(whole), under_evaluation(other)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_average_holds_the_noise_of_pats_averaged_out():
    """The noise is added before the average is taken, so the average is less noisy than the weights."""
    from module.pats_rule import PATSRule

    rule = {"pats": PATSRule(threshold_mode="none", noise_scale=5.0, noise_probability=1.0, max_ratio=1.0)}
    noisy = Hooked("ema+pats", {**settings("ema"), **rule}, optimizer="adamax", **LENGTH).steps(24)
    calm = Hooked("ema", settings("ema"), optimizer="adamax", **LENGTH).steps(24)
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    raw = (noisy.parameters[name] - calm.parameters[name]).norm()
    averaged = (under_evaluation(noisy)[name] - under_evaluation(calm)[name]).norm()
    assert 0.0 < averaged < 0.9 * raw


def test_training_does_not_see_the_average(tiny_run):
    """The losses, and the raw weights' scores, are those of plain fine-tuning, bit for bit."""
    plain, averaged = tiny_run(log_per_updates=1), tiny_run(log_per_updates=1, method="ema", ema={"decay": 0.9})
    run(plain)
    run(averaged)
    one, two = lines(run_dir(plain)), lines(run_dir(averaged))
    assert [r for r in one if "loss" in r] == [r for r in two if "loss" in r]
    evaluations = [[r for r in records if "evaluation" in r] for records in (one, two)]
    assert [r["evaluation"] for r in evaluations[0]] == [r["raw_evaluation"] for r in evaluations[1]]
    assert [r["score"] for r in evaluations[0]] == [r["raw_score"] for r in evaluations[1]]
    assert all("raw_score" not in r for r in evaluations[0])


@pytest.mark.parametrize(("method", "other"), [("ema", {"decay": 0.0}), ("swa", {"start_step": 14, "start_epoch": 0})])
def test_an_average_of_the_last_weights_alone_is_plain_fine_tuning_bit_for_bit(tiny_run, method, other):
    plain = plain_weights(tiny_run)
    last = final_weights(tiny_run(save="last", method=method, **{method: other}))
    usual = final_weights(tiny_run(save="last", method=method))
    assert all(torch.equal(plain[name], last[name]) for name in plain)
    assert not all(torch.equal(plain[name], usual[name]) for name in plain)


@pytest.mark.parametrize("method", ["ema", "swa"])
def test_what_is_kept_is_what_was_scored(tiny_run, method):
    """The saved weights give the saved predictions; raw and averaged scores both stand in the metrics."""
    import numpy as np
    from safetensors.torch import load_file

    from tests.mt_dnn.test_assembly import build

    config = tiny_run(method=method, epochs=6, save="last", **{method: EVERY[method]}, precision="fp32")
    result = run(config)
    assert result.status in (Status.OK, Status.DEGENERATE)
    parts = build(tiny_run(method="vanilla"))
    parts.network.load_state_dict(load_file(run_dir(config) / "checkpoints/last/model.safetensors"))
    from mt_dnn.data import open_datasets

    data = open_datasets(config)
    cache = data.dev["toy_dev"]
    batch = parts.network.encoder.batch(cache, np.arange(len(cache)), torch.device("cpu"))
    with torch.inference_mode():
        logits = parts.network.eval()(batch)
    with np.load(run_dir(config) / "predictions.npz") as arrays:
        np.testing.assert_allclose(logits.numpy(), arrays["toy_dev.last_logits"], rtol=1e-4, atol=1e-5)
    last = [record for record in lines(run_dir(config)) if "evaluation" in record][-1]
    assert last["score"] == result.last.score
    assert set(last["raw_evaluation"]["toy_dev"]) == {"ACC", "MCC"}


@pytest.mark.parametrize("method", ["ema", "swa"])
def test_accumulation_equals_the_large_batch(tiny_run, method):
    quiet = {
        "method": method, method: EVERY[method], "bert_dropout_p": 0.0, "dropout_p": 0.0, "save": "last",
        "learning_rate": 1e-3, "adam_eps": 1e-4,
    }  # fmt: skip
    large = final_weights(tiny_run(batch_size=16, **quiet))
    small = final_weights(tiny_run(batch_size=4, grad_accumulation_step=4, **quiet))
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=2e-4, atol=2e-5)


def test_it_runs_in_bf16_beside_other_methods(tiny_run):
    config = tiny_run(method="noisytune+pats+ema", ema={"decay": 0.8}, precision="bf16", epochs=6)
    assert run(config).status is Status.OK


def test_mistakes(tiny_run):
    for decay in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"Invalid decay: .*: a number in \[0, 1\) is needed"):
            EMASettings(decay=decay)
    for kind in (EMASettings, SWASettings):
        with pytest.raises(ValueError, match="Invalid start_step: -1: a whole number of at least 0 is needed"):
            kind(start_step=-1)
        with pytest.raises(ValueError, match="Invalid start_epoch: -2"):
            kind(start_epoch=-2)
    with pytest.raises(ValueError, match="Invalid interval: 0: a whole number of at least 1 is needed"):
        SWASettings(interval=0)
    with pytest.raises(ValueError, match="'ema' and 'swa' both need the weights that are evaluated"):
        parse_method("ema+swa")
    with pytest.raises(SettingError, match=r"swa would start after 15 steps .*start_epoch 3.* has 15 in 3 epochs"):
        run(tiny_run(method="swa", swa={"start_epoch": 3}))
