import numpy as np
import pytest
import torch

from data_utils.task_def import load_task_defs
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


def test_losses_are_float32_under_autocast(tasks):
    logits = torch.randn(4, 2).bfloat16()
    assert task_loss(tasks["toy"], logits, torch.zeros(4, dtype=torch.int64)).dtype == torch.float32
    assert divergence(logits, logits, regression=False).dtype == torch.float32
