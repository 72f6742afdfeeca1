"""Command lines of the benchmarks."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.glue_rows import TASKS
from benchmarks.peers.contender import CONTENDERS
from data_utils.command_line import CommandParser
from mt_dnn.config import MAX_THREADS

PRECISIONS = ("fp32", "bf16", "fp16")


def make_parser(module: str, text: str, notes: str = "") -> CommandParser:
    """The command line of a benchmark, with ``--out``; arguments as those of :class:`CommandParser`."""
    parser = CommandParser(f"python -m benchmarks.{module}", text, notes)
    parser.add_argument("--out", type=Path, help="JSON file for figures and machine facts")
    return parser


def add_place_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the encoder, the data and the device of a benchmark."""
    parser.add_argument("--encoder", default="all-MiniLM-L6-v2", help="one that has recipes; default: %(default)s")
    parser.add_argument("--data_dir", type=Path, help="folder with canonical <task>_<split>.tsv; default: see below")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto; default: %(default)s")
    parser.add_argument("--threads", type=thread_count, help="threads of torch; default: torch's choice")


def training_parser(module: str, text: str, contenders: str) -> CommandParser:
    """The command line of a benchmark of whole training.

    Args:
        module: The benchmark's module.
        text: Its docstring.
        contenders: The default ones, for the help.
    """
    listed = "\n".join(f"  {c.name:10} {c.about}" for c in CONTENDERS.values())
    parser = make_parser(module, text, f"\ncontenders:\n{listed}")
    parser.add_argument("--tasks", type=some_of(TASKS), default=list(TASKS), help=f"default: {','.join(TASKS)}")
    parser.add_argument(
        "--precisions", type=some_of(PRECISIONS), default=["fp32", "bf16"], help="default: fp32,bf16; fp16 on CUDA"
    )
    parser.add_argument("--contenders", type=some_of(tuple(CONTENDERS)), help=f"default: {contenders}")
    add_place_arguments(parser)
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
