"""Shares of a training step's time by kind of work, from torch's profiler.

The kind goes by the names of torch's operations. Multiplications count as dropout; dropout inside of attention and of a
residual norm, in one pass with them, counts as theirs. What no kind claims, such as residual sums and gradients of
biases, is other. The profiler's own cost is the host's.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any
from unittest import mock

from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.matrix_products import PRODUCTS
from module.clipping import clip_gradients, clip_in_step
from module.dropout import DropoutStream

# Kinds of work, in the order of the report, and the operations of each. An operation that is in none counts as the
# nearest one around it that is: filling a padded slot as attention's, looking up a row as embedding.
KINDS = {
    "matrix_products": tuple(PRODUCTS),
    "attention_rest": (
        "_softmax", "_softmax_backward_data", "_Unpack", "_UnpackBackward", "_Pack", "_PackBackward", "SliceBackward0",
        "cat", "_Attention", "_AttentionBackward", "_SelfAttention", "_SelfAttentionBackward", "_FirstTokens",
        "_FirstTokensBackward",
    ),
    "norms": ("native_layer_norm", "native_layer_norm_backward", "_ResidualNorm", "_ResidualNormBackward"),
    "activation": ("gelu", "gelu_backward", "tanh", "tanh_backward", "relu", "threshold_backward"),
    "dropout": ("mul", "native_dropout", "native_dropout_backward"),
    "embedding": ("embedding", "embedding_dense_backward", "_Lookup", "_LookupBackward"),
    "casts_and_copies": ("copy_", "_to_copy", "clone"),
    "clipping": (), "optimizer": (), "host": (), "other": (),
}  # fmt: skip
KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}
# Everything inside of these is of their kind; the optimizers' are torch's own marks.
RANGES = {"clipping": "clipping", "dropout": "dropout", "Optimizer.step": "optimizer", "Optimizer.zero_grad": "host"}
# Operations that touch no numbers. Nor do autograd's nodes, whose work is in the operations that they call.
BOOKKEEPING = {
    "alias", "as_strided", "contiguous", "detach", "empty", "empty_like", "empty_strided", "expand", "expand_as",
    "linear", "matmul", "permute", "reshape", "resolve_conj", "resolve_neg", "select", "slice", "split", "squeeze", "t",
    "to", "transpose", "unbind", "unsqueeze", "_unsafe_view", "view",
}  # fmt: skip


def shares(step: Callable[[], None]) -> dict[str, float]:
    """Share of each of the ``KINDS`` in the time of a step, from torch's profiler; their sum is 1."""
    with (
        mock.patch("mt_dnn.training_step.clip_gradients", _marked("clipping", clip_gradients)),
        mock.patch("mt_dnn.training_step.clip_in_step", _marked("clipping", clip_in_step)),
        mock.patch.object(DropoutStream, "factors", _marked("dropout", DropoutStream.factors)),
        profile(activities=[ProfilerActivity.CPU]) as profiler,
        record_function("step"),
    ):
        step()
    spent = dict.fromkeys(KINDS, 0.0)
    for event in profiler.events():
        spent[kind_of(event)] += event.self_cpu_time_total
    return {kind: microseconds / sum(spent.values()) for kind, microseconds in spent.items()}


def _marked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return function(*args, **kwargs)

    return call


def kind_of(event: Any) -> str:
    """The kind of work of an event of torch's profiler, without the events inside of it."""
    own_is_operation = event.name.startswith("aten::")
    names = []  # its own and those around it: "mm" of aten::mm, "Optimizer.step" of Optimizer.step#Adamax.step
    while event is not None:
        names.append(event.name.rpartition(":")[2].strip().partition("#")[0])
        event = event.cpu_parent
    if ranges := [RANGES[name] for name in names if name in RANGES]:
        return ranges[-1]
    if names[0] not in KIND_OF and (names[0] in BOOKKEEPING or not own_is_operation):
        return "host"
    return next((KIND_OF[name] for name in names if name in KIND_OF), "other")
