"""The state dict of an optimizer, checked as a whole before any of it is loaded."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from .kernels.state import MOMENTS, TRACKED, State, loaded_entries
from .param_index import are_one_place

Group = dict[str, Any]

_NEEDED = ("lr", "betas", "eps", "weight_decay")  # of a group of any Adamax
_FOREIGN = ("amsgrad", "momentum")  # groups of Adam, AdamW and NAdam; SGD and RMSprop


def prepare_state_dict(
    optimizer: Optimizer, state_dict: Mapping[str, Any], check_group: Callable[[Group], None]
) -> dict[str, Any]:
    """Check a state dict against an optimizer and complete it.

    Args:
        optimizer: An Adamax whose parameters count; it is not changed.
        state_dict: Made by torch, by this module, or by a hook that translates.
        check_group: Raises ValueError if a hyper-parameter of a group is out of range.

    Returns:
        Groups with every key; the state by parameter instead of number, which torch takes over as it is.

    Raises:
        ValueError: If it does not fit.
        TypeError: If an entry of the state is no plain tensor.
    """
    if absent := {"state", "param_groups"} - set(state_dict):
        lacking = " and ".join(sorted(absent))
        raise ValueError(f"No state of an optimizer: it lacks {lacking}: pass what state_dict() gave")
    groups, saved = optimizer.param_groups, state_dict["param_groups"]
    if not isinstance(state_dict["state"], Mapping) or not _are_groups(saved):
        raise ValueError("No state of an optimizer: state or param_groups are none: pass what state_dict() gave")
    here, there = ([len(group["params"]) for group in some] for some in (groups, saved))
    if here != there:
        raise ValueError(
            f"The checkpoint has groups of {there} parameters, the optimizer of {here}: make the same groups of the "
            "same model before loading"
        )
    pairs = enumerate(zip(groups, saved, strict=True))
    completed = [_completed(i, own, group, check_group) for i, (own, group) in pairs]
    rest = dict(state_dict["state"])
    state: dict[Any, Any] = {}
    for group, own in zip(completed, groups, strict=True):
        names = own.get("param_names") or group.get("param_names") or [f"parameter {i}" for i in group["params"]]
        for name, parameter, number in zip(names, own["params"], group["params"], strict=True):
            entry = rest.pop(number, {})
            if entry != {}:
                state[parameter] = _loaded(name, parameter, entry)
    return {**state_dict, "param_groups": completed, "state": {**rest, **state}}


def _are_groups(saved: Any) -> bool:
    return isinstance(saved, list | tuple) and all(
        isinstance(group, Mapping)
        and isinstance(group.get("params"), list | tuple)
        and isinstance(group.get("param_names", ()), list | tuple)
        for group in saved
    )


def _completed(number: int, own: Group, saved: Group, check_group: Callable[[Group], None]) -> Group:
    missing = [key for key in _NEEDED if key not in saved]
    foreign = [key for key in _FOREIGN if key in saved]
    if missing or foreign:
        why = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(foreign)}"
        raise ValueError(
            f"Group {number} of the checkpoint {why}: it is of another optimizer than Adamax: load it into that "
            "one, or start this one anew"
        )
    for one, other in zip(saved.get("param_names", ()), own.get("param_names", ()), strict=False):
        if not are_one_place(one, other):
            raise ValueError(
                f"The checkpoint has {one!r} where the optimizer has {other!r}: pass the same parameters in the same "
                "order as then"
            )
    group = {**{key: value for key, value in own.items() if key != "params"}, **saved}
    check_group(group)
    return group


def _loaded(name: str, parameter: Tensor, saved: Any) -> State:
    missing = [key for key in MOMENTS if key not in saved] if isinstance(saved, Mapping) else list(MOMENTS)
    if missing:
        found = ", ".join(map(str, saved)) if isinstance(saved, Mapping) else type(saved).__name__
        raise ValueError(
            f"The checkpoint's state of {name!r} is {found}: Adamax's is {', '.join(MOMENTS)}: load it into the "
            "optimizer that it is of, or start this one anew"
        )
    tracked = TRACKED if any(key in saved for key in TRACKED) else ()
    keys = (*MOMENTS, *tracked)
    rest = {key: _copied(value) for key, value in saved.items() if key not in keys}
    return {**loaded_entries(name, parameter, saved, keys), **rest}


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
