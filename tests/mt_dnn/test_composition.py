"""Every pair of methods: those that stand together train and resume, the others say why not."""

import random
from dataclasses import replace
from itertools import combinations

import pytest

from data_utils.errors import SettingError
from module.methods import METHODS, parse_method
from mt_dnn.run import run
from tests.mt_dnn.test_resume import assert_same_run, run_in_parts

NAMES = [name for name in METHODS if name != "vanilla"]

# Pairs that one of a run's resources allows only one of: docs/methods.md, "Composition".
REFUSED = {
    frozenset(pair)
    for group in (
        ("freelb", "smart", "r3f"),  # the perturbation of the word embeddings
        ("sam", "pgd", "pac_tuning"),  # the weights at which gradients are taken
        ("mixout", "pgd", "pac_tuning", "matched_noise"),  # noise on the weights of the forward pass
        ("mixout", "lora"),  # the encoder's linear layers
        ("hype", "pac_tuning"),
        ("pats", "pac_tuning"),
        ("pats", "pgd"),
        ("pats", "matched_noise"),
        ("ema", "swa"),  # the weights that are evaluated
        ("recadam", "lora"),
        ("l2sp", "lora"),
    )
    for pair in combinations(group, 2)
}
# Small enough for a tiny encoder and a learning rate of 3e-2, large enough to act.
SETTINGS: dict[str, dict[str, object]] = {
    "pats": {"noise_scale": 1e-2, "threshold_mode": "none"},
    "matched_noise": {"noise_scale": 1e-2, "threshold_mode": "none"},
    "hype": {"noise_scale": 1e-2},
    "r3f": {"noise_scale": 1e-2},
    "recadam": {"gamma": 10.0, "t0": 2},
    "pac_tuning": {"k_levels": 2, "k_models": 1},
    "swa": {"start_epoch": 0},
}


PAIRS = list(combinations(NAMES, 2))
OFTEN = [pair for pair in PAIRS if "pats" in pair or frozenset(pair) in REFUSED]
SAMPLE = random.Random(0).sample(sorted(set(PAIRS) - set(OFTEN)), 24)


def marked(pair):
    """All pairs of PATS, all refusals and a sample of the rest stand in every test run; the others are slow."""
    often = pair in OFTEN or pair in SAMPLE
    return pytest.param(pair, id="+".join(pair), marks=[] if often else [pytest.mark.slow])


@pytest.mark.parametrize("pair", [marked(pair) for pair in PAIRS])
def test_pairs(tiny_run, tmp_path, pair):
    spec = "+".join(pair)
    if frozenset(pair) in REFUSED:
        with pytest.raises(SettingError) as caught:
            tiny_run(method=spec)
        message = str(caught.value)
        assert all(repr(name) in message for name in pair), "both are named"
        assert "\n" not in message
        return
    assert parse_method(spec) == pair
    short = {
        "epochs": 2, "train_size": 32, "save": "last", "log_per_updates": 1,
        **{name: SETTINGS[name] for name in pair if name in SETTINGS},
    }  # fmt: skip
    whole = tiny_run(method=spec, output_dir=tmp_path / "whole", **short)
    assert run(whole).error is None
    broken = replace(whole, output_dir=tmp_path / "broken")
    run_in_parts(broken, 3)
    assert_same_run(whole, broken)
