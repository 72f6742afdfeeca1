"""What a checkpoint of Trainer holds of the method: its state, the random streams, the trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..composition import Composition
from ..context import MethodContext
from .processes import Processes

STATE = "method.pt"
"""Its file."""


def save_state(folder: str, name: str, method: Composition, context: MethodContext, processes: Processes) -> None:
    """Write the method's file of a checkpoint, from the first process; all must call.

    Args:
        folder: Of the checkpoint.
        name: Of the method.
        method: Of the run.
        context: Of the run.
        processes: Of the run.
    """
    with context.streams.separate():
        random = processes.gather(context.streams.state())
    if processes.rank:
        return
    state = {"name": name, "method": method.state_dict(), "random": random}
    if method.evaluates_other_weights:  # the model's file has those
        state["trained"] = {key: p.detach() for key, p in context.network.named_parameters() if p.requires_grad}
    torch.save(state, Path(folder) / STATE)


def load_state(folder: str, name: str, method: Composition, context: MethodContext, processes: Processes) -> None:
    """Load what :func:`save_state` wrote; arguments as there, with ``context.step`` of the checkpoint.

    Raises:
        ValueError: The folder has no such file, or that of another method.
    """
    file = Path(folder) / STATE
    if not file.is_file():
        raise ValueError(
            f"{folder} has no {STATE}: it is no checkpoint of MethodTrainer, or one with save_only_model: start anew"
        )
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    if state["name"] != name:
        raise ValueError(f"{folder} is of the method {state['name']}, this run of {name}: use the same, or start anew")
    method.load_state_dict(state["method"])
    with torch.no_grad():
        for key, parameter in context.network.named_parameters():
            if key in state.get("trained", {}):
                parameter.copy_(state["trained"][key])
    random = state["random"]
    with context.streams.separate():
        context.streams.resume(random if isinstance(random, list) else [random], processes.size, context.step)
