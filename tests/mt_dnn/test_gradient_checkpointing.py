"""Training with gradient checkpointing is training without it, bit for bit, for every method."""

import pytest
import torch

from data_utils.errors import SettingError
from module.methods import METHODS
from mt_dnn.config import RunConfig
from mt_dnn.run_id import run_id
from tests.mt_dnn.method_runs import assert_same_weights, build, final_weights
from tests.mt_dnn.test_resume import SETTINGS

CASES = {
    **{method: {"method": method, **SETTINGS.get(method, {})} for method in METHODS},
    "scores, padded": {"method": "hype+rdrop", "train_datasets": "toyscore", "attention": "padded"},
    "padded": {"method": "mixout+freelb", "attention": "padded"},
    "bf16": {"method": "smart+lora", "precision": "bf16"},
    "noise in noised passes": {"method": "hype+r3f", "hype": {"keep_dropout": True}},
    "three together": {"method": "sam+freelb+l2sp"},
}  # fmt: skip


def steps(config):
    """What two steps leave: weights, losses, norms and where the streams stand."""
    parts, step, batches = build(config)
    torch.manual_seed(0)
    with parts.streams.preserved():
        parts.method.before_fit(parts.context)
    told = []
    for number, batch in enumerate(batches[:2]):
        parts.context.step = number
        told.append([float(value) for value in step(batch)])
    return parts.network.state_dict(), told, (parts.streams.dropout.position, torch.rand(2).tolist())


@pytest.mark.parametrize("case", CASES)
def test_a_step_of_every_method_is_the_same(tiny_run, case):
    if "lora" in CASES[case]["method"]:
        pytest.importorskip("peft", reason="peft is missing: see requirements-lora.txt")
    plain, again = (steps(tiny_run(gradient_checkpointing=value, **CASES[case])) for value in (False, True))
    assert_same_weights(plain[0], again[0])
    assert plain[1:] == again[1:]


def test_a_run_is_the_same_and_has_an_identity_of_its_own(tiny_run):
    configs = [tiny_run(gradient_checkpointing=value, save="last", epochs=1) for value in (False, True)]
    assert_same_weights(*map(final_weights, configs))
    assert run_id(configs[0]) != run_id(configs[1])
    assert run_id(RunConfig(gradient_checkpointing=False)) == run_id(RunConfig())


def test_it_does_not_stand_together_with_compile():
    with pytest.raises(SettingError, match=r"gradient_checkpointing and compile are true, .* give one of the two"):
        RunConfig(gradient_checkpointing=True, compile=True)
