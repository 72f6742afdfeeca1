"""Tiny random encoders and decoders of every family that the study takes, with tokenizers of their kinds."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.tiny import SPECIAL, WORDS, make_tokenizer

_SIZES = {
    "vocab_size": len(SPECIAL) + len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 64, "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip
_ENDS = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
_GROUPED = {"num_key_value_heads": 1, "head_dim": 8}  # both heads share keys and values
_DECODER = {"pad_token_id": None, "bos_token_id": 2, "eos_token_id": 3, "use_cache": True}  # as most are saved
ENCODERS = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "camembert": {},
    "electra": {"embedding_size": 8},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "albert": {"embedding_size": 8, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    "deberta-v2": {"type_vocab_size": 0, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "mpnet": {"pad_token_id": 1},
    "modernbert": {**_ENDS, "local_attention": 4, "global_attn_every_n_layers": 2},
    "nomic_bert": {"head_dim": 8},
    "eurobert": {**_ENDS, **_GROUPED, "mask_token_id": 4},
    "roformer": {"embedding_size": 8},
}
DECODERS = {
    "gpt2": {**_DECODER},
    "llama": {**_DECODER, **_GROUPED},
    "mistral": {**_DECODER, **_GROUPED, "sliding_window": 4},
    "qwen2": {**_DECODER, **_GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {**_DECODER, **_GROUPED},
    "gemma": {**_DECODER, **_GROUPED, "pad_token_id": 0},
    "gemma2": {**_DECODER, **_GROUPED, "sliding_window": 4, "attn_logit_softcapping": 5.0},
    "gemma3_text": {**_DECODER, **_GROUPED, "sliding_window": 4},
}
FAMILIES = {**ENCODERS, **DECODERS}
_BEGINNING = ("llama", "mistral", "gemma", "gemma2", "gemma3_text")
"""Decoders whose tokenizers begin a text with a token; those of the others add none."""


def make_family(folder: Path, family: str, seed: int = 0) -> Path:
    """Write a two-layer model of a family with random weights and a tokenizer of its kind."""
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(seed)
    settings = {**_SIZES, **FAMILIES[family]}
    AutoModel.from_config(AutoConfig.for_model(family, **settings)).save_pretrained(folder)
    if family in DECODERS:
        make_decoder_tokenizer(folder, family in _BEGINNING)
    else:
        make_tokenizer(folder, settings["pad_token_id"])
    return folder


def make_decoder_tokenizer(folder: Path, begins: bool) -> None:
    """Write a tokenizer of a decoder: an end of text that it does not add, and no token for padding."""
    vocabulary = {word: i for i, word in enumerate(["<0>", "<unk>", "<begin>", "<end>", "<4>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<begin>", "<end>"])
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<begin> $A", pair="<begin> $A <begin> $B", special_tokens=[("<begin>", 2)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<begin>", "eos_token": "<end>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
