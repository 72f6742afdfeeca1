"""CoLA's dev rows by the publication they are from."""

import pytest

from experiments.glue import cola_domains
from experiments.study.comparison.quantities import DevParts


def write(folder, train, dev):
    for name, sources in (("train", train), ("dev", dev)):
        rows = [f"{source}\t1\t\tA sentence, number {i}." for i, source in enumerate(sources)]
        (folder / f"{name}.tsv").write_text("\n".join(rows))


def test_a_row_is_in_the_domain_of_the_training_set_by_its_source(tmp_path, capsys):
    write(tmp_path, ["gj04", "bc01", "gj04"], ["bc01", "clc95", "gj04"])
    out = tmp_path / "new" / "domains.tsv"
    assert cola_domains.main([str(tmp_path), "--out", str(out)]) == 0
    assert out.read_text() == "0\tin_domain\n1\tout_of_domain\n2\tin_domain\n"
    assert "2 rows in_domain, 1 rows out_of_domain" in capsys.readouterr().out
    assert DevParts.read(f"cola_dev={out}").names == ("in_domain", "out_of_domain")


def test_the_real_files_have_colas_own_numbers(glue_dir, tmp_path, capsys):
    assert cola_domains.main([str(glue_dir / "CoLA"), "--out", str(tmp_path / "domains.tsv")]) == 0
    assert "527 rows in_domain, 516 rows out_of_domain" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("train", "dev", "message"),
    [
        (["a"], ["a", "a"], "all rows of dev.tsv are in_domain; give GLUE's CoLA"),
        (["a"], ["b"], "all rows of dev.tsv are out_of_domain"),
        (["a"], ["a\tb"], "dev.tsv: line 1: 5 columns instead of 4 (source, label, mark, sentence); give the raw file"),
        (["a"], [], "dev.tsv"),
    ],
)
def test_other_files_are_refused(tmp_path, capsys, train, dev, message):
    write(tmp_path, train, dev)
    assert cola_domains.main([str(tmp_path), "--out", str(tmp_path / "domains.tsv")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "domains.tsv").exists()
