"""The SAN head against its reference, and runs with it."""

import json
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from data_utils.errors import SettingError
from data_utils.task_def import DataFormat, Metric, TaskDef, TaskType, load_task_defs
from module.dropout import DropoutStream, replace_dropout
from module.methods import METHODS as REGISTRY
from module.param_index import Kind, ParamIndex, Role
from mt_dnn.config import RunConfig
from mt_dnn.data import open_datasets
from mt_dnn.encoder.batch import fill, pack, pad
from mt_dnn.encoder.model import Encoder
from mt_dnn.network import Network
from mt_dnn.run import run
from mt_dnn.run_id import run_dir, run_id
from mt_dnn.san import GatedCell, SanHead, SanSettings
from mt_dnn.trained.export import export
from mt_dnn.trained.load import load_run, read_run
from mt_dnn.trained.prediction import logits_of
from tests.mt_dnn.encoder.small_encoders import PAD, Rows, make_encoder
from tests.mt_dnn.method_runs import assembled, final_weights
from tests.mt_dnn.test_resume import SETTINGS, SLOWLY, assert_same_run, run_in_parts
from tests.reference import san as reference

D = 3
PAIRS = [[4, 5], [3, 7], [9, 2], [2, 1]]  # tokens of both texts with the special ones
QUIET = {"bert_dropout_p": 0.0, "dropout_p": 0.0, "answer_mem_drop_p": 0.0}


def make_head(n_class=2, turns=5, dropout=0.0, drop=0.0, size=D):
    torch.manual_seed(1)
    head = SanHead(size, n_class, dropout, SanSettings(turns, drop)).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter, 0.0, 0.5)
    return head


def make_pairs(lengths, kind="bert"):
    """A cache of pairs: [CLS] A [SEP] B [SEP] with types, or without as RoBERTa's tokenizer, which divides twice."""
    rng, rows = np.random.default_rng(0), []
    for first, second in lengths:
        texts = [rng.integers(5, 40, n).tolist() for n in (first - 2 - (kind == "roberta"), second - 1)]
        rows.append([2, *texts[0], *([3] * (1 + (kind == "roberta"))), *texts[1], 3])
    starts = [first if kind == "bert" else 0 for first, _ in lengths]
    return Rows(
        tokens=np.concatenate(rows).astype(np.uint16), offsets=np.cumsum([0, *map(len, rows)]),
        segment=np.array(starts, np.uint16), labels=np.zeros(len(rows), np.int64),
    )  # fmt: skip


def theta_of(head):
    return {name: parameter.detach().numpy() for name, parameter in head.named_parameters()}


def states_of(batch, lengths, size=D):
    """The same states for the same token in both layouts; anything on padding."""
    real = [torch.randn(sum(pair), size, dtype=torch.float64, generator=torch.manual_seed(i))
            for i, pair in enumerate(lengths)]  # fmt: skip
    if batch.input_ids.dim() == 1:
        rest = torch.full((batch.n_tokens - sum(map(len, real)), size), 7.0, dtype=torch.float64)
        return torch.cat([*real, rest]), real
    return torch.nn.utils.rnn.pad_sequence(real, batch_first=True, padding_value=99.0), real


def layouts(lengths, kind="bert"):
    cache, rows = make_pairs(lengths, kind), range(len(lengths))
    packed = pack(cache, rows)
    return {"packed": packed, "padded": pad(cache, rows, PAD), "filled": fill(packed, 1)}


@pytest.mark.parametrize("layout", ["packed", "padded", "filled"])
@pytest.mark.parametrize("kind", ["bert", "untyped", "roberta"])
@pytest.mark.parametrize(("n_class", "turns"), [(2, 5), (3, 1), (1, 3)])
@pytest.mark.parametrize("lengths", [PAIRS, PAIRS[:1]])
def test_answers_are_those_of_the_reference(layout, kind, n_class, turns, lengths):
    lengths = [[first + (kind == "roberta"), second] for first, second in lengths]
    head, batch = make_head(n_class, turns), layouts(lengths, kind)[layout]
    states, real = states_of(batch, lengths)
    got = head(states, batch)
    for row, (first, _), tokens in zip(got, lengths, real, strict=True):
        expected = reference.answer(theta_of(head), tokens[:first].numpy(), tokens[first:].numpy(), [True] * turns)
        np.testing.assert_allclose(row.detach().numpy(), expected, rtol=1e-12, atol=1e-12)
    if n_class > 1:
        torch.testing.assert_close(got.exp().sum(1), torch.ones(len(lengths), dtype=torch.float64))


@pytest.mark.parametrize(("n_class", "turns"), [(2, 3), (3, 1), (1, 2)])
def test_gradients_are_those_of_the_reference(n_class, turns, monkeypatch):
    lengths = PAIRS[1:]
    head, batches = make_head(n_class, turns), layouts(lengths)
    kept = torch.ones(len(lengths), turns, dtype=torch.bool)
    kept[0, 0] = turns == 1
    monkeypatch.setattr(head, "_kept_turns", lambda answers: kept)
    factors = torch.linspace(1.0, 2.0, len(lengths) * n_class, dtype=torch.float64).view(-1, n_class)
    found = []
    for batch in batches.values():
        states, real = states_of(batch, lengths)
        states.requires_grad_()
        head.zero_grad()
        (head(states, batch) * factors).sum().backward()
        found.append({name: p.grad.clone() for name, p in head.named_parameters()})
        assert torch.isfinite(states.grad).all()

    def value(theta):
        rows = [reference.answer(theta, tokens[:first].numpy(), tokens[first:].numpy(), keep)
                for (first, _), tokens, keep in zip(lengths, real, kept.tolist(), strict=True)]  # fmt: skip
        return float((np.array(rows) * factors.numpy()).sum())

    expected = reference.gradient(theta_of(head), value)
    for of_layout in found:
        for name, values in expected.items():
            np.testing.assert_allclose(of_layout[name].numpy(), values, rtol=1e-6, atol=1e-8)


def test_the_cell_is_the_gated_unit_of_torch():
    cell, theirs = GatedCell(D), nn.GRUCell(D, D)
    for ours, name in ((cell.of_input, "ih"), (cell.of_state, "hh")):
        ours.load_state_dict({kind: getattr(theirs, f"{kind}_{name}").data for kind in ("weight", "bias")})
    x, state = torch.randn(2, 4, D)
    torch.testing.assert_close(cell(x, state), theirs(x, state))


def test_training_takes_the_mean_over_the_turns_that_are_kept():
    head = make_head(turns=4, drop=0.4).train()
    replace_dropout(head, DropoutStream(3))
    answers = torch.randn(4000, 4, 2)
    kept = head._kept_turns(answers)
    assert kept.any(dim=1).all()
    # One of four stays for certain, the others with probability 0.6.
    np.testing.assert_allclose(kept.float().mean(0), [0.25 + 0.75 * 0.6] * 4, atol=0.03)
    assert kept.sum(1).unique().tolist() == [1, 2, 3, 4]
    head.num_turn, state = 4, head.prediction_dropout.stream.position
    head.prediction_dropout.stream.position = 0
    assert torch.equal(kept, head._kept_turns(answers)), "the stream alone decides"
    assert head.prediction_dropout.stream.position == state


def test_dropout_of_a_turn_is_mt_dnns_to_a_constant():
    """MT-DNN: log of mean over all turns of mask / (1 - p) * softmax; cross-entropy does not see the difference."""
    head = make_head(turns=4, drop=0.4).train()
    answers = torch.randn(6, 4, 3, dtype=torch.float64)
    torch.manual_seed(5)
    kept = head._kept_turns(answers)
    torch.manual_seed(5)
    ours = head._mean(answers)
    theirs = (kept[:, :, None] / 0.6 * answers.softmax(-1)).mean(1).log()
    torch.testing.assert_close(ours.log_softmax(-1), theirs.log_softmax(-1))
    differences = ours - theirs
    torch.testing.assert_close(differences, differences[:, :1].expand(-1, 3))


def test_without_strength_training_is_deterministic():
    head, batch = make_head().train(), layouts(PAIRS)["packed"]
    states, _ = states_of(batch, PAIRS)
    stream = DropoutStream(0)
    replace_dropout(head, stream)
    assert torch.equal(head(states, batch), head(states, batch))
    assert torch.equal(head(states, batch), head.eval()(states, batch))
    assert stream.position == 0


def test_dropout_draws_the_same_in_every_layout():
    head, outs = make_head(turns=3, dropout=0.3, drop=0.3).float().train(), []
    replace_dropout(head, stream := DropoutStream(9))
    for batch in layouts(PAIRS).values():
        stream.position = 0
        outs.append(head(states_of(batch, PAIRS)[0].float(), batch))
    torch.testing.assert_close(outs[0], outs[1])
    torch.testing.assert_close(outs[0], outs[2])
    assert not torch.allclose(outs[0], head(states_of(batch, PAIRS)[0].float(), batch))


def test_probabilities_below_the_smallest_number_have_a_logarithm():
    answers = torch.tensor([[[0.0, 400.0], [0.0, 300.0]]], requires_grad=True)
    out = make_head(turns=2).eval()._mean(answers)
    torch.testing.assert_close(out, torch.tensor([[-300.0 - math.log(2), 0.0]]))
    out.sum().backward()
    assert torch.isfinite(answers.grad).all()


def pair_task(n_class=2, **changes):
    kind = TaskType.Classification if n_class > 1 else TaskType.Regression
    metric = Metric.ACC if n_class > 1 else Metric.Pearson
    return TaskDef("pair", DataFormat.PremiseAndOneHypothesis, kind, n_class, (metric,), enable_san=True, **changes)


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "modernbert", "albert", "qwen2", "gpt2"])
def test_packed_and_padded_give_the_same_logits(family):
    lengths, kind = [[6, 5], [5, 7], [9, 1]], "bert" if family in ("bert", "albert") else "roberta"
    cache, logits = make_pairs(lengths, kind), []
    for packed in (True, False):
        network = Network(
            make_encoder(family, packed), [pair_task()], [0.1], "tanh", torch.Generator().manual_seed(0)
        ).eval()
        batch = pack(cache, range(3)) if packed else pad(cache, range(3), PAD)
        logits.append(network(batch))
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)
    assert network.pooler is None


def test_the_head_is_drawn_from_the_stream_alone_and_its_parameters_have_their_roles():
    networks = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(4)
        networks.append(Network(make_encoder("bert", True), [pair_task(3)], [0.1], "tanh", generator))
    one, other = (network.heads.state_dict() for network in networks)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one["pair.cell.of_state.weight"].std().item() == pytest.approx(0.02, rel=0.2)
    for info in ParamIndex(networks[0].named_parameters()):
        if info.name.startswith("heads."):
            assert (info.role, info.pretrained) == (Role.HEAD, False)
            assert info.kind == (Kind.BIAS if info.name.endswith("bias") else Kind.WEIGHT)


@pytest.fixture
def san_run(tiny_run, tiny_task, tmp_path):
    """Make a run on pairs with a SAN head; ``task`` chooses classes or scores."""
    file = tmp_path / "san_task_def.yml"
    text = (tiny_task / "task_def.yml").read_text()
    before, score = text.split("toyscore:")
    file.write_text(f"{before}toyscore:{score.replace('enable_san: false', 'enable_san: true')}")

    def make(**changes):
        return tiny_run(**{"train_datasets": "toyscore", "task_def": file, **changes})

    return make


QUICK = ("pats", "smart", "freelb", "sam", "mixout")
METHODS = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in (*REGISTRY, "noisytune+pats", "pats+swa")
]


@pytest.mark.parametrize("method", METHODS)
def test_stopping_and_going_on_changes_nothing(san_run, tmp_path, method):
    if method == "lora":
        pytest.importorskip("peft", reason="peft is missing: see requirements-lora.txt")
    changes = {**SLOWLY, "epochs": 2, "method": method, **SETTINGS.get(method, {})}
    whole = san_run(output_dir=tmp_path / "whole", **changes)
    run(whole)
    broken = san_run(output_dir=tmp_path / "broken", **changes)
    run_in_parts(broken, 3)
    assert_same_run(whole, broken)


def test_a_run_with_a_pooled_task_beside_it(san_run):
    weights = final_weights(san_run(train_datasets="toy,toyscore", epochs=1, save="last"))
    assert {"pooler.dense.weight", "heads.toy.1.weight", "heads.toyscore.cell.of_state.bias"} < set(weights)
    alone = final_weights(san_run(epochs=1, save="last"))
    assert "pooler.dense.weight" not in alone


@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_a_run_in_bf16(san_run, attention):
    weights = final_weights(san_run(precision="bf16", attention=attention, epochs=1, save="last"))
    assert all(torch.isfinite(values).all() for values in weights.values())


def test_packed_and_padded_give_the_same_run(san_run):
    one, other = (final_weights(san_run(attention=a, epochs=1, save="last", adam_eps=1e-4, **QUIET))
                  for a in ("packed", "padded"))  # fmt: skip
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=2e-4, atol=2e-5)


def test_a_control_without_dropout_keeps_every_turn(san_run):
    head = assembled(san_run(method="no_dropout")).network.head()
    assert (head.dropout.p, head.prediction_dropout.p) == (0.0, 0.0)
    head = assembled(san_run(answer_num_turn=2, answer_mem_drop_p=0.3, dropout_p=0.2)).network.head()
    assert (head.num_turn, head.prediction_dropout.p, head.dropout.p) == (2, 0.3, 0.2)
    assert head.coin.stream is head.prediction_dropout.stream


def test_no_graphs_are_recorded_of_it(san_run, tiny_run, monkeypatch):
    monkeypatch.setattr("mt_dnn.assembly.can_record", lambda: True)
    monkeypatch.setattr(Encoder, "attends_without_padding", lambda encoder, device: True)
    assert assembled(tiny_run(train_datasets="toyscore")).graphs
    assert not assembled(san_run()).graphs


def test_predictions_are_those_of_the_run_and_an_export_is_refused(san_run, tmp_path):
    config = san_run(epochs=1)
    run(config)
    found = read_run(run_dir(config))
    model, data = load_run(found, "best", device="cpu"), open_datasets(config)
    assert isinstance(model.network.head(), SanHead)
    got = logits_of(model, data.dev["toyscore_dev"], 512)
    with np.load(run_dir(config) / "predictions.npz") as kept:
        np.testing.assert_allclose(got, kept["toyscore_dev.best_logits"], rtol=1e-4, atol=1e-5)
    assert np.ptp(got) > 0
    with pytest.raises(SettingError, match=r"^enable_san: no classification head of transformers is a SAN, .*predict"):
        export(found, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("san_first", [True, False])
def test_a_run_starts_from_one_with_another_kind_of_head(san_run, tiny_run, tmp_path, san_first):
    settings = {"epochs": 1, "train_datasets": "toyscore", "output_dir": tmp_path / "first"}
    first = san_run(**settings) if san_first else tiny_run(**settings)
    run(first)
    changes = {**settings, "output_dir": tmp_path / "second", "init_checkpoint": str(run_dir(first))}
    assert run(tiny_run(**changes) if san_first else san_run(**changes)).steps > 0


def test_its_settings_are_part_of_the_identity_and_their_defaults_are_not():
    assert run_id(RunConfig()) == run_id(RunConfig(answer_num_turn=5, answer_mem_drop_p=0.1))
    assert len({run_id(RunConfig()), run_id(RunConfig(answer_num_turn=4)), run_id(RunConfig(answer_mem_drop_p=0))}) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer_num_turn": 0}, "answer_num_turn is 0; legal: an integer in [1, 1000]"),
        ({"answer_mem_drop_p": 1.0}, "answer_mem_drop_p is 1.0; legal: a probability in [0, 1)"),
        ({"answer_mem_drop_p": math.nan}, "answer_mem_drop_p is nan; legal: a probability in [0, 1)"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(SettingError, match="^" + re.escape(message)):
        RunConfig(**changes)


@pytest.mark.parametrize("changes", [{"answer_num_turn": 3}, {"answer_mem_drop_p": 0.0}])
def test_settings_without_a_task_for_them_leave_nothing_behind(tiny_run, san_run, changes):
    config = tiny_run(**changes)
    ((name, value),) = changes.items()
    with pytest.raises(SettingError, match=f"^{name} is {value}, but task toy has no enable_san in its definition; le"):
        run(config)
    assert not run_dir(config).exists()
    run(san_run(train_datasets="toy,toyscore", epochs=1, **changes))
    assert json.loads(
        (run_dir(san_run(train_datasets="toy,toyscore", epochs=1, **changes)) / "result.json").read_text()
    )


@pytest.mark.parametrize("value", ["1", "maybe", "[true]"])
def test_enable_san_is_a_truth_value(tiny_task, tmp_path, value):
    file = tmp_path / "task_def.yml"
    file.write_text((tiny_task / "task_def.yml").read_text().replace("enable_san: false", f"enable_san: {value}"))
    with pytest.raises(SettingError, match=r"task toy: enable_san is .*; legal: true or false$"):
        load_task_defs(file)
