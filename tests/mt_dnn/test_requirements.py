import sys

import pytest
import torch

from data_utils.errors import SettingError
from experiments.study import study
from experiments.study.__main__ import main as study_main
from experiments.study.launch import slots
from mt_dnn import run as run_module
from mt_dnn.config import TRACKERS, RunConfig
from mt_dnn.requirements import check_requirements
from mt_dnn.run import run
from mt_dnn.run_id import run_dir


def test_a_method_without_its_package_is_refused_before_data_and_encoder(tiny_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr(run_module, "open_all", lambda *_: pytest.fail("data were opened"))
    config = tiny_run(method="lora")
    with pytest.raises(SettingError, match=r"needs the package peft.*requirements-lora\.txt"):
        run(config)
    assert not run_dir(config).exists()


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_without_its_package_is_refused_before_data_and_encoder(tiny_run, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(run_module, "open_all", lambda *_: pytest.fail("data were opened"))
    config = tiny_run(report_to=name, tensorboard=True)
    told = f"report_to names {name}, but the package {name} is not installed: pip install {name}, or leave it out"
    with pytest.raises(SettingError, match=f"^{told}$"):
        run(config)
    assert not run_dir(config).exists()


def test_a_method_that_has_no_form_on_the_optimizer_is_refused_there_too(tiny_run, monkeypatch):
    monkeypatch.setattr(run_module, "open_all", lambda *_: pytest.fail("data were opened"))
    with pytest.raises(SettingError, match="Method sage scales the step inside Adamax and has no form on 'adamw'"):
        run(tiny_run(method="noisytune+sage", optimizer="adamw"))


def test_compile_on_a_cpu_wants_a_compiler(monkeypatch):
    config = RunConfig(compile=True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SettingError, match=r"compile is true.*C\+\+ compiler.*no-such-compiler is not found"):
        check_requirements(config, "cpu")
    check_requirements(config, "cuda")
    check_requirements(RunConfig(), "cpu")
    monkeypatch.setenv("CXX", sys.executable)  # anything that is there
    check_requirements(config, "cpu")


def test_a_method_without_kernels_on_the_device_is_refused_before_data_and_encoder(tiny_run, monkeypatch):
    monkeypatch.setattr(run_module, "open_all", lambda *_: pytest.fail("data were opened"))
    monkeypatch.setattr(run_module, "pick_device", lambda _: torch.device("cuda"))
    config = tiny_run(method="noisytune+matched_noise")
    with pytest.raises(SettingError, match=r"matched_noise has kernels for the CPU alone and the run is on cuda: use"):
        run(config)
    assert not run_dir(config).exists()
    check_requirements(config, "cpu")
    for masked in ("child_tuning+pats", "child_tuning+sage"):
        check_requirements(tiny_run(method=masked), "cuda")


def test_a_study_on_gpus_says_so_too(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(slots, "_cuda_devices", lambda: 1)
    monkeypatch.setattr(study, "_train_run", lambda: pytest.fail("torch was imported"))
    for split in ("train", "dev"):
        (tmp_path / f"rte_{split}.tsv").write_text("1\t1\tsome\twords\n" * 40)
    place = ["--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "r"), "--results_dir", str(tmp_path / "s")]
    common = ["--encoder", "all-MiniLM-L6-v2", "--tasks", "rte", "--seeds", "1", *place]
    assert study_main([*common, "--methods", "matched_noise"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: Method matched_noise has kernels for the CPU alone and the run is on cuda: use --d")
    assert error.count("\n") == 1


def test_tf32_is_for_cuda():
    with pytest.raises(SettingError, match=r"tf32 is true, but the run is on the CPU, .*; leave tf32 out"):
        check_requirements(RunConfig(tf32=True), "cpu")
    check_requirements(RunConfig(tf32=True), "cuda")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "lora"], "error: Method lora needs the package peft"),
        (["--methods", "vanilla", "--devices", "99"], "error: --devices 99: no device '99'"),
        (["--methods", "sage", "--set", "optimizer=adamw"], "error: Method sage scales the step inside Adamax"),
        (
            ["--methods", "vanilla", "--set", "precision=fp16"],
            "error: precision: fp16 needs a CUDA device, this run is on",
        ),
    ],
)
def test_a_study_says_so_before_anything_slow(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr(study, "_train_run", lambda: pytest.fail("torch was imported"))
    for split in ("train", "dev"):
        (tmp_path / f"rte_{split}.tsv").write_text("1\t1\tsome\twords\n" * 40)
    place = ["--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "r"), "--results_dir", str(tmp_path / "s")]
    common = ["--encoder", "all-MiniLM-L6-v2", "--tasks", "rte", "--seeds", "1", "--devices", "cpu", *place]
    assert study_main([*common, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert not (tmp_path / "r").exists()
