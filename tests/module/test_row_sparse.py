"""Row-sparse gradients give what dense ones give: the gradient, the norm, and every step, bit for bit."""

import copy
import gc
import pickle
import weakref

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


# Rows at rest: left out of a step, and nobody can tell.

SHAPE = (90, 24)
MAKERS = {
    "mtdnn": lambda named, **s: Adamax(named, 1e-2, **s),
    "torch": lambda named, **s: Adamax(named, 1e-2, rule="torch", **s),
    "pats": lambda named, **s: PATSAdamax(named, 1e-2, sensitivity_threshold=1.0, **s),
    "sage": lambda named, **s: SAGEAdamax(named, 1e-2, **s),
}
NAMES = ("embeddings.word_embeddings.weight", "embeddings.other.weight", "encoder.layer.0.output.dense.weight")


def behind(what):
    """A message that says where."""
    return lambda message: f"{what}: {message}"


class Twins:
    """Two optimizers of equal tensors, one of whom gets dense gradients; actions are done to both."""

    def __init__(self, make, **settings):
        generator = torch.Generator().manual_seed(0)
        values = [torch.randn(SHAPE, generator=generator) for _ in NAMES]
        self.parameters = [[nn.Parameter(value.clone()) for value in values] for _ in range(2)]
        self.optimizers = [make([*zip(NAMES, own, strict=True)], **settings) for own in self.parameters]

    def set_gradients(self, step, rows, parts=1, dense=False):
        generator = torch.Generator().manual_seed(step)
        for own in self.parameters:
            for p in own:
                p.grad = None
        for table in range(3):
            for part in range(parts):
                here = torch.tensor(rows[part::parts], dtype=torch.int64) if table < 2 else torch.arange(SHAPE[0])
                values = torch.randn(len(here), SHAPE[1], generator=generator)
                sparse = torch.sparse_coo_tensor(here[None], values, SHAPE, check_invariants=True)
                for i, own in enumerate(self.parameters):
                    gradient = sparse.to_dense() if i == 0 or dense or table == 2 else sparse
                    before = own[table].grad
                    own[table].grad = gradient if before is None else before + gradient

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()

    def each(self, change):
        for optimizer, own in zip(self.optimizers, self.parameters, strict=True):
            change(optimizer, own)

    def assert_equal(self, what=""):
        for name, expected, got in zip(NAMES, *self.parameters, strict=True):
            states = [o.state[p] for o, p in zip(self.optimizers, (expected, got), strict=True)]
            assert states[0].keys() == states[1].keys()
            for key, a, b in [("parameter", expected, got), *((k, states[0][k], states[1][k]) for k in states[0])]:
                torch.testing.assert_close(
                    b.detach(), a.detach(), rtol=0, atol=0, equal_nan=True, msg=behind(f"{what} {name} {key}")
                )


def rows_of(step):
    """They come and go: many, one, the last, the same again, whole stretches."""
    generator = torch.Generator().manual_seed(step)
    kinds = [
        torch.randint(0, SHAPE[0], (12,), generator=generator).unique().tolist(), [0], [SHAPE[0] - 1], [3, 4, 5, 17],
        list(range(40, 60)), list(range(0, SHAPE[0], 2)),
    ]  # fmt: skip
    return kinds[step % 4 if step < 15 else step % 6]


def change_nothing(optimizer, own):
    pass


def edit_momentum(optimizer, own):
    optimizer.state[own[0]]["exp_avg"][70:72] += 0.25


def edit_norm(optimizer, own):
    optimizer.state[own[1]]["exp_inf"][71].mul_(3.0).add_(1.0)


def edit_detached(optimizer, own):
    optimizer.state[own[0]]["exp_inf"].detach().view(-1)[1700:1720] = 0.25


def edit_in_inference_mode(optimizer, own):
    with torch.inference_mode():
        optimizer.state[own[0]]["exp_avg"].mul_(0.5)
        optimizer.state[own[0]]["exp_avg"][72] = 0.25


def edit_many(optimizer, own):
    torch._foreach_add_([optimizer.state[p]["exp_avg"] for p in own], 0.125)


def replace_state(optimizer, own):
    optimizer.state[own[0]]["exp_avg"] = torch.full(SHAPE, 0.5)


def forget_state(optimizer, own):
    del optimizer.state[own[0]]


def load_state(optimizer, own):
    state = copy.deepcopy(optimizer.state_dict())
    for entry in state["state"].values():
        entry["exp_avg"] += 0.125
    optimizer.load_state_dict(state)


def load_the_same(optimizer, own):
    optimizer.load_state_dict(optimizer.state_dict())


def set_all(**settings):
    def change(optimizer, own):
        for group in optimizer.param_groups:
            group.update(settings)

    return change


def edit_parameter(optimizer, own):
    with torch.no_grad():
        own[0][70:75] = 3.0


def move_parameter(optimizer, own):
    own[0].data = own[0].data.clone()


# Not in it: what is written through .data or .numpy(), which nobody counts; parameters that are set to infinity.
CHANGES = {
    "nothing": change_nothing, "momentum": edit_momentum, "norm": edit_norm,
    "detached": edit_detached, "inference mode": edit_in_inference_mode, "foreach": edit_many,
    "replaced": replace_state, "forgotten": forget_state, "loaded": load_state, "loaded the same": load_the_same,
    "lr": set_all(lr=0.3), "lr 0": set_all(lr=0.0), "eps": set_all(eps=1e-3), "eps smaller": set_all(eps=1e-9),
    "betas": set_all(betas=(0.5, 0.9)), "decay on": set_all(weight_decay=0.1), "decay off": set_all(weight_decay=0.0),
    "parameter": edit_parameter, "moved": move_parameter,
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("change", CHANGES)
def test_rows_at_rest_are_what_a_dense_gradient_makes_of_them(name, decay, change):
    twins = Twins(MAKERS[name], weight_decay=decay)
    for step in range(30):
        if step == 12:
            twins.each(CHANGES[change])
        twins.set_gradients(step, rows_of(step), parts=1 + step % 3)
        twins.step()
        if step in (0, 1, 11, 12, 13, 29):
            twins.assert_equal(f"step {step}:")


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("pattern", ["sdssdds", "ssdss", "ds", "snsns"])
def test_gradients_that_are_dense_or_missing_now_and_then(name, pattern):
    """s sparse, d dense, n none at all."""
    twins = Twins(MAKERS[name], weight_decay=0.0)
    for step, kind in enumerate(pattern * 3):
        twins.set_gradients(step, [7, 8] if kind == "s" else [30, 31, 32], dense=kind == "d")
        if kind == "n":
            twins.each(lambda optimizer, own: [setattr(p, "grad", None) for p in own])
        twins.step()
        twins.assert_equal(f"step {step}:")


@pytest.mark.parametrize("eps", [0.0, 1e-30, 1.0])
@pytest.mark.parametrize("name", ["mtdnn", "torch"])
def test_extreme_eps(name, eps):
    twins = Twins(MAKERS[name], weight_decay=0.0, eps=eps)
    for step in range(5):
        twins.set_gradients(step, rows_of(step))
        twins.step()
        twins.assert_equal(f"step {step}:")


def test_a_refused_step_changes_nothing_and_the_next_is_right():
    twins = Twins(MAKERS["mtdnn"], weight_decay=0.0)
    for step in range(6):
        twins.set_gradients(step, [1, 2])
        twins.step()
    twins.set_gradients(7, [50, 51])
    for own in twins.parameters:
        own[2].grad[0, 0] = torch.nan
    for optimizer in twins.optimizers:
        with pytest.raises(RuntimeError, match="is not finite"):
            optimizer.step()
    twins.assert_equal()
    for step in range(8, 12):
        twins.set_gradients(step, [1, 60])
        twins.step()
        twins.assert_equal(f"step {step}:")


@pytest.fixture
def entries(monkeypatch):
    """Entries of the tables that the kernels went through."""
    from module.kernels import host_step

    counts, update = [], host_step.update_rows

    def noted(rows):
        counts.append(int(rows["size"].sum()))
        update(rows)

    monkeypatch.setattr(host_step, "update_rows", noted)
    return counts


@pytest.mark.parametrize("name", MAKERS)
def test_rows_at_rest_are_not_written(name, entries):
    twins = Twins(MAKERS[name], weight_decay=0.0)
    sparse, own = twins.optimizers[1], twins.parameters[1]
    for step, rows in enumerate([[5], [5], [50, 51], [80]]):
        twins.set_gradients(step, rows)
        own[2].grad = None
        sparse.step()
    width = SHAPE[1]
    # The first step gives every row its infinity norm; then the rows touched so far, of two tables.
    assert entries == [2 * 90 * width, 2 * width, 2 * 3 * width, 2 * 4 * width]


def test_with_decay_every_row_moves(entries):
    twins = Twins(MAKERS["mtdnn"], weight_decay=0.1)
    for step in range(3):
        twins.set_gradients(step, [5])
        twins.parameters[1][2].grad = None
        twins.optimizers[1].step()
    assert entries == [2 * 90 * SHAPE[1]] * 3


@pytest.mark.parametrize("how", ["load", "replace", "drop the optimizer", "replace the parameter"])
def test_memory_of_what_was_replaced_is_freed(how):
    twins = Twins(MAKERS["mtdnn"], weight_decay=0.0)
    optimizer, own = twins.optimizers[1], twins.parameters[1]
    for step in range(3):
        twins.set_gradients(step, [5])
        optimizer.step()
    old = [weakref.ref(optimizer.state[own[0]][key]) for key in ("exp_avg", "exp_inf")]
    if how == "load":
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    elif how == "replace":
        optimizer.state[own[0]] = {key: value.clone() for key, value in optimizer.state[own[0]].items()}
        twins.set_gradients(4, [5])
        optimizer.step()
    elif how == "drop the optimizer":
        twins.optimizers.clear()
        del optimizer
    else:
        old.append(weakref.ref(own[0]))
        del optimizer.state[own[0]]
        own[0] = optimizer.param_groups[0]["params"][0] = nn.Parameter(own[0].detach().clone())
        twins.set_gradients(4, [5])
        optimizer.step()
    gc.collect()
    assert [found for ref in old if (found := ref()) is not None] == []


def pickled(twin):
    return pickle.loads(pickle.dumps(twin))


@pytest.mark.parametrize("again", [copy.deepcopy, pickled])
def test_copies_go_on_alike_and_apart(again):
    twins = Twins(MAKERS["mtdnn"], weight_decay=0.0)
    for step in range(4):
        twins.set_gradients(step, [1, 2])
        twins.step()
    other = again(twins)
    for both in (twins, other):
        for step in range(4, 8):
            both.set_gradients(step, [1, 60])
            both.step()
        both.assert_equal()
    assert all(map(torch.equal, twins.parameters[1], other.parameters[1]))
    assert twins.parameters[1][0] is not other.parameters[1][0]


def test_threads_step_row_sparse_tables_alike():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            twins = Twins(MAKERS["pats"], weight_decay=0.0)
            for step in range(6):
                twins.set_gradients(step, rows_of(step))
                twins.step()
            results.append(twins.parameters[1])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_a_group_added_later_and_another_number_of_rows():
    """Tables are made anew; what rests is found again."""
    twins = Twins(MAKERS["mtdnn"], weight_decay=0.0)
    for step in range(4):
        twins.set_gradients(step, [1, 2])
        twins.step()
    added = [nn.Parameter(torch.ones(7, 5)) for _ in range(2)]
    for optimizer, parameter in zip(twins.optimizers, added, strict=True):
        optimizer.add_param_group({"params": [("more", parameter)]})
    for step in range(4, 9):
        twins.set_gradients(step, [1, 60] if step % 2 else [step, 70, 71, 72])
        for parameter in added:
            parameter.grad = torch.full((7, 5), float(step))
        twins.step()
        twins.assert_equal(f"step {step}:")
    assert torch.equal(*added)
