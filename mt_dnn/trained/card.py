"""The model card of an exported run, from the files of its directory alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from data_utils.names import slug
from data_utils.task_def import Metric, TaskType
from mt_dnn.encoder.source import PACKAGED
from mt_dnn.results import Status
from mt_dnn.run_id import LATER_SETTINGS
from mt_dnn.run_reference import BEGUN_FROM
from mt_dnn.trained.load import FinishedRun, TrainedModel

_PIPELINE = "text-classification"
_HUB_METRICS = {
    Metric.ACC: "accuracy",
    Metric.F1: "f1",
    Metric.F1MAC: "f1",
    Metric.MCC: "matthews_correlation",
    Metric.Pearson: "pearsonr",
    Metric.Spearman: "spearmanr",
}
_SETTINGS = (
    "learning_rate", "epochs", "batch_size", "grad_accumulation_step", "optimizer", "adamax_rule", "betas",
    "weight_decay", "warmup", "schedule", "global_grad_clipping", "dropout_p", "bert_dropout_p", "pooler_actf",
    "max_seq_len", "sampler", "train_fraction", "train_size", "precision", *LATER_SETTINGS,
)  # fmt: skip


def model_card(run: FinishedRun, model: TrainedModel, epoch: str) -> str:
    """Return the card of the ``best`` or ``last`` epoch of a run: Markdown with the Hub's metadata before it."""
    parts = [_metadata(run, model, epoch), _task(run, model, epoch), _scores(run), _settings(run), _loading(model)]
    return "\n".join([*parts, _limits(run, model, epoch)])


def _metadata(run: FinishedRun, model: TrainedModel, epoch: str) -> str:
    task = run.task_def.name
    data = ModelCardData(
        base_model=_hub_name(run),
        eval_results=[
            EvalResult(
                task_type=_PIPELINE,
                dataset_type=task,
                dataset_name=dataset,
                dataset_split=dataset.removeprefix(f"{task}_"),
                metric_type=_HUB_METRICS[Metric(metric)],
                metric_name=metric,
                metric_value=round(value, 2),
            )
            for dataset, metrics in run.score(epoch).metrics.items()
            for metric, value in metrics.items()
        ],
        library_name="transformers",
        metrics=[_HUB_METRICS[metric] for metric in model.task_def.metric_meta],
        model_name=f"{run.result.encoder}, {task}, {run.config.method}",
        pipeline_tag=_PIPELINE,
        tags=[task, *run.config.method.split("+")],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _hub_name(run: FinishedRun) -> str | None:
    """The encoder's name on the Hub; None for a local folder, whose path stays private."""
    name = run.pretrained
    if name == PACKAGED:
        return f"sentence-transformers/{name}"
    return None if Path(name).expanduser().is_dir() or name.startswith((".", "/", "~")) else name


def _task(run: FinishedRun, model: TrainedModel, epoch: str) -> str:
    task, result = model.task_def, run.result
    score = run.score(epoch)
    texts = "a pair of sentences" if task.pair else "one sentence"
    kind = "a score" if task.task_type is TaskType.Regression else f"one of {task.n_class} labels"
    labels = "" if task.task_type is TaskType.Regression else f" ({', '.join(task.label_names)})"
    dev = ", ".join(result.datasets)
    others = [name for name in run.config.tasks if name != task.name]
    together = f"; trained together with {', '.join(others)}" if others else ""
    return f"""# {run.result.encoder}, fine-tuned on {run.config.task} with {run.config.method}

- **Task**: {task.name}; in: {texts}; out: {kind}{labels}.
- **Encoder**: {_hub_name(run) or slug(run.pretrained)}, {_begun(run)}.
- **Data**: the training set of {task.name}, {result.train_examples} examples; dev: {dev}{together}.
- **Method**: `{run.config.method}`, seed {result.seed} (one run, n = 1), {result.steps} steps.
- **Weights**: those of epoch {score.epoch} of {result.epochs} ({epoch} epoch){_stop(run)}.
"""


def _begun(run: FinishedRun) -> str:
    begun = run.description.get(BEGUN_FROM)
    if begun is None:
        return "with its own pooler and classification head drawn anew"
    return f"as the run {begun['run']} had trained it ({begun['epoch']} epoch), with its pooler and head where they fit"


def _stop(run: FinishedRun) -> str:
    last = run.result.last
    return f"; it stopped early, after epoch {last.epoch}" if run.result.stopped_early and last is not None else ""


def _scores(run: FinishedRun) -> str:
    rows = []
    for name, score in (("best", run.result.best), ("last", run.result.last)):
        if score is None:
            continue
        for dataset, metrics in score.metrics.items():
            shown = ", ".join(f"{metric} {value:z.2f}" for metric, value in metrics.items())
            rows.append(f"| {name} | {score.epoch} | {dataset} | {_dev_examples(run, dataset)} | {shown} |")
    lines = "\n".join(rows)
    return f"""## Scores

In percent, on the dev set.

| epoch | number | data set | examples | scores |
|---|---|---|---|---|
{lines}
"""


def _dev_examples(run: FinishedRun, dataset: str) -> int:
    return len(run.directory.read_predictions(run.result)[f"{dataset}.labels"])


def _settings(run: FinishedRun) -> str:
    values = {name: getattr(run.config, name) for name in _SETTINGS}
    values = {name: value for name, value in values.items() if (name, value) not in LATER_SETTINGS.items()}
    for method, settings in run.config.method_settings.items():
        values |= {f"{method}.{key}": value for key, value in dataclasses.asdict(settings).items()}
    rows = "\n".join(f"| {name} | {value} |" for name, value in values.items() if value is not None)
    versions = run.description.get("versions", {})
    made = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "transformers") if name in versions)
    commit = (run.description.get("git") or {}).get("commit")
    origin = (
        f"Run {run.result.run_id}" + (f", code revision {commit}" if commit else "") + (f"; {made}" if made else "")
    )
    return f"""## Settings

| setting | value |
|---|---|
{rows}

{origin}.
"""


def _loading(model: TrainedModel) -> str:
    text = '{"text": "first sentence", "text_pair": "second sentence"}' if model.task_def.pair else '"a sentence"'
    return f"""## How to load

```python
from transformers import pipeline

classifier = pipeline("text-classification", model="FOLDER")
classifier({text}, truncation=True)
```

`AutoModelForSequenceClassification.from_pretrained("FOLDER")` and `AutoTokenizer.from_pretrained("FOLDER")` load the
parts.
"""


def _limits(run: FinishedRun, model: TrainedModel, epoch: str) -> str:
    most = model.network.encoder.limits.max_tokens
    limits = [
        f"Texts are cut at {min(model.max_seq_len, most or model.max_seq_len)} tokens.",
        "One seed: these scores do not say how another seed would do.",
        "It was scored on the dev set above and on nothing else.",
        "This card states no licence: those of the pretrained encoder and of the data apply.",
    ]
    if epoch == "best":
        limits.insert(1, "The epoch was chosen by the dev score, so that score is optimistic; the last epoch's is not.")
    if run.result.status is Status.DEGENERATE:
        reason = run.result.error or "it predicts one class (or one value) for every dev example"
        limits.insert(0, f"**Its scores tell nothing: {reason}.**")
    if run.result.status is Status.DIVERGED:
        limits.insert(0, f"Training diverged after this epoch: {run.result.error}.")
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits) + "\n"
