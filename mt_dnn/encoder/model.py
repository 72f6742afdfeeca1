"""Pretrained transformers encoders, run on packed batches if the architecture allows it.

Legend: B examples, T tokens of the longest, n_tokens real tokens of the batch, D hidden size.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from data_utils.errors import SettingError
from data_utils.token_cache import TokenCache
from module.dropout import DropoutStream
from module.param_index import stack_modules
from module.row_sparse import RowSparseEmbedding, can_be_row_sparse
from mt_dnn.encoder import varlen
from mt_dnn.encoder.batch import CPU_GROUPS, CUDA_GROUPS, Batch, PackedBatch, fill, pack, pad
from mt_dnn.encoder.families import BERT_LIKE, PACKED_FAMILIES, is_decoder
from mt_dnn.encoder.files import read_config, read_model, set_dropouts, weights_stamp
from mt_dnn.encoder.hooks import hooked
from mt_dnn.encoder.last_layer import Countdown, LastLayer
from mt_dnn.encoder.limits import EncoderLimits
from mt_dnn.encoder.own_attention import adapt
from mt_dnn.encoder.residual_norm import fuse as fuse_norms
from mt_dnn.encoder.self_attention import fuse as fuse_attention
from mt_dnn.encoder.source import EncoderSource

logger = logging.getLogger(__name__)

ATTENTIONS = ("auto", "packed", "padded")
EmbeddingHook = Callable[[Tensor, Any], Tensor]
"""Word embeddings and their batch -> the embeddings to go on with."""


class Encoder(nn.Module):
    """A transformers encoder, or causal decoder, without pooler and language model.

    Attributes:
        model: the transformers model.
        hidden_size: D.
        initializer_range: standard deviation the pretraining drew its weights with; new layers use it too.
        causal: whether a token sees only what is before it, so that an example's last token stands for it.
        pad_id: padding token.
        limits: the largest example that its tables take.
        supports_packed: whether the architecture can run packed batches.
        packed: whether it does so in this run.
        token_types: how many types of tokens (segments) the architecture knows, 0 where it knows none.
        dropout_stream: the source of the masks of dropout inside packed attention on the CPU; None is torch's
            generator.
        embedding_hooks: called in training with the word embeddings and their batch, one after the other.
    """

    def __init__(self, model: nn.Module, packed: bool):
        super().__init__()
        config: Any = model.config
        self.model = model
        self.hidden_size: int = config.hidden_size
        self.initializer_range: float = getattr(config, "initializer_range", 0.02)
        self.causal = is_decoder(config.model_type)
        self.pad_id: int = config.pad_token_id if config.pad_token_id is not None else 0
        self.supports_packed = config.model_type in PACKED_FAMILIES
        self.packed = packed
        self.dropout_stream: DropoutStream | None = None
        self.embedding_hooks: list[EmbeddingHook] = []
        self.limits = EncoderLimits.of(model)
        self.token_types: int = getattr(config, "type_vocab_size", 0) or 0
        self._last_layer = LastLayer(model)
        fuse_norms(model)
        fuse_attention(model)
        adapt(model)

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The transformer layers, from the one next to the embeddings on."""
        return stack_modules(self.model)

    def batch(
        self,
        cache: TokenCache,
        indices: npt.NDArray[np.int64],
        device: torch.device,
        *,
        filled: bool = False,
        task: str = "",
        soft_labels: npt.NDArray[np.float32] | None = None,
    ) -> Batch:
        """Rows of a task's token cache in the layout this encoder runs, on a device; packed ones filled if asked.

        Args:
            cache: Of N examples.
            indices: (B,) rows.
            device: Where the batch is wanted.
            filled: Whether to bring it to one of a few sizes (:func:`mt_dnn.encoder.batch.fill`).
            task: Name of the task, in a network with several.
            soft_labels: (N, K) of the cache's examples.
        """
        soft = None if soft_labels is None else torch.from_numpy(soft_labels[indices])
        if not self.packed:
            return replace(pad(cache, indices, self.pad_id), task=task, soft_labels=soft).to(device)
        groups = self._most_groups(device)
        batch = replace(pack(cache, indices, groups), task=task, soft_labels=soft)
        return (fill(batch, groups) if filled else batch).to(device)

    def attends_without_padding(self, device: torch.device) -> bool:
        """Whether attention of packed batches works on their tokens alone on a device, whatever their lengths."""
        config: Any = self.model.config
        alike = self.packed and config.model_type in BERT_LIKE
        return alike and varlen.takes(device, config.hidden_size // config.num_attention_heads)

    def _most_groups(self, device: torch.device) -> int | None:
        """Rectangles that attention of a packed batch takes at most on a device; None where it reads no slots."""
        compiled = self.model._compiled_call_impl is not None  # then not every call goes without padding
        if self.attends_without_padding(device) and not compiled:
            return None
        return CUDA_GROUPS if device.type == "cuda" else CPU_GROUPS

    def use_row_sparse_gradients(self) -> None:
        """Make the gradient of the word embeddings row-sparse, if they are a table on the CPU."""
        embeddings = self.model.get_input_embeddings()  # type: ignore[operator]
        if can_be_row_sparse(embeddings):
            self.model.set_input_embeddings(RowSparseEmbedding(embeddings))  # type: ignore[operator]

    def embed(self, batch: Batch) -> Tensor:
        """Word embeddings of a batch, which ``inputs_embeds`` replaces: (n_tokens, E) packed, (B, T, E) padded."""
        embeddings: Tensor = self.model.get_input_embeddings()(batch.input_ids)  # type: ignore[operator]
        return embeddings

    def forward(self, batch: Batch, inputs_embeds: Tensor | None = None) -> Tensor:
        """Hidden states of the last layer.

        Args:
            batch: packed or padded.
            inputs_embeds: word embeddings (before positions, token types and layer norm) to use instead of the
                batch's own: (n_tokens, E) packed or (B, T, E) padded, E = D but for ELECTRA's and ALBERT's small
                embeddings; ``embed`` gives the unchanged ones.

        Returns:
            (n_tokens, D) packed, (B, T, D) padded; padded places hold whatever the model computes there.

        Raises:
            SettingError: when an example is longer than the position table, or a packed batch meets an architecture
                that cannot run it.
        """
        return self._hidden(batch, inputs_embeds, None)

    def pooled(self, batch: Batch, inputs_embeds: Tensor | None = None) -> Tensor:
        """Hidden state of the token that stands for each example: its first one, its last one in a causal decoder.

        The last layer computes no other where it can be divided.

        Args:
            batch: as in ``forward``, like the rest.
            inputs_embeds: word embeddings to use instead of the batch's own.

        Returns:
            (B, D).
        """
        countdown = None if hooked(self) else self._last_layer.countdown()
        if countdown is None:
            return self.pool(self(batch, inputs_embeds=inputs_embeds), batch)
        hidden = self._hidden(batch, inputs_embeds, countdown)  # (B, D) packed, (B, 1, D) padded
        return _of_examples(hidden, batch) if isinstance(batch, PackedBatch) else hidden[:, 0]

    def pool(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Hidden state of the token that stands for each example, out of those of all tokens: (B, D)."""
        if isinstance(batch, PackedBatch):
            places = batch.last_tokens if self.causal else batch.first_tokens
            return _of_examples(hidden.index_select(0, places), batch)
        return hidden.flatten(0, 1).index_select(0, batch.last_tokens) if self.causal else hidden[:, 0]

    def _hidden(self, batch: Batch, inputs_embeds: Tensor | None, countdown: Countdown | None) -> Tensor:
        most = self.limits.max_tokens
        if most is not None and batch.max_seqlen > most:
            raise SettingError(f"max_seq_len: an example has {batch.max_seqlen} tokens, this encoder takes {most}")
        if self.training and self.embedding_hooks:
            inputs_embeds = self.embed(batch) if inputs_embeds is None else inputs_embeds
            for hook in self.embedding_hooks:
                inputs_embeds = hook(inputs_embeds, batch)
        inputs: dict[str, Any] = self._inputs(batch, inputs_embeds)
        if countdown is not None:
            inputs["first_tokens"] = countdown
        if isinstance(batch, PackedBatch):
            return self._forward_packed(batch, inputs)
        output = self.model(**inputs, attention_mask=batch.attention_mask)
        padded: Tensor = output.last_hidden_state
        return padded

    def _forward_packed(self, batch: PackedBatch, inputs: dict[str, Any]) -> Tensor:
        if not self.packed:
            raise SettingError("attention: this encoder was loaded for padded batches and got a packed one")
        inputs = {name: value[None] if isinstance(value, Tensor) else value for name, value in inputs.items()}
        output = self.model(**inputs, packed=batch, dropout_stream=self.dropout_stream)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _inputs(self, batch: Batch, inputs_embeds: Tensor | None) -> dict[str, Tensor]:
        """Return the keyword arguments of both layouts, without a batch dimension of their own."""
        inputs = {"input_ids": batch.input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        if self.supports_packed:
            # Other families count positions their own way.
            first = self.limits.first_position
            inputs["position_ids"] = batch.position_ids + first if first else batch.position_ids
        if self.token_types > 1:
            inputs["token_type_ids"] = batch.token_type_ids
        elif self.token_types == 1:
            inputs["token_type_ids"] = torch.zeros_like(batch.token_type_ids)
        return inputs


def _of_examples(first: Tensor, batch: PackedBatch) -> Tensor:
    """First tokens without that of the example that fills a batch up."""
    return first[: batch.size] if batch.filled else first


# The weights as read, for the many runs of one worker: only the encoder that was loaded last.
_pristine: dict[tuple[Any, ...], nn.Module] = {}


def load_encoder(
    source: EncoderSource,
    *,
    hidden_dropout: float,
    attention_dropout: float,
    attention: str = "auto",
) -> Encoder:
    """Load a pretrained encoder in float32, in evaluation mode, without its pooler.

    The files are read once per process as long as neither they nor the settings change; every call returns a copy.

    Args:
        source: from ``resolve_encoder``.
        hidden_dropout: dropout of embeddings and of the layers' outputs, in [0, 1).
        attention_dropout: dropout of the attention probabilities, in [0, 1).
        attention: "packed", "padded", or "auto": packed where the architecture allows it.

    Raises:
        SettingError: for a setting out of range, files that are no encoder, and weights that are missing.
    """
    config = read_config(source)
    set_dropouts(config, hidden_dropout, attention_dropout)
    packed = _decide_packed(attention, config.model_type)
    key = (source.folder, weights_stamp(source.folder), config.to_json_string(use_diff=False), packed)
    if key not in _pristine:
        _pristine.clear()
        _pristine[key] = read_model(source, config, packed)
    return Encoder(copy.deepcopy(_pristine[key]), packed)


def _decide_packed(attention: str, model_type: str) -> bool:
    if attention not in ATTENTIONS:
        raise SettingError(f"attention: {attention!r} is unknown; choose one of {', '.join(ATTENTIONS)}")
    supported = model_type in PACKED_FAMILIES
    if attention == "packed" and not supported:
        families = ", ".join(PACKED_FAMILIES)
        raise SettingError(f"attention: {model_type} cannot run packed ({families} can); use auto or padded")
    if attention == "auto" and not supported:
        logger.info("attention: %s runs on padded batches", model_type)
    return supported and attention != "padded"
