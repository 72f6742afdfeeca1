"""One training alone in a process, and the most memory it held; benchmarks.memory starts it.

    python -m benchmarks.peak_memory BUILDER.pickle

It imports nothing by itself: what the training needs comes with the pickle.
"""

import json
import pickle
import resource
import sys
from pathlib import Path

MIB = 2**20


def peak_rss() -> int:
    """Largest resident memory of this process so far, bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        # Not ru_maxrss: on Linux it starts at the size that the parent had when it started this process.
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def measure_here(builder_file: Path) -> dict[str, int]:
    """Build and train.

    Args:
        builder_file: pickle of (threads or None, result of ``Contender.builder``), written by this program.

    Returns:
        ``rss``, and ``cuda`` where a GPU was used: peaks in bytes.
    """
    with builder_file.open("rb") as file:
        threads, builder = pickle.load(file)
    import torch

    if threads:
        torch.set_num_threads(threads)
    builder()()
    peaks = {"rss": peak_rss()}
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        peaks["cuda"] = torch.cuda.max_memory_allocated()
    return peaks


if __name__ == "__main__":
    print(json.dumps(measure_here(Path(sys.argv[1]))))
