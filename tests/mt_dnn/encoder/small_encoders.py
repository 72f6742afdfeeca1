"""Small random encoders of every family that runs packed, and batches for them."""

from types import SimpleNamespace

import numpy as np
import torch

from mt_dnn.encoder.attention import register
from mt_dnn.encoder.batch import pack, pad
from mt_dnn.encoder.files import attention_function
from mt_dnn.encoder.model import Encoder

VOCABULARY, PAD = 50, 1
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 40, "pad_token_id": PAD,
}  # fmt: skip
ENDS = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
GROUPED = {**ENDS, "num_key_value_heads": 1, "head_dim": 8}  # both heads share keys and values
EXTRA = {
    "bert": {"type_vocab_size": 2},
    "roberta": {"type_vocab_size": 1},
    "xlm-roberta": {"type_vocab_size": 1},
    "camembert": {"type_vocab_size": 1},
    "electra": {"embedding_size": 8, "type_vocab_size": 2},
    "albert": {"embedding_size": 8, "type_vocab_size": 2},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "mpnet": {},
    # The second layer's window is narrower than most examples.
    "modernbert": {**ENDS, "local_attention": 8, "global_attn_every_n_layers": 2},
    "nomic_bert": {"type_vocab_size": 2, "head_dim": 8},
    "eurobert": {**GROUPED, "mask_token_id": 4},
    "roformer": {"embedding_size": 8, "type_vocab_size": 2},
    "gpt2": {**ENDS},
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 4},
    "qwen2": {**GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": GROUPED,
    "gemma": GROUPED,
    "gemma2": {**GROUPED, "sliding_window": 4, "attn_logit_softcapping": 2.0},
    "gemma3_text": {**GROUPED, "sliding_window": 4},
}


def make_encoder(family: str, packed: bool, **changes: int) -> Encoder:
    """An encoder with weights large enough that differences show; of two small layers where nothing is changed."""
    from transformers import AutoConfig, AutoModel

    register()
    config = AutoConfig.for_model(family, **{**SMALL, **EXTRA.get(family, {}), **changes})
    config.use_cache = False
    torch.manual_seed(3)
    attention = attention_function(config, packed) if family in EXTRA else "eager"
    model = AutoModel.from_config(config, attn_implementation=attention)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.2)
    return Encoder(model, packed).eval()


class Rows(SimpleNamespace):
    def __len__(self):
        return len(self.labels)


def make_cache(lengths, seed=0):
    """What batching reads of a token cache; odd rows are pairs."""
    rng = np.random.default_rng(seed)
    lengths = np.asarray(lengths)
    return Rows(
        tokens=rng.integers(2, VOCABULARY, lengths.sum()).astype(np.uint16),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        segment=np.where((np.arange(len(lengths)) % 2 == 1) & (lengths > 2), lengths // 2, 0).astype(np.uint16),
        labels=np.zeros(len(lengths), np.int64),
    )


def both(lengths, seed=0):
    """One batch in both layouts."""
    cache = make_cache(lengths, seed)
    rows = np.arange(len(lengths))
    return pack(cache, rows), pad(cache, rows, PAD)
