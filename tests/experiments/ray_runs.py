"""What workers on Ray compute in tests; they import this module, so it needs no slow library."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mt_dnn.config import RunConfig
from mt_dnn.results import RunResult
from tests.experiments.fake_runs import Progress, fake_run

GATE = 8  # of 20 steps


def spy_run(config: RunConfig, on_progress: Callable[[Progress], None] | None = None) -> RunResult:
    """A fake run that notes what its process is allowed to see and use."""
    seen = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
    with (config.output_dir / "environment.txt").open("a") as file:
        file.write(f"{seen['CUDA_VISIBLE_DEVICES']} {seen['OMP_NUM_THREADS']} {Path.cwd()}\n")
    return fake_run(config, on_progress)


def gated_run(config: RunConfig, on_progress: Callable[[Any], None]) -> RunResult:
    """A real run that waits in its middle until the test lets it go on."""
    from mt_dnn.run import run

    def report(progress: Any) -> None:
        on_progress(progress)
        if progress.step == GATE:
            (config.output_dir / f"waiting-{os.getpid()}").touch()
        while progress.step == GATE and not (config.output_dir / "gate").exists():
            time.sleep(0.02)

    return run(config, on_progress=report)
