"""One run from its configuration to its result: open, lock, resume, train, record."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial

import torch

from data_utils.errors import SettingError
from module.resolution import LostNoise
from mt_dnn.allocator import keep_memory_between_steps
from mt_dnn.assembly import pick_device
from mt_dnn.config import RunConfig, run_dir, run_id
from mt_dnn.data import Datasets, open_datasets
from mt_dnn.data_parallel import ONE_PROCESS, Ranks
from mt_dnn.encoder.source import resolve_encoder
from mt_dnn.identity import KEY, Identity, check_same, finished_result, identity_of
from mt_dnn.interrupt import Interrupted, RankLost, StopRequest
from mt_dnn.precision import Precision, resolve_precision
from mt_dnn.provenance import provenance
from mt_dnn.requirements import check_requirements
from mt_dnn.results import RunDirectory, RunLocked, RunResult, Status
from mt_dnn.trainer import Progress, PruneRule, Trainer

log = logging.getLogger(__name__)


def run(
    config: RunConfig,
    on_progress: Callable[[Progress], None] | None = None,
    prune: PruneRule | None = None,
    ranks: Ranks = ONE_PROCESS,
) -> RunResult:
    """Compute one run, go on with it where it broke off, or return its result if it is done.

    Args:
        config: The run.
        on_progress: Called after every step.
        prune: Asked after every epoch but the last whether to give the run up; the result is then ``pruned``. Without
            it a pruned run goes on, from its checkpoint or, where ``save`` is ``none``, from the start.
        ranks: From :func:`mt_dnn.data_parallel.join`, where several processes compute the run together.

    Returns:
        The result, as in ``result.json``. An unexpected error gives status ``failed``; the next call tries again.

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
        ranks.on_first(partial(_tidy, directory, finished.done))
        return finished
    keep_memory_between_steps()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    # Device, precision, data and encoder come before the folder is made: a wrong one leaves nothing behind.
    if ranks.device is not None:
        config = replace(config, device=ranks.device)
    device = pick_device(config.device)
    if device.type == "cuda" and device.index is not None:
        # Pinned memory belongs to the current device: without this every process would hold memory of the first GPU.
        torch.cuda.set_device(device)
    precision = resolve_precision(config.precision, device)
    check_requirements(config, on_cpu=device.type == "cpu")
    data, source = ranks.first_before_others(lambda: (open_datasets(config), resolve_encoder(config.init_checkpoint)))
    with ExitStack() as held, StopRequest(patient=ranks.size > 1) as stop:
        ranks.on_first(lambda: held.enter_context(directory.lock()))
        finished = ranks.on_first(lambda: finished_result(config, prune is not None))
        if finished is not None:
            return finished
        identity = _identity(config, data)
        ranks.check_same("run_id", run_id(config))
        ranks.check_same("seed", config.seed)
        ranks.check_same("content of data and encoder", identity.digest)
        given_up = ranks.on_first(lambda: _open(directory, identity))
        try:
            # Before run.json is written: what the method refuses leaves none behind either.
            trainer = Trainer(config, data, source, directory, stop, on_progress, prune, ranks)

            def begin() -> None:
                if given_up is not None and given_up.status is Status.PRUNED:
                    directory.reopen()
                elif given_up is not None:
                    directory.clear()
                directory.sweep(done=False)
                directory.start(_description(config, identity, precision, ranks))

            ranks.on_first(begin)
            return _fit(trainer, directory, ranks)
        except OSError as error:
            raise SettingError(
                f"output_dir: cannot write {directory.path} ({error.strerror or error}); free space or make it "
                f"writable and start the same command again, the last checkpoint is intact"
            ) from error


def _tidy(directory: RunDirectory, done: bool) -> None:
    """Remove what a kill between the result and the end left; leave it where another process is at work."""
    if directory.leftovers(done):
        with suppress(RunLocked, SettingError, OSError), directory.lock():
            directory.sweep(done)


def _identity(config: RunConfig, data: Datasets) -> Identity:
    """What the run is made of, the data as they were tokenised.

    Raises:
        SettingError: a file was written anew between the two.
    """
    identity = identity_of(config)
    for name, digest in identity.data.items():
        if data.sources[name] != digest:
            raise SettingError(f"data_dir: {name} was changed while the run started; start the same command again")
    return identity


def _open(directory: RunDirectory, identity: Identity) -> RunResult | None:
    """The result of an earlier attempt that failed or was pruned.

    Raises:
        SettingError: what there is to go on from was made of something else.
    """
    if directory.checkpoints.is_dir() and any(directory.checkpoints.iterdir()):
        check_same(directory, identity)
    return directory.read_result()


def _fit(trainer: Trainer, directory: RunDirectory, ranks: Ranks) -> RunResult:
    try:
        return trainer.fit()
    except (SettingError, OSError, Interrupted, RankLost):
        raise  # the user's to mend, or to go on with
    except LostNoise as error:
        raise SettingError(str(error)) from None
    except Exception as error:
        log.exception("%s failed", directory.path)
        result = trainer.result(Status.FAILED, " ".join(f"{type(error).__name__}: {error}".split()))
        with suppress(OSError):
            if ranks.first:
                directory.write_result(result)
        return result


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
