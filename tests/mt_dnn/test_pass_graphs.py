"""Which passes are recorded, with a stand-in for torch's graphs; those themselves: test_pass_graphs_gpu.py."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from module.method import FineTuningMethod
from module.methods import METHODS, build_method
from module.methods.pats import PATSMethod
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
            pass_graphs.take(self.batch, batch)
            done.append(("replay", int(self.batch.input_ids.sum())))
            return torch.zeros(())

    monkeypatch.setattr(pass_graphs, "_PassGraph", Recorded)
    monkeypatch.setattr(pass_graphs, "_Memory", Room)
    return done


@pytest.fixture
def graphs(seen):
    """Passes over batches of four examples through a network of two layers."""
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network.insert(1, nn.Dropout(0.5))
    model = SimpleNamespace(embedding_hooks=[])
    context = SimpleNamespace(examples=4, streams=SimpleNamespace(preserved=torch.no_grad), model=model)

    def plain(batches, weight=1.0):
        seen.append(("plain", *(int(batch.input_ids.sum()) for batch in batches)))
        return torch.zeros(())

    return PassGraphs(network, context, plain)


def kinds(seen):
    return [kind for kind, *_ in seen]


def test_a_size_is_recorded_when_it_comes_again_and_replayed_on_the_new_batch(graphs, seen):
    for lengths, seed in ((SIZES[0], 0), (SIZES[1], 1), (SIZES[0], 2), (SIZES[0], 3), (SIZES[1], 4)):
        graphs([batch(lengths, seed=seed)])
    assert kinds(seen) == ["plain", "plain", "record", "replay", "replay", "record", "replay"]
    for place, (lengths, seed) in {3: (SIZES[0], 2), 4: (SIZES[0], 3), 6: (SIZES[1], 4)}.items():
        assert seen[place][1] == int(batch(lengths, seed=seed).input_ids.sum())


def nothing(network, context):
    return ([batch(SIZES[0])],)


def not_filled(network, context):
    return ([batch(SIZES[0], filled=False)],)


def with_a_weight(network, context):
    return [batch(SIZES[0])], 0.5


def several(network, context):
    context.examples = 8
    return ([batch(SIZES[0])] * 2,)


def one_of_several(network, context):
    context.examples = 8
    return nothing(network, context)


def with_a_hook(network, context):
    network[2].register_forward_hook(lambda *_: None)
    return nothing(network, context)


def with_a_hook_on_a_gradient(network, context):
    network[2].weight.register_post_accumulate_grad_hook(lambda _: None)
    return nothing(network, context)


def with_a_hook_on_a_tensor(network, context):
    network[2].weight.register_hook(lambda _: None)
    return nothing(network, context)


def with_a_hook_on_embeddings(network, context):
    context.model.embedding_hooks.append(lambda embeddings, batch: embeddings)
    return nothing(network, context)


def onto_gradients(network, context):
    network[2].bias.grad = torch.zeros(2)
    return nothing(network, context)


@pytest.mark.parametrize(
    "change",
    [
        not_filled, with_a_weight, several, one_of_several, with_a_hook, with_a_hook_on_a_gradient,
        with_a_hook_on_a_tensor, with_a_hook_on_embeddings, onto_gradients,
    ],
)  # fmt: skip
def test_what_is_not_as_it_was_recorded_goes_the_plain_way(graphs, seen, change):
    for _ in range(2):
        graphs([batch(SIZES[0])])
    graphs(*change(graphs._modules[0], graphs._context))
    assert kinds(seen) == ["plain", "record", "replay", "plain"]


def to_another_place(network):
    network[0].weight.data = network[0].weight.data.clone()


def freeze(network):
    network[0].weight.requires_grad_(False)


def drop_more(network):
    network[1].p = 0.6


def drop_nothing(network):
    network[1].eval()


@pytest.mark.parametrize("change", [to_another_place, freeze, drop_more, drop_nothing])
def test_what_changes_is_recorded_anew(graphs, seen, change):
    for _ in range(2):
        graphs([batch(SIZES[0])])
    change(graphs._modules[0])
    for _ in range(2):
        graphs([batch(SIZES[0])])
    assert kinds(seen) == ["plain", "record", "replay", "plain", "record", "replay"]


def test_without_room_nothing_is_recorded(graphs, seen, monkeypatch):
    monkeypatch.setattr(Room, "enough", False)
    for _ in range(3):
        graphs([batch(SIZES[0])])
    assert kinds(seen) == ["plain"] * 3


def test_what_cannot_be_recorded_names_the_cause_and_the_switch(graphs, monkeypatch):
    def fail(*_):
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")  # torch's second word

    monkeypatch.setattr(pass_graphs, "_PassGraph", fail)
    graphs([batch(SIZES[0])])
    with pytest.raises(RuntimeError, match=r"\(operation not permitted .*\); use --cuda_graphs false"):
        graphs([batch(SIZES[0])])


def test_every_entry_that_a_pass_reads_is_copied():
    """A new entry of a batch must be copied too, or be made from what is."""
    made, other, place = (
        replace(batch(SIZES[0], seed=seed), soft_labels=torch.full((4, 2), float(seed))) for seed in (0, 1, 2)
    )
    copied = {"input_ids", "position_ids", "token_type_ids", "labels", "first_tokens", "cu_seqlens", "soft_labels"}
    unread = {"indices", "slots"}  # attention without padding needs no slots
    of_a_size = {"max_seqlen", "span", "task"}  # passes of several tasks are not recorded
    assert made.__dataclass_fields__.keys() == copied | unread | of_a_size
    assert {id(x) for x in pass_graphs._inputs(made)} == {id(getattr(made, name)) for name in copied}
    pass_graphs.take(place, other)
    assert all(torch.equal(getattr(place, name), getattr(other, name)) for name in copied)


@pytest.mark.parametrize(
    ("free", "peak", "graphs", "enough"),
    [
        (1_000, 300, 0, True),  # 40 of gradients, twice the 250 of a pass
        (520, 300, 0, True),
        (519, 300, 0, False),  # with 20 reserved and not allocated
        (1_000, 300, 5, True),  # six graphs have 240 of 1,000
        (1_000, 300, 6, False),
    ],
)
def test_room_for_gradients_and_for_two_passes(monkeypatch, free, peak, graphs, enough):
    cuda = torch.cuda
    for name, value in {
        "Stream": None, "graph_pool_handle": None, "reset_peak_memory_stats": None, "mem_get_info": (free, 1_000),
        "memory_allocated": 50, "memory_reserved": 70, "max_memory_allocated": peak,
    }.items():  # fmt: skip
        monkeypatch.setattr(cuda, name, lambda *_, value=value: value)
    weights = [nn.Parameter(torch.zeros(10)), nn.Parameter(torch.zeros(99), requires_grad=False)]
    assert pass_graphs._Memory(weights).suffices(graphs) is enough


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


class Mixin:
    def gradients(self, context, batches, inner):
        return inner(batches)


@pytest.mark.parametrize("hook", ["setup", "before_fit", "gradients", "extra_loss", "after_step"])
def test_a_hook_in_which_a_pass_may_be_changed_makes_it_no_plain_one(hook):
    method = type("Own", (PATSMethod,), {"name": "own", hook: getattr(FineTuningMethod, hook)})
    assert not method.plain_pass
    assert type("Said", (method,), {"name": "said", "plain_pass": True}).plain_pass
    assert type("Other", (PATSMethod,), {"name": "other", "metrics": lambda *_: {}}).plain_pass


def test_a_hook_from_beside_the_methods_counts():
    mixed = type("Mixed", (Mixin, FineTuningMethod), {"name": "mixed"})
    assert (mixed.plain_pass, mixed.divisible, mixed.needs_dense_gradients) == (False, False, True)


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
