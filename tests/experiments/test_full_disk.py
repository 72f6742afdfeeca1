"""The commands that show a study, where what they write does not fit: one line that names the file."""

import pytest

from experiments.study import figures, significance, tables
from experiments.study.report import __main__ as report
from tests.experiments.fake_runs import write_run
from tests.full_disk import no_file_longer_than


@pytest.fixture
def runs(tmp_path):
    for method, base in (("vanilla", 60.0), ("pats", 62.0)):
        for seed in (1, 2, 3):
            write_run(tmp_path / "runs", "cola", method, seed, base + seed, base)
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("main", "out", "file", "more"),
    [
        (tables.main, "out", "out/table.md", []),
        (significance.main, "out", "out/significance.md", ["--no_examples"]),
        (report.main, "out.html", "out.html", ["--tests", "none"]),
        (figures.main, "out", "out/strip.png", []),
    ],
)
def test_the_file_is_named_and_nothing_half_written(runs, tmp_path, capsys, main, out, file, more):
    with no_file_longer_than(50):
        assert main([str(runs), "--out", str(tmp_path / out), *more]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: cannot write {tmp_path / file}: File too large"
    assert {path.name for path in tmp_path.rglob("*") if ".tmp-" in path.name} == set()
    assert not (tmp_path / file).exists()


@pytest.mark.parametrize("main", [tables.main, significance.main, figures.main])
def test_folders_that_cannot_be_made_are_named(runs, tmp_path, capsys, main):
    (tmp_path / "file").touch()
    assert main([str(runs), "--out", str(tmp_path / "file" / "out")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"error: cannot use {tmp_path / 'file' / 'out'}: Not a directory"
