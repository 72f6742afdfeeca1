"""Exported folders: transformers loads them, with the logits of the run."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from data_utils.canonical_tsv import read_canonical
from data_utils.errors import SettingError
from data_utils.json_file import read_json
from data_utils.task_def import load_task_defs, to_settings
from data_utils.tokenizer import load_tokenizer
from experiments.glue.glue_prepro import GLUE_TASK_DEF
from mt_dnn.encoder.model import load_encoder
from mt_dnn.encoder.source import resolve_encoder
from mt_dnn.network import Network
from mt_dnn.trained import export as export_module
from mt_dnn.trained.export import check_folder, export, main, sequence_classifier, write_parts
from mt_dnn.trained.head_layout import LAYOUTS, find_layout
from mt_dnn.trained.load import load_exported, load_run, read_run
from tests.edits import edit_json
from tests.full_disk import no_file_longer_than
from tests.tiny import make_tokenizer


@pytest.fixture(scope="module")
def exported(tiny_trained, tmp_path_factory):
    """Folders by task: cola's best epoch through the command line, stsb's last."""
    root = tmp_path_factory.mktemp("exported")
    assert main([str(tiny_trained["cola"]), str(root / "cola")]) == 0
    export(read_run(tiny_trained["stsb"]), root / "new" / "stsb", "last")
    return {"cola": root / "cola", "stsb": root / "new" / "stsb"}


def dev_set(run_dir, task):
    """Rows of the dev set, and its logits of the best and the last epoch as the run wrote them."""
    config = read_run(run_dir).config
    rows = read_canonical(config.data_dir / f"{task}_dev.tsv", load_task_defs(GLUE_TASK_DEF)[task])
    arrays = np.load(run_dir / "predictions.npz")
    assert [uid.decode() for uid in arrays[f"{task}_dev.uids"]] == rows.uids
    return rows, arrays[f"{task}_dev.best_logits"], arrays[f"{task}_dev.last_logits"]


def transformers_logits(folder, rows):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(rows.premise, rows.hypothesis, truncation=True, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return model, model(**inputs).logits.numpy()


def test_a_classifier_has_the_runs_logits_and_its_labels(exported, tiny_trained):
    from transformers import pipeline

    rows, best, last = dev_set(tiny_trained["cola"], "cola")
    model, logits = transformers_logits(exported["cola"], rows)
    np.testing.assert_allclose(logits, best, atol=1e-5)
    assert np.abs(best - last).max() > 1e-3, "the epochs must differ to be told apart"
    assert type(model).__name__ == "BertForSequenceClassification"
    assert model.config.id2label == {0: "0", 1: "1"}
    assert model.config.problem_type == "single_label_classification"
    found = pipeline("text-classification", model=str(exported["cola"]), device="cpu")(rows.premise, truncation=True)
    assert [entry["label"] for entry in found] == [str(label) for label in best.argmax(axis=1)]


def test_a_regression_on_pairs_has_the_last_epochs_scores(exported, tiny_trained):
    from transformers import pipeline

    rows, _, last = dev_set(tiny_trained["stsb"], "stsb")
    model, logits = transformers_logits(exported["stsb"], rows)
    np.testing.assert_allclose(logits, last, atol=1e-5)
    assert model.config.problem_type == "regression"
    pairs = [{"text": a, "text_pair": b} for a, b in zip(rows.premise, rows.hypothesis, strict=True)]
    found = pipeline("text-classification", model=str(exported["stsb"]), device="cpu")(pairs)
    np.testing.assert_allclose([entry["score"] for entry in found], last[:, 0], atol=1e-5)
    assert {entry["label"] for entry in found} == {"score"}


def test_the_folder_is_complete_and_names_no_place_of_the_machine(exported, tiny_trained, tiny_encoder):
    result = json.loads((tiny_trained["cola"] / "result.json").read_text())
    names = {path.name for path in exported["cola"].iterdir()}
    assert names == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "task_def.yml", "README.md",
        "sha256.json",
    }  # fmt: skip
    assert len({path.stat().st_mode for path in exported["cola"].iterdir()}) == 1, "others may read all or none"
    assert not [path for path in exported["cola"].parent.iterdir() if path.name.startswith(".")]
    card = (exported["cola"] / "README.md").read_text(encoding="utf-8")
    metadata = ModelCard(card).data  # eval_results are its model-index
    assert (metadata.library_name, metadata.pipeline_tag) == ("transformers", "text-classification")
    assert metadata.tags == ["cola", "pats"]
    assert metadata.metrics == ["accuracy", "matthews_correlation"]
    assert metadata.base_model is None, "the encoder is a local folder"
    assert metadata.license is None, "nobody knows it"
    scores = {
        (found.dataset_type, found.dataset_name, found.dataset_split, found.metric_type): found.metric_value
        for found in metadata.eval_results
    }
    best = result["best"]["metrics"]["cola_dev"]
    assert scores == {
        ("cola", "cola_dev", "dev", "accuracy"): round(best["ACC"], 2),
        ("cola", "cola_dev", "dev", "matthews_correlation"): round(best["MCC"], 2),
    }
    for score in (result["best"], result["last"]):
        metrics = score["metrics"]["cola_dev"]
        assert f"| {score['epoch']} | cola_dev | 30 | ACC {metrics['ACC']:.2f}, MCC {metrics['MCC']:.2f} |" in card
    assert "seed 1 (one run, n = 1)" in card
    assert "70 examples" in card
    assert "| pats.noise_scale | 0.005 |" in card
    assert "The epoch was chosen by the dev score" in card
    assert "cut at 64 tokens" in card
    assert "The epoch was chosen" not in (exported["stsb"] / "README.md").read_text(encoding="utf-8")
    texts = [path.read_text(encoding="utf-8") for path in exported["cola"].iterdir() if path.suffix != ".safetensors"]
    assert not any(str(place) in text for text in texts for place in (tiny_encoder, tiny_trained["cola"].parents[5]))


def test_task_definitions_survive_writing(tmp_path):
    for name, task in load_task_defs(GLUE_TASK_DEF).items():
        (tmp_path / "task.yml").write_text(yaml.safe_dump({name: to_settings(task)}), encoding="utf-8")
        assert load_task_defs(tmp_path / "task.yml") == {name: task}


def random_encoder(family, folder, tokenizer):
    """A family's encoder of one layer with random weights, loaded from files."""
    from transformers import AutoConfig, AutoModel

    small = {
        "vocab_size": tokenizer.vocab_size, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 66, "pad_token_id": tokenizer.pad_id,
        "type_vocab_size": 2 if family == "bert" else 1,
    }  # fmt: skip
    if family == "deberta-v2":
        small |= {"relative_attention": True, "type_vocab_size": 0, "pooler_hidden_size": 32}
    torch.manual_seed(1)
    AutoModel.from_config(AutoConfig.for_model(family, **small)).save_pretrained(folder)
    return load_encoder(resolve_encoder(str(folder)), hidden_dropout=0.1, attention_dropout=0.1)


@pytest.mark.parametrize(("family", "pooler_actf"), [*((name, "tanh") for name in LAYOUTS), ("deberta-v2", "linear")])
def test_every_family_that_is_exported_has_our_logits(family, pooler_actf, tiny_trained, tiny_encoder, tmp_path):
    model, task_def = load_run(read_run(tiny_trained["cola"]), "best", "cpu"), load_task_defs(GLUE_TASK_DEF)["mnli"]
    if family == "mpnet":  # whose positions are counted by its pad token, which is 1
        tiny_encoder = shutil.copytree(tiny_encoder, tmp_path / "tokenizer")
        make_tokenizer(tiny_encoder, pad_id=1)
        model = replace(model, tokenizer=load_tokenizer(tiny_encoder))
    generator = torch.Generator().manual_seed(3)
    encoder = random_encoder(family, tmp_path / family, model.tokenizer)
    network = Network(encoder, [task_def], [0.1], pooler_actf, generator).eval()
    for parameter in [*network.pooler.parameters(), *network.heads.parameters()]:  # biases too, large enough to be seen
        torch.nn.init.normal_(parameter, 0.0, 0.3, generator=generator)
    model = replace(model, network=network, task_def=task_def, max_seq_len=24)
    classifier = sequence_classifier(model, pooler_actf)
    write_parts(model, classifier, tiny_encoder, tmp_path / "out")
    assert classifier.config.id2label == {0: "contradiction", 1: "neutral", 2: "entailment"}
    with torch.no_grad():
        network.pooler.dense.bias += 0.1
    with pytest.raises(SettingError, match=r"gives other logits than the run \(by"):
        check_folder(model, tmp_path / "out")


def test_heads_that_transformers_does_not_have_are_refused_by_name():
    with pytest.raises(SettingError, match=r"head of distilbert in transformers has ReLU where ours has tanh"):
        find_layout("distilbert", "tanh")
    with pytest.raises(SettingError, match=r"head of electra in transformers has GELU"):
        find_layout("electra", "tanh")
    with pytest.raises(
        SettingError, match=r"head of modernbert in transformers has GELU and a norm where ours has tanh"
    ):
        find_layout("modernbert", "tanh")
    with pytest.raises(SettingError, match=r"head of qwen2 in transformers is one layer without a pooler"):
        find_layout("qwen2", "tanh")
    with pytest.raises(SettingError, match=r"convbert in transformers is not known to be as ours"):
        find_layout("convbert", "tanh")
    with pytest.raises(SettingError, match=r"pooler_actf: linear cannot be exported, bert in transformers has tanh"):
        find_layout("bert", "linear")


def test_loras_updates_are_merged(tiny_run, tmp_path):
    pytest.importorskip("peft")
    from mt_dnn.run import run
    from mt_dnn.run_id import run_dir

    config = tiny_run(method="lora", epochs=1)
    run(config)
    finished = read_run(run_dir(config))
    export(finished, tmp_path / "out")
    model, again = load_run(finished, "best", "cpu"), load_exported(tmp_path / "out", "cpu")
    found = read_canonical(config.data_dir / "toy_dev.tsv", model.task_def)
    np.testing.assert_allclose(
        transformers_logits(tmp_path / "out", found)[1],
        np.load(run_dir(config) / "predictions.npz")["toy_dev.best_logits"],
        atol=1e-5,
    )
    assert not any("lora" in name for name in again.network.state_dict())


def copy_of(run_dir, tmp_path):
    return shutil.copytree(run_dir, tmp_path / "run")


def error_of(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


@pytest.mark.parametrize("size", [64, 20_000])  # the configuration does not fit; the weights do not
def test_a_full_disk_names_the_folder_and_leaves_nothing(tiny_trained, tmp_path, capsys, size):
    with no_file_longer_than(size):
        told = error_of(capsys, tiny_trained["cola"], tmp_path / "out")
    assert told.startswith(f"error: cannot write {tmp_path / 'out'}: ")
    assert "File too large" in told
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_line_and_leave_nothing(tiny_trained, tmp_path, capsys, monkeypatch):
    run_dir = copy_of(tiny_trained["cola"], tmp_path)
    out = tmp_path / "out"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "is there already; delete it or choose another folder" in error_of(capsys, run_dir, tmp_path / "full")
    assert "is no run directory (no run.json)" in error_of(capsys, tmp_path, out)
    assert "nowhere.yml, which the run was trained with, does not exist" in error_of(
        capsys, run_dir, out, "--task_def", tmp_path / "nowhere.yml"
    )
    shutil.rmtree(run_dir / "checkpoints" / "last")
    assert "kept weights of the best epoch only (save: both); use --epoch best" in error_of(
        capsys, run_dir, out, "--epoch", "last"
    )
    monkeypatch.setattr(export_module, "check_folder", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    assert error_of(capsys, run_dir, out) == "error: disk full"
    shutil.rmtree(run_dir / "checkpoints")
    assert "kept no weights" in error_of(capsys, run_dir, out)
    result = (run_dir / "result.json").read_bytes()
    edit_json(run_dir / "result.json", status="failed", error="out of memory")
    assert "has failed (out of memory)" in error_of(capsys, run_dir, out)
    (run_dir / "result.json").unlink()
    assert "is not finished" in error_of(capsys, run_dir, out)
    (run_dir / "run.json").write_text('{"config": {"nonsense": 1}}')
    (run_dir / "result.json").write_bytes(result)
    assert "run.json cannot be read by this version" in error_of(capsys, run_dir, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "run"]


def test_a_run_from_a_clone_that_has_moved_finds_the_task_definitions(tiny_trained, tmp_path):
    run_dir = copy_of(tiny_trained["cola"], tmp_path)
    config = read_json(run_dir / "run.json")["config"]
    moved = config | {"task_def": "/elsewhere/experiments/glue/glue_task_def.yml"}
    edit_json(run_dir / "run.json", config=moved, identity=None)  # as an earlier version wrote it
    assert read_run(run_dir).task_def.name == "cola"


def test_a_run_of_a_method_that_was_uninstalled_says_so(tiny_trained, monkeypatch):
    monkeypatch.setattr("mt_dnn.finished.METHODS", {})
    with pytest.raises(SettingError, match=r"its method '\w+' is not installed here; install the package it is from"):
        read_run(tiny_trained["cola"])
