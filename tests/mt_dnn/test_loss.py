import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_utils.task_def import DataFormat, Metric, TaskDef, TaskType, load_task_defs
from module.losses import divergence
from mt_dnn.loss import task_loss


@pytest.fixture
def tasks(tiny_task):
    return load_task_defs(tiny_task / "task_def.yml")


def test_cross_entropy(tasks):
    logits = torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 3.0]])
    labels = torch.tensor([1, 1, 0])
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    expected = -np.log(p[[0, 1, 2], [1, 1, 0]])
    assert float(task_loss(tasks["toy"], logits, labels)) == pytest.approx(expected.mean(), rel=1e-6)
    assert float(task_loss(tasks["toy"], logits, labels, "sum")) == pytest.approx(expected.sum(), rel=1e-6)
    assert task_loss(tasks["toy"], logits, labels, "none").tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_squared_error_does_not_broadcast(tasks):
    logits, labels = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 0.0, 1.0])
    assert float(task_loss(tasks["toyscore"], logits, labels)) == pytest.approx((0 + 4 + 9) / 3)
    assert float(task_loss(tasks["toyscore"], logits, labels, "sum")) == pytest.approx(13)
    assert task_loss(tasks["toyscore"], logits, labels, "none").tolist() == pytest.approx([0, 4, 9])


def smoothed_and_weighted(logits, labels, smoothing, weights):
    """(B,) float64, in the symbols of the definition: -sum_k w_k q_k log p_k."""
    z = logits.astype(np.float64)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    q = np.full(z.shape, smoothing / z.shape[1])
    q[np.arange(len(z)), labels] += 1.0 - smoothing
    return -(weights * q * log_p).sum(1)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 0.9]), st.booleans())
@settings(max_examples=30)
def test_smoothing_and_weights_are_those_of_the_definition(seed, smoothing, weighted):
    rng = np.random.default_rng(seed)
    classes, rows = int(rng.integers(2, 6)), int(rng.integers(1, 9))
    task = TaskDef("t", DataFormat.PremiseOnly, TaskType.Classification, classes, (Metric.ACC,))
    logits = rng.normal(0.0, 3.0, (rows, classes)).astype(np.float32)
    labels = rng.integers(0, classes, rows)
    weights = rng.uniform(0.1, 5.0, classes).astype(np.float32) if weighted else None
    expected = smoothed_and_weighted(logits, labels, smoothing, 1.0 if weights is None else weights)
    batch = (torch.tensor(logits), torch.tensor(labels))
    changes = (smoothing, None if weights is None else torch.tensor(weights))
    assert task_loss(task, *batch, "none", *changes).numpy() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert float(task_loss(task, *batch, "sum", *changes)) == pytest.approx(expected.sum(), rel=1e-5, abs=1e-5)
    assert float(task_loss(task, *batch, "mean", *changes)) == pytest.approx(expected.mean(), rel=1e-5, abs=1e-6)


def test_an_example_counts_the_same_however_a_batch_is_divided(tasks):
    logits, labels = torch.randn(6, 2), torch.tensor([0, 0, 0, 0, 0, 1])
    changes = 0.1, torch.tensor([0.5, 3.0])
    whole = task_loss(tasks["toy"], logits, labels, "sum", *changes)
    parts = [task_loss(tasks["toy"], logits[a:b], labels[a:b], "sum", *changes) for a, b in ((0, 5), (5, 6))]
    torch.testing.assert_close(sum(parts), whole)


def test_losses_are_float32_under_autocast(tasks):
    logits = torch.randn(4, 2).bfloat16()
    assert task_loss(tasks["toy"], logits, torch.zeros(4, dtype=torch.int64)).dtype == torch.float32
    assert divergence(logits, logits, regression=False).dtype == torch.float32
