"""Names of tasks, methods, metrics and selection rules as they stand in tables and figures."""

from experiments.study.table.cells import Selection

TASK_TITLES = {
    "cola": "CoLA", "mrpc": "MRPC", "rte": "RTE", "stsb": "STS-B", "qqp": "QQP", "qnli": "QNLI", "mnli": "MNLI",
    "sst": "SST-2", "wnli": "WNLI",
}  # fmt: skip
METHOD_TITLES = {
    "vanilla": "vanilla", "no_hidden_dropout": "no hidden dropout", "no_dropout": "no dropout",
    "head_learning_rate": "head learning rate", "frozen_embeddings": "frozen embeddings",
    "noisytune": "NoisyTune", "sage": "SAGE", "pats": "PATS",
    "hype": "HyPe", "pac_tuning": "PAC-tuning", "component_clip": "component clipping", "recadam": "RecAdam",
    "mixout": "Mixout",
    "smart": "SMART", "freelb": "FreeLB", "rdrop": "R-Drop", "r3f": "R3F", "sam": "SAM", "pgd": "PGD",
    "child_tuning": "Child-Tuning", "neftune": "NEFTune", "ema": "EMA", "swa": "SWA", "l2sp": "L2-SP", "llrd": "LLRD",
    "reinit": "re-init", "bitfit": "BitFit", "lora": "LoRA",
}  # fmt: skip
METRIC_TITLES = {"ACC": "acc", "F1": "F1", "MCC": "mcc", "Pearson": "pcc", "Spearman": "scc"}
SELECTION_TITLES: dict[Selection, str] = {"best": "best dev epoch", "last": "last epoch"}


def method_title(method: str) -> str:
    """Method as the papers write it: ``noisytune+pats`` -> ``NoisyTune + PATS``."""
    return " + ".join(METHOD_TITLES.get(part, part) for part in method.split("+"))


def task_title(task: str) -> str:
    """Task as GLUE writes it: ``stsb`` -> ``STS-B``."""
    return TASK_TITLES.get(task, task)


def metric_title(metric: str) -> str:
    """Metric as the paper abbreviates it: ``MCC`` -> ``mcc``."""
    return "/".join(METRIC_TITLES.get(name, name) for name in metric.split("/"))
