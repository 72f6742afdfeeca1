"""The demo's canonical files: two tasks on the same movie-review snippets, with one fixed low-resource split.

    python -m experiments.demo.prepare --output_dir demo

writes ``demo/canonical_data/{movie,movierating}_{train,dev}.tsv``; the text comes through ``ratings.py``.

The split: snippets of more than ``MAX_WORDS`` words are left out, which keeps the demo to minutes on two cores, and so
are neutral ones, rated less than ``MIN_RATING`` from 0, whose polarity is a matter of taste. One that occurs twice is
kept once. The rest are ordered by a hash of their id and ``SPLIT_SALT``, which no library version can change. The first
``DEV_ROWS`` are the dev set, the next ``TRAIN_ROWS`` the (low-resource) training set; the others are not used. Both
tasks hold the same snippets.
"""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

from data_utils.canonical_tsv import write_canonical
from data_utils.command_line import CommandParser, status_of
from experiments.demo.ratings import fetch

SPLIT_SALT = "pats-demo-1"
MAX_WORDS = 8
MIN_RATING = 1.0
DEV_ROWS = 300
TRAIN_ROWS = 256
TASKS = ("movie", "movierating")


@dataclass(frozen=True, slots=True)
class Snippet:
    """One line of the ratings file."""

    uid: str
    rating: float
    """Mean of the human ratings, in [-4, 4]."""
    text: str


def parse(data: bytes) -> list[Snippet]:
    """Read the ratings file: ``id <tab> rating <tab> snippet`` per line, Windows line ends."""
    snippets = []
    for line in data.decode("utf-8").split("\r\n"):  # splitlines would also cut at other characters
        uid, rating, text = line.split("\t")
        snippets.append(Snippet(uid, float(rating), text))
    return snippets


def split(snippets: list[Snippet]) -> dict[str, list[Snippet]]:
    """Return the fixed dev and training snippets, each in the order of their ids."""

    def rank(snippet: Snippet) -> bytes:
        return hashlib.blake2b(f"{SPLIT_SALT}:{snippet.uid}".encode(), digest_size=16).digest()

    by_id = sorted(snippets, key=lambda snippet: int(snippet.uid))
    once = {snippet.text: snippet for snippet in reversed(by_id)}.values()  # of a repeated text, the smallest id
    ordered = sorted(filter(_is_wanted, once), key=rank)
    chosen = {"dev": ordered[:DEV_ROWS], "train": ordered[DEV_ROWS : DEV_ROWS + TRAIN_ROWS]}
    return {name: sorted(rows, key=lambda row: int(row.uid)) for name, rows in chosen.items()}


def _is_wanted(snippet: Snippet) -> bool:
    return len(snippet.text.split()) <= MAX_WORDS and abs(snippet.rating) >= MIN_RATING


def labelled(task: str, snippets: list[Snippet]) -> list[tuple[str, str, str]]:
    """Rows (uid, label, text) of one task: the rating itself for ``movierating``, its sign for ``movie``."""
    if task == "movierating":
        return [(snippet.uid, repr(snippet.rating), snippet.text) for snippet in snippets]
    sign = {True: "positive", False: "negative"}
    return [(snippet.uid, sign[snippet.rating > 0], snippet.text) for snippet in snippets]


def prepare(folder: Path) -> Path:
    """Write the canonical files of both tasks below ``folder`` and return their folder."""
    splits = split(parse(fetch(folder / "download").read_bytes()))
    target = folder / "canonical_data"
    target.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        for name, snippets in splits.items():
            uids, labels, texts = zip(*labelled(task, snippets), strict=True)
            write_canonical(target / f"{task}_{name}.tsv", uids, labels, texts)
    return target


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = CommandParser("python -m experiments.demo.prepare", "Fetch the demo's text and write its canonical files.")
    parser.add_argument("--output_dir", type=Path, default=Path("demo"), help="folder for everything (default: demo)")
    options = parser.parse_args(arguments)
    return status_of(lambda: print(f"canonical files of the demo: {prepare(options.output_dir)}"))


if __name__ == "__main__":
    sys.exit(main())
