"""A fast tokenizer, and text to token arrays with it."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer, processors

from data_utils.errors import SettingError, error_line, in_one_line
from data_utils.json_file import read_json
from data_utils.names import slug
from data_utils.prefetch import prefetch

MAX_MAX_SEQ_LEN = 65_535
"""The start of segment 2 is stored as uint16."""
Texts = tuple[Sequence[str], Sequence[str] | None]
"""(N,) first or only sentences, and (N,) second ones or None."""
_PAD_NAMES = ("[PAD]", "<pad>")
_TEXT = "a"  # any text, to look at what is around it


@dataclass(frozen=True, slots=True)
class TokenizerHandle:
    """A `tokenizers.Tokenizer` with its name, hash and padding. Made by `load_tokenizer` or `wrap_tokenizer`.

    `encode_batches` sets the tokenizer's truncation, so one handle is used by one thread at a time.
    """

    tokenizer: Tokenizer
    name: str
    """Plain name, part of the cache path."""
    hash: str
    """Hex SHA-256 of the whole tokenizer without its truncation and padding settings."""
    vocab_size: int
    """Added tokens included; every token id is below it."""
    pad_id: int
    """Of padding, which no model reads: the end token's where the tokenizer has none of its own."""
    begins: bool = True
    """Whether the first token of every example is a special one."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """N examples end to end."""

    tokens: NDArray[Any]
    """(n_tokens,) uint16, or uint32 where the vocabulary needs it."""
    offsets: NDArray[np.int64]
    """(N + 1,) example i is ``tokens[offsets[i]:offsets[i + 1]]``."""
    segment: NDArray[np.uint16]
    """(N,) position within the example where token type 1 begins; 0 where it never does."""
    truncated: int
    """Examples that were longer than ``max_seq_len``."""


def load_tokenizer(path: str | Path, name: str | None = None) -> TokenizerHandle:
    """Load a fast tokenizer.

    Args:
        path: a folder with ``tokenizer.json`` (as ``save_pretrained`` writes it), or such a file.
        name: plain name for paths; the folder's name by default.

    Raises:
        SettingError: no or no readable ``tokenizer.json``, or a tokenizer without the special tokens of an encoder and
            without an end of text.
    """
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise SettingError(
            f"{file}: no such file; a fast tokenizer is needed: load the model's tokenizer with "
            "transformers.AutoTokenizer and save it there with save_pretrained"
        )
    try:
        tokenizer = Tokenizer.from_str(file.read_bytes().decode("utf-8"))
    except OSError:
        raise
    except MemoryError:
        raise SettingError(f"{file}: {error_line(MemoryError('to read it'))}") from None
    except Exception as error:  # the library raises bare Exception
        raise SettingError(f"{file}: not a tokenizer file: {in_one_line(error)}") from None
    try:
        pad, end = (_named(file.parent, token) for token in ("pad_token", "eos_token"))
        return wrap_tokenizer(tokenizer, name or slug(str(file.resolve().parent)), pad, end)
    except SettingError as error:
        raise SettingError(f"{file}: {error}") from None


def wrap_tokenizer(
    tokenizer: Tokenizer, name: str, pad_token: str | None = None, end_token: str | None = None
) -> TokenizerHandle:
    """Make a handle of a tokenizer in memory.

    A decoder's tokenizer adds no special token, or the one that begins a text; it is made to end each text of an
    example with the end token, so that pairs are divided and no example is empty.

    Args:
        tokenizer: its post-processor adds a first and a last token, or fewer tokens than two where ``end_token`` is
            given; truncation and padding settings are removed (sentence encoders ship with length 128 and padding
            switched on).
        name: plain name for paths.
        pad_token: text of the padding token; found by the tokenizer's padding settings or usual name by default.
        end_token: text of the token that ends a text, for a tokenizer of a decoder.

    Raises:
        SettingError: no first and last token, or no padding token.
    """
    settings = tokenizer.padding
    tokenizer.no_padding()
    tokenizer.no_truncation()
    end_id = None if end_token is None else tokenizer.token_to_id(end_token)
    begins = True
    if (added := len(tokenizer.encode("").ids)) < 2 and end_id is not None:
        begins = _end_every_text(tokenizer, end_id)
    elif added != 2:
        raise SettingError(
            f"tokenizer adds {added} special tokens to an empty text; an encoder's adds 2, such as [CLS] and [SEP]"
            + ("; a decoder's needs an eos_token in tokenizer_config.json" if added < 2 else "")
        )
    named = settings["pad_token"] if settings else None
    pad_ids = [tokenizer.token_to_id(text) for text in (pad_token, named, *_PAD_NAMES) if text is not None]
    pad_ids.append(end_id if added < 2 else None)
    pad_id = next((found for found in pad_ids if found is not None), None)
    if pad_id is None:
        raise SettingError(f"tokenizer has no padding token; it looks for {' or '.join(_PAD_NAMES)} or 'pad_token'")
    return TokenizerHandle(
        tokenizer=tokenizer,
        name=name,
        hash=hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
        # Ids need not be dense: the largest one counts, not the number of entries.
        vocab_size=1 + max(tokenizer.get_vocab(with_added_tokens=True).values()),
        pad_id=pad_id,
        begins=begins,
    )


def _end_every_text(tokenizer: Tokenizer, end_id: int) -> bool:
    """Let a tokenizer end each text of an example; returns whether it begins the first one, which it goes on to do.

    A tokenizer that ends its texts itself keeps its own end. Token types are 0 and 1.
    """
    sample = tokenizer.encode(_TEXT)
    begins, ends = (sample.special_tokens_mask[part] == [1] for part in (slice(1), slice(-1, None)))
    ids = {"END": sample.ids[-1] if ends and not begins else end_id}
    if begins:
        ids["BEGIN"] = sample.ids[0]
    tokens = [{"id": name, "ids": [i], "tokens": [str(tokenizer.id_to_token(i))]} for name, i in ids.items()]
    single = ["BEGIN", "$A", "END"] if begins else ["$A", "END"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=[*single, "$B:1", "END:1"], special_tokens=tokens
    )
    return begins


def encode_batches(
    handle: TokenizerHandle, batches: Iterable[Texts], *, pair: bool, max_seq_len: int
) -> Iterator[Encoded]:
    """Tokenise batches of sentences or sentence pairs, special tokens included.

    A long example loses tokens from the end of its longer sentence until it fits ("longest first"); it is counted
    and never dropped. The next batch is tokenised, by the tokenizer's own threads, while the caller works on this one.

    Args:
        handle: the tokenizer.
        batches: first or only sentences, which may be empty strings, and second sentences or None.
        pair: whether the batches hold second sentences.
        max_seq_len: most tokens of an example, special tokens included; at most 65535.

    Yields:
        One `Encoded` per batch, in order.

    Raises:
        SettingError: ``max_seq_len`` out of range, or token types that are not 0...01...1.
    """
    specials = handle.tokenizer.num_special_tokens_to_add(pair)
    least = specials + (2 if pair else 1)
    if not least <= max_seq_len <= MAX_MAX_SEQ_LEN:
        raise SettingError(f"max_seq_len is {max_seq_len}; with this tokenizer it is in [{least}, {MAX_MAX_SEQ_LEN}]")
    dtype = np.uint16 if handle.vocab_size <= 2**16 else np.uint32

    def tokenise(batch: Texts) -> list[Encoding]:
        premise, hypothesis = batch
        texts: Any = premise if hypothesis is None else list(zip(premise, hypothesis, strict=True))
        return handle.tokenizer.encode_batch_fast(texts)

    handle.tokenizer.enable_truncation(max_seq_len, strategy="longest_first")
    try:
        for encodings in prefetch(batches, tokenise):
            yield _to_arrays(encodings, pair, dtype)
    finally:
        handle.tokenizer.no_truncation()


def _to_arrays(encodings: list[Encoding], pair: bool, dtype: type[np.unsignedinteger[Any]]) -> Encoded:
    lengths = np.array([len(encoding) for encoding in encodings], dtype=np.int64)
    offsets = np.zeros(len(encodings) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if pair:
        types = np.frombuffer(b"".join(bytes(encoding.type_ids) for encoding in encodings), dtype=np.uint8)
        segment = _segment_starts(types, lengths)
    else:
        segment = np.zeros_like(lengths)
    return Encoded(
        tokens=np.fromiter(chain.from_iterable(e.ids for e in encodings), dtype, int(offsets[-1])),
        offsets=offsets,
        segment=segment.astype(np.uint16),
        truncated=sum(bool(encoding.overflowing) for encoding in encodings),
    )


def _segment_starts(types: NDArray[np.uint8], length: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position in each example where token type 1 begins, 0 for nowhere; types come end to end."""
    starts = np.cumsum(length) - length
    ones = np.add.reduceat(types, starts, dtype=np.int64)
    segment = np.where(ones > 0, length - ones, 0)
    position = np.arange(len(types)) - np.repeat(starts, length)
    first = np.repeat(segment, length)
    if not np.array_equal(types, (first > 0) & (position >= first)):
        raise SettingError("tokenizer gives token types that are not 0s followed by 1s, which a cache cannot hold")
    return segment


def _named(folder: Path, kind: str) -> str | None:
    """Return a special token, such as ``pad_token``, that the files beside ``tokenizer.json`` name."""
    for file in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
        try:
            token = read_json(file).get(kind)
        except (OSError, SettingError):
            continue  # these files are optional; the usual names are tried without them
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            return text
    return None
