"""One run divided among processes that torchrun started: the ranks and their communication.

Every rank has the whole network and knows the whole order of the data. It computes the gradients of its share of a
step's examples, and the ranks add them up. What follows (clipping, the method's hooks, optimizer, PATS's noise) each
does for itself, with equal numbers and equal random streams: the copies stay equal bit for bit, with nothing broadcast.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from data_utils.errors import SettingError
from mt_dnn.interrupt import RankLost

TIMEOUT = timedelta(minutes=10)  # how long a rank waits for one that neither answers nor ends
_SYNCHRONIZE_EVERY = 10  # steps, to let the hosts run ahead of their GPUs

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of a run, and which of them this one is. Without arguments: a run in one process.

    With more than one, every method is a collective: all ranks must call it, in the same order. Objects travel over
    gloo between the hosts, so no GPU is waited for.
    """

    rank: int = 0
    size: int = 1
    device: str | None = None
    """The GPU of this rank; None: the device of the run's configuration."""

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone writes, logs and holds the lock."""
        return self.rank == 0

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all ranks, by rank; they can be pickled and hold no tensors on a GPU."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with self._communication():
            dist.all_gather_object(found, value)
        return found

    def on_first(self, do: Callable[[], Value]) -> Value:
        """Call on rank 0 alone; the others wait for its value.

        Raises:
            RankLost: on the others, where rank 0 raised; it raises its own error.
        """
        if self.size == 1:
            return do()
        if not self.first:
            value, refusal = self._from_first(None)
            if refusal is not None:
                raise RankLost(f"process 0 stopped ({refusal})")
            return value  # type: ignore[no-any-return]
        try:
            value = do()
        except Exception as error:
            self._from_first((None, _line(error)))
            raise
        self._from_first((value, None))
        return value

    def first_before_others(self, do: Callable[[], Value]) -> Value:
        """Call on rank 0, then on the others, each for itself: they find the files that the first has made."""
        made: list[Value] = []
        self.on_first(lambda: made.append(do()))
        return made[0] if made else do()

    def broadcast_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return rank 0's tensors and plain values on every rank; on the others tensors are on the CPU."""
        buffer = io.BytesIO()
        if self.first:
            torch.save(state, buffer)
        content = self.on_first(buffer.getvalue)
        return state if self.first else torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    def all_reduce_max(self, value: int) -> int:
        """Return the largest of the ranks' values."""
        box = torch.tensor(value, dtype=torch.int64, device="cpu")
        self.all_reduce(box, dist.ReduceOp.MAX)
        return int(box)

    def synchronizes_at(self, step: int, always: bool) -> bool:
        """Whether the ranks synchronize on checkpoints and signals after this step; their hosts wait then."""
        return self.size == 1 or always or step % _SYNCHRONIZE_EVERY == 0

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite the tensors of all ranks with rank 0's."""
        if self.size > 1:
            with self._communication():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def check_same(self, what: str, value: object) -> None:
        """Refuse to go on where a rank has another value than rank 0.

        Raises:
            SettingError: names the rank and both values.
        """
        found = self.gather(value)
        for rank, other in enumerate(found):
            if other != found[0]:
                raise SettingError(
                    f"{what} of process {rank} is {other!r}, of process 0 {found[0]!r}; start all processes with the "
                    f"same command, data and encoder, and with output_dir on storage that all machines share"
                )

    def check_copies(self, state: Mapping[str, Tensor]) -> None:
        """Check that tensors of all ranks are equal bit for bit, by a sum of their bits; waits for the device.

        Raises:
            RuntimeError: they are not; names the first that differs.
        """
        if self.size == 1:
            return
        sums = torch.stack([_bits(tensor).sum(dtype=torch.int64) for tensor in state.values()])  # (tensors,)
        for rank, other in enumerate(self.gather(sums.cpu())):
            if not torch.equal(other, sums.cpu()):
                name = list(state)[int((other != sums.cpu()).nonzero()[0])]
                raise RuntimeError(
                    f"the copies of {name!r} in processes {self.rank} and {rank} are not equal: a method draws noise "
                    f"for weights from a stream of the process, or the machines compute differently"
                )

    def all_reduce(self, tensor: Tensor, operation: Any = dist.ReduceOp.SUM) -> None:
        """Replace a tensor by its sum (or another operation) over the ranks, the same bits on all of them."""
        if self.size > 1:
            with self._communication():
                dist.all_reduce(tensor, operation)

    def _from_first(self, value: Any) -> Any:
        box = [value]
        with self._communication():
            dist.broadcast_object_list(box, 0)
        return box[0]

    @contextmanager
    def _communication(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RankLost(
                f"process {self.rank} of {self.size} lost the others ({_line(error)}); "
                f"the same command goes on from the last checkpoint"
            ) from error


ONE_PROCESS = Ranks()


@contextmanager
def join(device: str) -> Iterator[Ranks]:
    """Join the processes of one run as torchrun's environment tells; alone without one.

    Args:
        device: The run's setting. ``auto`` and ``cuda`` become one GPU per process of a machine.

    Raises:
        SettingError: the machine has fewer GPUs than processes, or all processes would share one.
        RankLost: the others cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        yield ONE_PROCESS
        return
    ranks = Ranks(int(os.environ["RANK"]), size, _gpu_of_rank(device))
    with ranks._communication():
        dist.init_process_group("cpu:gloo,cuda:nccl" if ranks.device else "gloo", timeout=TIMEOUT)
    try:
        yield ranks
    except RankLost:
        raise  # NCCL would wait for the lost rank in order to end in good order
    except BaseException:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _gpu_of_rank(setting: str) -> str | None:
    """The GPU of this process among those of its machine; None where the run is on the CPU."""
    if setting == "cpu" or (setting == "auto" and not torch.cuda.is_available()):
        return None
    place, processes = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if setting not in ("auto", "cuda"):
        if processes > 1:
            raise SettingError(
                f"device is {setting!r}, one GPU for {processes} processes; use auto: each process takes its own"
            )
        return setting
    if processes > torch.cuda.device_count():
        raise SettingError(
            f"device is {setting!r}: {processes} processes on a machine with {torch.cuda.device_count()} CUDA devices; "
            f"start one per GPU (torchrun --nproc_per_node) or use --device cpu"
        )
    return f"cuda:{place}"


def _bits(tensor: Tensor) -> Tensor:
    """A tensor's bits as integers."""
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(sizes[tensor.element_size()])


def _line(error: Exception) -> str:
    """Return the first sentence of an error, without the place in torch's sources before gloo's."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[\S+\] ", "", text).split(". ")[0]
