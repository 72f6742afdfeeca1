"""A canonical file tokenised into the array files of a cache, in one pass: memory holds some rows at a time."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_utils.array_file import ArrayWriter
from data_utils.canonical_tsv import iterate_canonical, unique_uids
from data_utils.task_def import TaskDef
from data_utils.tokenizer import Texts, TokenizerHandle, encode_batches

ARRAYS = ("tokens", "offsets", "segment", "labels", "uids")
"""Names of the files, each ``<name>.npy``."""
_PIECE = 1024  # rows in memory at a time: some megabytes, and work enough for the tokenizer's threads


def write_arrays(
    folder: Path, tsv: Path, task_def: TaskDef, tokenizer: TokenizerHandle, max_seq_len: int
) -> tuple[dict[str, int], dict[str, Any]]:
    """Write the array files of a cache.

    Args:
        folder: where they go.
        tsv: canonical file.
        task_def: its task.
        tokenizer: from `load_tokenizer`.
        max_seq_len: most tokens of an example, special tokens included.

    Returns:
        The manifest's counts (``n``, ``n_tokens``, ``truncated``), and size, SHA-256 and dtype of each file.

    Raises:
        SettingError: a malformed row, repeated uids, or ``max_seq_len`` out of range.
        OSError: a file cannot be read or written.
    """
    n_tokens = truncated = 0
    uids: list[NDArray[np.bytes_]] = []  # kept, some bytes each: how wide they must be is known at the end
    with ExitStack() as stack:
        files = {name: stack.enter_context(ArrayWriter(folder / f"{name}.npy")) for name in ARRAYS}

        def texts() -> Iterator[Texts]:
            for rows in iterate_canonical(tsv, task_def, _PIECE):
                files["labels"].append(rows.labels)
                uids.append(np.array([uid.encode("utf-8") for uid in rows.uids]))
                yield rows.premise, rows.hypothesis

        files["offsets"].append(np.zeros(1, dtype=np.int64))
        for encoded in encode_batches(tokenizer, texts(), pair=task_def.pair, max_seq_len=max_seq_len):
            files["tokens"].append(encoded.tokens)
            files["offsets"].append(n_tokens + encoded.offsets[1:])
            files["segment"].append(encoded.segment)
            n_tokens += len(encoded.tokens)
            truncated += encoded.truncated
        files["uids"].append(unique_uids(np.concatenate(uids), tsv))
        counts = {"n": sum(map(len, uids)), "n_tokens": n_tokens, "truncated": truncated}
        return counts, {name: file.finish() for name, file in files.items()}
