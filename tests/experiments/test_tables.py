import csv
import importlib
import io
import json
import math
import shutil
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data_utils.errors import SettingError
from data_utils.json_file import read_json, write_json
from data_utils.yaml_file import read_yaml
from experiments.benchmark import DEFAULT
from experiments.study.table.cells_csv import cells_csv, seeds_csv
from experiments.study.table.gathering import gather
from experiments.study.table.latex import latex
from experiments.study.table.markdown import markdown
from experiments.study.table.paper import load_paper
from experiments.study.table.wanted import Wanted
from experiments.study.tables import main, write_tables
from experiments.study.texts import csv_text
from mt_dnn.results import Status
from tests.edits import edit_json
from tests.experiments.fake_runs import stop_early, write_run

ENCODER = "bert-base-uncased"
PAPER_TABLES = load_paper()


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def line(text: str, label: str, block: str = "Best dev epoch") -> list[str]:
    """Entries of one row of the Markdown table."""
    part = text.split(f"### {block}")[1].split("###", maxsplit=1)[0]
    found = [row for row in part.splitlines() if row.startswith(f"| {label} ")]
    assert len(found) == 1, f"{label!r} stands {len(found)} times in\n{part}"
    return [entry.strip() for entry in found[0].strip("|").split("|")][1:]


def test_the_papers_averages_are_recomputed() -> None:
    table = read_yaml(DEFAULT.task_def.with_name("paper.yml"))["table_1"]
    wrong = []
    for row in table["rows"]:
        assert set(row["scores"]) == set(table["metrics"])
        exact = mean(row["scores"].values())
        assert row["average"] == pytest.approx(exact, abs=0.00501), "rounded to two digits"
        if abs(row["printed_average"] - exact) > 0.00501:
            wrong.append((row["encoder"], row["method"]))
        assert row["inferred"] == (row["method"] in ("noisytune", "sage"))
    assert wrong == [
        (ENCODER, "vanilla"), (ENCODER, "noisytune"), ("roberta-large", "sage"), ("roberta-large", "pats"),
    ]  # fmt: skip


def test_a_table_says_what_was_set_otherwise_than_in_the_control(tmp_path: Path) -> None:
    for task, rate in (("cola", 1e-4), ("rte", 2e-4)):
        write_run(tmp_path, task, "vanilla", learning_rate=1e-4)
        write_run(tmp_path, task, "pats", learning_rate=1e-4, seed=1)
        write_run(tmp_path, task, "sage", learning_rate=rate / 2, optimizer="adamax", save="none")
        write_run(tmp_path, task, "hype", precision="fp32", learning_rate=3e-4)
    text = markdown(gather(tmp_path), PAPER_TABLES)
    assert "their own settings: SAGE (learning_rate 5e-05, not 0.0001, on CoLA)." in text, "on RTE it is the same"
    for task in ("cola", "rte"):
        write_run(tmp_path, task, "no_hidden_dropout", precision="bf16", learning_rate=3e-4)
    folder = write_run(tmp_path, "stsb", "sage", learning_rate=3e-4)
    write_run(tmp_path, "stsb", "vanilla", learning_rate=1e-4)
    text = markdown(gather(tmp_path), PAPER_TABLES)
    control = "no hidden dropout (learning_rate 0.0003, not 0.0001; precision bf16, not auto)"
    assert f"settings: SAGE (learning_rate, on CoLA, STS-B), {control}, HyPe (precision fp32, not bf16)." in text
    assert "otherwise" in latex(gather(tmp_path), PAPER_TABLES)
    shutil.rmtree(folder.parent)
    for folder in tmp_path.glob("*/*/hype/*/seed=1"):
        edit_json(folder / "run.json", resolved_precision="bf16")
    assert "HyPe (" not in markdown(gather(tmp_path), PAPER_TABLES)


def test_a_table_with_methods_set_as_their_controls_says_nothing_of_it(tmp_path: Path) -> None:
    write_run(tmp_path, method="vanilla", seed=1, device="cpu", recipe="a")
    write_run(tmp_path, method="pats", seed=2, device="cuda:0", recipe="b", log_per_updates=7)
    write_run(tmp_path, method="recadam", optimizer="adamw", init_checkpoint="roberta-large")
    assert "otherwise" not in markdown(gather(tmp_path), PAPER_TABLES)


def test_a_table_says_when_epochs_were_chosen_on_what_is_held_out(tmp_path: Path) -> None:
    folders = [write_run(tmp_path, method=method, holdout=0.1) for method in ("vanilla", "pats")]
    assert "chosen on the split that is scored. Last" in markdown(gather(tmp_path), PAPER_TABLES)
    for count, folder in enumerate(folders, start=1):
        best = read_json(folder / "result.json")["best"]
        edit_json(folder / "result.json", best=best | {"held_out": 99.0})
        text = markdown(gather(tmp_path), PAPER_TABLES)
        assert ("in some rows on a part" in text) == (count == 1)
        title = "Best epoch" if count == 1 else "Best held-out epoch"
        assert f"{title}: each run's best epoch, chosen on" in text
        assert line(text, "PATS", title)[0] == "**60.00**", "the dev score is shown"
        assert "Best dev epoch" not in text, "dev chose nothing"
    assert "chosen on a part of the training set that was held out, not on the split that is scored" in text


def test_a_setting_that_came_later_is_no_difference(tmp_path: Path) -> None:
    """A run of an earlier version has none in its run.json."""
    for method in ("vanilla", "pats"):
        folder = write_run(tmp_path, method=method)
        if method == "vanilla":
            config = read_json(folder / "run.json")["config"]
            edit_json(folder / "run.json", config={key: value for key, value in config.items() if key != "tf32"})
    assert "tf32" not in markdown(gather(tmp_path), PAPER_TABLES)


def test_a_pruned_run_is_missing(tmp_path: Path) -> None:
    write_run(tmp_path, seed=1, best=60.0)
    write_run(tmp_path, seed=2, best=99.0, last=None, status=Status.PRUNED)
    text = markdown(gather(tmp_path), PAPER_TABLES)
    assert line(text, "vanilla")[0].startswith("60.00 (n=1)")
    assert "seed 2: not finished" in text


def test_a_run_that_stopped_early_is_marked_wherever_it_stands(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path, method="vanilla", seed=seed)
        write_run(tmp_path, method="pats", seed=seed, patience=2)
        write_run(tmp_path, method="sage", seed=seed)
    text = markdown(gather(tmp_path), PAPER_TABLES)
    assert "stopped early" not in text, "none did"
    assert "settings: PATS (patience 2, not default)" in text
    stop_early(next(tmp_path.glob("cola/*/pats/*/seed=2")), epochs=10)
    table = gather(tmp_path)
    text = markdown(table, PAPER_TABLES)
    assert "CoLA, PATS: seed 2: stopped early, after epoch 3 of 10" in text
    assert "Last epoch: no choice; of runs that stopped early (footnotes) the one at which they did, chosen on" in text
    minus = "Best dev epoch, minus the control"
    assert "stopped early by unlike patience" in line(text, "PATS - vanilla", minus)[0]
    assert "unlike" not in line(text, "SAGE - vanilla", minus)[0]
    assert "stopped early, after epoch 3 of 10" in latex(table, PAPER_TABLES)
    stopped = {(row["method"], row["seed"]) for row in rows(seeds_csv(table)) if row["stopped_early"] == "True"}
    assert stopped == {("pats", "2")}
    counted = {(row["method"], row["stopped_early"]) for row in rows(cells_csv(table, PAPER_TABLES))}
    assert counted == {("vanilla", "0"), ("pats", "1"), ("sage", "0")}


def test_the_same_patience_of_all_is_no_difference(tmp_path: Path) -> None:
    for method in ("vanilla", "pats"):
        stop_early(write_run(tmp_path, method=method, patience=2), epochs=10)
    text = markdown(gather(tmp_path), PAPER_TABLES)
    assert "all methods: patience 2." in text
    assert text.count("seed 1: stopped early, after epoch 3 of 10") == 2
    assert "unlike" not in text


def test_a_cell_is_the_mean_and_sample_deviation_of_its_seeds(tmp_path: Path) -> None:
    best, last = [60.0, 61.0, 62.5], [58.0, 61.0, 60.0]
    for seed, (b, e) in enumerate(zip(best, last, strict=True), start=1):
        write_run(tmp_path, seed=seed, best=b, last=e)
    text = markdown(gather(tmp_path), PAPER_TABLES)
    assert line(text, "vanilla") == ["61.17 ± 1.26"]
    assert line(text, "vanilla", "Last epoch") == ["59.67 ± 1.53"]
    assert line(text, "vanilla, paper") == ["58.94"]
    assert "Split: dev." in text
    assert "over n = 3 seeds." in text
    assert "CoLA mcc" in text
    by_selection = {row["selection"]: row for row in rows(cells_csv(gather(tmp_path), PAPER_TABLES))}
    assert float(by_selection["best"]["mean"]) == pytest.approx(mean(best))
    assert float(by_selection["best"]["std"]) == pytest.approx(stdev(best))
    assert float(by_selection["last"]["std"]) == pytest.approx(stdev(last))
    assert by_selection["best"]["paper"] == "58.94"
    assert by_selection["last"]["paper"] == "", "the paper gives no last epoch"


def test_one_seed_has_no_deviation(tmp_path: Path) -> None:
    write_run(tmp_path)
    text = markdown(gather(tmp_path), PAPER_TABLES)
    assert line(text, "vanilla") == ["60.00"]
    assert "over n = 1 seed." in text


def test_the_average_is_over_task_means_and_marked_when_tasks_are_missing(tmp_path: Path) -> None:
    for seed, (cola, rte) in enumerate([(60.0, 70.0), (62.0, 74.0)], start=1):
        write_run(tmp_path, "cola", "vanilla", seed, cola, cola)
        write_run(tmp_path, "rte", "vanilla", seed, rte, rte)
        write_run(tmp_path, "cola", "pats", seed, 99.0, 99.0)
    text = markdown(gather(tmp_path), PAPER_TABLES)
    # Seeds' averages are 65 and 68: mean 66.5, deviation 2.12.
    assert line(text, "vanilla") == ["61.00 ± 1.41", "72.00 ± 2.83", "66.50 ± 2.12"]
    assert line(text, "PATS") == ["**99.00** ± 0.00 [1]", "missing", "99.00 (1/2 tasks)"]
    assert "[1] CoLA, PATS: seeds 1, 2: the same score, best dev epoch: no spread to judge by; seeds 1, 2: the" in text


def test_an_average_of_fewer_seeds_than_the_header_says_so(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        for task in ("cola", "rte"):
            write_run(tmp_path, task, "vanilla", seed, 60.0 + seed)
            if seed < 3:
                write_run(tmp_path, task, "pats", seed, 70.0 + seed)
        if seed < 3:
            write_run(tmp_path, "cola", "sage", seed, 65.0 + seed)
    write_run(tmp_path, "rte", "sage", 1, 65.0)
    text = markdown(gather(tmp_path), PAPER_TABLES)
    assert "over n = 3 seeds" in text
    assert line(text, "vanilla")[-1] == "62.00 ± 1.00"
    assert line(text, "PATS")[-1] == "71.50 ± 0.71 (n=2)", "and not bold: it is of other seeds"
    assert line(text, "SAGE")[-1] == "65.75 (seeds missing)"


def test_a_missing_seed_is_counted_and_named(tmp_path: Path) -> None:
    write_run(tmp_path, seed=1)
    write_run(tmp_path, seed=2, best=None, last=None, status=Status.FAILED)
    write_run(tmp_path, seed=3, finished=False)
    text = markdown(gather(tmp_path), PAPER_TABLES)
    assert line(text, "vanilla") == ["60.00 (n=1) [1]"]
    assert "[1] CoLA, vanilla: seed 2: failed (not counted); seed 3: not finished" in text
    assert not gather(tmp_path).complete
    (row, _) = rows(cells_csv(gather(tmp_path), PAPER_TABLES))
    assert (row["n"], row["expected"], row["failed"], row["missing_seeds"]) == ("1", "3", "1", "2 3")


def test_degenerate_runs_count_and_are_named(tmp_path: Path) -> None:
    write_run(tmp_path, seed=1, best=60.0)
    write_run(tmp_path, seed=2, best=0.0, last=0.0, status=Status.DEGENERATE)
    text = markdown(gather(tmp_path), PAPER_TABLES)
    assert line(text, "vanilla")[0] == "30.00 ± 42.43 [1]"
    assert "seed 2: one value predicted for every example, or labels all the same (counted)" in text


def test_a_run_without_a_score_makes_its_cell_nan(tmp_path: Path) -> None:
    write_run(tmp_path, "cola", seed=1)
    write_run(tmp_path, "cola", seed=2, best=None, last=None, status=Status.DIVERGED)
    write_run(tmp_path, "rte", seed=1, best=70.0, last=math.nan)
    write_run(tmp_path, "rte", seed=2, best=71.0, last=69.0)
    write_run(tmp_path, "cola", "pats", seed=1)
    table = gather(tmp_path)
    text = markdown(table, PAPER_TABLES)
    assert line(text, "vanilla") == ["NaN [1]", "70.50 ± 0.71", "NaN"]
    assert line(text, "vanilla", "Last epoch") == ["NaN [1]", "NaN", "NaN"]
    assert "seed 2: diverged" in text
    assert "**" not in text, "one number in a column is nothing to be best of"
    assert [row["score"] for row in rows(seeds_csv(table)) if row["status"] == "diverged"] == ["nan", "nan"]


def test_a_run_that_diverged_before_any_score_has_none_on_another_set_either(tmp_path: Path) -> None:
    for seed in (1, 2):
        folder = write_run(tmp_path, "cola", seed=seed)
        best = read_json(folder / "result.json")["best"]
        metrics = best["metrics"] | {"cola_hard_dev": {"MCC": 30.0 + seed}}
        edit_json(folder / "result.json", best=best | {"metrics": metrics})
    write_run(tmp_path, "cola", seed=3, best=None, last=None, status=Status.DIVERGED)
    write_run(tmp_path, "cola", "pats", seed=3, best=None, last=None, status=Status.DIVERGED)
    text = markdown(gather(tmp_path), PAPER_TABLES)
    block = "Best dev epoch, on cola_hard_dev, which is not in the score"
    assert line(text, "vanilla", block) == ["NaN"], "not the mean of the two that ended"
    (scores,) = [cell.scores("best") for cell in gather(tmp_path).on("cola_hard_dev").cells.values()]
    assert scores == pytest.approx({1: 31.0, 2: 32.0, 3: math.nan}, nan_ok=True)
    assert line(text, "PATS", block) == ["-"], "no run of it was scored there"


def test_the_best_of_each_column_is_bold_ties_too_and_the_paper_never(tmp_path: Path) -> None:
    for method, score in (("vanilla", 58.0), ("sage", 58.501), ("pats", 58.499)):
        write_run(tmp_path, method=method, best=score, last=score)
    text = markdown(gather(tmp_path), PAPER_TABLES)
    assert line(text, "SAGE")[0] == "**58.50**"
    assert line(text, "PATS")[0] == "**58.50**"
    assert line(text, "vanilla")[0] == "58.00"
    assert line(text, "PATS, paper")[0] == "60.67"
    assert line(text, "SAGE, paper (row inferred)")[0] == "60.01"


def test_mnli_is_the_mean_of_its_two_dev_sets(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "mnli", best=84.0, last=83.0)
    text = markdown(gather(tmp_path), PAPER_TABLES)
    assert line(text, "vanilla")[0] == "84.00"
    assert "MNLI is the mean of matched and mismatched." in text
    best = read_json(folder / "result.json")["best"]
    edit_json(folder / "result.json", best=best | {"score": best["metrics"]["mnli_matched_dev"]["ACC"]})
    with pytest.raises(SettingError, match=r"result.json: score 85.0 is not the mean of ACC over mnli_matched_dev"):
        gather(tmp_path)


def test_two_settings_for_a_cell_are_refused_until_one_is_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_run(
        tmp_path, best=60.0, learning_rate=1e-4, device="cpu", data_dir=Path("a"), cache_dir=Path("c")
    ).parent.name
    second = write_run(
        tmp_path, best=70.0, learning_rate=3e-4, device="cuda:0", data_dir=Path("b"), threads=3
    ).parent.name
    assert main([str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"{first} (learning_rate 0.0001)" in message, "and not where it was computed, or what is equal"
    assert f"{second} (learning_rate 0.0003)" in message
    assert "--study" in message
    assert "--run_id" in message
    assert main([str(tmp_path), "--run_id", second]) == 0
    assert line(capsys.readouterr().out, "vanilla")[0] == "70.00"
    assert main([str(tmp_path), "--run_id", second, "--run_id", "0123456789ab"]) == 2
    assert "--run_id '0123456789ab': no run of the table has it" in capsys.readouterr().err
    study = tmp_path / "study.json"
    cell = {"encoder": ENCODER, "method": "vanilla", "task": "cola", "run_id": first, "seeds": [1, 2]}
    study.write_text(json.dumps({"cells": [cell]}))
    assert main([str(tmp_path), "--study", str(study)]) == 0
    assert line(capsys.readouterr().out, "vanilla")[0] == "60.00 (n=1) [1]"


def test_a_study_shows_cells_that_were_never_started(tmp_path: Path) -> None:
    write_run(tmp_path)
    wanted = Wanted({(ENCODER, "pats", "rte"): ("0123456789ab", (1, 2))})
    text = markdown(gather(tmp_path, wanted), PAPER_TABLES)
    assert line(text, "PATS")[0] == "missing [1]"
    assert "seeds 1, 2: not finished" in text
    assert "| vanilla" not in text
    assert "Without their control in this table: PATS (vanilla)." in text


def test_latex_is_escaped_balanced_and_uses_booktabs(tmp_path: Path) -> None:
    for method, score in (("vanilla", 50.0), ("noisytune+pats", 55.0)):
        write_run(tmp_path, method=method, best=score, last=score, init_checkpoint="my_org/tiny_model")
    text = latex(gather(tmp_path), PAPER_TABLES)
    assert r"my\_org--tiny\_model" in text
    assert r"NoisyTune + PATS & \textbf{55.00}" in text
    assert "±" not in text
    for command in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert command in text
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    columns = text.split(r"\begin{tabular}{")[1].split("}")[0]
    body = [row for row in text.splitlines() if row.endswith(r"\\") and "multicolumn" not in row]
    assert {row.count("&") + 1 for row in body} == {len(columns)}


def test_a_damaged_result_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (write_run(tmp_path) / "result.json").write_text('{"status": "ok"')
    assert main([str(tmp_path)]) == 2
    assert "result.json is damaged" in capsys.readouterr().err


def test_a_missing_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert "no folder" in capsys.readouterr().err


SCORES = st.one_of(st.floats(0, 100), st.just(math.nan))
RUNS = st.dictionaries(
    st.tuples(st.sampled_from(["cola", "rte", "mnli"]), st.sampled_from(["vanilla", "pats"]), st.integers(1, 12)),
    st.tuples(SCORES, SCORES, st.sampled_from([Status.OK, Status.DEGENERATE, Status.FAILED])),
    min_size=1,
    max_size=10,
)


@settings(max_examples=25, deadline=None)
@given(RUNS, st.randoms(use_true_random=False))
def test_the_table_does_not_depend_on_the_order_of_files(
    tmp_path_factory: pytest.TempPathFactory,
    runs: dict[tuple[str, str, int], tuple[float, float, Status]],
    random: "np.random.Generator",
) -> None:
    texts = set()
    for _ in range(2):
        order = list(runs.items())
        random.shuffle(order)
        folder = tmp_path_factory.mktemp("runs")
        for (task, method, seed), (best, last, status) in order:
            write_run(folder, task, method, seed, best, last, status)
        table = gather(folder)
        texts.add("".join((markdown(table, PAPER_TABLES), latex(table, PAPER_TABLES),
                           cells_csv(table, PAPER_TABLES), seeds_csv(table))))  # fmt: skip
        for (task, method, _), cell in ((key, table.cell(ENCODER, key[1], key[0])) for key in runs):
            scores = [b for (t, m, _), (b, _, s) in runs.items() if (t, m) == (task, method) and s != Status.FAILED]
            assert cell is not None
            assert cell.n("best") == len(scores)
            if scores:
                np.testing.assert_allclose(cell.mean("best"), np.mean(scores))
        shutil.rmtree(folder)
    assert len(texts) == 1


def test_write_tables_writes_every_format(tmp_path: Path) -> None:
    write_run(tmp_path / "runs")
    files = write_tables(gather(tmp_path / "runs"), tmp_path / "out")
    assert [file.name for file in files] == ["table.md", "table.tex", "table.csv", "table_seeds.csv"]
    assert all(file.stat().st_size > 0 for file in files)


def test_methods_stand_beside_their_controls(tmp_path: Path) -> None:
    for seed, shift in enumerate((0.0, 1.0, 3.0), start=1):
        write_run(tmp_path, method="vanilla", seed=seed, best=60.0 + shift, last=58.0)
        write_run(tmp_path, method="no_dropout", seed=seed, best=59.0 + shift, last=57.0)
        write_run(tmp_path, method="pats", seed=seed, best=61.0 + 2 * shift, last=58.5)
    write_run(tmp_path, method="no_hidden_dropout+pats", seed=1)
    table = gather(tmp_path)
    assert table.methods == ("vanilla", "no_hidden_dropout+pats", "pats", "no_dropout")
    text = markdown(table, PAPER_TABLES)
    block, equal = "Best dev epoch, minus the control", "(no interval: all pairs differ by the same)"
    assert line(text, "PATS - vanilla", block) == ["+2.33 [-1.46, +6.13]"]
    assert line(text, "no dropout - vanilla", block) == [f"-1.00 {equal}"]
    assert line(text, "PATS - vanilla", "Last epoch, minus the control") == [f"+0.50 {equal}"]
    assert "Without their control in this table: no hidden dropout + PATS (no hidden dropout)." in text
    assert "mean difference of the same seeds with Student's 95 % interval, not corrected for" in text
    tex = latex(table, PAPER_TABLES)
    assert r"\emph{best dev epoch, minus the control}" in tex
    assert r"PATS - vanilla & +2.33 {\scriptsize [-1.46, +6.13]} \\" in tex
    assert tex.count("{") - tex.count(r"\{") == tex.count("}") - tex.count(r"\}")
    by_method = {row["method"]: row for row in rows(cells_csv(table, PAPER_TABLES)) if row["selection"] == "best"}
    assert (by_method["pats"]["control"], float(by_method["pats"]["minus_control"])) == (
        "vanilla",
        pytest.approx(7 / 3),
    )
    low, high = (float(by_method["pats"][f"minus_control_{end}"]) for end in ("low", "high"))
    assert (low, high) == pytest.approx(tuple(stats.t.interval(0.95, 2, 7 / 3, stdev([1.0, 2.0, 4.0]) / math.sqrt(3))))
    assert by_method["pats"]["minus_control_n"] == "3"
    assert by_method["vanilla"]["control"] == by_method["no_hidden_dropout+pats"]["control"] == ""


def test_the_heading_names_the_tasks_on_which_learning_rates_differ(tmp_path: Path) -> None:
    for task, rates in (("cola", (1e-4, 1e-4, 1e-4)), ("sst", (8e-5, 8e-5, 3e-4)), ("rte", (1e-4, 2e-4, 3e-4))):
        for method, rate in zip(("vanilla", "noisytune", "pats"), rates, strict=True):
            write_run(tmp_path, task, method, learning_rate=rate)
    said = (
        "Learning rates differ on RTE (vanilla 0.0001; NoisyTune 0.0002; PATS 0.0003), "
        "SST-2 (vanilla, NoisyTune 8e-05; PATS 0.0003)."
    )
    text = markdown(gather(tmp_path), PAPER_TABLES)
    assert said in text
    write_run(tmp_path / "equal", "cola")
    write_run(tmp_path / "equal", "cola", "pats")
    assert "Learning rates differ" not in markdown(gather(tmp_path / "equal"), PAPER_TABLES)


def test_a_lone_task_has_no_average_and_nothing_that_rounds_to_zero_a_minus(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path, seed=seed, best=60.0 + seed, last=-0.002 * seed)
        write_run(tmp_path, method="pats", seed=seed, best=59.998 + seed + 0.0001 * seed, last=0.0)
    table = gather(tmp_path)
    text, tex = markdown(table, PAPER_TABLES), latex(table, PAPER_TABLES)
    assert line(text, "method") == ["CoLA mcc"]
    assert "average" not in text + tex
    assert line(text, "vanilla", "Last epoch")[0].startswith("**0.00** ± 0.00")
    assert line(text, "PATS - vanilla", "Best dev epoch, minus the control") == ["+0.00 [+0.00, +0.00]"]
    assert "-0.00" not in text + tex
    write_run(tmp_path, "rte")
    assert line(markdown(gather(tmp_path), PAPER_TABLES), "method") == ["CoLA mcc", "RTE acc", "average"]


def test_a_table_says_what_all_methods_were_set_to_and_the_studys_command(tmp_path: Path) -> None:
    cells = []
    for task, size in (("cola", 96), ("rte", 48)):
        for method, rate in (("vanilla", 1e-4), ("pats", 2e-4)):
            folder = write_run(tmp_path, task, method, train_size=size, epochs=3, learning_rate=rate)
            cells.append({"encoder": ENCODER, "method": method, "task": task, "run_id": folder.parent.name,
                          "seeds": [1]})  # fmt: skip
    (tmp_path / "study.json").write_text(json.dumps({"cells": cells, "command": "python -m x --set 'a b=96'"}))
    table = gather(tmp_path, Wanted.read(tmp_path / "study.json"))
    said = "Otherwise than by default, all methods: epochs 3; train_size 96 (CoLA), 48 (RTE)."
    for text in (markdown(table, PAPER_TABLES), latex(table, PAPER_TABLES).replace("\\_", "_")):
        assert said in text, "learning rates differ between the methods"
        assert "python -m x --set 'a b=96'" in text
    write_run(tmp_path / "plain")
    text = markdown(gather(tmp_path / "plain"), PAPER_TABLES)
    assert "Otherwise" not in text
    assert "Command" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds a list, not a mapping"),
        ("\udcff", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("{}", "has no cells"),
        ('{"cells": {}}', "cells is {}; legal: a list of mappings"),
        ('{"cells": [3]}', "cells[0] is 3; it must be a mapping"),
        ('{"cells": [], "command": 3}', "command is 3; legal: a text"),
        ({"encoder": None}, "cells[0].encoder is None; legal: a text"),
        ({"task": "../x"}, "cells[0]: task name '../x' is not allowed"),
        ({"method": "\ud800"}, "cells[0].method is '\\ud800'; legal: a text"),
        ({"run_id": ["a"]}, "cells[0].run_id is ['a']; legal: a text"),
        ({"seeds": 5}, "cells[0].seeds is 5; legal: a list of different seeds"),
        ({"seeds": [1, 1]}, "cells[0].seeds is [1, 1]; legal"),
        ({"seeds": [True]}, "cells[0].seeds is [True]; legal"),
        ({"seeds": [10**30]}, "legal: a list of different seeds"),
        ({"trials": 0}, "cells[0].trials is 0; legal: an integer >= 1"),
    ],
)  # fmt: skip
def test_a_damaged_study_is_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | dict[str, object], message: str
) -> None:
    write_run(tmp_path)
    good = {"encoder": ENCODER, "method": "vanilla", "task": "cola", "run_id": "0123456789ab", "seeds": [1]}
    text = content if isinstance(content, str) else json.dumps({"cells": [good | content]})
    (tmp_path / "study.json").write_bytes(text.encode(errors="surrogateescape"))
    assert main([str(tmp_path), "--study", str(tmp_path / "study.json")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "study.json" in error
    assert error.count("\n") == 1


def test_a_study_is_known_by_its_checksum_and_a_cell_stands_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path)
    path, cell = tmp_path / "study.json", {
        "encoder": ENCODER, "method": "vanilla", "task": "cola", "run_id": "0123456789ab", "seeds": [1],
    }  # fmt: skip
    write_json(path, {"cells": [cell]})
    assert Wanted.read(path).cells == {(ENCODER, "vanilla", "cola"): ("0123456789ab", (1,))}
    path.write_text(path.read_text().replace("0123456789ab", "0123456789ac"))
    for content in (None, [cell, cell]):
        if content is not None:
            write_json(path, {"cells": content})
        assert main([str(tmp_path), "--study", str(path)]) == 2
    error = capsys.readouterr().err
    assert "its checksum does not fit its content" in error
    assert "vanilla, cola stands there twice; keep one" in error
    assert main([str(tmp_path), "--study", str(tmp_path / "none.json")]) == 2
    assert "none.json; give the study.json that a study wrote" in capsys.readouterr().err


def test_an_error_that_begins_like_a_formula_is_no_formula_in_the_csv(tmp_path: Path) -> None:
    texts = ["half a \ud800", "=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "\uff1d1"]
    texts.append("fine = 1")
    for seed, text in enumerate(texts, start=1):
        folder = write_run(tmp_path, seed=seed, best=None, last=None, status=Status.FAILED)
        result = json.loads((folder / "result.json").read_text())
        result.pop("checksum", None)
        (folder / "result.json").write_text(json.dumps(result | {"error": text}))
    found = [row["error"] for row in rows(seeds_csv(gather(tmp_path))) if row["selection"] == "best"]
    assert found.pop(0) == "half a ?"
    assert found == [f"'{text}".replace("\r", " ") for text in texts[1:-1]] + texts[-1:]
    assert csv_text([[-1.5, "-1.5", "1e-5", -3, None]]) == "-1.5,-1.5,1e-5,-3,\n", "numbers stay numbers"


def test_a_difference_is_taken_over_the_seeds_of_both(tmp_path: Path) -> None:
    for seed, best in ((1, 60.0), (2, 70.0), (3, 90.0)):
        write_run(tmp_path, seed=seed, best=best)
    for seed, best in ((2, 72.0), (3, 91.0), (4, 10.0)):
        write_run(tmp_path, method="sage", seed=seed, best=best)
    gain = gather(tmp_path).minus(ENCODER, "sage", "vanilla", "cola", "best")
    assert gain is not None
    assert (gain.mean, gain.n) == (1.5, 2)
    block = "Best dev epoch, minus the control"
    assert line(markdown(gather(tmp_path), PAPER_TABLES), "SAGE - vanilla", block)[0] == "+1.50 [-4.85, +7.85] (n=2)"


def test_the_average_difference_has_an_interval_only_over_the_same_seeds(tmp_path: Path) -> None:
    for seed, gain in ((1, 1.0), (2, 3.0)):
        for task, share in (("cola", 1.0), ("rte", 0.0)):
            write_run(tmp_path, task, seed=seed, best=60.0)
            write_run(tmp_path, task, "sage", seed, 60.0 + gain * share)
    block = "Best dev epoch, minus the control"
    text = markdown(gather(tmp_path), PAPER_TABLES)
    assert line(text, "SAGE - vanilla", block)[2] == "+1.00 [-5.35, +7.35]"
    shutil.rmtree(next(tmp_path.glob("rte/*/sage/*/seed=2")))
    text = markdown(gather(tmp_path), PAPER_TABLES)
    assert line(text, "SAGE - vanilla", block) == ["+2.00 [-10.71, +14.71]", "+0.00 (n=1)", "+1.00 (seeds differ)"]


def test_the_number_of_settings_tried_is_shown(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_run(tmp_path, method="pats")
    keys = {m: (ENCODER, m, "cola") for m in ("vanilla", "pats")}
    found = gather(tmp_path)
    wanted = Wanted({key: (found.cells[key].run_id, (1,)) for key in keys.values()}, {keys["pats"]: 36})
    text = markdown(gather(tmp_path, wanted), PAPER_TABLES)
    assert line(text, "PATS, best of 36 settings") == ["**60.00**"]
    trials = {row["method"]: row["trials"] for row in rows(cells_csv(gather(tmp_path, wanted), PAPER_TABLES))}
    assert trials == {"vanilla": "1", "pats": "36"}


def test_step_times_stand_in_a_last_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("vanilla", "pats", "sage"):
        for seed in (1, 2):
            write_run(tmp_path / "runs", method=method, seed=seed, best=60.0 + seed, last=59.0)
    costs = tmp_path / "costs.json"
    costs.write_text(json.dumps({"methods": {"pats": {"time_factor": {"median": 1.084}}}}))
    assert main([str(tmp_path / "runs"), "--step_times", str(costs), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert (line(shown, "vanilla")[-1], line(shown, "PATS")[-1], line(shown, "SAGE")[-1]) == ("1.00x", "1.08x", "-")
    assert line(shown, "PATS - vanilla", "Best dev epoch, minus the control")[-1] == "1.08x"
    assert line(shown, "PATS, paper")[-1] == "-"
    assert "1.08x" in (tmp_path / "out/table.tex").read_text()
    for text, message in (
        ("{}", "methods is missing; legal: a mapping"), ('{"methods": []}', "methods is []; legal: a mapping"),
        ('{"methods": {"pats": {"time_factor": {"median": "x"}}}}', "pats.time_factor.median is 'x'; legal: a number"),
        ("[]", "holds a list, not a mapping"), ("[" * 100_000, "nested too deeply"),
    ):  # fmt: skip
        costs.write_text(text)
        assert main([str(tmp_path / "runs"), "--step_times", str(costs)]) == 2
        assert message in capsys.readouterr().err
    assert main([str(tmp_path / "runs"), "--step_times", str(tmp_path / "none")]) == 2
    assert "none; give a result of python -m benchmarks.methods" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["tables", "figures", "significance", "report"])
def test_a_folder_without_runs_and_a_study_that_is_not_there_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    name = "report.__main__" if command == "report" else command
    run = importlib.import_module(f"experiments.study.{name}").main
    out = ["--out", str(tmp_path / "out")]
    runs = write_run(tmp_path / "runs").parents[4]
    for arguments, message in (
        ([str(tmp_path / "none")], f"error: no folder {tmp_path / 'none'}: give the output_dir"),
        ([str(runs / "cola")], f"error: no runs under {runs / 'cola'}: give the output_dir"),
        ([str(runs), "--study", str(tmp_path / "s.json")], f"error: --study: no file {tmp_path / 's.json'}; give"),
        ([str(runs), "--study", str(tmp_path)], f"error: {tmp_path} is no regular file"),
    ):
        assert run([*arguments, *out]) == 2
        error = capsys.readouterr().err
        assert error.startswith(message)
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
