"""BitFit: what is trained, and that only it moves."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from module.methods import build_method
from module.param_index import ParamIndex
from mt_dnn.results import Status
from mt_dnn.run import run
from mt_dnn.run_id import run_dir
from tests.module.hooked import Hooked
from tests.module.models import assert_close, float64, learning_rate, make_gradients, make_parameters
from tests.module.test_param_index import OwnNetwork, bare, families
from tests.mt_dnn.test_assembly import build
from tests.mt_dnn.test_run import final_weights, lines
from tests.reference import adamw
from tests.reference.bitfit import trained


@families
def test_every_family_trains_its_biases(family):
    network = OwnNetwork(bare(family))
    context = Hooked("vanilla", {}).context
    context.params = ParamIndex(network.named_parameters())
    build_method("bitfit").setup(context)
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == trained(name), name
    assert any("norm" in name.lower() and p.requires_grad for name, p in network.named_parameters())


def test_equals_the_reference():
    hooked = Hooked("bitfit", {}, learning_rate=learning_rate(1), weight_decay=0.02)
    names = list(make_parameters())
    expected = dict(zip(names, float64(make_parameters()).values(), strict=True))
    states = {name: adamw.new_state(value) for name, value in expected.items()}
    for step in range(1, 25):
        for name, g in zip(names, float64(make_gradients(step)).values(), strict=True):
            if trained(name):
                decay = 0.0 if name.endswith("bias") else 0.02
                expected[name] = adamw.adamw_step(expected[name], g, states[name], learning_rate(step), w=decay)
    for name, value in hooked.steps(24).values().items():
        assert_close(value, expected[name], name)


def learned_encoder(tiny_run, tiny_encoder, folder):
    """The tiny encoder after plain fine-tuning on the task: random features are not enough for biases to go by."""
    weights = final_weights(tiny_run(epochs=6, save="last"))
    shutil.copytree(tiny_encoder, folder)
    prefix = "encoder.model."
    encoder = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    save_file(encoder, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_moves_biases_and_head_alone_and_learns(tiny_run, tiny_encoder, tmp_path, precision):
    folder = learned_encoder(tiny_run, tiny_encoder, tmp_path / "learned")
    config = tiny_run(method="bitfit", init_checkpoint=str(folder), save="last", precision=precision, seed=2)
    result = run(config)
    assert result.status is Status.OK
    assert result.last.score > 50.0
    before = load_file(folder / "model.safetensors")
    after = load_file(run_dir(config) / "checkpoints/last/model.safetensors")
    for name, value in before.items():
        if not name.endswith("key.bias"):  # its gradient is rounding: softmax does not see it
            assert torch.equal(value, after[f"encoder.model.{name}"]) != name.endswith("bias"), name
    parts = build(config)
    owned = {id(p) for group in parts.optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for name, p in parts.network.named_parameters() if trained(name)}


def test_it_changes_neither_head_nor_data_order_nor_dropout(tiny_run):
    losses = {}
    for method in ("vanilla", "bitfit"):
        config = tiny_run(method=method, learning_rate=1e-12, log_per_updates=1, epochs=1)
        run(config)
        losses[method] = [line["loss"] for line in lines(run_dir(config)) if "loss" in line]
    assert losses["bitfit"] == pytest.approx(losses["vanilla"], rel=1e-6)


def test_packed_and_padded_and_accumulated_give_the_same_run(tiny_run):
    quiet = {
        "method": "bitfit", "bert_dropout_p": 0.0, "dropout_p": 0.0, "save": "last", "learning_rate": 1e-3,
        "adam_eps": 1e-4,
    }  # fmt: skip
    packed = final_weights(tiny_run(attention="packed", **quiet))
    for changes in ({"attention": "padded"}, {"batch_size": 4, "grad_accumulation_step": 4}):
        other = final_weights(tiny_run(**quiet, **changes))
        for name in packed:
            torch.testing.assert_close(packed[name], other[name], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("method", ["bitfit+pats", "bitfit+l2sp", "bitfit+ema", "noisytune+bitfit"])
def test_it_runs_beside_others(tiny_run, method):
    assert run(tiny_run(method=method)).status in (Status.OK, Status.DEGENERATE)
