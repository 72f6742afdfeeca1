"""The task of a model of ``transformers``: the kind of its predictions."""

from enum import StrEnum

from torch import nn


class Task(StrEnum):
    """Kind of prediction that a model makes."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"
    TOKENS = "token classification"
    CAUSAL = "causal language modelling"

    @property
    def per_token(self) -> bool:
        """Whether every token has a prediction."""
        return self in (Task.TOKENS, Task.CAUSAL)


def task_of(model: nn.Module) -> Task:
    """Find out from a model's class and configuration what it predicts.

    Raises:
        ValueError: If they do not tell, or no method knows such a prediction.
    """
    while callable(inner := getattr(model, "get_base_model", None)):  # peft's
        model = inner()
    name, config = type(model).__name__, getattr(model, "config", None)
    if name.endswith("ForTokenClassification"):
        return Task.TOKENS
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return Task.CAUSAL
    if not name.endswith(("ForSequenceClassification", "ForImageClassification", "ForAudioClassification")):
        kinds = " or ".join(map(repr, map(str, Task)))
        raise ValueError(
            f"model is a {name}, whose task is unknown: give task={kinds} if it is one of these: methods know no other"
        )
    kind, outputs = getattr(config, "problem_type", None), getattr(config, "num_labels", None)
    if kind == "multi_label_classification" or (kind == "regression" and outputs != 1):
        raise ValueError(
            f"problem_type is {kind} with {outputs} labels: methods know one class or one score per example: use "
            "single_label_classification, or regression with num_labels=1"
        )
    return Task.REGRESSION if outputs == 1 else Task.CLASSIFICATION
