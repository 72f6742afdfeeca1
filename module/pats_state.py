"""The state of PATS between steps, saved and restored by path or with an optimizer's state."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from .choice import flag_of
from .kernels.guard import is_quantised
from .kernels.member import Member, check_parameter
from .kernels.state import STEP, TRACKED, State, loaded_entries
from .noise import check_seed
from .param_index import Kind, ParamInfo
from .pats_rule import PATSRule

STATE_KEY = "pats"
"""Where this state stands in the state dict of the optimizer."""
ENTRIES = (STEP, *TRACKED)
Loaded = tuple[PATSRule, int, dict[str, State]]


class PATSState:
    """Rule, seed and sensitivities.

    Args:
        infos: The model's parameters.
        rule: Says whether biases are perturbed.
        noise_seed: Seed of the noise stream, in [0, 2**64).
        own: Names of the tensors to be perturbed, by the user's choice; None: those of the layers but norms.

    Raises:
        ValueError: If the seed is out of range.
        TypeError: If a parameter is not one that the kernels take.
        NotImplementedError: As TypeError.
    """

    def __init__(self, infos: Iterable[ParamInfo], rule: PATSRule, noise_seed: int, own: set[str] | None) -> None:
        self.rule = rule
        self.noise_seed = check_seed(noise_seed)
        self._infos = list(infos)
        self._own = own
        self._optimizer: Optimizer | None = None
        self._perturbed = self._chosen()
        for info in self._perturbed:
            check_parameter(info.name, info.parameter, is_special=True)
        self._state: dict[str, State] = {}
        self._listed: list[Member] = []
        self._asked: Any = None  # what the list follows from
        self._state_key: str | None = None
        self._loading: Loaded | None = None

    def _is_chosen(self, info: ParamInfo, rule: PATSRule) -> bool:
        return info.is_inner(rule.perturb_biases) if self._own is None else info.name in self._own

    def _flags(self) -> list[bool | None]:
        """Flags of the optimizer's groups, in order."""
        groups = self._optimizer.param_groups if self._optimizer else []
        return [flag_of(group, "perturb") for group in groups]

    def _flag_by_parameter(self) -> dict[int, bool]:
        groups = self._optimizer.param_groups if self._optimizer else []
        pairs = zip(groups, self._flags(), strict=True)
        return {id(p): flag for group, flag in pairs if flag is not None for p in group["params"]}

    def _chosen(self) -> list[ParamInfo]:
        flags = self._flag_by_parameter()
        chosen = [info for info in self._infos if flags.get(id(info.parameter), self._is_chosen(info, self.rule))]
        # Quantised weights are passed over where weights beside them are trained: adapters. Else they are refused.
        rest = [info for info in chosen if info.parameter.requires_grad or not is_quantised(info.parameter)]
        return rest if any(info.parameter.requires_grad and info.kind == Kind.WEIGHT for info in rest) else chosen

    def state_dict(self) -> dict[str, Any]:
        """Return the rule, the seed and the state by the parameters' paths, which do not depend on any prefix."""
        return {
            "rule": asdict(self.rule),
            "noise_seed": self.noise_seed,
            "state": {k: dict(v) for k, v in self._state.items()},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state dict, including its rule and seed.

        Raises:
            ValueError: If it holds a parameter that this object does not perturb, or one of another shape; nothing has
                been changed then.
            TypeError: If an entry of the state is missing or no plain tensor.
        """
        self._take(self._checked(state_dict))

    def _checked(self, saved: Mapping[str, Any]) -> Loaded:
        if not isinstance(saved, Mapping):
            raise ValueError(f"No state of PATS: a {type(saved).__name__}: pass what state_dict() gave")
        if absent := {"rule", "noise_seed", "state"} - set(saved):
            raise ValueError(f"No state of PATS: it lacks {', '.join(sorted(absent))}: pass what state_dict() gave")
        if not isinstance(saved["rule"], Mapping) or not isinstance(saved["state"], Mapping):
            raise ValueError("No state of PATS: its rule or its state is none: pass what state_dict() gave")
        rule = PATSRule(**saved["rule"])
        flags = self._flag_by_parameter()  # a flag that has been taken away leaves a state behind
        infos = {
            info.stream: info for info in self._infos if self._is_chosen(info, rule) or id(info.parameter) in flags
        }
        for path in saved["state"]:
            if path not in infos:
                raise ValueError(
                    f"The state holds {path!r}, which is not perturbed here: load it into the same model and rule"
                )
        state = {
            path: loaded_entries(path, infos[path].parameter, entries, ENTRIES)
            for path, entries in saved["state"].items()
        }
        return rule, check_seed(saved["noise_seed"]), state

    def _take(self, loaded: Loaded) -> None:
        self.rule, self.noise_seed, self._state = loaded
        self._perturbed, self._loading = self._chosen(), None
        self._listed, self._asked = [], None

    def take_over(self, optimizer: Optimizer, key: str) -> None:
        """Take sensitivities that the optimizer was loaded with before, and say what cannot be taken."""
        if not optimizer.state:
            return
        loaded = {
            info.stream: loaded_entries(info.name, info.parameter, entries, ENTRIES)
            for info in self._perturbed
            if (entries := take_entries(optimizer.state.get(info.parameter, {}), key))
        }
        if self._state:
            return
        self._state = loaded
        kept = (
            "its sensitivities are kept, as torch rounds them to the parameters' dtype; rule and noise_seed are not"
            if loaded
            else "its sensitivities start anew"
        )
        warnings.warn(
            f"The optimizer was loaded, or made steps, before PATS was attached: {kept}: attach PATS first, then load",
            stacklevel=3,
        )

    def _save_with(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        assert self._state_key is not None
        state_dict[self._state_key] = self.state_dict()
        states = {id(info.parameter): state for info in self._perturbed if (state := self._state.get(info.stream))}
        put_entries(optimizer, state_dict, self._state_key, states)

    def _load_with(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Check and set aside what is PATS's: it counts when the optimizer has taken its own part."""
        assert self._state_key is not None
        self._loading = None
        rest, of_parameter = split_entries(optimizer, state_dict, self._state_key)
        saved = rest.pop(self._state_key, None)
        if saved is None and of_parameter:
            # torch.distributed.checkpoint keeps what is in the state, and no key beside it.
            infos = {id(info.parameter): info for info in self._perturbed}
            states = {infos[i].stream: entries for i, entries in of_parameter.items() if i in infos}
            saved = {**self.state_dict(), "state": states}
        if saved is not None:
            self._loading = self._checked(saved)
        elif state_dict.get("state"):
            warnings.warn(
                "The optimizer's checkpoint was written without PATS: its sensitivities and its noise are not in it, "
                "unless PATS.load_state_dict restores them",
                stacklevel=4,
            )
        return rest

    def _after_loading(self, optimizer: Optimizer) -> None:
        if self._loading is not None:
            self._take(self._loading)


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
