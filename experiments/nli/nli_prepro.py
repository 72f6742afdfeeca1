"""Canonical files of SNLI, SciTail, SICK (entailment and relatedness), ANLI R1 to R3 and CB.

    python -m experiments.nli.nli_prepro --root_dir data
    python -m experiments.study --task_def experiments/nli/nli_task_def.yml --tasks snli,cb --encoder ...

Folders as the releases unpack: snli_1.0/snli_1.0_train.jsonl, SciTailV1.1/snli_format/scitail_1.0_train.txt,
SICK/SICK.txt, anli_v1.0/R1/train.jsonl, CB/train.jsonl; or the Hub's copy in such a folder,
snli_1.0/plain_text/train-00000-of-00001.parquet.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if __package__ in {None, ""}:  # run as a script: the project root is two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_utils.labelled_texts import ColumnNames
from data_utils.official_set import OfficialSet, prepare_main
from data_utils.table_file import RawTable, read_table

_SPLITS = ("train", "dev", "test")
_PAIR = ColumnNames("premise", "label", "hypothesis")
_SEMEVAL = {"train": "TRAIN", "dev": "TRIAL", "test": "TEST"}


def _sick(path: Path, split: str) -> RawTable:
    """The split's rows of SICK.txt, which holds all three."""
    table = read_table(path, quoting="none")
    part = [name == _SEMEVAL[split] for name in table.column("SemEval_set", "split")]
    columns = {name: [v for v, is_in in zip(c, part, strict=True) if is_in] for name, c in table.columns.items()}
    columns["entailment_label"] = [label.lower() for label in columns["entailment_label"]]
    return replace(table, columns=columns)


def _counts(train: int, dev: int, test: int) -> dict[str, int]:
    return {"train": train, "dev": dev, "test": test}


def _anli(number: int, *rows: int) -> OfficialSet:
    files = {split: f"R{number}/{split}.jsonl" for split in _SPLITS}
    columns = ColumnNames("context", "label", "hypothesis", "uid")
    words = {"e": "entailment", "n": "neutral", "c": "contradiction"}
    hub = replace(_PAIR, uid="uid")
    return OfficialSet("anli_v1.0", files, columns, _counts(*rows), words, hub=hub, hub_prefix=f"r{number}_")


_SICK = OfficialSet(
    "SICK", dict.fromkeys(_SPLITS, "SICK.txt"), ColumnNames("sentence_A", "entailment_label", "sentence_B", "pair_ID"),
    _counts(4_439, 495, 4_906), read=_sick, hub=ColumnNames("sentence_A", "label", "sentence_B", "id"),
)  # fmt: skip
SETS: dict[str, OfficialSet] = {
    "snli": OfficialSet(
        "snli_1.0", {split: f"snli_1.0_{split}.jsonl" for split in _SPLITS},
        ColumnNames("sentence1", "gold_label", "sentence2"), _counts(549_367, 9_842, 9_824), skip=("-", ""), hub=_PAIR,
    ),
    "scitail": OfficialSet(
        "SciTailV1.1", {split: f"snli_format/scitail_1.0_{split}.txt" for split in _SPLITS},
        ColumnNames("sentence1", "gold_label", "sentence2"), _counts(23_596, 1_304, 2_126), {"entailment": "entails"},
        read=lambda path, split: read_table(path, kind=".jsonl"),
        hub=ColumnNames("sentence1", "gold_label", "sentence2"), hub_config="snli_format",
    ),
    "sick": _SICK,
    "sickrel": replace(
        _SICK, columns=replace(_SICK.columns, label="relatedness_score"),
        hub=ColumnNames("sentence_A", "relatedness_score", "sentence_B", "id"),
    ),
    "anlir1": _anli(1, 16_946, 1_000, 1_000),
    "anlir2": _anli(2, 45_460, 1_000, 1_000),
    "anlir3": _anli(3, 100_459, 1_200, 1_200),
    "cb": OfficialSet(
        "CB", {"train": "train.jsonl", "dev": "val.jsonl", "test": "test.jsonl"}, _PAIR, _counts(250, 56, 250),
        hub=_PAIR,
    ),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    task_def = Path(__file__).with_name("nli_task_def.yml")
    return prepare_main("python -m experiments.nli.nli_prepro", __doc__, SETS, task_def, arguments)


if __name__ == "__main__":
    sys.exit(main())
