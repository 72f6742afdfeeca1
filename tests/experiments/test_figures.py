import math
import warnings
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

from experiments.study.drawing import plotting, seed_strips
from experiments.study.drawing.curves import learning_curves, read_losses, read_scores
from experiments.study.figures import main
from experiments.study.table.gathering import gather
from mt_dnn.results import Status
from mt_dnn.run_directory import RunDirectory
from tests.experiments.fake_runs import write_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    for method, base in (("vanilla", 60.0), ("pats", 62.0)):
        for seed in (1, 2, 3):
            write_run(folder, "cola", method, seed, base + seed, base)
    write_run(folder, "rte", "vanilla", 1, 70.0, 69.0)
    write_run(folder, "rte", "vanilla", 2, None, None, Status.DIVERGED)
    return folder


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    kept: list[Figure] = []
    real = plotting.save

    def keep(figure: Figure, stem: Path) -> list[Path]:
        kept.append(figure)
        return real(figure, stem)

    monkeypatch.setattr(plotting, "save", keep)
    return kept


def test_a_dot_for_every_score_of_every_selection(runs: Path, tmp_path: Path, saved: list[Figure]) -> None:
    files = seed_strips.seed_strips(gather(runs), tmp_path / "strip")
    assert [file.name for file in files] == ["strip.png", "strip.pdf"]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert files[1].read_bytes().startswith(b"%PDF")
    cola, rte = saved[0].axes[:2]
    assert (cola.get_title(loc="left"), rte.get_title(loc="left")) == ("CoLA", "RTE")
    dots = [tuple(sorted(x for x, _ in c.get_offsets().tolist())) for c in cola.collections]
    assert dots == [(61.0, 62.0, 63.0), (60.0,) * 3, (63.0, 64.0, 65.0), (62.0,) * 3]
    assert sum(len(c.get_offsets()) for c in rte.collections) == 2
    texts = [text.get_text() for text in rte.texts]
    assert texts == ["1 of 2 NaN", "1 of 2 NaN", "missing", "missing"]


def test_mean_and_deviation_stand_where_the_table_has_them(runs: Path, tmp_path: Path, saved: list[Figure]) -> None:
    seed_strips.seed_strips(gather(runs), tmp_path / "strip")
    cola, rte = saved[0].axes[:2]
    spans = [sorted(map(float, line.get_xdata())) for line in cola.lines]
    assert [62.0, 62.0] in spans, "mean of 61, 62, 63"
    assert [61.0, 63.0] in spans, "mean plus and minus the sample deviation 1"
    assert [58.94] in spans, "the paper's mean"
    # One RTE run is NaN, so its mean is, and no bar pretends otherwise: only the paper's marks are left.
    assert all(len(line.get_xdata()) == 1 for line in rte.lines)


def test_the_same_runs_give_the_same_bytes(runs: Path, tmp_path: Path) -> None:
    first = [file.read_bytes() for file in seed_strips.seed_strips(gather(runs), tmp_path / "a")]
    second = [file.read_bytes() for file in seed_strips.seed_strips(gather(runs), tmp_path / "b")]
    assert first == second


def test_learning_curves_are_the_dev_scores_by_epoch(runs: Path, tmp_path: Path, saved: list[Figure]) -> None:
    directory = RunDirectory(next(runs.glob("cola/*/vanilla/*/seed=1")))
    assert read_scores(directory.read_metrics(directory.read_result())) == {1: 50.0, 2: 61.0, 3: 60.0}
    assert read_scores([]) == read_losses([]) == {}
    *_, data = learning_curves(gather(runs), runs, tmp_path / "curves")
    score, _, loss, _ = saved[0].axes
    assert (score.get_ylabel(), loss.get_ylabel()) == ("dev mcc (%)", "training loss")
    lines = [list(map(float, line.get_ydata())) for line in score.lines]
    assert lines == [[50.0, 62.0, 60.0], [50.0, 64.0, 62.0]], "means over the seeds"
    assert len(score.collections) == 2, "a band for each"
    assert not loss.lines, "these runs have logged no loss"
    assert "bert-base-uncased,vanilla,cola,score,2,3,62.0,1.0" in data.read_text().splitlines()


def test_a_failed_run_has_no_part_in_the_curves(runs: Path, tmp_path: Path) -> None:
    before = learning_curves(gather(runs), runs, tmp_path / "before")[-1].read_text()
    folder = write_run(runs, seed=9, best=None, last=None, status=Status.FAILED)
    assert RunDirectory(folder).metrics_jsonl.is_file(), "it made one epoch"
    after = learning_curves(gather(runs), runs, tmp_path / "after")[-1].read_text()
    assert after == before, "the others' last epochs stay"


def test_losses_stand_at_the_share_of_the_epochs_that_has_passed(tmp_path: Path, saved: list[Figure]) -> None:
    for seed, shift in ((1, 0.0), (2, 0.2)):
        directory = RunDirectory(write_run(tmp_path / "runs", seed=seed))
        for step, epoch, loss in ((2, 1, 0.9), (4, 1, 0.8), (6, 2, 0.7), (8, 2, 0.6)):
            directory.append_metrics({"step": step, "epoch": epoch, "loss": loss + shift})
    assert read_losses(directory.read_metrics(directory.read_result())) == pytest.approx(
        {0.5: 1.1, 1.0: 1.0, 1.5: 0.9, 2.0: 0.8}
    )
    learning_curves(gather(tmp_path / "runs"), tmp_path / "runs", tmp_path / "curves")
    (line,) = saved[0].axes[1].lines
    assert list(line.get_xdata()) == [0.5, 1.0, 1.5, 2.0]
    assert list(line.get_ydata()) == pytest.approx([1.0, 0.9, 0.8, 0.7])


def test_another_loss_than_the_tasks_own_is_named(tmp_path: Path, saved: list[Figure]) -> None:
    for task, methods in (("cola", ("vanilla", "pats")), ("rte", ("vanilla",))):
        for method in methods:
            write_run(tmp_path / "runs", task, method, label_smoothing=0.1)
    write_run(tmp_path / "runs", "rte", "pats")
    learning_curves(gather(tmp_path / "runs"), tmp_path / "runs", tmp_path / "curves")
    named = [axis.get_ylabel() for axis in saved[0].axes if axis.get_ylabel().startswith("training loss")]
    assert named == ["training loss\n(label_smoothing 0.1)", "training loss\n(another one in some rows)"]


@pytest.mark.parametrize("encoder", ["bert-base-uncased", "a-folder-with-quite-a-long-name-of-an-encoder-in-it"])
def test_a_table_of_one_cell_has_room(tmp_path: Path, saved: list[Figure], encoder: str) -> None:
    write_run(tmp_path / "runs", init_checkpoint=encoder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as: constrained_layout not applied
        seed_strips.seed_strips(gather(tmp_path / "runs"), tmp_path / "strip")
    figure = saved[0]
    box, legend = figure.axes[0].get_window_extent(), figure.legends[0].get_window_extent()
    assert box.width > 0.4 * figure.bbox.width
    assert box.height > 0.2 * figure.bbox.height
    assert legend.width <= figure.bbox.width
    assert figure._suptitle.get_window_extent().x1 <= figure.bbox.width


def test_long_names_stand_once_and_leave_the_panels_their_room(tmp_path: Path, saved: list[Figure]) -> None:
    for task in ("cola", "rte", "stsb"):
        for method in ("vanilla", "frozen_embeddings+head_learning_rate+no_dropout", "noisytune+pats"):
            write_run(tmp_path / "runs", task, method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seed_strips.seed_strips(gather(tmp_path / "runs"), tmp_path / "strip")
    figure = saved[0]
    named = [[label.get_text() for label in axis.get_yticklabels()] for axis in figure.axes]
    assert "".join(named[0]).replace("\n", " ").count("learning rate") == 1
    assert named[1:] == [["", "", ""]] * 2
    assert all(axis.get_window_extent().width > 0.2 * figure.bbox.width for axis in figure.axes)
    assert min(label.get_window_extent().x0 for label in figure.axes[0].get_yticklabels()) >= 0.0


def test_command_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs), "--out", str(tmp_path / "out"), "--curves"]) == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "strip.png", "strip.pdf", "curves.png", "curves.pdf", "curves.csv",
    }  # fmt: skip
    assert main([str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    assert "error: no folder" in capsys.readouterr().err


def test_all_nan_still_draws(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", best=math.nan, last=math.nan)
    assert seed_strips.seed_strips(gather(tmp_path / "runs"), tmp_path / "strip")[0].is_file()
