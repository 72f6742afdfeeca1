"""Runs that begin with the trained weights of a run."""

import logging
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_utils.errors import SettingError
from data_utils.json_file import read_json
from mt_dnn.identity import finished_result, identity_of
from mt_dnn.run import open_run, run
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_id import run_dir, run_id
from mt_dnn.run_reference import encoder_name, find_reference, pretrained_of
from mt_dnn.trained.export import export, merged
from mt_dnn.trained.load import load_run, read_run
from tests.edits import edit_json, flip
from tests.mt_dnn.test_resume import SETTINGS, SLOWLY, assert_same_run, run_in_parts

METHODS = ("vanilla", "pats", "ema", "pats+swa", "mixout", "lora", "reinit")


@pytest.fixture
def first(tiny_run):
    """The folder of a finished run of the task toy, with both weights."""
    config = tiny_run(save="both")
    run(config)
    return run_dir(config)


def begun(config):
    """Weights of a new run before its first step."""
    with open_run(config) as trainer:
        return {name: value.clone() for name, value in trainer.parts.network.state_dict().items()}


def kept(folder, epoch="best"):
    return load_file(folder / "checkpoints" / epoch / "model.safetensors")


def assert_equal(one, two):
    assert set(one) == set(two)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.mark.parametrize("spelled", ["", ":best", ":last"])
def test_a_run_begins_with_the_weights_of_a_run(first, tiny_run, spelled, caplog):
    with caplog.at_level(logging.INFO):
        found = begun(tiny_run(init_checkpoint=f"{first}{spelled}"))
    assert_equal(found, kept(first, spelled[1:] or "best"))
    (line,) = [record.getMessage() for record in caplog.records if " gives " in record.getMessage()]
    assert line.endswith(f"({spelled[1:] or 'best'} epoch) gives the encoder, the pooler, the head of toy")


@pytest.mark.parametrize("method", METHODS)
def test_the_weights_are_those_that_a_prediction_has(method, tiny_run):
    settings = {"swa": {"start_step": 1, "start_epoch": 0, "interval": 2}} if "swa" in method else SETTINGS.get(method)
    config = tiny_run(method=method, **(settings or {}))
    run(config)
    network = load_run(read_run(run_dir(config)), "best", "cpu").network
    rest = {name: value for name, value in network.state_dict().items() if not name.startswith("encoder.")}
    encoder = {f"encoder.model.{name}": value for name, value in merged(network.encoder.model).items()}
    assert_equal(begun(tiny_run(init_checkpoint=str(run_dir(config)))), {**rest, **encoder})


def test_heads_are_taken_where_they_fit(first, tiny_run, caplog):
    alone = begun(tiny_run(train_datasets="toyscore"))
    with caplog.at_level(logging.INFO):
        found = begun(tiny_run(train_datasets="toyscore,toy", init_checkpoint=str(first)))
    assert "gives the encoder, the pooler, the head of toy; drawn anew: the head of toyscore" in caplog.text
    weights = kept(first)
    assert torch.equal(found["heads.toy.1.weight"], weights["heads.toy.1.weight"])
    assert torch.equal(found["heads.toyscore.1.weight"], alone["heads.toyscore.1.weight"])  # as if it began plainly
    caplog.clear()
    with caplog.at_level(logging.INFO):
        linear = begun(tiny_run(pooler_actf="linear", init_checkpoint=str(first)))
    assert "gives the encoder; drawn anew: the pooler, the head of toy" in caplog.text
    assert_equal(
        linear, {**begun(tiny_run(method="pats")), **{n: v for n, v in weights.items() if n.startswith("encoder.")}}
    )


def test_a_head_of_another_number_of_classes_is_drawn_anew(first, tiny_run, tiny_task, tmp_path):
    three = tmp_path / "three.yml"
    three.write_text((tiny_task / "task_def.yml").read_text().replace("n_class: 2", "n_class: 3"))
    found = begun(tiny_run(task_def=three, init_checkpoint=str(first)))
    assert found["heads.toy.1.weight"].shape == (3, 32)
    assert torch.equal(found["pooler.dense.weight"], kept(first)["pooler.dense.weight"])


def test_a_chain_of_runs_has_the_encoder_of_the_first(first, tiny_run, tiny_encoder):
    second = tiny_run(init_checkpoint=str(first))
    run(second)
    third = tiny_run(init_checkpoint=str(run_dir(second)))
    assert_equal(begun(third), kept(run_dir(second)))
    assert pretrained_of(third.init_checkpoint) == str(tiny_encoder)
    assert run_id(third) != run_id(second)
    assert len({config.encoder for config in (tiny_run(), second, third)}) == 3
    shutil.rmtree(first)  # the second is used without it
    assert_equal(load_run(read_run(run_dir(second)), "best", "cpu").network.state_dict(), kept(run_dir(second)))


def test_the_name_says_which_run_wherever_it_lies(first, tiny_run, tmp_path):
    name = encoder_name(str(first))
    assert name == f"tiny-bert--toy-vanilla-{first.parent.name}-s1"
    assert encoder_name(f"{first}:last") == f"{name}-last"
    assert encoder_name(str(first.parent)) == name.removesuffix("-s1")
    moved = shutil.copytree(first.parent, tmp_path / "elsewhere")
    assert encoder_name(str(moved / "seed=1")) == name
    assert encoder_name(str(moved)) == name.removesuffix("-s1")
    for one, other in ((first, moved / "seed=1"), (first.parent, moved)):
        ids = [run_id(tiny_run(init_checkpoint=str(path))) for path in (one, other)]
        assert ids[0] == ids[1] != run_id(tiny_run())
    shutil.rmtree(first.parent)
    assert encoder_name(str(first)) == name  # of a run that is yet to be made, its path says it
    assert encoder_name(str(first.parent)) == name.removesuffix("-s1")


def test_a_long_name_keeps_what_tells_runs_apart(first):
    edit_json(first / "run.json", encoder="e" * 95)
    assert encoder_name(str(first)) == f"{'e' * 84}-{first.parent.name}-s1"


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "org/model", "bert-base-uncased", "org/0123456789ab", "a:last"])
def test_encoders_are_no_runs(name):
    assert find_reference(name) is None


def test_a_folder_of_seeds_gives_each_run_that_of_its_seed(tiny_run):
    for seed in (1, 2):
        run(tiny_run(seed=seed))
    folder = run_dir(tiny_run()).parent
    second = [tiny_run(init_checkpoint=str(folder), seed=seed) for seed in (1, 2, 3)]
    for config in second[:2]:
        assert_equal(begun(config), kept(folder / f"seed={config.seed}"))
    assert run_dir(second[0]).parent == run_dir(second[1]).parent
    one, two = map(identity_of, second[:2])
    assert one.encoder != two.encoder
    assert one.encoder_difference(two) == ""  # they stand in one cell of a table
    with pytest.raises(SettingError, match=r"init_checkpoint: the run .*/seed=3 does not exist; train it first"):
        run(second[2])


def test_other_weights_are_another_run(first, tiny_run):
    second = tiny_run(init_checkpoint=str(first))
    run(second)
    digest = read_json(first / "result.json")["files"]["checkpoints/best/model.safetensors"]
    description = RunDirectory(run_dir(second)).read_description()
    assert description["identity"]["encoder"]["seed=1/checkpoints/best/model.safetensors"] == digest
    assert not [name for name in description["identity"]["encoder"] if name == "model.safetensors"]
    assert finished_result(second) is not None
    shutil.rmtree(first)
    run(tiny_run(save="both"))
    assert finished_result(second) is not None  # the same weights again
    weights = first / "checkpoints/best/model.safetensors"
    shutil.copy(first / "checkpoints/last/model.safetensors", weights)
    flip(weights, 0.9)
    files = read_json(first / "result.json")["files"]
    from data_utils.file_hash import sha256_of

    edit_json(first / "result.json", files={**files, "checkpoints/best/model.safetensors": sha256_of(weights)})
    with pytest.raises(SettingError, match=r"seed=1/checkpoints/best/model.safetensors is not what .* was run with"):
        finished_result(second)


def test_a_resumed_run_has_the_weights_of_one_never_interrupted(first, tiny_run, tmp_path):
    values = {**SLOWLY, "init_checkpoint": str(first), "method": "pats"}
    whole, cut = (tiny_run(**values, output_dir=tmp_path / name) for name in ("whole", "cut"))
    run(whole)
    run_in_parts(cut, 5)
    assert_same_run(whole, cut)


def begin_error(config):
    with pytest.raises(SettingError) as caught:
        run(config)
    assert not run_dir(config).exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_runs_that_cannot_be_begun_with_are_refused(first, tiny_run, tmp_path):
    def error(path=first, **changes):
        return begin_error(tiny_run(init_checkpoint=str(path), **changes))

    weights, result = first / "checkpoints/best/model.safetensors", first / "result.json"
    content = weights.read_bytes()
    flip(weights, 0.5)
    assert re.search(r"init_checkpoint: .*best/model.safetensors is damaged or of another run", error())
    weights.unlink()
    assert re.search(
        rf"kept weights of the last epoch only \(save: both\); use {first}:last, or, to get", error(f"{first}:best")
    )
    shutil.move(first / "checkpoints", tmp_path / "checkpoints")
    assert re.search(r"init_checkpoint: .* kept no weights \(save: both\); to get them, delete", error())
    shutil.move(tmp_path / "checkpoints", first / "checkpoints")
    weights.write_bytes(content)
    text = result.read_bytes()
    edit_json(result, status="diverged", error="the loss is NaN at step 3")
    assert re.search(r"seed=1 is diverged \(the loss is NaN at step 3\); begin with a run that was trained to", error())
    edit_json(result, status="failed", error="OutOfMemory")
    assert "has failed (OutOfMemory); start its command again" in error()
    edit_json(result, status="ok", error=None, seed=2)
    assert "result.json is of another run than run.json (seed 2, not 1)" in error()
    result.write_text(text.decode()[:40])
    assert re.search(r"init_checkpoint: .*result.json", error())
    result.unlink()
    assert "is not finished; start its command again" in error()
    result.write_bytes(text)
    description = read_json(first / "run.json")
    edit_json(first / "run.json", config={k: v for k, v in description["config"].items() if k != "method_settings"})
    assert "run.json cannot be read by this version" in error()
    edit_json(first / "run.json", config=description["config"], method="vanilla")
    assert "does not exist" in error(tmp_path / "toy/tiny-bert/vanilla/0123456789ab/seed=1")


def test_an_encoder_that_was_changed_since_is_refused(tiny_run, tiny_encoder, tmp_path):
    encoder = shutil.copytree(tiny_encoder, tmp_path / "tiny-bert")
    config = tiny_run(init_checkpoint=str(encoder))
    run(config)
    edit_json(encoder / "config.json", pad_token_id=1)
    message = begin_error(tiny_run(init_checkpoint=str(run_dir(config))))
    assert re.search(r"the encoder's config.json in .* is not what .*/seed=1 was trained with; restore it", message)


def test_the_path_may_be_a_relative_one(first, tiny_run, monkeypatch):
    monkeypatch.chdir(first.parents[1])
    assert_equal(begun(tiny_run(init_checkpoint=os.path.relpath(first))), kept(first))
    assert Path(pretrained_of(os.path.relpath(first))).is_dir()


def test_token_caches_are_those_of_the_encoder(first, tiny_run, tmp_path):
    config = tiny_run(init_checkpoint=str(first), cache_dir=tmp_path / "cache")
    begun(config)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny-bert"]


def test_a_run_that_was_begun_with_one_is_exported_without_it(first, tiny_run, tmp_path):
    second = tiny_run(init_checkpoint=str(first))
    run(second)
    shutil.rmtree(first.parent)
    export(read_run(run_dir(second)), tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert f"- **Encoder**: tiny-bert, as the run {read_run(run_dir(second)).result.encoder} had trained it" in card
