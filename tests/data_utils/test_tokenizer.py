import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors

from data_utils.errors import SettingError
from data_utils.tokenizer import Encoded, TokenizerHandle, encode_batches, load_tokenizer, wrap_tokenizer
from tests.data_utils.conftest import make_bytelevel, make_wordpiece

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def encode(handle: TokenizerHandle, premise: list[str], hypothesis: list[str] | None, max_seq_len: int) -> Encoded:
    (encoded,) = encode_batches(handle, [(premise, hypothesis)], pair=hypothesis is not None, max_seq_len=max_seq_len)
    return encoded


def rows(encoded: Encoded) -> list[list[int]]:
    return [part.tolist() for part in np.split(encoded.tokens, encoded.offsets[1:-1])]


def words(handle: TokenizerHandle, ids: list[int]) -> list[str]:
    return [handle.tokenizer.id_to_token(i) for i in ids]


def test_bert_pair(wordpiece: TokenizerHandle) -> None:
    encoded = encode(wordpiece, ["the cat", "", "a"], ["a dog ran", "sun", ""], 16)
    assert [" ".join(words(wordpiece, row)) for row in rows(encoded)] == [
        "[CLS] the cat [SEP] a dog ran [SEP]",
        "[CLS] [SEP] sun [SEP]",
        "[CLS] a [SEP] [SEP]",
    ]
    assert encoded.segment.tolist() == [4, 2, 3]
    assert encoded.offsets.tolist() == [0, 8, 12, 16]
    assert encoded.truncated == 0
    assert encoded.tokens.dtype == np.uint16
    assert encoded.segment.dtype == np.uint16


def test_roberta_pair_has_no_segments(bytelevel: TokenizerHandle) -> None:
    encoded = encode(bytelevel, ["a", ""], ["b", ""], 16)
    assert [words(bytelevel, row) for row in rows(encoded)] == [
        ["<s>", "a", "</s>", "</s>", "b", "</s>"],
        ["<s>", "</s>", "</s>", "</s>"],
    ]
    assert encoded.segment.tolist() == [0, 0]


def test_single_sentences(wordpiece: TokenizerHandle) -> None:
    encoded = encode(wordpiece, ["the cat", ""], None, 16)
    assert [words(wordpiece, row) for row in rows(encoded)] == [["[CLS]", "the", "cat", "[SEP]"], ["[CLS]", "[SEP]"]]
    assert encoded.segment.tolist() == [0, 0]


def test_special_ids(wordpiece: TokenizerHandle, bytelevel: TokenizerHandle) -> None:
    assert (wordpiece.tokenizer.encode("").ids, wordpiece.pad_id) == ([2, 3], 0)
    assert (bytelevel.tokenizer.encode("").ids, bytelevel.pad_id) == ([0, 2], 1)


DECODERS = {
    "nothing": (processors.ByteLevel(trim_offsets=True), "the Ġcat </s>", "the Ġcat </s> a </s>"),
    "begin": (
        processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]),
        "<s> the Ġcat </s>",
        "<s> the Ġcat </s> a </s>",
    ),
    "end": (
        processors.TemplateProcessing(single="$A <unk>", pair="$A <unk> $B", special_tokens=[("<unk>", 3)]),
        "the Ġcat <unk>",
        "the Ġcat <unk> a <unk>",
    ),
}


@pytest.mark.parametrize("adds", DECODERS)
def test_a_decoders_texts_are_ended_each(tmp_path: Path, adds: str) -> None:
    processor, single, pair = DECODERS[adds]
    tokenizer = make_bytelevel()
    tokenizer.post_processor = processor
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    handle = load_tokenizer(tmp_path, "x")
    assert handle.begins == (adds == "begin")
    assert [" ".join(words(handle, row)) for row in rows(encode(handle, ["the cat"], None, 16))] == [single]
    pairs = encode(handle, ["the cat", ""], ["a", ""], 16)
    assert " ".join(words(handle, rows(pairs)[0])) == pair
    assert pairs.segment.tolist() == [len(single.split()), len(single.split()) - 2]
    shortest = encode(handle, ["the cat"], ["a a"], len(single.split()) + 1)  # the end of each text survives truncation
    assert " ".join(words(handle, rows(shortest)[0])) == pair.replace(" Ġcat", "")


def test_a_decoder_without_a_pad_token_pads_with_its_end() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<end>": 1}, unk_token="a"))
    tokenizer.add_special_tokens(["<end>"])
    assert wrap_tokenizer(tokenizer, "x", end_token="<end>").pad_id == 1


def test_a_decoder_without_an_end_is_refused() -> None:
    tokenizer = make_bytelevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    with pytest.raises(
        SettingError, match=r"adds 0 special tokens .* a decoder's needs an eos_token in tokenizer_config"
    ):
        wrap_tokenizer(tokenizer, "x", end_token="<nosuch>")


@pytest.mark.parametrize(
    ("premise", "hypothesis", "limit", "expected"),
    [
        (10, 2, 9, (4, 2)),  # only the longer one loses
        (2, 10, 9, (2, 4)),
        (10, 10, 9, (3, 3)),
        (10, 10, 10, (3, 4)),  # the library leaves the odd token to the second
        (3, 3, 9, (3, 3)),  # fits
    ],
)
def test_truncation_is_longest_first(
    wordpiece: TokenizerHandle, premise: int, hypothesis: int, limit: int, expected: tuple[int, int]
) -> None:
    encoded = encode(wordpiece, ["cat " * premise], ["dog " * hypothesis], limit)
    (row,) = rows(encoded)
    kept = (row.count(wordpiece.tokenizer.token_to_id("cat")), row.count(wordpiece.tokenizer.token_to_id("dog")))
    assert kept == expected
    assert [row[0], row[-1]] == wordpiece.tokenizer.encode("").ids
    assert encoded.segment.tolist() == [expected[0] + 2]
    assert encoded.truncated == (kept != (premise, hypothesis))


def test_truncated_rows_are_counted_and_kept(wordpiece: TokenizerHandle) -> None:
    encoded = encode(wordpiece, ["cat " * n for n in range(10)], None, 6)
    assert np.diff(encoded.offsets).tolist() == [2, 3, 4, 5, 6, 6, 6, 6, 6, 6]
    assert encoded.truncated == 5


def test_batches_come_back_in_order_and_alike(wordpiece: TokenizerHandle) -> None:
    premise, hypothesis = ["cat " * (n % 7) for n in range(20)], ["dog " * (n % 5) for n in range(20)]
    whole = encode(wordpiece, premise, hypothesis, 9)
    batches = [(premise[i : i + 3], hypothesis[i : i + 3]) for i in range(0, 20, 3)]
    parts = list(encode_batches(wordpiece, iter(batches), pair=True, max_seq_len=9))
    assert [len(part.segment) for part in parts] == [3] * 6 + [2]
    assert np.concatenate([part.tokens for part in parts]).tolist() == whole.tokens.tolist()
    assert np.concatenate([np.diff(part.offsets) for part in parts]).tolist() == np.diff(whole.offsets).tolist()
    assert np.concatenate([part.segment for part in parts]).tolist() == whole.segment.tolist()
    assert sum(part.truncated for part in parts) == whole.truncated > 0


def test_at_most_two_batches_are_read_ahead(wordpiece: TokenizerHandle) -> None:
    taken: list[int] = []

    def batches() -> Iterator[tuple[list[str], None]]:
        for i in range(10):
            taken.append(i)
            yield ["cat"], None

    stream = encode_batches(wordpiece, batches(), pair=False, max_seq_len=9)
    for done in range(1, 5):
        next(stream)
        assert len(taken) == done + 1


def test_an_error_while_reading_ends_the_stream_and_the_truncation(wordpiece: TokenizerHandle) -> None:
    def batches() -> Iterator[tuple[list[str], None]]:
        yield ["cat"], None
        raise SettingError("line 2 is bad")

    with pytest.raises(SettingError, match="line 2 is bad"):
        list(encode_batches(wordpiece, batches(), pair=False, max_seq_len=9))
    assert wordpiece.tokenizer.truncation is None


@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5), limit=st.integers(6, 40))
def test_any_text_encodes_as_one_at_a_time(pairs: list[tuple[str, str]], limit: int) -> None:
    for handle in (WORDPIECE, BYTELEVEL):
        encoded = encode(handle, [a for a, _ in pairs], [b for _, b in pairs], limit)
        truncated = 0
        for (a, b), row, segment in zip(pairs, rows(encoded), encoded.segment, strict=True):
            full = handle.tokenizer.encode(a, b)
            truncated += len(full) > limit
            assert len(row) == min(len(full), limit)
            types = [int(segment > 0 and i >= segment) for i in range(len(row))]
            if len(full) <= limit:
                assert row == full.ids
                assert types == full.type_ids
        assert encoded.truncated == truncated


@settings(max_examples=100, deadline=None)
@given(text=TEXT)
def test_bytelevel_round_trip(text: str) -> None:
    special = BYTELEVEL.tokenizer.get_added_tokens_decoder().values()
    assume(not any(token.content in text for token in special))  # hypothesis knows the names in our sources
    encoded = encode(BYTELEVEL, [text], None, 500)
    assert BYTELEVEL.tokenizer.decode(encoded.tokens.tolist(), skip_special_tokens=True) == text


WORDPIECE = wrap_tokenizer(make_wordpiece(), "w")
BYTELEVEL = wrap_tokenizer(make_bytelevel(), "b")


def test_big_vocabularies_take_uint32(wordpiece: TokenizerHandle) -> None:
    def with_vocabulary(size: int) -> TokenizerHandle:
        vocab = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "cat": size - 1}
        tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        return wrap_tokenizer(tokenizer, "big")

    for size, dtype in ((2**16, np.uint16), (2**16 + 1, np.uint32), (250_002, np.uint32)):
        encoded = encode(with_vocabulary(size), ["cat"], None, 8)
        assert encoded.tokens.dtype == dtype
        assert encoded.tokens.tolist() == [2, size - 1, 3]


@pytest.mark.parametrize(("pair", "limit"), [(True, 4), (False, 2), (True, 0), (True, -1), (True, 65_536)])
def test_max_seq_len_is_checked(wordpiece: TokenizerHandle, pair: bool, limit: int) -> None:
    with pytest.raises(SettingError, match=r"max_seq_len is -?\d+; with this tokenizer it is in \[[35], 65535\]"):
        encode(wordpiece, ["a"], ["b"] if pair else None, limit)


def test_strange_token_types_are_refused() -> None:
    tokenizer = make_wordpiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS]:1 $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    with pytest.raises(SettingError, match="token types that are not 0s followed by 1s"):
        encode(wrap_tokenizer(tokenizer, "strange"), ["a", "a"], ["b", "b"], 9)


def test_load_ignores_the_files_own_truncation_and_padding(tmp_path: Path, wordpiece: TokenizerHandle) -> None:
    tokenizer = make_wordpiece()
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=12, pad_token="[PAD]", pad_id=0)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path, "tiny-wordpiece")
    assert loaded.hash == wordpiece.hash
    assert len(encode(loaded, ["cat " * 20], None, 512).tokens) == 22


def test_hash_follows_the_content(wordpiece: TokenizerHandle, bytelevel: TokenizerHandle) -> None:
    other = make_wordpiece()
    other.add_tokens(["newword"])
    assert len({wordpiece.hash, bytelevel.hash, wrap_tokenizer(other, "x").hash}) == 3
    assert wrap_tokenizer(make_wordpiece(), "other-name").hash == wordpiece.hash


def test_name_is_the_folders(tmp_path: Path) -> None:
    (tmp_path / "my bert").mkdir()
    make_wordpiece().save(str(tmp_path / "my bert" / "tokenizer.json"))
    assert load_tokenizer(tmp_path / "my bert").name == "my-bert"
    assert load_tokenizer(tmp_path / "my bert" / "tokenizer.json", "given").name == "given"


@pytest.mark.parametrize("form", ["cat", {"content": "cat"}])
def test_pad_token_is_the_one_named_beside(tmp_path: Path, form: object) -> None:
    make_wordpiece().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": form}))
    loaded = load_tokenizer(tmp_path, "x")
    assert loaded.pad_id == loaded.tokenizer.token_to_id("cat")


def test_useless_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"tokenizer.json: no such file; a fast tokenizer is needed"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SettingError, match=r"tokenizer.json: not a tokenizer file") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    plain = make_wordpiece()
    plain.post_processor = None
    with pytest.raises(SettingError, match="adds 0 special tokens"):
        wrap_tokenizer(plain, "plain")
    unpadded = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}, unk_token="[UNK]"))
    unpadded.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    with pytest.raises(SettingError, match="no padding token"):
        wrap_tokenizer(unpadded, "unpadded")


def test_short_memory_and_lost_files_are_no_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tokenizer.json"
    make_wordpiece().save(str(file))

    def fail(error: BaseException) -> None:
        raise error

    monkeypatch.setattr(Path, "read_bytes", lambda path: fail(MemoryError()))
    with pytest.raises(SettingError, match="not enough memory to read it") as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).startswith(f"{file}: ")
    monkeypatch.setattr(Path, "read_bytes", lambda path: fail(OSError(24, "Too many open files", str(path))))
    with pytest.raises(OSError, match="Too many open files"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("beside", [b"[]", b"\xff", b"[" * 100_000, b'{"pad_token": 3}'])
def test_what_lies_beside_a_tokenizer_is_optional(tmp_path: Path, beside: bytes) -> None:
    make_wordpiece().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_bytes(beside)
    assert load_tokenizer(tmp_path).pad_id == 0
