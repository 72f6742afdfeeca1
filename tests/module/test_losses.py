import pytest
import torch

from module.losses import divergence


def test_divergence():
    a, b = torch.randn(5, 3), torch.randn(5, 3)
    p, q = torch.softmax(a.double(), 1), torch.softmax(b.double(), 1)
    expected = ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()).item()
    assert float(divergence(a, b, False)) == pytest.approx(expected, rel=1e-5)
    assert float(divergence(b, a, False)) == pytest.approx(expected, rel=1e-5)
    assert float(divergence(a, a, False)) == 0.0
    scores = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [2.5]])
    assert float(divergence(*scores, True)) == pytest.approx(4.25)
