"""A small table on a device that follows one on the host, without waiting for the device."""

import numpy as np
import torch
from torch import Tensor


class Mirror:
    """Sends a table when it has changed, through page-locked memory.

    A CUDA graph holds the copies it captured: it repeats them from host memory of its own at each replay. After a
    capture nothing is known of what a replay left behind, so from then on every table is sent.

    Args:
        device: Where the table goes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.tensor = torch.empty(0, dtype=torch.float32, device=device)
        """The table on the device, as last put."""
        self._last: np.ndarray | None = None
        self._spare: Tensor | None = None  # page-locked: nothing can be allocated while a graph is captured
        self._captured: list[Tensor] = []  # what graphs use

    def put(self, values: np.ndarray) -> None:
        """Make the device's table equal to ``values``, in stream order."""
        host = torch.from_numpy(values)
        if self.tensor.shape != host.shape or self.tensor.dtype != host.dtype:
            if self._captured:
                self._captured.append(self.tensor)
            self.tensor = torch.empty_like(host, device=self.device)
            self._last = None
        if self.device.type != "cuda":
            self.tensor.copy_(host)
        elif torch.cuda.is_current_stream_capturing():
            spare = self._spare if self._spare is not None and self._spare.shape == host.shape else None
            pinned = torch.empty_like(host, pin_memory=True) if spare is None else spare
            self._spare = None
            self._captured += [pinned.copy_(host), self.tensor]
            self.tensor.copy_(pinned, non_blocking=True)
        elif self._captured or self._last is None or not np.array_equal(self._last, values):
            self.tensor.copy_(host.pin_memory(), non_blocking=True)
            self._last = values
            if self._spare is None or self._spare.shape != host.shape:
                self._spare = torch.empty_like(host, pin_memory=True)
