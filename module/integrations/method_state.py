"""A method in a checkpoint of Trainer: its state, the random streams, the trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from ..composition import Composition
from ..context import MethodContext
from .processes import Processes

STATE = "method.pt"
"""Its file."""


def save_state(
    folder: str, choice: Mapping[str, str], method: Composition, context: MethodContext, processes: Processes
) -> None:
    """Write the method's file of a checkpoint, from the first process; all must call.

    Args:
        folder: Of the checkpoint.
        choice: Of method, optimizer and settings, by :func:`choice_of`.
        method: Of the run.
        context: Of the run.
        processes: Of the run.
    """
    with context.streams.separate():
        random = processes.gather(context.streams.state())
    if processes.rank:
        return
    state = {"choice": dict(choice), "method": method.state_dict(), "random": random}
    if method.evaluates_other_weights:  # the model's file has those
        state["trained"] = {key: p.detach() for key, p in context.network.named_parameters() if p.requires_grad}
    torch.save(state, Path(folder) / STATE)


def choice_of(name: str, method: Composition, optimizer: tuple[str, str]) -> dict[str, str]:
    """State what a resumed training must have in common with the one before, as text.

    Args:
        name: Of the method.
        method: Of the run.
        optimizer: Its name and rule.
    """
    found = {"method": name, "optimizer": " ".join(optimizer[: 1 + (optimizer[0] == "adamax")])}
    for part in method.methods:
        for field in fields(part.settings) if is_dataclass(part.settings) else ():
            found[f"{part.name}.{field.name}"] = repr(getattr(part.settings, field.name))
    return found


def read_state(folder: str, choice: Mapping[str, str]) -> dict[str, Any]:
    """Read what :func:`save_state` wrote.

    Raises:
        ValueError: The folder has no such file, a damaged one, or that of another choice.
    """
    file = Path(folder) / STATE
    if not file.is_file():
        raise ValueError(
            f"{folder} has no {STATE}: it is no checkpoint of MethodTrainer, or one with save_only_model: start anew"
        )
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError):
        raise ValueError(f"{file} is damaged: resume from an earlier checkpoint, or start anew") from None
    saved = state.get("choice") or {"method": state["name"]}  # earlier files have the name alone
    for key, value in saved.items():
        if (mine := choice.get(key)) != value:
            what = f"{key}=" if "." in key else f"the {key} "
            raise ValueError(f"{folder} is of {what}{value}, this run of {mine}: use the same, or start anew")
    return state


def load_state(state: Mapping[str, Any], method: Composition, context: MethodContext, processes: Processes) -> None:
    """Load a state of :func:`read_state`; ``context`` has the checkpoint's step."""
    method.load_state_dict(state["method"])
    with torch.no_grad():
        for key, parameter in context.network.named_parameters():
            if key in state.get("trained", {}):
                parameter.copy_(state["trained"][key])
    random = state["random"]
    with context.streams.separate():
        context.streams.resume(random if isinstance(random, list) else [random], processes.size, context.step)
