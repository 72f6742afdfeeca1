"""Packed and padded batches hold the same examples."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data_utils.token_cache import TokenCache
from mt_dnn.data import open_datasets
from mt_dnn.encoder.batch import PackedBatch, pack, pad

PAD = 9999


def memory_cache(lengths: list[int], seed: int = 0) -> TokenCache:
    """A cache of random tokens without files; about half of the examples have a second segment."""
    generator = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    segment = np.array([generator.integers(0, n) * generator.integers(0, 2) for n in lengths], dtype=np.uint16)
    return TokenCache(
        path=Path("memory"),
        tokens=generator.integers(0, 5000, offsets[-1]).astype(np.uint16),
        offsets=offsets,
        segment=segment,
        labels=generator.integers(0, 3, len(lengths)),
        uids=np.array([str(i).encode() for i in range(len(lengths))]),
        manifest={},
    )


def split(batch: PackedBatch, values: Tensor) -> list[list[int]]:
    return [part.tolist() for part in values.split(batch.lengths.tolist())]


def leaves(value: object) -> Iterator[object]:
    """What a batch holds, its slots and their groups included."""
    if isinstance(value, tuple):
        for part in value:
            yield from leaves(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from leaves(getattr(value, field.name))
    else:
        yield value


def test_pack_by_hand() -> None:
    cache = TokenCache(
        path=Path("memory"),
        tokens=np.array([10, 11, 12, 20, 21, 30, 31, 32, 33], np.uint16),
        offsets=np.array([0, 3, 5, 9]),
        segment=np.array([2, 0, 1], np.uint16),
        labels=np.array([0.5, 1.5, 2.5], np.float32),
        uids=np.array([b"a", b"b", b"c"]),
        manifest={},
    )
    batch = pack(cache, [2, 0, 1])
    assert batch.input_ids.tolist() == [30, 31, 32, 33, 10, 11, 12, 20, 21]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1]
    assert batch.token_type_ids.tolist() == [0, 1, 1, 1, 0, 0, 1, 0, 0]
    assert batch.cu_seqlens.tolist() == [0, 4, 7, 9]
    assert batch.labels.tolist() == [2.5, 0.5, 1.5]
    assert batch.labels.dtype == torch.float32
    assert batch.indices.tolist() == [2, 0, 1]
    assert (batch.max_seqlen, batch.size, batch.n_tokens) == (4, 3, 9)
    padded = pad(cache, [1, 0], PAD)
    assert padded.input_ids.tolist() == [[20, 21, PAD], [10, 11, 12]]
    assert padded.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert padded.position_ids.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert padded.token_type_ids.tolist() == [[0, 0, 0], [0, 0, 1]]
    assert padded.labels.tolist() == [1.5, 0.5]
    assert (padded.size, padded.n_tokens) == (2, 5)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), lengths=st.lists(st.integers(1, 12), min_size=1, max_size=20), seed=st.integers(0, 9))
def test_pack_and_pad_are_the_same_examples(data: st.DataObject, lengths: list[int], seed: int) -> None:
    cache = memory_cache(lengths, seed)
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=30))
    packed, padded = pack(cache, rows), pad(cache, np.array(rows), PAD)
    real = padded.attention_mask == 1
    for name in ("input_ids", "position_ids", "token_type_ids"):
        assert torch.equal(getattr(padded, name)[real], getattr(packed, name))
        assert getattr(padded, name).dtype == getattr(packed, name).dtype == torch.int64
    assert (padded.input_ids[~real] == PAD).all()
    assert (padded.token_type_ids[~real] == 0).all()
    assert padded.input_ids.shape == (len(rows), packed.max_seqlen)
    assert torch.equal(padded.indices, packed.indices)
    assert padded.indices.tolist() == rows
    assert np.array_equal(padded.labels, cache.labels[rows])
    expected = [cache.tokens[cache.offsets[i] : cache.offsets[i + 1]].tolist() for i in rows]
    assert split(packed, packed.input_ids) == expected
    assert split(packed, packed.position_ids) == [list(range(lengths[i])) for i in rows]
    segments = [int(cache.segment[i]) for i in rows]
    types = [[int(0 < s <= p) for p in range(lengths[i])] for i, s in zip(rows, segments, strict=True)]
    assert split(packed, packed.token_type_ids) == types
    assert packed.n_tokens == padded.n_tokens == sum(lengths[i] for i in rows)


def test_batches_of_a_real_cache_own_their_memory(tiny_run) -> None:
    cache = open_datasets(tiny_run(train_datasets="toyscore")).train
    for batch in (pack(cache, range(6)), pad(cache, range(6), 0)):
        for name in ("input_ids", "position_ids", "token_type_ids", "labels", "indices"):
            tensor = getattr(batch, name)
            assert tensor.is_contiguous()
            for array in (cache.tokens, cache.offsets, cache.segment, cache.labels):
                assert not np.shares_memory(tensor.numpy(), array)  # a memory map can be read only


@pytest.mark.parametrize("packed", [True, False])
def test_all_tensors_of_a_batch_move_to_a_device(packed: bool) -> None:
    cache, device = memory_cache([3, 9, 2, 5]), torch.device("meta")
    batch = pack(cache, range(4)) if packed else pad(cache, range(4), PAD)
    assert batch.to(torch.device("cpu")) is batch
    there, here = list(leaves(batch.to(device))), list(leaves(batch))
    assert [getattr(a, "shape", a) for a in there] == [getattr(a, "shape", a) for a in here]
    assert {a.device for a in there if isinstance(a, Tensor)} == {device}
    assert sum(isinstance(a, Tensor) for a in there) == (7 + 3 + 1 if packed else 6)  # slots hold three, and a key_bias


@pytest.mark.parametrize("packed", [True, False])
def test_a_batch_is_sent_in_one_piece(monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    cache = memory_cache([3, 9, 2, 5, 5])
    batch = pack(cache, range(5), 2) if packed else pad(cache, range(5), PAD)
    sent = []

    def to_gpu(tensor: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
        assert non_blocking
        sent.append(device)
        return tensor.clone()  # stands in for the device's memory

    monkeypatch.setattr(Tensor, "to", to_gpu)
    there = list(leaves(batch.to(torch.device("meta"))))
    assert sent == [torch.device("meta")]
    for got, expected in zip(there, leaves(batch), strict=True):
        if isinstance(expected, Tensor):
            assert isinstance(got, Tensor)
            assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
            assert torch.equal(got, expected)
            assert got.data_ptr() % 16 == 0
        else:
            assert np.array_equal(got, expected)


def test_the_callers_indices_are_copied() -> None:
    rows = np.array([0, 1])
    batch = pack(memory_cache([2, 3]), rows)
    rows[0] = 1
    assert batch.indices.tolist() == [0, 1]


@pytest.mark.parametrize("rows", [[], [3], [-1], [[0, 1]]])
def test_bad_indices_are_refused(rows: list[int]) -> None:
    cache = memory_cache([2, 3, 4])
    for call in (lambda: pack(cache, rows), lambda: pad(cache, rows, 0)):
        with pytest.raises(ValueError, match=r"rows in \[0, 3\)"):
            call()
