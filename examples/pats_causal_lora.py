"""PATS on the adapters of a causal language model."""

import torch
from pats_finetuning.integrations.transformers import MethodTrainer
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

torch.manual_seed(0)
size = {"vocab_size": 32, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
adapters = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear", modules_to_save=["lm_head"])
model = get_peft_model(LlamaForCausalLM(LlamaConfig(**size)), adapters)
inputs = (torch.arange(12) + torch.randint(0, 32, (256, 1))) % 32  # to count
data = [{"input_ids": row, "labels": row} for row in inputs]

arguments = TrainingArguments(
    "runs/lora", num_train_epochs=8, per_device_train_batch_size=32, learning_rate=5e-3, use_cpu=True,
    report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
)  # fmt: skip
settings = {"pats.threshold_mode": "relative"}  # PATS's own threshold is for models of base size
MethodTrainer("pats", settings, model=model, args=arguments, train_dataset=data).train()
with torch.no_grad():
    found = model.eval()(input_ids=inputs).logits.argmax(dim=2)
print(f"accuracy {(found[:, :-1] == inputs[:, 1:]).float().mean():.2f}")
