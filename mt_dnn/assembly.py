"""The parts of a run: encoder, network, method and optimizer, each from its own random stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from data_utils.errors import SettingError
from data_utils.task_def import TaskDef
from module.composition import Composition
from module.context import DropoutRates, MethodContext
from module.driver import prepare
from module.methods import build_method
from module.param_index import ParamIndex
from module.random_streams import RandomStreams
from module.seeds import stream_seed
from mt_dnn.config import RunConfig, check_device
from mt_dnn.cuda_build import check_kernels
from mt_dnn.data_parallel import ONE_PROCESS, Ranks
from mt_dnn.encoder.model import load_encoder
from mt_dnn.encoder.recompute import recompute
from mt_dnn.encoder.source import EncoderSource
from mt_dnn.network import Network
from mt_dnn.pass_graphs import can_record
from mt_dnn.precision import Precision
from mt_dnn.requirements import optimizer_settings
from mt_dnn.san import SanSettings
from mt_dnn.starting_point import RunSource
from mt_dnn.starting_weights import begin_with
from mt_dnn.training_model import TaskLoss, TrainingModel

_DEFAULT_HEAD_DROPOUT = 0.1  # MT-DNN's, where neither the command line nor the task definition says


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a run that an optimizer step works on."""

    network: Network
    model: TrainingModel
    method: Composition
    optimizer: torch.optim.Optimizer
    context: MethodContext
    streams: RandomStreams
    graphs: bool = False
    """Whether passes over micro-batches are recorded as CUDA graphs."""


def assemble(
    config: RunConfig,
    task_defs: Sequence[TaskDef],
    source: EncoderSource,
    device: torch.device,
    precision: Precision,
    total_steps: int,
    ranks: Ranks = ONE_PROCESS,
) -> Parts:
    """Build everything that a step needs, in the order of the method's hooks.

    Args:
        config: The run.
        task_defs: Of its tasks, the main one first.
        source: Of the encoder.
        device: Where it is trained.
        precision: Of the passes.
        total_steps: Of the whole run.
        ranks: Processes that divide every step.

    Raises:
        SettingError: the encoder cannot be loaded, or the method does not fit it or cannot be divided.
    """
    method = build_method(config.method, config.method_settings)
    if ranks.size > 1 and not method.divisible:
        whole = ", ".join(part.name for part in method.methods if not part.divisible)
        raise SettingError(
            f"method {config.method}: the hook gradients of {whole} does not say that it is right on a part of a "
            f"step's examples (divisible); run it in one process, without torchrun"
        )
    each = [
        method.configure(
            DropoutRates(
                config.bert_dropout_p, config.bert_dropout_p, _head_dropout(config, task_def), config.answer_mem_drop_p
            )
        )
        for task_def in task_defs
    ]
    rates = each[0]
    encoder = load_encoder(
        source,
        hidden_dropout=rates.hidden,
        attention_dropout=rates.attention,
        attention=config.attention,
    )
    network = Network(
        encoder,
        task_defs,
        head_dropout=[of_task.head for of_task in each],
        pooler_activation=config.pooler_actf,
        generator=torch.Generator().manual_seed(stream_seed(config.seed, "init")),
        san=SanSettings(config.answer_num_turn, rates.answer),
    )
    if isinstance(source, RunSource):
        begin_with(source.start, network, config.pooler_actf)
    network.to(device)
    streams = RandomStreams(config.seed, device, rank=ranks.rank)
    network.draw_dropout_from(streams.dropout)
    model = TrainingModel(network, {task_def.name: TaskLoss(task_def) for task_def in task_defs}, precision)
    try:
        context = MethodContext(
            network,
            ParamIndex(network.named_parameters()),
            config.seed,
            streams=streams,
            model=model,
            total_steps=total_steps,
            total_epochs=config.epochs,
        )
        prepare(method, context, optimizer_settings(config))
    except ValueError as error:  # a tree whose roles are not known, a method that the optimizer cannot carry
        raise SettingError(f"method {config.method} on {config.encoder}: {error}") from None
    optimizer = context.optimizer
    if getattr(optimizer, "takes_row_sparse", False) and not method.needs_dense_gradients:
        encoder.use_row_sparse_gradients()
    if config.gradient_checkpointing:
        recompute(encoder.layers, streams)
    if config.compile:
        encoder.model.compile(dynamic=True)  # in place: parameters keep their names
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    # A graph holds the gradients of one task's head.
    one_batch = ranks.size == 1 and config.grad_accumulation_step == 1 and len(task_defs) == 1
    # Layers computed again set random states, which cannot be recorded.
    wanted = config.cuda_graphs and one_batch and not (config.compile or config.gradient_checkpointing)
    # A SAN head works on rectangles as wide as a batch's longest example, which is no part of a recorded size.
    wanted = wanted and not any(task_def.enable_san for task_def in task_defs)
    graphs = wanted and method.plain_pass and can_record() and encoder.attends_without_padding(device)
    return Parts(network, model, method, optimizer, context, streams, graphs)


def _head_dropout(config: RunConfig, task_def: TaskDef) -> float:
    """Dropout before the pooler and the head of a task."""
    return next(p for p in (config.dropout_p, task_def.dropout_p, _DEFAULT_HEAD_DROPOUT) if p is not None)


def pick_device(setting: str) -> torch.device:
    """Return the device of a run.

    Args:
        setting: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:<index>``.

    Raises:
        SettingError: the device is not there, no device is called so, or torch has no kernels for it.
    """
    check_device(setting)
    device = torch.device(setting if setting != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingError(f"device is {setting!r}, but this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type == "cuda":
        check_kernels(device)
    return device
