"""The run id: a hash of the settings that decide a run's numbers, and the folder that it names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from mt_dnn.config import RunConfig

# Where a run is computed, stored and watched changes none of its numbers, so it is no part of its identity.
NOT_IDENTITY = frozenset(
    {
        "seed", "recipe", "task_def", "data_dir", "cache_dir", "output_dir", "device", "threads", "report_to",
        "log_per_updates", "checkpoint_seconds", "save", "tensorboard", "eval_batch_tokens",
        "compile", "cuda_graphs", "sensitivity_beta", "deterministic",
    }
)  # fmt: skip
# Settings that came later: left at these values they change nothing, and runs made before them keep their identity.
LATER_SETTINGS: dict[str, object] = {
    "holdout": None, "tf32": False, "train_balanced": False, "label_smoothing": 0.0, "class_weights": None,
    "patience": None, "gradient_checkpointing": False, "mix_opt": 0, "ratio": 0.0, "mix_temperature": None,
    "task_weights": None, "answer_num_turn": 5, "answer_mem_drop_p": 0.1,
    "mkd_opt": 0, "kd_loss": None, "kd_weight": 1.0, "kd_temperature": 1.0,
}  # fmt: skip

LATER_METHOD_SETTINGS: dict[str, object] = {
    "smart.divergence": "paper", "smart.ascent_divergence": "paper", "smart.proximal_divergence": "paper",
    "smart.noise_place": "words", "smart.teacher_dropout": False, "smart.weight_step": 0.0,
    "pac_tuning.k_curve": "straight",
}  # fmt: skip
"""The same of the methods' own settings."""


def run_id(config: RunConfig) -> str:
    """Hash of the settings that decide a run's numbers: no seed, paths, devices, nor switches to watch or to keep.

    Returns:
        12 hexadecimal digits; the order in which settings were given does not matter.
    """
    identity = {
        key: value
        for key, value in config.as_dict().items()
        if key not in NOT_IDENTITY and not _is_left(LATER_SETTINGS, key, value)
    }
    identity["method_settings"] = {
        method: {k: v for k, v in own.items() if not _is_left(LATER_METHOD_SETTINGS, f"{method}.{k}", v)}
        for method, own in identity["method_settings"].items()
    }
    identity["init_checkpoint"] = config.encoder
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _is_left(later: Mapping[str, object], key: str, value: object) -> bool:
    """Whether a setting came later and is as if it were not there."""
    return key in later and value == later[key]


def run_dir(config: RunConfig) -> Path:
    """Folder of the run: ``<output_dir>/<task>/<encoder>/<method>/<run id>/seed=<seed>``."""
    return config.output_dir / config.task / config.encoder / config.method / run_id(config) / f"seed={config.seed}"
