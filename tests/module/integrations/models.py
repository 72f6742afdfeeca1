"""Tiny models of transformers with random weights, and rows to train them on."""

import numpy as np
import torch
from transformers import TrainingArguments

from module.integrations.transformers import MethodTrainer

SIZE = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZE |= {"intermediate_size": 32, "max_position_embeddings": 32, "pad_token_id": 0}
DECODER = {**SIZE, "num_key_value_heads": 2, "head_dim": 8}


def make(name, seed=0, **changes):
    """A model by the name of its class."""
    import transformers

    torch.manual_seed(seed)
    kind = getattr(transformers, name)
    decodes = name.startswith(("Qwen", "Llama"))
    return kind(kind.config_class(**{**(DECODER if decodes else SIZE), **changes}))


def rows(n=24, per_token=False, scores=False, seed=0, lengths=(4, 10)):
    """Examples of 4 to 9 tokens."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        ids = rng.integers(3, 40, rng.integers(*lengths))
        label = float(ids.mean()) / 40 if scores else int(ids[1] % 2)
        made.append({"input_ids": ids.tolist(), "labels": (ids % 2).tolist() if per_token else label})
    return made


def collate(batch):
    """Pad on the right; labels of padding count for nothing."""
    width = max(len(row["input_ids"]) for row in batch)
    ids = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in batch])
    labels = [row["labels"] for row in batch]
    if isinstance(labels[0], list):
        labels = [label + [-100] * (width - len(label)) for label in labels]
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.tensor(labels)}


def arguments(folder, **changes):
    settings = {
        "max_steps": 6, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-2,
        "use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no",
        "dataloader_pin_memory": False, "seed": 3,
    }  # fmt: skip
    return TrainingArguments(str(folder), **{**settings, **changes})


def trainer(folder, method, model, settings=None, *, data=None, args=None, **named):
    """A MethodTrainer with those rows."""
    data = rows() if data is None else data
    made = arguments(folder, **(args or {}))
    return MethodTrainer(method, settings, model=model, args=made, train_dataset=data, data_collator=collate, **named)
