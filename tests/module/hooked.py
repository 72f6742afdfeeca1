"""Small sets of parameters trained through a method's hooks, in the order of the trainer's step."""

from types import SimpleNamespace

import torch

from module.method import OptimizerSettings
from module.methods import build_method
from module.param_index import weight_decay_groups
from tests.module.models import learning_rate, make_context, make_gradients, make_parameters, set_gradients


class Hooked:
    """Parameters, a method and its optimizer.

    Args:
        spec: Of the method.
        settings: Name of a method -> its Settings.
        changed: Called with the parameters after the method's anchors are taken, before its setup.
        total_steps: Of the run.
        total_epochs: Of the run.
        optimizer: Fields of OptimizerSettings.
    """

    def __init__(self, spec, settings, *, changed=None, total_steps=0, total_epochs=0, **optimizer):
        self.parameters = make_parameters()
        self.method = build_method(spec, settings)
        wanted = OptimizerSettings(**{"optimizer": "adamw", **optimizer})
        self.context = make_context(self.parameters.items())
        self.context.total_steps, self.context.total_epochs = total_steps, total_epochs
        for kind in self.method.anchors & {"pretrained"}:
            self.context.anchor(kind)
        if changed is not None:
            changed(self.parameters)
        self.method.setup(self.context)
        groups = weight_decay_groups(self.context.params, wanted.weight_decay)
        groups = self.method.param_groups(self.context, [{**g, "lr": wanted.learning_rate} for g in groups])
        self.context.optimizer = self.method.make_optimizer(groups, wanted)
        for group in self.context.optimizer.param_groups:
            group["initial_lr"] = group["lr"]

    def steps(self, n, first=1, schedule=lambda step: learning_rate(step) / learning_rate(1)):
        """Steps numbered from 1; ``schedule`` gives multipliers of the learning rates."""
        for step in range(first, first + n):
            for group in self.context.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * schedule(step)
            self.context.step, self.context.examples = step - 1, 4
            self.context.optimizer.zero_grad()

            def inner(batches, weight=1.0, step=step):
                trained = {n: p for n, p in self.parameters.items() if p.requires_grad}
                set_gradients(trained, {n: g * weight for n, g in make_gradients(step).items()})
                return torch.zeros((), dtype=torch.float32, device="cpu")

            self.method.gradients(self.context, [SimpleNamespace(size=4)], inner)
            self.method.after_backward(self.context)
            self.context.optimizer.step()
            self.method.after_step(self.context)
        return self

    def values(self):
        return {name: p.detach().clone() for name, p in self.parameters.items()}
