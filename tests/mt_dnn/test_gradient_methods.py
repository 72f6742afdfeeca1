"""Component-wise clipping, Child-Tuning and re-initialisation."""

import json

import numpy as np
import pytest
import torch

from data_utils.errors import SettingError
from module.clipping import gradient_values
from module.methods.child_tuning import ChildTuningSettings, _quantile
from module.methods.component_clip import ComponentClipSettings
from module.methods.reinit import ReinitSettings
from mt_dnn.run import run
from mt_dnn.run_id import run_dir
from tests.families import make_family
from tests.mt_dnn.method_runs import assert_same_weights, build, final_weights, plain_weights
from tests.reference.child_tuning import child as reference_child
from tests.reference.child_tuning import fisher as reference_fisher
from tests.reference.component_clip import component_clip as reference_clip

OFF = {"global_grad_clipping": 0.0}


@pytest.mark.parametrize(
    "silent",
    [
        {"method": "component_clip", "component_clip": {"max_norm": 1e9}},
        {"method": "component_clip", "component_clip": {"max_norm": float("inf")}},
        {"method": "child_tuning", "child_tuning": {"variant": "F", "reserve": 1.0}},
        {"method": "child_tuning", "child_tuning": {"variant": "D", "reserve": 1.0}},
        {"method": "reinit", "reinit": {"n_layers": 0}},
    ],
)
def test_without_strength_a_run_is_plain_fine_tuning_bit_for_bit(tiny_run, silent):
    assert_same_weights(final_weights(tiny_run(save="last", **OFF, **silent)), plain_weights(tiny_run, **OFF))


def gradients_of(parts):
    return {
        info.name: gradient_values(info.parameter).clone()
        for info in parts.context.params
        if info.parameter.grad is not None
    }


def test_clipping_is_its_reference_and_keeps_directions(tiny_run):
    parts, step, batches = build(tiny_run(method="component_clip", component_clip={"max_norm": 0.05}, **OFF))
    clipped = 0
    for window in batches * 5:
        parts.optimizer.zero_grad()
        parts.network.train()
        step.parts.context.accumulate(window)
        before = gradients_of(parts)
        expected = reference_clip({n: g.double().numpy() for n, g in before.items()}, 0.05)
        parts.method.after_backward(parts.context)
        for name, gradient in gradients_of(parts).items():
            np.testing.assert_allclose(gradient.numpy(), expected[name], rtol=1e-5, atol=1e-12)
            norm = float(before[name].norm())
            assert float(gradient.norm()) <= 0.05 * (1 + 1e-5)
            if norm < 0.049:
                assert torch.equal(gradient, before[name])
            clipped += norm > 0.051
        parts.optimizer.step()
    assert clipped > 20


def test_the_embeddings_rows_are_clipped_as_the_dense_gradient(tiny_run, tmp_path, monkeypatch):
    settings = {"method": "component_clip", "component_clip": {"max_norm": 0.01}, "save": "last", **OFF}
    sparse = final_weights(tiny_run(output_dir=tmp_path / "sparse", **settings))
    monkeypatch.setattr("mt_dnn.encoder.model.Encoder.use_row_sparse_gradients", lambda self: None)
    dense = final_weights(tiny_run(output_dir=tmp_path / "dense", **settings))
    for name, expected in dense.items():
        torch.testing.assert_close(sparse[name], expected, rtol=1e-4, atol=1e-6)


def test_the_fisher_information_and_its_entries_are_the_references(tiny_run):
    settings = {"variant": "D", "reserve": 0.25, "fisher_clipping": 0.05, "fisher_dropout": False}
    parts, step, batches = build(tiny_run(method="child_tuning", child_tuning=settings))
    parts.network.eval()
    seen = []
    for window in batches:
        parts.network.zero_grad()
        step.parts.context.accumulate(window)
        layers = [info for info in parts.context.params if info.in_layer]
        seen.append({info.name: info.parameter.grad.double().numpy().copy() for info in layers})
    expected = reference_child(reference_fisher(seen, 0.05), 0.25)
    parts.method.before_fit(parts.context)
    masks = parts.method.state_dict()["child_tuning"]["masks"]
    assert masks.keys() == expected.keys()
    same = sum(int((masks[n].numpy() == expected[n]).sum()) for n in masks)
    entries = sum(mask.numel() for mask in masks.values())
    assert same >= entries - 3, "but for ties in float32"
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert abs(kept / entries - 0.25) < 1e-3


def masked_and_whole(tiny_run, settings, method="child_tuning"):
    parts, step, batches = build(tiny_run(method=method, child_tuning=settings))
    parts.method.before_fit(parts.context)
    parts.network.train()
    step.parts.context.accumulate(batches[0])
    before = gradients_of(parts)
    parts.method.after_backward(parts.context)
    return parts, before, gradients_of(parts)


def test_the_fixed_child_is_trained_and_the_rest_of_the_layers_is_not(tiny_run):
    parts, before, after = masked_and_whole(tiny_run, {"variant": "D"})
    masks = parts.method.state_dict()["child_tuning"]["masks"]
    for info in parts.context.params:
        expected = before[info.name] * masks[info.name] if info.in_layer else before[info.name]
        assert torch.equal(after[info.name], expected)


def test_the_random_child_keeps_the_expected_gradient(tiny_run):
    _, before, after = masked_and_whole(tiny_run, {"variant": "F", "reserve": 0.3})
    kept = torch.cat([(after[name] != 0)[before[name] != 0].reshape(-1) for name in before])
    assert abs(kept.float().mean() - 0.3) < 5 * (0.21 / kept.numel()) ** 0.5
    for name, gradient in after.items():
        scaled = gradient[gradient != 0]
        torch.testing.assert_close(scaled, before[name][gradient != 0] / 0.3, rtol=1e-4, atol=0)


def test_another_step_has_another_child(tiny_run):
    parts, _, first = masked_and_whole(tiny_run, {"variant": "F", "reserve": 0.5})
    name = next(info.name for info in parts.context.params if info.in_layer and info.parameter.numel() > 1000)
    gradient = torch.ones_like(first[name])
    dict(parts.network.named_parameters())[name].grad = gradient
    parts.method.after_backward(parts.context)
    assert not torch.equal(gradient != 0, first[name] != 0)


@pytest.mark.parametrize(
    ("method", "whole"), [("child_tuning", False), ("child_tuning+pats", True), ("sage+child_tuning", True)]
)
def test_whole_gradients_stay_for_sensitivities_until_the_step_is_done(tiny_run, method, whole):
    parts, before, _ = masked_and_whole(tiny_run, {"variant": "D"}, method)
    for info in parts.context.params:
        assert hasattr(info.parameter, "unmasked_grad") == (whole and info.in_layer)
        if whole and info.in_layer:
            assert torch.equal(info.parameter.unmasked_grad, before[info.name])
    parts.method.after_step(parts.context)
    assert not any(hasattr(info.parameter, "unmasked_grad") for info in parts.context.params)


def test_the_first_pass_of_d_moves_no_other_stream(tiny_run):
    config = tiny_run(method="child_tuning", save="last", log_per_updates=1, learning_rate=1e-12, epochs=1)
    plain = tiny_run(save="last", log_per_updates=1, learning_rate=1e-12, epochs=1)
    losses = []
    for one in (config, plain):
        run(one)
        lines = [json.loads(line) for line in (run_dir(one) / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_top_layer_starts_anew_and_nothing_else(tiny_run):
    parts, _, _ = build(tiny_run(method="reinit", reinit={"n_layers": 1}))
    plain, _, _ = build(tiny_run())
    for info in parts.context.params:
        before = plain.context.params[info.name].parameter
        if info.layer != 1:
            assert torch.equal(info.parameter, before)
        elif info.kind == "weight":
            std = float(info.parameter.detach().std())
            assert abs(std - 0.02) < 5 * 0.02 / (2 * info.parameter.numel()) ** 0.5
            assert not torch.equal(info.parameter, before)
        else:
            gain = info.kind == "layer_norm" and info.name.endswith("weight")
            assert torch.equal(info.parameter, torch.full_like(info.parameter, 1.0 if gain else 0.0))


@pytest.mark.parametrize("family", ["gemma", "llama", "nomic_bert"])
def test_a_norm_that_starts_anew_scales_by_one(tiny_run, tmp_path, family):
    """Gemma's adds 1 to its gain."""
    parts, _, _ = build(tiny_run(method="reinit", init_checkpoint=str(make_family(tmp_path / family, family))))
    layer = parts.model.layers[1]
    norms = [module for name, module in layer.named_modules() if name.endswith("layernorm")]
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    x = x - x.mean(dim=1, keepdim=True)
    for norm in norms:
        torch.testing.assert_close(norm(x).square().mean(dim=1), torch.ones(4), rtol=1e-4, atol=1e-4)
    assert len(norms) == 2


@pytest.mark.parametrize("method", ["component_clip", "child_tuning", "reinit"])
def test_autocast_and_accumulation_run(tiny_run, method):
    assert run(tiny_run(method=method, precision="bf16", batch_size=8, grad_accumulation_step=2)).error is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: ComponentClipSettings(max_norm=0.0), "Invalid max_norm: 0.0"),
        (lambda: ComponentClipSettings(max_norm=float("nan")), "Invalid max_norm: nan"),
        (lambda: ChildTuningSettings(variant="E"), "Invalid variant: 'E'"),
        (lambda: ChildTuningSettings(reserve=0.0), "Invalid reserve: 0.0"),
        (lambda: ChildTuningSettings(fisher_clipping=-1.0), "Invalid fisher_clipping: -1.0"),
        (lambda: ReinitSettings(n_layers=-1), "Invalid n_layers: -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        settings()


def test_more_layers_than_there_are_is_refused(tiny_run):
    with pytest.raises(SettingError, match="Invalid n_layers: 3: this encoder has 2"):
        build(tiny_run(method="reinit", reinit={"n_layers": 3}))


def test_the_quantile_is_the_same_where_kthvalue_is_refused(monkeypatch):
    parts = [torch.randn(5, 4), torch.randn(7)]
    expected = [_quantile(parts, share) for share in (0.0, 0.3, 1.0)]
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    monkeypatch.setattr(torch.Tensor, "kthvalue", lambda *_: pytest.fail("CUDA's kthvalue is not deterministic"))
    assert [_quantile(parts, share) for share in (0.0, 0.3, 1.0)] == expected
