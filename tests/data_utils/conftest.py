from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from data_utils.task_def import DataFormat, Metric, TaskDef, TaskType
from data_utils.token_cache import TokenCache, ensure_cache
from data_utils.tokenizer import TokenizerHandle, wrap_tokenizer

WORDS = ["a", "the", "cat", "dog", "sat", "ran", "on", "under", "mat", "sun", "big", "it", "was", "not", "null", "nan"]


def make_wordpiece() -> Tokenizer:
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), *WORDS]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(dict.fromkeys(vocab))}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def make_bytelevel() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


@pytest.fixture(scope="session")
def wordpiece() -> TokenizerHandle:
    """BERT-like: [CLS] a [SEP] b [SEP], token types 0 and 1."""
    return wrap_tokenizer(make_wordpiece(), "tiny-wordpiece")


@pytest.fixture(scope="session")
def bytelevel() -> TokenizerHandle:
    """RoBERTa-like: <s> a </s></s> b </s>, token types all 0, any text without unknown tokens."""
    return wrap_tokenizer(make_bytelevel(), "tiny-bytelevel")


@pytest.fixture(scope="session")
def wordpiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers") / "tiny-bert"
    folder.mkdir()
    make_wordpiece().save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


@pytest.fixture(scope="session")
def pair_task() -> TaskDef:
    return TaskDef(
        name="pair",
        data_format=DataFormat.PremiseAndOneHypothesis,
        task_type=TaskType.Classification,
        n_class=2,
        metric_meta=(Metric.ACC, Metric.F1, Metric.MCC),
        labels=("no", "yes"),
    )


@pytest.fixture(scope="session")
def single_task() -> TaskDef:
    return TaskDef(
        name="single",
        data_format=DataFormat.PremiseOnly,
        task_type=TaskType.Classification,
        n_class=3,
        metric_meta=(Metric.ACC,),
    )


@pytest.fixture(scope="session")
def score_task() -> TaskDef:
    return TaskDef(
        name="score",
        data_format=DataFormat.PremiseAndOneHypothesis,
        task_type=TaskType.Regression,
        n_class=1,
        metric_meta=(Metric.Pearson, Metric.Spearman),
    )


PAIRS = [
    ("u0", "yes", "the cat sat on the mat", "a dog ran"),
    ("u1", "no", "", "the sun was big"),
    ("u2", "yes", "NA", ""),
    ("u3", "no", 'he said "no', "null"),
    ("u4", "no", "a cat " * 20, "a big dog ran under the sun " * 3),
    ("u5", "yes", "", ""),
]


@pytest.fixture(scope="session")
def pair_tsv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("canonical") / "pair_train.tsv"
    path.write_bytes("".join("\t".join(row) + "\n" for row in PAIRS).encode())
    return path


@pytest.fixture(scope="session")
def pair_cache(
    pair_tsv: Path, pair_task: TaskDef, wordpiece: TokenizerHandle, tmp_path_factory: pytest.TempPathFactory
) -> TokenCache:
    folder = tmp_path_factory.mktemp("cache") / "pair_train"
    return ensure_cache(pair_tsv, pair_task, wordpiece, folder, 40)


@pytest.fixture
def make_cache(
    tmp_path: Path, pair_tsv: Path, pair_task: TaskDef, wordpiece: TokenizerHandle
) -> Callable[[], TokenCache]:
    """Build (or open) a cache of this test's own, to be damaged."""
    return lambda: ensure_cache(pair_tsv, pair_task, wordpiece, tmp_path / "cache" / "pair_train", 40)
