"""Whole runs of every family: they train, stop, go on, are scored and predict, on padded and on packed batches."""

import json

import numpy as np
import pytest

from data_utils.canonical_tsv import read_canonical
from data_utils.errors import SettingError
from data_utils.text_rows import TextRows
from mt_dnn.encoder.families import PACKED_FAMILIES
from mt_dnn.run import run
from mt_dnn.run_id import run_dir
from mt_dnn.trained.load import load_run, read_run
from mt_dnn.trained.prediction import predict
from tests.families import DECODERS, FAMILIES, make_family
from tests.mt_dnn.test_resume import SLOWLY, assert_same_run, run_in_parts


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {family: make_family(root / f"tiny-{family}", family) for family in FAMILIES}


OFTEN = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "albert")  # run packed in other tests
LAYOUTS = [(family, "padded") for family in FAMILIES] + [
    pytest.param(family, "packed", marks=[pytest.mark.slow] * (family in OFTEN)) for family in PACKED_FAMILIES
]


@pytest.mark.parametrize(("family", "attention"), LAYOUTS)
def test_a_run_of_every_family(tiny_run, tmp_path, encoders, family, attention):
    settings = {
        "init_checkpoint": str(encoders[family]), "attention": attention, "epochs": 1, "batch_size": 24,
        "method": "pats", "learning_rate": 1e-2, **SLOWLY,
    }  # fmt: skip
    settings |= {"train_datasets": "toyscore"} if attention == "packed" else {}  # pairs
    whole, broken = (tiny_run(output_dir=tmp_path / name, **settings) for name in ("whole", "broken"))
    result = run(whole)
    assert (result.steps, result.status.value in ("ok", "degenerate")) == (3, True), result.error
    run_in_parts(broken, 1, 2)
    assert_same_run(whole, broken)
    model = load_run(read_run(run_dir(whole)), "last", device="cpu")
    name = f"{whole.task}_dev"
    rows = read_canonical(whole.data_dir / f"{name}.tsv", model.task_def)
    ((_, logits),) = predict(model, [TextRows(rows.uids, rows.premise, rows.hypothesis)])
    np.testing.assert_allclose(logits, np.load(run_dir(whole) / "predictions.npz")[f"{name}.last_logits"], atol=1e-5)
    assert np.ptp(logits, axis=0).max() > 1e-3


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_reads_its_last_token(tiny_run, encoders, family):
    """Other padding changes nothing, and the last word does."""
    from mt_dnn.encoder.batch import pad
    from mt_dnn.encoder.model import load_encoder
    from mt_dnn.encoder.source import resolve_encoder
    from tests.mt_dnn.encoder.small_encoders import make_cache

    encoder = load_encoder(resolve_encoder(str(encoders[family])), hidden_dropout=0.0, attention_dropout=0.0)
    cache = make_cache([5, 9])
    cache.tokens %= 15
    one, other = (encoder.pooled(pad(cache, [0, 1], pad_id)) for pad_id in (0, 7))
    np.testing.assert_array_equal(one.detach(), other.detach())
    cache.tokens[4] += 1
    changed = encoder.pooled(pad(cache, [0, 1], 0))
    assert not np.allclose(changed[0].detach(), one[0].detach(), atol=1e-4)
    np.testing.assert_array_equal(changed[1].detach(), one[1].detach())


def test_a_bidirectional_encoder_whose_texts_begin_with_a_word_is_refused(tiny_run, encoders, tmp_path):
    import shutil

    folder = shutil.copytree(encoders["bert"], tmp_path / "tiny-bert")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "[SEP]"}))
    config = tiny_run(init_checkpoint=str(folder))
    with pytest.raises(
        SettingError, match=r"^encoder: tiny-bert is read at the first token .* save it with one"
    ) as caught:
        run(config)
    assert "\n" not in str(caught.value)
    assert not (run_dir(config) / "run.json").exists()
