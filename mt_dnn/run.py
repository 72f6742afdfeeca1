"""One run from its configuration to its result: open, lock, resume, train, record."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeGuard

import torch

from data_utils.errors import SettingError
from module.resolution import LostNoise
from mt_dnn.allocator import keep_memory_between_steps
from mt_dnn.assembly import pick_device
from mt_dnn.config import RunConfig, run_dir, run_id
from mt_dnn.data import Datasets, open_datasets
from mt_dnn.data_parallel import ONE_PROCESS, Ranks
from mt_dnn.encoder import EncoderSource, resolve_encoder
from mt_dnn.interrupt import Interrupted, RankLost, StopRequest
from mt_dnn.precision import Precision, resolve_precision
from mt_dnn.provenance import provenance
from mt_dnn.requirements import check_requirements
from mt_dnn.results import RunDirectory, RunResult, Status
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
        SettingError: a setting, file or checkpoint is wrong, or a file cannot be written; no result is written.
        RunLocked: another process is computing this run.
        Interrupted: a signal asked to stop; a checkpoint was written.
        RankLost: another process of the run ended; no result is written.
    """
    directory = RunDirectory(run_dir(config))
    finished = ranks.on_first(directory.read_result)
    if _is_over(finished, prune):
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
        finished = ranks.on_first(directory.read_result)
        if _is_over(finished, prune):
            return finished
        try:
            description = _description(config, data, source, precision, ranks)
            for key in ("run_id", "seed", "data_fingerprint", "encoder_fingerprint"):
                ranks.check_same(key, description[key])
            # Before run.json is written: what the method refuses leaves none behind either.
            trainer = Trainer(config, data, source, directory, stop, on_progress, prune, ranks)

            def begin() -> None:
                if finished is not None and finished.status is Status.PRUNED:
                    directory.reopen()
                elif finished is not None:
                    directory.clear()
                directory.start(description)

            ranks.on_first(begin)
            return _fit(trainer, directory, ranks)
        except OSError as error:
            raise SettingError(
                f"output_dir: cannot write {directory.path} ({error.strerror or error}); free space or make it "
                f"writable and start the same command again, the last checkpoint is intact"
            ) from error


def _is_over(result: RunResult | None, prune: PruneRule | None) -> TypeGuard[RunResult]:
    """Whether there is nothing left to do: a run that was pruned is over for those who prune."""
    return result is not None and (result.done or (prune is not None and result.status is Status.PRUNED))


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


def _description(
    config: RunConfig, data: Datasets, source: EncoderSource, precision: Precision, ranks: Ranks
) -> dict[str, object]:
    return {
        "run_id": run_id(config),
        "task": config.task,
        "encoder": config.encoder,
        "method": config.method,
        "seed": config.seed,
        "recipe": config.recipe,
        "config": config.as_dict(),
        "data_fingerprint": data.fingerprint,
        "encoder_fingerprint": encoder_fingerprint(source.folder),
        "resolved_precision": precision.name,
        "processes": ranks.size,
        **provenance(),
    }


def encoder_fingerprint(folder: Path) -> str:
    """Hash of an encoder's ``config.json`` and of its weight files' names, sizes and headers.

    The tensors themselves are not read: a large encoder would cost seconds at every start.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            header = stream.read(int.from_bytes(stream.read(8), "little") % (1 << 24))
        digest.update(json.dumps([file.name, file.stat().st_size]).encode() + header)
    return digest.hexdigest()
