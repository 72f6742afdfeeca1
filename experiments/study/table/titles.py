"""Names of tasks, methods, metrics and selection rules as they stand in tables and figures."""

from experiments.benchmark import task_titles
from experiments.study.table.cells import PART, Selection
from module.methods import METHODS

METRIC_TITLES = {"ACC": "acc", "F1": "F1", "F1MAC": "macro-F1", "MCC": "mcc", "Pearson": "pcc", "Spearman": "scc"}


def selection_title(selection: Selection, held_out: bool | None = False) -> str:
    """Rule as tables name it.

    Args:
        selection: Which epochs.
        held_out: As :func:`experiments.study.table.cells.chosen_held_out` tells it of the runs shown.
    """
    if selection == "last":
        return "last epoch"
    return "best epoch" if held_out is None else "best held-out epoch" if held_out else "best dev epoch"


def method_title(method: str) -> str:
    """Method as the papers write it: ``noisytune+pats`` -> ``NoisyTune + PATS``."""
    return " + ".join(METHODS.title(part) for part in method.split("+"))


def task_title(task: str) -> str:
    """Task as its benchmark writes it: ``stsb`` -> ``STS-B``; ``rte+stsb:rte`` -> ``RTE in RTE+STS-B``."""
    run, part, scored = task.partition(PART)
    title = "+".join(task_titles().get(name, name) for name in run.split("+"))
    return f"{task_titles().get(scored, scored)} in {title}" if part else title


def metric_title(metric: str) -> str:
    """Metric as the paper abbreviates it: ``MCC`` -> ``mcc``."""
    return "/".join(METRIC_TITLES.get(name, name) for name in metric.split("/"))
