"""The mean prediction of several models. Legend: M models, N examples, K classes."""

import numpy as np
from numpy.typing import NDArray


def mean_logits(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average the predictions of M models.

    Args:
        logits: (M, N, K); K = 1 are scores.

    Returns:
        (N, K): the logarithms of the mean probabilities, whose softmax these are; the mean scores; of one model its
        logits as they are.
    """
    from scipy.special import log_softmax, logsumexp

    if len(logits) == 1:
        only: NDArray[np.float32] = logits[0]
        return only
    if logits.shape[-1] == 1:
        mean: NDArray[np.float64] = logits.mean(axis=0, dtype=np.float64)
    else:
        mean = logsumexp(log_softmax(logits.astype(np.float64), axis=-1), axis=0) - np.log(len(logits))
    return mean.astype(np.float32)
