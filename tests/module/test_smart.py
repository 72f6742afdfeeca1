"""SMART against its formula: the ascent in its three forms, both terms, the teacher."""

import numpy as np
import pytest
import torch

from module.methods.parts.mean_teacher import MeanTeacher, predicting
from module.methods.smart import SMART, SMARTSettings, climb, token_norms
from module.random_streams import RandomStreams
from module.resolution import LostNoise
from tests import toy
from tests.reference import criteria
from tests.reference import smart as reference

LARGE = {"noise_std": 0.2, "radius": 0.15}  # so that a wrong neighbour shows


@pytest.mark.parametrize("norm", ["inf", "l2"])
@pytest.mark.parametrize("projection", ["paper", "dev_repo", "mt_dnn"])
def test_a_step_of_the_ascent_equals_the_formula(projection, norm):
    settings = SMARTSettings(projection=projection, norm=norm, step_size=0.3, **LARGE)
    rng = np.random.default_rng(0)
    noise, gradient = rng.normal(size=(2, 40, 7)) * [[[0.1]], [[1e-4]]]
    gradient[:3] = 0.0
    got = climb(torch.from_numpy(noise), torch.from_numpy(gradient), settings)
    for row in range(40):
        expected = reference.climb(noise[row], gradient[row], projection, norm, 0.3, 0.15)
        np.testing.assert_allclose(got[row], expected, rtol=1e-12, atol=1e-15)


def distance_of(name):
    return criteria.BY_NAME.get("JSCriterion" if name == "task" else name, reference.toy.distance)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm": "l2", "ascent_steps": 2},
        {"projection": "dev_repo", "step_size": 0.1},
        {"projection": "mt_dnn", "ascent_steps": 2, "step_size": 0.5},
        {"ascent_steps": 0},
        {"proximal_weight": 0.0},
        {"smoothness_weight": 0.0},
        {"divergence": "task"},
        *({"divergence": name, "ascent_steps": 2} for name in criteria.BY_NAME),
        {
            "divergence": "SymKlCriterion",
            "ascent_divergence": "NsKlCriterion",
            "projection": "mt_dnn",
            "step_size": 0.5,
        },
        {"weight_step": 0.5, "ascent_steps": 2},
        {"weight_step": 0.3, "divergence": "JSCriterion", "ascent_divergence": "NsKlCriterion"},
        {
            "divergence": "NsSymKlCriterion",
            "ascent_divergence": "NsKlCriterion",
            "proximal_divergence": "NsKlCriterion",
            "projection": "dev_repo",
            "step_size": 0.1,
        },
    ],
)
def test_twenty_steps_equal_the_formula(changes, packed):
    settings = SMARTSettings(
        **{"smoothness_weight": 0.8, "proximal_weight": 1.5, "teacher_betas": (0.5, 0.9), **LARGE, **changes}
    )
    step = toy.build("smart", {"smart": settings}, dropout=0.3, lr=0.05, total_steps=20, adv_loss="JSCriterion")
    model, theta, stream = step.parts.model, toy.theta_of(step), RandomStreams(1)["smart"]
    teacher = theta
    for number in range(20):
        examples, labels = toy.data(number)
        batch = toy.batch_of(examples, labels, packed)
        step.parts.context.step = number
        model.masks.clear()
        step([batch])
        noise = [np.zeros((len(tokens), toy.E)) for tokens in examples]
        masks = list(model.masks)
        if settings.proximal_weight > 0:
            assert (masks.pop() == 1.0).all(), "the teacher predicts without dropout"
        if settings.smoothness_weight > 0:
            drawn = stream.normal(torch.empty(*batch.input_ids.shape, toy.E))
            noise = [settings.noise_std * one for one in toy.by_example(drawn, batch)]
            assert len(masks) == settings.ascent_steps + 2
        else:
            masks *= 2
        _, gradient = reference.objective(
            theta, teacher, examples, labels, masks, noise, settings.smoothness_weight, settings.proximal_weight,
            mode=settings.projection, p=settings.norm, eta=settings.eta, eps=settings.radius,
            smoothness=distance_of(settings.divergence), distance=distance_of(settings.ascent_divergence),
            past=distance_of(settings.proximal_divergence), step=settings.weight_step,
        )  # fmt: skip
        theta = {name: value - 0.05 * gradient[name] for name, value in theta.items()}
        toy.assert_theta(step, theta, f"step {number}")
        teacher = reference.follow(teacher, theta, 0.5 if number < 2 else 0.9)


@pytest.mark.parametrize("norm", ["inf", "l2"])
def test_the_papers_neighbour_is_in_its_ball_and_mt_dnns_on_the_unit_sphere(norm):
    generator = torch.Generator().manual_seed(0)
    noise, gradient = torch.randn(2, 50, 8, generator=generator) * torch.tensor([1e-5, 1e-3])[:, None, None]
    paper = climb(noise, gradient, SMARTSettings(norm=norm))
    assert (token_norms(paper, norm) <= 1e-5 * (1 + 1e-6)).all()
    assert (token_norms(paper, norm) > 0.99e-5).all()
    # D-SM-1: neither sigma nor the radius says how far this one goes.
    far = climb(noise, gradient, SMARTSettings(norm=norm, projection="mt_dnn"))
    assert ((token_norms(far, norm) > 0.8) & (token_norms(far, norm) < 1.0)).all()
    middle = climb(noise, gradient, SMARTSettings(norm=norm, projection="dev_repo"))
    assert ((token_norms(middle, norm) > 5e-4) & (token_norms(middle, norm) < 1.1e-3)).all()


@pytest.mark.parametrize("projection", ["paper", "dev_repo", "mt_dnn"])
def test_the_ascent_finds_a_larger_distance_than_the_noise_it_starts_from(projection):
    distances = []
    for steps in (0, 1, 3):
        changes = {"step_size": 0.1 if projection != "mt_dnn" else 10.0, "projection": projection}
        settings = SMARTSettings(proximal_weight=0.0, noise_std=1e-3, radius=0.1, ascent_steps=steps, **changes)
        step = toy.build("smart", {"smart": settings})
        batch = toy.batch_of(*toy.data(1))
        distances.append(step.parts.method.extra_loss(step.parts.context, batch, step.parts.model.logits(batch)).item())
    assert distances[1] > 10 * distances[0]
    assert distances[2] > 0.9 * distances[1]


def test_without_noise_dropout_and_past_the_terms_are_nothing():
    step = toy.build("smart", {"smart": SMARTSettings(noise_std=0.0)})
    batch = toy.batch_of(*toy.data(0))
    term = step.parts.method.extra_loss(step.parts.context, batch, step.parts.model.logits(batch))
    term.backward()
    assert term.item() == 0.0
    assert not any(p.grad is not None and p.grad.any() for p in step.parts.network.parameters())


def test_a_regression_has_squared_differences():
    settings = SMARTSettings(proximal_weight=0.0, ascent_steps=0, **LARGE)
    step = toy.build("smart", {"smart": settings}, regression=True)
    batch = toy.batch_of(*toy.data(0, regression=True))
    logits = step.parts.model.logits(batch)
    term = step.parts.method.extra_loss(step.parts.context, batch, logits)
    noise = 0.2 * RandomStreams(1)["smart"].normal(torch.empty(batch.n_tokens, toy.E)).double()
    other = step.parts.model.logits(batch, inputs_embeds=step.parts.model.embed(batch) + noise)
    torch.testing.assert_close(term, (logits - other).square().sum())


def test_terms_that_are_off_cost_no_pass_and_no_teacher():
    step = toy.build("smart", {"smart": SMARTSettings(smoothness_weight=0.0, proximal_weight=0.0)})
    step([toy.batch_of(*toy.data(0))])
    assert len(step.parts.model.masks) == 1
    assert step.parts.method.state_dict() == {"smart": {"teacher": None}}


def test_passes_are_marked_and_the_plain_one_keeps_its_masks():
    plain, step = toy.build("vanilla", dropout=0.3), toy.build("smart", dropout=0.3)
    for number in range(2):
        for one in (plain, step):
            one([toy.batch_of(*toy.data(number))])
    assert step.parts.model.noised == [False, True, True, False] * 2
    assert np.array_equal(step.parts.model.masks[::4], plain.parts.model.masks)
    assert SMART.has_noised_pass


@pytest.mark.parametrize("projection", ["paper", "dev_repo", "mt_dnn"])
def test_the_scale_of_an_fp16_loss_does_not_move_the_neighbour(projection):
    terms = []
    for scale in (None, torch.tensor(2.0**12, dtype=torch.float64)):
        step = toy.build("smart", {"smart": SMARTSettings(projection=projection, step_size=0.1, **LARGE)})
        step.parts.context.gradient_scale = scale
        batch = toy.batch_of(*toy.data(0))
        terms.append(step.parts.method.extra_loss(step.parts.context, batch, step.parts.model.logits(batch)))
    assert torch.equal(*terms)


def test_accumulation_equals_the_large_batch():
    settings = {"smart": SMARTSettings(ascent_steps=2, **{**LARGE, "noise_std": 0.0}, projection="dev_repo")}
    theta = []
    examples, labels = toy.data(0, n=7)
    for parts in ([slice(0, 7)], [slice(0, 4), slice(4, 7)]):
        step = toy.build("smart", settings)
        for _ in range(3):
            step([toy.batch_of(examples[part], labels[part]) for part in parts])
        theta.append(toy.theta_of(step))
    for name, value in theta[0].items():
        np.testing.assert_allclose(theta[1][name], value, rtol=1e-10, atol=1e-13)


def test_the_teacher_stands_in_and_leaves_graphs_whole():
    linear = torch.nn.Linear(4, 3)
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    teacher = MeanTeacher([*linear.named_parameters(), ("frozen", frozen)])
    assert set(teacher.weights) == {"weight", "bias"}
    x = torch.randn(5, 4)
    first = linear(x)
    with torch.no_grad():
        own = linear.weight.add_(1.0).clone()
    later = linear(x.requires_grad_()).square().sum()
    pointer = linear.weight.data_ptr()
    with teacher.in_place(), torch.no_grad():
        assert torch.equal(linear(x), first)
    assert torch.equal(linear.weight, own)
    assert linear.weight.data_ptr() == pointer
    later.backward()
    torch.testing.assert_close(x.grad, 2 * (x @ own.T + linear.bias) @ own)
    with pytest.raises(RuntimeError, match="stop"), teacher.in_place():
        raise RuntimeError("stop")
    assert torch.equal(linear.weight, own)


def test_the_teacher_is_a_moving_average_that_constant_weights_reach():
    weight = torch.nn.Parameter(torch.zeros(3))
    teacher = MeanTeacher([("w", weight)])
    weight.data.fill_(1.0)
    teacher.follow(0.75)
    torch.testing.assert_close(teacher.weights["w"], torch.full((3,), 0.25))
    for _ in range(200):
        teacher.follow(0.9)
    torch.testing.assert_close(teacher.weights["w"], torch.ones(3))
    teacher.follow(1.0)
    again = MeanTeacher([("w", weight)])
    weight.data.fill_(7.0)
    again.load({"w": torch.full((3,), 2.0)})
    assert torch.equal(again.weights["w"], torch.full((3,), 2.0))
    assert (weight == 7.0).all()


def test_predicting_gives_modes_back():
    network = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout(), torch.nn.Linear(2, 2))
    network.train()
    network[1].eval()
    with predicting(network):
        assert not any(module.training for module in network.modules())
        assert not network[2](torch.ones(2)).requires_grad
    assert [module.training for module in network.modules()] == [True, True, False, True]


def test_the_teacher_starts_before_training_and_survives_a_checkpoint():
    settings = {"smart": SMARTSettings(teacher_betas=(0.5, 0.5), **LARGE)}
    whole = toy.build("smart", settings, dropout=0.3)
    start = toy.theta_of(whole)
    teacher = whole.parts.method.state_dict()["smart"]["teacher"]
    np.testing.assert_array_equal(teacher[toy.NAMES["V"]], start["V"])
    for number in range(3):
        whole([toy.batch_of(*toy.data(number))])
    saved = {name: value.clone() for name, value in whole.parts.method.state_dict()["smart"]["teacher"].items()}
    random = whole.parts.streams.state()
    again = toy.build("smart", settings, dropout=0.3)
    again.parts.network.load_state_dict(whole.parts.network.state_dict())
    fresh = SMART(settings["smart"])
    again.parts.method.methods = (fresh,)
    again.parts.method.load_state_dict({"smart": {"teacher": saved}})
    assert fresh.state_dict()["teacher"] is saved, "a checkpoint before the first step keeps it"
    again.parts.streams.restore(random)
    for number in range(3, 6):
        for step in (whole, again):
            step([toy.batch_of(*toy.data(number))])
    for name, value in toy.theta_of(whole).items():
        np.testing.assert_array_equal(toy.theta_of(again)[name], value)


def test_noise_that_the_embeddings_lose_is_refused():
    for changes in ({"noise_std": 1e-20}, {"radius": 1e-20}):
        step = toy.build("smart", {"smart": SMARTSettings(**changes)})
        with pytest.raises(LostNoise, match="smart on the word embeddings"):
            step([toy.batch_of(*toy.data(0))])


def test_the_step_size_follows_the_projection():
    assert SMARTSettings().step_size == SMARTSettings(projection="dev_repo").step_size == 1e-3
    assert SMARTSettings(projection="mt_dnn").step_size == 1e-5
    assert SMARTSettings(projection="mt_dnn", step_size=0.0).step_size == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"smoothness_weight": -1.0}, "Invalid smoothness_weight: -1.0: a number of at least 0"),
        ({"proximal_weight": float("nan")}, "Invalid proximal_weight: nan"),
        ({"projection": "sphere"}, "Invalid projection: 'sphere': one of paper, dev_repo, mt_dnn is needed"),
        ({"norm": "l1"}, "Invalid norm: 'l1': one of inf, l2 is needed"),
        ({"radius": 0.0}, "Invalid radius: 0.0: a number above 0"),
        ({"noise_std": -1e-5}, "Invalid noise_std"),
        ({"step_size": float("inf")}, "Invalid step_size: inf"),
        ({"ascent_steps": -1}, "Invalid ascent_steps: -1: an integer of at least 0"),
        ({"teacher_betas": (0.9, 1.1)}, r"Invalid teacher_betas: \(0.9, 1.1\): two numbers in \[0, 1\] are needed"),
        ({"weight_step": -0.1}, "Invalid weight_step: -0.1: a number of at least 0"),
        ({"weight_step": 0.1, "smoothness_weight": 0.0}, "weight_step is 0.1, but smoothness_weight is 0, so no pass"),
        ({"weight_step": 0.1, "ascent_steps": 0}, "weight_step is 0.1, but ascent_steps is 0, so no ascent gives"),
        ({"teacher_switch": 2.0}, r"Invalid teacher_switch: 2.0: a number in \[0, 1\]"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        SMARTSettings(**changes)


@pytest.mark.parametrize(
    ("setting", "adv_loss", "regression", "message"),
    [
        ("divergence", None, False, "smart.divergence is task, but toy has no adv_loss"),
        ("ascent_divergence", "HLCriterion", False, "adv_loss of toy, which smart.ascent_divergence takes, is HLCrit"),
        ("proximal_divergence", "SymKlCriterion", True, "is SymKlCriterion, a distance of classes"),
        ("divergence", "CeCriterion", False, "is CeCriterion, no distance"),
    ],
)
def test_an_adv_loss_without_a_form_is_refused_before_training(setting, adv_loss, regression, message):
    with pytest.raises(ValueError, match=message):
        toy.build("smart", {"smart": SMARTSettings(**{setting: "task"})}, regression=regression, adv_loss=adv_loss)


def test_a_score_has_squared_differences_under_every_name():
    terms = []
    for name in ("paper", "task", "SymKlCriterion"):
        settings = SMARTSettings(divergence=name, ascent_divergence=name, **LARGE)
        step = toy.build("smart", {"smart": settings}, regression=True, adv_loss="MseCriterion")
        batch = toy.batch_of(*toy.data(0, regression=True))
        terms.append(step.parts.method.extra_loss(step.parts.context, batch, step.parts.model.logits(batch)))
    torch.testing.assert_close(terms[1:], terms[:1] * 2)


def test_the_teacher_may_predict_with_dropout():
    step = toy.build("smart", {"smart": SMARTSettings(smoothness_weight=0.0, teacher_dropout=True)}, dropout=0.3)
    step([toy.batch_of(*toy.data(0))])
    plain, teacher = step.parts.model.masks
    assert (teacher != 1.0).any()
    assert (plain != teacher).any()
