from functools import cache
from pathlib import Path
from typing import Any

import pytest

from data_utils.errors import SettingError
from data_utils.yaml_file import read_yaml
from experiments.benchmark import DEFAULT
from experiments.study.recipe import Recipe, find_recipes, load_recipe, run_configs
from experiments.study.settings import parse_overrides
from module.methods import METHODS as REGISTRY
from mt_dnn.config import RunConfig
from mt_dnn.config_parser import config_from_mapping
from mt_dnn.run_id import run_id
from tests.tiny import TASK_DEF

RECIPES = DEFAULT.task_def.with_name("recipes")
PAPER = DEFAULT.task_def.with_name("paper.yml")
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
    times = 1 if encoder == "all-MiniLM-L6-v2" else 2
    assert rates_of(encoder, "sage") == pytest.approx({task: times * rate for task, rate in rates.items()})
    assert "ours" in noisytune.source
    assert "ours" in sage.source


def test_methods_on_the_packaged_encoder_have_one_learning_rate_a_task() -> None:
    vanilla = rates_of("all-MiniLM-L6-v2", "vanilla")
    differing = {p.stem for p in FILES if p.stem.startswith("all-MiniLM-L6-v2_")} - {
        p.stem for p in FILES if p.stem.startswith("all-MiniLM-L6-v2_") and rates_of(*p.stem.split("_", 1)) == vanilla
    }
    assert differing == {"all-MiniLM-L6-v2_bitfit", "all-MiniLM-L6-v2_lora"}, (
        "few weights learn, at their authors' rates"
    )


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
        parse_overrides(["rte.seed=3"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("source: here", "origin: here"), r"mine.yml: unknown key origin; legal keys: like, encoder, method, source"),
        (("source: here", ""), r"mine.yml: source is missing; legal: a text"),
        (("epochs: 3", "seed: 3"), r"mine.yml: settings: seed is not set here; the study sets it \(--seeds\)"),
        (
            ("epochs: 3", "epohcs: 3"),
            r"mine.yml: settings: unknown setting 'epohcs' \(did you",
        ),
        (("epochs: 3", "epochs: 0"), r"mine.yml, task cola: epochs is 0; legal: an integer >= 1"),
        (("epochs: 3", "epochs: many"), r"mine.yml, task cola: .*epochs"),
        (
            ("rte:", "rtee:"),
            r"mine.yml: unknown task 'rtee' \(did you mean rte\?\); .* defines .*cola",
        ),
        (("{learning_rate: 1.0e-4}", "1.0e-4"), r"mine.yml: tasks.cola is 0.0001; legal: a mapping"),
        (
            ("settings: {", "grid: {learning_rate: 3}\nsettings: {"),
            r"grid.learning_rate is 3; legal: a list",
        ),
        (("noise_scale: 1.0e-3", "noise_scale: -1"), r"mine.yml, task cola: .*noise_scale"),
        (
            ("source: here", "source: here\nchosen_from_grid: 3"),
            r"chosen_from_grid is 3; legal: true or false",
        ),
        (("source: here", "source: here\nchosen_from_grid: true"), r"chosen_from_grid is true, but there is no grid"),
        (("source: here", "source: here\ntried: 3"), r"tried is 3, which goes together with chosen_from_grid: true"),
    ],
)
def test_mistakes_name_the_file_and_what_is_legal(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = write(tmp_path, GOOD.replace(*change))
    with pytest.raises(SettingError, match=message) as caught:
        run_configs(load_recipe(path), [], [1], {})
    assert "\n" not in str(caught.value)


def test_a_task_that_no_recipe_names_takes_the_common_settings(tmp_path: Path) -> None:
    (sst,) = run_configs(load_recipe(write(tmp_path, GOOD)), ["sst"], [1], {})
    assert (sst.epochs, sst.learning_rate) == (3, RunConfig().learning_rate)
    assert sst.method_settings["pats"].noise_scale == pytest.approx(1e-3)


def names(recipes: list[Recipe]) -> list[tuple[str, str, str]]:
    return [(recipe.encoder, recipe.method, recipe.name) for recipe in recipes]


SIZES = {
    "tiny": (
        {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 2},
        "all-MiniLM-L6-v2",
    ),
    "base": ({}, "bert-base-uncased"),
    "large": ({"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096}, "roberta-large"),
}


@pytest.mark.parametrize("name", SIZES)
def test_an_encoder_without_recipes_says_so_and_takes_those_of_the_nearest_in_size(tmp_path: Path, name: str) -> None:
    from transformers import BertConfig

    values, nearest = SIZES[name]
    BertConfig(**values).save_pretrained(tmp_path / f"my-{name}")
    encoder = str(tmp_path / f"my-{name}")
    (recipe,) = find_recipes(encoder, ["pats"])
    assert names([recipe]) == [(encoder, "pats", f"{nearest}_pats")]
    (sentence,) = recipe.borrowed
    assert f"my-{name} has no recipes: those of {nearest}, the known encoder nearest in size" in sentence
    assert sentence.endswith("are taken, for all methods with plain fine-tuning's learning rates")
    assert ("against 0.99 M parameters" in sentence) == (name == "tiny")
    assert recipe.trials == 1, "nothing was searched on this one"


def test_another_base_is_taken_when_it_is_given_and_asked_for_when_the_size_is_not_known(tmp_path: Path) -> None:
    assert names(find_recipes("org/electra", ["pats"], base="bert-base-uncased")) == [
        ("org/electra", "pats", "bert-base-uncased_pats")
    ]
    asked = r"nowhere does not exist; .*\): .*--recipe_base, one of all-MiniLM-L6-v2, bert"
    with pytest.raises(SettingError, match=asked):
        find_recipes(str(tmp_path / "nowhere"), ["pats"])
    with pytest.raises(
        SettingError, match=r"--recipe_base bert: there is no recipe bert_pats.yml; give one of all-Mini"
    ):
        find_recipes("org/electra", ["pats"], base="bert")


@pytest.mark.parametrize("base", ["bert-base-uncased", "roberta-large", "all-MiniLM-L6-v2"])
def test_recipes_of_another_encoder_have_one_learning_rate_a_task(base: str) -> None:
    found = find_recipes("org/electra", ["vanilla", "noisytune", "sage", "pats", "freelb"], base=base)
    rates = [{config.task: config.learning_rate for config in run_configs(one, TASKS, [1], {})} for one in found]
    assert all(of_method == rates[0] for of_method in rates)
    known = TABLE_2.get((base, "vanilla")) or TABLE_2["bert-base-uncased", "vanilla"]
    assert rates[0] == pytest.approx({task: known.get(task, RunConfig().learning_rate) for task in TASKS})
    (lora,) = find_recipes("org/electra", ["lora"], base="roberta-large")
    assert run_configs(lora, ["sst"], [1], {})[0].learning_rate == pytest.approx(3e-4), "few weights, at its own rate"


def test_a_method_without_a_recipe_takes_that_of_its_control_and_says_so() -> None:
    found = find_recipes("roberta-large", ["vanilla", "sam", "mixout", "sam+pats"])
    assert [recipe.name.removeprefix("roberta-large_") for recipe in found] == ["vanilla", "vanilla", "vanilla", "pats"]
    assert [recipe.borrowed for recipe in found] == [
        (),
        ("sam has no recipe of its own: that of vanilla is taken",),
        ("mixout has no recipe of its own: that of vanilla is taken",),
        ("sam+pats has no recipe of its own: that of pats is taken",),
    ]
    assert [recipe.trials for recipe in found[:2]] == [9, 1], "the search was plain fine-tuning's"
    assert run_configs(found[1], ["cola"], [1], {})[0].learning_rate == pytest.approx(3e-5)


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


def test_recipes_and_overrides_give_schedule_loss_stopping_and_memory(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text(
        "encoder: bert-base-uncased\nmethod: vanilla\nsource: ours\n"
        "settings: {schedule: cosine, patience: 2, class_weights: balanced}\n"
        "tasks: {cola: {label_smoothing: 0.1}, rte: {}}\n"
    )
    pairs = ["cola.class_weights=1=2,0=1", "gradient_checkpointing=true", "patience=3"]
    cola, rte = run_configs(load_recipe(path), ["cola", "rte"], [1], parse_overrides(pairs))
    assert (cola.schedule, cola.label_smoothing, cola.class_weights) == ("cosine", 0.1, "0=1.0,1=2.0")
    assert (rte.label_smoothing, rte.class_weights, rte.patience) == (0.0, "balanced", 3)
    assert cola.gradient_checkpointing
    assert rte.gradient_checkpointing


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("epochs", "is not key=value"),
        ("=3", "is not key=value"),
        ("seed=3", r"seed is not set here; the study sets it \(--seeds\)"),
        ("epochs=[", "epochs: cannot read the value"),
        ("epochs=2001-99-99", "epochs: cannot read the value '2001-99-99'"),
        ("epochs=2001-09-09", "epochs is datetime.date"),
        ("epochs=" + "9" * 5000, "epochs: cannot read the value"),
        ("epochs=010", "--set epochs: '010' is another number to YAML"),
        ("epochs=1:30", "--set epochs: '1:30' is another number to YAML"),
        ("epochs=99999999999999999999", "epochs is an integer that needs more than 64 bits"),
        ("betas=" + "[" * 100_000, "betas: cannot read the value"),
        ("betas=&a [*a]", r"betas: aliases \(\*\) are not read"),
        ("epoch=1", r"unknown setting 'epoch' \(did you mean epochs\?\)"),
        ("learning-rate=1", r"unknown setting 'learning-rate' \(did you mean learning_rate\?\)"),
        ("lr_scheduler_type=cosine", r"unknown setting 'lr_scheduler_type' \(here it is schedule\)"),
        ("config=other.yml", "unknown setting 'config'"),
        ("cola.config=other.yml", r"'cola' is no method.*, and 'config' no setting of a task"),
        ("pats=other.yml", "unknown setting 'pats'"),
        ("cola.init_checkpoint=x", r"task cola: init_checkpoint is not set here; the study sets it \(--encoder\)"),
        ("cola.rte.epochs=1", "'cola' is no method"),
        ("cola.epoch=1", r"and 'epoch' no setting of a task \(did you mean epochs\?\)"),
        ("pats.noise=1", "pats has no setting 'noise'"),
        ("pats.config=other.yml", "pats has no setting 'config'"),
        ("pat.noise_scale=1", r"'pat' is no method \(did you mean pats\?\)"),
    ],
)
def test_bad_overrides_are_refused(pair: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        parse_overrides([pair])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # What loads another file, or reaches past the settings that the study owns.
        (("epochs: 3", "config: other.yml"), "settings: unknown setting 'config'"),
        (("epochs: 3", "print_config: x"), "settings: unknown setting 'print_config'"),
        (("epochs: 3", "help: 1"), "settings: unknown setting 'help'"),
        (("{learning_rate: 1.0e-4}", "{config: other.yml}"), "tasks.cola: unknown setting 'config'"),
        (("{noise_scale: 1.0e-3}", "other.yml"), "settings: pats is 'other.yml'; legal: a mapping"),
        (("epochs: 3", "method_settings: {pats: {}}"), "settings: unknown setting 'method_settings'"),
        (("epochs: 3", "pats.noise_scale: 3"), "settings: unknown setting 'pats.noise_scale'"),
        (("epochs: 3", "init-checkpoint: x"), "settings: unknown setting 'init-checkpoint'"),
        (("{learning_rate: 1.0e-4}", "{init_checkpoint: x}"), "tasks.cola: init_checkpoint is not set here"),
        (("source: here", "source: here\ngrid: {config: [a.yml]}"), "grid: unknown setting 'config'"),
        (("source: here", "source: here\ngrid: {cola.seed: [1]}"), "grid 'cola.seed': 'cola' is no method"),
        # Values of another kind.
        (("method: pats", "method: [pats]"), "method is ['pats']; legal: a text"),
        (("method: pats", "method: pat"), "method: unknown method 'pat' (did you mean pats?)"),
        (("method: pats", "method: pats+pats"), "names a method twice"),
        (("encoder: bert-base-uncased", "encoder: null"), "encoder is None; legal: a text"),
        (("settings: {epochs: 3, pats: {noise_scale: 1.0e-3}}", "settings: null"), "settings is None; legal: a map"),
        (("settings: {epochs: 3, pats: {noise_scale: 1.0e-3}}", "settings: [1]"), "settings is [1]; legal: a mapping"),
        (("{cola: {learning_rate: 1.0e-4}", "{1: {learning_rate: 1.0e-4}"), "tasks: 1 is no name of a task"),
        (("{cola: {learning_rate: 1.0e-4}", "{../x: {}"), "task name '../x' is not allowed"),
        (("{cola: {learning_rate: 1.0e-4}", "{cola: null"), "tasks.cola is None; legal: a mapping"),
        (("epochs: 3", "1: 3"), "settings: unknown setting 1;"),
        (("epochs: 3", "epochs: 2001-09-09"), "settings: epochs is datetime.date(2001, 9, 9), a date; quote it"),
        (("epochs: 3", "epochs: 100000000000000000000"), "epochs is an integer that needs more than 64 bits"),
        (("epochs: 3", "betas: [[[[[1]]]]]"), "too long or too deeply nested for a setting"),
        (("source: here", "source: here\ngrid: {epochs: []}"), "grid.epochs is []; legal: a list of values"),
        (("source: here", "source: here\ntried: true"), "tried is True; legal: an integer >= 1"),
    ],
)  # fmt: skip
def test_what_a_recipe_may_not_hold_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    (tmp_path / "other.yml").write_text("seed: 77\ninit_checkpoint: elsewhere\n")
    text = GOOD.replace(*change)
    assert text != GOOD
    with pytest.raises(SettingError) as caught:
        load_recipe(write(tmp_path, text))
    assert message in str(caught.value)
    assert "mine.yml: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_task_that_is_not_asked_for_need_not_be_defined(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD.replace("rte:", "mine:")))
    own = tmp_path / "own.yml"
    own.write_text(TASK_DEF.replace("toy:", "mine:"))
    (config,) = run_configs(recipe, ["mine"], [1], {}, task_def=own)
    assert config.task == "mine"
    with pytest.raises(SettingError, match=r"mine.yml: unknown task 'cola'; .*own.yml defines mine, toyscore"):
        run_configs(recipe, [], [1], {}, task_def=own)
    with pytest.raises(SettingError, match=r"^--tasks: unknown task 'rtee' \(did you mean rte\?\); .* defines cola"):
        run_configs(load_recipe(write(tmp_path, GOOD)), ["rtee"], [1], {})


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["learning_rate=-1"], "^--set learning_rate=-1: learning_rate is -1.0; legal: a number > 0"),
        (["epochs=2", "warmup=7"], "^--set warmup=7: warmup is 7.0"),
        (["rte.epochs=2", "rte.epochs=many"], "^--set rte.epochs=many: .*epochs"),
        (["pats.noise_scale=-1"], "^--set pats.noise_scale=-1: .*noise_scale"),
        (["train_size=5", "train_fraction=0.5"], "^--set train_size=5 train_fraction=0.5: .*give one of the two"),
    ],
)
def test_a_wrong_override_is_blamed_and_not_the_recipe(tmp_path: Path, pairs: list[str], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        run_configs(load_recipe(write(tmp_path, GOOD)), ["rte"], [1], parse_overrides(pairs))
    with pytest.raises(SettingError, match=r"mine.yml, task rte: epochs is 0"):
        run_configs(load_recipe(write(tmp_path, GOOD.replace("epochs: 3", "epochs: 0"))), ["rte"], [1], {"warmup": 0.5})


def test_an_unknown_method_is_not_an_encoder_without_a_recipe() -> None:
    with pytest.raises(SettingError, match=r"^--methods: unknown method 'vanila' \(did you mean vanilla\?\); there"):
        find_recipes("bert-base-uncased", ["vanila"])
