"""Runs that start from the network of a finished run."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_utils.errors import SettingError
from data_utils.file_hash import sha256_of
from data_utils.json_file import read_json
from mt_dnn.assembly import assemble
from mt_dnn.data import find_task_def
from mt_dnn.identity import identity_of
from mt_dnn.precision import resolve_precision
from mt_dnn.run import run
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_id import run_dir, run_id
from mt_dnn.run_reference import encoder_name, pretrained_of
from mt_dnn.starting_point import resolve_start, trained_start
from mt_dnn.trained.load import load_run, read_run
from tests.edits import edit_json
from tests.mt_dnn.method_runs import CPU
from tests.mt_dnn.test_resume import SLOWLY, assert_same_run, run_in_parts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def first(tiny_run, tmp_path):
    """Make a finished run on toy, with changes; returns its folder."""

    def make(**changes):
        config = tiny_run(**{"epochs": 1, "output_dir": tmp_path / "first", "save": "both", **changes})
        run(config)
        return run_dir(config)

    return make


def network_of(config):
    """The network of a run before its first step."""
    task_defs = [find_task_def(each) for each in config.by_task()]
    source = resolve_start(config)
    return assemble(config, task_defs, source, CPU, resolve_precision("fp32", CPU), 10).network


def weights_of(folder, epoch="best"):
    return load_file(folder / "checkpoints" / epoch / "model.safetensors")


@pytest.mark.parametrize("task", ["toy", "toyscore", "toyscore,toy"])
def test_encoder_pooler_and_fitting_heads_are_the_first_runs(tiny_run, first, task):
    folder = first()
    before = weights_of(folder)
    network = network_of(tiny_run(init_checkpoint=str(folder), train_datasets=task))
    plain = network_of(tiny_run(train_datasets=task)).state_dict()
    for name, tensor in network.state_dict().items():
        head = name.startswith("heads.")
        expected = before[name] if not head or name.startswith("heads.toy.") else plain[name]
        assert torch.equal(tensor, expected), name


def test_a_head_of_another_size_is_drawn_anew(tiny_run, first, tmp_path, tiny_task):
    folder = first()
    other = tmp_path / "task_def.yml"
    other.write_text((tiny_task / "task_def.yml").read_text().replace("n_class: 2", "n_class: 3", 1))
    config = tiny_run(init_checkpoint=str(folder), task_def=other)
    network = network_of(config)
    assert network.state_dict()["heads.toy.1.weight"].shape[0] == 3
    assert torch.equal(network.state_dict()["pooler.dense.weight"], weights_of(folder)["pooler.dense.weight"])


def test_the_last_epoch_is_taken_where_no_other_was_kept(tiny_run, first):
    folder = first(save="last", epochs=2)
    network = network_of(tiny_run(init_checkpoint=str(folder)))
    assert torch.equal(network.state_dict()["heads.toy.1.weight"], weights_of(folder, "last")["heads.toy.1.weight"])


def test_pretrained_anchors_are_the_first_runs_weights(tiny_run, first):
    folder = first()
    before = weights_of(folder)
    config = tiny_run(init_checkpoint=str(folder), method="l2sp", l2sp={"alpha": 0.1})
    task_defs = [find_task_def(config)]
    source = resolve_start(config)
    parts = assemble(config, task_defs, source, CPU, resolve_precision("fp32", CPU), 10)
    anchors = parts.context.anchor("pretrained")
    assert anchors
    assert all(torch.equal(anchor, before[name]) for name, anchor in anchors.items())


def test_names_tell_the_first_run(first, tiny_run):
    folder = first(method="pats", seed=7)
    config = tiny_run(init_checkpoint=str(folder))
    assert config.encoder == f"tiny-bert--toy-pats-{folder.parent.name}-s7"
    assert encoder_name(f"{folder}/") == config.encoder
    assert run_id(config) != run_id(tiny_run())
    long = f"runs/{'+'.join(f'task{i}' for i in range(20))}/enc/vanilla/0123456789ab/seed=12"
    assert len(encoder_name(long)) == 100
    assert encoder_name(long).endswith("-0123456789ab-s12")


def test_a_run_from_a_run_from_a_run(tiny_run, first, tmp_path):
    one = first()
    two = first(init_checkpoint=str(one), train_datasets="toyscore", output_dir=tmp_path / "second")
    three = tiny_run(init_checkpoint=str(two), epochs=1)
    assert pretrained_of(str(two)) == tiny_run().init_checkpoint
    assert torch.equal(network_of(three).state_dict()["pooler.dense.weight"], weights_of(two)["pooler.dense.weight"])
    run(three)
    assert load_run(read_run(run_dir(three)), "best", "cpu").task_def.name == "toy"


def test_the_identity_is_that_of_the_weights(tiny_run, first, tmp_path):
    folder = first()
    config = tiny_run(init_checkpoint=str(folder), epochs=1)
    recorded = identity_of(config).encoder
    own = identity_of(tiny_run()).encoder
    assert recorded.keys() - own.keys() == {"seed=1/checkpoints/best/model.safetensors"}
    assert own.keys() - recorded.keys() == {"model.safetensors"}
    result = run(config)
    assert run(config) == result
    file = folder / "checkpoints" / "best" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(SettingError, match=r"is damaged or of another run"):
        run(config)
    files = read_json(folder / "result.json")["files"]
    edit_json(folder / "result.json", files=files | {"checkpoints/best/model.safetensors": sha256_of(file)})
    with pytest.raises(
        SettingError, match=r"the encoder's seed=1/checkpoints/best/model.safetensors is not what .* was run with"
    ):
        run(config)


def test_weights_of_another_epoch_are_other_weights(tiny_run, first):
    folder = first(save="last", epochs=2)
    config = tiny_run(init_checkpoint=str(folder), epochs=1)
    run(config)
    last = folder / "checkpoints" / "last" / "model.safetensors"
    weights = load_file(last)
    shutil.rmtree(folder)
    assert first(save="best", epochs=2) == folder
    best = folder / "checkpoints" / "best" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in weights.items()}, best)  # whichever epoch the first run found best
    edit_json(folder / "result.json", files={"checkpoints/best/model.safetensors": sha256_of(best)})
    with pytest.raises(SettingError, match=r"the encoder's seed=1/checkpoints/last/model.safetensors is not what"):
        run(config)
    save_file(weights, best)  # the same weights as of another epoch
    edit_json(folder / "result.json", files={"checkpoints/best/model.safetensors": sha256_of(best)})
    assert run(config).done


def test_a_run_that_starts_from_a_run_resumes_exactly(tiny_run, first, tmp_path):
    changes = {"init_checkpoint": str(first()), "method": "pats", "train_datasets": "toyscore", **SLOWLY}
    whole = tiny_run(output_dir=tmp_path / "whole", **{**changes, "checkpoint_seconds": 600.0})
    run(whole)
    broken = tiny_run(output_dir=tmp_path / "broken", **changes)
    run_in_parts(broken, 2, 7)
    assert_same_run(whole, broken)


def broken_runs(folder: Path) -> dict[str, tuple[Path, str]]:
    """Ways in which a run is no start -> its folder, the message."""
    found = {}
    for name, message in {
        "unfinished": "is not finished; start its command again and wait for result.json",
        "failed": "has failed (a reason); start its command again and wait for result.json",
        "diverged": "is diverged (a reason); begin with a run that was trained to its end",
        "without": "model.safetensors is not of this run; delete ",
        "gone": "kept no weights (save: both); to get them, delete ",
    }.items():
        copy = shutil.copytree(folder, folder.parents[4] / name / Path(*folder.parts[-5:]))
        result = read_json(copy / "result.json")
        if name == "unfinished":
            (copy / "result.json").unlink()
        elif name in ("failed", "diverged"):
            edit_json(copy / "result.json", status=name, error="a reason")
        elif name == "without":
            kept = {file: digest for file, digest in result["files"].items() if "safetensors" not in file}
            edit_json(copy / "result.json", files=kept)
        else:
            shutil.rmtree(copy / "checkpoints")
        found[name] = copy, message
    return found


def test_a_run_that_is_no_start_is_refused_before_anything_is_written(tiny_run, first):
    for name, (folder, message) in broken_runs(first()).items():
        config = tiny_run(init_checkpoint=str(folder))
        with pytest.raises(SettingError, match=re.escape(message)) as refused:
            run(config)
        assert "\n" not in str(refused.value), name
        assert not run_dir(config).exists()


@pytest.mark.parametrize("method", ["ema", "swa", "mixout", "pats", "sage"])
def test_evaluated_weights_are_the_start(tiny_run, first, method):
    settings = {"swa": {"swa": {"start_epoch": 0, "start_step": 1, "interval": 1}}}.get(method, {})
    folder = first(method=method, **settings)
    network = network_of(tiny_run(init_checkpoint=str(folder)))
    kept = load_run(read_run(folder), "best", "cpu").network.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in network.state_dict().items() if name in kept)


def test_caches_are_the_encoders(tiny_run, first, tiny_task):
    config = tiny_run(init_checkpoint=str(first()))
    assert resolve_start(config).name == tiny_run().encoder


def test_an_encoder_is_no_run(tiny_encoder):
    assert trained_start(str(tiny_encoder), 1) is None
    assert trained_start("all-MiniLM-L6-v2", 1) is None


def test_a_start_is_found_without_torch():
    code = "import sys, mt_dnn.starting_point, mt_dnn.identity; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_description_names_the_run(tiny_run, first):
    folder = first()
    config = tiny_run(init_checkpoint=str(folder), epochs=1)
    run(config)
    description = RunDirectory(run_dir(config)).read_description()
    assert description["config"]["init_checkpoint"] == str(folder)
    assert description["encoder"] == config.encoder
