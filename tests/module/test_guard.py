"""What a step must never write through: memory that is not the tensor it is taken for."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import Parameter

import module
from module.bert_optim import Adamax, PATSAdamax, SAGEAdamax
from module.pats import PATS
from tests.module.models import SHAPES, assert_same_bits, make_gradients, make_parameters, set_gradients, train

LOUD = {"threshold_mode": "none", "noise_probability": 0.9, "noise_seed": 7}
QUERY = "bert.encoder.layer.0.attention.self.query.weight"  # (33, 31)
WIDE = "bert.encoder.layer.0.intermediate.dense.weight"  # (64, 48)


def attached(named):
    named = list(named)
    optimizer = torch.optim.SGD([p for _, p in named], 1e-3)
    optimizer.pats = PATS(named, **LOUD).attach(optimizer)
    return optimizer


MAKERS = {
    "adamax": lambda named: Adamax(named, 1e-3),
    "pats": lambda named: PATSAdamax(named, 1e-3, **LOUD),
    "sage": lambda named: SAGEAdamax(named, 1e-3),
    "attached": attached,
}
everywhere = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def state_of(optimizer, parameters, name=QUERY):
    if hasattr(optimizer, "pats"):
        return optimizer.pats._state[name.removeprefix("bert.encoder.")]
    return optimizer.state[parameters[name]]


def bits(optimizer, parameters):
    """Every number that a step may change."""
    states = optimizer.pats._state if hasattr(optimizer, "pats") else optimizer.state
    tensors = [p.detach() for p in parameters.values()]
    tensors += [value for state in states.values() for value in state.values() if isinstance(value, torch.Tensor)]
    return [t.clone() for t in tensors if type(t) is torch.Tensor and not t.is_meta and _held(t)]


def _held(tensor):
    return tensor.layout == torch.strided and tensor.untyped_storage().nbytes() >= tensor.nbytes


def stepped(make, shapes=None):
    parameters = make_parameters(shapes=shapes)
    optimizer = make(parameters.items())
    train(parameters, optimizer, 2)
    set_gradients(parameters, make_gradients(3, shapes))
    return parameters, optimizer


def refused(optimizer, parameters, message, kind=(TypeError, ValueError)):
    before = bits(optimizer, parameters)
    with pytest.raises(kind, match=message) as error:
        optimizer.step()
    assert "\n" not in str(error.value)
    assert all(torch.equal(a, b) for a, b in zip(before, bits(optimizer, parameters), strict=True))


class Marked(torch.Tensor):
    pass


def _freed(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


def _inference(tensor):
    with torch.inference_mode():
        return tensor.clone()


EDITS = {
    "bfloat16": (lambda t: t.bfloat16(), r"is torch\.bfloat16, not torch\.float(32|64)"),
    "integer": (lambda t: t.int(), r"is torch\.int32, not torch\.float"),
    "meta": (lambda t: t.to("meta"), "is on meta, without memory"),
    "longer": (lambda t: torch.zeros(3, 5), r"has shape \(3, 5\), (the parameter \(33, 31\)|one number is needed)"),
    "list": (lambda t: [0.0], r"is \[0\.0\], no tensor"),
    "none": (lambda t: None, "is missing"),
    "freed": (lambda t: _freed(t.clone()), "its storage holds 0 bytes of"),
    "negated": (lambda t: t._neg_view(), "is a lazy view"),
    "sparse": (lambda t: t.to_sparse(), "a strided tensor is needed"),
    "quantised": (lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8), "is quantised: dequantize"),
    "inference": (_inference, "was made under torch.inference_mode"),
    "subclass": (lambda t: t.as_subclass(Marked), "is a Marked: plain, whole torch tensors are needed"),
}
LAYOUTS = {
    "transposed": (lambda t: t.t().contiguous().t(), r"has strides \(1, 33\): it must be contiguous"),
    "expanded": (lambda t: t[:1].expand(33, 31), r"has strides \(0, 1\): it must be contiguous"),
    "float64": (lambda t: t.double(), r"is torch\.float64, not torch\.float32"),
    "rows": (lambda t: t[:20], r"has shape \(20, 31\), the parameter \(33, 31\): load the state of the same model"),
}


SCALARS, MOMENTS = ("step", "sensitivity_mean"), ("exp_avg", "exp_inf")
CASES = [  # optimizer, entry, edit
    (name, key, edit)
    for name in MAKERS
    for key in (*SCALARS, *MOMENTS, "sensitivity")
    for edit in (EDITS if key in SCALARS else [*EDITS, *LAYOUTS])
    if not (name == "adamax" and key.startswith("sensitivity")) and not (name == "attached" and key in MOMENTS)
]


@pytest.mark.parametrize(("name", "key", "edit"), CASES)
def test_an_edited_state_is_refused_by_name_before_anything_changes(name, key, edit):
    parameters, optimizer = stepped(MAKERS[name])
    state = state_of(optimizer, parameters)
    change, message = {**EDITS, **LAYOUTS}[edit]
    state[key] = change(state[key])
    refused(optimizer, parameters, rf"^{key} of .*query\.weight' .*{message}")


@everywhere
@pytest.mark.parametrize("steps", [float("nan"), float("inf"), -1.0, 1e9])
def test_a_step_that_is_no_number_of_steps_is_refused(make, steps):
    parameters, optimizer = stepped(make)
    state_of(optimizer, parameters)["step"].fill_(steps)
    before = [p.detach().clone() for p in parameters.values()]
    with pytest.raises(ValueError, match=r"^step of .*query\.weight' is .*: a number in \[0, 16777216\] is needed"):
        optimizer.step()
    assert all(map(torch.equal, before, parameters.values()))


@everywhere
def test_a_missing_entry_is_refused(make):
    parameters, optimizer = stepped(make)
    state = state_of(optimizer, parameters)
    del state["step"]
    refused(optimizer, parameters, r"^step of .*query\.weight' is missing: load the state of the same model")


@everywhere
@pytest.mark.parametrize("other", [[1.0], torch.ones(2), 3])
def test_a_state_that_is_no_dict_is_refused(make, other):
    parameters, optimizer = stepped(make)
    optimizer.step()
    states, key = optimizer.state, parameters[QUERY]
    if hasattr(optimizer, "pats"):
        states, key = optimizer.pats._state, QUERY.removeprefix("bert.encoder.")
    states[key] = other
    before = [p.detach().clone() for p in parameters.values()]
    with pytest.raises(TypeError, match=r"^The state of .*query\.weight' is a (list|Tensor|int): step.* needed$"):
        optimizer.step()
    assert all(map(torch.equal, before, parameters.values()))


BETWEEN = {
    "other shape": (lambda w, p: setattr(w, "data", torch.ones(3, 3)), r"has shape \(33, 31\), the parameter \(3, 3\)"),
    "other dtype": (lambda w, p: setattr(w, "data", w.data.double()), "float32, bfloat16 or float16 is needed"),
    "freed": (lambda w, p: w.untyped_storage().resize_(0), "its storage holds 0 bytes of 4092"),
    "cut": (lambda w, p: w.untyped_storage().resize_(4091), "its storage holds 4091 bytes of 4092"),
    "expanded": (lambda w, p: setattr(w, "data", torch.ones(1, 31).expand(33, 31)), "several entries lie in one place"),
    "overlapping": (
        lambda w, p: setattr(w, "data", torch.ones(2000).as_strided((33, 31), (30, 1))),
        "several entries lie in one place",
    ),
    "gradient resized": (lambda w, p: w.grad.resize_(3, 3), r"gradient of .* has shape \(3, 3\), the parameter \(33"),
    "gradient data": (lambda w, p: setattr(w.grad, "data", torch.ones(1, 31)), r"has shape \(1, 31\), the parameter"),
    "gradient freed": (lambda w, p: w.grad.untyped_storage().resize_(8), "its storage holds 8 bytes of 4092"),
    "gradient emptied": (lambda w, p: w.grad.set_(), r"has shape \(0,\), the parameter"),
    "gradient lazy": (lambda w, p: setattr(w, "grad", w.grad._neg_view()), "gradient of .* is a lazy view"),
    "unmasked shape": (lambda w, p: setattr(w, "unmasked_grad", torch.ones(3)), r"unmasked_grad of .* has shape \(3,"),
    "unmasked text": (
        lambda w, p: setattr(w, "unmasked_grad", "x"),
        "unmasked_grad of .* is 'x', no tensor: call zero_",
    ),
    "shared": (
        lambda w, p: setattr(w, "data", p[WIDE].data.flatten()[: 33 * 31].view(33, 31)),
        r"query\.weight' and .*intermediate\.dense\.weight' share memory: pass a parameter once",
    ),
}


@everywhere
@pytest.mark.parametrize("what", BETWEEN)
def test_a_parameter_or_gradient_changed_between_steps_is_refused(make, what):
    parameters, optimizer = stepped(make)
    change, message = BETWEEN[what]
    change(parameters[QUERY], parameters)
    refused(optimizer, parameters, message)


@pytest.mark.parametrize("make", [MAKERS[name] for name in ("adamax", "pats", "sage")])
def test_states_that_share_memory_are_refused(make):
    parameters, optimizer = stepped(make)
    optimizer.state[parameters[QUERY]]["exp_avg"] = optimizer.state[parameters[QUERY]]["exp_inf"]
    refused(optimizer, parameters, r"exp_avg of .* and exp_inf of .* share memory")
    optimizer.state[parameters[QUERY]]["exp_avg"] = parameters[QUERY].data
    refused(optimizer, parameters, r"^'bert.*query\.weight' and exp_avg of 'bert.*query\.weight' share memory")


@pytest.mark.parametrize("make", [MAKERS[name] for name in ("adamax", "pats", "sage")])
def test_a_refused_step_makes_no_state_either(make):
    parameters = make_parameters()
    optimizer = make(parameters.items())
    set_gradients(parameters, make_gradients(1))
    parameters["classifier.bias"].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"classifier\.bias"):
        optimizer.step()
    assert not optimizer.state


@everywhere
def test_the_smallest_example(make):
    def one(rows):
        parameter = {"encoder.layer.0.a.weight": Parameter(torch.ones(rows, 64))}
        parameter["encoder.layer.0.a.weight"].grad = torch.ones(rows, 64)
        return parameter

    a, b = one(100), one(104)
    first, second = make(a.items()), make(b.items())
    first.step()
    with pytest.raises(
        ValueError, match=r"a\.weight' has shape \(100, 64\), the parameter \(104, 64\): load the state"
    ):
        second.load_state_dict(first.state_dict())
    second.step()
    assert torch.isfinite(b["encoder.layer.0.a.weight"]).all()


def lazy():
    return torch.complex(torch.ones(3), torch.ones(3)).conj().imag


CONSTRUCTED = {
    "inference": (lambda: _inference(torch.ones(3)), "was made under torch.inference_mode"),
    "quantised": (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "is quantised"),
    "sparse": (lambda: torch.ones(3).to_sparse(), "is torch.sparse_coo: a strided tensor is needed"),
    "expanded": (lambda: Parameter(torch.ones(1, 3).expand(2, 3)), "several entries lie in one place"),
    "meta": (lambda: torch.ones(3, device="meta"), "is on meta: there are kernels for cpu and cuda"),
    "lazy": (lazy, "is a lazy view"),
    "uninitialised": (nn.UninitializedParameter, "is a UninitializedParameter"),
    "subclass": (lambda: torch.ones(3).as_subclass(Marked), "is a Marked"),
    "freed": (lambda: _freed(torch.ones(3)), "its storage holds 0 bytes of 12"),
}


@everywhere
@pytest.mark.parametrize("what", CONSTRUCTED)
def test_what_is_no_plain_memory_is_refused_at_construction(make, what):
    build, message = CONSTRUCTED[what]
    with pytest.raises(
        (TypeError, ValueError, NotImplementedError), match=rf"^'encoder\.layer\.0\.a\.weight' {message}|" + message
    ):
        make([("encoder.layer.0.a.weight", build())])


@pytest.fixture
def one_process():
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@everywhere
def test_fully_sharded_parameters_are_refused(make, one_process):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from tests.module.models import tiny_bert

    network = fully_shard(tiny_bert(), mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(TypeError, match=r"is a DTensor: plain, whole torch tensors are needed \(no fully_shard\)"):
        make(network.named_parameters())


@everywhere
@pytest.mark.parametrize("steps", [0, 2])
def test_a_step_among_fake_tensors_changes_nothing(make, steps):
    from torch._subclasses import FakeTensorMode

    parameters = make_parameters()
    optimizer = make(parameters.items())
    train(parameters, optimizer, steps)
    set_gradients(parameters, make_gradients(3))
    before = bits(optimizer, parameters)
    with FakeTensorMode(allow_non_fake_inputs=True):
        parameters[QUERY].grad = torch.ones(33, 31)
        with pytest.raises(TypeError, match=r"^(gradient|step) of .* is a FakeTensor"):
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, bits(optimizer, parameters), strict=True))


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.functionalize, torch.func.vmap])
def test_tensors_of_transforms_are_refused(transform):
    def loss(x):
        with pytest.raises(TypeError, match=r"'x' belongs to a transform \(torch\.func, functionalization\)"):
            Adamax([("x", x)], 1e-3)
        return (x * x).sum()

    transform(loss)(torch.ones(2, 3))


def test_duplicate_parameters_are_refused():
    weight = Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch only warns
        optimizer = Adamax([weight, weight], 1e-3)
    with pytest.raises(ValueError, match="share memory: pass a parameter once"):
        optimizer.step()
    assert torch.equal(weight, torch.ones(3))


def test_rows_beyond_a_table_are_refused():
    weight = Parameter(torch.ones(4, 3))
    optimizer = Adamax([("embeddings.weight", weight)], 1e-3)
    for rows in ([1, 9], [-1, 2], [2, 1], [1, 1]):
        indices, values = torch.tensor([rows]), torch.ones(2, 3)
        weight.grad = torch.sparse_coo_tensor(indices, values, (4, 3), is_coalesced=True, check_invariants=False)
        with pytest.raises(ValueError, match=r"embeddings\.weight' has rows that are not rising in \[0, 4\)"):
            optimizer.step()
    assert torch.equal(weight, torch.ones(4, 3))


def test_a_sparse_gradient_of_another_shape_is_refused():
    weight = Parameter(torch.ones(4, 3))
    optimizer = Adamax([("embeddings.weight", weight)], 1e-3)
    weight.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 3), (4, 3), check_invariants=False)
    weight.data = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"has shape \(4, 3\) on cpu, the parameter \(2, 3\)"):
        optimizer.step()


FOUR = {**SHAPES, "bert.encoder.layer.0.conv.weight": (4, 3, 5, 5)}


@everywhere
def test_strided_parameters_end_where_contiguous_ones_end(make):
    """Transposed, channels last, and columns of a larger matrix."""
    plain, odd = make_parameters(shapes=FOUR), make_parameters(shapes=FOUR)
    odd[WIDE] = Parameter(odd[WIDE].detach().t().contiguous().t())
    odd["bert.encoder.layer.0.conv.weight"] = Parameter(
        odd["bert.encoder.layer.0.conv.weight"].detach().contiguous(memory_format=torch.channels_last)
    )
    odd[QUERY] = Parameter(nn.functional.pad(odd[QUERY].detach(), (2, 3))[:, 2:-3])
    assert not any(odd[n].is_contiguous() for n in (WIDE, QUERY, "bert.encoder.layer.0.conv.weight"))
    train(plain, make(plain.items()), 3)
    train(odd, make(odd.items()), 3)
    assert all(torch.equal(plain[name], odd[name]) for name in FOUR)
    assert not torch.equal(plain[QUERY], make_parameters(shapes=FOUR)[QUERY])


@pytest.mark.parametrize("make", [MAKERS[name] for name in ("adamax", "pats", "sage")])
def test_a_first_step_inside_inference_mode_leaves_ordinary_state(make):
    a, b = make_parameters(), make_parameters()
    one, other = make(a.items()), make(b.items())
    set_gradients(a, make_gradients(1))
    with torch.inference_mode():
        one.step()
    train(b, other, 1, schedule=lambda _: 1e-3)
    train(a, one, 2, first=2)
    train(b, other, 2, first=2)
    assert_same_bits(a, b)


def test_addresses_are_taken_in_one_place():
    folder = Path(module.__file__).parent
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*.py") if "data_ptr" in p.read_text("utf-8")}
    assert found == {"kernels/guard.py"}


def test_no_one_sees_a_wrong_size_on_the_way_to_a_gpu(device):
    """The same refusals in front of the Triton kernels."""
    from tests.module.models import to_device

    parameters = {name: to_device(p, device) for name, p in make_parameters().items() if "layer.1" not in name}
    optimizer = PATSAdamax(parameters.items(), 1e-3, **LOUD)
    for name, gradient in make_gradients(1).items():
        if name in parameters:
            parameters[name].grad = gradient.to(device)
    optimizer.step()
    state = optimizer.state[parameters[QUERY]]
    for change, message in EDITS.values():
        if message.startswith(("is a lazy", "is on meta")) or "strided" in message:
            continue
        for key in ("step", "exp_avg", "sensitivity_mean"):
            kept = state[key]
            state[key] = change(kept)
            refused(optimizer, parameters, rf"^{key} of .*query\.weight' .*{message}")
            state[key] = kept
    parameters[QUERY].grad.resize_(3, 3)
    refused(optimizer, parameters, r"gradient of .*query\.weight' has shape \(3, 3\), the parameter \(33, 31\)")


def _any_tensor(shape, dtype, kind):
    if kind == "meta":
        return torch.ones(shape, dtype=dtype, device="meta")
    if kind == "expanded":
        return torch.ones((), dtype=dtype).expand(shape)
    if kind == "strided" and len(shape) == 2:
        return torch.ones(shape[::-1], dtype=dtype).t()
    tensor = torch.ones(shape, dtype=dtype)
    return _freed(tensor) if kind == "freed" else tensor


tensors = st.builds(
    _any_tensor,
    st.sampled_from([(), (1,), (33,), (33, 31), (31, 33), (34, 31), (0,), (33, 31, 1)]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64]),
    st.sampled_from(["plain", "strided", "expanded", "freed", "meta"]),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(MAKERS)),
    key=st.sampled_from(["step", "exp_avg", "exp_inf", "sensitivity", "sensitivity_mean", "grad", "data"]),
    value=st.one_of(tensors, st.none(), st.floats(), st.text(max_size=2), st.lists(st.integers(), max_size=2)),
)
def test_nothing_that_lies_in_a_state_crashes_or_is_half_done(name, key, value):
    parameters, optimizer = stepped(MAKERS[name])
    weight, state = parameters[QUERY], state_of(optimizer, parameters)
    try:
        if key == "grad":
            weight.grad.data = value
        elif key == "data":
            weight.data = value
        else:
            state[key] = value
    except (TypeError, RuntimeError):
        return  # torch itself has refused it
    before = bits(optimizer, parameters)
    try:
        optimizer.step()
    except (TypeError, ValueError, RuntimeError):
        after = bits(optimizer, parameters)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    else:
        assert weight.grad.shape == weight.shape == (33, 31)
        assert re.search("float|bfloat", str(weight.dtype))
