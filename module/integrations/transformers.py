"""Every method in ``transformers.Trainer``; needs transformers 5 and the accelerate that its Trainer needs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from ..checks import short_repr
from ..method import Resource
from ..methods import build_method, parse_method
from ..seeds import stream_seed
from .method_settings import method_settings, optimizer_settings, searched_settings
from .method_state import choice_of, load_state, read_state, save_state
from .processes import Processes
from .refusals import OWNED, refuse, refuse_unknown
from .trainer_model import TrainerBatch, TrainerModel
from .trainer_run import TrainerRun
from .trainer_task import Task, task_of


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
        self._run: TrainerRun | None = None
        self._window: list[Any] = []
        self._seen = 0
        callbacks = [_Hooks(self), *(arguments.pop("callbacks", None) or [])]
        refuse_unknown(arguments, inspect.signature(super().__init__).parameters)
        refuse(arguments)
        super().__init__(callbacks=callbacks, **arguments)
        self._model = self._look_through()

    def _look_through(self) -> TrainerModel:
        """Refuse a run that cannot be right; return its model as methods call it."""
        args, method = self.args, self.method
        own = [name for name in OWNED if getattr(type(self), name) != getattr(Trainer, name)]
        refuse({}, args, self.model, own, method)
        task = task_of(self.model) if self._given_task is None else Task(self._given_task)
        if len(self.label_names) != 1 and "labels" not in self.label_names:
            several = ", ".join(self.label_names) or "none"
            raise ValueError(
                f"the labels of {type(self.model).__name__} are {several}: methods know one per prediction"
            )
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
        if self._run is not None and self.model_init is None:
            raise ValueError(
                "train() was called before: the method has changed the model already: make a new MethodTrainer, and "
                "resume_from_checkpoint to go on"
            )
        return super().train(*arguments, **named)

    def _hp_search_setup(self, trial: Any) -> None:
        """Set up the run: Trainer has made its model, and what follows here are the arguments of a search."""
        found: dict[str, Any] = {}
        searches = self.hp_search_backend is not None and trial is not None
        space = getattr(self, "hp_space", None) if searches else None

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
        if self.model_init is not None:
            self._model = self._look_through()
        with torch.random.fork_rng(devices=[]):  # the order of the data is Trainer's
            epochs, *_, steps = self.set_initial_training_values(self.args, self.get_train_dataloader())
        self._run = TrainerRun(
            self.method,
            self._model,
            self._optimizer_settings,
            self.args,
            self.accelerator,
            self._processes,
            epochs=epochs,
            steps=steps,
        )
        self.optimizer = self._run.context.optimizer

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
        assert self._run is not None
        context = self._run.context
        context.step, context.epoch = self.state.global_step, int(self.state.epoch or 0)
        batches = [self._model.batch(self._prepare_inputs(each)) for each in self._window]
        self._window = []
        model.train()
        self._model.forward = model
        return self._run.gradients(batches)

    def log(self, logs: dict[str, float], *arguments: Any, **named: Any) -> None:
        """Log the method's numbers with the loss of training steps."""
        if "loss" in logs and self._run is not None:
            logs = {**logs, **self.method.metrics(self._run.context)}
            self.method.check_step(self._run.context)
        super().log(logs, *arguments, **named)

    def evaluation_loop(self, *arguments: Any, **named: Any) -> Any:
        """Evaluate the weights that the method says."""
        with nullcontext() if self._run is None else self._run.evaluated():
            return super().evaluation_loop(*arguments, **named)

    def save_model(self, *arguments: Any, **named: Any) -> None:
        """Save the weights that are evaluated."""
        with nullcontext() if self._run is None else self._run.evaluated():
            super().save_model(*arguments, **named)

    @property
    def _choice(self) -> dict[str, str]:
        """Method, optimizer and settings, which a resumed training has in common with the one before."""
        return choice_of(self.method_name, self.method, self._optimizer)

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
        rows: Iterator[Any] | None = None
        while True:
            with torch.random.fork_rng(devices=[]):  # a loader draws from the generator that dropout draws from
                rows = iter(loader) if rows is None else rows
                inputs = next(rows, None)
            if inputs is None:
                break
            window.append(self._model.batch(self._prepare_inputs(inputs)))
            if len(window) == self.args.gradient_accumulation_steps * self._processes.size:
                yield window
                window = []
        if window:
            yield window

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save the method's state beside the optimizer's."""
        super()._save_optimizer_and_scheduler(output_dir)
        assert self._run is not None
        save_state(output_dir, self._choice, self.method, self._run.context, self._processes)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Look whether it is this method's before a weight is loaded."""
        if Path(resume_from_checkpoint).is_dir():
            read_state(resume_from_checkpoint, self._choice)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the method's state behind the optimizer's."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            assert self._run is not None
            self._run.context.step = self.state.global_step
            load_state(read_state(checkpoint, self._choice), self.method, self._run.context, self._processes)
            self._run.resumed = True


class _Hooks(TrainerCallback):  # type: ignore[misc]
    """Calls the method's hooks where Trainer has events for them."""

    def __init__(self, trainer: MethodTrainer) -> None:
        self._trainer = trainer

    @property
    def _run(self) -> TrainerRun:
        assert self._trainer._run is not None
        return self._trainer._run

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the first step."""
        self._run.begin(state.max_steps)

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Behind clipping."""
        self._run.after_backward()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Behind the optimizer's step."""
        self._run.after_step()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Behind the last step."""
        self._run.end(bool(args.load_best_model_at_end and state.best_model_checkpoint is not None))
