"""Every method in ``transformers.Trainer``; needs transformers 5 and the accelerate that its Trainer needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from ..checks import short_repr
from ..context import MethodContext
from ..driver import StepGradients, prepare
from ..method import Resource
from ..methods import build_method, parse_method
from ..param_index import ParamIndex
from ..random_streams import RandomStreams
from ..seeds import stream_seed
from .method_settings import method_settings, optimizer_settings, searched_settings
from .method_state import choice_of, load_state, read_state, save_state
from .model_dropout import take_over_dropout
from .processes import DividedStep, Processes
from .refusals import refuse
from .replayed import replay_draws
from .trainer_model import Task, TrainerBatch, TrainerModel, task_of


class MethodTrainer(Trainer):  # type: ignore[misc]
    """``transformers.Trainer`` with a method, or several joined with ``+``.

    The method's hooks come as in this project's own loop: what it does to the loaded weights at the start of ``train``;
    the gradients of a whole optimizer step, all its micro-batches, at the last of them; what it does after clipping and
    after the step. The loss is the mean over the step's examples (labelled tokens, where each has a prediction).

    All of its randomness, dropout too, follows from ``args.seed``; a data loader that draws shifts nothing. With an
    average of weights evaluation and saved models are the average's; checkpoints hold both.

    Args:
        method: Names of methods, such as ``noisytune+pats``.
        settings: Theirs: ``{"pats.noise_scale": 5e-3}`` or ``{"pats": {"noise_scale": 5e-3}}``; the latter may be
            keywords too, ``pats={"noise_scale": 5e-3}``.
        optimizer: ``adamw``, or this project's ``adamax``; with learning rate, betas and weight decay of ``args``.
        adamax_rule: Of ``adamax``: MT-DNN's or torch's.
        task: What the model predicts; None: its class tells.
        arguments: Of ``Trainer``: ``model``, ``args``, ``train_dataset`` and so on.

    Raises:
        ValueError: The method, a setting or an argument of ``Trainer`` is wrong, or the two cannot be right together.
    """

    def __init__(
        self,
        method: str,
        settings: Mapping[str, Any] | None = None,
        *,
        optimizer: Literal["adamw", "adamax"] = "adamw",
        adamax_rule: Literal["mtdnn", "torch"] = "mtdnn",
        task: Task | str | None = None,
        **arguments: Any,
    ) -> None:
        if not isinstance(method, str):
            raise ValueError(
                f"method is {short_repr(method)}: names joined with + are needed, as in "
                'MethodTrainer("noisytune+pats", model=model)'
            )
        if not isinstance(settings, Mapping | None):
            example = {"pats.noise_scale": 5e-3}
            raise ValueError(f"settings is {short_repr(settings)}: a mapping is needed, such as {example}")
        names = parse_method(method)
        own = {name: arguments.pop(name) for name in names if name in arguments}
        given = {**dict(settings or {}), **own}
        if double := own.keys() & (settings or {}).keys():
            raise ValueError(f"settings of {', '.join(sorted(double))} are given twice: give them once")
        self.method_name, self._settings = method, method_settings(names, given)
        self.method = build_method(method, self._settings)
        self._optimizer, self._given_task = (optimizer, adamax_rule), task
        self._context: MethodContext | None = None
        callbacks = [_Hooks(self), *(arguments.pop("callbacks", None) or [])]
        refuse(arguments)
        super().__init__(callbacks=callbacks, **arguments)
        self._model = self._look_through()

    def _look_through(self) -> TrainerModel:
        """Refuse a run that cannot be right; return its model as methods call it."""
        args, method = self.args, self.method
        refuse({}, args, self.model, type(self).compute_loss is not Trainer.compute_loss, method)
        task = task_of(self.model) if self._given_task is None else Task(self._given_task)
        self._optimizer_settings = optimizer_settings(args, *self._optimizer)
        method.check_run(self._optimizer_settings)
        method.check_device(args.device.type)
        if args.label_smoothing_factor and task is Task.REGRESSION:
            raise ValueError("label_smoothing_factor is for classes, this is a regression: leave it out")
        model = TrainerModel(
            self.model,
            task,
            self.label_names[0] if len(self.label_names) == 1 else "labels",
            self.accelerator.autocast,
            len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else 0,
            self._first_pass,
            args.label_smoothing_factor,
        )
        if any(Resource.EMBEDDINGS in part.exclusive for part in method.methods):
            model.check_embeddings()
        return model

    def create_accelerator_and_postprocess(self) -> None:
        """Leave the model as it is where processes divide a step.

        DistributedDataParallel averages inside of every backward, and methods make several.
        """
        super().create_accelerator_and_postprocess()
        if self.args.world_size > 1:
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        self._processes = Processes(self.args.process_index, self.args.world_size, self.args.device)

    def train(self, *arguments: Any, **named: Any) -> Any:
        """Train; arguments and result as Trainer's.

        Raises:
            ValueError: The method does not fit the model or the run, a checkpoint is another method's, or this is the
                second call on one model.
        """
        if self._context is not None and self.model_init is None:
            raise ValueError(
                "train() was called before: the method has changed the model already: make a new MethodTrainer, and "
                "resume_from_checkpoint to go on"
            )
        return super().train(*arguments, **named)

    def _hp_search_setup(self, trial: Any) -> None:
        """Set up the run: Trainer has made its model, and what follows here are the arguments of a search."""
        found: dict[str, Any] = {}
        space = self.hp_space if self.hp_search_backend is not None and trial is not None else None

        def of_trainer(proposed: Any) -> dict[str, Any]:
            values = proposed if space is None else space(proposed)
            found.update({name: value for name, value in values.items() if "." in name})
            return {name: value for name, value in values.items() if "." not in name}

        if space is not None:
            self.hp_space = of_trainer
        try:
            super()._hp_search_setup(of_trainer(trial) if isinstance(trial, dict) else trial)
        finally:
            if space is not None:
                self.hp_space = space
        names = parse_method(self.method_name)
        self.method = build_method(self.method_name, searched_settings(self._settings, names, found))
        self._set_up()

    def _set_up(self) -> None:
        """Let the method change the loaded model, and build the optimizer."""
        args, model, processes = self.args, self.model, self._processes
        self._window: list[Any] = []
        self._seen, self._resumed, self._final, self._loss_checked = 0, False, False, False
        if self.model_init is not None:
            self._model = self._look_through()
        if processes.size > 1:
            processes.broadcast(model.state_dict().values())
        with torch.random.fork_rng(devices=[]):  # the order of the data is Trainer's
            epochs, *_, steps = self.set_initial_training_values(args, self.get_train_dataloader())
        streams = RandomStreams(args.seed, args.device, processes.rank)
        trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._give_back = [
            lambda: [parameter.requires_grad_(is_so) for parameter, is_so in trainable],
            take_over_dropout(model, self.method.configure, streams.dropout),
            self._model.take_over_words(),
        ]
        self._context = context = MethodContext(
            model,
            ParamIndex(model.named_parameters()),
            args.seed,
            streams=streams,
            model=self._model,
            total_steps=steps,
            total_epochs=epochs,
        )
        prepare(self.method, context, self._optimizer_settings)
        if self._model.embedding_hooks:
            self._model.check_embeddings()
        self.optimizer = context.optimizer
        replay_draws(context)
        self._divided = DividedStep(processes, model) if processes.size > 1 else None
        before_pass: tuple[Any, ...] = ()
        if self._divided is not None:
            context.complete_gradients = self._divided.complete
            before_pass = (self._divided.check_incomplete,)
        self._gradients = StepGradients(self.method, context, self.accelerator.backward, self._loss_scale, *before_pass)

    def get_batch_samples(self, *arguments: Any, **named: Any) -> Any:
        """Keep the micro-batches of the next step."""
        found = super().get_batch_samples(*arguments, **named)
        self._window, self._seen = found[0], 0
        return found

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Take the gradients of the whole step at its last micro-batch.

        Returns:
            () its loss, detached; 0 at the micro-batches before.
        """
        self._seen += 1
        if self._seen < len(self._window):
            return torch.zeros((), dtype=torch.float32, device=self.args.device)
        context = self._run
        context.step, context.epoch = self.state.global_step, int(self.state.epoch or 0)
        batches = [self._model.batch(self._prepare_inputs(each)) for each in self._window]
        self._window = []
        model.train()
        context.optimizer.zero_grad(set_to_none=True)
        self._model.forward = model
        examples = max(self._processes.sum(sum(batch.size for batch in batches)), 1)
        with context.streams.separate():
            if not self._loss_checked:
                with context.streams.preserved():
                    self._model.check_loss(batches[0])
                self._loss_checked = True
            loss = self._gradients(batches, examples)
        if self._divided is not None:
            loss = self._divided.finish(loss)
        return loss / examples

    def log(self, logs: dict[str, float], *arguments: Any, **named: Any) -> None:
        """Log the method's numbers with the loss of training steps."""
        if "loss" in logs and self._context is not None:
            logs = {**logs, **self.method.metrics(self._context)}
            self.method.check_step(self._context)
        super().log(logs, *arguments, **named)

    def evaluation_loop(self, *arguments: Any, **named: Any) -> Any:
        """Evaluate the weights that the method says."""
        with self._evaluated():
            return super().evaluation_loop(*arguments, **named)

    def save_model(self, *arguments: Any, **named: Any) -> None:
        """Save the weights that are evaluated."""
        with self._evaluated():
            super().save_model(*arguments, **named)

    @property
    def _choice(self) -> dict[str, str]:
        """What a resumed training must have in common with the one before."""
        return choice_of(self.method_name, self.method, self._optimizer)

    @property
    def _run(self) -> MethodContext:
        assert self._context is not None
        return self._context

    def _evaluated(self) -> Any:
        """Context in which the model has the weights that are evaluated."""
        if self._context is None or self._final:
            return nullcontext()
        return self.method.evaluation(self._context)

    def _begin(self) -> None:
        """Let the method prepare from the data, unless it was resumed."""
        self._run.total_steps = self.state.max_steps
        if not self._resumed:
            streams = self._run.streams
            with streams.separate(), streams.preserved():
                self.method.before_fit(self._run)
            if self._divided is not None:  # each has looked at all data, and rounding may differ
                self.method.load_state_dict(self._processes.of_first(self.method.state_dict()))

    def _end(self) -> None:
        """Leave the weights that were evaluated in the model; a best checkpoint that was loaded has them already."""
        best = self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None
        if self.method.evaluates_other_weights and not best:
            parameters = [parameter.detach() for parameter in self.model.parameters()]
            with self._evaluated():
                evaluated = [parameter.clone() for parameter in parameters]
            torch._foreach_copy_(parameters, evaluated)
        self._final = True
        self.method.hand_over(self._run)
        for give_back in self._give_back:
            give_back()

    def _first_pass(self) -> Iterator[list[TrainerBatch]]:
        """The training set once, in an order that no epoch has."""
        if not self._model.n_rows:
            raise ValueError("the method goes through the training set beforehand: give one with a length")
        order = np.random.default_rng(stream_seed(self.args.seed, "first pass")).permutation(self._model.n_rows)
        prepared = self._get_dataloader(self.train_dataset, "First pass", self._train_batch_size)
        loader = DataLoader(  # with the columns of Trainer's, but the whole set in every process
            prepared.dataset,
            self._train_batch_size,
            sampler=order.tolist(),
            collate_fn=prepared.collate_fn,
            num_workers=self.args.dataloader_num_workers,
        )
        window: list[TrainerBatch] = []
        rows = iter(loader)
        while True:
            with torch.random.fork_rng(devices=[]):  # a loader draws from the generator that dropout draws from
                inputs = next(rows, None)
            if inputs is None:
                break
            window.append(self._model.batch(self._prepare_inputs(inputs)))
            if len(window) == self.args.gradient_accumulation_steps * self._processes.size:
                yield window
                window = []
        if window:
            yield window

    def _loss_scale(self) -> Tensor | None:
        scaler = self.accelerator.scaler
        one = torch.ones((), dtype=torch.float32, device=self.args.device)
        return None if scaler is None or not scaler.is_enabled() else scaler.scale(one)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save the method's state beside the optimizer's."""
        super()._save_optimizer_and_scheduler(output_dir)
        save_state(output_dir, self._choice, self.method, self._run, self._processes)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Look whether it is this method's before a weight is loaded."""
        if Path(resume_from_checkpoint).is_dir():
            read_state(resume_from_checkpoint, self._choice)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the method's state behind the optimizer's."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._run.step = self.state.global_step
            load_state(read_state(checkpoint, self._choice), self.method, self._run, self._processes)
            self._resumed = True


class _Hooks(TrainerCallback):  # type: ignore[misc]
    """Calls the method's hooks where Trainer has events for them."""

    def __init__(self, trainer: MethodTrainer) -> None:
        self._trainer = trainer

    @contextmanager
    def _drawing(self) -> Iterator[MethodContext]:
        with self._trainer._run.streams.separate():
            yield self._trainer._run

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Before the first step."""
        self._trainer._begin()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Behind clipping."""
        with self._drawing() as context:
            self._trainer.method.after_backward(context)

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Behind the optimizer's step."""
        with self._drawing() as context:
            self._trainer.method.after_step(context)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Behind the last step."""
        self._trainer._end()
