"""One training of a method in ``transformers.Trainer``: the hooks, in the order of this project's own loop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..composition import Composition
from ..context import MethodContext
from ..divided_step import DividedStep
from ..driver import StepGradients, prepare
from ..method import OptimizerSettings
from ..param_index import ParamIndex
from ..random_streams import RandomStreams
from .model_dropout import take_over_dropout
from .processes import Processes
from .replayed import replay_draws
from .trainer_model import TrainerBatch, TrainerModel


class TrainerRun:
    """Lets a method change the loaded model and builds the optimizer; then it waits for Trainer's events.

    Args:
        method: Of the run.
        model: In training, as methods call it.
        settings: Of the optimizer.
        args: Of Trainer.
        accelerator: Of Trainer.
        processes: Of the run.
        epochs: Of the whole run.
        steps: Of the whole run.

    Raises:
        ValueError: The method does not fit the model or the optimizer.
    """

    def __init__(
        self,
        method: Composition,
        model: TrainerModel,
        settings: OptimizerSettings,
        args: Any,
        accelerator: Any,
        processes: Processes,
        *,
        epochs: int,
        steps: int,
    ) -> None:
        network = model.network
        self.method, self.model, self._accelerator, self._processes = method, model, accelerator, processes
        self.resumed = False
        self._final = self._loss_checked = False
        if processes.size > 1:
            processes.broadcast(network.state_dict().values())
        streams = RandomStreams(args.seed, args.device, processes.rank)
        trainable = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
        self._give_back = [
            lambda: [parameter.requires_grad_(is_so) for parameter, is_so in trainable],
            take_over_dropout(network, method.configure, streams.dropout),
            model.take_over_words(),
        ]
        self.context = context = MethodContext(
            network,
            ParamIndex(network.named_parameters()),
            args.seed,
            streams=streams,
            model=model,
            total_steps=steps,
            total_epochs=epochs,
        )
        prepare(method, context, settings)
        if model.embedding_hooks:
            model.check_embeddings()
        replay_draws(context)
        self._divided = DividedStep(processes, network) if processes.size > 1 else None
        before_pass: tuple[Any, ...] = ()
        if self._divided is not None:
            context.complete_gradients = self._divided.complete
            before_pass = (self._divided.check_incomplete,)
        self._gradients = StepGradients(method, context, accelerator.backward, self._loss_scale, *before_pass)

    def begin(self, steps: int) -> None:
        """Let the method prepare from the data, unless it was resumed.

        Args:
            steps: Of the whole run, as Trainer has them now.
        """
        context, method = self.context, self.method
        context.total_steps = steps
        if self.resumed:
            return
        with context.streams.separate(), context.streams.preserved():
            method.before_fit(context)
        if self._divided is not None:  # each process has looked at all data, and rounding may differ
            method.load_state_dict(self._processes.of_first(method.state_dict()))

    def gradients(self, batches: Sequence[TrainerBatch]) -> Tensor:
        """Take the gradients of a step.

        Args:
            batches: Its micro-batches, or this process's share of them.

        Returns:
            () its loss, detached, the mean over its predictions.
        """
        context = self.context
        context.optimizer.zero_grad(set_to_none=True)
        examples = max(self._processes.sum(sum(batch.size for batch in batches)), 1)
        with context.streams.separate():
            if not self._loss_checked:
                with context.streams.preserved():
                    self.model.check_loss(batches[0])
                self._loss_checked = True
            loss = self._gradients(batches, examples)
        if self._divided is not None:
            loss = self._divided.finish(loss)
        return loss / examples

    def after_backward(self) -> None:
        """Behind clipping."""
        with self.context.streams.separate():
            self.method.after_backward(self.context)

    def after_step(self) -> None:
        """Behind the optimizer's step."""
        with self.context.streams.separate():
            self.method.after_step(self.context)

    def evaluated(self) -> AbstractContextManager[None]:
        """Context in which the model has the weights that are evaluated."""
        return nullcontext() if self._final else self.method.evaluation(self.context)

    def end(self, best: bool) -> None:
        """Leave a plain model with the weights that are evaluated.

        Args:
            best: Whether a checkpoint was loaded, which has those already.
        """
        network = self.model.network
        if self.method.evaluates_other_weights and not best:
            parameters = [parameter.detach() for parameter in network.parameters()]
            with self.evaluated():
                evaluated = [parameter.clone() for parameter in parameters]
            torch._foreach_copy_(parameters, evaluated)
        self._final = True
        self.method.hand_over(self.context)
        for give_back in self._give_back:
            give_back()

    def _loss_scale(self) -> Tensor | None:
        scaler = self._accelerator.scaler
        if scaler is None or not scaler.is_enabled():
            return None
        found: Tensor = scaler.scale(torch.ones((), dtype=torch.float32, device=self.context.streams.device))
        return found
