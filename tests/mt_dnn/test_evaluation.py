import numpy as np
import pytest
import torch

from data_utils.batching import evaluation_batches
from mt_dnn.data import open_datasets
from mt_dnn.encoder.model import load_encoder
from mt_dnn.encoder.source import resolve_encoder
from mt_dnn.evaluation import all_logits
from mt_dnn.network import Network, Pooler
from mt_dnn.precision import resolve_precision

CPU = torch.device("cpu")
FP32 = resolve_precision("fp32", CPU)


@pytest.fixture(params=["toy", "toyscore"])
def data(tiny_run, request):
    return open_datasets(tiny_run(train_datasets=request.param))


@pytest.fixture
def cache(data):
    (cache,) = data.dev.values()
    return cache


@pytest.fixture
def make(tiny_encoder, data):
    def network(attention="auto"):
        encoder = load_encoder(
            resolve_encoder(str(tiny_encoder)), hidden_dropout=0.1, attention_dropout=0.1, attention=attention
        )
        network = Network(encoder, [data.task_def], [0.1], "tanh", torch.Generator().manual_seed(1))
        with torch.no_grad():
            network.head()[1].weight.mul_(50)  # logits that differ
        return network

    return network


def in_order(cache):
    return [np.arange(len(cache))]


def logits_of(network, data, batches, precision=FP32):
    (cache,) = data.dev.values()
    return all_logits(network, cache, batches, data.task_def.n_class, CPU, precision)


def test_logits_are_in_row_order_whatever_the_batches(make, data, cache):
    network = make()
    one = logits_of(network, data, in_order(cache))
    assert one.shape == (30, data.task_def.n_class)
    assert one.dtype == np.float32
    assert len({*one[:, 0]}) > 10
    for batches in (np.split(np.arange(30)[::-1], [4, 11, 29]), evaluation_batches(cache.lengths, 40)):
        other = logits_of(network, data, batches)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_packed_and_padded_agree(make, data, cache):
    batches = evaluation_batches(cache.lengths, 60)
    packed, padded = (logits_of(make(a), data, batches) for a in ("packed", "padded"))
    np.testing.assert_allclose(packed, padded, rtol=1e-4, atol=1e-4)


def test_modes_and_dropout_stream_are_left_alone(make, data, cache):
    network = make().train()
    network.encoder.eval()  # a frozen part
    torch.manual_seed(3)
    before = torch.get_rng_state()
    logits_of(network, data, in_order(cache))
    assert torch.equal(torch.get_rng_state(), before)
    assert network.training
    assert network.pooler.dropout.training
    assert not network.encoder.model.training


def test_modes_come_back_after_an_error(make, data, cache, monkeypatch):
    network = make().train()

    def fail(pooler, first_token):
        assert not network.encoder.training
        raise KeyboardInterrupt

    monkeypatch.setattr(Pooler, "forward", fail)
    with pytest.raises(KeyboardInterrupt):
        logits_of(network, data, in_order(cache))
    assert network.encoder.training


def test_bf16_logits_come_as_float32_near_the_fp32_ones(make, data, cache):
    network = make()
    exact = logits_of(network, data, in_order(cache))
    rounded = logits_of(network, data, in_order(cache), resolve_precision("bf16", CPU))
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


def test_a_missing_or_doubled_row_is_refused(make, data, cache):
    rows = np.arange(30)
    for batches in ([rows[:-1]], [rows, rows[:1]], []):
        with pytest.raises(ValueError, match="each of the 30 rows once"):
            logits_of(make(), data, batches)


def test_a_network_gone_nan_has_nan_logits(make, data, cache):
    network = make()
    with torch.no_grad():
        network.pooler.dense.bias[0] = float("nan")
    assert np.isnan(logits_of(network, data, in_order(cache))).all()
