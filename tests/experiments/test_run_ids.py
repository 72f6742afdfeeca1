"""A run's id is its address on disk: it stays, or whoever has runs computes them again."""

import json
from pathlib import Path

import pytest

from experiments.benchmark import DEFAULT
from experiments.study.recipe import load_recipe, run_configs
from mt_dnn.run_id import run_id

RECIPES = DEFAULT.task_def.with_name("recipes")
IDS: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("run_ids.json").read_text())


def test_every_recipe_is_listed() -> None:
    assert sorted(IDS) == sorted(path.stem for path in RECIPES.glob("*.yml"))


@pytest.mark.parametrize("name", IDS)
def test_the_runs_of_a_recipe_keep_their_ids(name: str) -> None:
    """An id that moves is named in the CHANGELOG, with the reason, and changed in run_ids.json."""
    recipe = load_recipe(RECIPES / f"{name}.yml")
    assert {config.task: run_id(config) for config in run_configs(recipe, [], [1], {})} == IDS[name]
