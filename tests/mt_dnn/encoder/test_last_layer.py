"""The last layer for the first tokens alone: the whole layer's numbers from B rows, in every family."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data_utils.task_def import load_task_defs
from mt_dnn.encoder.last_layer import _LAYERS as DIVIDED
from mt_dnn.encoder.model import Encoder
from mt_dnn.network import POOLER_ACTIVATIONS, Network
from tests.mt_dnn.encoder.small_encoders import EXTRA, SMALL, both, make_encoder

LENGTHS = [[5, 9, 1, 3], [7], [1, 1], [4, 4, 4], [37, 3, 20, 4, 35, 2, 19, 5]]
TOLERANCE = {torch.float64: {"rtol": 1e-9, "atol": 1e-10}, torch.float32: {"rtol": 1e-4, "atol": 1e-3}}


def whole(self, batch, inputs_embeds=None):
    """``pooled`` out of the states of all tokens."""
    return self.pool(self(batch, inputs_embeds=inputs_embeds), batch)


def pair(family, packed, dtype=torch.float64):
    """The same encoder with a short and with a whole last layer."""
    short = make_encoder(family, packed).to(dtype)
    full = copy.deepcopy(short)
    full.pooled = whole.__get__(full)
    return short, full


def batch_of(lengths, packed):
    return both(lengths)[0 if packed else 1]


def rows_of_linear(monkeypatch, call):
    """Rows that enter each linear layer of a call, by the layer's weight."""
    linear, rows = F.linear, {}

    def counting(x, weight, bias=None):
        rows.setdefault(id(weight), []).append(x.numel() // x.shape[-1])
        return linear(x, weight, bias)

    with monkeypatch.context() as patch:
        patch.setattr(F, "linear", counting)
        call()
    return rows


def gradients(encoder):
    return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("family", DIVIDED)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_values_and_gradients_are_the_whole_layers(family, packed, lengths):
    batch = batch_of(lengths, packed)
    short, full = pair(family, packed)
    embedded = [encoder.embed(batch).detach().requires_grad_() for encoder in (short, full)]
    outs = [encoder.pooled(batch, x) for encoder, x in zip((short, full), embedded, strict=True)]
    assert outs[0].shape == (batch.size, short.hidden_size)
    torch.testing.assert_close(*outs, **TOLERANCE[torch.float64])
    for out in outs:
        out.pow(2).sum().backward()
    torch.testing.assert_close(embedded[0].grad, embedded[1].grad, **TOLERANCE[torch.float64])
    torch.testing.assert_close(gradients(short), gradients(full), **TOLERANCE[torch.float64])
    with torch.inference_mode():
        torch.testing.assert_close(short.pooled(batch), full.pooled(batch), **TOLERANCE[torch.float64])


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("family", DIVIDED)
def test_other_tokens_reach_the_first_through_keys_and_values_alone(family, packed, monkeypatch):
    lengths = [5, 9, 2]
    batch, encoder = batch_of(lengths, packed), make_encoder(family, packed)
    everything = sum(lengths) if packed else len(lengths) * max(lengths)
    for training in (True, False):
        encoder.train(training)
        rows = rows_of_linear(monkeypatch, lambda: encoder.pooled(batch))
        layer = encoder._last_layer._layers()[-1]
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                last_call = rows[id(module.weight)][-1]
                keys = name.split(".")[-1] in ("key", "value", "k_lin", "v_lin")
                assert last_call == (everything if keys else len(lengths)), name
    calls = {len(found) for found in rows.values()}
    assert calls == ({1, 2} if family == "albert" else {1})


@pytest.mark.parametrize("pooler", POOLER_ACTIVATIONS)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", DIVIDED)
def test_twenty_steps_end_at_the_same_weights(family, dtype, packed, pooler, tiny_task):
    task = load_task_defs(tiny_task / "task_def.yml")["toy"]
    batch = batch_of([6, 9, 2, 4], packed)
    batch.labels[::2] = 1
    trained = []
    for encoder in pair(family, packed, dtype):
        encoder.initializer_range = 0.3
        network = Network(encoder, [task], [0.0], pooler, torch.Generator().manual_seed(0)).to(dtype)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(network(batch), batch.labels).backward()
            optimizer.step()
        trained.append({name: p.detach() for name, p in network.named_parameters()})
    start = dict(make_encoder(family, packed).to(dtype).named_parameters())
    assert any((p - trained[0][f"encoder.{name}"]).abs().max() > 1e-3 for name, p in start.items())
    tolerance = {torch.float64: {"rtol": 0, "atol": 1e-9}, torch.float32: {"rtol": 0, "atol": 1e-3}}[dtype]
    torch.testing.assert_close(*trained, **tolerance)


FORWARD, BACKWARD = "register_forward_hook", "register_full_backward_hook"


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("kind", "place"),
    [(FORWARD, place) for place in ("model", "stack", "layer", "attention", "self", "query")]
    + [(BACKWARD, place) for place in ("layer", "attention", "self", "query")],
)
def test_a_hook_that_reads_the_last_layer_keeps_it_whole(kind, place, packed):
    batch, encoder = batch_of([5, 9, 2], packed), make_encoder("bert", packed).double()
    expected = encoder.pooled(batch)
    layer, seen = encoder.layers[-1], []
    modules = {"model": encoder.model, "stack": encoder.model.encoder, "layer": layer, "attention": layer.attention,
               "self": layer.attention.self, "query": layer.attention.self.query}  # fmt: skip
    handle = getattr(modules[place], kind)(lambda module, inputs, outputs: seen.append((inputs, outputs)))
    got = encoder.pooled(batch)
    got.sum().backward()
    torch.testing.assert_close(got, expected, **TOLERANCE[torch.float64])
    if kind == FORWARD:
        output = seen[0][1]
        output = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", output)
        assert output.shape[:2] == ((1, 16) if packed else (3, 9))
    assert len(seen) == 1
    handle.remove()
    assert encoder._last_layer.countdown() is not None


def test_a_hook_on_the_encoder_or_on_every_module_is_called_with_all_tokens():
    batch, encoder = batch_of([5, 9, 2], True), make_encoder("bert", True)
    shapes = []
    handle = encoder.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    encoder.pooled(batch)
    handle.remove()
    assert shapes == [(16, 16)]
    called = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(module))
    encoder.pooled(batch)
    handle.remove()
    assert encoder.layers[-1].attention.self in called
    assert encoder._last_layer.countdown() is not None


@pytest.mark.parametrize("packed", [True, False])
def test_a_hook_on_the_layers_input_sees_all_tokens_and_is_obeyed(packed, monkeypatch):
    batch = batch_of([5, 9, 2], packed)
    short, full = pair("bert", packed)
    for encoder in (short, full):

        def noise(layer, inputs, named):
            shape = inputs[0].shape
            return (
                inputs[0] + torch.linspace(0, 1, inputs[0].numel(), dtype=inputs[0].dtype).view(shape),
                *inputs[1:],
            ), named

        encoder.layers[-1].register_forward_pre_hook(noise, with_kwargs=True)
    rows = rows_of_linear(monkeypatch, lambda: short.pooled(batch))
    assert rows[id(short.layers[-1].output.dense.weight)] == [3]
    torch.testing.assert_close(short.pooled(batch), full.pooled(batch), **TOLERANCE[torch.float64])
    assert not torch.allclose(short.pooled(batch), pair("bert", packed)[0].pooled(batch))


def test_replaced_parts_are_called_or_keep_the_layer_whole():
    """A new linear layer is called as it is; a new attention, whose forward would be passed over, is not divided."""
    batch = batch_of([5, 9, 2], True)

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    for encoder in (pair_of := pair("bert", True)):
        own = encoder.layers[-1].attention.self
        for name in ("query", "key", "value"):
            new = Doubled(16, 16).double()
            new.load_state_dict(getattr(own, name).state_dict())
            setattr(own, name, new)
    short, full = pair_of
    assert short._last_layer.countdown() is not None
    torch.testing.assert_close(short.pooled(batch), full.pooled(batch), **TOLERANCE[torch.float64])

    class Louder(type(own)):
        def forward(self, *args, **named):
            out, weights = super().forward(*args, **named)
            return 2 * out, weights

    for encoder in pair_of:
        encoder.layers[-1].attention.self.__class__ = Louder
    assert short._last_layer.countdown() is None
    torch.testing.assert_close(short.pooled(batch), full.pooled(batch), **TOLERANCE[torch.float64])


def test_layers_taken_off_or_put_on_top_later_are_whole():
    batch = batch_of([5, 9, 2], True)
    for change in (lambda layers: layers[:1], lambda layers: layers[::-1]):
        short, full = pair("bert", True)
        for encoder in (short, full):
            encoder.model.encoder.layer = change(encoder.model.encoder.layer)
        torch.testing.assert_close(short.pooled(batch), full.pooled(batch), **TOLERANCE[torch.float64])


def test_copies_and_pickles_are_divided_and_stand_alone():
    batch, encoder = batch_of([5, 9, 2], True), make_encoder("bert", True)
    expected = encoder.pooled(batch)
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert other._last_layer.countdown() is not None
        assert torch.equal(other.pooled(batch), expected)
        nn.init.zeros_(other.layers[-1].output.LayerNorm.weight)
        nn.init.zeros_(other.layers[-1].output.LayerNorm.bias)
        assert other.pooled(batch).abs().sum() == 0
    assert torch.equal(encoder.pooled(batch), expected)


@pytest.mark.parametrize("changes", [{"num_hidden_groups": 2}, {"inner_group_num": 2}, {"num_hidden_layers": 3}])
def test_albert_calls_its_layers_again_and_again(changes):
    from transformers import AlbertConfig, AlbertModel

    torch.manual_seed(0)
    model = AlbertModel(AlbertConfig(**{**SMALL, **EXTRA["albert"], **changes}), add_pooling_layer=False).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.0, 0.2)
    encoder = Encoder(model, packed=False).eval()
    batch = batch_of([5, 9, 2], False)
    torch.testing.assert_close(encoder.pooled(batch), whole(encoder, batch), **TOLERANCE[torch.float64])
    assert encoder._last_layer.countdown() is not None


@pytest.mark.parametrize("family", ["deberta-v2", "mpnet"])
def test_families_with_positions_in_every_layer_keep_it_whole(family):
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SMALL, relative_attention=True, pos_att_type=["c2p", "p2c"])
    encoder = Encoder(AutoModel.from_config(config), packed=False).eval()
    batch = batch_of([5, 9, 2], False)
    assert encoder._last_layer.countdown() is None
    torch.testing.assert_close(encoder.pooled(batch), whole(encoder, batch), rtol=0, atol=0)


@pytest.mark.parametrize("family", [pytest.param("bert", marks=pytest.mark.slow), "albert"])
def test_a_compiled_model_is_divided_too(family):
    batch = batch_of([5, 9, 2], True)
    encoder = make_encoder(family, True)
    expected = encoder.pooled(batch)
    encoder.model.compile(dynamic=True, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(encoder.pooled(batch), expected)


def test_dropout_of_the_last_layer_is_drawn_for_the_first_tokens():
    from module.dropout import DropoutStream, replace_dropout

    encoder = make_encoder("bert", True).train()
    batch = batch_of([4, 4, 4], True)
    encoder.dropout_stream = stream = DropoutStream(3)
    replace_dropout(encoder, stream)
    first = encoder.pooled(batch)
    taken = stream.position
    stream.position = 0
    assert torch.equal(first, encoder.pooled(batch))
    assert not torch.equal(first, encoder.pooled(batch))
    assert stream.position == 2 * taken
