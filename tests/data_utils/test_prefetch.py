"""Making one item ahead: the order, the errors, and how far ahead."""

import threading

import pytest

from data_utils.prefetch import prefetch


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_is_a_map_in_order(n):
    assert list(prefetch(range(n), lambda i: i * i)) == [i * i for i in range(n)]


def test_the_next_item_is_made_while_the_present_one_is_in_use():
    made = threading.Event()

    def make(i):
        if i == 1:
            made.set()
        return i

    items = prefetch(range(3), make)
    assert next(items) == 0
    assert made.wait(timeout=10)


def test_never_more_than_one_ahead():
    taken = []
    items = prefetch((taken.append(i) or i for i in range(9)), lambda i: i)
    for i in range(5):
        assert next(items) == i
        assert taken == list(range(i + 2))


def test_an_error_comes_when_its_item_is_due():
    items = prefetch([1, 0, 2], lambda i: 1 // i)
    assert next(items) == 1
    with pytest.raises(ZeroDivisionError):
        next(items)


def test_stopping_early_leaves_no_thread():
    before = threading.active_count()
    items = prefetch(range(5), lambda i: i)
    next(items)
    items.close()
    assert threading.active_count() == before
