"""LoRA through peft: the layers, their names, their draws, whole runs, and its absence."""

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_utils.errors import SettingError
from module.methods import build_method, parse_method
from module.methods.lora import LoRASettings
from module.param_index import Kind, ParamIndex, Role
from mt_dnn.results import Status
from mt_dnn.run import run
from mt_dnn.run_id import run_dir
from tests.module.hooked import Hooked
from tests.module.models import assert_close
from tests.module.test_param_index import OwnNetwork, bare, families
from tests.mt_dnn.test_assembly import build
from tests.mt_dnn.test_run import final_weights, lines
from tests.reference import lora as reference

needs_peft = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("peft") is None, reason="peft is missing: see requirements-lora.txt"
)


def adapted(model, seed=1, **settings):
    """A network of ours around a model, with adapters."""
    network = OwnNetwork(model)
    context = Hooked("vanilla", {}).context
    context.network, context.params, context.seed = network, ParamIndex(network.named_parameters()), seed
    build_method("lora", {"lora": LoRASettings(**settings)}).setup(context)
    return network


@needs_peft
@families
@pytest.mark.parametrize("layers", ["query_value", "all"])
def test_every_family_is_known_by_role(family, layers):
    plain = {info.path: info for info in ParamIndex(OwnNetwork(bare(family)).named_parameters())}
    index = ParamIndex(adapted(bare(family), layers=layers).named_parameters())
    adapters = [info for info in index if info.path not in plain]
    assert {info.path for info in index} - {info.path for info in adapters} == set(plain)
    assert {(info.kind, info.pretrained, info.role) for info in adapters if info.in_layer} == {
        (Kind.WEIGHT, False, Role.ENCODER)
    }
    assert len([info for info in adapters if info.layer == 1]) >= (4 if layers == "query_value" else 12)
    for info in index:
        assert info.parameter.requires_grad == (not info.pretrained), info.name
        if info.path in plain:
            same = plain[info.path]
            assert (info.role, info.layer, info.kind, info.pretrained) == (
                same.role, same.layer, same.kind, same.pretrained,
            )  # fmt: skip


@needs_peft
def test_a_layer_equals_the_reference_for_20_steps():
    query = adapted(bare("bert"), r=3, alpha=6.0).encoder.model.encoder.layer[0].attention.self.query
    a, low = query.lora_A["default"].weight, query.lora_B["default"].weight
    assert torch.equal(low, torch.zeros_like(low))
    assert 0.9 * 16**-0.5 < a.detach().abs().max() <= 16**-0.5
    w, b = (p.detach().double().numpy() for p in (query.base_layer.weight, query.base_layer.bias))
    a64, low64 = a.detach().double().numpy().copy(), low.detach().double().numpy().copy()
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, target = rng.normal(size=(7, 16)).astype(np.float32), rng.normal(size=(7, 16)).astype(np.float32)
        loss = (query(torch.from_numpy(x)) - torch.from_numpy(target)).square().sum()
        loss.backward()
        delta = 2 * (reference.forward(x.astype(float), w, b, a64, low64, 2.0) - target)
        g_a, g_low = reference.gradients(x.astype(float), delta, a64, low64, 2.0)
        a64, low64 = a64 - 1e-3 * g_a, low64 - 1e-3 * g_low
        with torch.no_grad():
            for parameter in (a, low):
                parameter -= 1e-3 * parameter.grad
                parameter.grad = None
    assert np.abs(low64).max() > 0.01
    assert_close(a, a64, tolerance=1e-5)
    assert_close(low, low64, tolerance=1e-5)
    assert query.base_layer.weight.grad is None


@needs_peft
def test_adapters_draw_from_streams_of_their_own():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = dict(adapted(bare("bert")).named_parameters())
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    OwnNetwork(bare("bert"))
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(77)
    again = dict(adapted(bare("bert")).named_parameters())
    other = dict(adapted(bare("bert"), seed=2).named_parameters())
    drawn = [name for name in one if "lora_A" in name]
    assert len(drawn) == 4
    assert all(torch.equal(one[name], again[name]) for name in drawn)
    assert not any(torch.equal(one[name], other[name]) for name in drawn)
    assert not torch.equal(one[drawn[0]], one[drawn[1]])


@needs_peft
def test_it_starts_as_the_loaded_encoder_and_changes_no_other_stream(tiny_run):
    """With a learning rate of nearly nothing the losses tell the first weights, the data order, head and dropout."""
    losses = {}
    for method in ("vanilla", "lora"):
        config = tiny_run(method=method, learning_rate=1e-12, log_per_updates=1, epochs=1)
        run(config)
        losses[method] = [line["loss"] for line in lines(run_dir(config)) if "loss" in line]
    assert losses["lora"] == pytest.approx(losses["vanilla"], rel=1e-6)


@needs_peft
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_learns_and_moves_nothing_pretrained(tiny_run, tiny_encoder, precision):
    config = tiny_run(
        method="lora", learning_rate=5e-2, epochs=10, save="last", precision=precision, lora={"layers": "all"}
    )
    result = run(config)
    assert result.status is Status.OK
    assert result.last.score > 30.0  # MCC: chance is 0
    after = load_file(run_dir(config) / "checkpoints/last/model.safetensors")
    assert any("lora_B" in name and value.any() for name, value in after.items())
    plain = {name.replace(".base_layer", ""): value for name, value in after.items() if "lora_" not in name}
    for name, value in load_file(tiny_encoder / "model.safetensors").items():
        if not name.startswith("pooler"):
            assert torch.equal(value, plain[f"encoder.model.{name}"]), name


@needs_peft
def test_the_update_is_a_matrix_that_can_be_added(tiny_run):
    """W + (alpha / r) B A in the place of each layer gives the same logits."""
    parts = build(tiny_run(method="lora", lora={"r": 4, "alpha": 12.0}))
    plain = build(tiny_run())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in parts.network.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        values = dict(parts.network.named_parameters())
        for name, parameter in plain.network.named_parameters():
            stem = name.removesuffix(".weight")
            if f"{stem}.base_layer.weight" in values:
                a, low = (values[f"{stem}.lora_{which}.default.weight"] for which in "AB")
                parameter += 3.0 * low @ a
    from mt_dnn.data import open_datasets

    cache = open_datasets(tiny_run()).train
    batch = plain.network.encoder.batch(cache, np.arange(12), torch.device("cpu"))
    with torch.inference_mode():
        one, two = parts.network.eval()(batch), plain.network.eval()(batch)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@needs_peft
def test_without_scale_only_the_head_is_trained(tiny_run):
    quiet = final_weights(tiny_run(method="lora", lora={"alpha": 0.0}, save="last"))
    loud = final_weights(tiny_run(method="lora", save="last"))
    assert not any(value.any() for name, value in quiet.items() if "lora_B" in name)
    assert any(value.any() for name, value in loud.items() if "lora_B" in name)


@needs_peft
def test_packed_and_padded_and_accumulated_give_the_same_run(tiny_run):
    quiet = {
        "method": "lora", "bert_dropout_p": 0.0, "dropout_p": 0.0, "save": "last", "learning_rate": 1e-3,
        "adam_eps": 1e-4,
    }  # fmt: skip
    packed = final_weights(tiny_run(attention="packed", **quiet))
    for changes in ({"attention": "padded"}, {"batch_size": 4, "grad_accumulation_step": 4}):
        other = final_weights(tiny_run(**quiet, **changes))
        for name in packed:
            torch.testing.assert_close(packed[name], other[name], rtol=2e-4, atol=2e-5)


@needs_peft
@pytest.mark.parametrize("method", ["noisytune+lora", "lora+pats", "lora+sage", "lora+ema", "lora+bitfit", "lora+llrd"])
def test_it_runs_beside_others(tiny_run, method):
    assert run(tiny_run(method=method)).status in (Status.OK, Status.DEGENERATE)


@needs_peft
def test_noise_and_biases_beside_it(tiny_run):
    noisy, clean = build(tiny_run(method="noisytune+lora")), build(tiny_run(method="noisytune"))
    name = "encoder.model.encoder.layer.1.attention.self.value"
    assert torch.equal(
        noisy.network.get_parameter(f"{name}.base_layer.weight"), clean.network.get_parameter(f"{name}.weight")
    )
    both = build(tiny_run(method="lora+bitfit+l2sp"))
    assert both.network.get_parameter(f"{name}.base_layer.bias").requires_grad
    assert not both.network.get_parameter(f"{name}.base_layer.weight").requires_grad
    assert both.network.get_parameter(f"{name}.lora_A.default.weight").requires_grad


@needs_peft
def test_methods_that_need_pretrained_weights_to_move_are_refused(tiny_run):
    with pytest.raises(SettingError, match="'recadam' and 'lora' do not stand together: the one acts on"):
        build(tiny_run(method="lora+recadam", recadam={"gamma": 1.0}))


def test_without_peft_one_line_says_what_to_install(tiny_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SettingError, match=r"needs the package peft.*pip install -r requirements-lora\.txt") as caught:
        run(tiny_run(method="lora"))
    assert "\n" not in str(caught.value)


@needs_peft
def test_an_encoder_without_such_layers_is_refused_in_one_line():
    context = Hooked("vanilla", {}).context
    context.network.model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    context.network.model.config = {}
    with pytest.raises(ValueError, match=r"Method lora: .*--lora\.layers all takes every linear layer") as caught:
        build_method("lora").setup(context)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="needs a model of transformers inside the network"):
        build_method("lora").setup(Hooked("vanilla", {}).context)


def test_mistakes():
    for wrong in ({"r": 0}, {"alpha": -1.0}, {"layers": "some"}):
        with pytest.raises(ValueError, match=f"Invalid {next(iter(wrong))}: .* is needed"):
            LoRASettings(**wrong)
    assert parse_method("noisytune+lora") == ("noisytune", "lora")
