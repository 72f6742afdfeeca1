"""Places that a run's numbers are reported to beside ``metrics.jsonl``: TensorBoard, and trackers that one may install.

A tracker takes its address, account and offline mode from its own variables of the environment (``WANDB_MODE``,
``MLFLOW_TRACKING_URI``, ``TRACKIO_DIR`` and so on).
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mt_dnn.config import RunConfig
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_id import run_id

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_PROJECT = "pats_finetuning"


@dataclass(frozen=True, slots=True)
class ReportedRun:
    """A run that a session begins or goes on with."""

    config: RunConfig
    directory: RunDirectory
    step: int
    """Optimizer steps at the checkpoint, 0 at the start."""
    known: str | None
    """The tracker's name for the run, from an earlier session."""

    @property
    def name(self) -> str:
        """Short name, for people."""
        return f"{self.config.task} {self.config.encoder} {self.config.method} seed={self.config.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by its name on the command line, and the run id."""
        values = self.config.as_dict()
        methods = values.pop("method_settings")
        of_methods = {f"{method}.{key}": value for method, own in methods.items() for key, value in own.items()}
        return {"run_id": run_id(self.config), **values, **of_methods}


class Reporter(Protocol):
    """One place; made of a :class:`ReportedRun`."""

    known: str | None
    """Its name for the run, which the next session of the run gets; None where it needs none."""

    def report(self, values: Mapping[str, float], step: int) -> None:
        """Take finite numbers by name, as of an optimizer step; several calls may have one step."""

    def flush(self) -> None:
        """Write what is buffered; called before a checkpoint."""

    def close(self, done: bool) -> None:
        """End the session; ``done`` tells whether the run is over."""


class TensorBoard:
    """Event files in the folder ``tb`` of the run; records of killed sessions behind the checkpoint are hidden."""

    known: str | None = None

    def __init__(self, run: ReportedRun) -> None:
        self._run = run
        self._writer: SummaryWriter | None = None

    def report(self, values: Mapping[str, float], step: int) -> None:
        """Take numbers: see :class:`Reporter`."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # a slow import, not before there is something to write

            self._writer = SummaryWriter(str(self._run.directory.tensorboard), purge_step=self._run.step + 1)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Flush the file."""
        if self._writer is not None:
            self._writer.flush()

    def close(self, done: bool) -> None:
        """Flush and close the file."""
        if self._writer is not None:
            self._writer.close()


class WandB:
    """Weights & Biases: project ``$WANDB_PROJECT``, the seeds of one run id in a group, files in the run's folder."""

    def __init__(self, run: ReportedRun) -> None:
        import wandb

        self.known: str | None = run.known or secrets.token_hex(8)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT), id=self.known, resume="allow", name=run.name,
            group=run_id(run.config), config=run.settings, dir=str(run.directory.path), reinit="create_new",
        )  # fmt: skip

    def report(self, values: Mapping[str, float], step: int) -> None:
        """Take numbers: see :class:`Reporter`."""
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Do nothing: another process writes."""

    def close(self, done: bool) -> None:
        """End the session; one that is not done counts as failed there."""
        self._run.finish(exit_code=0 if done else 1)


class MLflow:
    """MLflow: experiment ``$MLFLOW_EXPERIMENT_NAME``; a run that is broken off stays a running one."""

    def __init__(self, run: ReportedRun) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._client, self._metric = MlflowClient(), Metric
        self.known = run.known
        if self.known is not None:
            return
        self.known = str(self._client.create_run(self._experiment(), run_name=run.name).info.run_id)
        settings = [Param(key, str(value)[:500]) for key, value in run.settings.items()]
        self._client.log_batch(self.known, params=settings)

    def report(self, values: Mapping[str, float], step: int) -> None:
        """Take numbers: see :class:`Reporter`."""
        now = int(time.time() * 1000)
        self._client.log_batch(self.known, metrics=[self._metric(name, v, now, step) for name, v in values.items()])

    def flush(self) -> None:
        """Do nothing: every report is written at once."""

    def close(self, done: bool) -> None:
        """Mark a run that is done as finished."""
        if done:
            self._client.set_terminated(self.known)

    def _experiment(self) -> str:
        """The id of the experiment; another worker of a study may make it at the same time."""
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)


class Trackio:
    """Trackio: project ``$TRACKIO_PROJECT``, the seeds of one run id in a group."""

    def __init__(self, run: ReportedRun) -> None:
        import trackio

        self.known: str | None = run.known or f"{run.name} {secrets.token_hex(4)}"
        with redirect_stdout(sys.stderr):  # standard output is the command's
            self._run = trackio.init(
                os.environ.get("TRACKIO_PROJECT", _PROJECT), name=self.known, group=run_id(run.config), resume="allow",
                config=run.settings, embed=False,
            )  # fmt: skip

    def report(self, values: Mapping[str, float], step: int) -> None:
        """Take numbers: see :class:`Reporter`."""
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Do nothing: a thread writes."""

    def close(self, done: bool) -> None:
        """Write the rest; waits 30 seconds at most."""
        with redirect_stdout(sys.stderr):
            self._run.finish()


REPORTERS: dict[str, Callable[[ReportedRun], Reporter]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}
"""By the name in ``report_to``, which is the name of the package too."""
