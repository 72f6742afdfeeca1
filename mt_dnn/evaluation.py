"""One pass of a network over a data set."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from data_utils.prefetch import prefetch
from data_utils.token_cache import TokenCache
from module.evaluating import evaluating
from mt_dnn.data_parallel import ONE_PROCESS, Ranks
from mt_dnn.network import Network
from mt_dnn.precision import Precision


def all_logits(
    network: Network,
    cache: TokenCache,
    batches: Sequence[npt.NDArray[np.int64]],
    n_class: int,
    device: torch.device,
    precision: Precision,
    ranks: Ranks = ONE_PROCESS,
    task: str = "",
) -> npt.NDArray[np.float32]:
    """Logits of every example; the network's modes and its parameters are as before afterwards.

    Args:
        network: Encoder with heads, on ``device``.
        cache: The data set, N examples.
        batches: Rows of the cache, every row exactly once (``data_utils.batching.evaluation_batches``).
        n_class: K of the task.
        device: Where the network is.
        precision: Of the forward passes.
        ranks: Processes that divide the batches; each gets all logits.
        task: Of the data set, where the network has several heads.

    Returns:
        (N, K) in the order of the cache's rows.

    Raises:
        ValueError: The batches are not every row exactly once.
    """
    shares = [batches[rank :: ranks.size] for rank in range(ranks.size)]
    dealt = [np.asarray(batch, dtype=np.int64) for share in shares for batch in share]
    order = np.concatenate(dealt) if dealt else np.empty(0, np.int64)
    if not np.array_equal(np.sort(order), np.arange(len(cache))):
        raise ValueError(f"batches hold {len(order)} rows, which are not each of the {len(cache)} rows once")
    collected = [torch.empty((0, n_class), dtype=torch.float32, device=device)]  # a process may have no batch
    with evaluating(network), torch.inference_mode(), precision.autocast():
        ready = prefetch(shares[ranks.rank], lambda rows: network.encoder.batch(cache, rows, device, task=task))
        collected += [network(batch) for batch in ready]
        found = torch.cat(collected).cpu().numpy()  # the host waits for the device once, here
    logits = np.concatenate(ranks.gather(found))
    in_row_order = np.empty_like(logits)
    in_row_order[order] = logits
    return in_row_order
