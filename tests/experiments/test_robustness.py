"""Calibration, spread and parts of dev sets, from the predictions that real runs keep."""

import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest

from data_utils.errors import SettingError
from data_utils.json_file import read_json
from data_utils.metrics import compute_metrics
from data_utils.task_def import load_task_defs
from experiments.study import robustness
from experiments.study.comparison.quantities import DevParts
from experiments.study.statistics.calibration import calibration_of
from experiments.study.statistics.spread import spread_ratio
from experiments.study.table.gathering import gather
from mt_dnn.config_parser import config_from_mapping
from mt_dnn.results import Status
from mt_dnn.run import run
from mt_dnn.run_directory import RunDirectory
from tests.edits import edit_json
from tests.experiments.fake_runs import write_run

NAME = "tiny-bert"
QUANTITIES = ["ECE", "NLL", "Brier", "toy_dev:odd", "toy_dev:even", "toy_dev:odd - even"]


def train(encoder, data, root, task, method, seed):
    settings = {
        "task_def": str(data / "task_def.yml"), "data_dir": str(data), "epochs": 2, "train_datasets": task,
        "init_checkpoint": str(encoder), "output_dir": str(root), "batch_size": 16, "learning_rate": 1e-2,
        "seed": seed, "precision": "fp32", "method": method, "tensorboard": False, "device": "cpu", "save": "none",
    }  # fmt: skip
    run(config_from_mapping(settings))


@pytest.fixture(scope="module")
def runs(tiny_encoder, tiny_task, tmp_path_factory):
    """Folder of runs: three seeds of two methods on a classification, two of one on a regression."""
    root = tmp_path_factory.mktemp("robustness") / "runs"
    for seed in (1, 2, 3):
        for method in ("vanilla", "pats"):
            train(tiny_encoder, tiny_task, root, "toy", method, seed)
    for seed in (1, 2):
        train(tiny_encoder, tiny_task, root, "toyscore", "vanilla", seed)
    return root


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    file = tmp_path_factory.mktemp("parts") / "parts.tsv"
    file.write_text("".join(f"{uid}\t{'even' if uid % 2 == 0 else 'odd'}\n" for uid in range(29, -1, -1)))
    return file


def lines_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def written(runs, parts, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert robustness.main([str(runs), "--parts", f"toy_dev={parts}", "--out", str(out)]) == 0
    return out


def test_every_number_is_that_of_the_stored_logits(runs, tiny_task, written):
    definition = load_task_defs(tiny_task / "task_def.yml")["toy"]
    found = {
        (line["method"], int(line["seed"]), line["selection"], line["quantity"]): float(line["value"])
        for line in lines_of(written / "robustness_seeds.csv")
    }
    assert len(found) == 2 * 3 * 2 * len(QUANTITIES)
    for folder in runs.glob("toy/*/*/*/seed=*"):
        directory = RunDirectory(folder)
        result = directory.read_result()
        arrays = directory.read_predictions(result)
        labels, uids = arrays["toy_dev.labels"], arrays["toy_dev.uids"]
        for selection in ("best", "last"):
            logits = arrays[f"toy_dev.{selection}_logits"]
            calibration, scores = calibration_of(logits, labels), {}
            for name, rest in (("odd", 1), ("even", 0)):
                rows = np.array([int(uid) % 2 == rest for uid in uids])
                scores[name] = compute_metrics(definition, logits[rows], labels[rows])[definition.primary_metric]
            expected = [calibration.ece, calibration.nll, calibration.brier, *scores.values()]
            expected.append(scores["odd"] - scores["even"])
            values = [found[result.method, result.seed, selection, name] for name in QUANTITIES]
            assert values == pytest.approx(expected, abs=1e-5)


def test_differences_and_spread_are_paired_over_seeds(runs, written):
    seeds = lines_of(written / "robustness_seeds.csv")
    by_method = {
        method: [float(line["value"]) for line in seeds
                 if (line["method"], line["selection"], line["quantity"]) == (method, "last", "NLL")]
        for method in ("vanilla", "pats")
    }  # fmt: skip
    difference = np.subtract(by_method["pats"], by_method["vanilla"])
    (line,) = [
        line for line in lines_of(written / "robustness.csv")
        if (line["method"], line["selection"], line["quantity"]) == ("pats", "last", "NLL")
    ]  # fmt: skip
    assert line["baseline"] == "vanilla"
    assert float(line["difference"]) == pytest.approx(difference.mean())
    assert float(line["t_low"]) < difference.mean() < float(line["t_high"])
    assert float(line["mean"]) == pytest.approx(np.mean(by_method["pats"]))
    assert float(line["std"]) == pytest.approx(np.std(by_method["pats"], ddof=1))
    scores = {
        method: [gather(runs).cell(NAME, method, "toy").scores("last")[seed] for seed in (1, 2, 3)]
        for method in by_method
    }
    (spread,) = [line for line in lines_of(written / "robustness_spread.csv") if line["selection"] == "last"]
    expected = spread_ratio(scores["pats"], scores["vanilla"])
    assert float(spread["ratio_of_std"]) == pytest.approx(expected.ratio, nan_ok=True)
    assert spread["pairs"] == "3"


def test_the_page(written):
    text = (written / "robustness.md").read_text()
    assert f"## toy, {NAME}, best dev epoch" in text
    assert "ECE (%)" in text
    assert "PATS - vanilla" in text
    assert "toy_dev:odd - even (points)" in text
    assert f"toyscore, {NAME}, last epoch" in text  # its spread, if no calibration
    section = text.split("## toyscore")[1].split("##")[0]
    assert "ECE" not in section


def test_a_run_without_predictions_is_left_out(runs, tmp_path):
    copy = shutil.copytree(runs, tmp_path / "runs")
    next(copy.glob("toy/*/pats/*/seed=2/predictions.npz")).unlink()
    found = robustness.analyse(gather(copy), copy)
    assert found.by_quantity["ECE"].cell(NAME, "pats", "toy").scores("best").keys() == {1, 3}
    (pair, _) = found.pairs
    assert found.difference(found.quantities[0], pair).n == 2
    assert found.spread(pair).n == 3  # scores are there all the same


def test_a_run_without_a_score_is_not_left_out(runs, tmp_path):
    copy = shutil.copytree(runs, tmp_path / "runs")
    (lost,) = copy.glob("toy/*/pats/*/seed=2")
    (lost / "predictions.npz").unlink()
    directory = RunDirectory(lost)
    directory.write_result(replace(directory.read_result(), status=Status.DIVERGED, best=None, last=None))
    found = robustness.analyse(gather(copy), copy)
    for one in robustness.calibration_quantities():
        scores = found.by_quantity[one.name].cell(NAME, "pats", "toy").scores("last")
        assert [(seed, bool(np.isnan(value))) for seed, value in scores.items()] == [(1, False), (2, True), (3, False)]
        assert all(np.isnan(found.difference(one, pair).mean) for pair in found.pairs)
    lines = robustness.markdown(found).splitlines()
    assert sum(line.count("| NaN (n = 3) ") for line in lines if line.startswith("| PATS  ")) == 2 * 4
    assert sum(line.count("| NaN ") for line in lines if line.startswith("| PATS -")) == 2 * 4


def test_scores_of_regressions_alone_have_their_spread(tmp_path, capsys):
    for seed, (score, other) in enumerate(((60.0, 61.0), (64.0, 62.0), (61.0, 65.0)), start=1):
        write_run(tmp_path / "runs", task="stsb", seed=seed, last=score)
        write_run(tmp_path / "runs", task="stsb", method="pats", seed=seed, last=other)
    assert robustness.main([str(tmp_path / "runs")]) == 0
    ratio = np.std([61.0, 62.0, 65.0]) / np.std([60.0, 64.0, 61.0])
    assert f"| PATS - vanilla | {ratio:.2f} [" in capsys.readouterr().out


def test_the_page_says_why_an_interval_is_not_there(runs, tmp_path, capsys):
    copy = shutil.copytree(runs, tmp_path / "runs")
    for plain in copy.glob("toy/*/vanilla/*/seed=*"):
        (pats,) = copy.glob(f"toy/*/pats/*/{plain.name}")
        same = read_json(plain / "result.json")
        edit_json(pats / "result.json", **{key: same[key] for key in ("best", "last", "files")})
        shutil.copy(plain / "predictions.npz", pats)
    for seed in (1, 2, 3):
        write_run(copy, "stsb", seed=seed, best=80.0 + seed)
        write_run(copy, "stsb", "pats", seed, 82.0)
    assert robustness.main([str(copy)]) == 0
    lines = capsys.readouterr().out.splitlines()
    constant, _, *same = [line for line in lines if line.startswith("| PATS - vanilla")]
    assert "NaN (n = 3; no interval: a method scores the same with every seed)" in constant
    assert len(same) == 2
    assert all(line.count("(n = 3; no interval: all pairs differ by the same)") == 3 for line in same)


def test_tasks_together_stand_beside_the_same_alone(runs, tiny_encoder, tiny_task, tmp_path, capsys):
    copy = shutil.copytree(runs, tmp_path / "runs")
    assert robustness.main([str(copy), "--together"]) == 2
    assert "--together: no task was trained both alone and in a run with several; drop it" in capsys.readouterr().err
    for seed in (1, 2):
        train(tiny_encoder, tiny_task, copy, "toy,toyscore", "vanilla", seed)
    out = tmp_path / "out"
    assert robustness.main([str(copy), "--together", "--out", str(out)]) == 0
    rows = {(line["method"], line["selection"]): line for line in lines_of(out / "robustness_spread.csv")}
    assert rows["vanilla together (toy, toyscore)", "last"]["baseline"] == "vanilla"
    assert {line["pairs"] for line in rows.values()} == {"2"}
    text = (out / "robustness.md").read_text()
    assert "| vanilla together (toy, toyscore) - vanilla" in text
    assert robustness.main([str(copy), "--together", "--baseline", "pats"]) == 2
    assert "drop --baseline" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"parts\.tsv has 0 parts; give a file with two or more"),
        ("0\ta\n", r"parts\.tsv has 1 parts"),
        ("0\ta\n0\tb\n", r"parts\.tsv: line 2: uid '0' is there already"),
        ("0\ta\n1\n", r"parts\.tsv: line 2: 1 columns instead of 2 \(uid, part\)"),
        ("0\ta b\n", "part name 'a b' is not allowed"),
    ],
)
def test_a_wrong_file_of_parts_is_refused(tmp_path, text, message):
    file = tmp_path / "parts.tsv"
    file.write_text(text)
    with pytest.raises(SettingError, match=message):
        DevParts.read(f"toy_dev={file}")


def test_parts_of_other_rows_are_refused(runs, tmp_path, parts):
    file = tmp_path / "parts.tsv"
    file.write_text(parts.read_text().replace("29\todd\n", "77\todd\n"))
    with pytest.raises(SettingError, match=r"2 uids are not in both it and toy_dev of the runs, such as '29'"):
        robustness.analyse(gather(runs), runs, [DevParts.read(f"toy_dev={file}")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "toy"], "--parts is 'toy'; legal: <dev set>=<file>"),
        (["--parts", "toy=x.tsv"], "--parts is 'toy=x.tsv'; legal"),
        (["--parts", "toy_dev=gone.tsv"], "--parts: gone.tsv does not exist; name a file with a line uid <tab> part"),
        (["--parts", "cola_dev={parts}"], "--parts: no run was scored on cola_dev"),
        (["--parts", "toy_dev={parts}"] * 2, "--parts: toy_dev:odd is there twice; give each part"),
        (["--baseline", "sage"], "--baseline 'sage' is not in the table"),
    ],
)
def test_wrong_settings(runs, parts, tmp_path, capsys, arguments, message):
    given = [argument.format(parts=parts) for argument in arguments]
    assert robustness.main([str(runs), *given, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_without_predictions_is_refused(tmp_path, capsys):
    write_run(tmp_path / "runs")
    assert robustness.main([str(tmp_path / "runs")]) == 2
    assert "has predictions of a classification task" in capsys.readouterr().err
