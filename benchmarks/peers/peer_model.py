"""The network of the peers: the encoder under transformers' own classification head, untouched by this project."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from data_utils.task_def import TaskDef
from mt_dnn.config import RunConfig
from mt_dnn.encoder import resolve_encoder

# The network as read, for the next turn: only the one that was read last.
_pristine: dict[tuple[Any, ...], nn.Module] = {}


def peer_model(config: RunConfig, task_def: TaskDef) -> nn.Module:
    """Load an encoder with transformers' pooler and head, in float32, on the CPU.

    Attention is transformers' default. Dropouts are the run's.

    Args:
        config: gives encoder and dropouts.
        task_def: gives the number of outputs.
    """
    folder: Path = resolve_encoder(config.init_checkpoint).folder
    head_dropout = next(p for p in (config.dropout_p, task_def.dropout_p, 0.1) if p is not None)
    key = (folder, config.bert_dropout_p, head_dropout, task_def.n_class)
    if key not in _pristine:
        _pristine.clear()
        transformers_logging.set_verbosity_error()  # the head is new: no need to warn of it
        transformers_logging.disable_progress_bar()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            _pristine[key] = AutoModelForSequenceClassification.from_pretrained(
                folder,
                num_labels=task_def.n_class,
                dtype=torch.float32,
                hidden_dropout_prob=config.bert_dropout_p,
                attention_probs_dropout_prob=config.bert_dropout_p,
                classifier_dropout=head_dropout,
                local_files_only=True,
            )
    return copy.deepcopy(_pristine[key])
