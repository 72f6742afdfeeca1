"""PATSAdamax in a LightningModule.  pip install . transformers pytorch-lightning"""

import pytorch_lightning as pl
import torch
from pats_finetuning import PATSAdamax
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

config = BertConfig(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = BertForSequenceClassification(config)  # yours: from_pretrained(...)

    def training_step(self, batch, _):
        return self.model(input_ids=batch[0], labels=batch[1]).loss

    def configure_optimizers(self):
        return PATSAdamax(self.named_parameters(), lr=2e-3, noise_scale=5e-3)


pl.seed_everything(0)
sentences = torch.randint(10, 27, (512, 12))  # (N, T) word numbers; does word 10 occur?
labels = (sentences == 10).any(1).long()
trainer = pl.Trainer(max_epochs=6, gradient_clip_val=1.0, logger=False)
trainer.fit(classifier := Classifier(), DataLoader(TensorDataset(sentences[:384], labels[:384]), 32, shuffle=True))
print(f"accuracy {(classifier.eval().model(sentences[384:]).logits.argmax(-1) == labels[384:]).float().mean():.2f}")
