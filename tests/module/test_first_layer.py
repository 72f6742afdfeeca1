"""Hidden states behind the embeddings, seen and replaced."""

import torch
from torch import nn

from module.methods.parts.first_layer import FirstLayer


class Shared(nn.Module):
    """Embeddings and one layer that is called twice, by a name or by place."""

    def __init__(self, by_name):
        super().__init__()
        self.embeddings, self.layer, self.by_name = nn.Embedding(9, 4), Layer(), by_name

    def forward(self, ids):
        hidden = self.embeddings(ids)
        for _ in range(2):
            hidden = self.layer(hidden_states=hidden) if self.by_name else self.layer(hidden)
        return hidden


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(4, 4)

    def forward(self, hidden_states):
        return torch.tanh(self.dense(hidden_states))


def test_the_first_call_of_a_pass_is_seen_and_replaced():
    ids = torch.tensor([[1, 2, 3]])
    for by_name in (True, False):
        network = Shared(by_name)
        first = FirstLayer(network, network.layer)
        plain = network(ids)
        assert torch.equal(first.seen(), network.embeddings.weight[ids].detach())
        assert not first.seen().requires_grad
        other = torch.randn(1, 3, 4, requires_grad=True)
        with first.given(other):
            found = network(ids)
        assert torch.equal(found, network.layer(network.layer(other)))
        found.sum().backward()
        assert network.embeddings.weight.grad is None
        assert other.grad.any()
        assert torch.equal(first.seen(), network.embeddings.weight[ids].detach()), "a given one is not seen"
        assert torch.equal(network(ids), plain)
        first.release()
        with first.given(other):
            assert torch.equal(network(ids), plain)
