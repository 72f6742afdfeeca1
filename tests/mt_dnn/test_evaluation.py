import numpy as np
import pytest
import torch
from sklearn.metrics import matthews_corrcoef

from data_utils.batching import evaluation_batches
from mt_dnn.data import open_datasets
from mt_dnn.encoder.model import load_encoder
from mt_dnn.encoder.source import resolve_encoder
from mt_dnn.evaluation import evaluate
from mt_dnn.network import Network
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
        network = Network(encoder, data.task_def, 0.1, "tanh", torch.Generator().manual_seed(1))
        with torch.no_grad():
            network.heads[network.task][1].weight.mul_(50)  # logits that differ
        return network

    return network


def in_order(cache):
    return [np.arange(len(cache))]


def test_logits_are_in_row_order_whatever_the_batches(make, data, cache):
    network = make()
    one = evaluate(network, cache, data.task_def, in_order(cache), CPU, FP32)
    assert one.logits.shape == (30, data.task_def.n_class)
    assert one.logits.dtype == np.float32
    assert len({*one.logits[:, 0]}) > 10
    for batches in (np.split(np.arange(30)[::-1], [4, 11, 29]), evaluation_batches(cache.lengths, 40)):
        other = evaluate(network, cache, data.task_def, batches, CPU, FP32)
        np.testing.assert_allclose(one.logits, other.logits, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_metrics_and_loss_are_those_of_the_logits(make, data, cache):
    network = make()
    logits = evaluate(network, cache, data.task_def, in_order(cache), CPU, FP32).logits
    with torch.no_grad():  # predictions of both classes
        network.heads[network.task][1].bias -= torch.from_numpy(np.median(logits, axis=0))
    result = evaluate(network, cache, data.task_def, evaluation_batches(cache.lengths, 50), CPU, FP32)
    labels = np.array(cache.labels)
    if data.task_def.name == "toy":
        predicted = result.logits.argmax(axis=1)
        assert 0 < predicted.mean() < 1
        assert result.metrics["ACC"] == pytest.approx(100 * (predicted == labels).mean())
        assert result.metrics["MCC"] == pytest.approx(100 * matthews_corrcoef(labels, predicted))
        shifted = result.logits - result.logits.max(axis=1, keepdims=True)
        chosen = shifted[np.arange(30), labels] - np.log(np.exp(shifted).sum(axis=1))
        assert result.loss == pytest.approx(-chosen.mean(), rel=1e-5)
    else:
        assert result.metrics["Pearson"] == pytest.approx(
            100 * np.corrcoef(result.logits[:, 0], labels)[0, 1], rel=1e-4
        )
        assert result.loss == pytest.approx(((result.logits[:, 0] - labels) ** 2).mean(), rel=1e-5)


def test_packed_and_padded_agree(make, data, cache):
    batches = evaluation_batches(cache.lengths, 60)
    packed, padded = (evaluate(make(a), cache, data.task_def, batches, CPU, FP32) for a in ("packed", "padded"))
    np.testing.assert_allclose(packed.logits, padded.logits, rtol=1e-4, atol=1e-4)


def test_modes_and_dropout_stream_are_left_alone(make, data, cache):
    network = make().train()
    network.encoder.eval()  # a frozen part
    torch.manual_seed(3)
    before = torch.get_rng_state()
    evaluate(network, cache, data.task_def, in_order(cache), CPU, FP32)
    assert torch.equal(torch.get_rng_state(), before)
    assert network.training
    assert network.pooler.dropout.training
    assert not network.encoder.model.training


def test_modes_come_back_after_an_error(make, data, cache):
    network = make().train()

    def fail(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(network, cache, data.task_def, in_order(cache), CPU, FP32, on_batch=fail)
    assert network.encoder.training


def test_progress_counts_batches(make, data, cache):
    seen = []
    batches = np.array_split(np.arange(30), 4)
    evaluate(make(), cache, data.task_def, batches, CPU, FP32, on_batch=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_bf16_logits_come_as_float32_near_the_fp32_ones(make, data, cache):
    network = make()
    exact = evaluate(network, cache, data.task_def, in_order(cache), CPU, FP32).logits
    rounded = evaluate(network, cache, data.task_def, in_order(cache), CPU, resolve_precision("bf16", CPU)).logits
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


def test_a_missing_or_doubled_row_is_refused(make, data, cache):
    rows = np.arange(30)
    for batches in ([rows[:-1]], [rows, rows[:1]], []):
        with pytest.raises(ValueError, match="each of the 30 rows once"):
            evaluate(make(), cache, data.task_def, batches, CPU, FP32)


def test_a_network_gone_nan_scores_nan(make, data, cache):
    network = make()
    with torch.no_grad():
        network.pooler.dense.bias[0] = float("nan")
    result = evaluate(network, cache, data.task_def, in_order(cache), CPU, FP32)
    assert np.isnan(result.loss)
    assert all(np.isnan(value) for value in result.metrics.values())
