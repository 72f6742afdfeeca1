"""The next benchmark needs a task definition and nothing else; what else lies in its folder is taken from there."""

from pathlib import Path

import pytest
import yaml

from data_utils.yaml_file import read_yaml
from experiments import benchmark
from experiments.benchmark import DEFAULT, Benchmark, task_titles
from experiments.study import study
from experiments.study.__main__ import main
from experiments.study.recipe import find_recipes
from experiments.study.table.gathering import gather
from experiments.study.table.markdown import markdown
from experiments.study.table.paper import load_paper
from tests.experiments.fake_runs import fake_run, write_run
from tests.experiments.search_runs import PoolInProcess
from tests.tiny import TASK_DEF

ROOT = Path(__file__).resolve().parents[2]
ENCODER = "all-MiniLM-L6-v2"
RECIPE = "encoder: own\nmethod: vanilla\nsource: a test\nsettings: {epochs: 7}\ntasks: {toy: {}}\n"
PAPER = {
    "table_1": {"rows": [{"encoder": ENCODER, "method": "vanilla", "inferred": False, "scores": {"toy": 12.34}}]},
    "table_2": {"rows": []},
    "table_3": {"grid": {}},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(study, "open_all", lambda config: None)  # fake runs need no token caches
    monkeypatch.setattr(study, "Pool", PoolInProcess)
    monkeypatch.setattr(study, "_figures", lambda table, out: [])
    folder = tmp_path / "next"
    folder.mkdir()
    (folder / "next_task_def.yml").write_text(TASK_DEF)
    for split in ("train", "dev"):
        (folder / f"toy_{split}.tsv").write_text("1\t1\tsome words\n" * 40)
    return folder


def table_of(folder: Path, tasks: str | None = "toy") -> str:
    status = main(
        ["--task_def", str(folder / "next_task_def.yml"), "--data_dir", str(folder), "--seeds", "1",
         "--encoder", ENCODER, "--methods", "vanilla,noisytune", "--output_dir", str(folder / "runs"),
         "--results_dir", str(folder / "results"), "--name", "x", "--devices", "cpu",
         *(["--tasks", tasks] if tasks else [])],
        run=fake_run,
    )  # fmt: skip
    assert status == 0
    return (folder / "results/x/table.md").read_text()


def test_task_definitions_alone_make_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = table_of(folder)
    assert "no recipe names toy: the recipes' common settings are taken" in capsys.readouterr().err
    assert "NoisyTune - vanilla" in text


def test_without_tasks_a_benchmark_of_its_own_takes_all_that_it_defines(folder: Path) -> None:
    for split in ("train", "dev"):
        (folder / f"toyscore_{split}.tsv").write_text("1\t1.5\tsome words\tothers\n" * 40)
    text = table_of(folder, tasks="toy,toyscore")
    assert table_of(folder, tasks=None) == text
    assert "| toyscore acc" in text


def test_recipes_and_published_numbers_come_from_its_folder(folder: Path) -> None:
    (folder / "recipes").mkdir()
    (folder / f"recipes/{ENCODER}_vanilla.yml").write_text(RECIPE.replace("own", ENCODER))
    (folder / "paper.yml").write_text(yaml.safe_dump(PAPER))
    text = table_of(folder)
    assert "epochs 7" in text
    assert "By the recipe of another method or encoder: NoisyTune (all-MiniLM-L6-v2_vanilla)." in text
    assert "| vanilla, paper" in text
    assert "12.34" in text


def test_an_encoder_without_recipes_there_takes_the_default_ones(folder: Path) -> None:
    (folder / "recipes").mkdir()
    (folder / "recipes/own_vanilla.yml").write_text(RECIPE)
    places = Benchmark(folder / "next_task_def.yml").places("recipes")
    assert find_recipes("own", ["pats"], folders=places)[0].settings == {"epochs": 7}
    (here,) = find_recipes("bert-base-uncased", ["pats"], folders=places)
    (there,) = find_recipes("bert-base-uncased", ["pats"])
    assert here == there


def test_a_paper_without_a_score_of_the_tasks_has_no_row(tmp_path: Path) -> None:
    write_run(tmp_path, "cola")
    assert "vanilla, paper" in markdown(gather(tmp_path), load_paper())
    write_run(tmp_path / "next", "toy")
    assert "paper" not in markdown(gather(tmp_path / "next"), load_paper())


def test_titles_come_from_the_benchmarks_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    glue = list(read_yaml(DEFAULT.task_def.with_name("titles.yml")))
    assert list(task_titles())[: len(glue)] == glue
    assert {"snli", "trec"} <= set(task_titles())
    for name, titles in (("glue", {"b": "Bee", "a": "Ay"}), ("next", {"a": "another", "c": "Sea"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "titles.yml").write_text(yaml.safe_dump(titles, sort_keys=False))
    monkeypatch.setattr(benchmark, "__file__", str(tmp_path / "benchmark.py"))
    monkeypatch.setattr(benchmark, "DEFAULT", Benchmark(tmp_path / "glue/glue_task_def.yml"))
    assert list(task_titles.__wrapped__().items()) == [("b", "Bee"), ("a", "Ay"), ("c", "Sea")]


def test_a_run_recorded_in_another_clone_belongs_to_the_benchmark_of_this_one() -> None:
    elsewhere = Benchmark.of_run({"task_def": "/elsewhere/experiments/demo/demo_task_def.yml"})
    assert elsewhere == Benchmark(ROOT / "experiments/demo/demo_task_def.yml")
    assert Benchmark.of_run({}) is None
    assert load_paper(elsewhere) == load_paper(), "the demo has no paper of its own"


@pytest.mark.parametrize("wing", ["data_utils", "mt_dnn", "experiments/study"])
def test_no_path_to_a_benchmark_is_written_beneath_it(wing: str) -> None:
    sources = {path: path.read_text() for path in (ROOT / wing).rglob("*.py")}
    assert sources
    assert not [path for path, text in sources.items() if "experiments/glue" in text or '"glue"' in text]
