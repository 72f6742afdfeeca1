"""PATS in a loop of your own: a small BERT learns whether word 10 occurs.  pip install . transformers"""

import torch
from pats_finetuning import PATSAdamax
from transformers import BertConfig, BertForSequenceClassification, get_linear_schedule_with_warmup

torch.manual_seed(0)
sentences = torch.randint(10, 27, (512, 12))  # (N, T) word numbers
labels = (sentences == 10).any(1).long()
config = BertConfig(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
model = BertForSequenceClassification(config)  # yours: AutoModelForSequenceClassification.from_pretrained(...)
# Names tell PATS what to perturb: weights and biases of the encoder layers. PATS(...).attach(AdamW) is the other way.
optimizer = PATSAdamax(model.named_parameters(), lr=2e-3, noise_scale=5e-3, sensitivity_threshold=1e-6)
schedule = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=10, num_training_steps=8 * 12)

model.train()
for _ in range(8):
    for rows in torch.randperm(384).split(32):  # the last 128 are kept for testing
        model(input_ids=sentences[rows], labels=labels[rows]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # before the step: PATS reads the gradients there
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
model.eval()
with torch.no_grad():
    print(f"accuracy {(model(sentences[384:]).logits.argmax(-1) == labels[384:]).float().mean():.2f}")
