"""--evaluate_on: finished runs scored on sets that gave them no score, beside the dev scores in tables."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef

import predict
from data_utils.errors import SettingError
from experiments.glue import advglue
from experiments.study.__main__ import main as study
from experiments.study.elsewhere import find_sets, parse_sets, score_elsewhere
from experiments.study.launch.job import Job
from experiments.study.significance import main as significance
from experiments.study.table.gathering import gather
from experiments.study.table.markdown import markdown
from experiments.study.table.paper import load_paper
from experiments.study.tables import write_tables
from mt_dnn.run import run
from mt_dnn.run_id import run_dir
from tests.edits import edit_json
from tests.experiments.fake_runs import write_run


@pytest.fixture
def job(tiny_run: Any, tiny_task: Path, tmp_path: Path) -> Job:
    """A short run with data of its own, which has another set, harder_dev."""
    shutil.copytree(tiny_task, tmp_path / "data")
    rows = [line.split("\t") for line in (tiny_task / "toy_dev.tsv").read_text().splitlines()]
    (tmp_path / "data/harder_dev.tsv").write_text(
        "".join(f"{uid}\t{label}\tnever {text}\n" for uid, label, text in rows)
    )
    config = tiny_run(data_dir=tmp_path / "data", task_def=tmp_path / "data/task_def.yml", epochs=1, save="best")
    return Job(config, run_dir(config), steps=1, cost=1.0)


def test_a_finished_run_is_scored_once_and_the_table_shows_it(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    sets = find_sets([job], ["toy:harder"])
    assert sets == {"toy": {"harder_dev": job.config.data_dir / "harder_dev.tsv"}}
    score_elsewhere([job], sets, "cpu")
    assert capsys.readouterr().err == "", "nothing to score before the run is done"
    run(job.config)
    score_elsewhere([job], sets, "cpu")
    assert "scored on harder_dev" in capsys.readouterr().err
    score_elsewhere([job], sets, "cpu")
    assert capsys.readouterr().err == "", "what is there stays"

    found = json.loads((job.folder / "evaluations.json").read_text())["harder_dev"]
    assert (
        predict.main(
            [str(job.folder), str(sets["toy"]["harder_dev"]), "--score", "--format", "jsonl", "--device", "cpu"]
        )
        == 0
    )
    assert found["metrics"] == json.loads(capsys.readouterr().out)["metrics"]
    assert found["n"] == 30
    text = " ".join(markdown(gather(job.config.output_dir), load_paper()).split())
    after = text.partition("### Best dev epoch, on harder_dev, which is not in the score")[2]
    assert f"| vanilla | {found['metrics']['MCC']:.2f} |" in after

    with (job.config.data_dir / "harder_dev.tsv").open("a") as file:
        file.write("new\t1\tgood\n")
    score_elsewhere([job], sets, "cpu")
    assert "scored on harder_dev" in capsys.readouterr().err, "another file is scored anew"
    edit_json(job.folder / "evaluations.json", harder_dev={**found, "weights": "another run's"})
    assert "harder_dev" not in markdown(gather(job.config.output_dir), load_paper())


def test_tests_and_files_hold_the_other_set_beside_dev(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    runs, out = job.config.output_dir, job.config.output_dir.parent / "out"
    jobs = []
    for method in ("vanilla", "sage"):
        for seed in (1, 2):
            config = replace(job.config, method=method, seed=seed, epochs=3 if method == "vanilla" else 1)
            run(config)
            jobs.append(Job(config, run_dir(config), steps=1, cost=1.0))
    score_elsewhere(jobs, find_sets(jobs, ["toy:harder"]), "cpu")
    assert significance([str(runs), "--out", str(out), "--resamples", "100"]) == 0
    told = capsys.readouterr().out
    for title in ("over dev examples", "on harder_dev, over seeds", "on harder_dev, over its examples"):
        assert f"### Best dev epoch, {title}\n" in told
    assert "Last epoch, on" not in told, "other sets are scored by the best epoch alone"
    tests = rows(out / "significance.csv")
    assert [(row["selection"], row["on"]) for row in tests] == [("best", ""), ("last", ""), ("best", "harder_dev")]

    scores, right = {}, {}
    for one in jobs:
        key = one.config.method, one.config.seed
        with np.load(one.folder / "evaluations/harder_dev.npz") as arrays:
            predicted, labels = arrays["harder_dev.best_logits"].argmax(axis=1), arrays["harder_dev.labels"]
        scores[key], right[key] = 100 * matthews_corrcoef(labels, predicted), predicted == labels
        assert scores[key] == pytest.approx(elsewhere_of(one)["harder_dev"]["metrics"]["MCC"])
    assert int(tests[2]["examples"]) == 30
    mean = np.mean([scores["sage", seed] - scores["vanilla", seed] for seed in (1, 2)])
    assert float(tests[2]["difference"]) == float(tests[2]["example_difference"]) == pytest.approx(mean)
    (first, _) = [row for row in rows(out / "significance_seeds.csv") if row["on"] == "harder_dev"]
    assert int(first["only_method_right"]) == (right["sage", 1] & ~right["vanilla", 1]).sum()
    assert int(first["only_baseline_right"]) == (right["vanilla", 1] & ~right["sage", 1]).sum()

    write_tables(gather(runs), out)
    text = " ".join((out / "table.md").read_text().split())
    after = text.partition("on harder_dev, which is not in the score, minus the control")[2]
    assert f"| SAGE - vanilla | {mean:+.2f} [" in after
    assert abs(mean) > 1, "the two differ, so that the figures say something"
    found = [row for row in rows(out / "table.csv") if row["method"] == "sage"]
    assert [(row["selection"], row["on"]) for row in found] == [("best", ""), ("last", ""), ("best", "harder_dev")]
    assert float(found[2]["mean"]) == pytest.approx(np.mean([scores["sage", 1], scores["sage", 2]]))
    assert float(found[2]["minus_control"]) == pytest.approx(mean)
    found = [row for row in rows(out / "table_seeds.csv") if row["on"]]
    assert {(row["method"], int(row["seed"])): float(row["score"]) for row in found} == pytest.approx(scores)

    folder = jobs[0].folder
    (folder / "evaluations/harder_dev.npz").write_bytes(b"other")
    assert significance([str(runs), "--on", "harder_dev"]) == 2
    assert "harder_dev.npz is damaged or of other scores" in capsys.readouterr().err
    edit_json(folder / "evaluations.json", harder_dev={**elsewhere_of(jobs[0])["harder_dev"], "predictions": ""})
    assert significance([str(runs), "--on", "harder_dev", "--resamples", "100"]) == 0
    assert "without seed 1, whose predictions were not kept" in capsys.readouterr().out
    score_elsewhere(jobs, find_sets(jobs, ["toy:harder"]), "cpu")
    assert capsys.readouterr().err.count("scored on harder_dev") == 1, "scores without predictions are made anew"
    assert significance([str(runs), "--on", "harder_dev", "--resamples", "100"]) == 0
    assert "not kept" not in capsys.readouterr().out


def elsewhere_of(job: Job) -> dict[str, Any]:
    """The scores that a run keeps."""
    return dict(json.loads((job.folder / "evaluations.json").read_text()))


def rows(path: Path) -> list[dict[str, str]]:
    """Lines of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_methods_are_tested_on_another_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method, scores in (("vanilla", (50.0, 51.0, 53.0)), ("pats", (52.0, 52.0, 56.0))):
        for seed, score in enumerate(scores, start=1):
            folder = write_run(tmp_path, method=method, seed=seed, best=60.0, last=59.0)
            best = json.loads((folder / "result.json").read_text())["best"]
            shown = best | {"metrics": {**best["metrics"], "cola_hard_dev": {"MCC": score}}}
            edit_json(folder / "result.json", best=shown)
            write_run(tmp_path, "rte", method, seed)
    text = " ".join(markdown(gather(tmp_path), load_paper()).split())
    after = text.partition("on cola_hard_dev, which is not in the score, minus the control ")[2]
    assert after.partition(" | PATS - vanilla | ")[2].startswith("+2.00 [-0.48, +4.48] | - | - |")
    assert significance([str(tmp_path), "--on", "cola_hard_dev", "--resamples", "100"]) == 0
    text = capsys.readouterr().out
    assert "+2.00" in text, "2, 1 and 3 points over the seeds"
    assert significance([str(tmp_path), "--on", "cola_dev"]) == 2
    assert "--on 'cola_dev': legal: with best epochs, one of the sets scored: cola_hard_dev" in capsys.readouterr().err


def test_mistakes_are_told_before_anything_is_computed(job: Job) -> None:
    assert parse_sets(["mnli:a, b", "mnli:c", "rte:d"]) == {"mnli": ("a", "b", "c"), "rte": ("d",)}
    for given, told in (
        ("toy", "'toy': give TASK:SET,SET"),
        ("toy:", "'toy:': give TASK:SET,SET"),
        ("rte:x", "--evaluate_on rte: the study has no run of it"),
        ("toy:nowhere", r"no file .*nowhere_dev\.tsv"),
        ("toy:toy", "every run is scored on toy_dev already"),
        ("toy:toyscore", "4 columns instead of 3"),
    ):
        with pytest.raises(SettingError, match=told):
            find_sets([job], [given])
    (job.config.data_dir / "named_dev.tsv").write_text("1\tpos\ta\n")
    with pytest.raises(SettingError, match="label 'pos' is none of 0, 1"):
        find_sets([job], ["toy:named"])
    (job.config.data_dir / "twice_dev.tsv").write_text("1\t1\ta\n1\t0\tb\n")
    with pytest.raises(SettingError, match=r"twice_dev\.tsv: 1 rows repeat the uid of another, the first '1'"):
        find_sets([job], ["toy:twice"])
    weightless = SimpleNamespace(config=SimpleNamespace(task="toy", save="none"))
    with pytest.raises(SettingError, match="its runs keep no weights"):
        find_sets([weightless], ["toy:harder"])  # type: ignore[list-item]


def test_the_command_checks_its_sets(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--task_def", str(job.config.task_def), "--data_dir", str(job.config.data_dir), "--tasks", "toy"]
    arguments += ["--encoder", "all-MiniLM-L6-v2", "--methods", "vanilla", "--dry_run"]
    assert study([*arguments, "--evaluate_on", "toy:harder"]) == 0
    assert study([*arguments, "--evaluate_on", "toy:nowhere"]) == 2
    assert study([*arguments, "--evaluate_on", "toy:harder", "--search", "grid"]) == 2
    assert "--evaluate_on is for a table" in capsys.readouterr().err


def test_advglue_becomes_canonical_files_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = {"premise": "a", "hypothesis": "b", "idx": 7}
    content = {
        "sst2": [{"sentence": "a", "label": 1, "idx": 3}, {"sentence": "b", "label": 0, "idx": 3}],
        "mnli": [pair | {"label": 0}, pair | {"label": 2}],
        "mnli-mm": [pair | {"label": 1}],
        "rte": [{"sentence1": "a", "sentence2": "b", "label": 1, "idx": 0}],
    }
    (tmp_path / "dev.json").write_text(json.dumps(content))
    assert advglue.main([str(tmp_path / "dev.json"), "--out", str(tmp_path)]) == 0
    assert {path.name: path.read_text() for path in tmp_path.glob("*.tsv")} == {
        "advglue_sst_dev.tsv": "0\t1\ta\n1\t0\tb\n",
        "advglue_mnli_dev.tsv": "0\tentailment\ta\tb\n1\tcontradiction\ta\tb\n",
        "advglue_mnli-mm_dev.tsv": "0\tneutral\ta\tb\n",
        "advglue_rte_dev.tsv": "0\tnot_entailment\ta\tb\n",
    }
    assert "1 rows of rte, the official file has 81" in capsys.readouterr().err
    (tmp_path / "dev.json").write_text("[]")
    assert advglue.main([str(tmp_path / "dev.json"), "--out", str(tmp_path)]) == 2
    assert "not AdvGLUE's dev.json" in capsys.readouterr().err


def test_advglue_is_read_from_the_hubs_folder_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (requirements-parquet.txt)")
    from pyarrow import parquet

    rows = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [0, 2], "idx": [7, 7]}
    for config in ("adv_mnli", "adv_mnli_mismatched"):
        (tmp_path / "hub" / config).mkdir(parents=True)
        parquet.write_table(pa.table(rows), tmp_path / "hub" / config / "validation-00000-of-00001.parquet")
    assert advglue.main([str(tmp_path / "hub"), "--out", str(tmp_path)]) == 0
    assert {path.name: path.read_text() for path in tmp_path.glob("*.tsv")} == dict.fromkeys(
        ("advglue_mnli_dev.tsv", "advglue_mnli-mm_dev.tsv"), "0\tentailment\ta\tc\n1\tcontradiction\tb\td\n"
    )
    assert advglue.main([str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "no validation file of adv_sst2, adv_qqp, adv_mnli, adv_mnli_mismatched" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (["x"], "dev.json/rte: row 1 is 'x'; a row is an object"),
        ({"a": 1}, "dev.json/rte: no table; it must be a list of objects"),
        ([{"sentence1": "a", "sentence2": "b", "label": None}], "dev.json/rte: row 1: label '' is none of"),
        ([{"sentence1": "a", "label": 0}], "dev.json/rte: no column 'sentence2'"),
    ],
)
def test_a_malformed_advglue_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: Any, told: str
) -> None:
    (tmp_path / "dev.json").write_text(json.dumps({"sst2": [{"sentence": "a", "label": 1}], "rte": rows}))
    assert advglue.main([str(tmp_path / "dev.json"), "--out", str(tmp_path / "out")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
