"""The requirements of a run, checked before anything slow is imported or loaded."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec

from data_utils.errors import SettingError
from module.method import OptimizerSettings
from module.methods import build_method
from module.seeds import stream_seed
from mt_dnn.config import RunConfig


def check_requirements(config: RunConfig, device_type: str) -> None:
    """Refuse a run that this machine or its method cannot do.

    Args:
        config: The run.
        device_type: Where it computes: ``cpu`` or ``cuda``.

    Raises:
        SettingError: a package of the method or a compiler is missing, the method has no form on the optimizer or the
            device, or the device none of the precision.
    """
    try:
        method = build_method(config.method, config.method_settings)
        method.check_run(optimizer_settings(config))
        method.check_device(device_type)
    except ValueError as error:
        raise SettingError(str(error)) from None
    if config.gradient_checkpointing and not method.recomputable:
        raise SettingError(
            f"gradient_checkpointing is true, but {config.method} has a pass at weights that are gone when layers "
            "compute themselves again (such as smart.weight_step); leave one of the two out"
        )
    for name in config.trackers:
        if find_spec(name) is None:
            raise SettingError(
                f"report_to names {name}, but the package {name} is not installed: pip install {name}, or leave it out"
            )
    if config.precision == "fp16":
        check_fp16(device_type)
    on_cpu = device_type == "cpu"
    if config.tf32 and on_cpu:
        raise SettingError("tf32 is true, but the run is on the CPU, which has no TF32; leave tf32 out")
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # torch.compile's own choice
    if config.compile and on_cpu and shutil.which(compiler) is None:
        raise SettingError(
            f"compile is true, but torch.compile needs a C++ compiler on the CPU and {compiler} is not found; "
            f"install one, name it in CXX, or leave compile out"
        )


def check_fp16(device_type: str) -> None:
    """Refuse fp16 on other devices than CUDA's.

    Raises:
        SettingError: names the device and the other precisions.
    """
    if device_type != "cuda":
        raise SettingError(f"precision: fp16 needs a CUDA device, this run is on {device_type}; use bf16, fp32 or auto")


def optimizer_settings(config: RunConfig) -> OptimizerSettings:
    """The settings of a run's optimizer."""
    return OptimizerSettings(
        optimizer=config.optimizer,
        learning_rate=config.learning_rate,
        betas=config.betas,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        adamax_rule=config.adamax_rule,
        noise_seed=stream_seed(config.seed, "noise"),
    )
