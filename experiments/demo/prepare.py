"""The demo's canonical files: two tasks on the same movie-review snippets, with one fixed low-resource split.

    python -m experiments.demo.prepare --output_dir demo

writes ``demo/canonical_data/{movie,movierating}_{train,dev}.tsv``; the text comes through ``fetch.py``.

The split: a snippet that occurs twice is kept once; the rest are ordered by a hash of their id and ``SPLIT_SALT``, which
no library version can change. The first ``DEV_ROWS`` are the dev set, the next ``TRAIN_ROWS`` the training set, others
are not used. ``movierating`` holds them all; ``movie`` leaves out those rated exactly 0.
"""

import argparse
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_utils.canonical_tsv import Rows, write_canonical
from data_utils.errors import SettingError
from experiments.demo.fetch import fetch

SPLIT_SALT = "pats-demo-1"
DEV_ROWS = 1000
TRAIN_ROWS = 500


@dataclass(frozen=True, slots=True)
class Snippet:
    """One line of the ratings file."""

    uid: str
    rating: float
    """Mean of the human ratings, in [-4, 4]."""
    text: str


def parse(data: bytes) -> list[Snippet]:
    """Read the ratings file: ``id <tab> rating <tab> snippet`` per line, Windows line ends; repeated texts once."""
    snippets: dict[str, Snippet] = {}
    for line in data.decode("utf-8").split("\r\n"):  # splitlines would also cut at other characters
        uid, rating, text = line.split("\t")
        snippets.setdefault(text, Snippet(uid, float(rating), text))
    return list(snippets.values())


def split(snippets: list[Snippet]) -> dict[str, list[Snippet]]:
    """Return the fixed dev and training snippets, each in file order."""

    def rank(snippet: Snippet) -> bytes:
        return hashlib.blake2b(f"{SPLIT_SALT}:{snippet.uid}".encode(), digest_size=16).digest()

    ordered = sorted(snippets, key=rank)
    chosen = {"dev": ordered[:DEV_ROWS], "train": ordered[DEV_ROWS : DEV_ROWS + TRAIN_ROWS]}
    return {name: sorted(rows, key=lambda row: int(row.uid)) for name, rows in chosen.items()}


def task_rows(task: str, snippets: list[Snippet]) -> Rows:
    """Rows of one task: the rating itself for ``movierating``, its sign (1 above 0, 0 below) for ``movie``."""
    if task == "movie":
        snippets = [snippet for snippet in snippets if snippet.rating != 0]
        labels = np.array([int(snippet.rating > 0) for snippet in snippets], dtype=np.int64)
    else:
        labels = np.array([snippet.rating for snippet in snippets], dtype=np.float32)
    return Rows([s.uid for s in snippets], labels, [s.text for s in snippets], None)


def prepare(folder: Path) -> Path:
    """Write the canonical files of both tasks below ``folder`` and return their folder."""
    splits = split(parse(fetch(folder / "download").read_bytes()))
    target = folder / "canonical_data"
    target.mkdir(parents=True, exist_ok=True)
    for task in ("movie", "movierating"):
        for name, snippets in splits.items():
            write_canonical(target / f"{task}_{name}.tsv", task_rows(task, snippets))
    return target


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="fetch the demo's text and write its canonical files")
    parser.add_argument("--output_dir", type=Path, default=Path("demo"), help="folder for everything (default: demo)")
    options = parser.parse_args(arguments)
    try:
        print(f"canonical files of the demo: {prepare(options.output_dir)}")
    except (SettingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
