"""MT-DNN's answer module for pairs, a stochastic answer network (Liu, Duh and Gao 2018, arXiv 1804.07888).

The second text becomes a state by attention over its tokens. In each turn the state reads the first text by bilinear
attention, a classifier answers from both, and a gated recurrent unit makes the next state of them. The answer is the
mean of the turns' probabilities; in training it is that of a random part of the turns.

Legend: B examples, T tokens of the longest, D hidden size, K classes, S turns.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mt_dnn.encoder.batch import Batch, PackedBatch

_COINS = 24  # bits of a float32's fraction


@dataclass(frozen=True, slots=True)
class SanSettings:
    """Settings of all SAN heads of a run."""

    num_turn: int = 5
    """S >= 1."""
    mem_drop_p: float = 0.1
    """Probability in [0, 1) that training leaves a turn out of an example's mean; one turn of it stays in any case."""


class SanHead(nn.Module):
    """Token states of pairs -> log-probabilities of the classes, or a score.

    Args:
        hidden_size: D.
        n_class: K; 1 for a score.
        dropout: of both texts' states, the state between turns and the input of the classifier, in [0, 1).
        settings: of the run.
    """

    def __init__(self, hidden_size: int, n_class: int, dropout: float, settings: SanSettings):
        super().__init__()
        self.num_turn = settings.num_turn
        self.dropout = nn.Dropout(dropout)
        self.summary = nn.Linear(hidden_size, 1, bias=False)  # a bias would be the same for all tokens
        self.attention = nn.Linear(hidden_size, hidden_size)
        self.classifier = nn.Linear(4 * hidden_size, n_class)
        self.cell = GatedCell(hidden_size) if self.num_turn > 1 else None
        self.prediction_dropout = nn.Dropout(settings.mem_drop_p)
        self.coin = nn.Dropout(0.5)

    def forward(self, states: Tensor, batch: Batch) -> Tensor:
        """Answers to a batch.

        Args:
            states: of the encoder's last layer, (n_tokens, D) packed and (B, T, D) padded.
            batch: of pairs.

        Returns:
            (B, K) logarithms of the mean probabilities; (B, 1) mean scores where K = 1.
        """
        states, first, second = _texts(states, batch)
        state, answers = self._summary(states, second), []
        for turn in range(self.num_turn):
            # Dropout of the query is that of all tokens' states with one mask, as MT-DNN has it.
            query = self.dropout(self.attention(self.dropout(state)))
            read = _attend(query, states, first)
            merged = torch.cat([read, state, (read - state).abs(), read * state], dim=1)
            answers.append(self.classifier(self.dropout(merged)))
            if self.cell is not None and turn + 1 < self.num_turn:
                state = self.cell(read, self.dropout(state))
        return self._mean(torch.stack(answers, dim=1))

    def _summary(self, states: Tensor, second: Tensor) -> Tensor:
        """Self-attention over the second text, under one mask of dropout for all its tokens: (B, D)."""
        mask = self.dropout(states.new_ones(len(states), states.shape[-1]))
        summary: Tensor = mask * _attend(mask * self.summary.weight, states, second)
        return summary

    def _mean(self, answers: Tensor) -> Tensor:
        """(B, S, K) -> (B, K), over the turns that are kept."""
        kept = self._kept_turns(answers)[:, :, None]
        answers = answers.to(torch.promote_types(answers.dtype, torch.float32))
        n_kept = kept.sum(dim=1).to(answers.dtype)
        if answers.shape[-1] == 1:
            return (answers * kept).sum(dim=1) / n_kept
        logs = answers.log_softmax(dim=-1).masked_fill(~kept, -math.inf)
        return logs.logsumexp(dim=1) - n_kept.log()

    def _kept_turns(self, answers: Tensor) -> Tensor:
        """(B, S) bool; at least one turn of each example, any with equal probability, is kept."""
        size, turns = answers.shape[:2]
        ones = torch.ones(size, turns, dtype=torch.float32, device=answers.device)
        if not self.training or self.prediction_dropout.p == 0.0:
            return ones > 0
        # Coins, so that all chance comes from the stream of dropout.
        heads = self.coin(torch.ones(size, _COINS, dtype=torch.float32, device=answers.device)) > 0
        digits = 0.5 ** torch.arange(1, _COINS + 1, dtype=torch.float32, device=answers.device)
        always = ((heads * digits).sum(dim=1) * turns).long().clamp(max=turns - 1)
        kept: Tensor = (self.prediction_dropout(ones) > 0) | (
            torch.arange(turns, dtype=torch.int64, device=answers.device) == always[:, None]
        )
        return kept


class GatedCell(nn.Module):
    """A gated recurrent unit, as ``torch.nn.GRUCell`` computes it, of layers that any method and autocast know."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.of_input = nn.Linear(hidden_size, 3 * hidden_size)
        self.of_state = nn.Linear(hidden_size, 3 * hidden_size)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """(B, D) input and (B, D) state -> (B, D) next state."""
        reset_x, update_x, new_x = self.of_input(x).chunk(3, dim=1)
        reset_h, update_h, new_h = self.of_state(state).chunk(3, dim=1)
        update = torch.sigmoid(update_x + update_h)
        new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
        return new + update * (state - new)


def _attend(query: Tensor, states: Tensor, real: Tensor) -> Tensor:
    """(B, D) queries over the tokens of (B, T, D) that are real: (B, D)."""
    scores = torch.bmm(states, query[:, :, None].to(states.dtype))[:, :, 0]  # (B, T)
    weights = scores.masked_fill(~real, -math.inf).softmax(dim=1)
    return torch.bmm(weights[:, None].to(states.dtype), states)[:, 0]


def _texts(states: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Token states as a rectangle, (B, T, D), and which tokens are the first and the second text's, (B, T) bool.

    The second text begins where token type 1 does. Where a tokenizer gives no types (RoBERTa's), it begins behind the
    first separator, one or two tokens; the separator is the token that ends an example. The first text has the special
    tokens before, the second one the last token; it may have no other.
    """
    ids, types, lengths = batch.input_ids, batch.token_type_ids, batch.lengths.long()[:, None]
    position = torch.arange(batch.max_seqlen, dtype=torch.int64, device=ids.device)[None]  # (1, T)
    if isinstance(batch, PackedBatch):
        places = (batch.cu_seqlens[: batch.size, None].long() + position).clamp(max=batch.n_tokens - 1)
        states = states.index_select(0, places.flatten()).view(*places.shape, -1)
        ids, types = ids[places], types[places]
    real = position < lengths
    separator = (ids == ids.gather(1, lengths - 1)) & real
    end = separator.int().argmax(dim=1, keepdim=True)  # of the first text
    twice = separator.gather(1, (end + 1).clamp(max=batch.max_seqlen - 1))
    behind = torch.minimum(end + 1 + twice, lengths - 1)
    typed = (types == 1) & real
    second = torch.where(typed.any(dim=1, keepdim=True), typed, real & (position >= behind))
    return states, real & ~second, second
