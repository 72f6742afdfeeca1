"""PATS around AdamW in transformers.Trainer; started again, it goes on.  pip install . transformers accelerate"""

import numpy as np
import torch
from pats_finetuning import PATS
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

set_seed(0)
rows = np.random.default_rng(0).integers(10, 27, (512, 12))  # (N, T) word numbers; does word 10 occur?
data = [{"input_ids": row, "labels": int(10 in row)} for row in rows]
config = BertConfig(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
model = BertForSequenceClassification(config)  # yours: AutoModelForSequenceClassification.from_pretrained(...)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
PATS(model.named_parameters(), noise_scale=5e-3).attach(optimizer)  # its state is in the optimizer's, so in checkpoints

trainer = Trainer(
    model,
    TrainingArguments("trainer_output", num_train_epochs=6, per_device_train_batch_size=32, save_strategy="epoch"),
    train_dataset=data[:384],
    eval_dataset=data[384:],
    optimizers=(optimizer, None),  # the schedule is the Trainer's
    compute_metrics=lambda found: {"accuracy": (found.predictions.argmax(-1) == found.label_ids).mean()},
)
trainer.train(resume_from_checkpoint=get_last_checkpoint("trainer_output"))
print(f"accuracy {trainer.evaluate()['eval_accuracy']:.2f}")
