"""The network of tests/reference/toy.py in float64 torch, with all that a method may call, and steps of plain SGD."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from module.composition import Composition
from module.context import MethodContext, TaskKind
from module.methods import build_method
from module.param_index import ParamIndex
from module.random_streams import RandomStreams
from mt_dnn.assembly import Parts
from mt_dnn.encoder.batch import PackedBatch, pack, pad
from mt_dnn.precision import resolve_precision
from mt_dnn.training_step import TrainingStep

VOCABULARY, E, H, K = 12, 5, 6, 3
NAMES = {
    "E": "bert.embeddings.word_embeddings.weight",
    "W": "bert.encoder.layer.0.output.dense.weight",
    "c": "bert.encoder.layer.0.output.dense.bias",
    "V": "heads.toy.1.weight",
    "b": "heads.toy.1.bias",
}
CPU = torch.device("cpu")


class ToyNetwork(nn.Module):
    """Embeddings, one layer, one head; called like a known encoder's."""

    def __init__(self, classes):
        super().__init__()
        words = nn.ModuleDict({"word_embeddings": nn.Embedding(VOCABULARY, E)})
        layer = nn.ModuleDict({"output": nn.ModuleDict({"dense": nn.Linear(E, H)})})
        self.bert = nn.ModuleDict({"embeddings": words, "encoder": nn.ModuleDict({"layer": nn.ModuleList([layer])})})
        self.heads = nn.ModuleDict({"toy": nn.Sequential(nn.Identity(), nn.Linear(H, classes))})


class ToyModel:
    """What module.context.Model says. Keeps what each forward pass saw."""

    n_examples = 100
    precision = resolve_precision("fp32", CPU)

    def __init__(self, network, streams, dropout, regression):
        self.network, self.streams, self.dropout, self.regression = network, streams, dropout, regression
        self.embedding_hooks = []
        self.masks, self.inputs, self.noised = [], [], []
        self.layers = list(network.bert["encoder"]["layer"])
        self.context = None

    def embed(self, batch):
        return self.network.bert["embeddings"]["word_embeddings"](batch.input_ids)

    def autocast(self):
        return nullcontext()

    def logits(self, batch, inputs_embeds=None):
        x = self.embed(batch) if inputs_embeds is None else inputs_embeds
        if self.network.training:
            for hook in self.embedding_hooks:
                x = hook(x, batch)
        h = torch.tanh(self.layers[0]["output"]["dense"](x))
        if isinstance(batch, PackedBatch):
            example = torch.repeat_interleave(torch.arange(batch.size), batch.lengths.long())
            summed = h.new_zeros(batch.size, H).index_add(0, example, h)
        else:
            summed = (h * batch.attention_mask[..., None]).sum(1)
        pooled = summed / batch.lengths[:, None]
        mask = torch.ones_like(pooled)
        if self.network.training and self.dropout > 0.0:
            mask = self.streams.dropout.factors(pooled.float(), self.dropout).double()
        self.masks.append(mask.numpy())
        self.inputs.append(x.detach())
        self.noised.append(self.context.noised_pass)
        return self.network.heads["toy"](mask * pooled)

    def loss(self, logits, batch):
        if self.regression:
            return (logits[:, 0] - batch.labels).square().sum()
        return F.cross_entropy(logits, batch.labels, reduction="sum")

    def weight(self, batch):
        return 1.0

    adv_loss = None

    @property
    def task_kinds(self):
        return [TaskKind("toy", self.regression, self.adv_loss)]

    def task_kind(self, batch):
        return self.task_kinds[0]

    def divergence(self, logits, other):
        if self.regression:
            return (logits - other).square().sum()
        a, b = logits.log_softmax(-1), other.log_softmax(-1)
        return F.kl_div(b, a, log_target=True, reduction="sum") + F.kl_div(a, b, log_target=True, reduction="sum")


def build(spec, settings=None, *, dropout=0.0, regression=False, lr=0.1, seed=1, total_steps=20, adv_loss=None):
    """A training step of SGD on the toy network; ``spec`` is a method's name or a Composition."""
    torch.manual_seed(7)
    network = ToyNetwork(1 if regression else K).double()
    streams = RandomStreams(seed)
    model = ToyModel(network, streams, dropout, regression)
    model.adv_loss = adv_loss
    method = spec if isinstance(spec, Composition) else build_method(spec, settings)
    context = MethodContext(
        network, ParamIndex(network.named_parameters()), seed, streams=streams, model=model, total_steps=total_steps
    )
    model.context = context
    method.setup(context)
    context.params = ParamIndex(network.named_parameters())
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    for group in optimizer.param_groups:
        group["initial_lr"] = lr
    context.optimizer = optimizer
    step = TrainingStep(Parts(network, model, method, optimizer, context, streams), max_norm=0.0)
    method.before_fit(context)
    network.train()
    return step


def data(number, n=6, regression=False):
    """Token lists and labels of a batch."""
    rng = np.random.default_rng(number)
    examples = [rng.integers(1, VOCABULARY, rng.integers(1, 7)) for _ in range(n)]
    return examples, rng.normal(size=n) if regression else rng.integers(0, K, n)


class Rows(SimpleNamespace):
    def __len__(self):
        return len(self.labels)


def batch_of(examples, labels, packed=True):
    lengths = np.array([len(tokens) for tokens in examples])
    cache = Rows(
        tokens=np.concatenate(examples),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        segment=np.zeros(len(lengths), np.uint16),
        labels=np.asarray(labels),
    )
    rows = np.arange(len(lengths))
    return pack(cache, rows) if packed else pad(cache, rows, 0)


def theta_of(step):
    parameters = dict(step.parts.network.named_parameters())
    return {symbol: parameters[name].detach().numpy().copy() for symbol, name in NAMES.items()}


def assert_theta(step, theta, what=""):
    for symbol, value in theta_of(step).items():
        np.testing.assert_allclose(value, theta[symbol], rtol=1e-9, atol=1e-12, err_msg=f"{what} {symbol}")


def by_example(values, batch):
    """(n_tokens, E) or (B, T, E) -> list of (T_i, E) float64."""
    values, lengths = np.asarray(values, np.float64), batch.lengths.tolist()
    if isinstance(batch, PackedBatch):
        return np.split(values, np.cumsum(lengths)[:-1])
    return [row[:length] for row, length in zip(values, lengths, strict=True)]
