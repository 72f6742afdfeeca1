"""Refusals of arguments that Trainer takes and no method is right under: in one line, with the way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

_ARGUMENTS = {
    "optimizer_cls_and_kwargs": "the method builds the optimizer: use optimizer='adamw' or 'adamax'",
    "compute_loss_func": "the method computes the task's loss itself: leave it out",
    "model_init": "the method changes one model: give model=, and make a MethodTrainer for each trial",
}


def refuse(
    arguments: Mapping[str, Any], args: Any = None, model: nn.Module | None = None, own_loss: bool = False
) -> None:
    """Look through what a MethodTrainer was given.

    Args:
        arguments: Keyword arguments of ``Trainer``.
        args: Its ``TrainingArguments``; None: only ``arguments`` are looked at.
        model: To be trained.
        own_loss: Whether a subclass has a ``compute_loss`` of its own.

    Raises:
        ValueError: If training could not be right.
    """
    for name, why in _ARGUMENTS.items():
        if arguments.get(name) is not None:
            raise ValueError(f"{name} is given, but {why}")
    if any(part is not None for part in arguments.get("optimizers") or ()):
        raise ValueError(f"optimizers is given, but {_ARGUMENTS['optimizer_cls_and_kwargs']}, and lr_scheduler_type")
    if args is None:
        return
    found = {
        "the environment has several processes: methods here need one: run it without torchrun": args.world_size > 1,
        "several GPUs are visible, which Trainer would divide each batch among: set CUDA_VISIBLE_DEVICES to one":
            args.n_gpu > 1,
        "args.deepspeed and args.fsdp divide the model: methods need it whole: leave them out":
            bool(args.deepspeed or args.fsdp),
        "args.auto_find_batch_size starts again on a model that the method has changed: give "
        "per_device_train_batch_size": args.auto_find_batch_size,
        "args.neftune_noise_alpha is Trainer's own NEFTune: use the method neftune, with neftune.alpha":
            args.neftune_noise_alpha is not None,
        f"args.optim is {args.optim}, but the method builds the optimizer: leave it out and use optimizer='adamw' or "
        "'adamax'": str(getattr(args.optim, "value", args.optim)) not in ("adamw_torch", "adamw_torch_fused"),
        "gradient checkpointing makes each pass twice, with other noise and dropout the second time: leave it out":
            _checkpoints_activations(args, model),
        "the subclass computes a loss of its own (compute_loss), but the method computes the task's itself: leave it "
        "out": own_loss,
        "the weights are quantised: methods cannot change them: load the model in float32":
            getattr(model, "is_quantized", False),
    }  # fmt: skip
    for why, is_so in found.items():
        if is_so:
            raise ValueError(why)


def _checkpoints_activations(args: Any, model: Any) -> bool:
    asked = getattr(args, "activation_checkpointing", False) or getattr(args, "gradient_checkpointing", False)
    return bool(asked or getattr(model, "is_gradient_checkpointing", False))
