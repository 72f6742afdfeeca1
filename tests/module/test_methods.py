"""Methods as plug-ins: registry, composition, hooks, and what each builds."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from module.bert_optim import Adamax, PATSAdamax, SAGEAdamax
from module.composition import Composition
from module.context import DropoutRates
from module.method import FineTuningMethod, OptimizerSettings, Resource
from module.methods import build_method, control_of, parse_method
from module.methods.noisytune import NoisyTune, NoisyTuneSettings
from module.methods.sage import SAGESettings
from module.param_index import ParamIndex, weight_decay_groups
from module.pats_rule import PATSRule
from module.seeds import stream_seed
from tests.module.models import SHAPES, make_context, make_gradients, make_parameters, set_gradients, tiny_bert, train
from tests.reference.noisytune import noisytune as reference_noisytune


def context_of(parameters, seed=1):
    return make_context(parameters.items(), seed=seed)


@pytest.mark.parametrize(
    ("spec", "names"),
    [("vanilla", ("vanilla",)), ("noisytune+pats", ("noisytune", "pats")), ("sage+noisytune", ("sage", "noisytune"))],
)
def test_specs_that_compose(spec, names):
    assert parse_method(spec) == names
    assert sorted(m.name for m in build_method(spec).methods) == sorted(names)


@pytest.mark.parametrize(
    ("spec", "control"),
    [
        ("vanilla", None),
        ("no_dropout", "vanilla"),
        ("ema", "vanilla"),
        ("pats", "vanilla"),
        ("hype", "no_hidden_dropout"),
        ("hype+pats", "no_hidden_dropout"),
        ("pats+ema", "ema"),
        ("smart", "ema"),
        ("hype+mixout", "no_dropout+no_hidden_dropout"),
        ("pac_tuning", "frozen_embeddings+head_learning_rate+no_dropout"),
        ("no_dropout+ema", "vanilla"),
    ],
)
def test_controls_have_the_protocol_of_all_parts(spec, control):
    assert control_of(spec) == control
    assert control is None or parse_method(control)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nosuch", "Invalid method: 'nosuch' in 'nosuch': known are vanilla, no_hidden_dropout, no_dropout,"),
        ("", "known are"),
        ("pats+", "known are"),
        ("pats+pats", "names a method twice"),
        ("vanilla+pats", "leave it out"),
    ],
)
def test_specs_that_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        parse_method(spec)
    with pytest.raises(ValueError, match=message):
        build_method(spec)


def test_settings_are_checked_and_of_the_right_kind():
    for wrong in ({"noise_scale": -0.1}, {"noise_scale": float("nan")}):
        with pytest.raises(ValueError, match="Invalid noise_scale"):
            NoisyTuneSettings(**wrong)
    with pytest.raises(ValueError, match="Invalid sensitivity_beta"):
        SAGESettings(sensitivity_beta=1.0)
    with pytest.raises(ValueError, match="Invalid sensitivity_eps"):
        SAGESettings(sensitivity_eps=0.0)
    with pytest.raises(ValueError, match="Invalid optimizer: 'sgd'"):
        OptimizerSettings(optimizer="sgd")
    with pytest.raises(TypeError, match="Settings of method 'pats' are NoisyTuneSettings, not PATSRule"):
        build_method("pats", {"pats": NoisyTuneSettings()})


@pytest.mark.parametrize(
    ("spec", "optimizer", "kind"),
    [
        ("vanilla", "adamax", Adamax),
        ("vanilla", "adamw", torch.optim.AdamW),
        ("noisytune", "adamax", Adamax),
        ("sage", "adamax", SAGEAdamax),
        ("pats", "adamax", PATSAdamax),
        ("noisytune+pats", "adamw", torch.optim.AdamW),
        ("pats+sage", "adamax", SAGEAdamax),
    ],
)
def test_optimizers(spec, optimizer, kind):
    parameters = make_parameters()
    groups = weight_decay_groups(ParamIndex(parameters.items()), 0.02)
    settings = OptimizerSettings(
        optimizer=optimizer, learning_rate=3e-4, betas=(0.8, 0.99), eps=1e-5, adamax_rule="torch", noise_seed=11
    )
    made = build_method(spec).make_optimizer(groups, settings)
    assert type(made) is kind
    for group in made.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (3e-4, (0.8, 0.99), 1e-5)
        assert group.get("rule", "torch") == "torch"
        assert group.get("noise_seed", 11) == 11
    assert [group["weight_decay"] for group in made.param_groups] == [0.02, 0.0]
    assert isinstance(groups[0]["params"][0], tuple), "the caller's groups are left alone"


def test_settings_of_methods_reach_their_optimizers():
    groups = weight_decay_groups(ParamIndex(make_parameters().items()), 0.0)
    pats = build_method("pats", {"pats": PATSRule(noise_scale=0.7)}).make_optimizer(groups, OptimizerSettings())
    sage = build_method("sage", {"sage": SAGESettings(0.6, 1e-9)}).make_optimizer(groups, OptimizerSettings())
    assert pats.param_groups[0]["noise_scale"] == 0.7
    assert (sage.param_groups[0]["sensitivity_beta"], sage.param_groups[0]["sensitivity_eps"]) == (0.6, 1e-9)


def test_sage_on_adamw_is_refused():
    groups = weight_decay_groups(ParamIndex(make_parameters().items()), 0.0)
    with pytest.raises(ValueError, match="sage scales the step inside Adamax and has no form on 'adamw'"):
        build_method("sage").make_optimizer(groups, OptimizerSettings(optimizer="adamw"))


@pytest.mark.parametrize("spec", ["vanilla", "noisytune", "sage", "pats", "noisytune+pats"])
@pytest.mark.parametrize("optimizer", ["adamax", "adamw"])
def test_a_run_that_is_broken_off_continues_exactly(spec, optimizer):
    if spec == "sage" and optimizer == "adamw":
        return
    rule = {"pats": PATSRule(threshold_mode="none", noise_scale=0.1)} if "pats" in spec else {}

    def build(parameters):
        method = build_method(spec, rule)
        groups = weight_decay_groups(ParamIndex(parameters.items()), 0.01)
        return method, method.make_optimizer(groups, OptimizerSettings(optimizer=optimizer, noise_seed=5))

    a = make_parameters()
    method, made = build(a)
    method.setup(context_of(a))
    train(a, made, 4)
    import io

    file = io.BytesIO()
    torch.save({"m": method.state_dict(), "o": made.state_dict(), "p": {n: p.data for n, p in a.items()}}, file)
    train(a, made, 4, first=5)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    b = make_parameters(seed=3)
    other, again = build(b)
    for name in SHAPES:
        b[name].data.copy_(saved["p"][name])
    other.load_state_dict(saved["m"])
    again.load_state_dict(saved["o"])
    train(b, again, 4, first=5)
    assert all(torch.equal(a[name], b[name]) for name in SHAPES)


def test_noisytune_is_equation_1_on_the_pretrained_tensors():
    parameters = make_parameters()
    context = context_of(parameters, seed=4)
    NoisyTune(NoisyTuneSettings(noise_scale=0.3)).setup(context)
    for name, before in make_parameters().items():
        info = context.params[name]
        uniform = torch.rand(before.shape, generator=context.rng(f"noisytune/{info.path}")).double().numpy()
        expected = reference_noisytune(before.detach().double().numpy(), uniform, 0.3)
        if name.startswith("classifier"):
            assert torch.equal(parameters[name], before)
        else:
            np.testing.assert_allclose(parameters[name].detach().numpy(), expected, rtol=1e-5, atol=1e-8)
            assert torch.equal(parameters[name], before) == (before.numel() == 1)


def test_noisytune_has_the_size_the_paper_says():
    weights = torch.nn.Parameter(torch.randn(600, 500, generator=torch.Generator().manual_seed(0)) * 3)
    before = weights.detach().clone()
    parameters = {"encoder.layer.0.output.dense.weight": weights}
    build_method("noisytune").setup(context_of(parameters))
    change = weights.detach() - before
    assert (change.std() / before.std()).item() == pytest.approx(0.15 / 12**0.5, rel=0.01)
    assert change.abs().max() <= 0.5 * 0.15 * before.std() * (1 + 1e-6)
    assert change.abs().max() >= 0.49 * 0.15 * before.std()
    assert abs(change.mean()) < 5 * change.std() / change.numel() ** 0.5


def test_noisytune_leaves_constants_and_the_head_alone_unless_told():
    shapes = {"encoder.layer.0.a.weight": (9,), "pooler.weight": (4, 4), "heads.x.weight": (5, 5), "heads.x.bias": (1,)}
    shapes = {(f"bert.{n}" if n.startswith("encoder") else n): shape for n, shape in shapes.items()}

    def changed(constant=False, **settings):
        parameters = make_parameters(shapes=shapes)
        if constant:
            parameters["bert.encoder.layer.0.a.weight"].data.fill_(1.5)
        before = {n: p.detach().clone() for n, p in parameters.items()}
        build_method("noisytune", {"noisytune": NoisyTuneSettings(**settings)}).setup(context_of(parameters))
        assert all(torch.isfinite(p).all() for p in parameters.values())
        return [n for n in shapes if not torch.equal(before[n], parameters[n])]

    assert changed() == ["bert.encoder.layer.0.a.weight"]
    assert changed(constant=True) == []
    assert changed(noise_scale=0.0) == []
    assert changed(include_head=True) == ["bert.encoder.layer.0.a.weight", "pooler.weight", "heads.x.weight"]


def test_noisytune_of_a_tensor_depends_on_the_seed_and_not_on_other_tensors():
    def run(seed, names):
        parameters = {name: p for name, p in make_parameters().items() if name in names}
        build_method("noisytune").setup(context_of(parameters, seed))
        return parameters["bert.encoder.layer.0.intermediate.dense.weight"]

    alone = ["bert.encoder.layer.0.intermediate.dense.weight"]
    assert torch.equal(run(1, list(SHAPES)), run(1, alone))
    assert not torch.equal(run(1, alone), run(2, alone))


class Recorder(FineTuningMethod):
    """Notes each hook."""

    name = "a"

    def __init__(self, log):
        super().__init__()
        self.log = log

    def configure(self, rates):
        self.log.append((self.name, "configure"))
        return rates

    def setup(self, context):
        self.log.append((self.name, "setup"))

    def before_fit(self, context):
        self.log.append((self.name, "before_fit"))

    def after_backward(self, context):
        self.log.append((self.name, "after_backward"))

    def after_step(self, context):
        self.log.append((self.name, "after_step"))

    @contextmanager
    def evaluation(self, context):
        self.log.append((self.name, "enter"))
        yield
        self.log.append((self.name, "leave"))

    def state_dict(self):
        return {"who": self.name}

    def load_state_dict(self, state):
        self.log.append((self.name, state["who"]))

    def metrics(self, context):
        return {"x": 1.0}


class Second(Recorder):
    name = "b"
    exclusive = frozenset({Resource.WEIGHT_ESTIMATOR})

    def gradients(self, context, batches, inner):
        self.log.append((self.name, "gradients"))
        return super().gradients(context, batches, inner)


class Third(Second):
    name = "c"
    exclusive = frozenset()
    rank = -1

    def gradients(self, context, batches, inner):
        self.log.append((self.name, "gradients"))
        return inner(batches, 0.25) + inner(batches, 0.5)


def test_hooks_are_called_in_order():
    log = []
    both = Composition([Recorder(log), Second(log)])
    context = context_of(make_parameters())
    assert both.configure(DropoutRates(0.1, 0.2, 0.3)) == DropoutRates(0.1, 0.2, 0.3)
    both.setup(context)
    both.before_fit(context)
    both.after_backward(context)
    both.after_step(context)
    assert log == [
        (who, h) for h in ("configure", "setup", "before_fit", "after_backward", "after_step") for who in "ab"
    ]
    log.clear()
    with both.evaluation(context):
        log.append("inside")
    assert log == [("a", "enter"), ("b", "enter"), "inside", ("b", "leave"), ("a", "leave")]
    log.clear()
    both.load_state_dict(both.state_dict())
    assert log == [("a", "a"), ("b", "b")]
    assert both.metrics(context) == {"a/x": 1.0, "b/x": 1.0}
    with pytest.raises(ValueError, match="'b' and 'b' both need the weights at which gradients are taken, which"):
        Composition([Second(log), Second(log)])


def test_ranks_order_the_hooks_and_nest_the_estimators():
    log = []
    weight = torch.nn.Parameter(torch.tensor([2.0]))

    def accumulate(batches, factor=1.0):
        loss = sum((weight * batch).sum() for batch in batches)
        (loss * factor).backward()
        return loss.detach()

    method = Composition([Recorder(log), Second(log), Third(log)])
    loss = method.gradients(context_of(make_parameters()), [1.0, 2.0], accumulate)
    assert log == [("c", "gradients"), ("b", "gradients"), ("b", "gradients")]
    assert loss.item() == 12.0
    assert weight.grad.item() == 3.0 * 0.75, "weights go through to the plain pass"
    log.clear()
    method.setup(context_of(make_parameters()))
    assert log == [(who, "setup") for who in "cab"]


def test_extra_losses_add_up():
    class Two(FineTuningMethod):
        name = "two"

        def extra_loss(self, context, batch, logits):
            return logits.sum() * 2

    class Three(FineTuningMethod):
        name = "three"

        def extra_loss(self, context, batch, logits):
            return logits.sum() * 3

    logits = torch.ones(2)
    context = context_of(make_parameters())
    assert Composition([Two(), Three()]).extra_loss(context, None, logits).item() == 10.0
    assert build_method("vanilla").extra_loss(context, None, logits) is None


@pytest.mark.parametrize("optimizer", ["adamax", "adamw"])
def test_pats_reports_its_noise(optimizer):
    parameters = make_parameters()
    method = build_method("pats", {"pats": PATSRule(threshold_mode="none", noise_probability=1.0)})
    groups = weight_decay_groups(ParamIndex(parameters.items()), 0.0)
    context = context_of(parameters)
    context.optimizer = method.make_optimizer(groups, OptimizerSettings(optimizer=optimizer, noise_seed=1))
    assert method.metrics(context) == {}
    set_gradients(parameters, make_gradients(1))
    context.optimizer.step()
    metrics = method.metrics(context)
    assert metrics["pats/spared"] == 0.0
    assert metrics["pats/noise_norm"] > 0.0
    assert ("pats/noise_over_update" in metrics) == (optimizer == "adamax")
    assert all(isinstance(value, float) for value in metrics.values())
    assert build_method("sage").metrics(context) == {}


def test_streams_are_named_and_apart():
    assert stream_seed(1, "noise") == stream_seed(1, "noise")
    seeds = {stream_seed(seed, name) for seed in range(100) for name in ("head", "order", "dropout", "noise")}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stream_seed(2018, "noise") == 5299252113098863482
    context = context_of(make_parameters())
    assert torch.equal(torch.rand(3, generator=context.rng("a")), torch.rand(3, generator=context.rng("a")))
    assert not torch.equal(torch.rand(3, generator=context.rng("a")), torch.rand(3, generator=context.rng("b")))


def test_all_methods_run_on_a_transformers_model():
    for spec in ("vanilla", "noisytune+sage", "noisytune+pats", "sage+pats"):
        model = tiny_bert()
        method = build_method(spec)
        context = make_context(model.named_parameters(), model, 0)
        method.setup(context)
        context.optimizer = method.make_optimizer(weight_decay_groups(context.params, 0.01), OptimizerSettings())
        for _ in range(3):
            context.optimizer.zero_grad()
            loss = model(torch.arange(12).view(2, 6))[0][:, 0].square().mean()
            loss.backward()
            context.optimizer.step()
        assert torch.isfinite(loss)
