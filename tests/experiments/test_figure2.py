"""Figures 2 and 3 end to end on a tiny encoder: runs, pictures and the numbers beside them."""

import csv
import dataclasses
import io
import json
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure
from matplotlib.text import Text

from data_utils.errors import SettingError
from experiments.glue import figure2, figure3
from experiments.glue.figure3 import parse_shares
from experiments.study.drawing import data_share, distribution, heat_map, plotting
from experiments.study.drawing.data_share import SharePoint
from experiments.study.drawing.sensitivities import (
    CLAIMS,
    DEFAULTS,
    concentration_markdown,
    concentrations,
    mean_and_deviation,
    read_summary,
    statistics_markdown,
)
from experiments.study.plan import plan_jobs
from experiments.study.statistics.intervals import t_interval
from module.sensitivity_summary import FULL_RANGE, PAPER_RANGE, SensitivitySummary, TensorSummary, bin_edges
from mt_dnn.config import RunConfig
from mt_dnn.run import run
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_id import run_dir
from tests.experiments.fake_runs import make_result

RECIPE = """
encoder: {encoder}
method: {method}
source: a test
settings: {{epochs: 2, batch_size: 16, learning_rate: 3.0e-2, precision: fp32, tensorboard: false, log_per_updates: 2}}
tasks: {{toy: {{}}}}
"""


@pytest.fixture(scope="module")
def arguments(tiny_encoder: Path, tiny_task: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("figures")
    for method in ("vanilla", "pats"):
        (root / f"{method}.yml").write_text(RECIPE.format(encoder=tiny_encoder, method=method))
    return [
        "--recipes", f"{root / 'vanilla.yml'},{root / 'pats.yml'}", "--tasks", "toy", "--seeds", "2",
        "--task_def", str(tiny_task / "task_def.yml"), "--data_dir", str(tiny_task), "--output_dir", str(root / "runs"),
        "--results_dir", str(root / "results"), "--name", "tiny", "--devices", "cpu", "--workers_per_device", "1",
    ]  # fmt: skip


def results(arguments: list[str]) -> Path:
    return Path(arguments[arguments.index("--results_dir") + 1]) / "tiny"


@pytest.fixture(scope="module", autouse=True)
def saved() -> Iterator[dict[str, Figure]]:
    """The figures that are saved, by the name of their file."""
    kept: dict[str, Figure] = {}
    real = plotting.save

    def keep(figure: Figure, stem: Path) -> list[Path]:
        kept[stem.name] = figure
        return real(figure, stem)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plotting, "save", keep)
        yield kept


@pytest.fixture(scope="module")
def computed(arguments: list[str]) -> list[str]:
    """The figure's runs, computed here rather than in the pool's processes, which take seconds to start."""
    chosen = figure2.figure_parser("figure2", "x").parse_args(arguments)
    chosen.overrides = [*DEFAULTS]
    for job in plan_jobs(chosen):
        run(job.config)
    return arguments


@pytest.fixture(scope="module")
def drawn(computed: list[str]) -> tuple[Path, str]:
    """Folder of Figure 2, and what the command printed."""
    output = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(output):
        warnings.simplefilter("error")  # such as: constrained_layout not applied
        assert figure2.main(computed, run=never) == 0
    return results(computed), output.getvalue()


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def never(config, on_progress=None):
    raise AssertionError("the runs are done")


def test_figure_2_end_to_end(drawn, saved) -> None:
    out, printed = drawn
    pictures = {"strip", "curves", "toy_distribution", "toy_concentration", "toy_heat_map"}
    for name in pictures:
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        pdf = (out / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF")
        assert b"/Type3" not in pdf, "fonts are embedded as TrueType"
        assert b"/FontFile2" in pdf
    expected = {f"{name}.{suffix}" for name in pictures for suffix in ("png", "pdf", "csv")} - {"strip.csv"}
    expected |= {"toy_statistics.csv", "toy_statistics.md", "toy_differences.csv", "study.json"}
    expected |= {"table.md", "table.tex", "table.csv", "table_seeds.csv"}
    assert expected <= {path.name for path in out.iterdir()}
    assert not list(out.glob(".*")), "no half-written file stays"
    above, below = saved["toy_distribution"].axes
    assert above.get_xscale() == below.get_xscale() == "log"
    assert above.get_xlim() == PAPER_RANGE[:2]
    assert below.get_xlim()[0] <= PAPER_RANGE[0]
    assert len(above.lines) == len(below.lines) == 2
    assert [text.get_text() for text in saved["toy_distribution"].legends[0].get_texts()] == ["vanilla", "PATS"]
    assert [axis.get_xlabel() for axis in saved["toy_concentration"].axes] == [
        "std of s̄", "Gini coefficient", "entropy (bits)",
    ]  # fmt: skip
    grid, colours = saved["toy_heat_map"].axes[0], saved["toy_heat_map"].axes[-1]
    assert len(grid.get_yticks()) == 12
    assert [label.get_text() for label in grid.get_xticklabels()] == ["1", "2"]
    assert "mean s̄" in colours.get_xlabel()
    assert str(out / "toy_heat_map.pdf") in printed


def test_the_numbers_beside_figure_2_are_those_of_the_runs(computed, drawn) -> None:
    out, runs = drawn[0], Path(computed[computed.index("--output_dir") + 1])
    recorded = {
        (path.parts[-4], int(path.parent.name.removeprefix("seed="))): json.loads(path.read_text())
        for path in runs.glob("toy/*/*/*/seed=*/sensitivity.json")
        if json.loads((path.parent / "run.json").read_text())["config"]["train_fraction"] is None
    }
    assert len(recorded) == 4
    lines = read(out / "toy_statistics.csv")
    assert {(line["method"], int(line["seed"])) for line in lines} == set(recorded)
    for line in lines:
        own = recorded[line["method"], int(line["seed"])]
        assert float(line["gini"]) == own["gini"]
        assert float(line["std"]) == own["std"]
        assert int(line["n"]) == own["n"] == sum(own["full_counts"])
    full = [line for line in read(out / "toy_distribution.csv") if (line["method"], line["range"]) == ("pats", "full")]
    assert math.fsum(float(line["share_mean"]) for line in full) == pytest.approx(1.0)
    seeds = [np.array(recorded["pats", seed]["full_counts"]) / recorded["pats", seed]["n"] for seed in (1, 2)]
    assert [float(line["share_mean"]) for line in full] == pytest.approx(np.mean(seeds, axis=0))
    assert [float(line["share_std"]) for line in full] == pytest.approx(np.std(seeds, axis=0, ddof=1))
    heat = [line for line in read(out / "toy_heat_map.csv") if line["method"] == "vanilla"]
    by_path = {f"layer.{line['layer']}.{line['kind']}": float(line["mean"]) for line in heat}
    for tensor in recorded["vanilla", 1]["tensors"]:
        other = next(t for t in recorded["vanilla", 2]["tensors"] if t["path"] == tensor["path"])
        assert by_path[tensor["path"]] == pytest.approx((tensor["mean"] + other["mean"]) / 2)
    assert "| gini | " in (out / "toy_statistics.md").read_text()
    for line in read(out / "toy_differences.csv"):
        own = [
            recorded["pats", seed][line["statistic"]] - recorded["vanilla", seed][line["statistic"]] for seed in (1, 2)
        ]
        assert (line["method"], line["pairs"]) == ("pats", "2")
        assert float(line["difference"]) == pytest.approx(np.mean(own))


def test_figure_3_end_to_end(computed, saved, capsys) -> None:
    arguments = [*computed, "--shares", "50,100"]
    chosen = figure2.figure_parser("figure3", "x").parse_args(computed)
    jobs = figure3.plan_share(chosen, 50.0)
    for job in jobs:
        run(job.config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figure3.main(arguments, run=never) == 0, "all of the data is Figure 2's run"
    out = results(computed)
    above, below = saved["toy_data_share"].axes
    assert "mcc (%), best dev epoch" in above.get_ylabel()
    assert "standard deviation of" in below.get_ylabel()
    assert [label.get_text() for label in below.get_xticklabels()] == ["50", "100"]
    runs = read(out / "toy_data_share_runs.csv")
    assert len(runs) == 2 * 2 * 2
    assert {line["train_examples"] for line in runs if line["share"] == "50.0"} == {"35"}
    for line, axis, column in ((above.lines[0], above, "best"), (below.lines[1], below, "std")):
        method = "vanilla" if axis is above else "pats"
        means = [
            np.mean([float(r[column]) for r in runs if (r["method"], r["share"]) == (method, share)])
            for share in ("50.0", "100.0")
        ]
        assert list(line.get_ydata()) == pytest.approx(means)
    means = read(out / "toy_data_share.csv")
    assert [(line["share_percent"], line["method"], line["n_seeds"]) for line in means] == [
        ("50.0", "vanilla", "2"), ("50.0", "pats", "2"), ("100.0", "vanilla", "2"), ("100.0", "pats", "2"),
    ]  # fmt: skip
    differences = read(out / "toy_data_share_differences.csv")
    assert len(differences) == 2 * 6
    for line in differences:
        ours, theirs = (
            [float(r[line["measure"]]) for r in runs if (r["method"], r["share"]) == (method, line["share_percent"])]
            for method in ("pats", "vanilla")
        )
        assert (line["method"], line["pairs"]) == ("pats", "2")
        assert float(line["difference"]) == pytest.approx(np.mean(ours) - np.mean(theirs), rel=1e-6, abs=1e-15)
    assert set(json.loads((out / "figure3.json").read_text())["shares"]) == {"50.0", "100.0"}
    capsys.readouterr()
    assert figure3.main([*arguments, "--shares", "25,100", "--dry_run"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("missing  toy tiny-bert") == 4
    assert "train_fraction=0.25" in listed
    assert listed.count("done   ") == 4


def test_the_same_numbers_give_the_same_bytes(tmp_path) -> None:
    files = [heat_map.draw_heat_map({"pats": {1: a_summary()}}, "t", tmp_path / name) for name in ("a", "b")]
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.suffix


def test_the_score_of_the_last_epoch_on_request(tmp_path, saved) -> None:
    point = SharePoint(10.0, "pats", 1, 100, 61.0, 59.0, 1e-6, 1e-6, 0.5, 4.0)
    data_share.draw_data_share([point], ["vanilla", "pats"], ("e", "cola", "MCC"), "last", tmp_path / "s")
    above = saved["s"].axes[0]
    assert above.get_ylabel() == "mcc (%), last epoch"
    for held_out, title in ((True, "best held-out epoch"), (None, "best epoch"), (False, "best dev epoch")):
        data_share.draw_data_share([point], ["pats"], ("e", "cola", "MCC"), "best", tmp_path / "t", held_out)
        assert saved["t"].axes[0].get_ylabel() == f"mcc (%), {title}"
    assert [float(line.get_ydata()[0]) for line in above.lines] == [59.0]
    assert read(tmp_path / "s.csv")[0]["best_std"] == ""
    assert read(tmp_path / "s_differences.csv") == [], "nothing to compare with"


def test_a_method_that_lacks_a_seed_has_no_mean_under_a_heading_that_counts_it(tmp_path, saved) -> None:
    points = [
        SharePoint(share, method, seed, 100, 60.0 + seed, 59.0, 1e-6 * seed, 1e-6, 0.5, 4.0)
        for share in (50.0, 100.0)
        for method, seeds in (("vanilla", (1, 2, 3)), ("pats", (1, 3)))
        for seed in seeds
    ]
    data_share.draw_data_share(points, ["vanilla", "pats"], ("e", "cola", "MCC"), "best", tmp_path / "s")
    plain, pats = saved["s"].axes[0].lines
    assert "n = 3" in saved["s"].get_suptitle()
    assert list(plain.get_ydata()) == [62.0, 62.0]
    assert np.isnan(pats.get_ydata()).all(), "the mean of two is not that of three"
    assert [line["n_seeds"] for line in read(tmp_path / "s.csv")] == ["3", "2"] * 2
    (minus, _) = [line for line in read(tmp_path / "s_differences.csv") if line["measure"] == "best"]
    assert (minus["pairs"], float(minus["difference"])) == ("2", 0.0)


def test_a_method_is_compared_with_its_control_where_the_figure_has_it(tmp_path, saved) -> None:
    methods = ["vanilla", "ema", "smart", "hype"]
    expected = [("ema", "vanilla"), ("smart", "ema"), ("hype", "vanilla")]
    found = concentrations({method: {1: a_summary()} for method in methods} | {"no_hidden_dropout": {}})
    assert list(dict.fromkeys((one.method, one.difference.other) for one in found)) == expected
    points = [SharePoint(10.0, m, 1, 100, 60.0 + i * i, 59.0, 1e-6, 1e-6, 0.5, 4.0) for i, m in enumerate(methods)]
    data_share.draw_data_share(points, methods, ("e", "cola", "MCC"), "last", tmp_path / "s")
    lines = [line for line in read(tmp_path / "s_differences.csv") if line["measure"] == "best"]
    assert [(line["method"], line["baseline"]) for line in lines] == expected
    assert [float(line["difference"]) for line in lines] == [1.0, 3.0, 9.0]


def test_runs_done_without_the_numbers_are_refused_at_once(computed, capsys) -> None:
    assert figure2.main([*computed, "--set", "sensitivity_beta=0.5"], run=never) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: .*seed=1 is done, with sensitivity_beta 0\.75 and not 0\.5: take another .*\n", error)
    assert figure2.main([*computed, "--set", "sensitivity_beta=null"], run=never) == 2
    assert "sensitivity_beta=null: the figure needs a beta" in capsys.readouterr().err


def test_a_plain_study_runs_before_are_refused_too(computed, tmp_path, capsys) -> None:
    arguments = [*computed, "--output_dir", str(tmp_path / "runs"), "--seeds", "1"]
    chosen = figure2.figure_parser("figure2", "x").parse_args(arguments)
    chosen.overrides = ["epochs=1", "save=none"]
    config = plan_jobs(chosen)[0].config
    run(config)
    assert figure2.main([*arguments, "--set", "epochs=1"], run=never) == 2
    assert f"{run_dir(config)} is done, with sensitivity_beta None and not 0.75" in capsys.readouterr().err


@pytest.mark.parametrize("shares", ["", "0", "101", "ten", "10,-5", "nan"])
def test_shares_are_percentages(shares) -> None:
    with pytest.raises(SettingError, match="--shares"):
        parse_shares(shares)


def test_shares_are_sorted_and_may_be_fractions_of_a_percent() -> None:
    assert parse_shares("100, 2.5,10,10") == [2.5, 10.0, 100.0]


@pytest.mark.parametrize("setting", ["train_size=20", "toy.train_fraction=0.5"])
def test_the_size_of_the_training_set_is_figure_3s(arguments, setting, capsys) -> None:
    assert figure3.main([*arguments, "--set", setting]) == 2
    assert f"error: --set {setting}: the figure varies the size" in capsys.readouterr().err


def a_summary(scale: float = 1.0, **changes) -> SensitivitySummary:
    numbers = dict.fromkeys(
        ("mean", "std", "std_in_range", "median", "std_log10", "gini", "entropy", "top_share"), 0.5 * scale
    )
    tensors = (TensorSummary("layer.0.attention.self.key.bias", 2, 0.0), TensorSummary("layer.0.x.weight", 8, scale))
    values = {
        **numbers, "beta": 0.75, "n": 10, "below_range": 0.1, "above_range": 0.0, "tensors": tensors,
        "paper_counts": (1, *[0] * 29, 9, *[0] * 31), "full_counts": (*[0] * 100, 10, *[0] * 61),
    }  # fmt: skip
    return SensitivitySummary(**{**values, **changes})


def test_the_density_adds_up_over_the_decades(tmp_path, saved) -> None:
    by_method = {"vanilla": {1: a_summary(), 2: a_summary()}, "pats": {}}
    distribution.draw_distribution(by_method, "a title", tmp_path / "d")
    above, below = saved["d"].axes
    for axis, share, span in ((above, 0.9, PAPER_RANGE), (below, 1.0, FULL_RANGE)):
        (line,) = axis.lines
        density = np.asarray(line.get_ydata())
        assert (density * np.diff(np.log10(bin_edges(*span)))).sum() == pytest.approx(share)
    rows = read(tmp_path / "d.csv")
    assert len(rows) == (PAPER_RANGE[2] + 2) + (FULL_RANGE[2] + 2)
    assert (rows[0]["low"], rows[0]["share_mean"], rows[0]["density_mean"]) == ("0.0", "0.1", "")


def test_one_seed_has_no_band_and_a_zero_no_colour(tmp_path, saved) -> None:
    one = {"vanilla": {1: a_summary()}}
    distribution.draw_distribution(one, "t", tmp_path / "d")
    assert not saved["d"].axes[0].collections
    distribution.draw_concentration(one, "t", tmp_path / "c")
    assert all(len(axis.lines) == 0 and len(axis.collections) == 1 for axis in saved["c"].axes)
    heat_map.draw_heat_map(one, "t", tmp_path / "h")
    (image,) = saved["h"].axes[0].images
    assert image.get_clim() == (1.0, pytest.approx(1.001))
    assert read(tmp_path / "h.csv")[0]["std"] == ""


def test_methods_stay_apart_without_colour() -> None:
    from experiments.study.drawing.plotting import look

    assert len({(look(i).colour, look(i).dash) for i in range(28)}) == 28
    assert len({look(i).marker for i in range(9)}) == 9


def test_statistics_in_words() -> None:
    assert mean_and_deviation([1e-6, 3e-6]) == "2.000e-06 ± 1.4e-06"
    assert mean_and_deviation([0.25]) == "0.25"
    assert mean_and_deviation([math.nan, 1.0]) == "nan"
    text = statistics_markdown({"vanilla": {1: a_summary(), 2: a_summary(3.0)}, "pats": {}}, "CoLA")
    assert "| gini | 1 ± 0.71 |" in text
    assert "s̄ after the last step: mean ± sample standard deviation over n seeds" in text
    assert "vanilla (n = 2)" in text
    assert "PATS" not in text


@pytest.mark.parametrize(
    ("scales", "verdict", "relative"),
    [((0.5, 0.6, 0.4), "yes", -0.5), ((2.0, 2.2, 1.8), "no, larger", 1.0), ((0.5, 2.0, 1.0), "not shown", 1 / 6)],
)
def test_whether_a_statistic_is_smaller(scales, verdict, relative) -> None:
    plain = {seed: a_summary() for seed in (1, 2, 3)}
    found = concentrations({"vanilla": plain, "pats": dict(enumerate(map(a_summary, scales), start=1)), "sage": {}})
    assert {one.statistic for one in found} == set(CLAIMS)
    assert {one.method for one in found} == {"pats"}
    gini = next(one for one in found if one.statistic == "gini")
    assert (gini.verdict, gini.claim) == (verdict, "no few parameters dominate")
    assert gini.relative == pytest.approx(relative)
    expected = t_interval([a_summary(scale).gini - a_summary().gini for scale in scales])
    assert gini.difference.interval == expected
    assert f"| no few parameters dominate | gini | {gini.difference.mean:z.3g} | [" in concentration_markdown(found)
    assert "Student's 95 % interval, not corrected for the number of comparisons" in concentration_markdown(found)
    assert concentration_markdown([]) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": "x"}, "std is 'x'; legal: a number"),
        ({"n": 0}, "n is 0; legal: an integer >= 1"),
        ({"paper_counts": [1]}, "paper_counts is [1]; legal: "),
        ({"tensors": 3}, "tensors is 3; legal: a list of mappings"),
        ({"tensors": [{"path": "query", "mean": 1.0}]}, "tensors[0].path is 'query'; legal"),
        ({"extra": 1}, "unexpected keyword argument 'extra'"),
    ],
)
def test_a_damaged_summary_is_named_in_one_line(tmp_path, change, message) -> None:
    directory = RunDirectory(tmp_path)
    result = make_result(RunConfig(), 70.0, 69.0)  # of an earlier version: it knows no checksums of files
    directory.sensitivity_json.write_text(json.dumps(dataclasses.asdict(a_summary()) | change))
    with pytest.raises(SettingError) as caught:
        read_summary(directory, result)
    assert message in str(caught.value)
    assert "sensitivity.json" in str(caught.value)
    directory.sensitivity_json.unlink()
    with pytest.raises(SettingError, match=r"sensitivity\.json is missing"):
        read_summary(directory, result)


def test_figures_2_and_3_in_one_folder_leave_each_other_alone(drawn, computed) -> None:
    out, _ = drawn
    before = {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith("toy_data_share")}
    before.pop("figure3.json", None)
    with redirect_stdout(io.StringIO()):
        assert figure3.main([*computed, "--shares", "100"], run=never) == 0
    assert {name: (out / name).read_bytes() for name in before} == before
    assert set(json.loads((out / "figure3.json").read_text())["shares"]) == {"100.0"}


@pytest.mark.parametrize("methods", [("pats",), ("vanilla", "noisytune", "sage", "pats")])
def test_nothing_of_the_heat_map_is_cut_off(tmp_path, saved, methods) -> None:
    kinds = ("attention.self.query", "intermediate.dense", "a_tree.of_another.kind.dense")
    tensors = tuple(TensorSummary(f"layer.{i}.{kind}.weight", 8, 1e-6 * (i + 1)) for i in range(24) for kind in kinds)
    title = "CoLA, an-encoder-with-quite-a-long-name"
    heat_map.draw_heat_map({method: {1: a_summary(tensors=tensors)} for method in methods}, title, tmp_path / "cut")
    figure = saved["cut"]
    # Ticks beyond the ends of the scale have a place outside and are not drawn.
    texts = [t for t in figure.findobj(Text) if t.get_text() and not t.get_text().startswith("$")]
    assert any("grey: below" in text.get_text() for text in texts)
    for text in texts:
        box = text.get_window_extent()
        assert box.x0 >= 0, text.get_text()
        assert box.x1 <= figure.bbox.width, text.get_text()
