"""One pass of a network over a data set."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from data_utils.token_cache import TokenCache
from module.evaluating import evaluating
from mt_dnn.data_parallel import ONE_PROCESS, Ranks
from mt_dnn.network import Network
from mt_dnn.precision import Precision
from mt_dnn.prefetch import prefetch


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
    """Logits of every example; the network's modes and its parameters are as before afterwards.

    Args:
        network: Encoder with heads, on ``device``.
        cache: The data set, N examples.
        batches: Rows of the cache, every row exactly once (``data_utils.batching.evaluation_batches``).
        n_class: K of the task.
        device: Where the network is.
        precision: Of the forward passes.
        on_batch: Called after each batch with the number of batches done and their total.
        ranks: Processes that divide the batches; each gets all logits.

    Returns:
        (N, K) in the order of the cache's rows.

    Raises:
        ValueError: The batches are not every row exactly once.
    """
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
