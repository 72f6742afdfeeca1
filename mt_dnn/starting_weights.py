"""The trained weights of a run, put into the network of another one."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor, nn

from data_utils.errors import SettingError, in_one_line
from mt_dnn.checkpoint import load_weights
from mt_dnn.network import Network
from mt_dnn.san import SanHead
from mt_dnn.starting_point import TrainedStart

log = logging.getLogger(__name__)

_ENCODER, _POOLER = "encoder.", "pooler."


def begin_with(start: TrainedStart, network: Network, pooler_actf: str) -> None:
    """Give a new network the run's encoder, and its pooler and heads where they fit; a line of the log says which.

    A pooler fits if its activation is the run's. A head fits if its layers have the shapes of the run's head of its
    task, and the pooler below it, where it has one, fits too.

    Raises:
        SettingError: the weights are damaged, or the encoder's are not those of the network.
    """
    state = _merged(load_weights(start.directory.checkpoints, start.epoch), network, _lora_scale(start))
    encoder = {name.removeprefix(_ENCODER): value for name, value in state.items() if name.startswith(_ENCODER)}
    try:
        network.encoder.load_state_dict(encoder)
    except RuntimeError as error:
        raise SettingError(
            f"{start.directory.path}: its weights do not fit {start.pretrained}: {in_one_line(error)}"
        ) from None
    same = start.description["config"].get("pooler_actf") == pooler_actf
    pooler = network.pooler is not None and same and _load_if_fits(network.pooler, state, _POOLER)
    taken = {
        f"the head of {task}": (pooler or isinstance(head, SanHead)) and _load_if_fits(head, state, f"heads.{task}.")
        for task, head in network.heads.items()
    }
    if network.pooler is not None:
        taken = {"the pooler": pooler, **taken}
    anew = [name for name, was in taken.items() if not was]
    drawn = f"; drawn anew: {', '.join(anew)}" if anew else ""
    given = ["the encoder", *(name for name, was in taken.items() if was)]
    log.info("%s (%s epoch) gives %s%s", start.directory.path, start.epoch, ", ".join(given), drawn)


def _lora_scale(start: TrainedStart) -> float:
    settings = start.description["config"]["method_settings"].get("lora")
    return settings["alpha"] / settings["r"] if settings else 1.0


def _load_if_fits(module: nn.Module, state: Mapping[str, Tensor], prefix: str) -> bool:
    """Load a module's part of a network's weights, if it has its names and shapes; returns whether."""
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    if {name: value.shape for name, value in own.items()} != shapes:
        return False
    module.load_state_dict(own)
    return True


def _merged(state: Mapping[str, Tensor], network: nn.Module, scale: float) -> dict[str, Tensor]:
    """Weights under the names of a plain network, with LoRA's updates ``scale * B A`` added."""
    merged = {}
    for name, value in state.items():
        if ".lora_" in name:
            continue
        layer, inside, rest = name.partition(".base_layer.")
        update = f"{layer}.lora_A.default.weight"
        if inside and rest == "weight" and update in state:
            delta = state[f"{layer}.lora_B.default.weight"] @ state[update]  # (fan_out, fan_in)
            if type(network.get_submodule(layer)).__name__ == "Conv1D":  # GPT-2's layers hold the transpose
                delta = delta.T
            value = value + delta * scale
        merged[f"{layer}.{rest}" if inside else name] = value
    return merged
