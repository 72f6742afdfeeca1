import pytest
import torch

from data_utils.errors import SettingError
from mt_dnn import precision
from mt_dnn.precision import resolve_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_on_the_cpu(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has_bf16)
    assert resolve_precision("auto", CPU).name == expected


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), "bf16"), ((9, 0), "bf16"), ((7, 0), "fp16")])
def test_auto_on_cuda(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    chosen = resolve_precision("auto", torch.device("cuda"))
    assert chosen.name == expected


def test_what_a_device_cannot_do_is_refused(monkeypatch):
    with pytest.raises(SettingError, match="fp16 needs a CUDA device"):
        resolve_precision("fp16", CPU)
    with pytest.raises(SettingError, match="'int8' is unknown"):
        resolve_precision("int8", CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    with pytest.raises(SettingError, match="no bf16 instructions"):
        resolve_precision("bf16", torch.device("cuda"))


def test_autocast_changes_the_forward_only():
    layer = torch.nn.Linear(4, 4)
    with resolve_precision("bf16", CPU).autocast():
        assert layer(torch.randn(2, 4)).dtype == torch.bfloat16
    with resolve_precision("fp32", CPU).autocast():
        assert layer(torch.randn(2, 4)).dtype == torch.float32
    assert layer.weight.dtype == torch.float32
    assert not resolve_precision("bf16", CPU).grad_scaler().is_enabled()
