import subprocess
import sys
from pathlib import Path

import pytest

from data_utils.errors import SettingError
from mt_dnn.config import RunConfig, run_dir, run_id
from mt_dnn.config_parser import config_from_arguments, config_from_mapping

ROOT = Path(__file__).resolve().parents[2]


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
        ("device", "tpu"),
        ("method", "patz"),
        ("train_datasets", "../cola"),
        ("train_datasets", "cola,mrpc"),
        ("recipe", "a b"),
    ],
)
def test_a_value_out_of_range_is_named(setting, value):
    with pytest.raises(SettingError) as caught:
        RunConfig(**{setting: value})
    message = str(caught.value)
    assert setting in message
    assert "\n" not in message


def test_two_ways_to_subset_exclude_each_other():
    with pytest.raises(SettingError, match=r"train_fraction is 0\.5 and train_size is 10"):
        RunConfig(train_fraction=0.5, train_size=10)


def test_run_id_ignores_seed_paths_and_devices():
    base = RunConfig()
    same = RunConfig(
        seed=7, output_dir=Path("x"), data_dir=Path("y"), cache_dir=Path("z"), device="cpu", threads=1, save="none",
        log_per_updates=1, checkpoint_seconds=0, tensorboard=False, recipe="label", eval_batch_tokens=1,
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
    ],
)
def test_a_wrong_flag_gives_one_line(arguments, named):
    with pytest.raises(SettingError) as caught:
        config_from_arguments(arguments)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [{"lerning_rate": 1.0}, {"method": "pats", "pats": {"lambda": 1}}])
def test_unknown_keys_of_a_mapping_are_refused(values):
    with pytest.raises(SettingError, match=r"lerning_rate|lambda"):
        config_from_mapping(values)


def test_command_line_wins_over_yaml(tmp_path):
    file = tmp_path / "run.yml"
    file.write_text("epochs: 4\nlearning_rate: 3e-4\nmethod: pats\npats:\n  noise_scale: 1e-3\n")
    config = config_from_arguments(["--config", str(file), "--epochs", "5"])
    assert (config.epochs, config.learning_rate, config.method_settings["pats"].noise_scale) == (5, 3e-4, 1e-3)


def test_print_config_and_help():
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


def test_as_dict_is_plain_json(tmp_path):
    import json

    values = RunConfig(method="pats", cache_dir=tmp_path).as_dict()
    assert json.loads(json.dumps(values))["method_settings"]["pats"]["noise_scale"] == 5e-3
