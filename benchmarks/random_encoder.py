"""Encoders with random weights and a small tokenizer, and rows for them: enough for timings, nothing to download."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple(f"{first}{second}" for first in "bdfgklmnprst" for second in ("a", "e", "i", "o", "u", "ay", "ee", "oo"))
SHAPES = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "bert-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
# Words of a row: mean, and standard deviation of their logarithm (a pair of MNLI as one sentence), and most of them.
LENGTHS, MOST_WORDS = (33.3, 0.5), 400


def make_encoder(folder: Path, shape: str) -> Path:
    """Write a BERT of one of the ``SHAPES`` with random weights, and its tokenizer; returns the folder."""
    from transformers import BertConfig, BertModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    # BERT's own vocabulary size, although the words are few: the optimizer sees the parameters of the real model.
    config = BertConfig(vocab_size=30_522 if shape == "bert-base" else 256, **SHAPES[shape])
    BertModel(config, add_pooling_layer=False).save_pretrained(folder, safe_serialization=True)
    tokens = {token: number for number, token in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(tokens, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokens[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_rows(tsv: Path, rows: int, *, telling: bool = False) -> None:
    """Write a canonical file of single sentences of log-normal lengths with labels 0 and 1 (CoLA's columns).

    Args:
        tsv: The file.
        rows: Their number.
        telling: Whether a row's words are of one half of the vocabulary, by its label, which can be learned.
    """
    generator = np.random.default_rng(0)
    mean, spread = LENGTHS
    lengths = np.exp(generator.normal(np.log(mean) - spread**2 / 2, spread, rows)).round().clip(2, MOST_WORDS)
    words = np.array(WORDS).reshape(2, -1) if telling else np.array(WORDS)[None].repeat(2, axis=0)
    with tsv.open("w", encoding="utf-8") as file:
        for row, length in enumerate(lengths.astype(int)):
            own = words[row % 2]
            file.write(f"{row}\t{row % 2}\t{' '.join(own[generator.integers(len(own), size=length)])}\n")
