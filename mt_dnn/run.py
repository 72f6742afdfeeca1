"""One run from its configuration to its result: open, lock, resume, train, record."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

import torch

from data_utils.errors import SettingError
from module.resolution import LostNoise
from mt_dnn.allocator import keep_memory_between_steps
from mt_dnn.assembly import pick_device
from mt_dnn.backends import cuda_backends
from mt_dnn.config import RunConfig
from mt_dnn.data import Datasets, open_all
from mt_dnn.data_parallel import ONE_PROCESS, Ranks
from mt_dnn.identity import KEY, Identity, check_same, finished_result, identity_of
from mt_dnn.interrupt import Interrupted, RankLost, StopRequest
from mt_dnn.leftovers import clear, sweep_unless_locked
from mt_dnn.precision import Precision, resolve_precision
from mt_dnn.progress import Progress
from mt_dnn.provenance import provenance
from mt_dnn.requirements import check_requirements
from mt_dnn.results import RunResult, Status
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_id import run_dir, run_id
from mt_dnn.run_reference import BEGUN_FROM
from mt_dnn.starting_point import RunSource, resolve_start
from mt_dnn.trainer import PruneRule, Trainer

log = logging.getLogger(__name__)


def run(
    config: RunConfig,
    on_progress: Callable[[Progress], None] | None = None,
    prune: PruneRule | None = None,
    ranks: Ranks = ONE_PROCESS,
) -> RunResult:
    """Compute one run and return its result; arguments and errors are those of :func:`open_run`."""
    with open_run(config, on_progress, prune, ranks) as opened:
        opened.fit()
    return opened.result


@dataclass(frozen=True, slots=True)
class DoneRun:
    """A run that is done, in the place of its trainer."""

    result: RunResult

    def fit(self) -> None:
        """Do nothing."""


@contextmanager
def open_run(
    config: RunConfig,
    on_progress: Callable[[Progress], None] | None = None,
    prune: PruneRule | None = None,
    ranks: Ranks = ONE_PROCESS,
) -> Iterator[Trainer | DoneRun]:
    """Open and lock one run: to compute it, to resume it, or to read its result if it is done.

    Args:
        config: The run.
        on_progress: Called after every step.
        prune: Asked after every epoch but the last whether to give the run up; the result is then ``pruned``. Without
            it a pruned run goes on, from its checkpoint or, where ``save`` is ``none``, from the start.
        ranks: From :func:`mt_dnn.data_parallel.join`, where several processes compute the run together.

    Yields:
        The trainer, or the run that is done; call its ``fit`` once, inside. Its ``result`` is the run's afterwards: an
        unexpected error ends here and gives status ``failed``; the next start tries again.

    Raises:
        SettingError: a setting, file or checkpoint is wrong, a file cannot be written, or data, task definition or
            encoder are not those that the run was done or begun with; no result is written.
        RunLocked: another process is computing this run.
        Interrupted: a signal asked to stop; a checkpoint was written.
        RankLost: another process of the run ended; no result is written.
    """
    directory = RunDirectory(run_dir(config))
    finished = ranks.on_first(lambda: finished_result(config, prune is not None))
    if finished is not None:
        ranks.on_first(partial(sweep_unless_locked, directory, finished.done))
        yield DoneRun(finished)
        return
    # Device, precision, data and encoder come before the folder is made: a wrong one leaves nothing behind.
    if ranks.device is not None:
        config = replace(config, device=ranks.device)
    device, precision = _claim_machine(config)
    data, source = ranks.first_before_others(lambda: (open_all(config), resolve_start(config)))
    identity = _identity(config, data)
    with ExitStack() as held, StopRequest(patient=ranks.size > 1) as stop:
        ranks.on_first(lambda: held.enter_context(directory.lock()))
        finished = ranks.on_first(lambda: finished_result(config, prune is not None))
        if finished is not None:
            yield DoneRun(finished)
            return
        held.enter_context(cuda_backends(device, tf32=config.tf32, deterministic=config.deterministic))
        ranks.check_same("run_id", run_id(config))
        ranks.check_same("seed", config.seed)
        ranks.check_same("content of data and encoder", identity.digest)
        ranks.on_first(lambda: _check_begun(directory, identity))
        try:
            # Before run.json is written: what the method refuses leaves none behind either.
            trainer = Trainer(config, data, source, directory, device, precision, stop, on_progress, prune, ranks)
            ranks.on_first(lambda: clear(directory))
            description = {**_description(config, identity, precision, ranks), **trainer.parts.model.describe()}
            if isinstance(source, RunSource):
                description[BEGUN_FROM] = source.start.describe(config.encoder)
            ranks.on_first(lambda: directory.start(description))
            with closing(trainer.tracker), _failure_recorded(trainer):
                yield trainer
        except OSError as error:
            raise SettingError(
                f"output_dir: cannot write {directory.path} ({error.strerror or error}); free space or make it "
                f"writable and start the same command again, the last checkpoint is intact"
            ) from error


def _claim_machine(config: RunConfig) -> tuple[torch.device, Precision]:
    """Set this process up for the run; returns its device and number format."""
    keep_memory_between_steps()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    if device.type == "cuda" and device.index is not None:
        # Pinned memory belongs to the current device: without this every process would hold memory of the first GPU.
        torch.cuda.set_device(device)
    precision = resolve_precision(config.precision, device)
    check_requirements(config, device.type)
    return device, precision


def _identity(config: RunConfig, data: Sequence[Datasets]) -> Identity:
    """The identity of the run, with the data as they were tokenised.

    Raises:
        SettingError: a file was written anew between the two.
    """
    identity = identity_of(config)
    sources = {name: digest for each in data for name, digest in each.sources.items()}
    for name, digest in identity.data.items():
        if sources[name] != digest:
            raise SettingError(f"data_dir: {name} was changed while the run started; start the same command again")
    return identity


def _check_begun(directory: RunDirectory, identity: Identity) -> None:
    """Refuse to resume from checkpoints of another identity."""
    if directory.checkpoints.is_dir() and any(directory.checkpoints.iterdir()):
        check_same(directory, identity)


@contextmanager
def _failure_recorded(trainer: Trainer) -> Iterator[None]:
    """Record an unexpected error as the result; errors that the user can mend or resume from are raised."""
    try:
        yield
    except (SettingError, OSError, Interrupted, RankLost):
        raise
    except LostNoise as error:
        raise SettingError(str(error)) from None
    except Exception as error:
        log.exception("%s failed", trainer.directory.path)
        trainer.result = trainer.outcome(Status.FAILED, " ".join(f"{type(error).__name__}: {error}".split()))
        with suppress(OSError):
            if trainer.ranks.first:
                trainer.directory.write_result(trainer.result)


def _description(config: RunConfig, identity: Identity, precision: Precision, ranks: Ranks) -> dict[str, object]:
    return {
        "run_id": run_id(config),
        "task": config.task,
        "encoder": config.encoder,
        "method": config.method,
        "seed": config.seed,
        "recipe": config.recipe,
        "config": config.as_dict(),
        KEY: identity.as_dict(),
        "resolved_precision": precision.name,
        "processes": ranks.size,
        **provenance(),
    }
