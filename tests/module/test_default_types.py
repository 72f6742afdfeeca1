"""Nothing drawn or made follows torch's default dtype or device."""

import ast
from pathlib import Path

import pytest
import torch

import module
from module.dropout import DropoutStream
from module.kernels.device_step import DeviceStep
from module.param_index import ParamIndex
from module.random_streams import RandomStream
from module.uniform_noise import add_uniform_noise
from tests.module.hooked import Hooked
from tests.module.models import make_parameters

LIKE = torch.zeros(40, 50)


def noisytune():
    parameters = make_parameters()
    add_uniform_noise(ParamIndex(parameters.items()), 0.15, 3, include_head=True)
    return [p.detach() for p in parameters.values()]


def trained(spec, settings=None):
    return list(Hooked(spec, settings or {}, optimizer="adamax").steps(3).values().values())


def reinit():
    from module.methods.reinit import ReinitSettings

    return trained("reinit", {"reinit": ReinitSettings(n_layers=1)})


def recadam():
    from module.methods.recadam import RecAdamSettings

    return trained("recadam", {"recadam": RecAdamSettings(start="RI", gamma=10.0)})


def stream():
    return RandomStream(1, torch.device("cpu"))


MADE = {
    "normal": lambda: [stream().normal(LIKE)],
    "uniform": lambda: [stream().uniform(LIKE)],
    "kept": lambda: [stream().kept(LIKE, 0.5)],
    "all kept": lambda: [stream().kept(LIKE, 1.0)],
    "dropout": lambda: [DropoutStream(1).factors(LIKE, 0.25), DropoutStream(1)(LIKE, 0.25)],
    "noisytune": noisytune,
    "reinit": reinit,
    "recadam": recadam,
    "pats": lambda: trained("pats"),
    "sage": lambda: trained("sage"),
    "ema": lambda: trained("ema"),
    "device tables": lambda: [v for v in vars(DeviceStep(torch.device("cpu"))).values() if isinstance(v, torch.Tensor)],
}


@pytest.fixture
def defaults():
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("what", ["float64", "float16", "meta"])
def test_what_is_made_is_the_same_under_other_defaults(name, what, defaults):
    torch.manual_seed(0)
    expected = MADE[name]()
    if what == "meta":
        torch.set_default_device(what)
    else:
        torch.set_default_dtype(getattr(torch, what))
    for a, b in zip(MADE[name](), expected, strict=True):
        assert (a.dtype, a.device) == (b.dtype, b.device)
        assert torch.equal(a, b)


FACTORIES = {
    "zeros", "ones", "rand", "randn", "empty", "tensor", "arange", "full", "linspace", "logspace", "eye", "randint",
    "randperm", "as_tensor", "scalar_tensor", "normal", "asarray",
}  # fmt: skip


def test_every_tensor_made_says_its_dtype_and_device():
    """In module and in mt_dnn."""
    folder = Path(module.__file__).parent
    silent = []
    for path in [*folder.rglob("*.py"), *(folder.parent / "mt_dnn").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "torch"
                and node.func.attr in FACTORIES
            ):
                said = {keyword.arg for keyword in node.keywords}
                if not {"dtype", "device"} <= said:
                    silent.append(f"{path.name}:{node.lineno} torch.{node.func.attr}")
    assert silent == []
