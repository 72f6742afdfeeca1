"""Speed and memory of prepro_std.py, and the time to open what it made.

    python -m benchmarks.preparation --out preparation.json

Rows are generated to MNLI's lengths, see ``generate``. Three questions:

Speed: a whole preparation (read, check, tokenise, write, flush, hash) against the bare tokenizer on the same text,
already in memory as Python strings: one call of ``encode_batch``, and ``encode_batch_fast`` (no offsets) in the pieces
the preparation uses. All use all cores; they take turns in one process; ratios are medians of the ratios within a turn.
Memory: the peak of a fresh process of prepro_std.py at growing sizes up to MNLI's 392,702 pairs.
Opening: ``open_cache``; ``ensure_cache`` on a verified, untouched cache, which is what a run's start does; and
``ensure_cache`` the first time, which reads the TSV and the cache.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.benchmark_figures import in_brackets, spread, write_json
from benchmarks.benchmark_parser import make_parser
from benchmarks.glue_rows import ROOT
from benchmarks.machine import machine_facts
from data_utils.canonical_tsv import read_canonical
from data_utils.command_line import status_of
from data_utils.task_def import load_task_defs
from data_utils.token_cache import cache_dir_for, ensure_cache, open_cache
from data_utils.tokenizer import TokenizerHandle, load_tokenizer
from experiments.glue.glue_prepro import GLUE_TASK_DEF
from mt_dnn.encoder.source import tokenizer_folder

ENCODER = "all-MiniLM-L6-v2"
SIZES = (10_000, 100_000, 392_702)  # the last is MNLI's
LENGTH = 512
PIECE = 1024
# Words of a sentence, punctuation included: mean, and standard deviation of their logarithm. Premise: the mean that
# Williams et al. (2018) give for MNLI. The other three are ours: RTE's hypotheses and the spreads of RTE's sentences.
PREMISE, HYPOTHESIS = (22.3, 0.65), (11.0, 0.41)
MOST_WORDS = 400
# VmHWM and not ru_maxrss, which a child inherits from the process that started it.
CHILD = """
import re, sys
from pathlib import Path
import prepro_std
status = prepro_std.main(sys.argv[1:])
print("peak", re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
sys.exit(status)
"""


def generate(tsv: Path, rows: int, tokenizer: TokenizerHandle) -> None:
    """Write pairs of log-normal lengths; words of the tokenizer's vocabulary, a few joined to give several pieces."""
    generator = np.random.default_rng(0)
    words = np.array(sorted(word for word in tokenizer.tokenizer.get_vocab() if word.isascii() and word.isalpha()))
    words = words[generator.permutation(len(words))]
    odds = 1 / np.arange(10, 10 + len(words))  # Zipf's law without its first ranks
    odds /= odds.sum()

    def sentences(mean: float, spread: float, count: int) -> list[str]:
        lengths = np.exp(generator.normal(np.log(mean) - spread**2 / 2, spread, count)).round()
        lengths = lengths.clip(2, MOST_WORDS).astype(int)
        chosen = generator.choice(words, lengths.sum(), p=odds)
        joined = generator.random(len(chosen)) < 0.08
        ends = np.cumsum(lengths)
        parts = np.where(joined, np.char.add(chosen, "like"), chosen)
        return [" ".join(parts[end - n : end - 1]) + " ." for end, n in zip(ends, lengths, strict=True)]

    labels = ("contradiction", "neutral", "entailment")
    with tsv.open("w", encoding="utf-8") as file:
        for start in range(0, rows, 20_000):
            count = min(20_000, rows - start)
            pairs = zip(sentences(*PREMISE, count), sentences(*HYPOTHESIS, count), strict=True)
            file.writelines(f"{start + i}\t{labels[i % 3]}\t{a}\t{b}\n" for i, (a, b) in enumerate(pairs))


def measure_speed(rows: int, turns: int, scratch: Path, tokenizer: TokenizerHandle) -> dict[str, Any]:
    """Rows per second of the preparation and of the bare tokenizer, and the ratios."""
    task_def = load_task_defs(GLUE_TASK_DEF)["mnli"]
    tsv = scratch / "mnli_train.tsv"
    generate(tsv, rows, tokenizer)
    whole = read_canonical(tsv, task_def)
    pairs: list[Any] = list(zip(whole.premise, whole.hypothesis or [], strict=True))
    bare = tokenizer.tokenizer

    def pieces() -> None:
        for start in range(0, rows, PIECE):
            bare.encode_batch_fast(pairs[start : start + PIECE])

    def prepare() -> None:
        ensure_cache(tsv, task_def, tokenizer, scratch / f"cache-{time.monotonic_ns()}", LENGTH)

    steps: dict[str, Callable[[], Any]] = {
        "encode_batch": lambda: bare.encode_batch(pairs),
        "encode_batch_fast": pieces,
        "preparation": prepare,
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):  # the first warms up
        for name, step in steps.items():
            bare.enable_truncation(LENGTH)
            started = time.perf_counter()
            step()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    taken = {name: np.array(values) for name, values in seconds.items()}
    return {
        "rows": rows,
        "turns": turns,
        "rows_per_second": {name: rows / float(np.median(values)) for name, values in taken.items()},
        "speed_over": {name: spread(taken[name] / taken["preparation"]) for name in list(steps)[:2]},
    }


def measure_size(rows: int, scratch: Path, tokenizer: TokenizerHandle) -> dict[str, Any]:
    """Peak memory of a fresh preparation of so many rows, and times to open its cache."""
    root = scratch / str(rows)
    root.mkdir()
    tsv = root / "mnli_train.tsv"
    generate(tsv, rows, tokenizer)
    command = [sys.executable, "-c", CHILD, "--model", ENCODER, "--root_dir", str(root), "--tasks", "mnli"]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    folder = cache_dir_for(root / "cache", ENCODER, LENGTH, "mnli_train")
    task_def = load_task_defs(GLUE_TASK_DEF)["mnli"]
    time.sleep(2.5)  # files just written are not trusted yet, see data_utils/stamp.py

    def ensure() -> Any:
        return ensure_cache(tsv, task_def, tokenizer, folder, LENGTH)

    first = _milliseconds(ensure)
    cache = open_cache(folder)
    return {
        "rows": rows,
        "tokens": len(cache.tokens),
        "tokens_per_row": len(cache.tokens) / rows,
        "tsv_mib": tsv.stat().st_size / 2**20,
        "peak_mib": int(done.stdout.rpartition("peak")[2]) / 2**10,
        "seconds": seconds,
        "open_ms": statistics.median(_milliseconds(lambda: open_cache(folder)) for _ in range(9)),
        "ensure_ms": statistics.median(_milliseconds(ensure) for _ in range(9)),
        "ensure_first_ms": first,
    }


def _milliseconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = make_parser("preparation", __doc__)
    sizes = ",".join(map(str, SIZES))
    parser.add_argument("--rows", type=int, default=40_000, help="rows of the speed comparison; default: %(default)s")
    parser.add_argument("--turns", type=int, default=7, help="turns of the speed comparison; default: %(default)s")
    parser.add_argument("--sizes", default=sizes, help="rows at which memory is measured; default: %(default)s")
    options = parser.parse_args(arguments)
    tokenizer = load_tokenizer(tokenizer_folder(ENCODER), ENCODER)
    result: dict[str, Any] = {
        "machine": machine_facts(),
        "data": "generated pairs of MNLI's lengths",
        "words": {"premise": PREMISE, "hypothesis": HYPOTHESIS},
        "sizes": [],
    }
    with tempfile.TemporaryDirectory() as name:
        result["speed"] = speed = measure_speed(options.rows, options.turns, Path(name), tokenizer)
    print(", ".join(f"{name} {rate:,.0f} rows/s" for name, rate in speed["rows_per_second"].items()))
    for name, ratio in speed["speed_over"].items():
        print(f"preparation has {ratio['median']:.2f} ({in_brackets(ratio, 2)}) of the speed of the bare {name}")
    for rows in map(int, options.sizes.split(",")):
        with tempfile.TemporaryDirectory() as name:
            figures = measure_size(rows, Path(name), tokenizer)
        result["sizes"].append(figures)
        print(
            f"{rows:7,} rows ({figures['tokens_per_row']:.1f} tokens each): {figures['seconds']:.1f} s, peak "
            f"{figures['peak_mib']:.0f} MiB; open {figures['open_ms']:.2f} ms, ensure {figures['ensure_ms']:.2f} ms "
            f"(first time {figures['ensure_first_ms']:.0f} ms)",
            flush=True,
        )
    write_json(options.out, result)


if __name__ == "__main__":
    sys.exit(status_of(main))
