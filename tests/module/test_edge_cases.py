"""Inputs at the edges, state dicts, precision: for all three optimizers."""

import copy
import io
import warnings

import pytest
import torch

from module.bert_optim import Adamax, NonFiniteGradient, PATSAdamax, SAGEAdamax
from tests.module.models import (
    PERTURBED,
    SHAPES,
    assert_nested_equal,
    assert_same_bits,
    make_gradients,
    make_parameters,
    set_gradients,
    train,
)

LOUD = {"threshold_mode": "none", "noise_probability": 0.9, "noise_seed": 7, "noise_scale": 0.05}
OPTIMIZERS = {
    "adamax": lambda named, **k: Adamax(named, 1e-3, **k),
    "pats": lambda named, **k: PATSAdamax(named, 1e-3, **LOUD, **k),
    "sage": lambda named, **k: SAGEAdamax(named, 1e-3, **k),
}
everywhere = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
NAME = "encoder.layer.0.output.dense.weight"


@everywhere
def test_zero_gradients_give_no_nan_and_no_noise(make):
    parameters = make_parameters()
    optimizer = make(parameters.items(), weight_decay=0.0)
    for _ in range(3):
        for parameter in parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert_same_bits(parameters, make_parameters())


def test_one_entry_is_its_own_mean():
    parameter = torch.nn.Parameter(torch.tensor([[1.0]]))
    parameter.grad = torch.tensor([[1e-3]])
    optimizer = PATSAdamax([(NAME, parameter)], 1.0, eps=1e30, weight_decay=0.0, **{**LOUD, "noise_probability": 1.0})
    optimizer.step()
    assert 0 < abs(parameter.item() - 1.0) < 6 * 0.05
    assert optimizer.state[parameter]["sensitivity_mean"] == pytest.approx(0.25e-3)


def test_all_entries_above_the_threshold_means_no_noise():
    a, b = make_parameters(), make_parameters()
    train(a, Adamax(a.items(), 1e-3), 3)
    train(b, PATSAdamax(b.items(), 1e-3, sensitivity_threshold=1e-37), 3)
    moved = [name for name in SHAPES if not torch.equal(a[name], b[name])]
    assert moved == []


@everywhere
def test_a_parameter_may_get_its_first_gradient_late(make):
    late = PERTURBED[2]

    def run(skipped):
        parameters = make_parameters()
        optimizer = make(parameters.items())
        for step in range(1, 6):
            gradients = make_gradients(step)
            if step <= skipped:
                del gradients[late]
            set_gradients(parameters, gradients)
            optimizer.step()
        return parameters, optimizer

    parameters, optimizer = run(3)
    assert optimizer.state[parameters[late]]["step"] == 2
    always, _ = run(0)
    for name in SHAPES:
        assert torch.equal(parameters[name], always[name]) == (name != late), name
    # Its first update is like anyone's first: bit for bit what a run that starts there gives.
    alone = {late: make_parameters()[late]}
    other = make([(late, alone[late])])
    for step in (4, 5):
        set_gradients(alone, {late: make_gradients(step)[late]})
        other.step()
    assert torch.equal(alone[late], parameters[late])


@everywhere
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", [0, 3, 6, 9])
@pytest.mark.parametrize("first", [True, False])
def test_non_finite_gradients_are_refused_by_name_and_change_nothing(make, bad, where, first):
    name = list(SHAPES)[where]
    parameters = make_parameters()
    optimizer = make(parameters.items())
    if not first:
        train(parameters, optimizer, 2)
    before = copy.deepcopy((optimizer.state_dict(), {n: p.detach() for n, p in parameters.items()}))
    set_gradients(parameters, make_gradients(3))
    parameters[name].grad.view(-1)[-1] = bad
    with pytest.raises(NonFiniteGradient, match="not finite: the step is refused") as error:
        optimizer.step()
    assert error.value.parameter == name
    assert_nested_equal(optimizer.state_dict(), before[0])
    assert_same_bits(parameters, before[1])


def test_the_largest_finite_gradients_are_not_refused():
    parameters = make_parameters()
    optimizer = Adamax(parameters.items(), 1e-3)
    for parameter in parameters.values():
        parameter.grad = torch.full_like(parameter, 3e38)
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in parameters.values())


@everywhere
def test_views_that_are_not_contiguous_are_updated_like_copies(make):
    straight, turned = make_parameters(), make_parameters()
    for name in ("bert.encoder.layer.0.attention.self.query.weight", "bert.encoder.layer.0.intermediate.dense.weight"):
        turned[name] = torch.nn.Parameter(turned[name].detach().t().contiguous().t())
        assert not turned[name].is_contiguous()
    a, b = make(straight.items()), make(turned.items())
    for step in range(1, 4):
        set_gradients(straight, make_gradients(step))
        set_gradients(
            turned, {n: g.t().contiguous().t() if g.dim() == 2 else g for n, g in make_gradients(step).items()}
        )
        a.step()
        b.step()
    assert all(torch.equal(straight[name], turned[name]) for name in SHAPES)


@everywhere
def test_empty_tensors_are_passed_over(make):
    shapes = {"encoder.layer.0.a.weight": (0, 3), "encoder.layer.0.b.weight": (5, 3), "encoder.layer.0.c.weight": (0,)}
    parameters = make_parameters(shapes=shapes)
    train(parameters, make(parameters.items()), 2)
    assert torch.isfinite(parameters["encoder.layer.0.b.weight"]).all()


@everywhere
def test_frozen_parameters_may_be_passed(make):
    parameters = make_parameters()
    parameters[PERTURBED[0]].requires_grad_(False)
    optimizer = make(parameters.items())
    set_gradients(parameters, {n: g for n, g in make_gradients(1).items() if n != PERTURBED[0]})
    optimizer.step()
    assert torch.equal(parameters[PERTURBED[0]], make_parameters()[PERTURBED[0]])


def test_gradients_sparse_in_more_than_rows_are_an_error_that_says_so():
    weight = torch.nn.Parameter(torch.zeros(3, 3))
    optimizer = Adamax([("embeddings.weight", weight)], 1e-3)
    weight.grad = torch.eye(3).to_sparse()
    with pytest.raises(
        RuntimeError, match=r"embeddings\.weight' is sparse in a way that is not supported: sparse rows"
    ):
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
@everywhere
def test_other_dtypes_are_refused_by_name(make, dtype):
    with pytest.raises(TypeError, match=rf"dense\.weight' is {dtype}: float32, bfloat16 or float16 is needed"):
        make([(NAME, torch.nn.Parameter(torch.zeros(2, dtype=dtype)))])


def test_other_devices_are_refused_with_what_to_do():
    with pytest.raises(
        NotImplementedError, match="is on meta: there are kernels for cpu and cuda: move the model there"
    ):
        Adamax([torch.nn.Parameter(torch.zeros(2, device="meta"))], 1e-3)


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_state_dict_round_trip_continues_exactly(make, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a, b = make_parameters(dtype=dtype), make_parameters(seed=1, dtype=dtype)
        first, second = make(a.items()), make(b.items())
    train(a, first, 4)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    for name in SHAPES:
        b[name].data.copy_(a[name].data)
    second.load_state_dict(torch.load(file, weights_only=True))
    for name in SHAPES:
        for key, value in first.state[a[name]].items():
            loaded = second.state[b[name]][key]
            assert loaded.dtype == value.dtype == (torch.float64 if key == "sensitivity_mean" else torch.float32)
            assert torch.equal(loaded, value)
    train(a, first, 4, first=5)
    train(b, second, 4, first=5)
    assert all(torch.equal(a[name], b[name]) for name in SHAPES)


def test_loading_does_not_share_memory_with_what_is_loaded():
    parameters = make_parameters()
    optimizer = PATSAdamax(parameters.items(), 1e-3)
    train(parameters, optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(saved)
    optimizer.load_state_dict(saved)
    train(parameters, optimizer, 2, first=3)
    assert_nested_equal(saved, kept)


@everywhere
def test_a_deep_copy_goes_on_alike(make):
    parameters = make_parameters()
    optimizer = make(parameters.items())
    train(parameters, optimizer, 2)
    (others, other) = copy.deepcopy((parameters, optimizer))
    train(parameters, optimizer, 2, first=3)
    train(others, other, 2, first=3)
    assert_same_bits(parameters, others)


def test_seed_and_rule_travel_in_the_state_dict():
    parameters = make_parameters()
    optimizer = PATSAdamax(parameters.items(), 1e-3, **LOUD)
    other = PATSAdamax(make_parameters().items(), 1e-3)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["noise_seed"] == 7
    assert other.param_groups[0]["threshold_mode"] == "none"
    assert other.param_groups[0]["param_names"] == list(SHAPES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_parameters_are_updated_in_float32_and_rounded(dtype):
    parameters = make_parameters(dtype=dtype)
    with pytest.warns(UserWarning, match=f"word_embeddings.weight' is {dtype}: updates and noise below its resolution"):
        optimizer = PATSAdamax(parameters.items(), 1e-3, **LOUD)
    exact = {name: torch.nn.Parameter(p.detach().float()) for name, p in parameters.items()}
    twin = PATSAdamax(exact.items(), 1e-3, **LOUD)
    gradients = {name: g.to(dtype) for name, g in make_gradients(1).items()}
    set_gradients(parameters, gradients)
    set_gradients(exact, gradients)
    optimizer.step()
    twin.step()
    for name in SHAPES:
        assert parameters[name].dtype == dtype
        assert torch.equal(parameters[name], exact[name].to(dtype)), name
        assert torch.equal(optimizer.state[parameters[name]]["exp_avg"], twin.state[exact[name]]["exp_avg"])


def test_float32_parameters_raise_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parameters = make_parameters()
        train(parameters, PATSAdamax(parameters.items(), 1e-3, **LOUD), 2)


@everywhere
def test_gradients_are_left_as_they_are(make):
    parameters = make_parameters()
    train(parameters, make(parameters.items()), 1)
    for name, gradient in make_gradients(1).items():
        assert torch.equal(parameters[name].grad, gradient)
