"""Dropout of extra passes, drawn apart; streams of the processes of a run; all kept over a resume."""

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
    with streams.preserved():
        apart(streams, "new")
    assert "new" not in streams.state()["apart"]


def of_rank(rank, seed=1):
    streams = RandomStreams(seed, rank=rank)
    torch.manual_seed(streams.dropout.seed)
    return streams


def drawn(streams):
    """What every process draws alike, and what each draws for itself."""
    everyone = streams["noise"].normal(LIKE)
    return everyone, torch.cat([mask(streams), apart(streams), streams.per_rank("passes").kept(LIKE, 0.5)])


def test_processes_share_what_is_not_their_own():
    one, (first, second) = drawn(of_rank(0)), (drawn(of_rank(rank)) for rank in range(2))
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])
    assert torch.equal(first[1], one[1]), "rank 0 draws what one process draws"
    assert torch.equal(RandomStreams(1)["passes"].kept(LIKE, 0.5), RandomStreams(1).per_rank("passes").kept(LIKE, 0.5))


def resumed(rank, states, ranks=2):
    """The streams of a new process, one of which a method asks for while it is set up."""
    torch.manual_seed(999)
    streams = of_rank(rank)
    streams.per_rank("passes")
    streams.resume(states, ranks, step=7)
    return streams


def test_as_many_processes_go_on_exactly():
    states, expected = [], []
    for rank in range(2):  # one after the other: they share torch's own generators here
        streams = of_rank(rank)
        drawn(streams)
        states.append(streams.state())
        expected.append(drawn(streams))
    for rank in range(2):
        assert all(map(torch.equal, drawn(resumed(rank, states)), expected[rank]))


def test_another_number_of_processes_goes_on_with_new_draws_of_its_own():
    """What is everyone's goes on where it stood, and the resume after that is exact."""
    streams = of_rank(0)
    first = drawn(streams)
    states = [streams.state()]
    second = drawn(streams)
    saved, own = [], [first[1], second[1]]
    for rank in range(2):
        streams = resumed(rank, states)
        saved.append(streams.state())
        everyone, mine = drawn(streams)
        assert torch.equal(everyone, second[0])
        own.append(mine)
    assert not any(torch.equal(a, b) for i, a in enumerate(own) for b in own[:i])
    for rank in range(2):
        assert torch.equal(drawn(resumed(rank, saved))[1], own[2 + rank])
