import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from data_utils.errors import SettingError
from data_utils.json_file import read_json
from data_utils.metrics import compute_metrics
from data_utils.task_def import load_task_defs
from experiments.glue.glue_prepro import GLUE_TASK_DEF
from experiments.study.comparison.comparisons import AVERAGE, compare_seeds, pairs
from experiments.study.comparison.ensembles import write_ensembles
from experiments.study.comparison.text import comparisons_csv, markdown, what_n_shows
from experiments.study.robustness import main as robustness
from experiments.study.significance import Significance, analyse, main, write_significance
from experiments.study.statistics.paired_tests import holm
from experiments.study.statistics.stochastic_order import almost_stochastic_order
from experiments.study.table.gathering import gather
from mt_dnn.results import Status
from mt_dnn.run_directory import RunDirectory
from tests.edits import edit_json, replace_in_json
from tests.experiments.fake_runs import DATASETS, METRICS, stop_early, write_run

ENCODER = "bert-base-uncased"
N = 60
TASKS = load_task_defs(GLUE_TASK_DEF)
LABELS = {
    "stsb": np.random.default_rng(1).uniform(0, 5, N).astype(np.float32),
    **{task: np.random.default_rng(2).integers(0, 2, N) for task in ("cola", "mrpc", "rte", "mnli")},
}


def logits(task: str, seed: int, share_wrong: float) -> np.ndarray:
    """(N, K) of a model whose mistakes follow from a seed."""
    rng = np.random.default_rng([seed, 7])
    if task == "stsb":
        return (LABELS[task] + rng.normal(0, 5 * share_wrong, N))[:, None].astype(np.float32)
    wrong = rng.random(N) < share_wrong
    return np.eye(TASKS[task].n_class, dtype=np.float32)[np.where(wrong, 1 - LABELS[task], LABELS[task])]


def write_predicted(runs: Path, task: str, method: str, seed: int, share_wrong: float, luck: int = 0) -> None:
    """A run with predictions and the scores that follow from them; its last epoch is a little worse than its best."""
    best, last = logits(task, seed + luck, share_wrong), logits(task, seed + luck, share_wrong + 0.05)
    metric = METRICS.get(task, "ACC")
    folder = write_run(
        runs, task, method, seed, *(compute_metrics(TASKS[task], x, LABELS[task])[metric] for x in (best, last))
    )
    uids = np.array([f"{i}" for i in range(N)], dtype="S")
    arrays = {"uids": uids, "labels": LABELS[task], "best_logits": best, "last_logits": last}
    RunDirectory(folder).write_predictions({f"{task}_dev.{name}": array for name, array in arrays.items()})


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    for seed in (1, 2, 3):
        for task in ("mrpc", "stsb"):
            write_predicted(folder, task, "vanilla", seed, 0.3)
            write_predicted(folder, task, "pats", seed, 0.15, luck=10)
    return folder


def found_in(runs: Path, **settings: object) -> Significance:
    return analyse(gather(runs), runs, resamples=400, **settings)  # type: ignore[arg-type]


def f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    hits = np.sum((labels == 1) & (predicted == 1))
    return float(200 * hits / (labels.sum() + predicted.sum()))


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_comparison_of_runs_that_stopped_by_other_rules_says_so(tmp_path: Path) -> None:
    for method, patience in (("vanilla", None), ("pats", 3), ("sage", None)):
        for task in ("cola", "rte"):
            write_run(tmp_path, task, method, patience=patience)
    stop_early(next(tmp_path.glob("rte/*/pats/*/seed=1")), epochs=10)
    table = gather(tmp_path)
    unlike = {(c.pair.method, c.pair.task) for c in compare_seeds(table, pairs(table), resamples=10) if c.stops_unlike}
    assert unlike == {("pats", "rte"), ("pats", AVERAGE)}
    text = markdown(compare_seeds(table, pairs(table), resamples=10), [], [])
    said = "Stopped early by unlike patience, so not after the same training: PATS - vanilla RTE acc; PATS - vanilla"
    assert said in text


def test_each_method_is_compared_with_its_control_else_with_plain_fine_tuning(tmp_path: Path) -> None:
    for method in ("vanilla", "pats", "no_hidden_dropout", "hype", "mixout"):
        write_run(tmp_path, method=method)
    table = gather(tmp_path)
    assert {(p.method, p.baseline) for p in pairs(table)} == {
        ("pats", "vanilla"), ("no_hidden_dropout", "vanilla"), ("hype", "no_hidden_dropout"), ("mixout", "vanilla"),
    }  # fmt: skip
    assert {(p.method, p.baseline) for p in pairs(table, "pats")} == {
        (m, "pats") for m in ("vanilla", "no_hidden_dropout", "hype", "mixout")
    }
    text = markdown(compare_seeds(table, pairs(table), resamples=100), [], [])
    assert "Not compared with their own control: Mixout - vanilla (no dropout)." in text
    with pytest.raises(SettingError, match="--baseline 'sage' is not in the table; there are vanilla, "):
        pairs(table, "sage")


def test_over_seeds_every_figure_is_that_of_the_differences(tmp_path: Path) -> None:
    scores = {"vanilla": [60.0, 61.0, 62.5, 59.0, 60.5, 61.0], "pats": [61.0, 61.5, 63.5, 60.5, 60.0, 63.0]}
    for method, values in scores.items():
        for seed, score in enumerate(values, start=1):
            write_run(tmp_path, "cola", method, seed, score, 50.0)
            write_run(tmp_path, "rte", method, seed, 70.0, 50.0 + seed * (method == "pats"))
    found = {(c.pair.task, c.pair.selection): c for c in found_in(tmp_path, examples=False).seeds}
    d = np.subtract(scores["pats"], scores["vanilla"])
    cola = found["cola", "best"]
    assert (cola.difference.mean, cola.difference.std, cola.metric) == (
        pytest.approx(d.mean()),
        pytest.approx(d.std(ddof=1)),
        "MCC",
    )
    student = stats.ttest_rel(scores["pats"], scores["vanilla"]).confidence_interval()
    assert (cola.difference.interval.low, cola.difference.interval.high) == pytest.approx(tuple(student))
    exact = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert cola.sign_flip.p == pytest.approx(exact)
    assert cola.order is not None
    expected = almost_stochastic_order(scores["pats"], scores["vanilla"], resamples=4000).bound
    assert (cola.order.violation, cola.order.bound) == (0.0, pytest.approx(expected, abs=0.1))
    # On RTE nothing differs for the best epoch, so the seeds' averages are half of CoLA's differences.
    average = found[AVERAGE, "best"]
    assert average.difference.values == pytest.approx(d / 2)
    assert average.order is None
    assert (found["rte", "best"].sign_flip.p, math.isnan(found["rte", "best"].bca.low)) == (1.0, True)
    # Holm over the three rows of one selection rule; the last epoch is a family of its own.
    assert cola.p_holm == pytest.approx(min(1.0, 3 * exact))
    assert found["rte", "last"].p_holm == pytest.approx(3 * 2 / 2**6)


def test_a_seed_without_a_score_makes_its_comparison_nan(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_run(tmp_path, seed=seed)
        write_run(tmp_path, method="pats", seed=seed, best=61.0 + seed)
    write_run(tmp_path, method="pats", seed=2, best=None, last=None, status=Status.DIVERGED)
    (best, _) = found_in(tmp_path).seeds
    assert best.difference.n == 3
    for value in (best.difference.mean, best.bca.low, best.sign_flip.p, best.p_holm, best.order.bound):  # type: ignore[union-attr]
        assert math.isnan(value)
    text = markdown([best], [], [])
    assert "NaN" in text
    assert "a seed has no score (NaN): PATS - vanilla CoLA mcc" in text


def test_over_examples_the_seeds_models_are_compared_on_the_same_examples(runs: Path) -> None:
    found = {(c.pair.task, c.pair.selection): c for c in found_in(runs).examples}
    assert set(found) == {(task, rule) for task in ("mrpc", "stsb") for rule in ("best", "last")}
    mrpc = found["mrpc", "best"]
    y = LABELS["mrpc"]
    ours = [logits("mrpc", seed + 10, 0.15).argmax(axis=1) for seed in (1, 2, 3)]
    theirs = [logits("mrpc", seed, 0.3).argmax(axis=1) for seed in (1, 2, 3)]
    gains = [f1(y, a) - f1(y, b) for a, b in zip(ours, theirs, strict=True)]
    assert (mrpc.examples, mrpc.difference) == (N, pytest.approx(np.mean(gains)))
    for one, gain, a, b in zip(mrpc.by_seed, gains, ours, theirs, strict=True):
        assert one.mcnemar is not None
        only = (int(((a == y) & (b != y)).sum()), int(((a != y) & (b == y)).sum()))
        assert (one.mcnemar.only_first, one.mcnemar.only_second) == only
        assert one.mcnemar.p == pytest.approx(stats.binomtest(only[0], sum(only)).pvalue)
        assert one.difference == pytest.approx(gain)
        assert one.interval.low < gain < one.interval.high
    drawn = [np.random.default_rng(i).integers(N, size=N) for i in range(1000)]
    slow = [np.mean([f1(y[e], a[e]) - f1(y[e], b[e]) for a, b in zip(ours, theirs, strict=True)]) for e in drawn]
    expected = np.quantile(slow, [0.025, 0.975])
    assert (mrpc.these_models.low, mrpc.these_models.high) == pytest.approx(tuple(expected), abs=2)
    assert mrpc.new_models.high - mrpc.new_models.low > mrpc.these_models.high - mrpc.these_models.low
    stsb = found["stsb", "best"]
    assert (stsb.p_mcnemar, stsb.by_seed[0].mcnemar) == (None, None)
    assert stsb.these_models.low < stsb.difference < stsb.these_models.high
    # Two bootstrap tests of one selection rule, one of McNemar's.
    assert [mrpc.p_bootstrap_holm, stsb.p_bootstrap_holm] == holm([mrpc.p_bootstrap, stsb.p_bootstrap])
    assert mrpc.p_mcnemar_holm == mrpc.p_mcnemar


@pytest.mark.parametrize(
    ("methods", "title"),
    [((), "best dev epoch"), (("pats", "vanilla"), "best held-out epoch"), (("pats",), "best epoch")],
)
def test_titles_say_what_chose_the_best_epochs(
    runs: Path, tmp_path: Path, methods: tuple[str, ...], title: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for method in methods:
        for file in runs.glob(f"*/*/{method}/*/*/result.json"):
            edit_json(file, best=read_json(file)["best"] | {"held_out": 99.0})
    found = found_in(runs)
    heads = [line for line in markdown(found.seeds, found.examples, ()).splitlines() if line.startswith("###")]
    assert heads == [
        f"### {title.capitalize()}, over seeds", f"### {title.capitalize()}, over dev examples",
        "### Last epoch, over seeds", "### Last epoch, over dev examples",
    ]  # fmt: skip
    assert robustness([str(runs), "--out", str(tmp_path / "out")]) == 0
    assert f"## MRPC, {ENCODER}, {title}\n" in capsys.readouterr().out
    write_ensembles(gather(runs), runs, tmp_path / "out")
    assert f"## {ENCODER}, {title}\n" in (tmp_path / "out/ensemble.md").read_text()
    for file in runs.glob("mrpc/*/*/*/*/result.json"):
        best = read_json(file)["best"]
        edit_json(file, best=best | {"metrics": best["metrics"] | {"mrpc_hard_dev": {"F1": 40.0}}})
    on = found_in(runs, examples=False)
    assert f"### {title.capitalize()}, on mrpc_hard_dev, over seeds\n" in markdown(on.seeds, on.examples, ())


def test_examples_are_matched_by_uid(runs: Path) -> None:
    before = found_in(runs).examples
    folder = next(runs.glob("mrpc/*/pats/*/seed=2"))
    with np.load(folder / "predictions.npz") as arrays:
        backwards = {name: array[::-1] for name, array in arrays.items()}
    RunDirectory(folder).write_predictions(backwards)
    assert found_in(runs).examples == before


def test_what_is_not_comparable_is_refused_in_one_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = next(runs.glob("mrpc/*/pats/*/seed=2"))
    whole = (folder / "predictions.npz").read_bytes()
    with np.load(folder / "predictions.npz") as arrays:
        kept = dict(arrays)

    def message() -> str:
        assert main([str(runs), "--resamples", "100"]) == 2
        text = capsys.readouterr().err
        assert text.startswith("error: ")
        assert text.count("\n") == 1
        return text

    RunDirectory(folder).write_predictions({**kept, "mrpc_dev.uids": kept["mrpc_dev.uids"].astype("S9")[::-1]})
    assert "was scored on other dev examples or labels than pats seed 1; run both on one data_dir" in message()
    RunDirectory(folder).write_predictions({**kept, "mrpc_dev.best_logits": kept["mrpc_dev.last_logits"]})
    assert "they are of two runs" in message()
    (folder / "predictions.npz").write_bytes(whole[:200])
    assert "predictions.npz is damaged" in message()
    (folder / "predictions.npz").write_bytes(whole)
    replace_in_json(folder / "result.json", ('"F1"', '"ACC"'))
    assert "mrpc: its runs were scored by different metrics, ACC/F1" in message()


def test_a_seed_without_predictions_is_named_and_one_without_a_score_makes_nan(runs: Path) -> None:
    next(runs.glob("mrpc/*/pats/*/seed=2/predictions.npz")).unlink()
    found = found_in(runs)
    mrpc = next(c for c in found.examples if c.pair.task == "mrpc")
    assert ([one.seed for one in mrpc.by_seed], mrpc.without) == ([1, 3], (2,))
    assert "PATS - vanilla, MRPC F1: without seed 2, whose predictions were not kept." in markdown(
        found.seeds, found.examples, found.alone
    )
    write_run(runs, "mrpc", "pats", 2, None, None, Status.DIVERGED)
    mrpc = next(c for c in found_in(runs).examples if c.pair.task == "mrpc")
    assert [one.seed for one in mrpc.by_seed] == [1, 2, 3]
    assert mrpc.by_seed[1].mcnemar is None
    assert mrpc.p_mcnemar is not None
    for value in (mrpc.difference, mrpc.p_mcnemar, mrpc.p_bootstrap, mrpc.these_models.low, mrpc.new_models.high):
        assert math.isnan(value)


@pytest.mark.parametrize(("task", "p_mcnemar"), [("mrpc", "NaN"), ("stsb", "-")])
def test_a_method_without_any_score_keeps_its_row_and_its_place_in_the_family(
    runs: Path, task: str, p_mcnemar: str
) -> None:
    for seed in (1, 2, 3):
        write_run(runs, task, "sage", seed, math.nan, math.nan, status=Status.DEGENERATE)
    found = found_in(runs)
    lost = [c for c in found.examples if c.pair.method == "sage"]
    assert [c.pair.selection for c in lost] == ["best", "last"]
    for c in lost:
        assert (c.examples, len(c.by_seed)) == (N, 3)
        assert all(map(math.isnan, (c.difference, c.these_models.low, c.new_models.high, c.p_bootstrap)))
    text = markdown(found.seeds, found.examples, ())
    (shown, _) = [line for line in text.splitlines() if line.startswith("| SAGE") and f"| {N} " in line]
    assert shown.split(" | ")[6].strip() == p_mcnemar
    best = [c for c in found.examples if c.pair.selection == "best"]
    assert len(best) == 3
    assert [c.p_bootstrap_holm for c in best] == pytest.approx(holm([c.p_bootstrap for c in best]), nan_ok=True)


def test_mnli_is_resampled_within_its_two_sets(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = {name: rng.integers(0, 3, n) for name, n in zip(DATASETS["mnli"], (40, 50), strict=True)}
    for method, share in (("vanilla", 0.4), ("pats", 0.2)):
        arrays, accuracies = {}, []
        for name, labels in y.items():
            predicted = np.where(rng.random(len(labels)) < share, (labels + 1) % 3, labels)
            one = {"uids": np.arange(len(labels)).astype("S"), "labels": labels, "best_logits": np.eye(3)[predicted]}
            arrays |= {f"{name}.{key}": value for key, value in one.items()}
            accuracies.append(float(100 * np.mean(predicted == labels)))
        folder = write_run(tmp_path, "mnli", method, best=50.0, last=None)
        scores = {"51.0": accuracies[0], "49.0": accuracies[1], "50.0": float(np.mean(accuracies))}
        replace_in_json(folder / "result.json", *((old, repr(new)) for old, new in scores.items()))
        RunDirectory(folder).write_predictions(arrays)
    (found,) = [c for c in found_in(tmp_path).examples if c.pair.selection == "best"]
    assert found.examples == 90
    assert found.these_models.low < found.difference < found.these_models.high
    assert math.isnan(found.new_models.low), "one seed has no spread"
    assert "fewer than two seeds" in found.new_models.degenerate
    test = found.by_seed[0].mcnemar
    assert test is not None
    assert test.p == pytest.approx(found.p_mcnemar)


def test_results_do_not_depend_on_what_else_is_in_the_table(runs: Path) -> None:
    alone = {c.pair: (c.these_models, c.new_models, c.p_bootstrap) for c in found_in(runs).examples}
    for seed in (1, 2, 3):
        write_predicted(runs, "mrpc", "sage", seed, 0.25)
        write_predicted(runs, "rte", "pats", seed, 0.25)
    more = {c.pair: (c.these_models, c.new_models, c.p_bootstrap) for c in found_in(runs).examples}
    assert {pair: more[pair] for pair in alone} == alone


@pytest.mark.parametrize(
    ("n", "comparisons", "text"),
    [
        (5, 1, "5 paired seeds cannot go below p = 0.0625; 6 can (p = 0.0312)."),
        (6, 1, "6 paired seeds can reach p = 0.0312."),
        (6, 8, "6 paired seeds can reach p = 0.0312. After Holm's correction over 8 comparisons the smallest of them "
               "cannot be below 0.25; for 0.05 it takes 9 seeds."),
        (10, 8, "10 paired seeds can reach p = 0.00195. After Holm's correction over 8 comparisons the smallest of "
                "them cannot be below 0.0156."),
    ],
)  # fmt: skip
def test_it_says_what_n_can_show(n: int, comparisons: int, text: str) -> None:
    assert what_n_shows(n, [n] * comparisons) == text


@pytest.mark.parametrize(("few", "many"), [((4,) * 3, (5,) * 6), ((5,), (10,) * 26), ((1,), (5,) * 8)])
def test_what_n_shows_holds_where_a_method_has_fewer_seeds(few: tuple[int, ...], many: tuple[int, ...]) -> None:
    """The text's figure is what Holm's correction gives where every comparison has the smallest p of its seeds."""
    family = [*few, *many]
    corrected = holm([2.0 ** (1 - n) for n in family])
    for n in (few[0], many[0]):
        reached = min(p for p, seeds in zip(corrected, family, strict=True) if seeds == n)
        assert f"over {len(family)} comparisons the smallest of them cannot be below {reached:.3g}" in what_n_shows(
            n, family
        )


def test_more_seeds_than_are_tested_exactly_reach_no_less_than_the_random_flips() -> None:
    assert what_n_shows(25, [25]) == "25 paired seeds can reach p = 1e-05."


def test_the_files_hold_what_was_found(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(runs, "mrpc", "hype", 9)
    out = tmp_path / "out"
    assert main([str(runs), "--out", str(out), "--selection", "best", "--resamples", "400"]) == 0
    printed = capsys.readouterr()
    assert printed.out == (out / "significance.md").read_text()
    assert "Without anything to compare them with in this table: HyPe." in printed.out
    assert "3 paired seeds cannot go below p = 0.25; 6 can" in printed.out
    assert "### Best dev epoch, over dev examples" in printed.out
    assert "Last epoch" not in printed.out
    found = found_in(runs, selections=["best"])
    lines = rows((out / "significance.csv").read_text())
    assert [(row["task"], row["method"], row["baseline"]) for row in lines] == [
        ("mrpc", "pats", "vanilla"), ("stsb", "pats", "vanilla"), (AVERAGE, "pats", "vanilla"),
    ]  # fmt: skip
    assert float(lines[0]["p_mcnemar"]) == found.examples[0].p_mcnemar
    assert float(lines[0]["t_low"]) == found.seeds[0].difference.interval.low
    assert float(lines[1]["new_models_high"]) == found.examples[1].new_models.high
    assert lines[1]["p_mcnemar"] == lines[2]["examples"] == ""
    assert float(lines[2]["smallest_p"]) == 0.25
    seeds = rows((out / "significance_seeds.csv").read_text())
    assert [row["seed"] for row in seeds] == ["1", "2", "3"] * 3
    assert float(seeds[1]["difference"]) == found.seeds[0].difference.by_seed[2]
    assert int(seeds[0]["only_method_right"]) == found.examples[0].by_seed[0].mcnemar.only_first  # type: ignore[union-attr]
    assert write_significance(found, tmp_path / "again")[1].read_text() == (out / "significance.csv").read_text()


def test_mistakes_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs")
    for arguments, message in (
        ([str(tmp_path / "none")], "no folder"),
        ([str(tmp_path / "runs")], "no two methods to compare with a seed in common; the table has vanilla"),
        ([str(tmp_path / "runs"), "--resamples", "5"], "--resamples is 5; legal: 100 to 1000000"),
        ([str(tmp_path / "runs"), "--baseline", "pats"], "--baseline 'pats' is not in the table"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_equal_differences_and_equal_models_are_told_and_have_no_interval(tmp_path: Path) -> None:
    labels = np.arange(N) % 2
    for seed in (1, 2, 3):
        for method in ("vanilla", "pats"):
            folder = write_run(tmp_path, "rte", method, seed, 100.0, 98.0 + (method == "pats"))
            arrays = {"uids": np.arange(N).astype("S"), "labels": labels, "best_logits": np.eye(2)[labels]}
            RunDirectory(folder).write_predictions({f"rte_dev.{name}": value for name, value in arrays.items()})
    table = gather(tmp_path)
    over_examples = analyse(table, tmp_path, selections=["best"], resamples=200)
    text = markdown(over_examples.seeds, over_examples.examples, over_examples.alone)
    assert "No interval, all pairs differ by the same: PATS - vanilla RTE acc." in text
    assert "No ε, both have the same scores: PATS - vanilla RTE acc." in text
    assert "PATS - vanilla, RTE acc: no interval, every sample gives the same difference." in text
    (c,) = over_examples.examples
    assert (c.p_mcnemar, c.p_bootstrap) == (1.0, 1.0)
    (last,) = analyse(table, tmp_path, selections=["last"], examples=False).seeds
    assert math.isnan(last.difference.interval.low)
    assert last.sign_flip.p == 0.25, "three differences of one sign: 2 of 2^3 flips"
    assert "No ε_min, each method scores the same with every seed" in markdown([last], [], [])
    row = next(csv.DictReader(io.StringIO(comparisons_csv([last], []))))
    assert (row["t_low"], row["bca_low"], row["epsilon_min"]) == ("nan", "nan", "nan")
