"""Canonical files of BoolQ, TREC (six classes), AG News, MR and SST-5.

    python -m experiments.textclass.textclass_prepro --root_dir data

Folders: BoolQ/train.jsonl and val.jsonl of SuperGLUE, or its authors' dev.jsonl; TREC/train_5500.label and
TREC_10.label; ag_news_csv/train.csv; MR/rt-polaritydata/rt-polarity.pos and .neg, divided as on the Hub;
SST5/train.jsonl with label_text; or the Hub's copies in such folders. A set without a dev split gives a tenth of train
to it, the same rows always.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in {None, ""}:  # run as a script: the project root is two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_utils.labelled_texts import ColumnNames
from data_utils.official_set import OfficialSet, prepare_main
from data_utils.table_file import RawTable, read_table

_TEXT = ColumnNames("text", "label")
_JSON_LINES = {split: f"{split}.jsonl" for split in ("train", "dev", "test")}


def _trec(path: Path, split: str) -> RawTable:
    """A TREC file: ``DESC:manner How did serfdom ...``; its one byte beyond ASCII is a space, as on the Hub."""
    lines = path.read_bytes().replace(b"\xf0", b" ").decode("latin-1").split("\n")
    parts = [line.rstrip("\r").partition(" ") for line in lines if line.strip()]
    return RawTable(
        path, {"label": [label.partition(":")[0] for label, _, _ in parts], "text": [t for _, _, t in parts]}
    )


def _ag_news(path: Path, split: str) -> RawTable:
    """An AG News file: class, title and description without a header; the text is both, as on the Hub."""
    columns = read_table(path, header=("label", "title", "description")).columns
    texts = [f"{title} {body}" for title, body in zip(columns["title"], columns["description"], strict=True)]
    return RawTable(path, {"label": columns["label"], "text": texts})


def _mr(path: Path, split: str) -> RawTable:
    """Eight, one or one tenth of the positive and of the negative reviews, Latin-1, as on the Hub."""
    columns: dict[str, list[str]] = {"text": [], "label": []}
    for label in ("pos", "neg"):
        lines = path.with_suffix(f".{label}").read_bytes().decode("latin-1").rstrip("\n").split("\n")
        cuts = [0, *(int(len(lines) * share + 0.5) for share in (0.8, 0.9)), len(lines)]
        start = list(_JSON_LINES).index(split)
        columns["text"] += (part := [line.strip() for line in lines[cuts[start] : cuts[start + 1]]])
        columns["label"] += [label] * len(part)
    return RawTable(path, columns)


SETS: dict[str, OfficialSet] = {
    "boolq": OfficialSet(
        "BoolQ", {"train": "train.jsonl", "dev": ("val.jsonl", "dev.jsonl"), "test": "test.jsonl"},
        ColumnNames("passage", "label", "question"), {"train": 9_427, "dev": 3_270, "test": 3_245},
        {"False": "false", "True": "true"}, hub=ColumnNames("passage", "label", "question"),
        other_names={"answer": "label"},
    ),
    "trec": OfficialSet(
        "TREC", {"train": "train_5500.label", "test": "TREC_10.label"}, _TEXT,
        {"train": 4_907, "dev": 545, "test": 500}, read=_trec, hub=ColumnNames("text", "coarse_label"),
        other_names={"label-coarse": "coarse_label"},
    ),
    "agnews": OfficialSet(
        "ag_news_csv", {"train": "train.csv", "test": "test.csv"}, _TEXT,
        {"train": 108_000, "dev": 12_000, "test": 7_600},
        {"1": "World", "2": "Sports", "3": "Business", "4": "Sci/Tech"}, read=_ag_news, hub=_TEXT,
    ),
    "mr": OfficialSet(
        "MR", dict.fromkeys(_JSON_LINES, "rt-polaritydata/rt-polarity.pos"), _TEXT,
        {"train": 8_530, "dev": 1_066, "test": 1_066}, read=_mr, hub=_TEXT,
    ),
    "sst5": OfficialSet(
        "SST5", _JSON_LINES, ColumnNames("text", "label_text"), {"train": 8_544, "dev": 1_101, "test": 2_210},
    ),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    task_def = Path(__file__).with_name("textclass_task_def.yml")
    return prepare_main("python -m experiments.textclass.textclass_prepro", __doc__, SETS, task_def, arguments)


if __name__ == "__main__":
    sys.exit(main())
