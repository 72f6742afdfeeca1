"""Distillation: soft labels from trained models, their distance in the loss, runs that use them."""

import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import predict
from data_utils.canonical_tsv import read_canonical
from data_utils.errors import SettingError
from data_utils.mean_prediction import mean_logits
from data_utils.soft_labels import read_soft_labels, soft_text
from data_utils.task_def import LossCriterion, load_task_defs
from mt_dnn.config import RunConfig
from mt_dnn.config_parser import config_from_mapping
from mt_dnn.data import open_all
from mt_dnn.loss import distillation_loss
from mt_dnn.run import run
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_id import run_dir, run_id
from mt_dnn.trained.load import load_run, read_run
from mt_dnn.trained.scoring import canonical_rows, logits_on
from tests.mt_dnn.method_runs import assert_same_weights, build, final_weights
from tests.mt_dnn.test_resume import SLOWLY, assert_same_run, run_in_parts
from tests.reference.distillation import distance, mean_prediction
from tests.tiny import make_taught

MSE, CE = LossCriterion.MseCriterion, LossCriterion.CeCriterion
KL, SYM = LossCriterion.KlCriterion, LossCriterion.SymKlCriterion


@pytest.fixture(scope="module")
def taught(tiny_task, tmp_path_factory):
    """Folder of the tiny tasks with a kd_loss."""
    return make_taught(tiny_task, tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def teachers(tiny_encoder, taught, tmp_path_factory):
    """Task -> folder of two finished seeds of it."""
    root, found = tmp_path_factory.mktemp("teachers"), {}
    for task in ("toy", "toyscore"):
        for seed in (1, 2):
            config = config_from_mapping(
                {
                    "task_def": str(taught / "task_def.yml"), "data_dir": str(taught), "train_datasets": task,
                    "init_checkpoint": str(tiny_encoder), "output_dir": str(root / "runs"), "epochs": 3,
                    "batch_size": 16, "learning_rate": 1e-2, "seed": seed, "precision": "fp32",
                    "tensorboard": False, "device": "cpu", "save": "best",
                }
            )  # fmt: skip
            run(config)
        found[task] = run_dir(config).parent
    return found


@pytest.fixture(scope="module")
def soft(taught, teachers, tmp_path_factory):
    """Folder like ``taught``, whose training files have soft labels of both seeds."""
    folder = tmp_path_factory.mktemp("soft")
    for file in taught.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    for task, runs in teachers.items():
        name = f"{task}_train.tsv"
        arguments = [str(runs), str(taught / name), "--ensemble", "--soft", "--out", str(folder / name)]
        assert predict.main([*arguments, "--device", "cpu"]) == 0
    return folder


@pytest.fixture
def student(tiny_run, soft):
    """Make the settings of a run on the folder with soft labels."""

    def make(**changes):
        return tiny_run(**{"task_def": soft / "task_def.yml", "data_dir": soft, **changes})

    return make


# The loss


@pytest.mark.parametrize("criterion", [MSE, CE, KL, SYM])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distances_are_the_formulas(criterion, temperature):
    rng = np.random.default_rng(0)
    z, t = rng.normal(0, 2, (2, 5, 3))
    expected = [distance(str(criterion), a, b, temperature) for a, b in zip(z, t, strict=True)]
    arguments = criterion, torch.tensor(z), torch.tensor(t)
    found = {r: distillation_loss(*arguments, r, temperature) for r in ("none", "sum", "mean")}
    np.testing.assert_allclose(found["none"].numpy(), expected, rtol=1e-5)
    assert found["sum"].item() == pytest.approx(sum(expected), rel=1e-5)
    assert found["mean"].item() == pytest.approx(sum(expected) / 5, rel=1e-5)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=5), st.floats(0.5, 5))
@settings(max_examples=40, deadline=None)
def test_distances_from_oneself_are_zero(logits, temperature):
    z = torch.tensor([logits])
    for criterion in (MSE, KL, SYM):
        assert abs(distillation_loss(criterion, z, z, "sum", temperature).item()) < 1e-4 * temperature**2


def test_cross_entropy_and_divergence_have_the_same_gradient():
    t = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    gradients = []
    for criterion in (CE, KL):
        z = torch.zeros(4, 3, requires_grad=True)
        distillation_loss(criterion, z, t, "sum", 2.0).backward()
        gradients.append(z.grad)
    torch.testing.assert_close(*gradients)


def test_a_run_trains_with_the_loss_and_the_distance(student):
    config = student(mkd_opt=1, kd_loss="CeCriterion", kd_weight=0.7, kd_temperature=2.0, method="rdrop")
    parts, _, _ = build(config)
    (data,) = open_all(config)
    parts.model.choose_loss(config, {})
    batch = parts.network.encoder.batch(
        data.train, np.arange(8), torch.device("cpu"), task="toy", soft_labels=data.soft_labels
    )
    logits = parts.model.logits(batch)
    hard = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")
    kd = [distance("CeCriterion", z, t, 2.0) for z, t in zip(logits.tolist(), batch.soft_labels.tolist(), strict=True)]
    expected = hard.detach().numpy() + 0.7 * np.array(kd)
    np.testing.assert_allclose(parts.model.example_losses(logits, batch).detach().numpy(), expected, rtol=1e-5)
    assert parts.model.loss(logits, batch).item() == pytest.approx(expected.sum(), rel=1e-5)


def test_scores_have_the_squared_difference(student):
    config = student(mkd_opt=1, kd_loss="CeCriterion", train_datasets="toyscore,toy")
    assert [str(loss.kd_criterion) for loss in chosen(config).values()] == ["MseCriterion", "CeCriterion"]


def chosen(config):
    from mt_dnn.training_model import TaskLoss, TrainingModel

    losses = {task: TaskLoss(load_task_defs(config.task_def)[task]) for task in config.tasks}
    network = torch.nn.Linear(1, 1)
    TrainingModel(network, losses, None).choose_loss(config, {})
    return losses


# The data


def test_soft_labels_come_back_as_they_were(soft, teachers, taught):
    task_def = load_task_defs(taught / "task_def.yml")["toy"]
    found = read_soft_labels(soft / "toy_train.tsv", task_def)
    rows = canonical_rows(taught / "toy_train.tsv", task_def)
    models = [load_run(read_run(teachers["toy"] / f"seed={seed}"), "best", "cpu") for seed in (1, 2)]
    assert np.array_equal(found, logits_on(models, rows, 8192, "train"))
    each = [logits_on([model], rows, 8192, "train") for model in models]
    np.testing.assert_allclose(found, mean_prediction(each), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, rtol=1e-6)
    assert read_soft_labels(taught / "toy_train.tsv", task_def) is None


def test_the_other_columns_stay(soft, taught):
    for task, task_def in load_task_defs(taught / "task_def.yml").items():
        before, after = (read_canonical(folder / f"{task}_train.tsv", task_def) for folder in (taught, soft))
        assert (before.uids, before.premise, before.hypothesis) == (after.uids, after.premise, after.hypothesis)
        assert np.array_equal(before.labels, after.labels)


@pytest.mark.parametrize("task", ["toy", "toyscore"])
def test_predictions_pass_over_soft_labels(soft, taught, teachers, tmp_path, task):
    found = []
    for folder in (soft, taught):
        out = tmp_path / folder.name
        arguments = [str(teachers[task] / "seed=1"), str(folder / f"{task}_train.tsv"), "--out", str(out)]
        assert predict.main([*arguments, "--device", "cpu"]) == 0
        found.append(out.read_text())
    assert found[0] == found[1]


def test_a_soft_label_is_replaced_by_a_newer_one(soft, teachers, tmp_path):
    out = tmp_path / "toy_train.tsv"
    arguments = [str(teachers["toy"] / "seed=1"), str(soft / "toy_train.tsv"), "--soft", "--out", str(out)]
    assert predict.main([*arguments, "--device", "cpu"]) == 0
    fields = {len(line.split("\t")) for line in out.read_text().splitlines()}
    assert fields == {4}


def test_a_teacher_whose_logits_are_no_numbers_teaches_nothing(teachers, taught, monkeypatch, tmp_path, capsys):
    def broken(models, rows, *arguments):
        found = logits_on(models, rows, *arguments)
        found[3, 1] = np.nan
        return found

    monkeypatch.setattr("mt_dnn.trained.scoring.logits_on", broken)
    out = tmp_path / "soft.tsv"
    arguments = [str(teachers["toy"] / "seed=1"), str(taught / "toy_train.tsv"), "--soft", "--out", str(out)]
    assert predict.main([*arguments, "--device", "cpu"]) == 2
    uid = (taught / "toy_train.tsv").read_text().splitlines()[3].split("\t")[0]
    message = capsys.readouterr().err
    assert f"toy_train.tsv's uid '{uid}' are [" in message
    assert "nan], no soft label; use another teacher" in message
    assert not out.exists()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=4))
def test_texts_of_soft_labels_hold_every_bit(values):
    row = np.array(values, dtype=np.float32)
    assert np.array_equal(np.array([float(part) for part in soft_text(row).split(" ")], dtype=np.float32), row)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("0.5", "soft label '0.5' is not 2 numbers with a space between them"),
        ("0.5 x", "soft label '0.5 x' is not 2 numbers"),
        ("0.5 nan", "soft label '0.5 nan' is not 2 numbers"),
        ("0.5 inf", "soft label '0.5 inf' is not 2 numbers"),
        ("1e39 0", "soft label '1e39 0' is not 2 numbers"),
        ("1 2 3", "soft label '1 2 3' is not 2 numbers"),
    ],
)
def test_a_malformed_soft_label_is_named(tmp_path, taught, field, message):
    path = tmp_path / "toy_train.tsv"
    path.write_text(f"0\t1\t0.1 0.2\ta film\n1\t0\t{field}\ta plot\n")
    with pytest.raises(SettingError, match=re.escape(f"{path}: line 2: {message}")):
        read_canonical(path, load_task_defs(taught / "task_def.yml")["toy"])


def test_a_file_has_soft_labels_on_every_row_or_on_none(tmp_path, taught):
    path = tmp_path / "toy_train.tsv"
    path.write_text("0\t1\t0.1 0.2\ta film\n1\t0\ta plot\n")
    with pytest.raises(SettingError, match=r"line 2: 3 columns instead of 4 \(uid, label, soft label, premise\)"):
        read_canonical(path, load_task_defs(taught / "task_def.yml")["toy"])


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            "0\t1\ta film",
            "1\t0\t0.1 0.2\ta plot",
            "line 2: {}give every row a soft label, from line 1 on (predict.py -",
        ),
        ("0\t1\t\ta film", "1\t0\t0.1 0.2\ta plot", "line 1: {}a sentence holds no tab, and a soft label is 2 numbers"),
        ("0\t1\t0.1 x\ta film", "1\t0\ta plot", "line 1: {}a sentence holds no tab, and a soft label is 2 numbers"),
    ],
)
def test_a_first_row_without_a_soft_label_is_named(tmp_path, taught, first, second, message):
    path = tmp_path / "toy_train.tsv"
    path.write_text(f"{first}\n{second}\n")
    told = message.format("4 columns instead of 3 (uid, label, premise); ")
    with pytest.raises(SettingError, match=re.escape(f"{path}: {told}")):
        read_canonical(path, load_task_defs(taught / "task_def.yml")["toy"])


def test_a_task_without_kd_loss_has_no_soft_labels(soft, tiny_task):
    with pytest.raises(SettingError, match=r"4 columns instead of 3 \(uid, label, premise\)"):
        read_canonical(soft / "toy_train.tsv", load_task_defs(tiny_task / "task_def.yml")["toy"])


def test_rows_keep_their_soft_labels(student):
    config = student(mkd_opt=1, holdout=0.3, train_size=20, batch_size=4)
    (data,) = open_all(config)
    from mt_dnn.data_parallel import ONE_PROCESS
    from mt_dnn.training_batches import TrainingBatches

    parts, _, _ = build(config)
    for made in TrainingBatches(config, [data], parts, ONE_PROCESS).epoch(0, 0):
        for batch in made.batches:
            assert np.array_equal(batch.soft_labels.numpy(), data.soft_labels[batch.indices.numpy()])


# Runs


def test_a_distilled_run_resumes_exactly(student, tmp_path):
    changes = {"mkd_opt": 1, "train_datasets": "toy,toyscore", "method": "pats", "epochs": 2, **SLOWLY}
    whole = student(output_dir=tmp_path / "whole", **{**changes, "checkpoint_seconds": 600.0})
    run(whole)
    broken = student(output_dir=tmp_path / "broken", **changes)
    run_in_parts(broken, 3, 11)
    assert_same_run(whole, broken)
    lines = RunDirectory(run_dir(whole)).read_metrics(RunDirectory(run_dir(whole)).read_result())
    assert {line["loss_by"] for line in lines if "loss" in line} == {"kd_weight 1.0"}


def test_without_weight_it_is_plain_fine_tuning(student):
    changes = {"save": "last", "epochs": 2}
    plain = final_weights(student(**changes))
    assert_same_weights(final_weights(student(mkd_opt=1, kd_weight=0.0, **changes)), plain)
    taught = final_weights(student(mkd_opt=1, **changes))
    assert any(not torch.equal(plain[name], taught[name]) for name in plain)


def test_soft_labels_are_no_part_of_a_run_that_does_not_distil(student, tiny_run, taught, tmp_path):
    changes = {"save": "last", "epochs": 1}
    assert_same_weights(
        final_weights(student(**changes)),
        final_weights(
            tiny_run(task_def=taught / "task_def.yml", data_dir=taught, output_dir=tmp_path / "hard", **changes)
        ),
    )


def test_ids_of_runs_that_do_not_distil_stay():
    left = {"mkd_opt": 0, "kd_loss": None, "kd_weight": 1.0, "kd_temperature": 1.0}
    assert run_id(RunConfig(**left)) == run_id(RunConfig())
    assert run_id(RunConfig(mkd_opt=1)) != run_id(RunConfig())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kd_weight": 0.5}, "kd_weight is 0.5, but mkd_opt is 0; give --mkd_opt 1 too"),
        ({"kd_temperature": 2.0}, "kd_temperature is 2.0, but mkd_opt is 0"),
        ({"kd_loss": "CeCriterion"}, "kd_loss is CeCriterion, but mkd_opt is 0"),
        ({"mkd_opt": 1, "kd_loss": "JSCriterion"}, "kd_loss is 'JSCriterion'; legal: one of MseCriterion, CeCriterion"),
        ({"mkd_opt": 1, "kd_weight": -1.0}, "kd_weight is -1.0; legal: a number >= 0"),
        ({"mkd_opt": 1, "kd_weight": 1e31}, "kd_weight is 1e+31; legal: a number >= 0, at most 1e30"),
        ({"mkd_opt": 1, "kd_temperature": 0.0}, "kd_temperature is 0.0; legal: a number in [0.001, 1000]"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(SettingError, match="^" + re.escape(message)):
        RunConfig(**changes)


def test_a_run_without_a_teacher_is_refused(tiny_run, taught, student, tmp_path):
    config = tiny_run(task_def=taught / "task_def.yml", data_dir=taught, mkd_opt=1)
    with pytest.raises(
        SettingError, match="mkd_opt is 1, but no training file of toy has soft labels; write them with"
    ):
        run(config)
    assert not run_dir(config).exists()
    with pytest.raises(SettingError, match=r"kd_temperature is 2\.0, but MseCriterion compares logits without one"):
        run(student(mkd_opt=1, kd_temperature=2.0))


def test_a_run_says_which_of_its_tasks_are_taught(student, tiny_run, taught, soft, tmp_path, caplog):
    half = tmp_path / "half"
    shutil.copytree(taught, half)
    shutil.copy(soft / "toyscore_train.tsv", half)
    tasks = {"train_datasets": "toy,toyscore", "mkd_opt": 1}
    with caplog.at_level("INFO", logger="mt_dnn.data"):
        open_all(student(**tasks))
        assert "soft labels" not in caplog.text
        open_all(tiny_run(task_def=half / "task_def.yml", data_dir=half, **tasks))
    assert "soft labels: toyscore; the other tasks' training files have none" in caplog.text


def test_a_criterion_that_is_no_distance_is_refused(student, soft, tmp_path):
    other = tmp_path / "task_def.yml"
    other.write_text((soft / "task_def.yml").read_text().replace("kd_loss: MseCriterion", "kd_loss: JSCriterion", 1))
    with pytest.raises(SettingError, match="kd_loss of task toy is JSCriterion, which is no distance from soft labels"):
        run(student(mkd_opt=1, task_def=other))


@pytest.mark.parametrize("criterion", [CE, KL, SYM])
def test_a_criterion_that_no_soft_label_has_a_use_for_is_refused(student, soft, tmp_path, criterion):
    scores = {"mkd_opt": 1, "train_datasets": "toyscore"}
    with pytest.raises(SettingError, match=f"kd_loss is {criterion}, but the soft labels of toyscore are scores"):
        run(student(**scores, kd_loss=str(criterion)))
    other = tmp_path / "task_def.yml"
    other.write_text((soft / "task_def.yml").read_text().replace("MseCriterion\n  loss", f"{criterion}\n  loss"))
    with pytest.raises(SettingError, match=f"kd_loss of task toyscore is {criterion}, but its soft labels are scores"):
        run(student(**scores, task_def=other))
    beside = student(**{**scores, "train_datasets": "toy,toyscore"}, kd_loss=str(criterion), kd_temperature=2.0)
    assert run(beside).error is None  # the other task has a use for it


# The command line


def test_an_ensemble_predicts_the_mean(teachers, taught, capsys):
    dev = str(taught / "toy_dev.tsv")
    each = []
    for seed in (1, 2):
        assert predict.main([str(teachers["toy"] / f"seed={seed}"), dev, "--device", "cpu"]) == 0
        each.append(shares(capsys))
    assert predict.main([str(teachers["toy"]), dev, "--ensemble", "--device", "cpu"]) == 0
    together = shares(capsys)
    np.testing.assert_allclose(together, (each[0] + each[1]) / 2, atol=2e-6)
    for named in (
        [teachers["toy"] / "seed=1", dev, "--ensemble", teachers["toy"] / "seed=2"],
        [teachers["toy"] / "seed=1", dev, "--ensemble", teachers["toy"]],  # a folder of seeds behind it, and one twice
        [teachers["toy"], dev, "--ensemble", f"{teachers['toy']}/seed=2/../seed=1"],  # and by another spelling
    ):
        assert predict.main([*map(str, named), "--device", "cpu"]) == 0
        assert np.array_equal(shares(capsys), together)


def shares(capsys):
    lines = capsys.readouterr().out.splitlines()[1:]
    return np.array([[float(part) for part in line.split("\t")[2:]] for line in lines])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{toy}/seed=1", "{dev}", "--ensemble"],
            "--ensemble: {toy}/seed=1 holds 0 runs seed=*; give the",
        ),
        (
            ["{toy}/seed=1", "{dev}", "--ensemble", "{score}/seed=1"],
            "--ensemble: {score}/seed=1 is of the task toyscore, {toy}/seed=1 of toy; give models of one task",
        ),
        (["{toy}/seed=1", "--soft"], "--soft reads and writes a canonical file"),
        (["{toy}/seed=1", "{dev}", "--soft", "--score"], "--soft is given, but --score writes metrics"),
        (["{toy}/seed=1", "{dev}", "--soft", "--format", "jsonl"], "--soft reads and writes a canonical file"),
        (["{toy}/seed=1", "gone.tsv", "--soft"], "INPUT gone.tsv does not exist"),
    ],
)
def test_the_command_line_refuses(teachers, taught, capsys, arguments, message):
    names = {"toy": teachers["toy"], "score": teachers["toyscore"], "dev": taught / "toy_dev.tsv"}
    assert predict.main([argument.format(**names) for argument in arguments] + ["--device", "cpu"]) == 2
    assert message.format(**names) in capsys.readouterr().err


def test_mean_logits_of_one_model_are_its_own():
    logits = np.random.default_rng(0).normal(size=(1, 4, 3)).astype(np.float32)
    assert mean_logits(logits) is not None
    assert np.array_equal(mean_logits(logits), logits[0])
    scores = np.random.default_rng(0).normal(size=(3, 4, 1)).astype(np.float32)
    np.testing.assert_allclose(mean_logits(scores), mean_prediction(scores), rtol=1e-6)
