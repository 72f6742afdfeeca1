"""Parameters that cannot be treated rightly are refused with the fix: shards, flat parameters, quantised weights."""

import pytest
import torch
from torch import nn

from module import PATS, Adamax, PATSAdamax, SAGEAdamax, noisytune
from module.kernels.guard import is_quantised
from tests.module.models import PERTURBED, make_parameters, set_gradients, tiny_bert
from tests.module.test_guard import one_process  # noqa: F401

MAKERS = {
    "PATSAdamax": lambda model: PATSAdamax(model, 1e-3),
    "SAGEAdamax": lambda model: SAGEAdamax(model, 1e-3),
    "PATS": PATS,
    "noisytune": noisytune,
}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
FIX = r"train with DistributedDataParallel"


class Params4bit(nn.Parameter):
    """Named and typed as bitsandbytes' weights."""


Params4bit.__module__ = "bitsandbytes.nn.modules"


def quantised(model, how):
    for name, parameter in list(model.named_parameters()):
        if ".layer." in name and parameter.ndim == 2 and "lora" not in name:
            module = model.get_submodule(name.rpartition(".")[0])
            module._parameters["weight"] = how(parameter.detach())
    return model


HOW = {
    "int8": lambda w: nn.Parameter((w * 100).to(torch.int8), requires_grad=False),
    "4 bit": lambda w: Params4bit(torch.zeros(w.numel() // 2, 1, dtype=torch.uint8), requires_grad=False),
    "a class": lambda w: Params4bit(w.clone(), requires_grad=False),
}
hows = pytest.mark.parametrize("how", HOW.values(), ids=HOW)


@makers
@hows
def test_quantised_weights_are_refused(make, how):
    model = quantised(tiny_bert(), how)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(
        TypeError, match=r"query\.weight' is .*: quantised weights cannot be changed: pass the trainable"
    ):
        make(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@hows
def test_adapters_on_quantised_weights_are_perturbed(how):
    from peft import LoraConfig, get_peft_model

    model = quantised(get_peft_model(tiny_bert(), LoraConfig(target_modules=["query"])), how)
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    pats = PATS(model).attach(torch.optim.AdamW([p for _, p in trainable], 1e-3))
    alone = PATSAdamax(trainable, 1e-3)
    assert "PATS perturbs 4 tensors" in pats.summary()
    assert "PATS perturbs 4 tensors" in alone.summary()
    assert not any(info.name.endswith("base_layer.weight") for info in pats._perturbed)


def flattened(parameter):
    parameter._fsdp_flattened = True


def partitioned(parameter):
    parameter.ds_tensor, parameter.data = parameter.detach().clone(), torch.empty(0)


@makers
@pytest.mark.parametrize(("cut", "by"), [(flattened, "FSDP"), (partitioned, "DeepSpeed's ZeRO-3")])
def test_parts_of_tensors_are_refused(make, cut, by):
    model = tiny_bert()
    for parameter in model.parameters():
        cut(parameter)
    with pytest.raises(TypeError, match=rf"was cut or flattened by {by}.*: {FIX}"):
        make(model)


@pytest.mark.filterwarnings("ignore")
@makers
@pytest.mark.parametrize("originals", [True, False])
def test_fsdp_is_refused(make, originals, one_process):  # noqa: F811
    from torch.distributed.fsdp import FullyShardedDataParallel

    network = FullyShardedDataParallel(tiny_bert(), use_orig_params=originals, device_id=torch.device("cpu"))
    with pytest.raises((TypeError, ValueError), match=FIX):
        make(network)


@pytest.mark.filterwarnings("ignore")
@makers
def test_shards_are_refused(make, one_process):  # noqa: F811
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    network = fully_shard(tiny_bert(), mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(TypeError, match=rf"is a DTensor: .*{FIX}"):
        make(network)


def test_plain_adamax_takes_flat_parameters_of_fsdp():
    """Its step is entry by entry, so a part is as good as a whole."""
    parameter = nn.Parameter(torch.ones(4))
    parameter._is_flat_param, parameter.grad = True, torch.ones(4)
    Adamax([parameter], 1e-2).step()
    assert (parameter != 1.0).all()


@pytest.mark.parametrize("attached", [False, True])
def test_flat_tensors_in_the_parameters_place_are_refused(attached):
    """ZeRO 1 and 2 do this to the groups of an optimizer that they are given."""
    parameters = make_parameters()
    optimizer = Adamax(parameters.values(), 1e-3) if attached else PATSAdamax(parameters.items(), 1e-3)
    if attached:
        PATS(parameters.items()).attach(optimizer)
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in parameters.values()]))
    flat.grad = torch.ones_like(flat)
    optimizer.param_groups[0]["params"] = [flat]
    before = flat.detach().clone()
    with pytest.raises(
        ValueError, match=r"flat tensors.*DeepSpeed's ZeRO or FSDP put|DeepSpeed's ZeRO and FSDP put flat"
    ):
        optimizer.step()
    assert torch.equal(flat, before)


def test_a_parameter_flattened_later_is_refused_at_the_step():
    parameters = make_parameters()
    optimizer = PATSAdamax(parameters.items(), 1e-3)
    parameters[PERTURBED[0]]._fsdp_flattened = True
    set_gradients(parameters, {name: torch.ones_like(p) for name, p in parameters.items()})
    with pytest.raises(TypeError, match="was cut or flattened by FSDP"):
        optimizer.step()


def test_what_is_quantised():
    assert is_quantised(torch.zeros(2, dtype=torch.uint8))
    assert is_quantised(Params4bit(torch.zeros(2)))
    assert not is_quantised(nn.Parameter(torch.zeros(2, dtype=torch.bfloat16)))
