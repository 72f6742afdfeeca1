"""The random sources of a run, of dropout and of each method; their state is saved and restored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from .dropout import DropoutStream
from .seeds import stream_seed


class RandomStream:
    """One named source of noise on one device.

    Args:
        seed: Of the stream, in [0, 2**63).
        device: Where the noise is drawn.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device
        self._generator = torch.Generator(device).manual_seed(seed)
        self._masks = DropoutStream(seed) if device.type == "cpu" else None  # torch draws masks on one thread

    def normal(self, like: Tensor) -> Tensor:
        """Standard normals of a tensor's shape, float32."""
        return torch.randn(like.shape, generator=self._generator, dtype=torch.float32, device=self.device)

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) of a tensor's shape, float32."""
        return torch.rand(like.shape, generator=self._generator, dtype=torch.float32, device=self.device)

    def kept(self, like: Tensor, probability: float) -> Tensor:
        """Factors 1 / p with probability p, else 0, of a tensor's shape; p in (0, 1], float32.

        On the CPU p is realised to the nearest 1/65536.
        """
        if probability == 1.0:
            return torch.ones(like.shape, dtype=torch.float32, device=self.device)
        if self._masks is not None:
            return self._masks.factors(torch.empty(like.shape, dtype=torch.float32, device="cpu"), 1.0 - probability)
        drawn = torch.empty(like.shape, dtype=torch.float32, device=self.device)
        return drawn.bernoulli_(probability, generator=self._generator).div_(probability)

    def restart(self, seed: int | None = None) -> None:
        """Go back to the start of this or another seed's stream."""
        self.seed = self.seed if seed is None else seed
        self._generator.manual_seed(self.seed)
        if self._masks is not None:
            self._masks.seed, self._masks.position = self.seed, 0

    def state(self) -> dict[str, Any]:
        """Return the state of the stream."""
        return {
            "generator": self._generator.get_state(),
            "masks": None if self._masks is None else self._masks.position,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a state of :meth:`state`, an earlier or a later one."""
        self._generator.set_state(state["generator"])
        if self._masks is not None:
            self._masks.position = state["masks"]


class RandomStreams:
    """All sources of a run that move on while it trains.

    Where processes divide the examples of a run, each has dropout and streams of its own for draws in a forward pass;
    all other streams are equal in all processes.

    Args:
        seed: The run's seed.
        device: Of the run.
        rank: Of this process; rank 0 draws like a run in one process.
    """

    def __init__(
        self,
        seed: int,
        device: torch.device | None = None,
        rank: int = 0,
    ) -> None:
        self.seed, self.rank = seed, rank
        self.device = device or torch.device("cpu")
        self._mark = f"/rank {rank}" if rank else ""  # in the names of the process's own sources
        self._per_rank: set[str] = set()  # names of the process's own streams
        self.dropout = DropoutStream(self._seed_of_rank("dropout"))
        self._named: dict[str, RandomStream] = {}
        self._kept: dict[str, Any] = {}  # restored states of streams that nobody has asked for yet
        self._apart: dict[str, Any] = {}  # where dropout of the extra passes of a name stands
        self._own: dict[str, Any] = {}  # torch's generators, as this run left them in ``separate``

    def __getitem__(self, name: str) -> RandomStream:
        """Return the stream of this name, which starts when it is first asked for."""
        if name not in self._named:
            self._named[name] = RandomStream(self._seed_of(name), self.device)
            if name in self._kept:
                self._named[name].restore(self._kept.pop(name))
        return self._named[name]

    def per_rank(self, name: str) -> RandomStream:
        """Return this process's own stream of this name; a name is either per process or the same in all."""
        self._per_rank.add(name)
        return self[name]

    def state(self) -> dict[str, Any]:
        """Return the states of all of them, as tensors and plain values."""
        named = {name: stream.state() for name, stream in self._named.items()}
        return {
            **self._sources(), "named": {**self._kept, **named}, "apart": dict(self._apart),
            "mark": self._mark, "own": sorted(self._per_rank),
        }  # fmt: skip

    def restore(self, states: dict[str, Any]) -> None:
        """Go to a state of :meth:`state`, an earlier or a later one; streams outside it start afresh."""
        self._set_sources(states)
        self._apart = dict(states["apart"])
        self._kept = dict(states["named"])
        self._per_rank |= set(states["own"])
        renamed, self._mark = self._mark != states["mark"], states["mark"]
        for name, stream in self._named.items():
            if renamed or name not in self._kept:
                stream.restart(self._seed_of(name))
            if name in self._kept:
                stream.restore(self._kept.pop(name))

    def resume(self, states: Sequence[dict[str, Any]], ranks: int, step: int) -> None:
        """Go on from a checkpoint.

        Args:
            states: States of :meth:`state` in each process then.
            ranks: Processes now. With as many as then, all is as if nothing had happened; with another number, the
                streams of single processes start anew, under a name with the step, so that no draw comes twice.
            step: Of the checkpoint.
        """
        if len(states) == ranks:
            self.restore(states[self.rank])
            return
        everyone = {name: state for name, state in states[0]["named"].items() if name not in states[0]["own"]}
        mark = f"/rank {self.rank}/step {step}"
        seed = stream_seed(self.seed, f"dropout{mark}")
        torch.manual_seed(seed)
        sources = {**self._sources(), "seed": seed, "dropout": 0}
        self.restore({**sources, "named": everyone, "apart": {}, "mark": mark, "own": states[0]["own"]})

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Set all sources back at the end: draws inside leave no trace."""
        states = self.state()
        try:
            yield
        finally:
            self.restore(states)

    def replay(self) -> AbstractContextManager[None]:
        """Return a context, for as many times as wanted, in which draws are those from now on and leave no trace."""
        return _Replay(self)

    @contextmanager
    def apart(self, name: str) -> Iterator[None]:
        """Draw dropout from a source of this name inside: extra passes shift no mask of plain ones."""
        outside = self._sources()
        if name in self._apart:
            self._set_sources(self._apart[name])
        else:
            seed = self._seed_of_rank(f"{name}/dropout")
            self.dropout.seed, self.dropout.position = seed, 0
            torch.manual_seed(seed)
        try:
            yield
        finally:
            self._apart[name] = self._sources()
            self._set_sources(outside)

    @contextmanager
    def separate(self) -> Iterator[None]:
        """Draw from torch's generators as this run left them: what others draw outside shifts nothing inside.

        For loops whose data loaders, samplers or callbacks draw from them too. The first time the run's seed is set.
        """
        outside = self._generators()
        if self._own:
            self._set_generators(self._own)
        else:
            torch.manual_seed(self.dropout.seed)
        try:
            yield
        finally:
            self._own = self._generators()
            self._set_generators(outside)

    def _seed_of(self, name: str) -> int:
        return self._seed_of_rank(name) if name in self._per_rank else stream_seed(self.seed, name)

    def _seed_of_rank(self, name: str) -> int:
        return stream_seed(self.seed, name + self._mark)

    def _sources(self) -> dict[str, Any]:
        """States of the generators that dropout draws from."""
        return {"seed": self.dropout.seed, "dropout": self.dropout.position, **self._generators()}

    def _set_sources(self, states: dict[str, Any]) -> None:
        self.dropout.seed, self.dropout.position = states["seed"], states["dropout"]
        self._set_generators(states)

    def _generators(self) -> dict[str, Any]:
        """States of torch's own."""
        states: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def _set_generators(self, states: dict[str, Any]) -> None:
        torch.set_rng_state(states["cpu"])
        if self.device.type == "cuda" and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], self.device)


class _Replay(AbstractContextManager[None]):
    """Draws inside are those that followed when this was made."""

    def __init__(self, streams: RandomStreams) -> None:
        self._streams, self._then, self._stack = streams, streams.state(), ExitStack()

    def __enter__(self) -> None:
        self._stack.enter_context(self._streams.preserved())
        self._streams.restore(self._then)

    def __exit__(self, *error: object) -> None:
        self._stack.close()
