"""Names that users of other programs give to our settings: an unknown one is answered with ours."""

from __future__ import annotations

from collections.abc import Iterable

from data_utils.names import did_you_mean

OTHER_NAMES = {
    # transformers' run_glue.py
    "adam_epsilon": "adam_eps",
    "bf16": "precision",
    "early_stopping_patience": "patience",
    "fp16": "precision",
    "gradient_accumulation_steps": "grad_accumulation_step",
    "label_smoothing_factor": "label_smoothing",
    "logging_steps": "log_per_updates",
    "lr_scheduler": "schedule",
    "lr_scheduler_type": "schedule",
    "max_grad_norm": "global_grad_clipping",
    "max_seq_length": "max_seq_len",
    "max_train_samples": "train_size",
    "model_name_or_path": "init_checkpoint",
    "num_train_epochs": "epochs",
    "optim": "optimizer",
    "per_device_eval_batch_size": "eval_batch_tokens",
    "per_device_train_batch_size": "batch_size",
    "save_strategy": "save",
    "task_name": "train_datasets",
    "torch_compile": "compile",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    # MT-DNN
    "scheduler_type": "schedule",
    "warmup_schedule": "schedule",
}


def meant(name: str, known: Iterable[str], group: str = "") -> str:
    """Return the hint behind an unknown setting: our name for it, or the nearest of those that there are, or nothing.

    Args:
        name: The unknown one.
        known: As of :func:`data_utils.names.did_you_mean`, like ``group``.
        group: Stands before each.
    """
    ours = None if group else OTHER_NAMES.get(name)
    return f" (here it is {ours})" if ours is not None else did_you_mean(name, known, group)
