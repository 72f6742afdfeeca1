import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_utils.batching import (
    epoch_batches,
    evaluation_batches,
    share_of,
    training_subset,
)
from data_utils.errors import SettingError

SIZES = st.integers(1, 300)
BATCH = st.integers(1, 40)
SEED = st.integers(0, 2**40)


@settings(max_examples=150, deadline=None)
@given(
    n=SIZES,
    batch_size=BATCH,
    seed=SEED,
    epoch=st.integers(0, 5),
    sampler=st.sampled_from(["reshuffle", "mtdnn", "length"]),
)
def test_every_epoch_is_a_permutation(n: int, batch_size: int, seed: int, epoch: int, sampler: str) -> None:
    lengths = np.random.default_rng(seed).integers(2, 50, n)
    batches = epoch_batches(n, batch_size, seed, epoch, sampler, lengths=lengths)  # type: ignore[arg-type]
    assert len(batches) == -(-n // batch_size)
    sizes = sorted(len(batch) for batch in batches)
    assert sizes[1:] == [batch_size] * (len(batches) - 1)
    assert sorted(np.concatenate(batches).tolist()) == list(range(n))
    again = epoch_batches(n, batch_size, seed, epoch, sampler, lengths=lengths)  # type: ignore[arg-type]
    assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in again]


def flat(batches: list[np.ndarray]) -> list[int]:
    return np.concatenate(batches).tolist()


def test_reshuffle_differs_by_epoch_and_seed() -> None:
    orders = [flat(epoch_batches(500, 32, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert len(epoch_batches(500, 32, 0, 0)[-1]) == 500 % 32  # the short batch comes last


def test_mtdnn_is_slices_of_the_file_in_one_order_for_all_epochs() -> None:
    batches = epoch_batches(100, 8, 3, 0, "mtdnn")
    for batch in batches:
        assert batch[0] % 8 == 0
        assert np.diff(batch).tolist() == [1] * (len(batch) - 1)
    assert flat(epoch_batches(100, 8, 3, 7, "mtdnn")) == flat(batches)
    assert flat(epoch_batches(100, 8, 4, 0, "mtdnn")) != flat(batches)
    assert flat(batches) != list(range(100))


def test_length_batches_hold_less_padding_and_stay_random() -> None:
    lengths = np.random.default_rng(0).integers(2, 200, 3000)

    def padded(batches: list[np.ndarray]) -> int:
        return sum(len(batch) * int(lengths[batch].max()) for batch in batches)

    grouped = epoch_batches(3000, 16, 0, 0, "length", lengths=lengths)
    assert padded(grouped) < 1.1 * lengths.sum()
    assert padded(epoch_batches(3000, 16, 0, 0)) > 1.7 * lengths.sum()
    assert flat(grouped) != flat(epoch_batches(3000, 16, 0, 1, "length", lengths=lengths))
    means = [float(lengths[batch].mean()) for batch in grouped]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3  # no drift from short to long


def test_every_position_is_equally_likely_in_every_place() -> None:
    counts = np.zeros((5, 5))
    for epoch in range(2000):
        counts[np.arange(5), flat(epoch_batches(5, 2, 11, epoch))] += 1
    # Multinomial: 400 expected, standard deviation 18.
    assert np.abs(counts - 400).max() < 90


def test_settings_of_epochs_are_checked() -> None:
    with pytest.raises(SettingError, match="sampler is 'x'; legal values: reshuffle, mtdnn, length"):
        epoch_batches(10, 2, 0, 0, "x")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="batch_size is 0"):
        epoch_batches(10, 0, 0, 0)
    with pytest.raises(ValueError, match="at least 1 example"):
        epoch_batches(0, 2, 0, 0)
    for lengths in (None, [1, 2]):
        with pytest.raises(ValueError, match="needs the lengths of all 10"):
            epoch_batches(10, 2, 0, 0, "length", lengths=lengths)


@settings(max_examples=150, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80), size=st.integers(1, 9), seed=SEED)
def test_shares_hold_every_example_once_and_about_equally_many_tokens(lengths: list[int], size: int, seed: int) -> None:
    tokens = np.array(lengths)
    (window, *_) = epoch_batches(len(tokens), 32, seed, 0)
    shares = [share_of(window, tokens, rank, size) for rank in range(size)]
    assert sorted(np.concatenate(shares)) == sorted(window)
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1
    place = {example: i for i, example in enumerate(window)}
    for share in shares:
        assert (np.diff([place[example] for example in share]) > 0).all()  # in the order of the step
    sums = [int(tokens[share].sum()) for share in shares]
    assert max(sums) - min(sums) <= tokens.max()


@given(lengths=st.lists(st.integers(1, 60), max_size=80), budget=st.integers(1, 300))
def test_evaluation_takes_every_example_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = evaluation_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch.tolist()) == list(range(len(lengths)))
    tokens = np.array(lengths)
    for batch in batches:
        cost = len(batch) * int(tokens[batch].max())
        assert cost <= budget or len(batch) == 1
    flat_lengths = [lengths[i] for batch in batches for i in batch]
    assert flat_lengths == sorted(lengths, reverse=True)


def test_evaluation_batches_are_as_full_as_the_budget_allows() -> None:
    batches = evaluation_batches([10] * 25, 100)
    assert [len(batch) for batch in batches] == [10, 10, 5]
    assert [len(batch) for batch in evaluation_batches([500, 10], 100)] == [1, 1]
    with pytest.raises(SettingError, match="eval_batch_tokens is 0"):
        evaluation_batches([1], 0)


@settings(max_examples=150, deadline=None)
@given(n=SIZES, seed=SEED, fractions=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)))
def test_subsets_are_nested(n: int, seed: int, fractions: tuple[float, float]) -> None:
    small, large = (training_subset(n, seed, fraction=f) for f in sorted(fractions))
    for subset, fraction in zip((small, large), sorted(fractions), strict=True):
        assert len(subset) == max(1, round(fraction * n))
        assert (np.diff(subset) > 0).all()
        assert subset.dtype == np.int64
        assert 0 <= subset[0] <= subset[-1] < n
    assert set(small) <= set(large)
    assert np.array_equal(training_subset(n, seed, size=len(small)), small)


@settings(max_examples=50, deadline=None)
@given(seed=SEED, classes=st.integers(2, 5), size=st.integers(1, 40))
def test_balanced_subsets_have_equally_many_of_every_class_and_are_nested(seed: int, classes: int, size: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), np.arange(40, 40 + classes)))
    small, large = (training_subset(len(labels), seed, size=n, balance=labels) for n in (size, size + 7))
    counts = np.bincount(labels[small], minlength=classes)
    assert counts.tolist() == [size // classes + (c < size % classes) for c in range(classes)]
    assert (np.diff(small) > 0).all()
    assert set(small) <= set(large)


def test_a_class_with_too_few_rows_for_the_balance_is_named() -> None:
    labels = [0] * 10 + [1] * 3
    assert len(training_subset(13, 0, size=6, balance=labels)) == 6
    with pytest.raises(
        SettingError, match="7 rows are 4 of each of 2 classes, and class 1 has 3; legal: train_size at most 6"
    ):
        training_subset(13, 0, size=7, balance=labels)


def test_subsets_of_all_rows_and_of_other_seeds() -> None:
    assert training_subset(7, 0).tolist() == training_subset(7, 5, fraction=1.0).tolist() == list(range(7))
    assert training_subset(1000, 0, size=100).tolist() != training_subset(1000, 1, size=100).tolist()


@pytest.mark.parametrize(
    ("fraction", "size", "reason"),
    [
        (0.0, None, r"train_fraction is 0.0; it must be in \(0, 1\]"),
        (1.5, None, "train_fraction is 1.5"),
        (float("nan"), None, "train_fraction is nan"),
        (None, 0, "train_size is 0; this training set has rows for 1 to 10"),
        (None, 11, "train_size is 11"),
        (0.5, 5, "are both given"),
    ],
)
def test_subset_settings_are_checked(fraction: float | None, size: int | None, reason: str) -> None:
    with pytest.raises(SettingError, match=reason):
        training_subset(10, 0, fraction, size)


def test_orders_stay_the_same_between_versions() -> None:
    # A change here makes old runs irreproducible: it needs a line in the changelog.
    assert flat(epoch_batches(8, 3, 2018, 0)) == EXPECTED["reshuffle"]
    assert flat(epoch_batches(8, 3, 2018, 0, "mtdnn")) == EXPECTED["mtdnn"]
    assert training_subset(10, 2018, size=4).tolist() == EXPECTED["subset"]


EXPECTED = {"reshuffle": [3, 2, 0, 6, 7, 5, 4, 1], "mtdnn": [3, 4, 5, 6, 7, 0, 1, 2], "subset": [1, 2, 3, 6]}
