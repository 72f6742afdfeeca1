import pytest
import torch

from data_utils.errors import SettingError
from mt_dnn import run as run_module
from mt_dnn.assembly import pick_device
from mt_dnn.cuda_build import check_kernels
from mt_dnn.run import run
from mt_dnn.run_id import run_dir

WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]  # of PyPI: without V100


@pytest.fixture
def gpu(monkeypatch):
    def make(capability, built):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")

    return make


@pytest.mark.parametrize(
    ("capability", "built"),
    [
        ((7, 5), WHEEL),
        ((9, 0), WHEEL),
        ((8, 9), WHEEL),  # code for 8.6 runs on it
        ((7, 0), ["sm_50", "sm_70"]),
        ((7, 0), ["sm_50", "compute_60"]),  # the driver compiles it
        ((9, 0), ["sm_90a"]),
        ((12, 1), ["sm_80", "sm_120"]),
        ((7, 0), []),  # a torch that does not say
    ],
)
def test_gpus_that_torch_was_built_for(gpu, capability, built):
    gpu(capability, built)
    check_kernels(torch.device("cuda"))


@pytest.mark.parametrize(
    ("capability", "built"), [((7, 0), WHEEL), ((8, 0), ["sm_75", "sm_86"]), ((7, 0), ["sm_90", "compute_90"])]
)
@pytest.mark.parametrize("setting", ["auto", "cuda", "cuda:0"])
def test_others_are_refused_with_the_build_that_has_them(gpu, capability, built, setting):
    gpu(capability, built)
    with pytest.raises(SettingError) as refused:
        pick_device(setting)
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith(f"device: Tesla V100 has compute capability {capability[0]}.{capability[1]}, and torch ")
    assert f"was built for {' '.join(built)}; install torch's build for an older CUDA (cu126 " in message


def test_a_run_says_so_before_data_and_encoder(gpu, tiny_run, monkeypatch):
    gpu((7, 0), WHEEL)
    monkeypatch.setattr(run_module, "open_all", lambda *_: pytest.fail("data were opened"))
    config = tiny_run(device="cuda")
    with pytest.raises(SettingError, match=r"has compute capability 7\.0"):
        run(config)
    assert not run_dir(config).exists()
