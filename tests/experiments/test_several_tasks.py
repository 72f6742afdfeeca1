"""Studies with runs of several tasks: from the command line to tables, tests and the page."""

import csv
from pathlib import Path

import pytest

from data_utils.errors import SettingError
from data_utils.json_file import read_json, write_json
from experiments.study import significance, study, tables
from experiments.study.__main__ import main
from experiments.study.drawing.curves import learning_curves
from experiments.study.recipe import load_recipe, run_configs
from experiments.study.report.__main__ import main as report
from experiments.study.table.cells import PART
from experiments.study.table.gathering import gather
from experiments.study.table.titles import task_title
from mt_dnn.run import run
from mt_dnn.run_directory import RunDirectory
from tests.edits import edit_json
from tests.experiments.search_runs import PoolInProcess

RECIPE = """\
encoder: {encoder}
method: {method}
source: a test
settings: {{epochs: 3, batch_size: 16, learning_rate: 3.0e-2, precision: fp32, tensorboard: false, save: none}}
tasks:
  toy: {{}}
  toyscore: {{learning_rate: 1.0e-2}}
  toy+toyscore: {{mix_temperature: 2.0}}
"""
TASKS = "toy,toyscore,toy+toyscore"


@pytest.fixture(scope="module")
def finished(tiny_encoder, tiny_task, tmp_path_factory):
    """Folder of a study of two methods on two tasks, alone and together."""
    root = tmp_path_factory.mktemp("together")
    for method in ("vanilla", "pats"):
        (root / f"{method}.yml").write_text(RECIPE.format(encoder=tiny_encoder, method=method))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "Pool", PoolInProcess)
        assert main(arguments(root, tiny_task), run=run) == 0
    return root


def arguments(root, tiny_task, *more):
    return [
        "--recipes", f"{root / 'vanilla.yml'},{root / 'pats.yml'}", "--task_def", str(tiny_task / "task_def.yml"),
        "--data_dir", str(tiny_task), "--output_dir", str(root / "runs"), "--results_dir", str(root / "results"),
        "--name", "test", "--seeds", "2", "--devices", "cpu", "--tasks", TASKS, *more,
    ]  # fmt: skip


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def results(root, task):
    folders = sorted((root / "runs" / task).glob("*/*/*/seed=*"))
    return [RunDirectory(folder).read_result() for folder in folders]


def test_a_line_for_each_task_of_a_run(finished):
    found = lines(finished / "results" / "test" / "table_seeds.csv")
    tasks = ["toy", "toyscore", "toy+toyscore", "toy+toyscore:toy", "toy+toyscore:toyscore"]
    assert sorted({line["task"] for line in found}) == sorted(tasks)
    together = results(finished, "toy+toyscore")
    assert len(together) == 4
    for result in together:
        of_run = [line for line in found if line["run_id"] == result.run_id and line["seed"] == str(result.seed)]
        best = {line["task"]: float(line["score"]) for line in of_run if line["selection"] == "best"}
        assert best == {
            "toy+toyscore": result.best.score,
            "toy+toyscore:toy": result.tasks["toy"].best.score,
            "toy+toyscore:toyscore": result.tasks["toyscore"].best.score,
        }
        last = {line["task"]: float(line["score"]) for line in of_run if line["selection"] == "last"}
        assert last["toy+toyscore"] == pytest.approx((last["toy+toyscore:toy"] + last["toy+toyscore:toyscore"]) / 2)
        kept = {line["task"]: float(line["score"]) for line in of_run if line["selection"] == "best_average"}
        assert sum(kept.values()) / 2 == pytest.approx(result.best.score)
        assert kept == {f"toy+toyscore:{task}": result.of_kept_weights(task).best.score for task in result.tasks}
    metrics = {line["task"]: line["metric"] for line in lines(finished / "results" / "test" / "table.csv")}
    assert metrics["toy+toyscore"] == "mean"
    assert metrics["toy+toyscore:toyscore"] == "Pearson"


def test_the_average_is_over_the_runs_with_one_task(finished):
    table = gather(finished / "runs")
    assert table.averaged == ("toy", "toyscore")
    (encoder,) = table.encoders
    means = [table.cell(encoder, "pats", task).mean("best") for task in ("toy", "toyscore")]
    assert table.average(encoder, "pats", "best").mean == pytest.approx(sum(means) / 2)
    markdown = (finished / "results" / "test" / "table.md").read_text()
    assert "toyscore in toy+toyscore pcc" in markdown
    assert "A run with several tasks has a column for its mean" in markdown
    header = next(line for line in markdown.splitlines() if "average" in line and line.startswith("|"))
    assert [cell.strip() for cell in header.strip("|").split("|")] == [
        "method", "toy mcc", "toyscore pcc", "toy+toyscore mean", "toy in toy+toyscore mcc",
        "toyscore in toy+toyscore pcc", "average",
    ]  # fmt: skip


def test_a_table_of_runs_with_several_tasks_alone_has_no_average(finished, capsys):
    ids = {result.run_id for result in results(finished, "toy+toyscore")}
    assert len(ids) == 2
    json_file = finished / "together.json"
    content = read_json(finished / "results" / "test" / "study.json")
    content["cells"] = [cell for cell in content["cells"] if cell["task"] == "toy+toyscore"]
    content.pop("checksum", None)
    write_json(json_file, content)
    assert tables.main([str(finished / "runs"), "--study", str(json_file), "--out", str(finished / "alone")]) == 0
    header = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| method"))
    assert [cell.strip() for cell in header.strip("|").split("|")][1:] == [
        "toy+toyscore mean", "toy in toy+toyscore mcc", "toyscore in toy+toyscore pcc",
    ]  # fmt: skip


def test_started_again_nothing_is_computed(finished, tiny_task, capsys, monkeypatch):
    monkeypatch.setattr(study, "Pool", PoolInProcess)
    assert main(arguments(finished, tiny_task), run=lambda *_: pytest.fail("a run was computed")) == 0
    assert "all 12 runs are already done" in capsys.readouterr().err
    assert main(arguments(finished, tiny_task, "--dry_run")) == 0
    assert "12 runs: 12 done" in capsys.readouterr().out


def test_the_plan_counts_steps(finished, tiny_task, tmp_path, capsys):
    assert main(arguments(finished, tiny_task, "--output_dir", str(tmp_path), "--dry_run")) == 0
    out = capsys.readouterr().out
    steps = sum(result.steps for task in TASKS.split(",") for result in results(finished, task))
    assert f"12 runs: 0 done, 12 missing, with {steps} steps" in out


def test_settings_of_a_set_of_tasks(finished, tiny_task):
    recipe = load_recipe(finished / "vanilla.yml")
    overrides = {"toy+toyscore.epochs": 7, "toy.epochs": 5, "warmup": 0.0}
    made = run_configs(recipe, TASKS.split(","), [1], overrides, task_def=tiny_task / "task_def.yml")
    assert [(c.task, c.epochs, c.mix_temperature, c.warmup) for c in made] == [
        ("toy", 5, None, 0.0), ("toyscore", 3, None, 0.0), ("toy+toyscore", 7, 2.0, 0.0),
    ]  # fmt: skip
    with pytest.raises(SettingError, match="--tasks: unknown task 'gone'"):
        run_configs(recipe, ["toy+gone"], [1], {}, task_def=tiny_task / "task_def.yml")


def test_a_missing_file_of_one_task_is_named(finished, tiny_task, tmp_path, capsys):
    (tmp_path / "toy_train.tsv").write_text((tiny_task / "toy_train.tsv").read_text())
    (tmp_path / "toy_dev.tsv").write_text((tiny_task / "toy_dev.tsv").read_text())
    assert main([*arguments(finished, tiny_task), "--data_dir", str(tmp_path), "--tasks", "toy+toyscore"]) == 2
    assert f"data_dir: {tmp_path / 'toyscore_train.tsv'} does not exist" in capsys.readouterr().err


def test_methods_are_compared_on_each_task(finished, capsys):
    assert significance.main([str(finished / "runs"), "--out", str(finished / "tests"), "--resamples", "100"]) == 0
    capsys.readouterr()
    found = lines(finished / "tests" / "significance.csv")
    seeds = {line["task"] for line in found}
    assert {"toy+toyscore", "toy+toyscore:toy", "toy+toyscore:toyscore", "toy", "toyscore"} <= seeds
    with_examples = {line["task"] for line in found if any("example" in key and line[key] for key in line)}
    assert {"toy+toyscore:toy", "toy+toyscore:toyscore"} <= with_examples
    assert "toy+toyscore" not in with_examples


def test_a_method_is_compared_with_itself_alone(finished, capsys):
    out = finished / "together"
    assert significance.main([str(finished / "runs"), "--together", "--out", str(out), "--resamples", "100"]) == 0
    capsys.readouterr()
    table = gather(finished / "runs")
    found = lines(out / "significance.csv")
    assert {(line["method"], line["baseline"]) for line in found} == {
        (f"{method} together (toy, toyscore)", method) for method in ("vanilla", "pats")
    }
    (encoder,) = table.encoders
    for line in found:
        if line["task"] == "average" or line.get("level", line.get("over", "seeds")) == "examples":
            continue
        ours = table.cell(encoder, line["baseline"], f"toy+toyscore:{line['task']}").scores(line["selection"])
        alone = table.cell(encoder, line["baseline"], line["task"]).scores(line["selection"])
        mean = sum(ours[seed] - alone[seed] for seed in alone) / len(alone)
        assert float(line["difference"]) == pytest.approx(mean, abs=1e-6)
    assert significance.main([str(finished / "runs"), "--together", "--baseline", "vanilla"]) == 2
    assert "--together compares each method with itself alone; drop --baseline" in capsys.readouterr().err


def test_curves_of_each_task(finished, tmp_path):
    table = gather(finished / "runs")
    *_, data = [
        path for path in learning_curves(table, finished / "runs", tmp_path / "curves") if path.suffix == ".csv"
    ]
    found = [line for line in lines(data) if line["quantity"] == "score" and line["method"] == "vanilla"]
    for result_task in ("toy", "toyscore"):
        values = [float(line["mean"]) for line in found if line["task"] == f"toy+toyscore:{result_task}"]
        each = [r.tasks[result_task].last.score for r in results(finished, "toy+toyscore") if r.method == "vanilla"]
        assert values[-1] == pytest.approx(sum(each) / len(each))


def test_the_page_shows_each_run_once(finished, tmp_path):
    page = tmp_path / "report.html"
    assert report([str(finished / "runs"), "--out", str(page)]) == 0
    text = page.read_text()
    assert "toyscore in toy+toyscore" in text
    assert "12 of 12 runs ended" in text
    assert '<option value="toy+toyscore:toy"' not in text


def test_runs_on_other_data_are_no_match_for_runs_with_several_tasks(finished, tmp_path):
    import shutil

    runs = shutil.copytree(finished / "runs", tmp_path / "runs")
    for run_json in runs.glob("toyscore/*/*/*/seed=*/run.json"):
        identity = read_json(run_json)["identity"]
        edit_json(run_json, identity=identity | {"data": identity["data"] | {"toyscore_dev.tsv": "another"}})
    with pytest.raises(SettingError, match=r"were not run with the same contents, toyscore_dev.tsv differs"):
        gather(runs)


def test_a_score_that_is_no_mean_over_tasks_is_refused(finished, tmp_path):
    import shutil

    runs = shutil.copytree(finished / "runs", tmp_path / "runs")
    path = next(runs.glob("toy+toyscore/*/pats/*/seed=1")) / "result.json"
    best = read_json(path)["best"]
    edit_json(path, best=best | {"score": best["score"] + 1})
    with pytest.raises(SettingError, match="is not the mean of mean over toy, toyscore"):
        gather(runs)


def test_titles():
    assert task_title("rte+stsb") == "RTE+STS-B"
    assert task_title(f"rte+stsb{PART}stsb") == "STS-B in RTE+STS-B"
    assert task_title("own+rte") == "own+RTE"


@pytest.mark.parametrize(
    ("tasks", "given", "message"),
    [
        (
            "toy,toy+toyscore",
            "toy+toyscore:x",
            "--evaluate_on toy+toyscore: other sets are for runs with one task;",
        ),
        (
            "toy+toyscore",
            "toy:x",
            "--evaluate_on toy: other sets are for runs with one task, and the study has ",
        ),
    ],
)
def test_other_sets_are_for_runs_with_one_task(finished, tiny_task, capsys, tasks, given, message):
    assert main([*arguments(finished, tiny_task), "--tasks", tasks, "--evaluate_on", given]) == 2
    assert message in capsys.readouterr().err


def test_the_epoch_of_the_kept_weights_has_a_block_of_its_own(finished):
    markdown = (finished / "results" / "test" / "table.md").read_text()
    block = markdown.partition("Tasks of a run with several, at the epoch best on average")[2].lower()
    vanilla = next(line for line in block.splitlines() if line.startswith("| plain") or line.startswith("| vanilla"))
    entries = [entry.strip() for entry in vanilla.strip("|").split("|")][1:]
    assert [entry == "-" for entry in entries] == [True, True, True, False, False, True]
    alone = gather(finished / "runs").at_kept_weights()
    assert alone.tasks == ("toy+toyscore:toy", "toy+toyscore:toyscore")
    assert len(alone.cells) == 4


def test_search_chooses_by_the_mean(finished, tiny_task, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study, "Pool", PoolInProcess)
    recipe = (finished / "vanilla.yml").read_text()
    (tmp_path / "vanilla.yml").write_text(recipe + "grid: {learning_rate: [1.0e-2, 3.0e-2]}\n")
    more = ["--recipes", str(tmp_path / "vanilla.yml"), "--tasks", "toy+toyscore", "--search", "grid"]
    more += ["--output_dir", str(tmp_path / "runs"), "--results_dir", str(tmp_path / "results"), "--set", "epochs=1"]
    assert main([*arguments(finished, tiny_task), *more], run=run) == 0
    (chosen,) = (tmp_path / "results" / "test" / "recipes").glob("*.yml")
    recipe = load_recipe(chosen)
    assert list(recipe.tasks) == ["toy+toyscore"]
    trials = [RunDirectory(folder).read_result() for folder in (tmp_path / "runs").glob("*/*/*/*/seed=*")]
    best = max(trials, key=lambda result: result.best.score)
    config = read_json(run_dir_of(best, tmp_path / "runs") / "run.json")["config"]
    (made,) = run_configs(recipe, ["toy+toyscore"], [1], {}, task_def=tiny_task / "task_def.yml")
    assert (made.task, made.learning_rate) == ("toy+toyscore", config["learning_rate"])


def run_dir_of(result, runs):
    return runs / result.task / result.encoder / result.method / result.run_id / f"seed={result.seed}"
