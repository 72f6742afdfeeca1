"""Layer-wise learning-rate decay: every parameter's rate, and training with it."""

import pytest
import torch

from module.methods import build_method
from module.methods.llrd import LLRDSettings
from module.param_index import ParamIndex, Role, weight_decay_groups
from mt_dnn.results import Status
from mt_dnn.run import run
from tests.module.hooked import Hooked
from tests.module.models import assert_close, float64, learning_rate, make_gradients, make_parameters
from tests.module.test_param_index import OwnNetwork, bare, families
from tests.mt_dnn.method_runs import final_weights, plain_weights
from tests.reference import adamw
from tests.reference.llrd import rate

DECAY = 0.5


def level(name):
    """Layer of a tensor of tests.module.models.SHAPES as the reference counts: 2 for the head, -1 for embeddings."""
    if name.startswith("classifier"):
        return 2
    return -1 if "embeddings" in name else int(name.removeprefix("bert.encoder.").split(".")[1])


def test_equals_the_reference():
    hooked = Hooked("llrd", {"llrd": LLRDSettings(DECAY)}, learning_rate=learning_rate(1), weight_decay=0.0)
    names = list(make_parameters())
    expected = {name: value for name, value in zip(names, float64(make_parameters()).values(), strict=True)}
    states = {name: adamw.new_state(value) for name, value in expected.items()}
    for step in range(1, 25):
        for name, g in zip(names, float64(make_gradients(step)).values(), strict=True):
            eta = rate(learning_rate(step), DECAY, level(name), 2)
            expected[name] = adamw.adamw_step(expected[name], g, states[name], eta, w=0.0)
    for name, value in hooked.steps(24).values().items():
        assert_close(value, expected[name], name)


@families
def test_every_family_has_its_rates(family):
    index = ParamIndex(OwnNetwork(bare(family)).named_parameters())
    groups = [{**group, "lr": 1.0} for group in weight_decay_groups(index, 0.01)]
    context = Hooked("vanilla", {}).context
    context.params = index
    rates, decays = {}, {}
    for group in build_method("llrd", {"llrd": LLRDSettings(DECAY)}).param_groups(context, groups):
        for name, _ in group["params"]:
            assert name not in rates
            rates[name], decays[name] = group["lr"], group["weight_decay"]
    assert set(rates) == {info.name for info in index}
    for info in index:
        if info.layer is not None:
            assert rates[info.name] == {0: DECAY**2, 1: DECAY}[info.layer]
        elif info.role == Role.EMBEDDINGS:
            assert rates[info.name] == DECAY**3
        elif not info.pretrained:
            assert rates[info.name] == 1.0
    assert decays == {name: group["weight_decay"] for group in groups for name, _ in group["params"]}


def test_a_decay_of_one_is_plain_fine_tuning_bit_for_bit(tiny_run):
    plain = plain_weights(tiny_run)
    same = final_weights(tiny_run(save="last", method="llrd", llrd={"decay": 1.0}))
    other = final_weights(tiny_run(save="last", method="llrd", llrd={"decay": 0.5}))
    assert all(torch.equal(plain[name], same[name]) for name in plain)
    assert not all(torch.equal(plain[name], other[name]) for name in plain)


def test_accumulation_equals_the_large_batch(tiny_run):
    quiet = {
        "method": "llrd", "bert_dropout_p": 0.0, "dropout_p": 0.0, "save": "last", "learning_rate": 1e-3,
        "adam_eps": 1e-4,
    }  # fmt: skip
    large = final_weights(tiny_run(batch_size=16, **quiet))
    small = final_weights(tiny_run(batch_size=4, grad_accumulation_step=4, **quiet))
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("method", ["llrd", "llrd+pats", "head_learning_rate+llrd"])
def test_it_learns_alone_and_beside_others(tiny_run, method):
    head = {"head_learning_rate": {"learning_rate": 3e-2}} if "head" in method else {}
    assert run(tiny_run(method=method, epochs=6, precision="bf16", **head)).status is Status.OK


@pytest.mark.parametrize("decay", [0.0, 1.01, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"Invalid decay: .*: a number in \(0, 1\] is needed"):
        LLRDSettings(decay)
