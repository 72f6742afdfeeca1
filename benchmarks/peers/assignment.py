"""The training that a peer is given, as plain rows and numbers.

Nothing here or in a peer imports this project's algorithms: their compiler alone would add 100 MB to a peer's memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from data_utils.task_def import TaskDef
from data_utils.token_cache import TokenCache

Train = Callable[[], dict[str, float]]
"""Trains, evaluates after every epoch, and returns the last epoch's dev metrics in percent. Called once."""


class Row(TypedDict):
    """One example; the two lists are equally long."""

    input_ids: list[int]
    token_type_ids: list[int]
    label: int | float


@dataclass(frozen=True, slots=True)
class Assignment:
    """One run of a peer; ``contender.assign`` makes it of a run of this project."""

    task_def: TaskDef
    encoder: Path
    """Folder of the encoder and its tokenizer."""
    pad_id: int
    train: list[Row]
    dev: list[Row]
    epochs: list[list[list[int]]]
    """Positions in ``train`` of every batch of every epoch."""
    batch_size: int
    learning_rate: float
    warmup: float
    """Share of the steps."""
    weight_decay: float
    clipping: float
    """Largest global gradient norm."""
    dropout: float
    """In the encoder."""
    head_dropout: float
    precision: str
    """fp32, bf16 or fp16."""
    device: str
    seed: int

    @property
    def steps(self) -> int:
        """Steps of all epochs."""
        return sum(map(len, self.epochs))


def python_rows(cache: TokenCache, rows: list[int]) -> list[Row]:
    """Read rows of a cache, in the order given."""
    examples = []
    for row in rows:
        ids = cache.tokens[cache.offsets[row] : cache.offsets[row + 1]].tolist()
        start = int(cache.segment[row]) or len(ids)
        types = [int(place >= start) for place in range(len(ids))]
        examples.append(Row(input_ids=ids, token_type_ids=types, label=cache.labels[row].item()))
    return examples


def cut(row: Row, longest: int) -> Row:
    """Drop the tokens of a row that are too many, but keep its last, the separator."""
    if len(row["input_ids"]) <= longest:
        return row
    ids, types = row["input_ids"], row["token_type_ids"]
    return {**row, "input_ids": [*ids[: longest - 1], ids[-1]], "token_type_ids": [*types[: longest - 1], types[-1]]}
