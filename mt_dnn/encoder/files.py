"""An encoder's files: configuration and safetensors weights.

Nothing that a checkpoint carries is executed: weights are safetensors, and code beside them is never trusted.
"""

import inspect
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_utils.errors import SettingError, in_one_line, shown
from data_utils.json_file import read_json
from data_utils.stamp import look
from mt_dnn.encoder.attention import PACKED, register
from mt_dnn.encoder.families import is_decoder, is_masked
from mt_dnn.encoder.own_attention import OWN_ATTENTION
from mt_dnn.encoder.source import EncoderSource

logger = logging.getLogger(__name__)

# Names of the two dropouts in the families.
_HIDDEN_DROPOUTS = (
    "hidden_dropout_prob", "dropout", "embedding_dropout", "mlp_dropout", "hidden_dropout", "embd_pdrop", "resid_pdrop",
)  # fmt: skip
_ATTENTION_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
# Sizes that the network is built by, and their range in encoders that exist.
_SIZES = {
    "hidden_size": (1, 2**20),
    "num_hidden_layers": (1, 1000),
    "num_attention_heads": (1, 2**16),
    "intermediate_size": (1, 2**24),
    "vocab_size": (1, 2**24),
    "max_position_embeddings": (-1, 2**24),
    "type_vocab_size": (0, 2**16),
    "pad_token_id": (0, 2**24),
    "chunk_size_feed_forward": (0, 0),
}
_NEEDED = ("hidden_size", "num_hidden_layers", "vocab_size")
# An encoder without these is not the pretrained one: a layer's weights, the word embeddings.
_VITAL = re.compile(r"(?:^|\.)\d+\.|word_embeddings|tok_embeddings|embed_tokens|wte")


def read_config(source: EncoderSource) -> Any:
    """The transformers configuration of an encoder.

    Raises:
        SettingError: when it cannot be read or is of no bidirectional encoder and of no causal decoder.
    """
    from transformers import AutoConfig

    path = source.folder / "config.json"
    try:
        kind = read_json(path).get("model_type")  # transformers fails on other JSON values, and on any depth
        if isinstance(kind, str) and not is_masked(kind) and not is_decoder(kind):
            raise SettingError(f"{source.name} is of type {shown(kind)}, not a bidirectional encoder or causal decoder")
        with quiet_transformers():
            config = AutoConfig.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False)
    except SettingError as error:
        raise SettingError(f"encoder: {error}") from None
    except Exception as error:  # of transformers' checks of the values, which differ from family to family
        raise SettingError(f"encoder: cannot read {path}: {in_one_line(error)}") from error
    # Masked language models see both sides, which the first token needs, unless their configuration's is_decoder makes
    # them causal; families that are causal anyway have no such switch. Encoder-decoders have no token for an example.
    if config.is_encoder_decoder or getattr(config, "is_decoder", False):
        raise SettingError(
            f"encoder: {source.name} has a decoder ({config.model_type}), it is no bidirectional encoder"
        )
    _check_sizes(config, path)
    if is_decoder(config.model_type):
        config.use_cache = False  # of keys and values, for a token after token that is never asked for
    return config


def _check_sizes(config: Any, path: Path) -> None:
    for name, (least, most) in _SIZES.items():
        size = getattr(config, name, None)
        missing = size is None and name not in _NEEDED
        if not missing and not (isinstance(size, int) and not isinstance(size, bool) and least <= size <= most):
            raise SettingError(f"encoder: {path}: {name} is {shown(size)}; legal: an integer in [{least}, {most}]")
    spread = getattr(config, "initializer_range", 0.02)  # the head is drawn with it
    if isinstance(spread, bool) or not isinstance(spread, int | float) or not 0.0 < spread < 100.0:
        raise SettingError(f"encoder: {path}: initializer_range is {shown(spread)}; legal: a number in (0, 100)")


def set_dropouts(config: Any, hidden: float, attention: float) -> None:
    """Write both dropouts into a configuration, under the family's names.

    Raises:
        SettingError: for a value outside [0, 1).
    """
    for setting, value, names in (
        ("bert_dropout_p", hidden, _HIDDEN_DROPOUTS),
        ("attention dropout", attention, _ATTENTION_DROPOUTS),
    ):
        if not 0.0 <= value < 1.0:
            raise SettingError(f"{setting}: {value} is not in [0, 1)")
        for name in names:
            if hasattr(config, name):
                setattr(config, name, value)


def read_model(source: EncoderSource, config: Any, packed: bool) -> nn.Module:
    """The transformers model in float32 and evaluation mode, without pooler.

    Args:
        source: where the weights are.
        config: from ``read_config``.
        packed: whether packed batches will come.

    Raises:
        SettingError: when the files cannot be loaded, or do not hold the encoder's layers or word embeddings.
    """
    from transformers import AutoModel

    register()
    model_class = AutoModel._model_mapping[type(config)]
    takes_pooler = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    try:
        # Loading must not draw from the stream of dropout: a worker loads only once for many runs.
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, info = AutoModel.from_pretrained(
                source.folder,
                config=config,
                dtype=torch.float32,
                attn_implementation=attention_function(config, packed),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **({"add_pooling_layer": False} if takes_pooler else {}),
            )
    except Exception as error:
        reason = in_one_line(error)
        if "ignore_mismatched_sizes" in reason:  # and the report that it speaks of is switched off
            reason = "its weights have other shapes than its config.json says"
        raise SettingError(f"encoder: cannot load {source.folder}: {reason}") from error
    _check_missing(source, sorted(info["missing_keys"]))
    return model  # type: ignore[no-any-return]


def attention_function(config: Any, packed: bool) -> str | None:
    """Name of a model's attention function in transformers; None: the one that it takes by itself."""
    if packed and config.model_type not in OWN_ATTENTION:
        return PACKED
    return None if getattr(config, "attn_logit_softcapping", None) is None else "eager"  # others leave the cap out


def weights_stamp(folder: Path) -> str:
    """Name and look of each weights file; they change whenever a file is written or replaced."""
    return str(look(sorted(folder.glob("*.safetensors"))))


def _check_missing(source: EncoderSource, missing: list[str]) -> None:
    if not missing:
        return
    listed = f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}"
    vital = [name for name in missing if _VITAL.search(name)]
    if vital:
        raise SettingError(
            f"encoder: {source.folder} lacks {len(missing)} weights of the encoder ({listed}), which would be random; "
            "is it a checkpoint of another architecture?"
        )
    logger.warning("encoder: %s lacks %d weights, now random: %s", source.name, len(missing), listed)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bar and load report; errors are still shown."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    had_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bar:
            transformers_logging.enable_progress_bar()
