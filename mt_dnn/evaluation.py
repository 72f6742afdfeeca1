"""Scores of a network on a data set, with every example's logits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data_utils.metrics import compute_metrics
from data_utils.task_def import TaskDef
from data_utils.token_cache import TokenCache
from module.evaluating import evaluating
from mt_dnn.data_parallel import ONE_PROCESS, Ranks
from mt_dnn.loss import task_loss
from mt_dnn.network import Network
from mt_dnn.precision import Precision
from mt_dnn.prefetch import prefetch


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One pass over a data set.

    Attributes:
        metrics: all of the task's metrics, in percent.
        logits: (N, K) float32 in the order of the cache's rows.
        labels: (N,) in the same order.
        loss: mean over the N examples.
    """

    metrics: dict[str, float]
    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[Any]
    loss: float


def evaluate(
    network: Network,
    cache: TokenCache,
    task_def: TaskDef,
    batches: Sequence[npt.NDArray[np.int64]],
    device: torch.device,
    precision: Precision,
    on_batch: Callable[[int, int], None] | None = None,
    ranks: Ranks = ONE_PROCESS,
) -> Evaluation:
    """Score a network; its modes and its parameters are as before afterwards.

    Args:
        network: encoder with heads, on ``device``.
        cache: the data set, N examples.
        task_def: task with metrics and loss.
        batches: rows of the cache, every row exactly once (``data_utils.batching.evaluation_batches``).
        device: where the network is.
        precision: of the forward passes.
        on_batch: called after each batch with the number of batches done and their total.
        ranks: processes that divide the batches; each gets all logits, and so the same scores.

    Raises:
        ValueError: when the batches are not every row exactly once.
    """
    logits = all_logits(network, cache, batches, task_def.n_class, device, precision, on_batch, ranks)
    labels = np.asarray(cache.labels)
    loss = task_loss(task_def, torch.from_numpy(logits), torch.from_numpy(labels.copy()))
    return Evaluation(compute_metrics(task_def, logits, labels), logits, labels, float(loss))


def all_logits(
    network: Network,
    cache: TokenCache,
    batches: Sequence[npt.NDArray[np.int64]],
    n_class: int,
    device: torch.device,
    precision: Precision,
    on_batch: Callable[[int, int], None] | None = None,
    ranks: Ranks = ONE_PROCESS,
) -> npt.NDArray[np.float32]:
    """(N, n_class) logits in the order of the cache's rows; other arguments and errors as in :func:`evaluate`."""
    shares = [batches[rank :: ranks.size] for rank in range(ranks.size)]
    dealt = [np.asarray(b, dtype=np.int64) for share in shares for b in share]
    order = np.concatenate(dealt) if dealt else np.empty(0, np.int64)
    if not np.array_equal(np.sort(order), np.arange(len(cache))):
        raise ValueError(f"batches hold {len(order)} rows, which are not each of the {len(cache)} rows once")
    with evaluating(network):
        mine = _forward(network, cache, shares[ranks.rank], n_class, device, precision, on_batch)
    logits = np.concatenate(ranks.gather(mine))
    in_row_order = np.empty_like(logits)
    in_row_order[order] = logits
    return in_row_order


def evaluate_sets(
    network: Network,
    caches: Mapping[str, TokenCache],
    task_def: TaskDef,
    batches: Mapping[str, Sequence[npt.NDArray[np.int64]]],
    device: torch.device,
    precision: Precision,
    ranks: Ranks = ONE_PROCESS,
) -> dict[str, Evaluation]:
    """Score a network on several data sets by name; arguments and errors as in :func:`evaluate`."""
    return {
        name: evaluate(network, cache, task_def, batches[name], device, precision, ranks=ranks)
        for name, cache in caches.items()
    }


def _forward(
    network: Network,
    cache: TokenCache,
    batches: Sequence[npt.NDArray[np.int64]],
    n_class: int,
    device: torch.device,
    precision: Precision,
    on_batch: Callable[[int, int], None] | None,
) -> npt.NDArray[np.float32]:
    """(N, K) logits in the order of the batches; the host waits for the device once, at the end."""
    collected = [torch.empty((0, n_class), dtype=torch.float32, device=device)]  # a process may have no batch
    with torch.inference_mode(), precision.autocast():
        ready = prefetch(batches, lambda indices: network.encoder.batch(cache, indices, device))
        for done, batch in enumerate(ready, start=1):
            collected.append(network(batch))
            if on_batch is not None:
                on_batch(done, len(batches))
        return torch.cat(collected).cpu().numpy()
