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

from benchmarks.peers.assignment import Assignment, Train, cut
from benchmarks.peers.peer_model import peer_model
from data_utils.metrics import compute_metrics
from data_utils.task_def import TaskDef


class EpochOrder(Sampler[int]):
    """A sampler that replays the order of the batches; Trainer sets the epoch."""

    def __init__(self, epochs: list[list[list[int]]]) -> None:
        self._orders = [[position for batch in batches for position in batch] for batches in epochs]
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch, from 0."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(self._orders[self._epoch])

    def __len__(self) -> int:
        return len(self._orders[self._epoch])


class ReplayTrainer(TransformersTrainer):  # type: ignore[misc]  # transformers has no types here
    """Trainer with the order of the training rows given; all else is as shipped."""

    order: EpochOrder

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        return self.order


def prepare(assignment: Assignment, scratch: Path, width: int | None = None) -> Train:
    """Build model, rows and Trainer.

    Args:
        assignment: the training.
        scratch: folder that Trainer is given to write to.
        width: tokens that every example is padded to, longer ones are cut; None pads to the longest of a batch.
    """
    trainer = make_trainer(assignment, scratch, width)

    def train() -> dict[str, float]:
        trainer.train()
        last = next(entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry)
        return {str(metric): last[f"eval_{metric}"] for metric in assignment.task_def.metric_meta}

    return train


def make_trainer(assignment: Assignment, scratch: Path, width: int | None = None, **changes: Any) -> ReplayTrainer:
    """Build a Trainer; ``changes`` are ``TrainingArguments`` that differ from those of the benchmark."""
    tokenizer = AutoTokenizer.from_pretrained(assignment.encoder, local_files_only=True)
    train: list[Any] = assignment.train
    dev: list[Any] = assignment.dev
    collator = DataCollatorWithPadding(tokenizer)
    if width is not None:
        train, dev = ([tokenizer.pad(cut(row, width), "max_length", width) for row in rows] for rows in (train, dev))
        collator = default_data_collator
    trainer = ReplayTrainer(
        model=peer_model(assignment),
        args=TrainingArguments(**{**arguments(assignment, scratch), **changes}),
        data_collator=collator,
        train_dataset=train,
        eval_dataset=dev,
        compute_metrics=score(assignment.task_def),
    )
    trainer.order = EpochOrder(assignment.epochs)
    trainer.remove_callback(PrinterCallback)
    return trainer


def arguments(assignment: Assignment, scratch: Path) -> dict[str, Any]:
    """Trainer's arguments: the run's numbers, Trainer's own AdamW and schedule, an evaluation per epoch, no writing."""
    return {
        "output_dir": str(scratch),
        "num_train_epochs": len(assignment.epochs),
        "per_device_train_batch_size": assignment.batch_size,
        "per_device_eval_batch_size": assignment.batch_size,
        "learning_rate": assignment.learning_rate,
        "warmup_steps": assignment.warmup,  # below 1: a share of all steps
        "weight_decay": assignment.weight_decay,
        "max_grad_norm": assignment.clipping,
        "bf16": assignment.precision == "bf16",
        "fp16": assignment.precision == "fp16",
        "use_cpu": assignment.device == "cpu",
        "dataloader_pin_memory": assignment.device != "cpu",
        "seed": assignment.seed,
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
