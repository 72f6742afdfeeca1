import csv
import errno
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from data_utils.errors import SettingError
from data_utils.json_file import read_json
from experiments.benchmark import DEFAULT
from experiments.study import study
from experiments.study.__main__ import main as study_main
from experiments.study.drawing import plotting
from experiments.study.launch.pool import Pool
from experiments.study.recipe import load_recipe, run_configs
from experiments.study.search.__main__ import main as tables_main
from experiments.study.search.pruning import below_median, read_choices
from experiments.study.search.samplers import grid_points, quasi_random_points
from experiments.study.search.space import Axis, Point, Space
from experiments.study.search.trials import read_search
from mt_dnn.results import Status
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_id import run_id
from tests.edits import edit_json
from tests.experiments.fake_runs import stop_early, write_run
from tests.experiments.search_runs import PoolInProcess, scored_run

RECIPE = """
encoder: all-MiniLM-L6-v2
method: {method}
source: a test
settings: {{epochs: 3, batch_size: 16}}
tasks: {{cola: {{learning_rate: 1.0e-5}}, rte: {{epochs: 2}}}}
grid: {{{grid}}}
"""
RATES = "learning_rate: [3.0e-4, 1.0e-5, 5.0e-5, 5.0e-4]"
SCALES = f"{RATES}, pats.noise_scale: [1.0e-3, 2.0e-3, 5.0e-3]"


class Place:
    """A folder with canonical data, two recipes and room for runs."""

    def __init__(self, root: Path) -> None:
        self.root, self.runs, self.out = root, root / "runs", root / "results" / "test"
        (root / "data").mkdir()
        self.runs.mkdir()
        for task in ("cola", "rte"):
            for split in ("train", "dev"):
                (root / "data" / f"{task}_{split}.tsv").write_text("1\t1\tsome words\n" * 40)
        self.recipe("vanilla", RATES)
        self.recipe("pats", SCALES)

    def recipe(self, method: str, grid: str) -> None:
        (self.root / f"{method}.yml").write_text(RECIPE.format(method=method, grid=grid))

    def arguments(self, *more: str, methods: str = "vanilla,pats", tasks: str = "cola") -> list[str]:
        recipes = ",".join(str(self.root / f"{method}.yml") for method in methods.split(","))
        return [
            "--recipes", recipes, "--tasks", tasks, "--data_dir", str(self.root / "data"), "--output_dir",
            str(self.runs), "--results_dir", str(self.root / "results"), "--name", "test", "--devices", "cpu",
            "--workers_per_device", "1", *more,
        ]  # fmt: skip

    def main(self, *more: str, methods: str = "vanilla,pats", tasks: str = "cola") -> int:
        return study_main(self.arguments(*more, methods=methods, tasks=tasks), run=scored_run)

    @property
    def calls(self) -> list[str]:
        file = self.runs / "calls.txt"
        return [line.rpartition(" ")[0] for line in file.read_text().splitlines()] if file.is_file() else []

    def rows(self, name: str) -> list[dict[str, str]]:
        return list(csv.DictReader((self.out / name).read_text().splitlines()))

    def texts(self) -> dict[str, str]:
        """The tables and recipes; without the paths, which differ between two places."""
        files = [*self.out.glob("table*"), self.out / "trials.csv", *self.out.glob("recipes/*.yml")]
        return {file.name: file.read_text() for file in files}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(study, "open_all", lambda config: None)  # these runs need no token caches
    monkeypatch.setattr(study, "Pool", PoolInProcess)
    return Place(tmp_path)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.study.search.parallel_coordinates.search_figures", lambda search, out: [])


@pytest.mark.usefixtures("no_figures")
def test_a_grid_finds_the_best_settings_and_writes_them_as_a_recipe(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.main("--search", "grid", "--unequal_grids", "--search_seeds", "101,102", tasks="cola,rte") == 0
    assert len(place.calls) == len(set(place.calls)) == 2 * 2 * (4 + 12)
    output = capsys.readouterr().out
    assert "Table 2: best learning rates" in output
    assert "--task_def" not in output
    second = {(row["method"], row["task"]): row for row in place.rows("table2.csv")}
    assert {float(row["learning_rate"]) for row in second.values()} == {3e-4}
    best = second["pats", "cola"]
    assert float(best["score"]) == pytest.approx(80.0 - 1.015)  # the mean over both seeds
    assert (best["selected_on"], best["n"], best["trials"], best["grid_points"]) == ("dev", "2", "12", "12")
    chosen = {row["setting"]: row["chosen"] for row in place.rows("table3.csv") if row["method"] == "pats"}
    assert {key: float(value) for key, value in chosen.items()} == {"learning_rate": 3e-4, "pats.noise_scale": 2e-3}
    assert "it is the best of many and so too high" in (place.out / "table3.md").read_text()
    # The recipe makes the very runs that were best, and says how it came about.
    recipe = load_recipe(place.out / "recipes" / "all-MiniLM-L6-v2_pats_grid12.yml")
    assert (recipe.chosen_from_grid, recipe.trials) == (True, 12)
    assert "12 trials per task with the seeds 101, 102; chosen by the best epoch's score on dev" in recipe.source
    assert recipe.settings["batch_size"] == 16
    search = read_search(place.out / "search.json")
    best_ids = {(cell.method, cell.task): cell.best.run_id for cell in search.cells if cell.best is not None}
    for config in run_configs(recipe, [], [1], {}):
        assert run_id(config) == best_ids["pats", config.task]
    # The study takes it, and refuses to compare it with a smaller search.
    arguments = place.arguments("--dry_run")
    arguments[1] = ",".join(map(str, place.out.glob("recipes/*.yml")))
    assert study_main(arguments) == 2
    assert "vanilla 4" in (error := capsys.readouterr().err)
    assert "pats 12" in error


@pytest.mark.usefixtures("no_figures")
def test_the_command_for_the_chosen_settings_names_another_task_definition(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    own = place.root / "own_task_def.yml"
    own.write_text(DEFAULT.task_def.read_text())
    assert place.main("--search", "grid", "--task_def", str(own), methods="vanilla") == 0
    assert f".yml --task_def {own}\n" in capsys.readouterr().out


def test_the_pictures_are_drawn(place: Place) -> None:
    arguments = ["--search", "grid", "--set", "learning_rate=1e-5", "--prune_after", "1"]
    place.recipe("pats", f"{RATES}, pats.noise_scale: [2.0e-3, 2.1e-3, 2.2e-3, 2.3e-3, 9.0e-3]")
    assert place.main(*arguments, methods="pats") == 0
    names = [f"{kind}_all-MiniLM-L6-v2_pats.{suffix}" for kind in ("parallel", "settings") for suffix in ("pdf", "png")]
    assert sorted(file.name for file in [*place.out.glob("*.png"), *place.out.glob("*.pdf")]) == names
    assert all((place.out / name).stat().st_size > 5000 for name in names)


def test_a_setting_with_one_value_is_in_no_picture(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Figure] = {}

    def keep(figure: Figure, stem: Path) -> list[Path]:
        drawn[stem.name.partition("_")[0]] = figure
        return []

    monkeypatch.setattr(plotting, "save", keep)
    place.recipe("pats", f"{RATES}, pats.noise_scale: [2.0e-3]")
    assert place.main("--search", "grid", methods="pats") == 0
    (panel,) = drawn["parallel"].axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["learning\nrate", "mcc\ndev"]
    assert [panel.get_xlabel() for panel in drawn["settings"].axes] == ["learning rate"]


@pytest.mark.usefixtures("no_figures")
def test_a_larger_search_keeps_a_smaller_one(place: Place) -> None:
    assert place.main("--search", "sobol", "--trials", "2") == 0
    few = place.rows("trials.csv")
    assert [row["method"] for row in few] == ["vanilla"] * 2 + ["pats"] * 2
    assert place.main("--search", "sobol", "--trials", "4") == 0
    many = place.rows("trials.csv")
    assert many[:2] == few[:2]
    assert many[4:6] == few[2:]
    assert len(place.calls) == len(set(place.calls)) == len({row["run_id"] for row in many}) == 8


@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    trials=st.integers(1, 40),
    seed=st.integers(0, 5),
    sampler=st.sampled_from(["grid", "sobol", "halton"]),
)
@settings(max_examples=30, deadline=None)
def test_points_are_distinct_legal_and_the_first_of_those_of_a_larger_search(
    shape: list[int], trials: int, seed: int, sampler: Any
) -> None:
    space = Space(tuple(Axis(f"x{i}", tuple(range(n))) for i, n in enumerate(shape)))

    def points(trials: int) -> list[Point]:
        if sampler == "grid":
            return grid_points(space, trials, seed)
        return quasi_random_points(space, trials, seed, sampler)

    found = points(trials)
    assert len(found) == len(set(found)) == min(trials, space.size)
    assert all(0 <= i < n for point in found for i, n in zip(point, shape, strict=True))
    larger = points(trials + 7)
    assert larger[:trials] == found or (sampler == "grid" and trials + 7 >= space.size)


def test_a_full_disk_is_told_with_the_journals_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    from experiments.study.search.tpe import TpeSampler

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    sampler = TpeSampler(tmp_path / "tpe.journal", "one", Space((Axis("kind", (1, 2, 3)),)), 3, 0, 1)
    monkeypatch.setattr("optuna.storages.journal.JournalFileBackend.append_logs", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*tpe.journal'"):
        sampler.ask({})


@pytest.mark.usefixtures("no_figures")
def test_a_search_goes_on_after_a_full_disk(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("optuna")
    arguments = ("--search", "tpe", "--trials", "3", "--tpe_round", "1")
    assert place.main(*arguments, methods="pats") == 0
    texts, journal = place.texts(), place.out / "tpe.journal"
    # The disk was full while the last trial was asked for: it is asked for again, and the same comes.
    lines = journal.read_bytes().splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if json.loads(line)["op_code"] == 4)
    journal.write_bytes(b"".join(lines[:last]) + lines[last][:40])
    assert place.main(*arguments, methods="pats") == 0
    assert "tpe.journal: its last line is not whole" in caplog.text
    assert place.texts() == texts
    assert [json.loads(line)["op_code"] for line in journal.read_text().splitlines()].count(4) == 3


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_dir": 3}, "output_dir is 3; legal: a text"),
        ({"seeds": []}, "seeds is []; legal: a list of different seeds"),
        ({"sampler": ["grid"]}, "sampler is ['grid']; legal: one of grid, sobol, halton, tpe"),
        ({"sampler_seed": 1e999}, "sampler_seed is inf; legal: an integer >= 0"),
        ({"holdout": 2}, "holdout is 2; legal: null or a share in (0, 1)"),
        ({"prune_after": "x"}, "prune_after is 'x'; legal: an integer >= 1"),
        ({"cells": 3}, "cells is 3; legal: a list of mappings"),
        ({"name": "../x"}, "cells[0]: name name '../x' is not allowed"),
        ({"learning_rate": 10**400}, "cells[0].learning_rate is"),
        ({"grid": {"learning_rate": 3}}, "cells[0].grid.learning_rate is 3; legal: a list of values"),
        ({"trials": [{"run_id": "a", "values": [7]}]}, "trials[0].values is [7]; legal: a value of the grid"),
        ({"planned": None}, "cells[0].planned is None; legal: an integer >= 1"),
    ],
)
def test_a_damaged_search_is_named_in_one_line(
    place: Place, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    assert place.main("--search", "grid", "--trials", "1", methods="vanilla") == 0
    path = place.out / "search.json"
    content = read_json(path)
    if set(change) <= set(content):
        content |= change
    else:
        content["cells"][0] |= change
    path.write_text(json.dumps(content))
    capsys.readouterr()
    assert tables_main([str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "search.json" in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("no_figures")
def test_the_tables_again_from_finished_runs(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.main("--search", "sobol", "--trials", "4") == 0
    texts, output = place.texts(), capsys.readouterr().out
    for file in [*place.out.glob("table*"), place.out / "trials.csv"]:
        file.unlink()
    assert tables_main([str(place.out / "search.json")]) == 0
    assert place.texts() == texts
    assert capsys.readouterr().out == output
    # Without one run the search is unfinished, and the tables say so.
    trials = read_search(place.out / "search.json").cells[0].trials
    next(place.runs.glob(f"cola/*/vanilla/{trials[0].run_id}/seed=101/result.json")).unlink()
    assert tables_main([str(place.out / "search.json")]) == 1
    assert "3 of 4" in (place.out / "table3.md").read_text()
    assert tables_main([str(place.root / "vanilla.yml")]) == 2
    assert "vanilla.yml is damaged: not JSON" in capsys.readouterr().err
    assert tables_main([str(place.out / "none.json")]) == 2
    assert "none.json; give the search.json that" in capsys.readouterr().err


@pytest.mark.usefixtures("no_figures")
def test_what_is_held_out_chooses_and_dev_is_reported(place: Place) -> None:
    assert place.main("--search", "sobol", "--trials", "4", "--holdout", "0.25") == 0
    for row in place.rows("table2.csv"):
        assert row["selected_on"] == "holdout"
        assert float(row["dev"]) == pytest.approx(float(row["score"]) + 5.0)
    text = (place.out / "table2.md").read_text()
    assert "chosen by the score on 0.25 of the training set, held out" in text
    assert "score (held out)" in (place.out / "table3.md").read_text()
    recipe = load_recipe(place.out / "recipes" / "all-MiniLM-L6-v2_pats_sobol4.yml")
    assert recipe.settings["holdout"] == 0.25
    assert "on 0.25 of the training set, held out" in recipe.source


@pytest.mark.usefixtures("no_figures")
def test_pruned_trials_are_not_chosen_and_are_made_in_full_without_pruning(place: Place) -> None:
    arguments = ["--search", "grid", "--unequal_grids"]
    assert place.main(*arguments, "--prune_after", "1") == 0
    statuses = [row["status"] for row in place.rows("trials.csv")]
    assert statuses.count("pruned") >= 2
    assert statuses[:4] == ["done"] * 4 == statuses[4:8], "the first four of each have nothing to be measured by"
    assert all(row["score"] == "" for row in place.rows("trials.csv") if row["status"] == "pruned")
    results = [RunDirectory(path.parent).read_result() for path in place.runs.glob("**/result.json")]
    assert sum(r is not None and r.status is Status.PRUNED and r.last is None for r in results) == statuses.count(
        "pruned"
    )
    assert "Median pruning after epoch 1" in (place.out / "table2.md").read_text()
    assert " pruned" in (place.out / "table3.md").read_text()
    made = len(place.calls)
    assert place.main(*arguments, "--prune_after", "1") == 0
    assert len(place.calls) == made, "a pruned trial is over for a search that prunes"
    assert place.main(*arguments) == 0
    assert len(place.calls) == made + statuses.count("pruned")
    assert {row["status"] for row in place.rows("trials.csv")} == {"done"}
    assert "Median pruning" not in (place.out / "table2.md").read_text()


@pytest.mark.usefixtures("no_figures")
def test_a_diverged_trial_is_not_chosen_and_a_failed_one_is_missing(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.recipe("vanilla", "learning_rate: [1.0e-2, 5.0e-4]")
    assert place.main("--search", "grid", methods="vanilla") == 0
    assert [(row["status"], row["score"] == "") for row in place.rows("trials.csv")] == [
        ("done", False),
        ("done", True),
    ]
    assert float(place.rows("table2.csv")[0]["learning_rate"]) == 5e-4
    place.recipe("vanilla", "learning_rate: [2.0e-2, 5.0e-4]")
    assert place.main("--search", "grid", methods="vanilla") == 1
    assert "failed: cola all-MiniLM-L6-v2 vanilla seed=101 learning_rate=0.02: boom" in capsys.readouterr().err
    assert "1 of 2" in (place.out / "table3.md").read_text()
    recipe = load_recipe(place.out / "recipes" / "all-MiniLM-L6-v2_vanilla_grid2.yml")
    assert recipe.trials == 1, "a setting without a result was not tried"
    assert "search grid (sampler seed 0), 1 trials per task" in recipe.source
    # TPE waits for a failed trial: the next start tries it again.
    assert place.main("--search", "tpe", "--trials", "2", methods="vanilla") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search", "grid"], "unequal numbers of trials (vanilla 4, pats 12), so the larger search may"),
        (["--search", "sobol", "--trials", "9"], "(vanilla 4, pats 9), so the larger search may win by itself: give"),
        (["--search", "sobol"], "--search sobol needs --trials"),
        (["--trials", "3"], "--trials is for --search; drop it or add --search"),
        (["--prune_after", "2"], "--prune_after is for --search; drop it or add --search"),
        (["--search", "tpe", "--trials", "0"], "--trials is 0; legal: an integer in [1, 2^31)"),
        (["--search", "tpe", "--trials", "2", "--tpe_round", "0"], "--tpe_round is 0"),
        (["--search", "grid", "--trials", "2", "--prune_after", "0"], "--prune_after is 0"),
        (["--search", "grid", "--trials", "2", "--sampler_seed", "-1"], "--sampler_seed is -1"),
        (["--search", "grid", "--trials", "2", "--holdout", "1.5"], "holdout is 1.5; legal: a share in (0, 1)"),
        (["--search", "grid", "--trials", "2", "--tasks", "cola,rte", "--set", "rte.holdout=0.5"], "in one search"),
        (["--search", "grid", "--trials", "2", "--search_seeds", "3,"], "--search_seeds 3,: 3 is one of --seeds 5 too"),
        (["--search", "grid", "--trials", "2", "--set", "learning_rate=1e-4"], "nothing to search that --set does not"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_exit_2(
    place: Place, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert place.main(*arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert place.calls == []
    assert not place.out.exists()


@pytest.mark.usefixtures("no_figures")
def test_what_set_fixes_is_not_searched_and_dry_run_writes_nothing(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--search", "grid", "--set", "learning_rate=5e-4"]
    assert place.main(*arguments, "--dry_run", methods="pats") == 0
    output = capsys.readouterr().out
    assert output.count("missing  cola all-MiniLM-L6-v2 pats seed=101 pats.noise_scale=") == 3
    assert output.endswith("3 runs: 0 done, 3 missing, with 27 steps\n")  # 40 rows in 16s, 3 epochs
    assert place.main("--search", "tpe", "--trials", "7", "--dry_run", methods="pats") == 0
    assert "0 missing, 7 that TPE has not asked for yet" in capsys.readouterr().out
    assert not place.out.exists()
    assert place.main(*arguments, methods="pats") == 0
    assert "5e-4 (fixed)" in (place.out / "table2.md").read_text()
    assert load_recipe(next(place.out.glob("recipes/*.yml"))).settings["learning_rate"] == 5e-4


SCRIPT = """
import sys
from experiments.benchmark import DEFAULT
from experiments.study import study
from experiments.study.__main__ import main
from tests.experiments.search_runs import PoolInProcess, scored_run
study.Pool = PoolInProcess
study.open_all = lambda config: None
sys.modules["experiments.study.search.parallel_coordinates"] = type(sys)("figures")
sys.modules["experiments.study.search.parallel_coordinates"].search_figures = lambda search, out: []
sys.exit(main(sys.argv[1:], run=scored_run))
"""


def start(place: Place, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
    """The search in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *place.arguments(*arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), **env},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.fixture
def elsewhere(tmp_path: Path) -> Place:
    (tmp_path / "elsewhere").mkdir()
    return Place(tmp_path / "elsewhere")


@pytest.mark.usefixtures("no_figures")
def test_killed_and_shared_tpe_searches_give_the_table_of_an_undisturbed_one(place: Place, elsewhere: Place) -> None:
    pytest.importorskip("optuna")
    arguments = ["--search", "tpe", "--trials", "4", "--tpe_round", "2"]
    assert place.main(*arguments) == 0
    trials = place.rows("trials.csv")
    assert len({row["run_id"] for row in trials}) == 8
    # From the runs alone, without the journal: the same trials, and none of them made again.
    texts, made = place.texts(), len(place.calls)
    (place.out / "tpe.journal").unlink()
    assert place.main(*arguments) == 0
    assert (place.texts(), len(place.calls)) == (texts, made)
    # Killed in its first round, and then two processes at once.
    killed = start(elsewhere, *arguments, SEARCH_TEST_SLEEP="0.3")
    deadline = time.monotonic() + 60
    while len(elsewhere.calls) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    after_kill = len(list(elsewhere.runs.glob("**/result.json")))
    assert 1 <= after_kill < 8
    gate = elsewhere.root / "gate"
    gate.mkdir()
    both = [start(elsewhere, *arguments, SEARCH_TEST_GATE=str(gate)) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    assert elsewhere.texts() == place.texts()
    # Only what the kill broke off was begun twice.
    assert len(set(elsewhere.calls)) == 8
    assert len(elsewhere.calls) <= 8 + 1
    pids = {line.split()[-1] for line in (elsewhere.runs / "calls.txt").read_text().splitlines()}
    assert len(pids) == 3, "all three had a share"
    journal = (elsewhere.out / "tpe.journal").read_text()
    assert len([line for line in journal.splitlines() if json.loads(line)["op_code"] == 4]) == 8, "no trial twice"


def test_tpe_learns_from_the_scores_and_never_asks_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("optuna")
    from experiments.study.search.tpe import TpeSampler

    space = Space((Axis("rate", tuple(range(9))), Axis("scale", tuple(range(6))), Axis("b", tuple(range(8)))))

    def closeness(point: Point) -> float:
        return -float(sum((i - best) ** 2 for i, best in zip(point, (2, 4, 3), strict=True)))

    at_random, guided = [], []
    for name in ("one", "two"):
        told: dict[Point, float] = {}
        while True:
            sampler = TpeSampler(tmp_path / "tpe.journal", name, space, 26, 0, 4)  # a restart before every round
            open_points = [point for point in sampler.ask(told) if point not in told]
            if not open_points:
                break
            assert len(open_points) == min(4, 26 - len(told))
            told |= {point: closeness(point) if point[0] else math.nan for point in open_points}
        assert len(told) == 26
        at_random += list(map(closeness, told))[:10]  # that is how it begins
        guided += list(map(closeness, told))[-10:]
    assert statistics.fmean(guided) > statistics.fmean(at_random) + 5.0
    journal = tmp_path / "tpe.journal"
    before = journal.read_text()
    assert not TpeSampler(journal, "three", space, 26, 0, 4).asked()
    assert journal.read_text() == before
    # Another name is another study; a small space is searched to its end.
    small = TpeSampler(tmp_path / "tpe.journal", "other", Space((Axis("kind", ("a", "b")),)), 30, 0, 4)
    assert sorted(small.ask({})) == [(0,), (1,)]
    whole = journal.read_bytes()
    for torn in (whole + b'{"op_code": 4, "worker_', whole[:-7], whole + b"\n", whole + b"\xff[[[\n"):
        journal.write_bytes(torn)
        caplog.clear()
        again = TpeSampler(journal, "one", space, 26, 0, 4)
        assert len(again.asked()) == 26
        assert "its last line is not whole" in caplog.text
        assert again.ask({}) == again.asked(), "it goes on with the same trials"
        journal.write_bytes(whole)
    journal.write_text("{garbage\n" + before)
    with pytest.raises(SettingError, match="journal is damaged"):
        TpeSampler(journal, "one", space, 26, 0, 4).ask({})


def test_the_median_of_others_that_came_as_far_decides() -> None:
    others = [[10.0, 50.0], [20.0, 40.0], [30.0, 30.0], [40.0, 20.0]]
    assert below_median(24.9, 1, others)
    assert not below_median(25.0, 1, others)
    assert below_median(34.9, 2, others), "the best so far, not the newest: 50, 40, 30 and 40"
    assert not below_median(0.0, 1, others[1:]), "too few"
    assert not below_median(0.0, 3, others), "none came as far"
    assert below_median(math.nan, 1, others)
    assert not below_median(0.0, 1, [[math.nan]] * 4 + [[1.0]] * 3)


def test_a_trial_that_stopped_early_has_come_as_far_as_any(tmp_path: Path) -> None:
    folders = [write_run(tmp_path, seed=seed, best=60.0 + seed) for seed in range(1, 5)]
    assert read_choices(folders[0]) == [50.0, 61.0, 59.0]
    assert not below_median(60.0, 5, map(read_choices, folders)), "they have three epochs"
    for folder in folders:
        stop_early(folder, epochs=5)
    assert len(read_choices(folders[0])) == 5
    assert below_median(60.0, 5, map(read_choices, folders))
    assert not below_median(70.0, 5, map(read_choices, folders))


def test_pruning_goes_through_the_real_pool(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "Pool", Pool)
    monkeypatch.setattr("experiments.study.search.parallel_coordinates.search_figures", lambda search, out: [])
    arguments = ["--search", "grid", "--set", "learning_rate=1e-5", "--prune_after", "1"]
    place.recipe("pats", f"{RATES}, pats.noise_scale: [2.0e-3, 2.1e-3, 2.2e-3, 2.3e-3, 2.4e-3, 9.0e-3]")
    assert place.main(*arguments, methods="pats") == 0
    statuses = [row["status"] for row in place.rows("trials.csv")]
    assert sorted(set(statuses)) == ["done", "pruned"]  # which ones, their order decides: by folder
    assert statuses.count("done") >= 4


@pytest.mark.usefixtures("no_figures")
def test_a_search_chooses_among_runs_of_its_own_data_alone(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--search", "grid", "--search_seeds", "101,")
    assert place.main(*arguments, methods="vanilla") == 0
    made = place.calls
    train = place.root / "data" / "cola_train.tsv"
    before = train.read_text()
    train.write_text(before.replace("some", "same", 1))
    capsys.readouterr()
    assert place.main(*arguments, methods="vanilla") == 2
    output, errors = capsys.readouterr()
    assert (output, errors.count("\n")) == ("", 1)
    assert errors.startswith("error: cola_train.tsv is not what ")
    assert place.calls == made
    train.write_text(before)
    run_json = next(place.runs.rglob("run.json"))
    made_of = read_json(run_json)["identity"]
    edit_json(run_json, identity=made_of | {"data": {**made_of["data"], "cola_train.tsv": "another"}})
    with pytest.raises(SettingError, match=r"were not run with the same contents, cola_train\.tsv differs"):
        read_search(place.out / "search.json")
