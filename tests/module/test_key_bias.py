"""Softmax ignores what is added to all scores: the key bias has no gradient, and noise on it changes no output."""

import torch

from module.bert_optim import PATSAdamax
from tests.module.models import tiny_bert

KEY_BIAS = "attention.self.key.bias"


def noisy_steps(perturb, steps=5):
    """Train a tiny BERT in float32 with loud noise on the chosen biases only; returns outputs before and after."""
    model = tiny_bert(initializer_range=0.3)
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(".bias"):
                p.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(len(name)))
    chosen = [(n, p) for n, p in model.named_parameters() if perturb in n]
    optimizer = PATSAdamax([{"params": chosen, "perturb": True}], 1.0, eps=1e30, weight_decay=0.0, **LOUD)
    with torch.no_grad():
        before = model(ids)[0]
    start = {n: p.detach().clone() for n, p in chosen}
    for _ in range(steps):
        model.zero_grad()
        model(ids)[0].square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        after = model(ids)[0]
    moved = min((p - start[n]).abs().max().item() for n, p in chosen)
    return before, after, moved, {n: p.grad.abs().max().item() for n, p in chosen}


LOUD = {"threshold_mode": "none", "noise_scale": 0.3, "noise_probability": 1.0, "max_ratio": 10.0}


def test_noise_on_the_key_bias_changes_no_output():
    before, after, moved, _ = noisy_steps(KEY_BIAS)
    assert moved > 0.3, "the noise must be large for this to mean anything"
    torch.testing.assert_close(after, before, rtol=1e-4, atol=2e-5)


def test_the_same_noise_on_the_query_bias_does():
    before, after, moved, _ = noisy_steps("attention.self.query.bias")
    assert moved > 0.3
    assert (after - before).abs().max() > 1e-2


def test_the_key_bias_has_no_gradient_but_rounding():
    _, _, _, key = noisy_steps(KEY_BIAS, steps=1)
    _, _, _, query = noisy_steps("attention.self.query.bias", steps=1)
    assert max(key.values()) < 1e-3 * min(query.values())
