"""transformers.Trainer with AdamW, as it ships, on the rows and in the batch order of this project's own loop.

Padded to the longest of a batch; or beforehand to a fixed width, as transformers' example ``run_glue.py`` does (128).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import Sampler
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers import Trainer as TransformersTrainer

from benchmarks.peers.contender import Train
from benchmarks.peers.peer_model import peer_model
from benchmarks.peers.python_rows import batch_order, dev_rows, training_rows
from data_utils.metrics import compute_metrics
from data_utils.task_def import TaskDef
from mt_dnn.assembly import pick_device
from mt_dnn.config import RunConfig
from mt_dnn.data import Datasets
from mt_dnn.encoder import resolve_encoder
from mt_dnn.precision import resolve_precision


class EpochOrder(Sampler[int]):
    """Replays the order of ``batch_order``; Trainer says which epoch it is."""

    def __init__(self, config: RunConfig, n: int) -> None:
        self._config, self._n, self._epoch = config, n, 0

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch, from 0."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        for batch in batch_order(self._config, self._n, self._epoch):
            yield from batch

    def __len__(self) -> int:
        return self._n


class ReplayTrainer(TransformersTrainer):  # type: ignore[misc]  # transformers has no types here
    """Trainer with the order of the training rows given; all else is as shipped."""

    order: EpochOrder

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        return self.order


def prepare(config: RunConfig, data: Datasets, scratch: Path, width: int | None = None) -> Train:
    """Build model, rows and Trainer.

    Args:
        config: the run.
        data: its rows.
        scratch: folder that Trainer is given to write to.
        width: tokens that every example is padded to, longer ones are cut; None pads to the longest of a batch.
    """
    trainer = make_trainer(config, data, scratch, width)

    def train() -> dict[str, float]:
        trainer.train()
        last = next(entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry)
        return {str(metric): last[f"eval_{metric}"] for metric in data.task_def.metric_meta}

    return train


def make_trainer(
    config: RunConfig, data: Datasets, scratch: Path, width: int | None = None, **changes: Any
) -> ReplayTrainer:
    """Build a Trainer; ``changes`` are ``TrainingArguments`` that differ from those of the benchmark."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_encoder(config.init_checkpoint).folder, local_files_only=True)
    train, dev = training_rows(config, data, width), dev_rows(data, width)
    collator = DataCollatorWithPadding(tokenizer)
    if width is not None:
        train, dev = ([tokenizer.pad(row, "max_length", width) for row in rows] for rows in (train, dev))
        collator = default_data_collator
    trainer = ReplayTrainer(
        model=peer_model(config, data.task_def),
        args=TrainingArguments(**{**arguments(config, scratch), **changes}),
        data_collator=collator,
        train_dataset=train,
        eval_dataset=dev,
        compute_metrics=score(data.task_def),
    )
    trainer.order = EpochOrder(config, len(train))
    trainer.remove_callback(PrinterCallback)
    return trainer


def arguments(config: RunConfig, scratch: Path) -> dict[str, Any]:
    """Trainer's arguments: the run's numbers, Trainer's own AdamW and schedule, an evaluation per epoch, no writing."""
    device = pick_device(config.device)
    precision = resolve_precision(config.precision, device).name
    return {
        "output_dir": str(scratch),
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "warmup_steps": config.warmup,  # below 1: a share of all steps
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.global_grad_clipping,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type == "cuda",
        "seed": config.seed,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
    }


def score(task_def: TaskDef) -> Callable[[Any], dict[str, float]]:
    """The task's metrics as Trainer asks for them."""

    def metrics(prediction: Any) -> dict[str, float]:
        return compute_metrics(task_def, prediction.predictions.astype("float32"), prediction.label_ids)

    return metrics
