"""Controls: the changes of protocol that some methods bring along, without the methods.

HyPe and Mixout are published with dropout off, PAC-tuning also with frozen embeddings and a learning rate of its own
for the head. A gain over plain fine-tuning may be the change's and not the method's: ``FineTuningMethod.control`` names
these.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..checks import CheckedSettings, Positive
from ..context import DropoutRates, MethodContext
from ..method import FineTuningMethod, NoSettings
from ..param_index import Role, split_groups


class NoHiddenDropout(FineTuningMethod[NoSettings]):
    """Plain fine-tuning with dropout in attention alone: off on hidden states, pooler and head."""

    name = "no_hidden_dropout"
    title = "no hidden dropout"
    is_control = True

    def configure(self, rates: DropoutRates) -> DropoutRates:
        """Switch the dropout of hidden states and head off."""
        return replace(rates, hidden=0.0, head=0.0, answer=0.0)


class NoDropout(FineTuningMethod[NoSettings]):
    """Plain fine-tuning without dropout."""

    name = "no_dropout"
    title = "no dropout"
    is_control = True

    def configure(self, rates: DropoutRates) -> DropoutRates:
        """Switch all dropout off."""
        return DropoutRates(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class HeadLearningRateSettings(CheckedSettings):
    """Settings of the learning rate of the head."""

    learning_rate: Positive = 1e-2
    """Peak learning rate of the head, the layer above the pooler; above 0. PAC-tuning: 1e-2."""


class FrozenEmbeddings(FineTuningMethod[NoSettings]):
    """Plain fine-tuning of all but the embeddings."""

    name = "frozen_embeddings"
    title = "frozen embeddings"
    plain_pass = True
    is_control = True

    def setup(self, context: MethodContext) -> None:
        """Freeze the embeddings."""
        for info in context.params.select(Role.EMBEDDINGS):
            info.parameter.requires_grad_(False)


class HeadLearningRate(FineTuningMethod[HeadLearningRateSettings]):
    """Plain fine-tuning with its own learning rate for the head."""

    name = "head_learning_rate"
    title = "head learning rate"
    is_control = True

    def param_groups(self, context: MethodContext, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Give the head its own groups."""
        divided = split_groups(groups, context.params, lambda info: info.role is Role.HEAD)
        return [{**group, "lr": self.settings.learning_rate} if in_head else group for in_head, group in divided]
