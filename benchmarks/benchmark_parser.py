"""Options that the benchmarks of whole training share."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.glue_rows import TASKS
from benchmarks.peers.contender import CONTENDERS
from mt_dnn.config import MAX_THREADS

PRECISIONS = ("fp32", "bf16", "fp16")


def make_parser(description: str | None, contenders: str) -> argparse.ArgumentParser:
    """A command line with the options of whole training: tasks, precisions, contenders.

    Args:
        description: the benchmark's docstring.
        contenders: which take part by default, for the help.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="contenders:\n" + "\n".join(f"  {c.name:10} {c.about}" for c in CONTENDERS.values()),
    )
    parser.add_argument("--tasks", type=some_of(TASKS), default=list(TASKS), help=f"default: {','.join(TASKS)}")
    parser.add_argument(
        "--precisions", type=some_of(PRECISIONS), default=["fp32", "bf16"], help="default: fp32,bf16; fp16 on CUDA"
    )
    parser.add_argument("--contenders", type=some_of(tuple(CONTENDERS)), help=f"default: {contenders}")
    parser.add_argument("--encoder", default="all-MiniLM-L6-v2", help="one that has recipes; default: %(default)s")
    parser.add_argument("--data_dir", type=Path, help="folder with canonical <task>_<split>.tsv; default: see above")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto; default: %(default)s")
    parser.add_argument("--threads", type=thread_count, help="threads of torch; default: torch's choice")
    parser.add_argument("--out", type=Path, help="JSON file for figures and machine facts")
    return parser


def some_of(legal: Sequence[str]) -> Callable[[str], list[str]]:
    """Type of an option that takes comma-separated names."""

    def names(text: str) -> list[str]:
        given = list(dict.fromkeys(text.split(",")))
        for name in given:
            if name not in legal:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(legal)}")
        return given

    return names


def at_least_one(text: str) -> int:
    """Type of an option that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number >= 1")
    return int(text)


def thread_count(text: str) -> int:
    """Type of an option that says how many threads compute."""
    if not text.isdecimal() or not 1 <= int(text) <= MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no whole number in [1, {MAX_THREADS}]")
    return int(text)


def write_json(out: Path | None, result: dict[str, Any]) -> None:
    """Write a benchmark's figures as JSON; None writes nothing."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
