"""The contenders of a benchmark of whole training, by name."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.glue_rows import evenly_spaced
from benchmarks.peers.assignment import Assignment, Train, python_rows
from data_utils.batching import epoch_batches, training_subset
from experiments.study.recipe import find_recipes, run_configs
from mt_dnn.assembly import pick_device
from mt_dnn.config import RunConfig
from mt_dnn.data import Datasets, open_datasets
from mt_dnn.encoder.source import resolve_encoder
from mt_dnn.precision import resolve_precision

RUN_GLUE_WIDTH = 128


@dataclass(frozen=True, slots=True)
class Contender:
    """One side of a comparison."""

    name: str
    module: str
    """Module under ``benchmarks.peers`` whose ``prepare`` builds it; accelerate is needed only where it is used."""
    about: str
    method: str = "vanilla"
    """Fine-tuning method of this project, and whose recipe gives the run's numbers."""
    arguments: tuple[tuple[str, Any], ...] = ()
    """Of a peer's ``prepare``; of ours, settings of the run."""

    @property
    def ours(self) -> bool:
        """Whether it is this project's loop."""
        return self.module == "ours"

    def builder(self, config: RunConfig, data: Datasets, scratch: Path) -> Callable[[], Train]:
        """A function that loads the encoder and builds everything up to the first step.

        Args:
            config: from ``open_run``.
            data: from ``open_run``.
            scratch: an empty folder of its own.

        Returns:
            A function without arguments; a peer's can be pickled, and imports none of this project's algorithms.
        """
        build = import_module(f"benchmarks.peers.{self.module}").prepare
        if self.ours:
            return partial(build, config, data, scratch)
        return partial(build, assign(config, data), scratch, **dict(self.arguments))


CONTENDERS = {
    contender.name: contender
    for contender in (
        *(Contender(name, "ours", f"this project, {name}", name) for name in ("vanilla", "noisytune", "sage", "pats")),
        Contender(
            "recompute",
            "ours",
            "this project, vanilla with --gradient_checkpointing",
            arguments=(("gradient_checkpointing", True),),
        ),
        Contender("trainer", "trainer_peer", "transformers.Trainer, AdamW, padded to the longest of a batch"),
        Contender(
            "trainer128",
            "trainer_peer",
            f"transformers.Trainer, AdamW, padded to {RUN_GLUE_WIDTH} as run_glue.py does",
            arguments=(("width", RUN_GLUE_WIDTH),),
        ),
        Contender("mtdnn", "mtdnn_peer", "MT-DNN's collater and step, torch's Adamax, padded to the longest"),
    )
}


def open_run(
    contender: Contender, task: str, *, encoder: str, data_dir: Path, cache_dir: Path, rows: int, **changes: Any
) -> tuple[RunConfig, Datasets]:
    """The configuration and the rows of one epoch of a contender.

    Args:
        contender: whose method's recipe gives the settings.
        task: a GLUE task with one dev set.
        encoder: one that has recipes.
        data_dir: folder of canonical files.
        cache_dir: folder of the token caches.
        rows: training rows, chosen by the run's seed; all of them where there are fewer. The dev set is cut to the
            same share of its rows.
        changes: further fields of the configuration, such as ``seed``, ``precision`` and ``device``.

    Raises:
        SettingError: an encoder without recipes, a missing file.
    """
    (recipe,) = find_recipes(encoder, [contender.method])
    (config,) = run_configs(recipe, [task], [0], {}, data_dir=data_dir)
    own = dict(contender.arguments) if contender.ours else {}
    config = replace(config, epochs=1, cache_dir=cache_dir, **own, **changes)
    data = open_datasets(config)
    n = min(rows, len(data.train))
    dev = {
        name: evenly_spaced(cache, max(1, round(len(cache) * n / len(data.train)))) for name, cache in data.dev.items()
    }
    return replace(config, train_size=n), replace(data, dev=dev)


def assign(config: RunConfig, data: Datasets) -> Assignment:
    """Make a run a peer's assignment, with the same rows, batches and numbers.

    Raises:
        ValueError: several dev sets, a sampler that needs lengths, or steps of several batches; no peer does that.
    """
    if config.sampler == "length" or config.grad_accumulation_step != 1 or len(data.dev) != 1:
        raise ValueError("a peer needs sampler reshuffle or mtdnn, grad_accumulation_step 1 and one dev set")
    (dev,) = data.dev.values()
    subset = training_subset(len(data.train), config.seed, config.train_fraction, config.train_size)
    orders = [
        epoch_batches(len(subset), config.batch_size, config.seed, epoch, config.sampler)
        for epoch in range(config.epochs)
    ]
    head_dropout = next(p for p in (config.dropout_p, data.task_def.dropout_p, 0.1) if p is not None)
    device = pick_device(config.device)
    return Assignment(
        task_def=data.task_def,
        encoder=resolve_encoder(config.init_checkpoint).folder,
        pad_id=data.pad_id,
        train=python_rows(data.train, subset.tolist()),
        dev=python_rows(dev, list(range(len(dev)))),
        epochs=[[batch.tolist() for batch in batches] for batches in orders],
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        clipping=config.global_grad_clipping,
        dropout=config.bert_dropout_p,
        head_dropout=head_dropout,
        precision=resolve_precision(config.precision, device).name,
        device=str(device),
        seed=config.seed,
    )
