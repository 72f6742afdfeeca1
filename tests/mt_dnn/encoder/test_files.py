import json
import shutil

import pytest
from transformers import BartConfig, BertConfig, T5Config

from data_utils.errors import SettingError
from data_utils.tokenizer import load_tokenizer
from mt_dnn.encoder.model import load_encoder
from mt_dnn.encoder.source import resolve_encoder


@pytest.fixture
def folder(tiny_encoder, tmp_path):
    return shutil.copytree(tiny_encoder, tmp_path / "my-bert")


def refusal(folder):
    with pytest.raises(SettingError) as caught:
        load_encoder(resolve_encoder(str(folder)), hidden_dropout=0.1, attention_dropout=0.1)
    message = str(caught.value)
    assert message.startswith("encoder: ")
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"null", "is damaged: it holds a NoneType, not a mapping"),
        (b"1", "is damaged: it holds a int, not a mapping"),
        (b"[]", "is damaged: it holds a list, not a mapping"),
        (b"", "is damaged: not JSON"),
        (b"\xff\xfe{}", "is damaged: not JSON"),
        (b'{"name": "\xe9"}', "is damaged: not JSON"),
        (b"[" * 100_000, "is damaged: it is nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "is damaged: it is nested too deeply"),
        (b"{}", "Unrecognized model"),
        (b'{"model_type": "nosuch"}', "my-bert is of type 'nosuch', not a bidirectional encoder"),
        (b'{"model_type": 3}', "cannot read"),
    ],
)
def test_a_config_that_is_none_is_told_in_one_line(folder, content, reason):
    (folder / "config.json").write_bytes(content)
    assert reason in refusal(folder)


@pytest.mark.parametrize("value", ["abc", -3, 0, None, 1.5, [1], True, 10**12, 10**400])
@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_sizes_that_no_encoder_has_are_refused_by_name(folder, name, value):
    """Before anything of the size is made: a million layers take a machine down."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    assert name in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_hidden_layers": 3}, "lacks 16 weights of the encoder"),
        ({"hidden_size": 64}, "its weights have other shapes than its config.json says"),
        ({"hidden_act": "abc"}, "KeyError 'abc'"),
        ({"initializer_range": -0.02}, "initializer_range is -0.02; legal: a number in (0, 100)"),
        ({"initializer_range": float("nan")}, "initializer_range is nan; legal: a number in (0, 100)"),
        ({"max_position_embeddings": "abc"}, "max_position_embeddings"),
        ({"type_vocab_size": -1}, "type_vocab_size"),
        ({"pad_token_id": -1}, "pad_token_id is -1; legal: an integer in [0, 16777216]"),
        ({"chunk_size_feed_forward": 3}, "chunk_size_feed_forward is 3; legal: an integer in [0, 0]"),
        ({"is_decoder": True}, "my-bert has a decoder (bert), it is no bidirectional encoder"),
        ({"quantization_config": 3}, "cannot"),
    ],
)
def test_settings_that_do_not_fit_the_weights_are_told(folder, changes, reason):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert reason in refusal(folder)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (T5Config(), "my-bert is of type 't5', not a bidirectional encoder"),
        (BartConfig(), "my-bert has a decoder (bart), it is no bidirectional encoder"),
        (BertConfig(is_decoder=True), "my-bert has a decoder (bert), it is no bidirectional encoder"),
    ],
)
def test_an_encoder_decoder_is_none(folder, config, reason):
    config.save_pretrained(folder)
    assert reason in refusal(folder)


@pytest.mark.parametrize("content", [b"null", b"1", b"", b"\xff", b"[" * 100_000, b'{"pad_token": {"content": 3}}'])
def test_a_broken_file_beside_the_tokenizer_is_passed_over(folder, content):
    (folder / "tokenizer_config.json").write_bytes(content)
    assert load_tokenizer(folder).pad_id == 0
