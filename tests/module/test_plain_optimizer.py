"""AdamW of a run: one kernel for the whole step on CUDA, whatever device a state comes from."""

import copy

import pytest
import torch

from module import method
from module.method import OptimizerSettings, plain_optimizer
from tests.module.models import make_parameters, train

SETTINGS = OptimizerSettings(optimizer="adamw", learning_rate=1e-3)


def adamw(parameters):
    return plain_optimizer([{"params": list(parameters.items())}], SETTINGS)


@pytest.fixture
def as_on_cuda(monkeypatch):
    """Treat parameters as CUDA's; torch has a fused AdamW for the CPU as well."""
    return lambda: monkeypatch.setattr(method, "_on_cuda", lambda _: True)


def test_fused_on_cuda_alone(as_on_cuda):
    assert adamw(make_parameters()).defaults["fused"] is None
    as_on_cuda()
    assert adamw(make_parameters()).defaults["fused"] is True


def test_a_state_goes_from_one_to_the_other(as_on_cuda):
    whole, parted = make_parameters(), make_parameters()
    train(whole, adamw(whole), 6)
    here = adamw(parted)
    train(parted, here, 2)
    as_on_cuda()
    there = adamw(parted)
    there.load_state_dict(copy.deepcopy(here.state_dict()))
    assert there.param_groups[0]["fused"] is True
    train(parted, there, 2, first=3)
    here.load_state_dict(copy.deepcopy(there.state_dict()))
    assert here.param_groups[0]["fused"] is None
    train(parted, here, 2, first=5)
    for name, parameter in whole.items():
        torch.testing.assert_close(parted[name], parameter, rtol=1e-5, atol=1e-7, msg=name)


def test_devices_are_those_of_all_parameters():
    parameters = make_parameters()
    assert not method._on_cuda([{"params": list(parameters.items())}, {"params": list(parameters.values())}])
