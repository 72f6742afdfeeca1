"""A tiny pretrained encoder and a tiny task, made from nothing: enough to run every command line in seconds."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["good", "bad", "film", "plot", "actor", "scene", "is", "the", "a", "very", "quite", "never", "and", "or", "it"]

TASK_DEF = """\
toy:
  data_format: PremiseOnly
  enable_san: false
  metric_meta: [ACC, MCC]
  loss: CeCriterion
  n_class: 2
  task_type: Classification
toyscore:
  data_format: PremiseAndOneHypothesis
  enable_san: false
  metric_meta: [Pearson, Spearman]
  loss: MseCriterion
  n_class: 1
  task_type: Regression
"""


def make_tokenizer(folder: Path, pad_id: int = 0) -> None:
    """Write a WordPiece tokenizer with BERT's pair template; ``pad_id`` 1 takes the place of the unknown word's."""
    special = SPECIAL if pad_id == 0 else [SPECIAL[1], SPECIAL[0], *SPECIAL[2:]]
    vocabulary = {word: i for i, word in enumerate(special + WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def make_encoder(folder: Path, seed: int = 0) -> Path:
    """Write a two-layer BERT with random weights and its tokenizer."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder, safe_serialization=True)
    make_tokenizer(folder)
    return folder


def make_task(folder: Path, n_train: int = 70, n_dev: int = 30, seed: int = 0) -> Path:
    """Write canonical files of two tasks: is "good" or "bad" in the text; how much more "good" in two texts."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in (("train", n_train), ("dev", n_dev)):
        rows, pairs = [], []
        for i in range(n):
            words = list(rng.choice(WORDS[2:], size=rng.integers(1, 9)))
            label = int(rng.integers(2))
            words.insert(int(rng.integers(len(words) + 1)), "good" if label else "bad")
            rows.append(f"{i}\t{label}\t{' '.join(words)}")
            other = list(rng.choice(WORDS, size=rng.integers(1, 6)))
            praise = (words + other).count("good") - (words + other).count("bad")
            pairs.append(f"{i}\t{praise}\t{' '.join(words)}\t{' '.join(other)}")
        (folder / f"toy_{split}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        (folder / f"toyscore_{split}.tsv").write_text("\n".join(pairs) + "\n", encoding="utf-8")
    (folder / "task_def.yml").write_text(TASK_DEF, encoding="utf-8")
    return folder


def make_taught(tiny_task: Path, folder: Path) -> Path:
    """Copy the tasks' files, and give each task a kd_loss."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in tiny_task.glob("*.tsv"):
        shutil.copy(file, folder)
    text = (tiny_task / "task_def.yml").read_text().replace("  loss: ", "  kd_loss: MseCriterion\n  loss: ")
    (folder / "task_def.yml").write_text(text)
    return folder


def as_glue(tiny_task: Path, folder: Path) -> None:
    """Copy the tasks' files under the names of CoLA and STS-B, with a test set whose labels mean nothing."""
    folder.mkdir()
    for name, glue in (("toy", "cola"), ("toyscore", "stsb")):
        for split in ("train", "dev"):
            shutil.copy(tiny_task / f"{name}_{split}.tsv", folder / f"{glue}_{split}.tsv")
        rows = [line.split("\t") for line in (tiny_task / f"{name}_dev.tsv").read_text().splitlines()]
        unlabelled = ["\t".join([uid, "0", *texts]) for uid, _, *texts in rows]
        (folder / f"{glue}_test.tsv").write_text("\n".join(unlabelled) + "\n", encoding="utf-8")
