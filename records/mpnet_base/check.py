"""Packed against padded hidden states and gradients of one encoder: ``check.py ENCODER FOLDER_WITH_RTE_DEV``."""

import sys
import tempfile

import torch
from torch import Tensor

from data_utils.task_def import load_task_defs
from data_utils.token_cache import TokenCache, ensure_cache
from data_utils.tokenizer import load_tokenizer
from experiments.glue.glue_prepro import GLUE_TASK_DEF
from mt_dnn.encoder.batch import pack, pad
from mt_dnn.encoder.model import load_encoder
from mt_dnn.encoder.source import EncoderSource, resolve_encoder

ROWS = range(8)


def results(source: EncoderSource, cache: TokenCache, layout: str) -> dict[str, Tensor]:
    """Hidden states of the real tokens, and the gradients of their mean square, by name."""
    encoder = load_encoder(source, hidden_dropout=0.0, attention_dropout=0.0, attention=layout)
    padded = pad(cache, ROWS, encoder.pad_id)
    real = padded.attention_mask.bool()
    hidden = encoder(pack(cache, ROWS)) if layout == "packed" else encoder(padded)[real]
    hidden.square().mean().backward()
    found = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    if layout == "padded":
        print(
            f"{sum(p.numel() for p in encoder.parameters())} parameters, {real.sum()} tokens of {real.numel()} places"
        )
        with torch.no_grad():
            plain = encoder.model(input_ids=padded.input_ids, attention_mask=padded.attention_mask)
        print("transformers alone:", float((plain.last_hidden_state[real] - hidden.detach()).abs().max()))
    return {"hidden": hidden.detach(), **found}


def main(encoder: str, folder: str) -> None:
    """Print the differences, the largest ones of the gradients first."""
    source, rte = resolve_encoder(encoder), load_task_defs(GLUE_TASK_DEF)["rte"]
    with tempfile.TemporaryDirectory() as scratch:
        cache = ensure_cache(f"{folder}/rte_dev.tsv", rte, load_tokenizer(source.folder), f"{scratch}/rte", 512)
        packed, padded = (results(source, cache, layout) for layout in ("packed", "padded"))
    one, other = packed.pop("hidden"), padded.pop("hidden")
    print("hidden states:", float((one - other).abs().max()), "of", float(other.abs().max()))
    largest = max(float(gradient.norm()) for gradient in padded.values())
    rows = [(float((packed[n] - g).norm() / g.norm()), float(g.norm()) / largest, n) for n, g in padded.items()]
    print(f"gradients of {len(rows)} tensors: relative difference, size over the largest one's")
    for row in sorted(rows, reverse=True)[:16]:
        print("  {:.1e} {:.1e} {}".format(*row))


if __name__ == "__main__":
    main(*sys.argv[1:])
