"""Encoder, pooler and task heads.

Legend: B examples, D hidden size, K classes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from data_utils.errors import SettingError
from data_utils.task_def import TaskDef
from module.dropout import DropoutStream, replace_dropout
from mt_dnn.encoder.batch import Batch
from mt_dnn.encoder.model import Encoder
from mt_dnn.san import SanHead, SanSettings

POOLER_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "linear": nn.Identity}


class Pooler(nn.Module):
    """State of the token that stands for an example -> dropout -> Linear(D, D) -> activation."""

    def __init__(self, hidden_size: int, dropout: float, activation: str):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = POOLER_ACTIVATIONS[activation]()

    def forward(self, state: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        pooled: Tensor = self.activation(self.dense(self.dropout(state)))
        return pooled


class Network(nn.Module):
    """MT-DNN's network: one encoder and pooler for all tasks, per task dropout -> Linear(D, K), or a SAN head.

    A network whose heads all read the states of all tokens has no pooler.

    Args:
        encoder: pretrained encoder.
        task_defs: one for each head: its name and its K.
        head_dropout: dropout before each head (MT-DNN's dropout_p of the task), and the first task's before the pooler.
        pooler_activation: "tanh", or "linear" as MT-DNN's current code trains (its tanh is lost to a caught error).
        generator: CPU generator of the run's "init" stream; pooler and head are drawn from nothing else.
        san: settings of the heads of tasks with ``enable_san``; None: MT-DNN's.
    """

    def __init__(
        self,
        encoder: Encoder,
        task_defs: Sequence[TaskDef],
        head_dropout: Sequence[float],
        pooler_activation: str,
        generator: torch.Generator,
        san: SanSettings | None = None,
    ):
        super().__init__()
        if pooler_activation not in POOLER_ACTIVATIONS:
            legal = ", ".join(POOLER_ACTIVATIONS)
            raise SettingError(f"pooler_actf: {pooler_activation!r} is unknown; choose one of {legal}")
        for rate in head_dropout:
            if not 0.0 <= rate < 1.0:
                raise SettingError(f"dropout_p: {rate} is not in [0, 1)")
        self.encoder = encoder
        pooled = not all(task_def.enable_san for task_def in task_defs)
        self.pooler = Pooler(encoder.hidden_size, head_dropout[0], pooler_activation) if pooled else None
        self.heads = nn.ModuleDict(
            {
                head_name(task_def.name): SanHead(encoder.hidden_size, task_def.n_class, rate, san or SanSettings())
                if task_def.enable_san
                else nn.Sequential(nn.Dropout(rate), nn.Linear(encoder.hidden_size, task_def.n_class))
                for task_def, rate in zip(task_defs, head_dropout, strict=True)
            }
        )
        self._draw(generator)

    def forward(self, batch: Batch, inputs_embeds: Tensor | None = None) -> Tensor:
        """Logits of a batch.

        Args:
            batch: packed or padded; its task chooses the head, where there are several.
            inputs_embeds: word embeddings to use instead of the batch's own (see ``Encoder.forward``).

        Returns:
            (B, K) float32.
        """
        head = self.head(batch.task)
        logits: Tensor  # (B, K)
        if isinstance(head, SanHead):
            logits = head(self.encoder(batch, inputs_embeds), batch)
        else:
            assert self.pooler is not None
            logits = head(self.pooler(self.encoder.pooled(batch, inputs_embeds)))
        return logits.float()

    def head(self, task: str = "") -> nn.Module:
        """The head of a task; without a name, the only one.

        Raises:
            ValueError: there are several.
        """
        if task:
            return self.heads[head_name(task)]
        (only,) = self.heads.values()
        return only

    def keep_head(self, task: str) -> None:
        """Drop the heads of all other tasks."""
        self.heads = nn.ModuleDict({head_name(task): self.head(task)})

    def draw_dropout_from(self, stream: DropoutStream) -> None:
        """Let all dropout on the CPU draw its masks from a stream; on other devices nothing changes."""
        replace_dropout(self, stream)
        self.encoder.dropout_stream = stream

    def _draw(self, generator: torch.Generator) -> None:
        """BERT's initialisation: weights from N(0, initializer_range), biases zero."""
        for module in filter(None, (self.pooler, self.heads)):
            for name, parameter in module.named_parameters():
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)
                else:
                    nn.init.normal_(parameter, 0.0, self.encoder.initializer_range, generator=generator)


def head_name(task: str) -> str:
    """Key of a task's head: the task's name, with dots (which torch keeps for itself) as underscores."""
    return task.replace(".", "_")
