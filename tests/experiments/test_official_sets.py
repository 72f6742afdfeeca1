"""Two or three rows of every set in its release's form, and the canonical rows that are made of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_utils.canonical_tsv import read_canonical
from data_utils.official_set import OfficialSet
from data_utils.task_def import load_task_defs
from experiments.benchmark import task_titles
from experiments.nli import nli_prepro
from experiments.textclass import textclass_prepro

SETS = {**nli_prepro.SETS, **textclass_prepro.SETS}
FILES = {name: Path(module.__file__) for module in (nli_prepro, textclass_prepro) for name in module.SETS}
DEFINITIONS = {
    **load_task_defs(Path(nli_prepro.__file__).with_name("nli_task_def.yml")),
    **load_task_defs(Path(textclass_prepro.__file__).with_name("textclass_task_def.yml")),
}


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def snli(label: str, a: str, b: str) -> dict[str, Any]:
    return {"annotator_labels": [label], "gold_label": label, "sentence1": a, "sentence2": b, "pairID": "1.jpg#0"}


SICK_HEAD = "pair_ID\tsentence_A\tsentence_B\tentailment_label\trelatedness_score\tSemEval_set\n"
SICK = (
    SICK_HEAD + '7\ta "q\tb\tNEUTRAL\t4.5\tTRAIN\n9\tc\td\tENTAILMENT\t3\tTEST\n8\te\tf\tCONTRADICTION\t1.25\tTRIAL\n'
)
RELEASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "snli": (
        {"snli_1.0_train.jsonl": lines(snli("neutral", "a", "b"), snli("-", "x", "y"), snli("entailment", "c", 'd "'))},
        {"train": '0\tneutral\ta\tb\n1\tentailment\tc\td "\n'},
    ),
    "scitail": (
        {"snli_format/scitail_1.0_dev.txt": lines(snli("entailment", "a", "b"), snli("neutral", "c", "d"))},
        {"dev": "0\tentails\ta\tb\n1\tneutral\tc\td\n"},
    ),
    "sick": (
        {"SICK.txt": SICK},
        {"train": '7\tneutral\ta "q\tb\n', "dev": "8\tcontradiction\te\tf\n", "test": "9\tentailment\tc\td\n"},
    ),
    "sickrel": (
        {"SICK.txt": SICK},
        {"train": '7\t4.5\ta "q\tb\n', "dev": "8\t1.25\te\tf\n", "test": "9\t3\tc\td\n"},
    ),
    **{
        f"anlir{n}": (
            {f"R{n}/dev.jsonl": lines({"uid": "u1", "context": "a", "hypothesis": "b", "label": "c", "tag": "x"})},
            {"dev": "u1\tcontradiction\ta\tb\n"},
        )
        for n in (1, 2, 3)
    },
    "cb": (
        {
            "val.jsonl": lines({"premise": "a", "hypothesis": "b", "label": "contradiction", "idx": 0}),
            "test.jsonl": lines({"premise": "c", "hypothesis": "d", "idx": 0}),
        },
        {"dev": "0\tcontradiction\ta\tb\n", "test": "0\tcontradiction\tc\td\n"},
    ),
    "boolq": (
        {
            "train.jsonl": lines({"question": "q", "passage": "p", "idx": 0, "label": True}),
            "test.jsonl": lines({"question": "q", "passage": "p", "idx": 0}),
        },
        {"train": "0\ttrue\tp\tq\n", "test": "0\tfalse\tp\tq\n"},
    ),
    "trec": (
        {"TREC_10.label": "NUM:dist How far ?\nLOC:city Which sister\xf0city is caf\xe9 ?\n"},
        {"test": "0\tNUM\tHow far ?\n1\tLOC\tWhich sister city is caf\xe9 ?\n"},
    ),
    "agnews": (
        {"test.csv": '"3","A ""b""","c, d"\n"4","e","f"\n'},
        {"test": '0\tBusiness\tA "b" c, d\n1\tSci/Tech\te f\n'},
    ),
    "mr": (
        {
            f"rt-polaritydata/rt-polarity.{label}": "".join(f" {label} caf\xe9 {i} . \n" for i in range(10))
            for label in ("pos", "neg")
        },
        {
            "train": "".join(
                f"{8 * (label == 'neg') + i}\t{label}\t{label} caf\xe9 {i} .\n"
                for label in ("pos", "neg")
                for i in range(8)
            ),
            "dev": "0\tpos\tpos caf\xe9 8 .\n1\tneg\tneg caf\xe9 8 .\n",
            "test": "0\tpos\tpos caf\xe9 9 .\n1\tneg\tneg caf\xe9 9 .\n",
        },
    ),
    "sst5": (
        {"dev.jsonl": lines({"text": "a", "label": 4, "label_text": "very positive"})},
        {"dev": "0\tvery positive\ta\n"},
    ),
}


def main_of(name: str) -> Any:
    return nli_prepro.main if name in nli_prepro.SETS else textclass_prepro.main


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_becomes_canonical_files(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    files, expected = RELEASES[name]
    for file, text in files.items():
        path = tmp_path / SETS[name].folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("latin-1"))
    assert main_of(name)(["--root_dir", str(tmp_path), "--out", str(tmp_path), "--tasks", name]) == 0
    for split, text in expected.items():
        path = tmp_path / f"{name}_{split}.tsv"
        assert path.read_bytes().decode() == text
        read_canonical(path, DEFINITIONS[name])
    assert len(list(tmp_path.glob("*.tsv"))) == len(expected)
    told = capsys.readouterr()
    (split,) = list(expected)[:1]
    assert f"for {split}, the official set has {SETS[name].rows[split]}" in told.err


@pytest.mark.parametrize("name", [name for name, source in SETS.items() if source.hub is not None])
def test_the_hubs_copy_becomes_canonical_files(tmp_path: Path, name: str) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (requirements-parquet.txt)")
    from pyarrow import parquet

    source, task = SETS[name], DEFINITIONS[name]
    assert source.hub is not None
    names = list(reversed(task.labels or ()))  # an order of its own
    table = {source.hub.text: ["a", "b"], source.hub.label: [1, 0] if names else [2.5, 1.0]}
    table |= {column: [f"{column}1", f"{column}2"] for column in (source.hub.text_pair, source.hub.uid) if column}
    feature = {source.hub.label: {"names": names, "_type": "ClassLabel"}} if names else {}
    made = pa.table(table).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": feature}})})
    suffix = f"_{source.hub_prefix.rstrip('_')}" if source.hub_prefix else ""
    folder = tmp_path / source.folder / "data"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        parquet.write_table(made, folder / f"{split}{suffix}-00000-of-00001.parquet")
    assert main_of(name)(["--root_dir", str(tmp_path), "--out", str(tmp_path), "--tasks", name]) == 0
    rows = [line.split("\t") for line in (tmp_path / f"{name}_dev.tsv").read_text().splitlines()]
    assert [row[1] for row in rows] == ([names[1], names[0]] if names else ["2.5", "1.0"])
    assert [row[2] for row in rows] == ["a", "b"]


def test_boolq_is_read_as_its_authors_put_it_on_the_hub(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (requirements-parquet.txt)")
    from pyarrow import parquet

    (tmp_path / "BoolQ/data").mkdir(parents=True)
    for split in ("train", "validation"):
        made = pa.table({"question": ["q", "r"], "answer": [True, False], "passage": ["p", "s"]})
        parquet.write_table(made, tmp_path / f"BoolQ/data/{split}-00000-of-00001.parquet")
    assert textclass_prepro.main(["--root_dir", str(tmp_path), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "boolq_dev.tsv").read_text() == "0\ttrue\tp\tq\n1\tfalse\ts\tr\n"


def test_boolq_is_read_as_its_authors_released_it(tmp_path: Path) -> None:
    (tmp_path / "BoolQ").mkdir()
    row = {"question": "q", "title": "t", "passage": "p"}
    for name, answer in (("train", False), ("dev", True)):
        (tmp_path / f"BoolQ/{name}.jsonl").write_text(lines(row | {"answer": answer}))
    assert textclass_prepro.main(["--root_dir", str(tmp_path), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "boolq_train.tsv").read_text() == "0\tfalse\tp\tq\n"
    assert (tmp_path / "boolq_dev.tsv").read_text() == "0\ttrue\tp\tq\n"


def test_of_scitails_four_forms_on_the_hub_one_is_read(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (requirements-parquet.txt)")
    from pyarrow import parquet

    for config, columns in (("snli_format", ("sentence1", "sentence2", "gold_label")),
                            ("tsv_format", ("premise", "hypothesis", "label"))):  # fmt: skip
        folder = tmp_path / "SciTailV1.1" / config
        folder.mkdir(parents=True)
        made = pa.table({column: [f"{config} {column}"] for column in columns[:2]} | {columns[2]: ["entailment"]})
        parquet.write_table(made, folder / "validation-00000-of-00001.parquet")
    assert nli_prepro.main(["--root_dir", str(tmp_path), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "scitail_dev.tsv").read_text() == "0\tentails\tsnli_format sentence1\tsnli_format sentence2\n"


def test_a_set_without_dev_gives_a_tenth_of_train(tmp_path: Path) -> None:
    (tmp_path / "TREC").mkdir()
    rows = "".join(f"{'NUM' if i % 2 else 'HUM'}:x row {i} ?\n" for i in range(40))
    (tmp_path / "TREC/train_5500.label").write_text(rows)
    assert textclass_prepro.main(["--root_dir", str(tmp_path), "--out", str(tmp_path)]) == 0
    train, dev = (read_canonical(tmp_path / f"trec_{split}.tsv", DEFINITIONS["trec"]) for split in ("train", "dev"))
    assert (len(train), len(dev)) == (36, 4)
    assert sorted(dev.labels.tolist()) == [3, 3, 5, 5]
    assert not set(train.uids) & set(dev.uids)


def test_sets_that_are_not_there_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nli_prepro.main(["--root_dir", str(tmp_path), "--tasks", "snli"]) == 2
    assert "no files of snli (looked for snli_1.0/)" in capsys.readouterr().err
    assert nli_prepro.main(["--root_dir", str(tmp_path), "--tasks", "x"]) == 2
    assert "--tasks: x is none of snli, scitail, sick, sickrel, anlir1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "file", "text", "told"),
    [
        ("snli", "snli_1.0_dev.jsonl", lines({"premise": "a"}), "has no column 'gold_label'; it has 'premise'; "),
        ("snli", "snli_1.0_dev.jsonl", lines(snli("maybe", "a", "b")), "row 1: label 'maybe' is none of contradiction"),
        ("cb", "val.jsonl", lines({"premise": "a", "hypothesis": "b"}), "has no column 'label'; it has"),
        ("cb", "val.jsonl", lines({"premise": "a", "hypothesis": "b", "label": None}), "row 1 has no label, the first"),
        ("anlir1", "R1/dev.jsonl", lines(*[{"uid": "u", "context": "a", "hypothesis": "b", "label": "c"}] * 2),
         "row 1: 1 rows repeat the uid of another"),
        ("sick", "SICK.txt", SICK.replace("\t", ";"), "line 1 has no '\\t', but ';'; "),
        ("agnews", "test.csv", '"3","a"b","c"\n', "line 1: "),
        ("trec", "train_5500.label", "NUM:dist How far ?\n", "a share of 0.1: that is 0 of 1 training rows"),
    ],
)  # fmt: skip
def test_a_refusal_names_no_flag_that_the_command_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, file: str, text: str, told: str
) -> None:
    path = tmp_path / SETS[name].folder / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert main_of(name)(["--root_dir", str(tmp_path), "--out", str(tmp_path / "out"), "--tasks", name]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "; is it the published file? Any other table: python -m data_utils.import_dataset\n" in error
    assert "--" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "source"), SETS.items())
def test_every_set_has_a_definition_a_title_and_the_names_of_its_labels(name: str, source: OfficialSet) -> None:
    task = DEFINITIONS[name]
    assert name in task_titles()
    assert task.pair is (source.columns.text_pair is not None)
    assert set(source.labels.values()) <= set(task.label_names)
    assert list(source.rows) == ["train", "dev", "test"]
