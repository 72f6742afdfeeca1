import json
import math
from pathlib import Path

import pytest

from data_utils.errors import SettingError
from experiments.benchmark import DEFAULT
from experiments.study import study
from experiments.study.ablation import load_ablation, main
from experiments.study.recipe import run_configs
from mt_dnn.run_id import run_id
from tests.experiments.fake_runs import calls, fake_run
from tests.experiments.search_runs import PoolInProcess

FILE = """
encoder: all-MiniLM-L6-v2
baseline: plain
settings: {epochs: 1}
tasks: {cola: {learning_rate: 1.0e-4}, rte: {learning_rate: 2.0e-4}}
variants:
  plain: {method: vanilla}
  quiet: {method: pats, pats: {noise_scale: 1.0e-3}}
  loud: {method: pats, pats: {noise_scale: 2.0e-2}}
"""


class Place:
    """An ablation's file, canonical data, and room for runs."""

    def __init__(self, root: Path) -> None:
        self.root, self.runs, self.out = root, root / "runs", root / "results/mine"
        (root / "data").mkdir()
        for task in ("cola", "rte"):
            for split in ("train", "dev"):
                (root / "data" / f"{task}_{split}.tsv").write_text("1\t1\tsome words\n" * 40)
        (root / "mine.yml").write_text(FILE)

    def main(self, *more: str) -> int:
        return main(
            [str(self.root / "mine.yml"), "--data_dir", str(self.root / "data"), "--output_dir", str(self.runs),
             "--results_dir", str(self.root / "results"), "--seeds", "2", "--devices", "cpu",
             "--workers_per_device", "1", *more],
            run=fake_run,
        )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(study, "open_all", lambda config: None)  # fake runs need no token caches
    monkeypatch.setattr(study, "Pool", PoolInProcess)
    monkeypatch.setattr(study, "_figures", lambda table, out: [])
    return Place(tmp_path)


def test_variants_of_one_method_stand_in_rows_of_their_own_against_the_baseline(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.main() == 0
    assert len(calls(place.runs)) == 3 * 2 * 2
    table = (place.out / "table.md").read_text()
    assert [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][1:4] == [
        "plain", "quiet", "loud",
    ]  # fmt: skip
    compared = (place.out / "significance.csv").read_text()
    assert {line.split(",")[1:3][0] for line in compared.splitlines()[1:]} == {"quiet", "loud"}
    described = json.loads((place.out / "study.json").read_text())["variants"]
    assert described["quiet"][0]["run_id"] != described["loud"][0]["run_id"]
    shown = capsys.readouterr().out
    assert place.main() == 0
    assert len(calls(place.runs)) == 12, "a second start computes nothing"
    assert capsys.readouterr().out == shown


def test_what_a_method_logs_has_its_median_and_last_step(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.main("--tasks", "rte") == 0
    for number, file in enumerate(sorted(place.runs.glob("rte/*/pats/*/seed=*"))):
        values = [0.1 + number, 0.2 + number, math.nan if number == 3 else 0.9 + number]
        lines = [{"step": step, "epoch": 1, "loss": 1.0, "pats/spared": value} for step, value in enumerate(values)]
        (file / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    capsys.readouterr()
    assert place.main("--tasks", "rte") == 0
    logged = (place.out / "logged.csv").read_text().splitlines()
    assert logged[0] == "task,variant,name,median,last"
    found = [(line.split(",")[2], *map(float, line.split(",")[3:])) for line in logged[1:]]
    assert sorted(found)[0] == ("spared", pytest.approx(0.7), pytest.approx(1.4))
    assert all(math.isnan(value) for value in found[1][1:]), "a NaN is recorded"
    text = (place.out / "logged.md").read_text()
    assert "| RTE  | plain   | -" in text
    assert text.strip() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("baseline: plain", "baseline: none"), "baseline is 'none'; legal: one of two or more variants: plain, quiet"),
        (("encoder: all-MiniLM-L6-v2\n", ""), "it must have the keys encoder, baseline, settings, tasks, variants"),
        (("{method: vanilla}", "vanilla"), "variants.plain is 'vanilla'; legal: a mapping"),
        (("noise_scale: 2.0e-2", "noise_scale: -1"), "task cola: .*noise_scale"),
        (("noise_scale: 2.0e-2", "noise_scales: 1"), "task cola: .*noise_scales"),
    ],
)
def test_mistakes_are_named(
    place: Place, change: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place.root / "mine.yml").write_text(FILE.replace(*change))
    assert place.main() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    with pytest.raises(SettingError, match=message):
        raise SettingError(error)
    assert not place.runs.exists()


def test_an_unknown_ablation_is_refused() -> None:
    with pytest.raises(SettingError, match="no ablation 'none': give a file, or one of pats_readings"):
        load_ablation("none")


@pytest.mark.parametrize("file", sorted(DEFAULT.task_def.parent.glob("ablations/*.yml")), ids=lambda file: file.stem)
def test_packaged_ablations_are_legal_and_their_variants_differ(file: Path) -> None:
    ablation = load_ablation(file.stem)
    ids = {label: run_id(run_configs(recipe, ["cola"], [1], {})[0]) for label, recipe in ablation.variants.items()}
    assert len(set(ids.values())) == len(ids)
    assert ablation.baseline in ids
