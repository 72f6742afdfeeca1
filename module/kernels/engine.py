"""The step of all tensors of an optimizer, wherever they lie: checked first, then measured, then made.

Everything that was checked is kept until something differs: a tensor, an entry of a state, which tensors have a
gradient. What is read anew at each step is where the gradients lie, and the settings.
"""

import os
import warnings
from collections.abc import MutableMapping, Sequence
from itertools import chain, compress, repeat
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from .backend import PACKAGES, VARIABLE, is_plain, on_device
from .device_step import DeviceStep
from .guard import Fingerprint, addresses_of
from .host_step import Adjust, HostStep
from .member import Member, NonFiniteGradient
from .plain_step import PlainStep
from .rows import GroupSettings
from .state import State

Store = MutableMapping[Any, State]
"""States by the members' keys."""


class _Kept:
    """The facts on which the kept tables rest.

    Args:
        candidates: All that may be in a step.
        steps: With their tables, all of whose members are direct.
        store: Where the members' states are kept.
    """

    def __init__(self, candidates: Sequence[Member], steps: Sequence[HostStep | DeviceStep], store: Store) -> None:
        self.candidates = candidates
        self._parameters = [member.parameter for member in candidates]
        gradients = self.gradients()
        self._given = [gradient is not None for gradient in gradients]
        members = [member for step in steps for member in step.members]
        place = {id(member): i for i, member in enumerate(members)}
        self._sparse = [member for member in members if member.touched is not None]
        dense = place.keys() - set(map(id, self._sparse))
        self._used = [id(member) in dense for member in candidates]  # not the empty ones
        order = np.array([place[id(member)] for member in (*compress(candidates, self._used), *self._sparse)])
        found, ends = np.argsort(order), np.cumsum([len(step.members) for step in steps])
        self._points = [*zip(steps, np.split(found, ends[:-1]), strict=True)]
        self._watched = [*compress(self._parameters, self._given)]
        self._states = [(member.state, member.keys) for member in members]
        self._stored = [*store, *store.values()]
        self._memory = Fingerprint([*self._watched, *self._entries()], fixed=True)
        self._gradients = Fingerprint([*compress(gradients, self._used)], fixed=False)

    def gradients(self) -> list[Any]:
        """Of the candidates, as they are now; None where there is none."""
        return [parameter.grad for parameter in self._parameters]

    def holds(self, store: Store) -> bool:
        """Whether parameters and states are as they were."""
        stored = [*store, *store.values()]
        if len(stored) != len(self._stored) or not all(map(is_, stored, self._stored)):
            return False
        try:
            entries = self._entries()
        except KeyError:
            return False
        return self._memory.matches([*self._watched, *entries])

    def _entries(self) -> list[Any]:
        return [state[key] for state, keys in self._states for key in keys]

    def points(self) -> bool:
        """Tell the steps where the candidates' gradients lie, if but for that they are as they were."""
        gradients = self.gradients()
        used = [*compress(gradients, self._used)]
        masked = any(map(hasattr, self._parameters, repeat("unmasked_grad")))
        if masked or [gradient is not None for gradient in gradients] != self._given:
            return False
        if not self._gradients.matches(used) or not all(map(self._take_rows, self._sparse)):
            return False
        found = addresses_of((*used, *(member.gradient for member in self._sparse)))
        for step, places in self._points:
            step.point(found[places])
        return True

    @staticmethod
    def _take_rows(member: Member) -> bool:
        gradient = member.parameter.grad
        return type(gradient) is Tensor and gradient.layout != torch.strided and member.take_rows(gradient)


class Engine:
    """The steps of one optimizer.

    Args:
        moments: Entries of a state but those of a sensitivity.
        adjust: Changes the rows that noise is drawn by, of parameters on the CPU.
    """

    def __init__(self, moments: Sequence[str], adjust: Adjust | None = None) -> None:
        self._moments, self._adjust = moments, adjust
        self._host = HostStep(adjust)
        self._plain_steps: dict[torch.device, PlainStep] = {}
        self.device_steps: dict[torch.device, DeviceStep] = {}
        self._steps: list[HostStep | DeviceStep] = []  # of the step that has begun, that of the CPU first
        self._copied: list[Member] = []
        self._sparse: list[Member] = []  # their gradients are rows, which are of one step
        self._kept: _Kept | None = None

    @property
    def live(self) -> list[Member]:
        """Members of the step that has begun, but for those that a gradient scaler on the CPU leaves out."""
        return [member for step in self._steps if step.live for member in step.members]

    def measure(
        self, optimizer: Optimizer, candidates: Sequence[Member], store: Store, groups: Sequence[GroupSettings]
    ) -> None:
        """Check everything that a step reads and writes; then advance counts and means, and keep the states.

        Args:
            optimizer: On which a gradient scaler leaves ``grad_scale`` and ``found_inf``, and clipping ``max_norm``,
                for which the norm found is left there as ``norm``.
            candidates: Those with a gradient are in the step. The same list as before means the same tensors.
            store: Of their states.
            groups: Settings of the parameter groups, as the members number them.

        Raises:
            TypeError: If a parameter, gradient or entry of a state is no plain tensor of its dtype.
            ValueError: If its shape, device, layout or storage is another than the parameter's, or two share memory,
                or settings do not go together with where the parameters are.
            RuntimeError: If a gradient is sparse or masked where that is not supported, or is not finite on the CPU.
                Whatever is raised, nothing has been changed.
        """
        kept = self._kept
        if kept is None or kept.candidates is not candidates or not kept.holds(store) or not kept.points():
            found = [(m, gradient) for m in candidates if (gradient := m.parameter.grad) is not None]
            self._lay_out(found, store)
        self._set(groups, getattr(optimizer, "grad_scale", None))
        found_inf, max_norm = getattr(optimizer, "found_inf", None), getattr(optimizer, "max_norm", None)
        if max_norm is None:
            for step in self._steps:
                step.measure(found_inf)
        else:
            optimizer.norm = self._measure_clipped(found_inf, max_norm)  # type: ignore[attr-defined]
        if self._kept is None:
            store.update((member.key, member.state) for member in self.live)
            plain = any(isinstance(step, PlainStep) for step in self._steps)
            if self._steps and not self._copied and not plain and all(step.live for step in self._steps):
                self._kept = _Kept(candidates, self._steps, store)

    def _measure_clipped(self, found_inf: Tensor | None, max_norm: float) -> float:
        if not self._steps:
            return 0.0
        step, *others = self._steps
        if others or not isinstance(step, HostStep):
            raise ValueError("Clipping in the step needs all parameters on the CPU: use clip_gradients")
        return step.measure(found_inf, max_norm)

    def again(self, store: Store, groups: Sequence[GroupSettings]) -> None:
        """Check once more, after others' changes, what the rest of the step reads and writes; gradients are not."""
        if self._kept is None or not self._kept.holds(store):
            self._lay_out([(member, None) for step in self._steps for member in step.members], store)
        self._set(groups, None)

    def update(self, *, before: bool = True, after: bool = True) -> None:
        """Do the step itself.

        Args:
            before: Update sensitivities.
            after: Subtract the noise.
        """
        for step in self._steps:
            step.update(before, after)
        for member in self._copied:
            member.write_back()
        for member in (*self._copied, *self._sparse):
            member.release()
        self._copied = []

    def forget(self) -> None:
        """Let go of the tensors of the last step, as states are replaced; what is on devices is kept."""
        self._kept = None
        for step in self._steps:
            step.members = []
        self._steps, self._sparse = [], []
        self._host.embeddings.clear()

    def _lay_out(self, found: Sequence[tuple[Member, Tensor | None]], store: Store) -> None:
        """Prepare members with their gradients and make the tables."""
        self._kept = None
        places: dict[HostStep | DeviceStep, list[Member]] = {}
        for member, gradient in found:
            if member.parameter.numel():
                member.prepare(store.get(member.key), self._moments, gradient)
                places.setdefault(self._step_of(member.parameter), []).append(member)
        self._steps = sorted(places, key=lambda step: not isinstance(step, HostStep))
        for step in self._steps:
            step.lay_out(places[step])
        laid_out = [*chain.from_iterable(places.values())]
        self._copied = [member for member in laid_out if not member.direct]
        self._sparse = [member for member in laid_out if member.touched is not None]
        for member in laid_out:
            if member.direct and member.touched is None:
                member.release()

    def _step_of(self, parameter: Tensor) -> HostStep | DeviceStep:
        """The step of the tensors where a parameter is, made when it is first needed."""
        device = parameter.device
        if on_device(parameter):
            if device not in self.device_steps:
                self.device_steps[device] = DeviceStep(device)
            return self.device_steps[device]
        if not is_plain(parameter):
            return self._host
        if device not in self._plain_steps:
            self._plain_steps[device] = PlainStep(self._adjust)
            if device.type in PACKAGES and VARIABLE not in os.environ:
                package = PACKAGES[device.type]
                warnings.warn(
                    f"No {package}: a plain torch step on {device}, slower: pip install {package}", stacklevel=6
                )
        return self._plain_steps[device]

    def _set(self, groups: Sequence[GroupSettings], grad_scale: Tensor | None) -> None:
        if len(self._steps) > 1 and any(group.model_mean for group in groups):
            raise ValueError("Invalid mean_scope: 'model' with parameters on several devices: 'tensor' is needed there")
        for step in self._steps:
            step.set(groups, grad_scale)

    def check_refused(self) -> None:
        """Raise if steps have been refused on a GPU since the last call; waits for it.

        Raises:
            NonFiniteGradient: With the name of the first tensor.
        """
        for step in self.device_steps.values():
            count, name = step.refused()
            if name is not None:
                raise NonFiniteGradient(name, count)
