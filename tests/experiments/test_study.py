import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from data_utils.errors import SettingError
from data_utils.json_file import read_json
from experiments.study import study
from experiments.study.__main__ import main
from experiments.study.launch.pool import Pool
from experiments.study.launch.slots import plan_slots
from experiments.study.launch.worker import RunFunction
from experiments.study.plan import parse_seeds
from experiments.study.report.__main__ import main as report
from mt_dnn.config import RunConfig
from mt_dnn.results import RunResult
from mt_dnn.run_id import run_dir
from tests.edits import edit_json
from tests.experiments.fake_runs import behave, calls, fake_run
from tests.experiments.search_runs import PoolInProcess
from tests.tiny import TASK_DEF

RECIPE = """
encoder: all-MiniLM-L6-v2
method: {method}
source: a test
settings: {{epochs: 1}}
tasks: {{cola: {{learning_rate: 1.0e-4}}, rte: {{}}}}
"""

draw = study._figures


class Place:
    """A folder with canonical data, two recipes and room for runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs, self.results = root / "runs", root / "results"
        (root / "data").mkdir()
        for task, rows in (("cola", 40), ("rte", 80)):
            for split in ("train", "dev"):
                (root / "data" / f"{task}_{split}.tsv").write_text("1\t1\tsome words\n" * rows)
        for method in ("vanilla", "pats"):
            (root / f"{method}.yml").write_text(RECIPE.format(method=method))

    def arguments(self, *more: str, seeds: str = "2") -> list[str]:
        return [
            "--recipes", f"{self.root / 'vanilla.yml'},{self.root / 'pats.yml'}", "--data_dir", str(self.root / "data"),
            "--output_dir", str(self.runs), "--results_dir", str(self.results), "--name", "test", "--seeds", seeds,
            "--devices", "cpu", "--workers_per_device", "1", *more,
        ]  # fmt: skip

    def main(self, *more: str, seeds: str = "2", run: RunFunction = fake_run) -> int:
        return main(self.arguments(*more, seeds=seeds), run=run)


def run_of_another_study(config: RunConfig, on_progress: object = None) -> RunResult:
    """The run as a study with other data computes it."""
    result = fake_run(config)
    run_json = run_dir(config) / "run.json"
    made_of = read_json(run_json)["identity"]
    edit_json(run_json, identity=made_of | {"data": {**made_of["data"], "cola_train.tsv": "another"}})
    return result


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(study, "open_all", lambda config: None)  # fake runs need no token caches
    # Processes and figures take half a second each; the first test has both.
    monkeypatch.setattr(study, "Pool", PoolInProcess)
    monkeypatch.setattr(study, "_figures", lambda table, out: [])
    return Place(tmp_path)


def test_a_study_makes_its_table_and_a_second_start_computes_nothing(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "_figures", draw)
    monkeypatch.setattr(study, "Pool", Pool)
    assert place.main() == 0
    made = calls(place.runs)
    assert sorted({tuple(line.split()[:3]) for line in made}) == [
        (task, method, seed) for task in ("cola", "rte") for method in ("pats", "vanilla") for seed in ("1", "2")
    ]
    assert len(made) == 8
    assert [line.split()[0] for line in made] == ["rte"] * 4 + ["cola"] * 4, "longest runs first"
    output, errors = capsys.readouterr()
    assert "| PATS" in output
    assert {file.name for file in (place.results / "test").iterdir()} == {
        "table.md", "table.tex", "table.csv", "table_seeds.csv", "strip.png", "strip.pdf", "study.json",
    }  # fmt: skip
    assert str(place.results / "test" / "strip.png") in output
    assert "[8/8]" in errors, "without a terminal, a line per finished run"
    assert place.main() == 0
    assert len(calls(place.runs)) == 8
    assert capsys.readouterr().out == output


def test_a_study_ends_with_the_command_that_makes_its_page(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.main("--tasks", "cola") == 0
    told = capsys.readouterr().out.splitlines()[-1].removeprefix("one page with curves and tests: ")
    program, *module, runs = shlex.split(told)[:4]
    assert (program, *module, runs) == (sys.executable, "-m", "experiments.study.report", str(place.runs))
    assert report(shlex.split(told)[3:]) == 0
    assert (place.results / "test" / "report.html").is_file()


def test_one_failing_cell_fails_the_study_but_not_the_others(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "Pool", Pool)
    behave(place.runs, pats="setting")
    assert place.main("--tasks", "cola", seeds="1") == 1
    output, errors = capsys.readouterr()
    assert "missing [1]" in output
    assert "failed: cola all-MiniLM-L6-v2 pats seed=1: warmup is 2; legal: a share in [0, 1) (" in errors
    behave(place.runs)
    assert place.main("--tasks", "cola", seeds="1") == 0, "a failed run is tried again"
    assert [line.split()[1] for line in calls(place.runs)].count("vanilla") == 1
    next(place.runs.glob("cola/*/pats/*/seed=1/result.json")).write_text("{")
    capsys.readouterr()
    assert place.main("--tasks", "cola", seeds="1") == 2
    assert "result.json is damaged" in capsys.readouterr().err


def test_runs_of_one_step_are_told_to_learn_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.main("--tasks", "cola", "--set", "batch_size=64", seeds="1") == 0
    assert (
        "warning: 2 of 2 runs learn nothing: their only step stands at the start of the warm-up, where the learning "
        "rate is 0 (first: cola all-MiniLM-L6-v2 vanilla seed=1); give more epochs or --set warmup=0\n"
    ) in capsys.readouterr().err
    assert place.main("--tasks", "cola", "--set", "batch_size=64", "--set", "warmup=0", seeds="1") == 0
    assert place.main("--tasks", "rte", seeds="1") == 0
    assert "learn nothing" not in capsys.readouterr().err


def test_dry_run_lists_done_and_missing_and_writes_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.main("--dry_run") == 0
    output = capsys.readouterr().out
    assert output.count("missing ") == 8
    # 40 and 80 rows in batches of 32, one epoch: 2 and 3 steps, two methods, two seeds.
    assert output.endswith("8 runs: 0 done, 8 missing, with 20 steps\n")
    assert not place.runs.exists()
    assert not place.results.exists()


def test_overrides_reach_the_runs_and_their_identity(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.main("--tasks", "cola", "--set", "epochs=4", "--set", "pats.noise_scale=8e-3", seeds="7,") == 0
    configs: dict[str, Any] = {}
    for path in place.runs.glob("**/run.json"):
        config = json.loads(path.read_text())["config"]
        configs[config["method"]] = config
    assert {config["epochs"] for config in configs.values()} == {4}
    assert {config["seed"] for config in configs.values()} == {7}
    assert configs["pats"]["method_settings"]["pats"]["noise_scale"] == pytest.approx(8e-3)
    assert configs["pats"]["recipe"] == "pats"
    # Other settings are other runs, and the first study's table does not mix with the second's.
    assert place.main("--tasks", "cola", seeds="7,") == 0
    assert len(calls(place.runs)) == 4
    assert "over n = 1 seed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds '0': give a count"),
        (["--seeds", "1,x"], "--seeds '1,x'"),
        (["--devices", "99"], "--devices 99: no device '99'; legal: cpu"),
        (["--output_dir", "/dev/null/runs"], "--output_dir: cannot make /dev/null/runs (Not a directory); choose"),
        (["--results_dir", "/dev/null"], "--results_dir: cannot make /dev/null/test (Not a directory); choose"),
        (["--devices", "gpu"], "--devices gpu: no device 'gpu'"),
        (["--workers_per_device", "0"], "--workers_per_device is 0; legal: an integer >= 1"),
        (["--set", "sage.sensitivity_beta=1"], "neither a method nor a task of this study; here:"),
        (["--set", "pats.noise_scale=-1"], "noise_scale"),
        (["--set", "epohcs=1"], "epohcs"),
        (["--encoder", "bert-base-uncased"], "give --encoder (and --methods) or --recipes, one of the two"),
        (["--name", "../up"], "study name '../up' is not allowed"),
        (["--data_dir", "nowhere"], "nowhere/cola_train.tsv does not exist; make it with"),
        (["--task_def", "nowhere.yml"], "nowhere.yml"),
        (["--seeds", "99999999999999999999"], "--seeds: '99999999999999999999' is too large"),
        (["--tasks", "colla"], "--tasks: unknown task 'colla' (did you mean cola?)"),
        (["--tasks", ","], "--tasks ',' names none; give some"),
        (["--set", "epoch=1"], "error: --set: unknown setting 'epoch' (did you mean epochs?)"),
        (["--set", "learning_rate=-1"], "error: --set learning_rate=-1: learning_rate is -1.0; legal: a number > 0"),
        (["--set", "config=other.yml"], "--set: unknown setting 'config'"),
        (["--holdout", "nan"], "--holdout is nan; legal: a share in (0, 1)"),
        (["--set", "class_weights=acceptable=2"], "class_weights: task cola has no label 'acceptable'"),
        (["--set", "label_smoothing=1"], "label_smoothing is 1.0; legal: a share in [0, 1)"),
        (["--set", "train_size=41"], "cola_train.tsv has 40 rows; legal: at most that many"),
        (["--set", "train_size=37", "--holdout", "0.1"], "cola_train.tsv has 36 rows beside the 4 held out; legal: at"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    place: Place, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert place.main(*arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert calls(place.runs) == []


def test_two_recipes_for_one_cell_are_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (place.root / "again.yml").write_text(RECIPE.format(method="pats"))
    assert place.main("--recipes", f"{place.root / 'pats.yml'},{place.root / 'again.yml'}") == 2
    assert "both set pats on all-MiniLM-L6-v2" in capsys.readouterr().err


def test_an_encoder_finds_its_recipes(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data_dir", str(place.root / "data"), "--tasks", "rte,cola", "--seeds", "1", "--dry_run"]
    assert main(["--encoder", "bert-base-uncased", "--unequal_grids", *data]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [tuple(line.split()[1:4]) for line in lines[:-1]] == [
        (task, "bert-base-uncased", method)
        for method in ("vanilla", "noisytune", "sage", "pats")
        for task in ("rte", "cola")
    ]
    assert main(["--encoder", "./nowhere/other", *data]) == 2
    assert "--recipe_base" in capsys.readouterr().err
    assert main(["--encoder", "org/other", "--recipe_base", "roberta-large", "--unequal_grids", *data]) == 0
    assert "org--other" in capsys.readouterr().out


def test_what_a_recipe_was_not_written_for_is_said_and_stands_in_the_heading(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "dev"):
        (place.root / "data" / f"sst_{split}.tsv").write_text("1\t1\tsome words\n" * 40)
    where = [argument for argument in place.arguments(seeds="1") if ".yml" not in argument and argument != "--recipes"]
    arguments = [*where, "--encoder", "all-MiniLM-L6-v2", "--methods", "vanilla,sage+pats", "--tasks", "sst"]
    assert main(arguments, run=fake_run) == 0
    output, errors = capsys.readouterr()
    assert "sage+pats has no recipe of its own: that of pats is taken\n" in errors
    assert "By the recipe of another method or encoder: SAGE + PATS (all-MiniLM-L6-v2_pats)." in output
    assert main([*place.arguments(seeds="1"), "--tasks", "sst"], run=fake_run) == 0
    assert "no recipe names sst: the recipes' common settings are taken\n" in capsys.readouterr().err


def test_unequal_searches_are_compared_only_when_told(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    for method, grid in (
        ("vanilla", "learning_rate: [1, 2]"),
        ("pats", "learning_rate: [1, 2], pats.noise_scale: [1, 2, 3]"),
    ):
        with (place.root / f"{method}.yml").open("a") as file:
            file.write(f"chosen_from_grid: true\ngrid: {{{grid}}}\n")
    assert place.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: all-MiniLM-L6-v2: the methods' settings were chosen from grids of different sizes")
    assert "(vanilla 2, pats 6)" in error
    assert calls(place.runs) == []
    assert place.main("--unequal_grids") == 0
    assert "PATS, best of 6 settings" in capsys.readouterr().out
    cells = json.loads((place.results / "test" / "study.json").read_text())["cells"]
    assert {cell["method"]: cell["trials"] for cell in cells} == {"vanilla": 2, "pats": 6}


def test_a_holdout_is_part_of_every_run_and_changes_nothing_without(place: Place) -> None:
    assert place.main("--tasks", "cola", "--holdout", "0.25", seeds="1") == 0
    configs = [json.loads(path.read_text())["config"] for path in place.runs.glob("**/run.json")]
    assert {config["holdout"] for config in configs} == {0.25}
    assert place.main("--tasks", "cola", "--dry_run", seeds="1") == 0
    assert place.main("--tasks", "cola", "--holdout", "0", seeds="1") == 2


@pytest.mark.parametrize("controls", [[], ["--controls"]])
def test_an_unknown_method_is_named_and_not_a_recipe(controls: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--encoder", "all-MiniLM-L6-v2", "--methods", "pats,vanila", *controls]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --methods: unknown method 'vanila' (did you mean vanilla?)")
    assert error.count("\n") == 1
    assert main(["--encoder", "all-MiniLM-L6-v2", "--methods", "pats+pats", *controls]) == 2
    assert "error: --methods: Invalid method: 'pats+pats' names a method twice" in capsys.readouterr().err


def test_a_task_of_ones_own_needs_no_others_in_its_definitions(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    own = place.root / "own.yml"
    own.write_text(TASK_DEF.replace("toy:", "mine:"))
    for method in ("vanilla", "pats"):
        recipe = place.root / f"{method}.yml"
        recipe.write_text(recipe.read_text().replace("rte: {}", "mine: {}"))
    assert place.main("--tasks", "mine", "--task_def", str(own), "--dry_run") == 2
    error = capsys.readouterr().err
    assert "mine_train.tsv does not exist; it is a file of your own" in error, "no glue_prepro makes it"
    (place.root / "data/mine_train.tsv").write_text("1\t1\tsome words\n" * 40)
    assert place.main("--tasks", "mine", "--task_def", str(own), "--dry_run") == 2
    assert "mine_dev.tsv does not exist; it is a file of your own" in capsys.readouterr().err
    (place.root / "data/mine_dev.tsv").write_text("1\t1\tsome words\n")
    assert place.main("--tasks", "mine", "--task_def", str(own), "--dry_run") == 0
    assert "4 runs: 0 done, 4 missing" in capsys.readouterr().out


def test_the_table_names_what_set_changed_and_the_command(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Path(study.__file__).with_name("__main__.py")
    monkeypatch.setattr("sys.argv", [str(program), "--set", "train_size=24", "--name", "a b\nc"])
    assert place.main("--tasks", "cola", "--set", "train_size=24") == 0
    text = (place.results / "test" / "table.md").read_text()
    assert "Otherwise than by default, all methods: epochs 1; train_size 24." in text
    assert "Command: `python -m experiments.study --set train_size=24 --name 'a b'$'\\n''c'`" in text
    capsys.readouterr()
    assert place.main("--tasks", "cola", "--set", "train_size=24") == 0
    assert capsys.readouterr().err == "all 4 runs are already done\n"
    assert place.main("--tasks", "cola", "--set", "train_size=24", seeds="3") == 0
    assert "2 of 6 runs to do, 1 at a time, 4 are already done" in capsys.readouterr().err


def test_controls_join_the_study(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data_dir", str(place.root / "data"), "--tasks", "cola", "--seeds", "1", "--dry_run"]
    arguments = ["--encoder", "all-MiniLM-L6-v2", "--methods", "pats,no_dropout+sage", "--controls", *data]
    assert main(arguments) == 0
    methods = [line.split()[3] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert methods == ["vanilla", "no_dropout", "pats", "no_dropout+sage"]


def test_seeds() -> None:
    assert parse_seeds("5") == [1, 2, 3, 4, 5]
    assert parse_seeds("3,7,11") == [3, 7, 11]
    assert parse_seeds("3,") == [3]
    assert parse_seeds(f"7,{2**63 - 1},0") == [7, 2**63 - 1, 0]
    assert len(parse_seeds("1000")) == 1000
    for wrong, message in (
        ("", "give a count"), (",", "give a count"), ("-1", "give a count"), ("-1,2", "give a count"),
        ("0", "give a count"), ("1.5", "give a count"), ("\u0663", "give a count"), ("1001", "at most 1000"),
        ("99999999999999999999", "too large"), (f"1,{2**63}", "too large"), ("9" * 5000, "too large"),
        ("7,7,0", "seed 7 stands there twice"), ("03,3", "seed 3 stands there twice"),
    ):  # fmt: skip
        with pytest.raises(SettingError, match=f"--seeds.*{message}") as caught:
            parse_seeds(wrong)
        assert len(str(caught.value)) < 300


def test_cores_are_shared_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.study.launch import slots

    monkeypatch.setattr(slots, "usable_cores", lambda: 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(slots, "version", lambda package: "2.6.0")  # a torch that may see a GPU

    def planned(devices: str, workers: int | None, runs: int) -> list[tuple[str, int]]:
        return [(slot.device, slot.threads) for slot in plan_slots(devices, workers, runs)]

    assert planned("cpu", None, 100) == [("cpu", 1)] * 8
    assert planned("cpu", None, 3) == [("cpu", 2)] * 3
    assert planned("cpu", 2, 100) == [("cpu", 4)] * 2
    assert planned("cpu", 16, 100) == [("cpu", 1)] * 16
    assert planned("auto", None, 100) == [("cuda:0", 4), ("cuda:1", 4)]
    assert planned("1", 2, 100) == [("cuda:1", 4)] * 2
    assert planned("0,1", 2, 3) == [("cuda:0", 2), ("cuda:1", 2), ("cuda:0", 2)]


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for needed in ("--devices 0,1,2,3", "--dry_run", "Exit status", "75 stopped"):
        assert needed in text


def test_a_study_with_one_more_method_does_not_compare_new_data_with_old(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.main("--tasks", "cola") == 0
    made = calls(place.runs)
    train = place.root / "data" / "cola_train.tsv"
    before = train.read_text()
    train.write_text(before.replace("some", "same", 1))
    (place.root / "sage.yml").write_text(RECIPE.format(method="sage"))
    more = ["--recipes", ",".join(str(place.root / f"{m}.yml") for m in ("vanilla", "pats", "sage")), "--tasks", "cola"]
    for arguments in (more, [*more, "--dry_run"]):
        capsys.readouterr()
        assert place.main(*arguments) == 2
        output, errors = capsys.readouterr()
        assert output == ""
        assert errors.count("\n") == 1
        assert errors.startswith("error: cola_train.tsv is not what ")
        assert "restore it, or delete" in errors
    assert calls(place.runs) == made, "nothing was computed"
    train.write_text(before)
    assert place.main(*more) == 0
    assert len(calls(place.runs)) == len(made) + 2


def test_runs_that_another_study_made_meanwhile_of_other_data_are_not_shown(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.main("--tasks", "cola", run=run_of_another_study) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert "error: cola_train.tsv is not what " in errors
    assert not (place.results / "test" / "table.md").exists()
