"""Shares of the time of the demo's runs, once everything is installed.

    bash run_pats.sh                               # makes demo/canonical_data
    python -m benchmarks.demo_profile --out demo_profile.json

One run of each recipe and task after another in one process, as a worker of the demo does them, one thread, under
Python's profiler; the first run warms up and is not counted. Shares are of the runs' time; what the parts leave is the
rest.
"""

import cProfile
import logging
import pstats
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.benchmark_figures import write_json
from benchmarks.benchmark_parser import make_parser
from benchmarks.glue_rows import ROOT
from benchmarks.machine import machine_facts
from data_utils.command_line import status_of
from experiments.study.recipe import load_recipe, run_configs
from mt_dnn.run import run

DEMO = ROOT / "experiments" / "demo"
# Name of a part -> file and function that it is spent in.
PARTS = {
    "forward and backward": ("driver.py", "_accumulate"),
    "optimizer step": ("kernel_optimizer.py", "step"),
    "evaluation": ("score_keeper.py", "scores"),
    "building network, method and optimizer": ("assembly.py", "assemble"),
    "opening data": ("data.py", "open_datasets"),
    "clipping": ("clipping.py", "clip_gradients"),
}
TOTAL = ("run.py", "run")


def seconds_of(stats: pstats.Stats, file: str, function: str) -> float:
    """Time inside a function and all that it calls."""
    entries = stats.stats.items()  # type: ignore[attr-defined]
    return float(sum(entry[3] for (path, _, name), entry in entries if name == function and Path(path).name == file))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser("demo_profile", __doc__)
    parser.add_argument("--data_dir", type=Path, default=ROOT / "demo" / "canonical_data", help="default: %(default)s")
    options = parser.parse_args(argv)
    if not options.data_dir.is_dir():
        parser.error(f"argument --data_dir: {options.data_dir} is not there: bash run_pats.sh makes it")
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as name:
        configs = [
            config
            for path in sorted((DEMO / "recipes").glob("*.yml"))
            for config in run_configs(
                load_recipe(path), [], [1], {"threads": 1}, task_def=DEMO / "demo_task_def.yml",
                data_dir=options.data_dir, output_dir=Path(name),
            )
        ]  # fmt: skip
        run(configs[0])
        profile = cProfile.Profile()
        for config in configs[1:]:
            profile.runcall(run, config)
    stats = pstats.Stats(profile)
    total = seconds_of(stats, *TOTAL)
    shares = {part: seconds_of(stats, *place) / total for part, place in PARTS.items()}
    shares["rest"] = 1.0 - sum(shares.values())
    print(f"{len(configs) - 1} runs, {total:.0f} s")
    for part, share in shares.items():
        print(f"{part:40} {100 * share:5.1f} %")
    write_json(options.out, {"machine": machine_facts(), "runs": len(configs) - 1, "seconds": total, "shares": shares})


if __name__ == "__main__":
    sys.exit(status_of(main))
