"""A batch and a step as MT-DNN makes them, written anew for comparison: padded rectangles, Python per row.

Kept from MT-DNN: examples as Python lists, a small tensor per row and field, a write per token into the mask of the
second sentence (made for pair tasks even when no layer reads it), the loss read back every step, torch's Adamax after
clipping the global norm, a linear schedule, and scores and predictions gathered as Python lists in evaluation.
Left out, to its advantage: data loader workers (two cores have none to spare), the task object that is built anew for
every row, word dropout, and evaluation in batches of 8 (here as large as the training's).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from benchmarks.peers.assignment import Assignment, Row, Train
from benchmarks.peers.peer_model import peer_model
from data_utils.metrics import compute_metrics
from data_utils.task_def import DataFormat
from mt_dnn.precision import resolve_precision
from mt_dnn.schedule import learning_rate_multiplier

Fields = dict[str, Tensor]


def prepare(assignment: Assignment, scratch: Path) -> Train:
    """Build the peer; it writes nothing into ``scratch``."""
    return MTDNNPeer(assignment).train


class MTDNNPeer:
    """One run MT-DNN's way.

    Attributes:
        model: encoder, pooler and head.
        losses: mean loss of each step so far.
    """

    def __init__(self, assignment: Assignment) -> None:
        self.assignment, self.task_def = assignment, assignment.task_def
        self.device = torch.device(assignment.device)
        self.precision = resolve_precision(assignment.precision, self.device)
        self.scaler = self.precision.grad_scaler()
        self.model = peer_model(assignment).to(self.device)
        # To torch a list is a data set, to its types it is none.
        self.train_rows: Any = assignment.train
        self.dev_rows: Any = assignment.dev
        self.losses: list[float] = []
        self.optimizer = torch.optim.Adamax(self._groups(), lr=assignment.learning_rate)
        steps, warmup = assignment.steps, assignment.warmup
        self.schedule = LambdaLR(
            self.optimizer, lambda step: learning_rate_multiplier(min(step, steps), steps, warmup, "linear")
        )

    def train(self) -> dict[str, float]:
        """Train and evaluate every epoch; returns the last epoch's metrics."""
        metrics: dict[str, float] = {}
        for batches in self.assignment.epochs:
            for batch in DataLoader(self.train_rows, batch_sampler=batches, collate_fn=self.collate):
                self.update({name: value.to(self.device) for name, value in batch.items()})
            metrics = self.evaluate()
        return metrics

    def update(self, batch: Fields) -> None:
        """Train one step."""
        self.model.train()
        with self.precision.autocast():
            logits = self._logits(batch)
        loss = self._loss(logits, batch["labels"])
        self.losses.append(loss.item())
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.assignment.clipping)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.schedule.step()

    def evaluate(self) -> dict[str, float]:
        """Metrics on the dev set, in file order."""
        self.model.eval()
        scores: list[float] = []
        labels: list[float] = []
        for batch in DataLoader(self.dev_rows, batch_size=self.assignment.batch_size, collate_fn=self.collate):
            with torch.no_grad(), self.precision.autocast():
                logits = self._logits({name: value.to(self.device) for name, value in batch.items()})
            scores.extend(logits.float().cpu().numpy().reshape(-1).tolist())
            labels.extend(batch["labels"].tolist())
        logits_of_all = np.array(scores, dtype=np.float32).reshape(len(labels), self.task_def.n_class)
        return compute_metrics(self.task_def, logits_of_all, np.array(labels))

    def collate(self, rows: list[Row]) -> Fields:
        """A rectangle of (B, T) per field, filled row by row; T is the longest example."""
        size, longest = len(rows), max(len(row["input_ids"]) for row in rows)
        tokens = torch.full((size, longest), self.assignment.pad_id, dtype=torch.long)
        types = torch.zeros(size, longest, dtype=torch.long)
        masks = torch.zeros(size, longest, dtype=torch.long)
        paired = self.task_def.data_format is not DataFormat.PremiseOnly
        premise_masks, hypothesis_masks = (torch.ones(size, longest, dtype=torch.uint8) for _ in range(2))
        for i, row in enumerate(rows):
            length = len(row["input_ids"])
            tokens[i, :length] = torch.LongTensor(row["input_ids"])
            types[i, :length] = torch.LongTensor(row["token_type_ids"])
            masks[i, :length] = torch.LongTensor([1] * length)
            if paired:
                first = length - sum(row["token_type_ids"])
                premise_masks[i, :first] = torch.ByteTensor([0] * first)
                for j in range(first, length):
                    hypothesis_masks[i, j] = 0
        fields = {"input_ids": tokens, "token_type_ids": types, "attention_mask": masks}
        if paired:
            fields |= {"premise_masks": premise_masks, "hypothesis_masks": hypothesis_masks}
        regression = self.task_def.n_class == 1
        labels = [row["label"] for row in rows]
        return {**fields, "labels": torch.tensor(labels, dtype=torch.float if regression else torch.long)}

    def _logits(self, batch: Fields) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask")}
        logits: Tensor = self.model(**inputs).logits  # (B, K)
        return logits

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.task_def.n_class == 1:
            return F.mse_loss(logits.float().squeeze(1), labels)
        return F.cross_entropy(logits.float(), labels)

    def _groups(self) -> list[dict[str, object]]:
        """Groups of parameters; biases and layer norms have no decay."""
        plain = ("bias", "LayerNorm.weight")
        named = list(self.model.named_parameters())
        return [
            {"params": [p for n, p in named if not n.endswith(plain)], "weight_decay": self.assignment.weight_decay},
            {"params": [p for n, p in named if n.endswith(plain)], "weight_decay": 0.0},
        ]
