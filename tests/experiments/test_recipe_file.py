from pathlib import Path

import pytest

from data_utils.errors import SettingError
from experiments.study.recipe import load_recipe, run_configs

BASE = """
encoder: bert-base-uncased
method: pats
source: the base
settings: {epochs: 3, warmup: 0.2, pats: {noise_scale: 1.0e-3, sensitivity_beta: 0.5}}
tasks:
  cola: {learning_rate: 1.0e-4, pats: {noise_scale: 2.0e-3, sensitivity_beta: 0.6}}
  rte: {learning_rate: 2.0e-4, batch_size: 8}
grid: {learning_rate: [1.0e-4, 2.0e-4], pats.noise_scale: [1.0e-3, 2.0e-3]}
chosen_from_grid: true
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.yml").write_text(BASE)
    return tmp_path


def like_base(folder: Path, text: str) -> Path:
    (folder / "mine.yml").write_text(f"like: base\n{text}")
    return folder / "mine.yml"


def test_what_a_file_does_not_say_is_the_other_s(folder: Path) -> None:
    mine, base = load_recipe(like_base(folder, "")), load_recipe(folder / "base.yml")
    for name in ("encoder", "method", "source", "settings", "tasks", "grid"):
        assert getattr(mine, name) == getattr(base, name)
    assert (mine.name, mine.trials, base.trials) == ("mine", 1, 4), "nothing was searched for this one"


def test_what_differs_is_all_that_a_file_holds(folder: Path) -> None:
    text = "encoder: roberta-large\nsource: mine\nsettings: {epochs: 5}\ntasks: {rte: {batch_size: 16}, sst: {}}\n"
    mine = load_recipe(like_base(folder, text + "grid: {learning_rate: [3.0e-4]}\n"))
    assert (mine.encoder, mine.source, mine.settings["epochs"], mine.settings["warmup"]) == (
        "roberta-large", "mine", 5, 0.2,
    )  # fmt: skip
    assert list(mine.tasks) == ["cola", "rte", "sst"]
    assert mine.tasks["rte"] == {"learning_rate": 2e-4, "batch_size": 16}
    assert mine.grid == {"learning_rate": [3e-4], "pats.noise_scale": [1e-3, 2e-3]}


def test_a_setting_holds_for_all_tasks_also_where_the_other_sets_it_for_one(folder: Path) -> None:
    text = "settings: {learning_rate: 5.0e-4, pats: {noise_scale: 9.0e-3}}\n"
    cola, rte = run_configs(load_recipe(like_base(folder, text)), ["cola", "rte"], [1], {})
    assert (cola.learning_rate, rte.learning_rate, rte.batch_size) == (5e-4, 5e-4, 8)
    assert [c.method_settings["pats"].noise_scale for c in (cola, rte)] == [9e-3, 9e-3]
    assert [c.method_settings["pats"].sensitivity_beta for c in (cola, rte)] == [0.6, 0.5]


def test_another_method_leaves_the_settings_of_this_one_behind(folder: Path) -> None:
    mine = load_recipe(like_base(folder, "method: sage\nsettings: {sage: {sensitivity_beta: 0.8}}\n"))
    assert mine.settings == {"epochs": 3, "warmup": 0.2, "sage": {"sensitivity_beta": 0.8}}
    assert mine.tasks["cola"] == {"learning_rate": 1e-4}
    assert list(mine.grid) == ["learning_rate"]
    assert len(run_configs(mine, [], [1], {})) == 2


def test_null_takes_a_task_or_an_axis_out(folder: Path) -> None:
    mine = load_recipe(like_base(folder, "tasks: {cola: null}\ngrid: {pats.noise_scale: null}\n"))
    assert (list(mine.tasks), list(mine.grid)) == (["rte"], ["learning_rate"])


def test_like_of_like(folder: Path) -> None:
    like_base(folder, "settings: {epochs: 5}\n")
    (folder / "third.yml").write_text("like: mine.yml\nsettings: {warmup: 0.0}\n")
    assert load_recipe(folder / "third.yml").settings["epochs"] == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("like: nowhere", r"mine.yml: like: no recipe 'nowhere'.*; give a file, or one of .*bert-base-uncased_pats"),
        ("like: mine", r"mine.yml: like goes in a circle: mine -> mine; one of them must stand on its own"),
        ("like: [base]", r"mine.yml: like is \['base'\]; legal: a text"),
        ("like: base\ntasks: {sst: null}", r"mine.yml: tasks.sst is null, but .*base.yml has no sst to take out"),
        ("like: base\ngrid: {epochs: null}", r"grid.epochs is null, but .*base.yml has no epochs to take out"),
        ("like: base\nsettings: {seed: 1}", r"mine.yml: settings: seed is not set here"),
        (
            "like: base\nmethod: vanilla\nsettings: {pats: {noise_scale: 0.1}}",
            r"settings are given for pats, but method is 'vanilla'",
        ),
        (BASE + "like: null", r"mine.yml: like is None; legal: a text"),
        (BASE.replace("cola: {learning_rate: 1.0e-4,", "cola: null #"), r"mine.yml: tasks.cola"),
    ],
)
def test_mistakes_name_the_file(folder: Path, text: str, message: str) -> None:
    (folder / "mine.yml").write_text(text)
    with pytest.raises(SettingError, match=message) as caught:
        run_configs(load_recipe(folder / "mine.yml"), [], [1], {})
    assert "\n" not in str(caught.value)
