"""PATS on ModernBERT, around AdamW."""

import torch
from pats_finetuning.integrations.transformers import MethodTrainer
from transformers import ModernBertConfig, ModernBertForSequenceClassification, TrainingArguments

torch.manual_seed(0)
size = {"vocab_size": 32, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
model = ModernBertForSequenceClassification(ModernBertConfig(**size, **special))
inputs = torch.randint(1, 32, (256, 12))  # is token 7 in the text?
inputs[::2, 5] = 7
data = [{"input_ids": row, "labels": (row == 7).any().long()} for row in inputs]

arguments = TrainingArguments(
    "runs/modernbert", num_train_epochs=8, per_device_train_batch_size=32, learning_rate=2e-3, use_cpu=True,
    report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
)  # fmt: skip
settings = {"pats.threshold_mode": "relative"}  # PATS's own threshold is for models of base size
MethodTrainer("pats", settings, model=model, args=arguments, train_dataset=data).train()
with torch.no_grad():
    found = model.eval()(input_ids=inputs).logits.argmax(dim=1)
print(f"accuracy {(found == (inputs == 7).any(dim=1)).float().mean():.2f}")
