"""Dropout of extra passes: drawn apart, kept over a resume."""

import torch

from module.random_streams import RandomStreams

LIKE = torch.empty(4000)


def mask(streams):
    """What dropout on the CPU draws, and what torch's own generator does."""
    return torch.cat([streams.dropout.factors(LIKE, 0.5), torch.rand(10)])


def apart(streams, name="a"):
    with streams.apart(name):
        return mask(streams)


def start(seed=1):
    torch.manual_seed(seed)
    return RandomStreams(seed)


def test_draws_apart_move_nothing_outside():
    streams = start()
    plain = [mask(streams), mask(streams)]
    streams = start()
    first, inside, second, more = mask(streams), apart(streams), mask(streams), apart(streams)
    assert torch.equal(first, plain[0])
    assert torch.equal(second, plain[1])
    assert not any(torch.equal(one, other) for one in (inside, more) for other in plain)
    assert not torch.equal(inside, more), "the source apart goes on"


def test_sources_apart_depend_on_seed_and_name_alone():
    streams = start()
    expected = [apart(streams, "a"), apart(streams, "b")]
    assert not torch.equal(*expected)
    streams = start()
    mask(streams)
    assert torch.equal(apart(streams, "b"), expected[1])
    assert torch.equal(apart(streams, "a"), expected[0])
    assert not torch.equal(apart(start(2), "a"), expected[0])


def test_an_error_inside_still_gives_the_sources_back():
    streams = start()
    expected = mask(streams)
    streams = start()
    try:
        with streams.apart("a"):
            mask(streams)
            raise ValueError
    except ValueError:
        pass
    assert torch.equal(mask(streams), expected)


def test_states_hold_the_sources_apart():
    streams = start()
    apart(streams)
    states = streams.state()
    expected = [apart(streams), mask(streams), apart(streams)]
    streams.restore(states)
    assert all(
        torch.equal(a, b) for a, b in zip([apart(streams), mask(streams), apart(streams)], expected, strict=True)
    )
    other = start(1)
    torch.manual_seed(77)
    other.restore(states)
    assert torch.equal(apart(other), expected[0])
    with streams.aside():
        apart(streams, "new")
    assert "new" not in streams.state()["apart"]
