from functools import cache
from pathlib import Path
from typing import Any

import pytest

from data_utils.errors import SettingError
from data_utils.yaml_file import read_yaml
from experiments.glue.recipe import RECIPES, Recipe, find_recipes, load_recipe, parse_overrides, run_configs
from experiments.glue.table.paper import PAPER
from module.methods import METHODS as REGISTRY
from mt_dnn.config import RunConfig, run_id
from mt_dnn.config_parser import config_from_mapping

FILES = sorted(RECIPES.glob("*.yml"))
TASKS = ("cola", "mrpc", "rte", "stsb", "qqp", "qnli", "mnli", "sst")
METHODS = ("vanilla", "noisytune", "sage", "pats")
TABLE_2: dict[tuple[str, str], dict[str, float]] = {
    (row["encoder"], row["method"]): row["learning_rate"] for row in read_yaml(PAPER)["table_2"]["rows"]
}
TABLE_3: dict[str, Any] = read_yaml(PAPER)["table_3"]["grid"]

GOOD = """
encoder: bert-base-uncased
method: pats
source: here
settings: {epochs: 3, pats: {noise_scale: 1.0e-3}}
tasks: {cola: {learning_rate: 1.0e-4}, rte: {pats: {sensitivity_beta: 0.5}}}
"""


@cache
def runs(path: Path) -> list[RunConfig]:
    """A recipe's runs with seed 1, made once: every one of them is parsed and checked."""
    return run_configs(load_recipe(path), [], [1], {})


def rates_of(encoder: str, method: str) -> dict[str, float]:
    return {config.task: config.learning_rate for config in runs(RECIPES / f"{encoder}_{method}.yml")}


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yml"
    path.write_text(text)
    return path


def test_table_1_has_recipes_for_every_encoder_and_the_packaged_one_for_every_method() -> None:
    encoders = ("bert-base-uncased", "roberta-large", "all-MiniLM-L6-v2")
    wanted = {f"{encoder}_{method}" for encoder in encoders for method in METHODS}
    wanted |= {f"all-MiniLM-L6-v2_{name}" for name, method in REGISTRY.items() if not method.is_control}
    assert wanted <= {p.stem for p in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recipe_makes_valid_runs_for_all_eight_tasks(path: Path) -> None:
    recipe = load_recipe(path)
    assert f"{recipe.encoder}_{recipe.method}" == path.stem
    if recipe.method in METHODS:
        assert set(recipe.tasks) == set(TASKS)
    for config in runs(path):
        assert config.seed == 1
        if recipe.method in METHODS:
            assert (config.epochs, config.batch_size, config.warmup) == (10, 32, 0.1)
        assert config.recipe == path.stem
        assert config.encoder == recipe.encoder


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_grid_value_is_a_legal_setting(path: Path) -> None:
    recipe = load_recipe(path)
    assert "learning_rate" in recipe.grid
    # Each value once, those of different settings together: parsing is what takes time.
    for number in range(max(map(len, recipe.grid.values()))):
        overrides = {key: values[number % len(values)] for key, values in recipe.grid.items()}
        (config,) = run_configs(recipe, ["cola"], [1], overrides)
        assert config.learning_rate == overrides["learning_rate"]


def test_learning_rates_are_table_2_where_it_has_a_row() -> None:
    for (encoder, method), rates in TABLE_2.items():
        (recipe,) = find_recipes(encoder, [method])
        assert rates_of(encoder, method) == pytest.approx(rates)
        assert "Table 2" in recipe.source


@pytest.mark.parametrize("encoder", ["bert-base-uncased", "roberta-large", "all-MiniLM-L6-v2"])
def test_rates_that_the_paper_does_not_give_are_marked_as_ours(encoder: str) -> None:
    rates = TABLE_2[encoder if encoder != "all-MiniLM-L6-v2" else "bert-base-uncased", "vanilla"]
    noisytune, sage = find_recipes(encoder, ["noisytune", "sage"])
    assert rates_of(encoder, "noisytune") == pytest.approx(rates)
    assert rates_of(encoder, "sage") == pytest.approx({task: 2 * rate for task, rate in rates.items()})
    assert "ours" in noisytune.source
    assert "ours" in sage.source


def test_pats_grids_are_table_3_and_the_packaged_encoder_scales_gamma() -> None:
    for encoder in ("bert-base-uncased", "roberta-large"):
        (recipe,) = find_recipes(encoder, ["pats"])
        assert {key: list(values) for key, values in recipe.grid.items()} == {
            key: pytest.approx(entry["values"]) for key, entry in TABLE_3.items()
        }
    (small,) = find_recipes("all-MiniLM-L6-v2", ["pats"])
    scaled = [5 * gamma for gamma in TABLE_3["pats.sensitivity_threshold"]["values"]]
    assert small.grid["pats.sensitivity_threshold"] == pytest.approx(scaled)
    assert small.settings["pats"]["sensitivity_threshold"] == pytest.approx(5e-6)


def test_task_settings_win_over_the_recipe_and_overrides_over_both(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    cola, rte = run_configs(recipe, ["cola", "rte"], [7], {"epochs": 1, "pats.noise_scale": 2e-3})
    assert (cola.epochs, cola.learning_rate, cola.seed) == (1, 1e-4, 7)
    assert cola.method_settings["pats"].noise_scale == pytest.approx(2e-3)
    assert rte.method_settings["pats"].sensitivity_beta == pytest.approx(0.5)
    assert rte.method_settings["pats"].noise_scale == pytest.approx(2e-3)


def test_seeds_share_a_run_id_and_a_recipe_equals_its_command_line(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    first, second = run_configs(recipe, ["cola"], [1, 2], {})
    assert run_id(first) == run_id(second)
    by_hand = {"init_checkpoint": "bert-base-uncased", "method": "pats", "train_datasets": "cola", "epochs": 3,
               "learning_rate": 1e-4, "pats": {"noise_scale": 1e-3}, "seed": 2}  # fmt: skip
    assert run_id(config_from_mapping(by_hand)) == run_id(second)


def test_an_override_of_another_method_is_left_out() -> None:
    (vanilla,) = find_recipes("bert-base-uncased", ["vanilla"])
    (config,) = run_configs(vanilla, ["cola"], [1], {"pats.noise_scale": 1e-3})
    assert "pats" not in config.method_settings


def test_an_override_of_one_task_holds_there_alone_and_wins() -> None:
    (pats,) = find_recipes("bert-base-uncased", ["pats"])
    overrides = {"rte.epochs": 7, "rte.pats.noise_scale": 1e-3, "epochs": 2, "pats.noise_scale": 2e-3}
    rte, cola = run_configs(pats, ["rte", "cola"], [1], overrides)
    assert (rte.epochs, cola.epochs) == (7, 2)
    assert (rte.method_settings["pats"].noise_scale, cola.method_settings["pats"].noise_scale) == (1e-3, 2e-3)
    with pytest.raises(SettingError, match=r"--set, task rte: seed is not set here; the study sets it \(--seeds\)"):
        run_configs(pats, ["rte"], [1], {"rte.seed": 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("source: here", "origin: here"), r"mine.yml: unknown key origin; legal keys: encoder, method, settings"),
        (("source: here", ""), r"mine.yml: source must be a text"),
        (("epochs: 3", "seed: 3"), r"mine.yml: settings: seed is not set here; the study sets it \(--seeds\)"),
        (("epochs: 3", "epohcs: 3"), r"mine.yml, task cola: .*epohcs"),
        (("epochs: 3", "epochs: 0"), r"mine.yml, task cola: epochs is 0; legal: an integer >= 1"),
        (("epochs: 3", "epochs: many"), r"mine.yml, task cola: .*epochs"),
        (("rte:", "rtee:"), r"mine.yml: unknown task 'rtee'; .*glue_task_def.yml defines .*cola"),
        (("{learning_rate: 1.0e-4}", "1.0e-4"), r"mine.yml: tasks.cola must be a mapping"),
        (("settings: {", "grid: {learning_rate: 3}\nsettings: {"), r"grid.learning_rate must be a list"),
        (("noise_scale: 1.0e-3", "noise_scale: -1"), r"mine.yml, task cola: .*noise_scale"),
        (("source: here", "source: here\nchosen_from_grid: 3"), r"chosen_from_grid must be true or false; it is 3"),
        (("source: here", "source: here\nchosen_from_grid: true"), r"chosen_from_grid is true, but there is no grid"),
        (("source: here", "source: here\ntried: 3"), r"tried is 3; legal: an integer >= 1, together with chosen_from"),
    ],
)
def test_mistakes_name_the_file_and_what_is_legal(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = write(tmp_path, GOOD.replace(*change))
    with pytest.raises(SettingError, match=message) as caught:
        run_configs(load_recipe(path), [], [1], {})
    assert "\n" not in str(caught.value)


def test_a_task_without_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"no settings for task 'sst'; it has cola, rte"):
        run_configs(load_recipe(write(tmp_path, GOOD)), ["sst"], [1], {})


def names(recipes: list[Recipe]) -> list[tuple[str, str, str]]:
    return [(recipe.encoder, recipe.method, recipe.name) for recipe in recipes]


def test_an_encoder_without_recipes_says_so_and_takes_another_s() -> None:
    with pytest.raises(SettingError, match=r"no recipe for org--electra with pats .*--recipe_base, one of all-MiniLM"):
        find_recipes("org/electra", ["pats"])
    assert names(find_recipes("org/electra", ["pats"], base="bert-base-uncased")) == [
        ("org/electra", "pats", "bert-base-uncased_pats")
    ]


def test_a_local_folder_finds_its_recipe_by_name_and_a_composition_by_its_last_part() -> None:
    found = find_recipes("/models/roberta-large", ["vanilla", "noisytune+pats"])
    assert names(found) == [
        ("/models/roberta-large", "vanilla", "roberta-large_vanilla"),
        ("/models/roberta-large", "noisytune+pats", "roberta-large_pats"),
    ]
    (config,) = run_configs(found[1], ["cola"], [1], {})
    assert set(config.method_settings) == {"noisytune", "pats"}


def test_overrides_are_yaml_values() -> None:
    pairs = ["learning_rate=1e-4", "epochs=3", "dropout_p=null", "sampler=mtdnn", "pats.perturb_biases=false"]
    assert parse_overrides(pairs) == {
        "learning_rate": 1e-4, "epochs": 3, "dropout_p": None, "sampler": "mtdnn", "pats.perturb_biases": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("epochs", "is not key=value"),
        ("=3", "is not key=value"),
        ("seed=3", r"seed is not set here; the study sets it \(--seeds\)"),
        ("epochs=[", "cannot read the value"),
    ],
)
def test_bad_overrides_are_refused(pair: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        parse_overrides([pair])
