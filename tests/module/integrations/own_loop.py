"""One run of this project's loop, and the same in ``MethodTrainer``: model, data order, schedule, optimizer."""

import torch
from torch.nn.functional import cross_entropy, mse_loss
from transformers import TrainingArguments

from data_utils.batching import epoch_batches
from data_utils.task_def import load_task_defs
from module.integrations.transformers import MethodTrainer
from module.seeds import stream_seed
from mt_dnn.data import open_datasets
from mt_dnn.encoder.batch import PaddedBatch, pad
from mt_dnn.encoder.model import load_encoder
from mt_dnn.encoder.source import resolve_encoder
from mt_dnn.network import Network


class LikeTransformers(Network):
    """This project's network with the forward pass of a model of transformers."""

    def forward(self, input_ids, attention_mask, token_type_ids, position_ids, labels=None):
        n_tokens, rows = int(attention_mask.sum()), torch.arange(len(input_ids))
        batch = PaddedBatch(input_ids, position_ids, token_type_ids, rows, rows, attention_mask, n_tokens)
        outputs = {"logits": super().forward(batch)}
        if labels is not None:
            scores = outputs["logits"].shape[1] == 1
            loss = mse_loss(outputs["logits"][:, 0], labels) if scores else cross_entropy(outputs["logits"], labels)
            outputs["loss"] = loss
        return outputs

    def get_input_embeddings(self):
        return self.encoder.model.get_input_embeddings()


class Trainer(MethodTrainer):
    """With the data order of a run."""

    def __init__(self, *arguments, run_config, **named):
        self.run_config, self.epochs = run_config, 0
        super().__init__(*arguments, **named)

    def _get_train_sampler(self, train_dataset=None):
        return self

    def __len__(self):
        return len(self.train_dataset)

    def __iter__(self):
        config, epoch = self.run_config, self.epochs
        self.epochs += 1
        order = epoch_batches(len(self), config.window, config.seed, epoch, config.sampler)
        return iter([int(row) for window in order for row in window])


def trainer_of(config, folder, settings=None, **changes):
    """A trainer that repeats a run, and its model."""
    task_def, data = load_task_defs(config.task_def)[config.task], open_datasets(config)
    encoder = load_encoder(
        resolve_encoder(config.init_checkpoint), hidden_dropout=0.1, attention_dropout=0.1, attention="padded"
    )
    generator = torch.Generator().manual_seed(stream_seed(config.seed, "init"))
    model = LikeTransformers(encoder, [task_def], [0.1], config.pooler_actf, generator)

    def collate(rows):
        batch = pad(data.train, rows, encoder.pad_id)
        names = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "labels")
        return {name: getattr(batch, name) for name in names}

    arguments = TrainingArguments(
        str(folder), seed=config.seed, num_train_epochs=config.epochs, learning_rate=config.learning_rate,
        per_device_train_batch_size=config.batch_size, warmup_steps=config.warmup, lr_scheduler_type="linear",
        gradient_accumulation_steps=config.window // config.batch_size, weight_decay=config.weight_decay,
        max_grad_norm=config.global_grad_clipping, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no",
        remove_unused_columns=False, logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    for name, value in changes.pop("args", {}).items():
        setattr(arguments, name, value)
    return Trainer(
        config.method, settings, optimizer=config.optimizer, adamax_rule=config.adamax_rule,
        task="regression" if task_def.n_class == 1 else "classification", run_config=config, model=model,
        args=arguments, train_dataset=list(range(len(data.train))), data_collator=collate, **changes,
    )  # fmt: skip
