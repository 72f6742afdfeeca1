"""RecAdam against its reference, its annealing, and what it leaves alone."""

import numpy as np
import pytest
import torch

from module.methods import build_method
from module.methods.noisytune import NoisyTuneSettings
from module.methods.recadam import RecAdamSettings
from mt_dnn.results import Status
from mt_dnn.run import run
from mt_dnn.run_id import run_dir
from tests.module.hooked import Hooked
from tests.module.models import assert_close, float64, learning_rate, make_gradients, make_parameters
from tests.mt_dnn.test_assembly import build
from tests.mt_dnn.test_run import final_weights, lines
from tests.reference import adamax, adamw
from tests.reference.recadam import annealed, recadam_step

HEAD = "classifier"
MILD = {"gamma": 300.0, "t0": 12}  # with learning rates up to 7e-4: a pull of 0.2


def recadam(**settings):
    return {"recadam": RecAdamSettings(**settings)}


def nudge(parameters):
    """Away from the anchor, so that there is something to pull from the first step on."""
    for parameter in parameters.values():
        parameter.data.add_(0.01)


@pytest.mark.parametrize("annealing", ["sigmoid", "linear", "constant"])
@pytest.mark.parametrize("optimizer", ["adamw", "adamax"])
def test_equals_the_reference(annealing, optimizer):
    w, decay = 0.9, 0.02
    hooked = Hooked(
        "recadam",
        recadam(annealing=annealing, w=w, **MILD),
        changed=nudge,
        optimizer=optimizer,
        weight_decay=decay,
        learning_rate=learning_rate(1),
    )
    theta0 = float64(make_parameters())
    expected = {name: value + 0.01 for name, value in theta0.items()}
    states = {n: (adamw if optimizer == "adamw" else adamax).new_state(v) for n, v in expected.items()}
    gradient = [float64(make_gradients(step)) for step in range(1, 25)]
    for step in range(1, 25):
        eta, lam = learning_rate(step), annealed(annealing, step, 0.5, MILD["t0"], w)
        for name, theta in expected.items():
            g, state = gradient[step - 1][name], states[name]
            own_decay = 0.0 if name.endswith("bias") or "LayerNorm" in name else decay
            if optimizer == "adamw":
                d = adamw.direction(g, state)
            else:
                d = adamax.direction(theta, g, state, 0.9, 0.999, 1e-6, 0.0, "mtdnn")
            if name.startswith(HEAD) and optimizer == "adamw":
                expected[name] = theta * (1 - eta * own_decay) - eta * d
            elif name.startswith(HEAD):
                expected[name] = theta - eta * (d + own_decay * theta)
            else:
                expected[name] = recadam_step(theta, theta0[name], d, eta, lam, w, MILD["gamma"], own_decay)
    for name, value in float64(hooked.steps(24).values()).items():
        assert_close(value, expected[name], name, tolerance=2e-5)


def test_a_share_of_zero_is_a_pure_contraction():
    hooked = Hooked("recadam", recadam(t0=10**6, gamma=300.0), changed=nudge, learning_rate=1e-3, weight_decay=0.0)
    theta0 = make_parameters()
    distances = [hooked.parameters[n].detach() - theta0[n].detach() for n in theta0]
    hooked.steps(3, schedule=lambda step: 1.0)
    for (name, theta), before in zip(hooked.parameters.items(), distances, strict=True):
        after = theta.detach() - theta0[name].detach()
        if name.startswith(HEAD):
            continue
        torch.testing.assert_close(after, before * (1 - 0.3) ** 3, rtol=1e-4, atol=1e-7, msg=name)


def test_a_share_of_one_is_adamw():
    plain = Hooked("vanilla", {}, weight_decay=0.0).steps(20).values()
    whole = Hooked("recadam", recadam(annealing="constant"), weight_decay=0.0).steps(20).values()
    assert all(torch.equal(plain[name], whole[name]) for name in plain)


def test_the_head_is_trained_as_without_it():
    plain = Hooked("vanilla", {}).steps(20).values()
    pulled = Hooked("recadam", recadam(**MILD)).steps(20).values()
    assert all(torch.equal(plain[name], pulled[name]) == name.startswith(HEAD) for name in plain)


def test_annealing():
    sigmoid = RecAdamSettings(k=0.1, t0=500, w=0.8)
    assert sigmoid.share(500) == 0.4
    for t in (1, 300, 499, 510, 900):
        assert sigmoid.share(t) == pytest.approx(annealed("sigmoid", t, 0.1, 500, 0.8), rel=1e-12)
    assert RecAdamSettings(k=1.0, t0=10**7).share(1) == 0.0, "no overflow"
    linear = RecAdamSettings(annealing="linear", t0=10, w=0.5)
    assert [linear.share(t) for t in (5, 10, 99)] == [0.25, 0.5, 0.5]
    assert RecAdamSettings(annealing="constant", w=0.3).share(1) == 0.3


@pytest.mark.parametrize("zero", [{"w": 0.0}, {"annealing": "constant"}])
def test_without_strength_it_is_plain_fine_tuning_bit_for_bit(tiny_run, zero):
    common = {"save": "last", "optimizer": "adamw", "learning_rate": 1e-2}
    if "w" not in zero:
        common["weight_decay"] = 0.0  # its own comes after the step, AdamW's before
    plain = final_weights(tiny_run(**common))
    same = final_weights(tiny_run(method="recadam", recadam=zero, **common))
    other = final_weights(tiny_run(method="recadam", recadam={"gamma": 50.0, "t0": 5}, **common))
    assert all(torch.equal(plain[name], same[name]) for name in plain)
    assert not all(torch.equal(plain[name], other[name]) for name in plain)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns_once_the_pull_has_faded(tiny_run, precision):
    config = tiny_run(
        method="recadam", optimizer="adamw", learning_rate=1e-2, epochs=8, precision=precision,
        recadam={"gamma": 50.0, "t0": 8},
    )  # fmt: skip
    result = run(config)
    assert result.status is Status.OK
    assert result.last.score > 50.0
    shares = [line["recadam/share"] for line in lines(run_dir(config)) if "loss" in line]
    assert shares == sorted(shares)
    assert shares[-1] > 0.99
    rates = [line["learning_rate"] for line in lines(run_dir(config)) if "loss" in line]
    assert max(rates) == pytest.approx(1e-2, rel=0.2), "the schedule's, not the scaled one"


def test_random_weights_are_pulled_to_the_pretrained_ones():
    hooked = Hooked("recadam", recadam(start="RI", t0=10**6, gamma=100.0), learning_rate=1e-3, weight_decay=0.0)
    theta0 = make_parameters()
    wide = "bert.encoder.layer.0.intermediate.dense.weight"
    assert hooked.parameters[wide].std().item() == pytest.approx(0.02, rel=0.05)
    assert (hooked.parameters["bert.encoder.layer.0.output.LayerNorm.weight"] == 1).all()
    assert (hooked.parameters["bert.encoder.layer.0.output.LayerNorm.bias"] == 0).all()
    assert torch.equal(hooked.parameters[f"{HEAD}.weight"], theta0[f"{HEAD}.weight"])
    before = (hooked.parameters[wide] - theta0[wide]).norm()
    hooked.steps(100, schedule=lambda step: 1.0)
    # eta gamma = 0.1 leaves 0.9^100 = 3e-5 of the distance.
    assert (hooked.parameters[wide] - theta0[wide]).norm() < 4e-5 * before


def test_random_weights_come_from_streams_of_their_own(tiny_run):
    def weights(**changes):
        torch.manual_seed(3)
        parts = build(tiny_run(**changes))
        return parts.network.state_dict(), torch.get_rng_state(), parts.streams.dropout.position

    random = {"method": "recadam", "recadam": {"start": "RI", "gamma": 1.0}}
    (plain, *sources), (one, *others), (other, *_) = weights(), weights(**random), weights(seed=2, **random)
    assert torch.equal(sources[0], others[0])
    assert sources[1] == others[1]
    torch.manual_seed(4)
    again = build(tiny_run(**random)).network.state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    for name, value in one.items():
        if not name.startswith("encoder"):
            assert torch.equal(value, plain[name]), "the head is every method's"
        elif name.endswith("query.weight"):
            assert not torch.equal(value, plain[name])
            assert not torch.equal(value, other[name])


def test_the_anchor_may_hold_the_noise_of_noisytune():
    noise = {"noisytune": NoisyTuneSettings(noise_scale=0.5)}
    clean = Hooked("noisytune+recadam", {**noise, **recadam(**MILD)})
    noisy = Hooked("noisytune+recadam", {**noise, **recadam(anchor="init", **MILD)})
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(clean.context.anchors["pretrained"][name], make_parameters()[name])
    assert torch.equal(noisy.context.anchors["init"][name], noisy.parameters[name])
    before = clean.parameters[name].detach() - make_parameters()[name].detach()
    clean.steps(20)
    noisy.steps(20)
    left = [(h.parameters[name] - make_parameters()[name]).norm() / before.norm() for h in (clean, noisy)]
    assert left[0] < 0.6 < left[1]


def test_it_changes_neither_head_nor_data_order_nor_dropout(tiny_run):
    losses = {}
    for method, changes in {"vanilla": {}, "recadam": {"recadam": {"gamma": 1.0}}}.items():
        config = tiny_run(method=method, learning_rate=1e-12, log_per_updates=1, epochs=1, **changes)
        run(config)
        losses[method] = [line["loss"] for line in lines(run_dir(config)) if "loss" in line]
    assert losses["recadam"] == pytest.approx(losses["vanilla"], rel=1e-6)


def test_accumulation_equals_the_large_batch(tiny_run):
    quiet = {
        "method": "recadam", "recadam": {"gamma": 300.0, "t0": 5}, "bert_dropout_p": 0.0, "dropout_p": 0.0,
        "save": "last", "learning_rate": 1e-3, "adam_eps": 1e-4,
    }  # fmt: skip
    large = final_weights(tiny_run(batch_size=16, **quiet))
    small = final_weights(tiny_run(batch_size=4, grad_accumulation_step=4, **quiet))
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"annealing": "cosine"}, "Invalid annealing: 'cosine': one of sigmoid, linear, constant is needed"),
        ({"anchor": "zero"}, "Invalid anchor: 'zero'"),
        ({"start": "random"}, "Invalid start: 'random': one of PI, RI is needed"),
        ({"k": 0.0}, "Invalid k: 0.0: a number above 0 is needed"),
        ({"initializer_range": -1.0}, "Invalid initializer_range"),
        ({"t0": 0}, "Invalid t0: 0: a step of at least 1 is needed"),
        ({"w": 1.5}, r"Invalid w: 1.5: a number in \[0, 1\] is needed"),
        ({"gamma": -1.0}, "Invalid gamma: -1.0: a number of at least 0 is needed"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        RecAdamSettings(**wrong)


def test_a_pull_that_overshoots_is_refused():
    message = r"Invalid gamma: 5000 with learning rate 0.0003: .* is 1.5 and must be below 1.* gamma 333 "
    with pytest.raises(ValueError, match=message):
        Hooked("recadam", recadam(), learning_rate=3e-4)
    with pytest.raises(ValueError, match=r"Invalid gamma: 5000 with learning rate 0\.0002"):
        Hooked("recadam", recadam(), learning_rate=2e-4)
    Hooked("recadam", recadam(w=0.5), learning_rate=3e-4)
    Hooked("recadam", recadam(annealing="constant"), learning_rate=3e-4)  # never pulls


def test_noise_that_random_weights_would_drown_is_refused():
    with pytest.raises(ValueError, match="throws the noise of noisytune away: use start PI, or anchor init"):
        build_method("noisytune+recadam", recadam(start="RI"))
    build_method("noisytune+recadam", recadam(start="RI", anchor="init"))


def test_with_everything_pretrained_frozen_it_is_refused():
    def freeze(parameters):
        for name, parameter in parameters.items():
            parameter.requires_grad_(name.startswith(HEAD))

    with pytest.raises(ValueError, match="recadam pulls pretrained weights, but all of them are frozen"):
        Hooked("recadam", recadam(), changed=freeze)


def test_state_holds_no_copy_of_the_anchor():
    hooked = Hooked("recadam", recadam(**MILD)).steps(2)
    assert hooked.method.state_dict() == {"recadam": {}}
    assert all(np.isscalar(group["lr"]) for group in hooked.context.optimizer.param_groups)
