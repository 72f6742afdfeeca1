"""The sensitivities of a run, watched beside any method and optimizer, for Figures 2 and 3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn
from torch.optim import Optimizer

from data_utils.errors import SettingError
from data_utils.json_file import write_json
from module.pats import PATS
from module.sensitivity_summary import summarise
from mt_dnn.run_directory import RunDirectory


class SensitivityWatch:
    """Keeps the moving average of ``|theta * gradient|`` (Equation 2 of PATS) without touching the run.

    It is PATS without noise, attached to the run's optimizer: before each step it looks at the weights and at the
    step's gradients. With PATS's beta its average is PATS's own, bit for bit.

    Args:
        network: The network in training.
        optimizer: Its optimizer.
        beta: Of the moving average, in [0, 1); None: watch nothing.
    """

    def __init__(self, network: nn.Module, optimizer: Optimizer, beta: float | None) -> None:
        self._beta = beta
        self._pats: PATS | None = None
        if beta is not None:
            silent = PATS(network.named_parameters(), noise_scale=0.0, sensitivity_beta=beta)
            self._pats = silent.attach(optimizer, state_key=None)

    def state_dict(self) -> dict[str, Any]:
        """The state for a resume; empty where nothing is watched."""
        return {} if self._pats is None else self._pats.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Load the state of :meth:`state_dict`.

        Args:
            state: Of the checkpoint; ignored where nothing is watched.
            step: Of the checkpoint, for the message.

        Raises:
            SettingError: the run was begun unwatched, or with another beta: its average would not be the one asked for.
        """
        if self._pats is None:
            return
        begun = state["rule"]["sensitivity_beta"] if state else None
        if begun != self._beta:
            raise SettingError(
                f"sensitivity_beta is {self._beta}, but the run was begun with {begun} and stands at step {step}: give "
                "the same value, or delete its folder to start over"
            )
        self._pats.load_state_dict(state)

    def write(self, directory: RunDirectory) -> None:
        """Write ``sensitivity.json``, a summary of the averages as they stand."""
        if self._pats is None or self._beta is None:
            return
        state = self._pats.state_dict()["state"]
        summary = summarise({path: entry["sensitivity"] for path, entry in state.items()}, self._beta)
        write_json(directory.sensitivity_json, asdict(summary))
