"""The known encoder nearest in size, whose recipes serve an encoder without any."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_utils.errors import SettingError
from data_utils.names import check_name, slug
from experiments.study.recipe_file import read_recipe

_PLAIN = "_vanilla"


def known_encoders(folders: Sequence[Path]) -> dict[str, int]:
    """Name -> number of parameters of the encoders with recipes; plain fine-tuning's recipe holds the number."""
    found = {p: read_recipe(p, folders) for folder in folders for p in sorted(folder.glob(f"*{_PLAIN}.yml"))}
    size = "encoder_parameters"
    return {p.stem.removesuffix(_PLAIN): own.integer(size, 1) for p, own in found.items() if size in own.values}


def nearest_encoder(encoder: str, folders: Sequence[Path]) -> tuple[str, str]:
    """The known encoder nearest in size, by the ratio of parameters.

    Args:
        encoder: Hub name or local folder; its configuration is read, which may be fetched from the Hub.
        folders: Of the recipes.

    Returns:
        Its name, and a sentence that says so.

    Raises:
        SettingError: the encoder is not found, or its configuration does not tell its size; it names ``--recipe_base``.
    """
    # Slow imports, which only an unknown encoder needs.
    from mt_dnn.encoder.files import read_config
    from mt_dnn.encoder.source import EncoderSource, tokenizer_folder

    known = known_encoders(folders)
    try:
        config = read_config(EncoderSource(check_name("encoder", slug(encoder)), tokenizer_folder(encoder)))
        size = estimated_parameters(config)
    except (SettingError, AttributeError) as error:
        raise SettingError(
            f"no recipe for {encoder}, and its size is not known ({error}): give another encoder's recipes with "
            f"--recipe_base, one of {', '.join(known)}"
        ) from None
    name = min(known, key=lambda other: abs(math.log(known[other] / size)))
    told = f"those of {name}, the known encoder nearest in size ({_million(known[name])} against {_million(size)})"
    return name, f"{encoder} has no recipes: {told}, are taken"


def estimated_parameters(config: Any) -> int:
    """Weights of the word embeddings and of the layers' matrices, which are nearly all of an encoder's.

    Args:
        config: Of ``transformers``, with the usual names or its attribute map's.

    Raises:
        AttributeError: it has none of them.
    """
    width, layers, inner = config.hidden_size, config.num_hidden_layers, _inner_size(config)
    embedding = getattr(config, "embedding_size", width)
    shared = getattr(config, "num_hidden_groups", layers)  # ALBERT: its layers share their weights
    return int(config.vocab_size * embedding + shared * (4 * width * width + 2 * width * inner))


def _inner_size(config: Any) -> int:
    for name in ("intermediate_size", "hidden_dim"):
        if hasattr(config, name):
            return int(getattr(config, name))
    return 4 * int(config.hidden_size)


def _million(parameters: int) -> str:
    return f"{parameters / 1e6:.{0 if parameters >= 1e6 else 2}f} M parameters"
