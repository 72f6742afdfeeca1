"""Families of encoders, by ``model_type`` of transformers."""

BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "albert")
"""Attention is a function of query, key and value alone, in every layer and for every length."""
PACKED_ENCODERS = (*BERT_LIKE, "mpnet", "modernbert", "nomic_bert", "eurobert", "roformer")
"""See both sides, and were found equal to padded to rounding (a test each)."""
PACKED_DECODERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
"""See what is before a token, and were found equal to padded to rounding (a test each)."""
PACKED_FAMILIES = (*PACKED_ENCODERS, *PACKED_DECODERS)
"""Not in it: DeBERTa, whose attention multiplies relative positions with queries and keys."""


def is_decoder(model_type: str) -> bool:
    """Whether a family is a causal decoder with a classifier in transformers.

    Masked language models see both sides; encoder-decoders have no causal language model alone.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )

    causal = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return causal and model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES and not is_masked(model_type)


def is_masked(model_type: str) -> bool:
    """Whether a family is a masked language model in transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
