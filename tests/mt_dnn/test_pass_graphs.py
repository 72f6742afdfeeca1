"""Which passes are recorded, with a stand-in for torch's graphs; those themselves: test_pass_graphs_gpu.py."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from module.methods import METHODS, build_method
from mt_dnn import pass_graphs
from mt_dnn.encoder import varlen
from mt_dnn.encoder.batch import fill, pack
from mt_dnn.pass_graphs import PassGraphs
from tests.mt_dnn.encoder.small_encoders import make_cache
from tests.mt_dnn.method_runs import assembled

SIZES = [[5, 1, 9, 4], [60, 20, 3, 1]]  # 64 and 128 tokens when filled


def batch(lengths, filled=True, seed=0):
    made = pack(make_cache(lengths, seed), np.arange(len(lengths)))
    return fill(made, 4) if filled else made


class Room:
    """Of :class:`mt_dnn.pass_graphs._Memory`."""

    enough = True

    def __init__(self, parameters):
        pass

    def suffices(self, graphs):
        return self.enough


@pytest.fixture
def seen(monkeypatch):
    """What was done: ("plain" or "record" or "replay", sum of token ids)."""
    done = []

    class Recorded:
        def __init__(self, batch, plain, parameters, memory):
            self.batch, self.parameters = batch, parameters
            done.append(("record", int(batch.input_ids.sum())))

        def __call__(self, batch):
            for there, new in zip(pass_graphs._inputs(self.batch), pass_graphs._inputs(batch), strict=True):
                there.copy_(new)
            done.append(("replay", int(self.batch.input_ids.sum())))
            return torch.zeros(())

    monkeypatch.setattr(pass_graphs, "_PassGraph", Recorded)
    monkeypatch.setattr(pass_graphs, "_Memory", Room)
    return done


@pytest.fixture
def graphs(seen):
    """Passes over batches of four examples through a network of two layers."""
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    context = SimpleNamespace(examples=4, streams=SimpleNamespace(preserved=torch.no_grad))

    def plain(batch, weight):
        seen.append(("plain", int(batch.input_ids.sum())))
        return torch.zeros(())

    return PassGraphs(network, context, plain)


def kinds(seen):
    return [kind for kind, _ in seen]


def test_a_size_is_recorded_when_it_comes_again_and_replayed_on_the_new_batch(graphs, seen):
    for lengths, seed in ((SIZES[0], 0), (SIZES[1], 1), (SIZES[0], 2), (SIZES[0], 3), (SIZES[1], 4)):
        graphs(batch(lengths, seed=seed), 1.0)
    assert kinds(seen) == ["plain", "plain", "record", "replay", "replay", "record", "replay"]
    for place, (lengths, seed) in {3: (SIZES[0], 2), 4: (SIZES[0], 3), 6: (SIZES[1], 4)}.items():
        assert seen[place][1] == int(batch(lengths, seed=seed).input_ids.sum())


def nothing(network, context):
    return batch(SIZES[0]), 1.0


def not_filled(network, context):
    return batch(SIZES[0], filled=False), 1.0


def with_a_weight(network, context):
    return batch(SIZES[0]), 0.5


def one_of_several(network, context):
    context.examples = 8
    return nothing(network, context)


def with_a_hook(network, context):
    network[1].register_forward_hook(lambda *_: None)
    return nothing(network, context)


def with_a_hook_on_a_gradient(network, context):
    network[1].weight.register_post_accumulate_grad_hook(lambda _: None)
    return nothing(network, context)


def with_a_hook_on_a_tensor(network, context):
    network[1].weight.register_hook(lambda _: None)
    return nothing(network, context)


def onto_gradients(network, context):
    network[1].bias.grad = torch.zeros(2)
    return nothing(network, context)


@pytest.mark.parametrize(
    "change",
    [
        not_filled, with_a_weight, one_of_several, with_a_hook, with_a_hook_on_a_gradient, with_a_hook_on_a_tensor,
        onto_gradients,
    ],
)  # fmt: skip
def test_what_is_not_as_it_was_recorded_goes_the_plain_way(graphs, seen, change):
    for _ in range(2):
        graphs(batch(SIZES[0]), 1.0)
    graphs(*change(graphs._network, graphs._context))
    assert kinds(seen) == ["plain", "record", "replay", "plain"]


@pytest.mark.parametrize("what", ["place", "training"])
def test_parameters_that_change_are_recorded_anew(graphs, seen, what):
    for _ in range(2):
        graphs(batch(SIZES[0]), 1.0)
    weight = graphs._network[0].weight
    if what == "place":
        weight.data = weight.data.clone()
    else:
        weight.requires_grad_(False)
    for _ in range(2):
        graphs(batch(SIZES[0]), 1.0)
    assert kinds(seen) == ["plain", "record", "replay", "plain", "record", "replay"]


def test_without_room_nothing_is_recorded(graphs, seen, monkeypatch):
    monkeypatch.setattr(Room, "enough", False)
    for _ in range(3):
        graphs(batch(SIZES[0]), 1.0)
    assert kinds(seen) == ["plain"] * 3


def test_what_cannot_be_recorded_names_the_switch(graphs, monkeypatch):
    def fail(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(pass_graphs, "_PassGraph", fail)
    graphs(batch(SIZES[0]), 1.0)
    with pytest.raises(RuntimeError, match=r"\(operation not permitted .*\); use --cuda_graphs false"):
        graphs(batch(SIZES[0]), 1.0)


def test_every_entry_that_a_pass_reads_is_copied():
    """A new entry of a batch must be copied too, or be made from what is."""
    fields = set(batch(SIZES[0]).__dataclass_fields__)
    copied = {"input_ids", "position_ids", "token_type_ids", "labels", "first_tokens", "cu_seqlens"}
    size = {"max_seqlen", "filled"}
    unread = {"indices", "slots"}  # attention without padding needs no slots
    assert fields == copied | size | unread
    assert len(pass_graphs._inputs(batch(SIZES[0]))) == len(copied)


PLAIN = {
    "vanilla", "no_hidden_dropout", "no_dropout", "head_learning_rate", "frozen_embeddings", "noisytune", "sage",
    "pats", "matched_noise", "component_clip", "child_tuning", "reinit", "recadam", "llrd", "ema", "swa", "bitfit",
    "lora",
}  # fmt: skip


def test_which_methods_have_the_passes_of_plain_fine_tuning():
    assert {name for name, method in METHODS.items() if method.plain_pass} == PLAIN


@pytest.mark.parametrize("name", sorted(PLAIN - {"lora"}))
def test_plain_passes_have_nothing_of_a_method_in_them(tiny_run, name):
    parts = assembled(tiny_run(method=name, learning_rate=1e-5))
    assert not parts.model.embedding_hooks
    modules = [*parts.network.modules()]
    assert not any(map(pass_graphs.hooked, modules))
    assert {type(m).__module__.split(".")[0] for m in modules} == {"torch", "transformers", "mt_dnn", "module"}
    assert {type(m).__name__ for m in modules if type(m).__module__.startswith("module.")} <= {
        "StreamDropout", "RowSparseEmbedding",
    }  # fmt: skip


def test_one_method_of_a_composition_decides():
    assert build_method("noisytune+pats", {}).plain_pass
    assert not build_method("hype+pats", {}).plain_pass


@pytest.mark.parametrize(
    ("changes", "recorded"),
    [
        ({}, True),
        ({"method": "sage"}, True),
        ({"method": "rdrop"}, False),
        ({"grad_accumulation_step": 2}, False),
        ({"compile": True}, False),
        ({"gradient_checkpointing": True}, False),
        ({"cuda_graphs": False}, False),
        ({"attention": "padded"}, False),
    ],
    ids=str,
)
def test_which_runs_record_their_passes(tiny_run, monkeypatch, changes, recorded):
    config = tiny_run(**changes)
    assert not assembled(config).graphs
    monkeypatch.setattr(varlen, "_is_cuda", lambda _: True)
    assert assembled(config).graphs is recorded
