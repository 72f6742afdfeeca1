"""Every method on every family: it trains and does something, or is refused in one line before anything is written."""

import functools
import itertools
import json
import random
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from data_utils.errors import SettingError
from module.methods import METHODS
from mt_dnn.run import run
from mt_dnn.run_id import run_dir
from tests.families import FAMILIES, make_family
from tests.module.integrations.test_families import OTHER

OWN = [name for name in METHODS.own if name != "lora" or find_spec("peft") is not None]  # requirements-lora.txt
CELLS = list(itertools.product(FAMILIES, OWN))
REFUSED = {("gpt2", "mixout"): "method mixout on tiny-gpt2: mixout finds no nn.Linear in the encoder"}
SAMPLE = {*random.Random(15).sample(CELLS, 24), *REFUSED}
# Families that have no dropout where the method switches it off.
NO_HIDDEN_DROPOUT = ("eurobert", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")


@pytest.fixture(scope="module")
def encoder_of(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return functools.cache(lambda family: str(make_family(root / f"tiny-{family}", family)))


def weights(make_run, encoder, method):
    settings = {method: OTHER[method]} if method in OTHER else {}
    settings |= {"pac_tuning": {"k_levels": 2, "k_models": 1}} if method == "pac_tuning" else {}
    settings |= {"swa": {"start_epoch": 0, "start_step": 1, "interval": 1}} if method == "swa" else {}
    config = make_run(
        init_checkpoint=encoder, method=method, epochs=1, batch_size=24, learning_rate=1e-2, save="last", dropout_p=0.0,
        log_per_updates=1, **settings,
    )  # fmt: skip
    result = run(config)
    assert result.status.value in ("ok", "degenerate"), result.error
    losses = [
        json.loads(line).get("loss", 1.0) for line in (run_dir(config) / "metrics.jsonl").read_text().splitlines()
    ]
    assert all(0.0 < loss < 20.0 for loss in losses)
    return load_file(run_dir(config) / "checkpoints" / "last" / "model.safetensors")


@pytest.mark.parametrize(
    ("family", "method"), [pytest.param(*cell, marks=[pytest.mark.slow] * (cell not in SAMPLE)) for cell in CELLS]
)
def test_every_method_on_every_family(tiny_run, encoder_of, family, method):
    if (family, method) in REFUSED:
        with pytest.raises(SettingError, match=REFUSED[family, method]) as caught:
            weights(tiny_run, encoder_of(family), method)
        assert "\n" not in str(caught.value)
        assert not list(tiny_run().output_dir.rglob("run.json"))
        return
    found = weights(tiny_run, encoder_of(family), method)
    plain = weights(tiny_run, encoder_of(family), "vanilla")
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())
    same = found.keys() == plain.keys() and all(torch.equal(found[name], plain[name]) for name in plain)
    silent = method == "vanilla" or (method == "no_hidden_dropout" and family in NO_HIDDEN_DROPOUT)
    assert same == silent
