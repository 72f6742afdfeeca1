"""Watching the sensitivities of a run: the same numbers as PATS keeps, and no change to any run."""

import pytest
import torch

from data_utils.errors import SettingError
from data_utils.json_file import read_json
from module.sensitivity_summary import SensitivitySummary
from mt_dnn.interrupt import Interrupted
from mt_dnn.run import run
from mt_dnn.run_id import run_dir, run_id
from mt_dnn.sensitivity_watch import SensitivityWatch
from tests.mt_dnn.method_runs import assert_same_weights, build, final_weights
from tests.mt_dnn.test_resume import StopAt

BETA = 0.75


def summary(config):
    return SensitivitySummary.from_json(read_json(run_dir(config) / "sensitivity.json"))


def watched(config, steps=6):
    """Path -> s̄ after some steps, and the optimizer's own observations."""
    parts, step, batches = build(config)
    watch = SensitivityWatch(parts.network, parts.optimizer, BETA)
    for i in range(steps):
        step(batches[i % len(batches)])
    return {path: entry["sensitivity"] for path, entry in watch.state_dict()["state"].items()}, parts.optimizer


def test_it_is_what_pats_keeps_bit_for_bit(tiny_run):
    seen, optimizer = watched(tiny_run(method="pats", pats={"sensitivity_beta": BETA, "noise_scale": 5e-2}))
    own = [o.sensitivity for o in optimizer.observations()]
    assert len(seen) == len(own) == 2 * 12  # two layers of six linear maps, weight and bias
    by_hash = {tuple(t.flatten().tolist()) for t in own}
    assert all(tuple(t.flatten().tolist()) in by_hash for t in seen.values())
    assert any(t.max() > 0 for t in own)


def test_beside_plain_fine_tuning_it_is_pats_without_noise(tiny_run):
    plain, _ = watched(tiny_run(method="vanilla"))
    silent, _ = watched(tiny_run(method="pats", pats={"noise_scale": 0.0}))
    assert plain.keys() == silent.keys()
    assert all(torch.equal(plain[path], silent[path]) for path in plain)
    noisy, _ = watched(tiny_run(method="pats", pats={"noise_scale": 1.0, "threshold_mode": "none"}))
    assert not all(torch.equal(plain[path], noisy[path]) for path in plain)


@pytest.mark.parametrize("method", ["vanilla", "pats", "sage", "sam", "bitfit", "child_tuning", "mixout"])
def test_watching_changes_no_number_and_no_run_id(tiny_run, tmp_path, method):
    short = {"method": method, "epochs": 1, "save": "last"}
    plain = tiny_run(output_dir=tmp_path / "plain", **short)
    seen = tiny_run(output_dir=tmp_path / "seen", sensitivity_beta=BETA, **short)
    assert run_id(plain) == run_id(seen)
    assert_same_weights(final_weights(plain), final_weights(seen))
    assert (run_dir(plain) / "metrics.jsonl").read_text() == (run_dir(seen) / "metrics.jsonl").read_text()
    assert not (run_dir(plain) / "sensitivity.json").exists()
    recorded = summary(seen)
    assert recorded.beta == BETA
    assert recorded.mean > 0.0
    weights = [t for t in recorded.tensors if t.path.endswith(".weight")]
    assert len(weights) == (0 if method == "bitfit" else 12), "frozen weights have no sensitivity"


@pytest.mark.parametrize("method", ["vanilla", "pats"])
def test_a_stopped_run_records_what_one_never_stopped_does(tiny_run, tmp_path, method):
    changes = {"method": method, "checkpoint_seconds": 0.0, "sensitivity_beta": BETA, "epochs": 2}
    whole = tiny_run(output_dir=tmp_path / "whole", **changes)
    run(whole)
    broken = tiny_run(output_dir=tmp_path / "broken", **changes)
    for step in (3, 9):
        with pytest.raises(Interrupted):
            run(broken, StopAt(step))
        assert not (run_dir(broken) / "sensitivity.json").exists()
    run(broken)
    assert summary(broken) == summary(whole)


@pytest.mark.parametrize("begun", [None, 0.5])
def test_a_run_begun_otherwise_is_refused(tiny_run, begun):
    with pytest.raises(Interrupted):
        run(tiny_run(sensitivity_beta=begun), StopAt(3))
    with pytest.raises(SettingError, match=rf"sensitivity_beta is 0\.75, but the run was begun with {begun} .* step 3"):
        run(tiny_run(sensitivity_beta=BETA))


@pytest.mark.parametrize("beta", [1.0, -0.1])
def test_beta_has_a_range(tiny_run, beta):
    with pytest.raises(SettingError, match=r"sensitivity_beta is .*; legal: a share in \[0, 1\)"):
        tiny_run(sensitivity_beta=beta)


def test_a_diverged_run_records_nothing(tiny_run):
    config = tiny_run(learning_rate=1e30, sensitivity_beta=BETA)
    assert run(config).status == "diverged"
    assert not (run_dir(config) / "sensitivity.json").exists()
