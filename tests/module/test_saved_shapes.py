"""States of methods whose tensors have another shape: an error that names one, and nothing spread out over a weight."""

import re

import pytest
import torch
from torch.nn import Parameter

from module.methods.child_tuning import ChildTuning
from module.methods.parts.mean_teacher import MeanTeacher
from module.methods.parts.pac_bayes import NoiseWidths
from tests.module.hooked import Hooked
from tests.module.models import PERTURBED

QUERY = PERTURBED[0]  # (33, 31)
MESSAGE = r"of '.*query\.weight' has shape \({}\), the parameter \(33, 31\): load the state of the same model"


def test_a_teacher():
    weights = {"a": Parameter(torch.ones(4)), "b": Parameter(torch.ones(2, 3))}
    teacher = MeanTeacher(weights.items())
    for wrong in (torch.zeros(()), torch.zeros(3), torch.zeros(1, 3)):
        with pytest.raises(ValueError, match=rf"^teacher of 'b' has shape {re.escape(str(tuple(wrong.shape)))}, the"):
            teacher.load({"a": torch.zeros(4), "b": wrong})
    with pytest.raises(TypeError, match=r"^teacher of 'b' is missing"):
        teacher.load({"a": torch.zeros(4)})
    assert all(torch.equal(weight, torch.ones_like(weight)) for weight in teacher.weights.values())
    teacher.load({"a": torch.zeros(4), "b": torch.zeros(2, 3)})
    assert not any(weight.any() for weight in teacher.weights.values())


@pytest.mark.parametrize("spec", ["ema", "swa"])
@pytest.mark.parametrize(
    "wrong", [torch.zeros(()), torch.zeros(31), torch.zeros(31, 33)], ids=["()", "(31,)", "(31, 33)"]
)
def test_an_average(spec, wrong):
    run = Hooked(spec, {}, total_steps=4, total_epochs=2).steps(4)
    state = run.method.state_dict()
    part = state if "average" in state else state[spec]
    assert part["average"], "it has started"
    part["average"][QUERY] = wrong
    run.method.load_state_dict(state)
    shape = re.escape(str(tuple(wrong.shape))[1:-1])
    with pytest.raises(ValueError, match="^average " + MESSAGE.format(shape)), run.method.evaluation(run.context):
        pass


def test_masks():
    method, weight = ChildTuning(), Parameter(torch.ones(33, 31))
    weight.grad = torch.ones(33, 31)
    method.load_state_dict({"masks": {QUERY: torch.zeros(31, dtype=torch.bool)}})
    info = type("Info", (), {"name": QUERY, "parameter": weight})
    context = type("Context", (), {"params": [info]})
    with pytest.raises(ValueError, match="^mask " + MESSAGE.format("31,")):
        method.after_backward(context)
    assert torch.equal(weight.grad, torch.ones(33, 31))


def test_noise_widths():
    def made(*shapes):
        return NoiseWidths([torch.ones(shape) for shape in shapes], [False] * len(shapes), True, 0.1, 0.1, 1.0)

    widths, before = made((2, 3), (4,)), made((2, 3), (4,)).state_dict()
    with pytest.raises(ValueError, match=r"^values of 'weight 0' has shape \(3,\), the parameter \(2, 3\)"):
        widths.load_state_dict(made((3,), (4,)).state_dict())
    with pytest.raises(ValueError, match=r"has widths of \[2, 2, 2\] tensors, the model of 3: load its own"):
        widths.load_state_dict(made((2, 3)).state_dict())
    for part in ("values", "means", "squares"):
        assert all(map(torch.equal, widths.state_dict()[part], before[part]))
