import datetime
import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_utils.errors import SettingError
from experiments.glue.glue_prepro import GLUE_TASK_DEF
from module.methods.hype import HyPeSettings
from module.methods.lora import LoRASettings
from module.pats_rule import PATSRule
from mt_dnn.config import RunConfig
from mt_dnn.config_parser import config_from_arguments, config_from_mapping
from mt_dnn.run_id import run_dir, run_id

ROOT = Path(__file__).resolve().parents[2]
COUNT = "an integer >= 1, below 2^31"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("grad_accumulation_step", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("warmup", 1.0),
        ("adam_eps", 0.0),
        ("betas", (0.9, 1.0)),
        ("weight_decay", -0.1),
        ("global_grad_clipping", -1.0),
        ("dropout_p", 1.0),
        ("bert_dropout_p", -0.1),
        ("max_seq_len", 2),
        ("train_fraction", 0.0),
        ("train_fraction", 1.5),
        ("train_size", 0),
        ("seed", -1),
        ("checkpoint_seconds", -1.0),
        ("log_per_updates", 0),
        ("threads", 0),
        ("threads", 1025),  # 5000 end the process in OpenMP
        ("epochs", 2**31),
        ("epochs", "3"),
        ("epochs", True),
        ("epochs", None),
        ("batch_size", 10**30),
        ("learning_rate", 1e31),
        ("learning_rate", 10**400),
        ("learning_rate", "1e-4"),
        ("learning_rate", float("inf")),
        ("warmup", float("nan")),
        ("betas", "ab"),
        ("betas", (0.9,)),
        ("max_seq_len", 65536),
        ("seed", 1.0),
        ("tensorboard", 1),
        ("report_to", "wandbee"),
        ("report_to", "wandb, mlflow"),
        ("report_to", "none,wandb"),
        ("report_to", ""),
        ("optimizer", "sgd"),
        ("data_dir", "a text"),
        ("data_dir", Path("a\0b")),
        ("init_checkpoint", None),
        ("method", 3),
        ("device", "tpu"),
        ("device", 0),
        ("device", "CUDA:0"),
        ("device", "cuda:-1"),
        ("device", "cuda:99999999999999999999999"),
        ("device", "cuda:\u0663"),  # a digit, of Arabic
        ("epochs", "x" * 100_000),
        ("method", "patz"),
        ("train_datasets", "../cola"),
        ("train_datasets", "cola,../mrpc"),
        ("recipe", "a b"),
    ],
)
def test_a_value_out_of_range_is_named(setting, value):
    with pytest.raises(SettingError) as caught:
        RunConfig(**{setting: value})
    message = str(caught.value)
    assert setting in message
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("lora", LoRASettings(r=8.5), "lora.r is 8.5; legal: an integer"),
        ("lora", LoRASettings(r=10**20), "lora.r is 100000000000000000000; legal: an integer below 2^31"),
        ("hype", HyPeSettings(centered=1), "hype.centered is 1; legal: true or false"),
        ("pats", {"noise_scale": 1.0}, "Settings of method 'pats' are dict, not PATSRule"),
        ("pats", LoRASettings(), "Settings of method 'pats' are LoRASettings, not PATSRule"),
    ],
)
def test_settings_of_a_method_made_in_python_are_checked_too(method, settings, message):
    with pytest.raises(SettingError) as caught:
        RunConfig(method=method, method_settings={method: settings})
    assert str(caught.value) == message


def test_two_ways_to_subset_exclude_each_other():
    with pytest.raises(SettingError, match=r"train_fraction is 0\.5 and train_size is 10"):
        RunConfig(train_fraction=0.5, train_size=10)


def test_tensorboard_is_the_only_tracker_unless_others_are_named():
    assert RunConfig().trackers == ("tensorboard",)
    assert RunConfig(report_to="wandb,tensorboard,wandb").trackers == ("wandb", "tensorboard")
    assert RunConfig(report_to="wandb,tensorboard", tensorboard=False).trackers == ("wandb",)
    assert RunConfig(tensorboard=False).trackers == RunConfig(report_to="none").trackers == ()


def test_run_id_ignores_seed_paths_and_devices():
    base = RunConfig()
    same = RunConfig(
        seed=7, output_dir=Path("x"), data_dir=Path("y"), cache_dir=Path("z"), device="cpu", threads=1, save="none",
        log_per_updates=1, checkpoint_seconds=0, tensorboard=False, recipe="label", eval_batch_tokens=1,
        deterministic=True, report_to="none",
    )  # fmt: skip
    assert run_id(base) == run_id(same)
    assert run_dir(base) != run_dir(same)


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 2e-4},
        {"train_datasets": "rte"},
        {"method": "pats"},
        {"init_checkpoint": "bert-base-uncased"},
        {"train_size": 5},
        {"betas": (0.9, 0.99)},
        {"tf32": True},
    ],
)
def test_run_id_knows_what_changes_numbers(change):
    assert run_id(RunConfig()) != run_id(RunConfig(**change))


def test_run_id_does_not_depend_on_where_the_encoder_lies(tmp_path):
    ids = set()
    for parent in ("one", "two"):
        folder = tmp_path / parent / "my-bert"
        folder.mkdir(parents=True)
        ids.add(run_id(RunConfig(init_checkpoint=str(folder))))
    assert len(ids) == 1


def test_run_id_is_invariant_to_the_order_of_keys():
    first = config_from_mapping({"epochs": 3, "method": "pats", "pats": {"noise_scale": 0.01, "sensitivity_beta": 0.5}})
    second = config_from_mapping(
        {"pats": {"sensitivity_beta": 0.5, "noise_scale": 0.01}, "method": "pats", "epochs": 3}
    )
    assert run_id(first) == run_id(second)
    assert first == second


def test_method_settings_reach_the_configuration_and_the_run_id():
    default = config_from_arguments(["--method", "pats"])
    changed = config_from_arguments(["--method", "pats", "--pats.noise_scale", "2e-2"])
    assert changed.method_settings["pats"].noise_scale == 2e-2
    assert run_id(default) != run_id(changed)


def test_settings_of_a_method_that_is_not_used_are_refused():
    with pytest.raises(SettingError, match=r"pats.*method is 'vanilla'"):
        config_from_arguments(["--pats.noise_scale", "2e-2"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--lerning_rate", "1"], "lerning_rate"),
        (["--learning_rate", "fast"], "learning_rate"),
        (["--optimizer", "sgd"], "optimizer"),
        (["--method", "pats", "--pats.lambda", "1"], "pats.lambda"),
        (["--method", "pats", "--pats.noise_scale", "-1"], "noise_scale"),
        (["--epochs", "2001-99-99"], f"epochs is 2001-99-99; legal: {COUNT}"),
        (["--epochs", "2001-01-01"], f"epochs is 2001-01-01; legal: {COUNT}"),
        (["--epochs", "99999999999999999999"], f"epochs is 99999999999999999999; legal: {COUNT}"),
        (["--epochs", "1e3"], f"epochs is 1000.0; legal: {COUNT}"),
        (["--epochs", "true"], f"epochs is True; legal: {COUNT}"),
        (["--epochs", "a" * 100_000], f"a; legal: {COUNT}"),
        (["--epochs", "[" * 10_000], f"[; legal: {COUNT}"),
        (["--learning_rate", "nan"], "learning_rate is nan; legal: a number > 0"),
        (["--learning_rate", "inf"], "learning_rate is inf; legal: a number > 0"),
        (["--learning_rate", "1" + "0" * 400], "is too large for a number"),
        (["--seed", "1" * 5000], "seed: Exceeds the limit"),
        (["--tensorboard", "1"], "tensorboard is 1; legal: true or false"),
        (["--betas", "[0.9,2001-99-99]"], "betas is 2001-99-99; legal: two numbers in [0, 1)"),
        (["--warmup", "nan"], "warmup is nan; legal: a share in [0, 1)"),
        (["--method", "pats", "--pats.noise_scale", "nan"], "pats.noise_scale is nan; legal: a number or null"),
        (["--method", "vanila"], "Invalid method: 'vanila' in 'vanila' (did you mean vanilla?): known are vanilla,"),
        (
            ["--method", "pats", "--pats", "nosuch.yml"],
            "unknown setting --pats nosuch.yml (did you mean --pats.reading",
        ),
        (["--method", "pats", "--pats.config", "x.yml"], "unknown setting --pats.config"),
        (["--epochs.x", "3"], "unknown setting --epochs.x"),
        (["--lr_scheduler_type", "cosine"], "unknown setting --lr_scheduler_type cosine (here it is --schedule)"),
        (["--max_seq_length=128"], "unknown setting --max_seq_length=128 (here it is --max_seq_len)"),
        (["--schedule", "polynomial"], "schedule is polynomial; legal: one of linear, cosine, constant, linear_legacy"),
        (["--config.x", "3"], "unknown setting --config.x"),
        (["--print_config=skip_default"], "--print_config"),
        (["--config", "typo.yml"], "--config: typo.yml does not exist; name a YAML file with settings"),
        (["--config"], "--config: expected one argument"),
    ],
)
def test_a_wrong_flag_gives_one_line(arguments, named):
    with pytest.raises(SettingError) as caught:
        config_from_arguments(arguments)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 4", "unknown setting epoch (did you mean epochs?)"),
        ("epochs: four", f"epochs is four; legal: {COUNT}"),
        ("epochs: [[1]]", f"epochs is [[1]]; legal: {COUNT}"),
        ("config: other.yml", "unknown setting config"),
        ("print_config: true", "unknown setting print_config"),
        ("pats: other.yml", "pats is 'other.yml'; legal: a mapping with settings of the method pats"),
        ("pats: {config: other.yml}", "unknown setting pats.config"),
        ("pats: {noise_skale: 1}", "unknown setting pats.noise_skale (did you mean pats.noise_scale?)"),
        ("pats.noise_scale: 1", "unknown setting pats.noise_scale (write pats: {noise_scale: ...})"),
        ("method: patz", "Invalid method: 'patz' in 'patz' (did you mean pats?)"),
    ],
)
def test_what_is_wrong_in_a_file_of_settings_is_told_with_its_name(tmp_path, text, message):
    file = tmp_path / "run.yml"
    file.write_text(text)
    with pytest.raises(SettingError) as caught:
        config_from_arguments(["--config", str(file)])
    assert str(caught.value).startswith(f"--config: {file}: {message}")


def nested_list(depth):
    value = ["x"] * 9
    for _ in range(depth):
        value = [value] * 9
    return value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lerning_rate": 1.0}, "unknown setting lerning_rate (did you mean learning_rate?)"),
        ({"method": "pats", "pats": {"lambda": 1}}, "unknown setting pats.lambda"),
        ({"help": True}, "unknown setting help"),
        ({"lr_scheduler_type": "cosine"}, "unknown setting lr_scheduler_type (here it is schedule)"),
        ({"method_settings": {}}, "unknown setting method_settings"),
        ({"epochs+": 2}, "unknown setting epochs+ (did you mean epochs?)"),
        ({1: 2}, "unknown setting 1"),
        ({"method": "pats", "pats": {"class_path": "os.system", "init_args": {}}}, "unknown setting pats.class_path"),
        ({"method": "pats", "pats": None}, "pats is None; legal: a mapping with settings of the method pats"),
        ({"epochs": datetime.date(2001, 1, 1)}, "epochs is 2001-01-01; legal: "),
        ({"learning_rate": 10**400}, "learning_rate is 1000"),
        ({"method": None}, "method is None; legal: a text"),
        ({"data_dir": 3}, "data_dir: Not of type Path"),
        ({"data_dir": "a\0b"}, "data_dir is "),
        ({"recipe": "a\nb"}, "recipe name 'a\\nb' is not allowed"),
        ({"method": "gone", "gone": {"x": 1}}, "Invalid method: 'gone' in 'gone': known are vanilla,"),
    ],
)
def test_a_wrong_mapping_is_refused_in_one_short_line(values, message):
    with pytest.raises(SettingError) as caught:
        config_from_mapping(values)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("setting", ["epochs", "method", "betas", "pats.noise_scale"])
def test_a_value_of_a_billion_parts_is_refused_without_being_printed(setting):
    value = nested_list(9)
    values = {setting: value} if "." not in setting else {"method": "pats", "pats": {"noise_scale": value}}
    with pytest.raises(SettingError) as caught:
        config_from_mapping(values)
    assert str(caught.value).startswith(f"{setting} is [[[[")
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "values",
    [
        {"config": "{file}"},
        {"method": "pats", "pats": "{file}"},
        {"method": "pats", "pats": {"config": "{file}"}},
        {"print_config": "{file}"},
    ],
)
def test_no_mapping_includes_a_file(tmp_path, values):
    file = tmp_path / "other.yml"
    file.write_text("epochs: 3\nnoise_scale: 0.5\n")
    filled = json.loads(json.dumps(values).replace("{file}", str(file)))
    with pytest.raises(SettingError, match=r"unknown setting|legal: a mapping"):
        config_from_mapping(filled)


def test_command_line_wins_over_yaml(tmp_path):
    file = tmp_path / "run.yml"
    file.write_text("epochs: 4\nlearning_rate: 3e-4\nmethod: pats\npats:\n  noise_scale: 1e-3\n")
    config = config_from_arguments(["--config", str(file), "--epochs", "5"])
    assert (config.epochs, config.learning_rate, config.method_settings["pats"].noise_scale) == (5, 3e-4, 1e-3)
    assert config_from_arguments(["--epochs", "5", "--config", str(file)]) == config, "in whatever order they stand"
    config = config_from_arguments(["--config", str(file), "--pats.noise_probability", "1"])
    assert (config.epochs, config.method_settings["pats"]) == (4, PATSRule(noise_scale=1e-3, noise_probability=1.0))
    with pytest.raises(SettingError, match="settings are given for pats, but method is 'sage'"):
        config_from_arguments(["--config", str(file), "--method", "sage"])


def test_print_config_and_help(tmp_path):
    help_text = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--help"], capture_output=True, text=True, check=True
    ).stdout
    for flag in ("--learning_rate", "--init_checkpoint", "--pats.noise_scale", "--print_config", "Exit status"):
        assert flag in help_text
    printed = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--seed", "5", "--print_config"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "seed: 5" in printed
    file = tmp_path / "printed.yml"
    file.write_text(printed)
    assert config_from_arguments(["--config", str(file)]) == RunConfig(task_def=GLUE_TASK_DEF, seed=5)


def test_what_print_config_prints_is_the_run(tmp_path, capsys):
    arguments = ["--method", "noisytune+smart", "--smart.teacher_betas", "[0.5,0.6]", "--betas", "[0.8,0.9]"]
    with pytest.raises(SystemExit) as ended:
        config_from_arguments([*arguments, "--print_config"])
    assert ended.value.code == 0
    file = tmp_path / "printed.yml"
    file.write_text(capsys.readouterr().out)
    assert config_from_arguments(["--config", str(file)]) == config_from_arguments(arguments)


def test_as_dict_is_plain_json(tmp_path):
    values = RunConfig(method="pats", cache_dir=tmp_path).as_dict()
    assert json.loads(json.dumps(values))["method_settings"]["pats"]["noise_scale"] == 5e-3
