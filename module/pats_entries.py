"""The state of PATS inside an optimizer's state dict, parameter by parameter, under names of its own."""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from .kernels.rows import SENSITIVITY, SENSITIVITY_MEAN, STEP
from .kernels.state import State

ENTRIES = (STEP, SENSITIVITY, SENSITIVITY_MEAN)


def put_entries(optimizer: Optimizer, state_dict: dict[str, Any], key: str, states: Mapping[int, State]) -> None:
    """Write states of PATS into a state dict, as ``<key>_sensitivity`` and so on.

    Args:
        optimizer: That has made the state dict.
        state_dict: Changed; the optimizer's own dicts in it are not.
        key: That tells several PATS apart.
        states: By the parameters' ids.
    """
    stateless = not any(state_dict["state"].values())  # such as SGD
    merged = dict(state_dict["state"])
    for number, parameter in _numbers(optimizer, state_dict):
        if id(parameter) in states:
            named = {f"{key}_{entry}": value for entry, value in states[id(parameter)].items()}
            merged[number] = {**merged.get(number, {}), **named}
        elif states and stateless:
            merged[number] = {}  # set_optimizer_state_dict wants an entry of every parameter, if there is any
    state_dict["state"] = merged


def split_entries(
    optimizer: Optimizer, state_dict: Mapping[str, Any], key: str
) -> tuple[dict[str, Any], dict[int, State]]:
    """Return the state dict without what :func:`put_entries` wrote, and that by the parameters' ids."""
    found: dict[int, State] = {}
    state = dict(state_dict["state"])
    for number, parameter in _numbers(optimizer, state_dict):
        if isinstance(entries := state.get(number), Mapping):
            state[number] = dict(entries)
            if own := take_entries(state[number], key):
                found[id(parameter)] = own
    return {**state_dict, "state": state}, found


def take_entries(state: dict[str, Any], key: str) -> State:
    """Take PATS's entries out of the state of one parameter."""
    names = {entry: f"{key}_{entry}" for entry in ENTRIES}
    return {entry: state.pop(name) for entry, name in names.items() if name in state}


def _numbers(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> Iterator[tuple[Any, Tensor]]:
    """Pairs of number and parameter, as the groups of a state dict say."""
    saved, own = (
        chain.from_iterable(group["params"] for group in groups)
        for groups in (state_dict["param_groups"], optimizer.param_groups)
    )
    return zip(saved, own, strict=False)
