"""Methods with the last layer for the first tokens alone: without dropout, the run is that of the whole layer."""

import pytest
import torch

from mt_dnn.encoder.model import Encoder
from tests.mt_dnn.method_runs import build

# Those that come nearest to a forward pass: noise at layers and embeddings, replaced linear layers, second passes,
# perturbed weights.
METHODS = ["vanilla", "pats", "hype", "smart", "freelb", "r3f", "rdrop", "mixout", "lora", "sam"]


def whole(self, batch, inputs_embeds=None):
    return self.pool(self(batch, inputs_embeds=inputs_embeds), batch)


@pytest.mark.parametrize("attention", ["packed", "padded"])
@pytest.mark.parametrize("method", METHODS)
def test_steps_of_a_method_are_those_with_the_whole_layer(tiny_run, monkeypatch, method, attention):
    if method == "lora":
        pytest.importorskip("peft")
    config = tiny_run(method=method, attention=attention, bert_dropout_p=0.0, dropout_p=0.0, learning_rate=1e-3)
    weights, short = [], Encoder.pooled
    for pooled in (short, whole):
        monkeypatch.setattr(Encoder, "pooled", pooled)
        parts, step, batches = build(config)
        assert parts.network.encoder._last_layer.countdown() is not None
        for batch in batches:
            step(batch)
        weights.append({name: p.detach() for name, p in parts.network.named_parameters()})
    torch.testing.assert_close(*weights, rtol=0, atol=2e-5)
