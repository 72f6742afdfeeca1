"""Refusals of arguments that Trainer takes and no method is right under: in one line, with the way out."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from ..composition import Composition
from .replayed import check_checkpointing, checkpoints_activations

_ARGUMENTS = {
    "optimizer_cls_and_kwargs": "the method builds the optimizer: use optimizer='adamw' or 'adamax'",
    "compute_loss_func": "the method computes the task's loss itself: leave it out",
}

OWNED = ("compute_loss", "create_optimizer")
"""Methods of Trainer that are the method's here."""


def refuse(
    arguments: Mapping[str, Any],
    args: Any = None,
    model: nn.Module | None = None,
    own: Collection[str] = (),
    method: Composition | None = None,
) -> None:
    """Look through what a MethodTrainer was given.

    Args:
        arguments: Keyword arguments of ``Trainer``.
        args: Its ``TrainingArguments``; None: only ``arguments`` are looked at.
        model: To be trained.
        own: Those of ``OWNED`` that a subclass of MethodTrainer has of its own.
        method: Of the run.

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
    whole = ", ".join(part.name for part in method.methods if not part.divisible) if method else ""
    lost = method is not None and not method.recomputable
    again = bool(_asked(args, "") or checkpoints_activations(model))
    found = {
        f"the environment has {args.world_size} processes, but {whole} does not say that it is right on a part of a "
        "step's examples (divisible): run it without torchrun": bool(args.world_size > 1 and whole),
        "accelerator_config has even_batches=False, which deals the processes different numbers of batches: they would "
        "wait for each other: leave it out": args.world_size > 1 and not args.accelerator_config.even_batches,
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
        "torch_compile and activation checkpointing are both on, but a compiled pass cannot repeat the methods' draws: "
        "leave one out": bool(args.torch_compile and again),
        "activation checkpointing is on, but the method has a pass at weights that are gone when layers compute "
        "themselves again (such as smart.weight_step): leave one of the two out": again and lost,
        "the subclass computes a loss of its own (compute_loss), but the method computes the task's itself: leave it "
        "out": "compute_loss" in own,
        "the subclass builds an optimizer of its own (create_optimizer), but the method builds it: leave it out and "
        "use optimizer='adamw' or 'adamax'": "create_optimizer" in own,
        "the weights are quantised: methods cannot change them: load the model in float32":
            getattr(model, "is_quantized", False),
    }  # fmt: skip
    for why, is_so in found.items():
        if is_so:
            raise ValueError(why)

    check_checkpointing(_asked(args, "_kwargs") or {})


def refuse_unknown(arguments: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> None:
    """Refuse a keyword argument that is neither Trainer's nor settings of a method of the run.

    Args:
        arguments: Keyword arguments for Trainer.
        parameters: That it takes.

    Raises:
        ValueError: If there is one.
    """
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in arguments.keys() - parameters.keys():
        raise ValueError(
            f"{name} is no argument of Trainer, and no method of this run: settings of a method are given as "
            'pats={"noise_scale": 5e-3} or {"pats.noise_scale": 5e-3}'
        )


def _asked(args: Any, what: str) -> Any:
    """The setting of activation checkpointing, which was called gradient checkpointing before."""
    names = (f"activation_checkpointing{what}", f"gradient_checkpointing{what}")
    return next((found for name in names if (found := getattr(args, name, None))), None)
