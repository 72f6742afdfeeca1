"""The state of one parameter: what it holds, how it starts, where it lies, and how it comes out of a checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .guard import check_saved

State = dict[str, Any]

# Names of the optimizers' state, written once.
STEP, MOMENTUM, INFINITY_NORM = "step", "exp_avg", "exp_inf"
SENSITIVITY, SENSITIVITY_MEAN = "sensitivity", "sensitivity_mean"
COLUMNS = {  # of the table of tensors
    STEP: "step_at",
    MOMENTUM: "momentum",
    INFINITY_NORM: "infinity_norm",
    SENSITIVITY: "sensitivity",
    SENSITIVITY_MEAN: "mean_at",
}
MOMENTS = (STEP, MOMENTUM, INFINITY_NORM)
TRACKED = (SENSITIVITY, SENSITIVITY_MEAN)
_SCALARS = (STEP, SENSITIVITY_MEAN)
_HOMES = ("cpu", "cuda")
_MAX_STEPS = 1 << 24  # up to which a float32 counts


def entry_dtype(key: str) -> torch.dtype:
    """Return the dtype of an entry: float32 whatever the parameter's is, float64 of the mean."""
    return torch.float64 if key == SENSITIVITY_MEAN else torch.float32


def entry_shape(key: str, parameter: Tensor) -> torch.Size:
    """Return the shape of an entry, the parameter's or a scalar's."""
    return torch.Size() if key in _SCALARS else parameter.shape


def entry_device(key: str, parameter: Tensor) -> torch.device:
    """Return where an entry lies: with the parameter, but numbers on the CPU for devices that may lack float64."""
    away = key in _SCALARS and parameter.device.type not in _HOMES
    return torch.device("cpu") if away else parameter.device


def new_entries(parameter: Tensor, keys: Sequence[str]) -> State:
    """Make entries as they are before the first step: zero."""
    with torch.inference_mode(False):  # what is made inside it could not be changed outside
        return {
            key: torch.zeros(entry_shape(key, parameter), dtype=entry_dtype(key), device=entry_device(key, parameter))
            for key in keys
        }


def at_home(state: State, parameter: Tensor) -> State:
    """Return the state where the parameter is, if all of it stayed behind when the model was moved."""
    step = state.get(STEP)
    if not isinstance(step, Tensor) or step.device == parameter.device or step.device.type not in _HOMES:
        return state
    if any(isinstance(value, Tensor) and value.device != step.device for value in state.values()):
        return state  # part of it went astray: the check of the addresses says what
    return {
        key: value.to(entry_device(key, parameter)) if isinstance(value, Tensor) else value
        for key, value in state.items()
    }


def check_mapping(name: str, state: Any, keys: Sequence[str]) -> None:
    """Refuse what holds no entries.

    Raises:
        TypeError: If it is no mapping.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"The state of {name!r} is a {type(state).__name__}: {', '.join(keys)} are needed")


def check_steps(names: Sequence[str], steps: np.ndarray) -> None:
    """Refuse what is no number of updates.

    Raises:
        ValueError: If one of them is not in [0, 2**24].
    """
    sound = (steps >= 0.0) & (steps <= _MAX_STEPS)
    if not sound.all():
        first = int(np.argmin(sound))
        raise ValueError(
            f"step of {names[first]!r} is {float(steps[first])}: a number in [0, {_MAX_STEPS}] is needed: load a sound "
            "state"
        )


def loaded_entries(name: str, parameter: Tensor, saved: Mapping[str, Any], keys: Sequence[str]) -> State:
    """Copy entries out of a checkpoint, in their own precision, which torch would cast to the parameter's.

    Raises:
        TypeError: If one is missing or no plain tensor.
        ValueError: If one has another shape than the parameter.
    """
    check_mapping(name, saved, keys)
    state = {}
    for key in keys:
        value = saved.get(key)
        if key == STEP and isinstance(value, int | float):  # checkpoints of torch before 1.12
            value = torch.tensor(float(value), dtype=torch.float32, device="cpu")
        if key in _SCALARS and type(value) is Tensor and value.numel() == 1:
            value = value.reshape(())
        tensor = check_saved(name, key, value, entry_shape(key, parameter))
        with torch.inference_mode(False):
            state[key] = tensor.detach().to(entry_device(key, parameter), entry_dtype(key), copy=True).contiguous()
    if STEP in state:
        check_steps([name], np.array([float(state[STEP])]))
    return state
