"""Small sets of named tensors, a tiny BERT, and runs of optimizers against the references."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import torch

from module.context import MethodContext, TaskKind
from module.param_index import ParamIndex, encoder_path
from module.random_streams import RandomStreams

# An encoder's tensors in small: sizes around the block of 1,024, biases, norms, a scalar; the rest is plain.
SHAPES = {
    "bert.embeddings.word_embeddings.weight": (40, 16),
    "bert.encoder.layer.0.attention.self.query.weight": (33, 31),
    "bert.encoder.layer.0.attention.self.query.bias": (33,),
    "bert.encoder.layer.0.intermediate.dense.weight": (64, 48),
    "bert.encoder.layer.0.output.LayerNorm.weight": (16,),
    "bert.encoder.layer.0.output.LayerNorm.bias": (16,),
    "bert.encoder.layer.1.output.dense.weight": (1, 1),
    "bert.encoder.layer.1.output.dense.bias": (1024,),
    "classifier.weight": (3, 16),
    "classifier.bias": (1,),
}
PERTURBED = [n for n in SHAPES if ".layer." in n and "LayerNorm" not in n]


SCALE = 0.04  # of the parameters
PLAIN = {"dtype": torch.float32, "device": "cpu"}  # whatever torch's defaults are


def make_parameters(seed=0, dtype=torch.float32, shapes=None):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.nn.Parameter((torch.randn(shape, generator=generator, **PLAIN) * SCALE).to(dtype))
        for name, shape in (shapes or SHAPES).items()
    }


def make_context(named_parameters, network=None, seed=1, n_examples=10, **changes):
    """What methods see of a run whose network is never called."""
    kind = TaskKind("toy", regression=False)
    model = SimpleNamespace(
        autocast=nullcontext, n_examples=n_examples, task_kinds=[kind], task_kind=lambda batch: kind
    )
    network = torch.nn.Module() if network is None else network
    return MethodContext(network, ParamIndex(named_parameters), seed, RandomStreams(seed), model, **changes)


def make_gradients(step, shapes=None, scale=1e-3):
    """Gradients of one step, with a wide spread of sizes between entries, so that thresholds divide them."""
    generator = torch.Generator().manual_seed(1000 + step)
    return {
        name: torch.randn(shape, generator=generator, **PLAIN)
        * scale
        * 10 ** (torch.rand(shape, generator=generator, **PLAIN) * 2 - 2)
        for name, shape in (shapes or SHAPES).items()
    }


def set_gradients(parameters, gradients):
    for name, parameter in parameters.items():
        parameter.grad = gradients[name].to(parameter) if name in gradients else None  # its device and dtype


def float64(tensors):
    return {encoder_path(name): t.detach().double().numpy().copy() for name, t in tensors.items()}


def assert_close(got, expected, what="", tolerance=1e-6, scale=1e-30):
    """Largest difference over the largest expected value, or over ``scale`` where that is larger."""
    expected = np.asarray(expected, np.float64)
    got = np.asarray(got.detach() if isinstance(got, torch.Tensor) else got, np.float64)
    assert got.shape == expected.shape, what
    error = np.abs(got - expected).max() / max(np.abs(expected).max(), scale)
    assert error <= tolerance, f"{what}: {error:.2e} of the largest value"


def assert_same_bits(a, b):
    for (name, x), y in zip(a.items(), b.values(), strict=True):
        assert torch.equal(x.detach().view(torch.int32), y.detach().view(torch.int32)), name


def assert_nested_equal(a, b):
    """Equality of state dicts."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_nested_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_nested_equal(x, y)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    else:
        assert a == b


def train(parameters, optimizer, steps, first=1, schedule=None):
    for step in range(first, first + steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step) if schedule is None else schedule(step)
        set_gradients(parameters, make_gradients(step, {n: p.shape for n, p in parameters.items()}))
        optimizer.step()
    return parameters


def learning_rate(step):
    """Changes every step, as under a scheduler."""
    return 1e-4 * (1 + step % 7)


def tiny_bert(seed=0, **changes):
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    settings = {
        "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 40, **changes,
    }  # fmt: skip
    return BertModel(BertConfig(**settings)).eval()


def to_device(tensor, device):
    """A copy for the Triton kernels; the fixture ``device`` sends what this marks to them."""
    copy = tensor.detach().clone().to(device)
    copy = torch.nn.Parameter(copy) if isinstance(tensor, torch.nn.Parameter) else copy
    copy.simulates_cuda = True
    return copy
