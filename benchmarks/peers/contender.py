"""What takes part in a benchmark of whole training, by name."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.glue_rows import evenly_spaced
from experiments.glue.recipe import find_recipes, run_configs
from mt_dnn.config import RunConfig
from mt_dnn.data import Datasets, open_datasets

Train = Callable[[], dict[str, float]]
"""Trains, evaluates after every epoch, and returns the last epoch's dev metrics in percent. Called once."""

RUN_GLUE_WIDTH = 128


@dataclass(frozen=True, slots=True)
class Contender:
    """One side of a comparison."""

    name: str
    module: str
    """Module under ``benchmarks.peers`` whose ``prepare`` builds it; imported only when it is built, since what it
    imports counts into a process's memory."""
    about: str
    method: str = "vanilla"
    """Fine-tuning method of this project, and whose recipe gives the run's numbers."""
    arguments: tuple[tuple[str, Any], ...] = ()

    @property
    def ours(self) -> bool:
        """Whether it is this project's loop."""
        return self.module == "ours"

    def prepare(self, config: RunConfig, data: Datasets, scratch: Path) -> Train:
        """Load the encoder and build everything up to the first step.

        Args:
            config: from ``open_run``.
            data: from ``open_run``.
            scratch: an empty folder of its own.
        """
        build: Callable[..., Train] = import_module(f"benchmarks.peers.{self.module}").prepare
        return build(config, data, scratch, **dict(self.arguments))


CONTENDERS = {
    contender.name: contender
    for contender in (
        *(Contender(name, "ours", f"this project, {name}", name) for name in ("vanilla", "noisytune", "sage", "pats")),
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
    config = replace(config, epochs=1, cache_dir=cache_dir, **changes)
    data = open_datasets(config)
    n = min(rows, len(data.train))
    dev = {
        name: evenly_spaced(cache, max(1, round(len(cache) * n / len(data.train)))) for name, cache in data.dev.items()
    }
    return replace(config, train_size=n), replace(data, dev=dev)
