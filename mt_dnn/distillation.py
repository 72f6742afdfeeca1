"""Settings of distillation: which criterion compares a task's logits with a teacher's."""

from __future__ import annotations

from collections.abc import Sequence

from data_utils.errors import SettingError
from data_utils.task_def import LossCriterion, TaskDef, TaskType
from mt_dnn.config import RunConfig

CRITERIA = (
    LossCriterion.MseCriterion, LossCriterion.CeCriterion, LossCriterion.KlCriterion, LossCriterion.SymKlCriterion
)  # fmt: skip
"""Criteria of kd_loss that there are."""


def distillation_criterion(config: RunConfig, task_def: TaskDef) -> LossCriterion | None:
    """The criterion of a task, whose file may or may not have soft labels."""
    if task_def.task_type is TaskType.Regression and config.kd_loss is not None:
        return LossCriterion.MseCriterion
    return task_def.kd_loss if config.kd_loss is None else LossCriterion(config.kd_loss)


def check_distillation(config: RunConfig, taught: Sequence[TaskDef]) -> None:
    """Refuse a run that distils without a teacher, or by a criterion that there is not.

    Args:
        config: The run.
        taught: Its tasks whose training files have soft labels.

    Raises:
        SettingError: as said, or a temperature that no criterion has a use for.
    """
    if not config.mkd_opt:
        return
    if not taught:
        raise SettingError(
            f"mkd_opt is 1, but no training file of {config.task} has soft labels; write them with predict.py --soft"
        )
    criteria = {task_def.name: distillation_criterion(config, task_def) for task_def in taught}
    if config.kd_loss is not None and config.kd_loss not in criteria.values():
        raise SettingError(
            f"kd_loss is {config.kd_loss}, but the soft labels of {', '.join(criteria)} are scores, which MseCriterion "
            "compares; leave it out"
        )
    scores = {task_def.name for task_def in taught if task_def.task_type is TaskType.Regression}
    for task, criterion in criteria.items():
        if task in scores and criterion is not LossCriterion.MseCriterion:
            raise SettingError(
                f"kd_loss of task {task} is {criterion}, but its soft labels are scores; legal: MseCriterion, in the "
                "task definition"
            )
        if criterion not in CRITERIA:
            raise SettingError(
                f"kd_loss of task {task} is {criterion}, which is no distance from soft labels; legal: "
                f"{', '.join(CRITERIA)}, in the task definition or as --kd_loss"
            )
    if config.kd_temperature != 1.0 and set(criteria.values()) == {LossCriterion.MseCriterion}:
        raise SettingError(
            f"kd_temperature is {config.kd_temperature}, but MseCriterion compares logits without one; leave it out, "
            "or give another --kd_loss"
        )
