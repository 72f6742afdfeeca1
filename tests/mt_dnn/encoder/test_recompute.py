"""Gradient checkpointing: the same values, gradients and masks, with layers computed twice."""

import pytest
import torch
from torch import nn

from data_utils.task_def import DataFormat, Metric, TaskDef, TaskType
from module.dropout import replace_dropout
from module.random_streams import RandomStreams
from mt_dnn.encoder.recompute import recompute
from mt_dnn.network import Network
from tests.mt_dnn.encoder.small_encoders import both, make_encoder

TASK = TaskDef("t", DataFormat.PremiseOnly, TaskType.Classification, 3, (Metric.ACC,))
LAYERS = {"distilbert": {"n_layers": 3}}  # its own name, beside the one of all
PACKED = ("bert", "roberta", "electra", "distilbert")
CASES = [*((family, packed) for family in PACKED for packed in (True, False)), ("deberta-v2", False)]


class Built:
    """A network of three layers in training, with dropout from streams, and the calls of its layers."""

    def __init__(self, family="bert", packed=True, again=True, change=lambda layers, streams: None):
        encoder = make_encoder(family, packed, num_hidden_layers=3, **LAYERS.get(family, {}))
        self.streams = RandomStreams(5)
        self.network = Network(encoder, [TASK], [0.1], "tanh", torch.Generator().manual_seed(1)).train()
        self.network.draw_dropout_from(self.streams.dropout)
        self.calls = [0, 0, 0]
        for i, layer in enumerate(encoder.layers):
            self._count(i, layer)
        change(encoder.layers, self.streams)
        if again:
            recompute(encoder.layers, self.streams)
        self.batch = both([6, 11, 3, 8])[0 if packed else 1]

    def _count(self, i, layer):
        inner = layer.forward

        def forward(*args, **named):
            self.calls[i] += 1
            return inner(*args, **named)

        if i < 2:  # the last one may be divided only as it is
            layer.forward = forward

    def pass_through(self, backwards=1):
        torch.manual_seed(3)
        logits = self.network(self.batch)
        for left in reversed(range(backwards)):
            logits.pow(2).sum().backward(retain_graph=left > 0)
        gradients = {name: p.grad for name, p in self.network.named_parameters() if p.grad is not None}
        return logits.detach(), gradients, self.streams.dropout.position, torch.rand(1)


def assert_same(one, other):
    assert torch.equal(one[0], other[0])
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        assert torch.equal(gradient, other[1][name]), name
    assert (one[2], one[3]) == (other[2], other[3]), "later draws are the same too"


@pytest.mark.parametrize(("family", "packed"), CASES)
def test_values_gradients_and_masks_are_those_of_one_pass(family, packed):
    plain, again = Built(family, packed, again=False), Built(family, packed)
    one, other = plain.pass_through(), again.pass_through()
    assert_same(one, other)
    assert (plain.calls, again.calls) == ([1, 1, 0], [2, 2, 0])
    assert_same(plain.pass_through(), again.pass_through())


def test_another_backward_pass_over_the_same_graph_is_the_same():
    assert_same(Built(again=False).pass_through(backwards=2), Built().pass_through(backwards=2))


def test_nothing_is_computed_twice_where_there_is_no_backward_pass():
    built = Built()
    with torch.no_grad():
        built.network(built.batch)
    built.network.eval()
    built.network(built.batch).sum().backward()
    assert built.calls == [2, 2, 0]


class Noisy(nn.Module):
    """A part of a layer that draws from a stream of the run, and from torch's own generator."""

    def __init__(self, inner, streams):
        super().__init__()
        self.inner, self.streams = inner, streams

    def forward(self, *args, **named):
        out = self.inner(*args, **named)
        return out * self.streams.per_rank("noise").kept(out, 0.5) + torch.rand(1) * self.streams["other"].normal(out)


def put_noise_in(layers, streams):
    for layer in layers:
        layer.intermediate = Noisy(layer.intermediate, streams)


@pytest.mark.parametrize("packed", [True, False])
def test_noise_inside_a_layer_is_drawn_again_as_it_was(packed):
    plain, again = (Built(packed=packed, again=again, change=put_noise_in) for again in (False, True))
    assert_same(plain.pass_through(), again.pass_through())
    assert plain.streams["noise"].state()["masks"] == again.streams["noise"].state()["masks"] > 0


def test_a_hook_on_a_layers_call_is_called_once():
    seen = []

    def hook(layers, streams):
        layers[0].register_forward_pre_hook(lambda *_: seen.append("before"))
        layers[0].register_forward_hook(lambda *_: seen.append("after"))

    Built(change=hook).pass_through()
    assert seen == ["before", "after"]


def test_less_is_kept_for_the_backward_pass():
    kept = {}
    for again in (False, True):
        built, sizes = Built(again=again), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            built.network(built.batch)
        kept[again] = sum(sizes)
    assert kept[True] < 0.6 * kept[False]


@pytest.mark.parametrize("packed", [True, False])
def test_a_layer_that_is_called_again_and_again_is_computed_again_each_time(packed):
    found, streams = [], []
    for again in (False, True):
        encoder, own = make_encoder("albert", packed, num_hidden_layers=3), RandomStreams(5)
        for module in encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.1
        replace_dropout(encoder, own.dropout)
        encoder.dropout_stream = own.dropout
        if again:
            recompute(list(encoder.model.encoder.albert_layer_groups[0].albert_layers), own)
        out = encoder.train()(both([6, 11, 3, 8])[0 if packed else 1])
        out.pow(2).sum().backward()
        found.append((out.detach(), {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}))
        streams.append(own.dropout.position)
    assert_same((*found[0], *streams[:1], 0), (*found[1], *streams[1:], 0))
    assert streams[0] > 0
