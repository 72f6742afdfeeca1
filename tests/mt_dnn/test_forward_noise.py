"""HyPe and NEFTune: noise inside the forward pass of training."""

import numpy as np
import pytest
import torch

from data_utils.errors import SettingError
from module.methods.hype import HyPeSettings
from module.methods.neftune import NEFTuneSettings
from mt_dnn.run import run
from tests.mt_dnn.method_runs import assert_same_weights, build, final_weights, plain_weights
from tests.reference.hype import hype as reference_hype
from tests.reference.neftune import neftune as reference_neftune

VISIBLE = {"noise_scale": 1e-2}


@pytest.mark.parametrize(
    ("silent", "control"),
    [
        ({"method": "hype", "hype": {"noise_scale": 0.0}}, "no_hidden_dropout"),
        ({"method": "hype", "hype": {"noise_scale": 0.0, "keep_dropout": True}}, "vanilla"),
        ({"method": "neftune", "neftune": {"alpha": 0.0}}, "vanilla"),
    ],
)
def test_without_noise_a_run_is_its_control_bit_for_bit(tiny_run, silent, control):
    assert_same_weights(final_weights(tiny_run(save="last", **silent)), plain_weights(tiny_run, method=control))


@pytest.mark.parametrize("settings", [{"method": "hype", "hype": VISIBLE}, {"method": "neftune"}])
def test_noise_changes_the_run_and_repeats_with_its_seed(tiny_run, tmp_path, settings):
    first = final_weights(tiny_run(save="last", output_dir=tmp_path / "a", **settings))
    assert_same_weights(first, final_weights(tiny_run(save="last", output_dir=tmp_path / "b", **settings)))
    plain = plain_weights(tiny_run)
    assert not all(torch.equal(first[name], plain[name]) for name in plain)


class Inputs:
    """Records what enters each layer, after all other hooks."""

    def __init__(self, layers):
        self.seen = []
        for layer in layers:
            layer.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, layer, arguments, named):
        self.seen.append((arguments[0] if arguments else named["hidden_states"]).detach())


@pytest.mark.parametrize(
    "settings",
    [
        {"distribution": "normal"},
        {"distribution": "uniform"},
        {"distribution": "uniform", "centered": False},
    ],
)
def test_hype_is_its_reference_at_the_first_layer(tiny_run, settings):
    parts, _, batches = build(tiny_run(method="hype", hype={"noise_scale": 0.1, **settings}))
    plain, _, _ = build(tiny_run(method="no_hidden_dropout"))
    noisy, quiet = Inputs(parts.model.layers), Inputs(plain.model.layers)
    parts.network.train(), plain.network.train()
    stream = parts.context.stream("hype")
    before = stream.state()
    parts.model.logits(batches[0][0]), plain.model.logits(batches[0][0])
    assert len(noisy.seen) == len(parts.model.layers) == 2
    stream.restore(before)
    draw = stream.normal if settings["distribution"] == "normal" else stream.uniform
    expected = reference_hype(
        quiet.seen[0].numpy(), draw(quiet.seen[0]).double().numpy(), 0.1, settings["distribution"],
        settings.get("centered", True),
    )  # fmt: skip
    np.testing.assert_allclose(noisy.seen[0].numpy(), expected, rtol=0, atol=1e-6)
    noise = (noisy.seen[0] - quiet.seen[0]).numpy()
    if settings["distribution"] == "uniform":
        assert noise.max() <= 0.1 + 1e-6
        assert noise.min() >= (-0.1 if settings.get("centered", True) else 0.0) - 1e-6


def test_hype_is_silent_in_evaluation_and_at_other_layers(tiny_run):
    parts, _, batches = build(tiny_run(method="hype", hype={"noise_scale": 0.1, "first_layer": 1}))
    plain, _, _ = build(tiny_run(method="no_hidden_dropout"))
    noisy, quiet = Inputs(parts.model.layers), Inputs(plain.model.layers)
    for parts_ in (parts, plain):
        parts_.network.eval()
        parts_.model.logits(batches[0][0])
        parts_.network.train()
        parts_.model.logits(batches[0][0])
    equal = [torch.equal(a, b) for a, b in zip(noisy.seen, quiet.seen, strict=True)]
    assert equal == [True, True, True, False]


def test_hype_switches_hidden_dropout_off_and_leaves_attention_alone(tiny_run):
    parts, _, _ = build(tiny_run(method="hype", bert_dropout_p=0.2, dropout_p=0.3))
    config = parts.network.encoder.model.config
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.0, 0.2)
    assert parts.network.pooler.dropout.p == 0.0


def test_noise_that_the_number_format_loses_is_refused(tiny_run):
    with pytest.raises(SettingError, match=r"method hype, hidden states: noise of 1.0e-09 is lost in torch.float32"):
        run(tiny_run(method="hype", hype={"noise_scale": 1e-9}))


@pytest.mark.parametrize("padded_length", [False, True])
@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_neftune_is_its_reference_on_every_example(tiny_run, attention, padded_length):
    config = tiny_run(method="neftune", neftune={"alpha": 3.0, "padded_length": padded_length}, attention=attention)
    parts, _, batches = build(config)
    batch, (hook,) = batches[0][0], parts.model.embedding_hooks
    embeddings = parts.model.embed(batch).detach()
    stream = parts.context.stream("neftune")
    before = stream.state()
    got = hook(embeddings, batch).numpy()
    stream.restore(before)
    uniform = stream.uniform(embeddings).double().numpy()
    starts = np.cumsum([0, *batch.lengths.tolist()])
    for i, length in enumerate(batch.lengths.tolist()):
        place = slice(starts[i], starts[i + 1]) if attention == "packed" else (i, slice(0, length))
        wanted = batch.max_seqlen if padded_length else None
        expected = reference_neftune(embeddings.numpy()[place].astype(np.float64), uniform[place], 3.0, wanted)
        np.testing.assert_allclose(got[place], expected, rtol=0, atol=1e-6)
        if attention == "padded":
            np.testing.assert_array_equal(got[i, length:], embeddings.numpy()[i, length:])


@pytest.mark.parametrize("method", ["hype", "neftune"])
def test_autocast_and_accumulation_run(tiny_run, method):
    settings = {"hype": VISIBLE} if method == "hype" else {}
    run_ = tiny_run(method=method, precision="bf16", batch_size=8, grad_accumulation_step=2, **settings)
    assert run(run_).error is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: HyPeSettings(noise_scale=-1.0), "Invalid noise_scale: -1.0"),
        (lambda: HyPeSettings(distribution="cauchy"), "Invalid distribution: 'cauchy'"),
        (lambda: HyPeSettings(passes="some"), "Invalid passes: 'some'"),
        (lambda: HyPeSettings(first_layer=-1), "Invalid first_layer: -1"),
        (lambda: HyPeSettings(first_layer=3, last_layer=2), "Invalid last_layer: 2"),
        (lambda: NEFTuneSettings(alpha=float("nan")), "Invalid alpha: nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        settings()


def test_layers_and_passes_that_are_not_there_are_refused(tiny_run):
    with pytest.raises(SettingError, match="Invalid last_layer: 2: this encoder has the layers 0 to 1"):
        build(tiny_run(method="hype", hype={"last_layer": 2}))
    with pytest.raises(SettingError, match="Invalid passes: 'noised': no method beside hype makes such passes"):
        tiny_run(method="hype", hype={"passes": "noised"})
