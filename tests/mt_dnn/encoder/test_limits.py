"""Examples that do not fit into the encoder's tables are refused before the first step, with row and uid."""

import json
import shutil

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from data_utils.errors import SettingError
from data_utils.token_cache import TokenCache
from mt_dnn.encoder.limits import EncoderLimits
from mt_dnn.run import run
from mt_dnn.run_id import run_dir

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 30,
    "embedding_size": 16, "dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 12,
    "num_key_value_heads": 2,
}  # fmt: skip
FAMILIES = {
    "bert": 12, "electra": 12, "albert": 12, "distilbert": 12, "roformer": 12,
    "roberta": 10, "xlm-roberta": 10, "camembert": 10, "mpnet": 10,
    "deberta-v2": 12, "modernbert": None, "nomic_bert": None, "gpt2": 12, "llama": None,
}  # fmt: skip


def small_model(family, **changes):
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(family)
    for key, value in {**SMALL, **changes}.items():
        if hasattr(config, key):
            setattr(config, key, value)
    if config.pad_token_id is None or config.pad_token_id >= SMALL["vocab_size"]:
        config.pad_token_id = 1
    return AutoModel.from_config(config).eval()


def takes(model, length):
    ids = torch.full((1, length), 5)
    try:
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize(("family", "most"), FAMILIES.items())
def test_limits_are_what_the_model_takes(family, most):
    model = small_model(family)
    assert EncoderLimits.of(model) == EncoderLimits(most, 30, 2 if most == 10 else 0)
    assert takes(model, most or 50)
    assert most is None or not takes(model, most + 1)


def test_relative_positions_have_no_limit():
    relative = {"position_biased_input": False, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
    model = small_model("deberta-v2", **relative)
    assert EncoderLimits.of(model).max_tokens is None
    assert takes(model, 50)


def make_cache(tmp_path, lengths, tokens):
    n = len(lengths)
    offsets = np.cumsum([0, *lengths])
    uids = np.array([f"u{i}".encode() for i in range(n)])
    return TokenCache(tmp_path, np.array(tokens, np.uint16), offsets, np.zeros(n, np.uint16), np.zeros(n), uids, {})


def test_only_rows_that_are_used_count(tmp_path):
    limits = EncoderLimits(4, 10)
    cache = make_cache(tmp_path, [2, 5, 3, 2], [1] * 7 + [1, 10, 1] + [1, 12])
    limits.check("toy_train", cache, np.array([0]))
    EncoderLimits(None, 13).check("toy_train", cache)
    with pytest.raises(SettingError, match=r"^toy_train: row 2 \(uid 'u1'\) has 5 tokens, .*; set --max_seq_len 4,"):
        limits.check("toy_train", cache, np.array([0, 1]))
    with pytest.raises(SettingError, match=r"^toy_train: row 4 \(uid 'u3'\) holds token id 12, .* have 10 rows"):
        limits.check("toy_train", cache, np.array([0, 3]))
    with pytest.raises(SettingError, match=r"^toy_train: row 3 \(uid 'u2'\) holds token id 10, "):
        limits.check("toy_train", cache, np.array([2, 3]))
    with pytest.raises(SettingError, match=r"^texts: row 11 \(uid 'b'\) has 5 tokens, .* takes 4; shorten"):
        limits.check("texts", cache, uids=["a", "b", "c", "d"], first=10)


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_long_row_is_refused_before_the_run_begins(tiny_run, tiny_task, tmp_path, split):
    data = shutil.copytree(tiny_task, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    with (data / f"toy_{split}.tsv").open("a") as file:
        file.write("long\t1\t" + "good " * 700 + "\n")
    row = {"train": 71, "dev": 31}[split]
    config = tiny_run(data_dir=data, max_seq_len=1024)
    with pytest.raises(SettingError, match=rf"^toy_{split}: row {row} \(uid 'long'\) has 702 tokens, .* takes 64; set"):
        run(config)
    assert [path.name for path in run_dir(config).iterdir()] == [".lock"]
    run(tiny_run(data_dir=data, max_seq_len=64, epochs=1))  # cut, as the message says


def test_a_token_that_the_weights_lack_is_refused_before_the_run_begins(tiny_run, tiny_encoder, tiny_task, tmp_path):
    encoder = shutil.copytree(tiny_encoder, tmp_path / "tiny-bert")
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    tokenizer.add_tokens(["newword"])
    tokenizer.save(str(encoder / "tokenizer.json"))
    data = shutil.copytree(tiny_task, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    size = json.loads((encoder / "config.json").read_text())["vocab_size"]
    run(tiny_run(data_dir=data, init_checkpoint=str(encoder), epochs=1))  # no row holds it
    with (data / "toy_dev.tsv").open("a") as file:
        file.write("new\t1\tgood newword\n")
    config = tiny_run(data_dir=data, init_checkpoint=str(encoder), seed=2)
    with pytest.raises(SettingError, match=rf"^toy_dev: row 31 \(uid 'new'\) holds token id {size}, .* {size} rows"):
        run(config)
    assert [path.name for path in run_dir(config).iterdir()] == [".lock"]
