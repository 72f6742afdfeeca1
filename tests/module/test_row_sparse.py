"""Row-sparse gradients give what dense ones give: the gradient, the norm, and every step, bit for bit."""

import copy

import pytest
import torch
from torch import nn

from module.bert_optim import Adamax, PATSAdamax, SAGEAdamax
from module.clipping import clip_gradients, gradient_values
from module.row_sparse import RowSparseEmbedding, can_be_row_sparse

ROWS, WIDTH = 300, 24  # blocks of 1,024 entries begin inside rows
OPTIMIZERS = {
    "mtdnn": lambda named: Adamax(named, 1e-2),
    "torch": lambda named: Adamax(named, 1e-2, rule="torch", weight_decay=0.1),
    "pats": lambda named: PATSAdamax(named, 1e-2, sensitivity_threshold=1.0),
    "sage": lambda named: SAGEAdamax(named, 1e-2),
}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = nn.ModuleDict({"word_embeddings": nn.Embedding(ROWS, WIDTH, padding_idx=0)})
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList([nn.ModuleDict({"dense": nn.Linear(WIDTH, 8)})])})

    def forward(self, ids):
        return self.encoder["layer"][0]["dense"](self.embeddings["word_embeddings"](ids)).tanh()


def make_models():
    torch.manual_seed(0)
    dense = Model()
    sparse = copy.deepcopy(dense)
    sparse.embeddings["word_embeddings"] = RowSparseEmbedding(sparse.embeddings["word_embeddings"])
    return dense, sparse


def make_ids(step, n=60):
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, ROWS if step % 2 else 9, (n,), generator=generator)  # few rows: many repeats


def backward(model, step, parts=1):
    model.zero_grad(set_to_none=True)
    for ids in make_ids(step).chunk(parts):
        model(ids).square().sum().backward()


def table(model):
    return model.embeddings["word_embeddings"].weight


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("step", range(4))
def test_gradient_equals_the_dense_one(step, parts):
    dense, sparse = make_models()
    backward(dense, step, parts)
    backward(sparse, step, parts)
    assert table(sparse).grad.is_sparse
    assert torch.equal(table(sparse).grad.to_dense(), table(dense).grad)
    assert len(gradient_values(table(sparse))) == make_ids(step).unique().numel()  # each row once


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_equal_the_dense_ones_bit_for_bit(name):
    dense, sparse = make_models()
    optimizers = [OPTIMIZERS[name](model.named_parameters()) for model in (dense, sparse)]
    for step in range(20):
        for model, optimizer in zip((dense, sparse), optimizers, strict=True):
            if step == 13:
                model.zero_grad(set_to_none=True)  # no gradient for anything
            else:
                backward(model, step, parts=1 + step % 3)
            optimizer.step()
    for expected, got in zip(dense.parameters(), sparse.parameters(), strict=True):
        assert torch.equal(got, expected)
        states = [o.state[p] for o, p in zip(optimizers, (expected, got), strict=True)]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[1][key], value) for key, value in states[0].items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_tables(dtype):
    tables = [nn.Parameter(torch.randn(40, 6, generator=torch.Generator().manual_seed(1)).to(dtype)) for _ in range(2)]
    rows, values = torch.tensor([3, 17, 39]), torch.randn(3, 6).to(dtype)
    with pytest.warns(UserWarning, match="rounded"):
        optimizers = [Adamax([t], 1e-2) for t in tables]
    for _ in range(3):
        tables[0].grad = torch.zeros_like(tables[0]).index_copy(0, rows, values)
        tables[1].grad = torch.sparse_coo_tensor(rows[None], values, (40, 6), check_invariants=True)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(*tables)


def test_clipping_counts_each_row_once_and_scales_like_torch():
    dense, sparse = make_models()
    for model in (dense, sparse):
        backward(model, 2, parts=3)  # step 2: many repeats, in several backward passes
    wanted = nn.utils.clip_grad_norm_(dense.parameters(), 0.5)
    got = clip_gradients(sparse.parameters(), 0.5)
    assert wanted > 1
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(table(sparse).grad.to_dense(), table(dense).grad, rtol=1e-6, atol=0)


def test_small_gradients_are_not_touched():
    _, sparse = make_models()
    backward(sparse, 1)
    before = [gradient_values(p).clone() for p in sparse.parameters()]
    norm = clip_gradients(sparse.parameters(), 1e9)
    assert norm > 0
    for was, parameter in zip(before, sparse.parameters(), strict=True):
        assert torch.equal(gradient_values(parameter), was)


def test_clipping_without_gradients():
    assert clip_gradients([nn.Parameter(torch.zeros(3))], 1.0) == 0


def test_a_row_without_entries_and_an_empty_gradient():
    weight = nn.Parameter(torch.ones(5, 3))
    other = nn.Parameter(torch.ones(5, 3))
    optimizers = [Adamax([p], 1e-2) for p in (weight, other)]
    weight.grad = torch.sparse_coo_tensor(
        torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0, 3), (5, 3), check_invariants=True
    )
    other.grad = torch.zeros(5, 3)
    for optimizer in optimizers:
        optimizer.step()
    assert torch.equal(weight, other)


def test_non_finite_rows_refuse_the_step():
    _, sparse = make_models()
    optimizer = Adamax(sparse.named_parameters(), 1e-2)
    backward(sparse, 1)
    gradient_values(table(sparse))[3, 2] = torch.nan
    before = table(sparse).detach().clone()
    with pytest.raises(RuntimeError, match=r"word_embeddings\.weight' is not finite"):
        optimizer.step()
    assert torch.equal(table(sparse), before)


def test_tensors_with_a_sensitivity_need_dense_gradients():
    _, sparse = make_models()
    groups = [{"params": list(sparse.named_parameters()), "perturb": True}]
    optimizer = PATSAdamax(groups, 1e-2)
    backward(sparse, 1)
    with pytest.raises(
        RuntimeError, match=r"word_embeddings\.weight' is sparse: tensors with a sensitivity need dense"
    ):
        optimizer.step()


def test_which_embeddings_can_be_row_sparse():
    assert can_be_row_sparse(nn.Embedding(3, 2))
    assert not can_be_row_sparse(nn.Embedding(3, 2, max_norm=1.0))
    assert not can_be_row_sparse(nn.Embedding(3, 2, scale_grad_by_freq=True))
    assert not can_be_row_sparse(nn.Embedding(3, 2).requires_grad_(False))
    assert not can_be_row_sparse(nn.Embedding(3, 2, device="meta"))
    assert not can_be_row_sparse(nn.Linear(3, 2))
