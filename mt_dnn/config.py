"""The configuration of one run: every setting and its legal range."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_utils.errors import SettingError, shown
from data_utils.names import check_name
from data_utils.task_def import split_dataset_name
from module.checks import Range
from module.methods import METHODS, build_method, parse_method
from mt_dnn.loss_settings import BALANCED, LEGAL_WEIGHTS, are_weights, canonical_weights, parse_weights
from mt_dnn.run_reference import encoder_name
from mt_dnn.setting_types import described, fits, hints_of

MAX_THREADS = 1024
"""Of torch and the kernels in one process; from about 4,000 on OpenMP ends the process instead of refusing."""
_MIXING = ("mix_opt", "ratio", "mix_temperature", "task_weights")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
"""The legal names in ``report_to``; of packages too."""
_DEVICE = re.compile("auto|cpu|cuda(:[0-9]{1,3})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One run: a task, an encoder, a method and a seed. MT-DNN's names where it has one."""

    task_def: Path = Path("task_def.yml")
    """YAML file with the task definitions (MT-DNN's keys)."""
    data_dir: Path = Path("data/canonical_data")
    """Folder with the canonical TSV files <task>_<split>.tsv, as glue_prepro.py writes them."""
    cache_dir: Path | None = None
    """Folder of the token caches; default <data_dir>/cache. A missing or stale cache is made at the start."""
    train_datasets: str = "cola"
    """The task to train on, a name from the task definitions; or several, joined with commas: one encoder, a head for
    each. The first is the main task of ratio and mix_opt."""
    test_datasets: str | None = None
    """Comma-separated dev sets, e.g. mnli_matched,mnli_mismatched; default: all dev splits of the tasks."""
    init_checkpoint: str = "all-MiniLM-L6-v2"
    """Pretrained encoder or causal decoder: a Hub name, a local folder, or the packaged all-MiniLM-L6-v2; or a finished
    run, .../<run id>/seed=1, whose encoder and pooler are then the start, and its heads where they fit (the folder
    above it: the run of this seed; with :last after it, the weights of its last epoch)."""
    method: str = "vanilla"
    """Fine-tuning method, or several joined with "+" (noisytune+pats); settings as --<method>.<setting>."""

    epochs: int = 10
    """Passes over the training set."""
    patience: int | None = None
    """Stop early after so many epochs without a better one, by the score that chooses the best; default: never. The
    learning rate falls as for all epochs."""
    batch_size: int = 32
    """Examples per forward pass; one optimizer step sees batch_size x grad_accumulation_step examples, whatever the
    number of processes that divide them."""
    grad_accumulation_step: int = 1
    """Forward passes per optimizer step."""
    learning_rate: float = 1e-4
    """Peak learning rate, > 0."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises from 0 to its peak, in [0, 1)."""
    schedule: Literal["linear", "cosine", "constant", "linear_legacy"] = "linear"
    """Learning rate after warm-up: down to 0 in a line or half a cosine, or as it is; linear_legacy is
    pytorch-pretrained-bert's, which drops from 1 to 1 - warmup."""
    optimizer: Literal["adamax", "adamw"] = "adamax"
    """The optimizer under the method."""
    adamax_rule: Literal["mtdnn", "torch"] = "mtdnn"
    """Adamax as in MT-DNN v0.2 (no bias correction, decoupled decay) or as in torch.optim."""
    adam_eps: float | None = None
    """Epsilon of the optimizer, > 0; default 1e-6 for the mtdnn rule, 1e-8 otherwise."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the optimizer's two moments, each in [0, 1)."""
    weight_decay: float = 0.01
    """Weight decay of everything but biases and layer norms, >= 0."""
    global_grad_clipping: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    label_smoothing: float = 0.0
    """Share of the label's probability that the training loss spreads over all classes, in [0, 1). Classes only."""
    class_weights: str | None = None
    """Weights of the classes in the training loss: balanced (each class the same in sum, by the rows trained on), or
    one for each label, such as negative=1,positive=3. The loss stays the mean over examples. Classes only."""
    mkd_opt: Literal[0, 1] = 0
    """1 distils: where the training file of a task has soft labels (predict.py --soft), kd_weight x kd_loss of them is
    added to the task's loss (MT-DNN's name)."""
    kd_loss: Literal["MseCriterion", "CeCriterion", "KlCriterion", "SymKlCriterion"] | None = None
    """Distance from the soft labels, of tasks with classes; default: the task definition's. Scores: MseCriterion."""
    kd_weight: float = 1.0
    """Factor on it, >= 0, at most 1e30."""
    kd_temperature: float = 1.0
    """T > 0 of the softmax of both sides, but for MseCriterion, which compares logits; the distance is times T^2."""
    dropout_p: float | None = None
    """Dropout before the task head, in [0, 1); default: the task definition's, else 0.1."""
    bert_dropout_p: float = 0.1
    """Dropout of hidden states and attention in the encoder, in [0, 1)."""
    answer_num_turn: int = 5
    """Turns of the SAN head of a task with enable_san, >= 1."""
    answer_mem_drop_p: float = 0.1
    """Probability, in [0, 1), that training leaves a turn of a SAN head out of an example's answer; one stays."""
    pooler_actf: Literal["tanh", "linear"] = "tanh"
    """Activation of the pooler; linear is what MT-DNN really trains with (its tanh is never found)."""

    max_seq_len: int = 512
    """Longest example in tokens, special tokens included; longer ones are cut, never dropped."""
    sampler: Literal["reshuffle", "mtdnn", "length"] = "reshuffle"
    """Batches: reshuffled every epoch; MT-DNN's frozen file slices; or grouped by length."""
    train_fraction: float | None = None
    """Share of the training set to use, in (0, 1]; smaller shares are subsets of larger ones."""
    train_size: int | None = None
    """Number of training examples to use, >= 1; not together with train_fraction."""
    train_balanced: bool = False
    """With train_size: equally many examples of every class, the first of each in turn."""
    mix_opt: Literal[0, 1] = 0
    """Batches of several tasks: 0 shuffles all of an epoch, 1 leaves the main task's to its end (MT-DNN's)."""
    ratio: float = 0.0
    """Batches of the other tasks in an epoch, as a multiple of the main task's, >= 0: a random part of them, at most
    all (MT-DNN's); 0 takes all."""
    mix_temperature: float | None = None
    """T >= 1: an epoch's batches are divided among the tasks by (number of a task's batches)^(1/T), so that small tasks
    come more often, and large ones less; default: every batch once. Not together with ratio."""
    task_weights: str | None = None
    """Factors on the loss of each of several tasks, from 1e-30 to 1e30, such as mnli=1,rte=2; default: all 1."""
    holdout: float | None = None
    """Share of the training set, in (0, 1), that is not trained on: the best epoch is then the best on it, not on the
    dev set. The same rows for every method and seed, labels in proportion."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast precision; weights and optimizer state are always fp32. auto takes bf16 where the machine has it."""
    tf32: bool = False
    """Let float32 matrix products on CUDA round their inputs to 10 bits: faster from Ampere on, other numbers."""
    deterministic: bool = False
    """Use CUDA's deterministic kernels alone, so that the same run gives the same bits, interrupted or not. On the CPU
    it does so anyway."""
    attention: Literal["auto", "packed", "padded"] = "auto"
    """packed: no padding tokens anywhere but inside attention; padded: the usual rectangle. Same numbers."""
    gradient_checkpointing: bool = False
    """Keep the inputs of the encoder's layers alone and compute the layers again in the backward pass: less memory, a
    longer step, the same numbers. Not together with compile."""
    compile: bool = False
    """Compile the encoder with torch.compile. It takes a minute at the start (and a C++ compiler on the CPU, where the
    step then is slower); off by default, because the shapes of packed batches vary."""
    cuda_graphs: bool = True
    """On CUDA, record forward and backward of each size of batch once and repeat them: the host launches one graph
    instead of a thousand kernels. Where method, encoder or number of processes do not allow it, nothing is recorded."""
    eval_batch_tokens: int = 8192
    """Tokens per evaluation batch."""
    sensitivity_beta: float | None = None
    """Watch |theta * gradient| of the encoder layers, whatever the method, as a moving average with this beta, in
    [0, 1), and write sensitivity.json for Figures 2 and 3 at the end. Changes no number; default: do not watch."""
    seed: int = 2018
    """Seed of head initialisation, data order, dropout and noise, each a stream of its own."""

    output_dir: Path = Path("runs")
    """Folder of all runs; this one's is <task>/<encoder>/<method>/<run id>/seed=<seed> in it."""
    save: Literal["none", "last", "best", "both"] = "best"
    """Weights to keep after the run: of the best epoch on the dev set, of the last, both, or none."""
    checkpoint_seconds: float = 300.0
    """Seconds between resume checkpoints; 0 makes one after every step."""
    log_per_updates: int = 50
    """Steps between log lines in metrics.jsonl and the trackers."""
    report_to: str = "tensorboard"
    """Trackers of the metrics beside metrics.jsonl, joined with commas: tensorboard (events in <run dir>/tb), wandb,
    mlflow, trackio; or none."""
    tensorboard: bool = True
    """false takes tensorboard out of report_to."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<index>."""
    threads: int | None = None
    """CPU threads of this process; default: torch's own choice."""
    recipe: str | None = None
    """A label stored in run.json, such as the recipe that this run belongs to."""
    method_settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the methods in `method` that differ from their defaults: method name -> its Settings."""

    def __post_init__(self) -> None:
        """Check every range and fill in the settings of the chosen methods.

        Raises:
            SettingError: a value out of its range, an unknown method, or settings of a method that is not used.
        """
        for name, hint in hints_of(type(self)).items():
            value = getattr(self, name)
            if not fits(value, hint) or (value is not None and name in _RANGES and not _RANGES[name].holds(value)):
                raise SettingError(f"{name} is {shown(value)}; legal: {legal_values(name)}")
        self._check_together()
        object.__setattr__(self, "class_weights", canonical_weights(self.class_weights))
        self._check_tasks()
        if self.recipe is not None:
            check_name("recipe", self.recipe)
        try:
            chosen = parse_method(self.method)
        except ValueError as error:
            raise SettingError(str(error)) from None
        unused = sorted(set(self.method_settings) - set(chosen))
        if unused:
            raise SettingError(
                f"settings are given for {', '.join(unused)}, but method is {self.method!r}; "
                f"drop them or add the method with +"
            )
        settings = {
            name: self.method_settings.get(name, METHODS[name].Settings())
            for name in chosen
            if dataclasses.fields(METHODS[name].Settings)
        }
        try:
            build_method(self.method, settings)
        except (ValueError, TypeError) as error:  # settings that do not allow the other methods, or of another method
            raise SettingError(str(error)) from None
        for name, values in settings.items():
            for key, hint in hints_of(type(values)).items():
                if not fits(value := getattr(values, key), hint):
                    raise SettingError(f"{name}.{key} is {shown(value)}; legal: {described(hint)}")
                if isinstance(value, int) and abs(value) >= 2**31:
                    raise SettingError(f"{name}.{key} is {shown(value)}; legal: {described(hint)} below 2^31")
        object.__setattr__(self, "method_settings", settings)

    def _check_tasks(self) -> None:
        """Check the settings of a run's tasks, and put them in their one form."""
        names = [check_name("train_datasets", name.strip()) for name in re.split("[,+]", self.train_datasets)]
        tasks = [split_dataset_name(name) for name in names]
        if len(tasks) > 1:
            object.__setattr__(self, "train_datasets", ",".join(tasks))
            check_name("train_datasets", self.task)
            self._check_test_datasets()
        if twice := [task for task in tasks if tasks.count(task) > 1]:
            raise SettingError(f"train_datasets: {twice[0]} stands there twice; give each task once")
        object.__setattr__(self, "task_weights", canonical_weights(self.task_weights))
        if len(tasks) == 1:
            for name in _MIXING:
                if getattr(self, name) != default_of(name):
                    raise SettingError(
                        f"{name} is {getattr(self, name)}, but train_datasets names one task; leave it out, or name "
                        "several, joined with commas"
                    )
        elif self.ratio and self.mix_temperature is not None:
            raise SettingError(
                f"ratio is {self.ratio} and mix_temperature is {self.mix_temperature}; give one of the two"
            )
        if self.task_weights is not None and set(weights := parse_weights(self.task_weights) or ()) != set(tasks):
            odd = min(set(weights) ^ set(tasks))
            told = "has no weight" if odd in tasks else "is no task of the run"
            raise SettingError(f"task_weights: {odd} {told}; give each of {', '.join(tasks)} one, such as {tasks[0]}=1")

    def _check_test_datasets(self) -> None:
        """Refuse dev sets of no task of the run, and tasks of several without one."""
        if self.test_datasets is None:
            return
        scored = [split_dataset_name(name.strip()) for name in self.test_datasets.split(",")]
        for task in dict.fromkeys((*scored, *self.tasks)):
            if task not in self.tasks or task not in scored:
                told = f"{task} is none of" if task not in self.tasks else f"names no dev set of {task}, one of"
                raise SettingError(f"test_datasets: {told} the tasks {', '.join(self.tasks)}; name dev sets of each")

    def _check_together(self) -> None:
        """Refuse settings of which each is legal and their combination is not."""
        if self.train_fraction is not None and self.train_size is not None:
            raise SettingError(
                f"train_fraction is {self.train_fraction} and train_size is {self.train_size}; give one of the two"
            )
        if self.train_balanced and self.train_size is None:
            raise SettingError("train_balanced is true, but train_size is not given; give the number of examples")
        if not self.mkd_opt:
            for name in ("kd_loss", "kd_weight", "kd_temperature"):
                if getattr(self, name) != default_of(name):
                    raise SettingError(f"{name} is {getattr(self, name)}, but mkd_opt is 0; give --mkd_opt 1 too")
        if self.gradient_checkpointing and self.compile:
            raise SettingError(
                "gradient_checkpointing and compile are true, but a compiled encoder computes no layer again; give one "
                "of the two"
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, the main one first."""
        return tuple(map(split_dataset_name, self.train_datasets.split(",")))

    @property
    def task(self) -> str:
        """Name of the run's task in paths and tables, e.g. ``mnli``; of several ``mnli+rte``."""
        return "+".join(self.tasks)

    def by_task(self) -> list[RunConfig]:
        """The settings of each task's data, as of a run that trains it alone."""
        if len(self.tasks) == 1:
            return [self]
        chosen = None if self.test_datasets is None else [name.strip() for name in self.test_datasets.split(",")]
        changes: dict[str, Any] = {name: default_of(name) for name in _MIXING}
        configs = []
        for task in self.tasks:
            own = None if chosen is None else ",".join(name for name in chosen if split_dataset_name(name) == task)
            configs.append(dataclasses.replace(self, train_datasets=task, test_datasets=own, **changes))
        return configs

    @property
    def encoder(self) -> str:
        """Name of the encoder as it stands in paths and tables, e.g. ``org--model``; of a run it tells which."""
        return encoder_name(self.init_checkpoint)

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of the trackers that the run reports to, once each."""
        names = () if self.report_to == "none" else dict.fromkeys(self.report_to.split(","))
        return tuple(name for name in names if name != "tensorboard" or self.tensorboard)

    @property
    def window(self) -> int:
        """Examples per optimizer step."""
        return self.batch_size * self.grad_accumulation_step

    def as_dict(self) -> dict[str, Any]:
        """Every setting as plain JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["method_settings"] = {name: dataclasses.asdict(s) for name, s in self.method_settings.items()}
        return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


# The same as the types of module/checks.py, in other words: these stand in messages about a run's own settings.
_COUNT = Range(lambda value: 1 <= value < 2**31, "an integer >= 1, below 2^31")
_SHARE = Range(lambda value: 0.0 <= value < 1.0, "a share in [0, 1)")
_PROBABILITY = Range(_SHARE.holds, "a probability in [0, 1)")
_NOT_NEGATIVE = Range(lambda value: 0.0 <= value < math.inf, "a number >= 0")
_LARGEST = 1e30  # above it optimizers and losses leave float32
_RANGES = {
    "epochs": _COUNT,
    "patience": _COUNT,
    "batch_size": _COUNT,
    "grad_accumulation_step": _COUNT,
    "learning_rate": Range(lambda value: 0.0 < value <= _LARGEST, "a number > 0, at most 1e30"),
    "warmup": _SHARE,
    "adam_eps": Range(lambda value: 0.0 < value < math.inf, "a number > 0"),
    "betas": Range(lambda values: all(map(_SHARE.holds, values)), "two numbers in [0, 1)"),
    "weight_decay": _NOT_NEGATIVE,
    "global_grad_clipping": Range(_NOT_NEGATIVE.holds, "a number >= 0 (0 = off)"),
    "label_smoothing": _SHARE,
    "class_weights": Range(are_weights, LEGAL_WEIGHTS),
    "kd_weight": Range(lambda value: 0.0 <= value <= _LARGEST, "a number >= 0, at most 1e30"),
    "kd_temperature": Range(lambda value: 1e-3 <= value <= 1e3, "a number in [0.001, 1000]"),
    "dropout_p": _PROBABILITY,
    "bert_dropout_p": _PROBABILITY,
    "answer_num_turn": Range(lambda value: 1 <= value <= 1000, "an integer in [1, 1000]"),
    "answer_mem_drop_p": _PROBABILITY,
    "max_seq_len": Range(lambda value: 8 <= value <= 65535, "an integer in [8, 65535]"),
    "train_fraction": Range(lambda value: 0.0 < value <= 1.0, "a share in (0, 1]"),
    "train_size": _COUNT,
    "ratio": _NOT_NEGATIVE,
    "mix_temperature": Range(lambda value: 1.0 <= value < math.inf, "a number >= 1"),
    "task_weights": Range(
        lambda value: value != BALANCED and are_weights(value, 1.0 / _LARGEST, _LARGEST),
        "a number > 0 for each task, from 1e-30 to 1e30, such as mnli=1,rte=2",
    ),
    "holdout": Range(lambda value: 0.0 < value < 1.0, "a share in (0, 1)"),
    "eval_batch_tokens": _COUNT,
    "sensitivity_beta": _SHARE,
    "seed": Range(lambda value: 0 <= value < 2**63, "an integer in [0, 2^63)"),
    "checkpoint_seconds": _NOT_NEGATIVE,
    "log_per_updates": _COUNT,
    "report_to": Range(
        lambda value: value == "none" or set(value.split(",")) <= set(TRACKERS),
        f"none, or of {', '.join(TRACKERS)} one or several joined with commas",
    ),
    "threads": Range(lambda value: 1 <= value <= MAX_THREADS, f"an integer in [1, {MAX_THREADS}]"),
    "device": Range(lambda value: bool(_DEVICE.fullmatch(value)), "auto, cpu, cuda or cuda:<index>, such as cuda:0"),
}


def default_of(name: str) -> Any:
    """The value of a setting that is left out."""
    return next(f.default for f in dataclasses.fields(RunConfig) if f.name == name)


def legal_values(name: str) -> str:
    """The legal values of a setting, for messages."""
    return _RANGES[name].legal if name in _RANGES else described(hints_of(RunConfig)[name])


def check_device(setting: str) -> None:
    """Refuse a device that no machine can have.

    Raises:
        SettingError: names the legal ones.
    """
    if not _DEVICE.fullmatch(setting):
        raise SettingError(f"device is {shown(setting)}; legal: {legal_values('device')}")
