"""The network of the peers: the encoder under transformers' own classification head, untouched by this project."""

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from benchmarks.peers.assignment import Assignment


def peer_model(assignment: Assignment) -> nn.Module:
    """Load an encoder with transformers' pooler and head, in float32, on the CPU, with its default attention."""
    transformers_logging.set_verbosity_error()  # the head is new: no need to warn of it
    transformers_logging.disable_progress_bar()
    torch.manual_seed(assignment.seed)
    model: nn.Module = AutoModelForSequenceClassification.from_pretrained(
        assignment.encoder,
        num_labels=assignment.task_def.n_class,
        dtype=torch.float32,
        hidden_dropout_prob=assignment.dropout,
        attention_probs_dropout_prob=assignment.dropout,
        classifier_dropout=assignment.head_dropout,
        local_files_only=True,
    )
    return model
