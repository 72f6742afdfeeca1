"""R-Drop in transformers.Trainer; any other method by its name."""

import torch
from pats_finetuning.integrations.transformers import MethodTrainer
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

torch.manual_seed(0)
model = BertForSequenceClassification(
    BertConfig(vocab_size=32, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
)
inputs = torch.randint(1, 32, (256, 12))  # is token 7 in the text?
inputs[::2, 5] = 7
data = [{"input_ids": row, "labels": (row == 7).any().long()} for row in inputs]

arguments = TrainingArguments(
    "runs/rdrop", num_train_epochs=12, per_device_train_batch_size=32, learning_rate=2e-3, use_cpu=True,
    report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
)  # fmt: skip
MethodTrainer("rdrop", {"rdrop.alpha": 0.5}, model=model, args=arguments, train_dataset=data).train()
with torch.no_grad():
    found = model.eval()(input_ids=inputs).logits.argmax(dim=1)
print(f"accuracy {(found == (inputs == 7).any(dim=1)).float().mean():.2f}")
