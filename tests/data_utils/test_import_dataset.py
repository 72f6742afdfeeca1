import csv
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_utils.canonical_tsv import read_canonical
from data_utils.import_dataset import main
from data_utils.task_def import Metric, load_task_defs
from tests.data_utils.conftest import make_wordpiece

TEXTS = ['he said "no", twice', "NA", "", "a\tb\nc", " spaces ", "naïve 日本"]
STORED = ['he said "no", twice', "NA", "", "a b c", " spaces ", "naïve 日本"]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as a CSV file."""

    def writing(rows: list[dict[str, Any]], name: str = "a.csv") -> Path:
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return tmp_path / name

    return writing


def rows_of(n: int, labels: str = "no yes") -> list[dict[str, Any]]:
    names = labels.split()
    return [
        {"text": f"{TEXTS[i % 6]}{i}", "other": f"o{i}", "y": names[i % len(names)], "key": f"k{i}"} for i in range(n)
    ]


def run(*arguments: object, task: str = "mine") -> int:
    return main([*map(str, arguments), "--task", task, "--text", "text", "--label", "y"])


def test_a_file_becomes_train_and_dev_without_a_changed_text(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write(rows_of(60, "yes no no")), tmp_path / "out"
    assert run(file, "--out", out, "--uid", "key", "--dev_share", "0.25") == 0
    task = load_task_defs(out / "task_def.yml")["mine"]
    assert (task.labels, task.metric_meta, task.pair) == (("no", "yes"), (Metric.ACC, Metric.F1), False)
    train, dev = (read_canonical(out / f"mine_{split}.tsv", task) for split in ("train", "dev"))
    assert (len(train), len(dev), int(dev.labels.sum())) == (45, 15, 5), "labels in proportion"
    found = dict(
        zip(
            train.uids + dev.uids,
            zip(train.premise + dev.premise, [*train.labels, *dev.labels], strict=True),
            strict=True,
        )
    )
    assert found == {f"k{i}": (f"{STORED[i % 6]}{i}", int(i % 3 == 0)) for i in range(60)}
    told = capsys.readouterr().out
    assert "task mine, classes no, yes, metrics ACC, F1 (F1 is that of yes); judged by F1" in told
    assert "note: train: 10 texts held a tab or line end, now a space" in told
    assert f"next: python -m experiments.study --task_def {out}/task_def.yml --data_dir {out} --tasks mine" in told
    first = (out / "mine_dev.tsv").read_bytes()
    assert run(file, "--out", out, "--uid", "key", "--dev_share", "0.25") == 0
    assert (out / "mine_dev.tsv").read_bytes() == first
    assert run(file, "--out", out, "--uid", "key", "--dev_share", "0.25", "--seed", "2") == 0
    assert (out / "mine_dev.tsv").read_bytes() != first


def test_files_are_splits_by_their_names_or_by_split(write: Callable[..., Path], tmp_path: Path) -> None:
    train, dev, test = (write(rows_of(n), f"x_{name}.csv") for name, n in (("train", 8), ("val", 4), ("test", 2)))
    assert run(train, dev, test, "--out", tmp_path / "one") == 0
    for split, file in (("train", train), ("dev", dev), ("test", test)):
        assert run(file, "--split", split, "--out", tmp_path / "two") == 0
    for name in ("mine_train.tsv", "mine_dev.tsv", "mine_test.tsv", "task_def.yml"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_shards_of_a_split_are_one_and_rows_are_numbered_through(write: Callable[..., Path], tmp_path: Path) -> None:
    files = [write(rows_of(4), "a.csv"), write(rows_of(6), "b.csv")]
    assert run(*files, "--split", "train", "--out", tmp_path / "out") == 0
    rows = (tmp_path / "out/mine_train.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in rows] == [str(i) for i in range(10)]


def test_other_tasks_of_the_folder_stay(write: Callable[..., Path], tmp_path: Path) -> None:
    assert run(write(rows_of(20)), "--out", tmp_path / "out", task="first") == 0
    assert run(write(rows_of(30, "01 no 12:30")), "--out", tmp_path / "out", "--text_pair", "other", task="second") == 0
    tasks = load_task_defs(tmp_path / "out/task_def.yml")
    assert list(tasks) == ["first", "second"]
    assert tasks["second"].labels == ("01", "12:30", "no"), "as written, whatever YAML makes of them"
    assert tasks["second"].metric_meta == (Metric.ACC, Metric.F1MAC)
    assert tasks["second"].pair


def test_scores_and_numbered_classes(write: Callable[..., Path], tmp_path: Path) -> None:
    assert run(write(rows_of(30, "0.5 -1 2e1")), "--regression", "--out", tmp_path / "out") == 0
    task = load_task_defs(tmp_path / "out/task_def.yml")["mine"]
    assert (task.labels, task.metric_meta) == (None, (Metric.Pearson, Metric.Spearman))
    assert set(read_canonical(tmp_path / "out/mine_train.tsv", task).labels.tolist()) == {0.5, -1.0, 20.0}
    assert run(write(rows_of(60, "10 9 1")), "--out", tmp_path / "out", "--metrics", "MCC,ACC") == 0
    task = load_task_defs(tmp_path / "out/task_def.yml")["mine"]
    assert (task.labels, task.primary_metric) == (("1", "9", "10"), Metric.MCC)
    assert run(write(rows_of(60, "10 9 1")), "--out", tmp_path / "out", "--labels", "9, 10, 1") == 0
    assert load_task_defs(tmp_path / "out/task_def.yml")["mine"].labels == ("9", "10", "1")


def test_what_is_odd_is_counted(write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": text, "y": y} for text, y in [("", "a"), ("  ", "a"), ("w " * 20, "a"), ("x", "b"), ("y", "-")]]
    file = write(rows)
    arguments = ["--split", "train", "--labels", "a,b,c", "--skip_label", "-", "--max_seq_len", "12"]
    assert run(file, *arguments, "--out", tmp_path / "out") == 0
    told = capsys.readouterr().out
    for note in (
        "1 rows left out, labelled '-'", "2 texts are empty", "1 labels occur once: b", "1 classes have no row: c",
        "at least 1 examples are beyond 12 tokens and will be cut",
    ):  # fmt: skip
        assert f"note: train: {note}\n" in told
    assert run(file, *arguments, "--skip_label", "- ", "--skip_label", "", "--out", tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "note: --skip_label '- ': no row has it\nnote: --skip_label '': no row has it\n" in told
    assert "--skip_label '-'" not in told
    make_wordpiece().save(str(tmp_path / "tokenizer.json"))
    assert (
        run(
            file,
            "--split",
            "train",
            "--skip_label",
            "-",
            "--max_seq_len",
            "8",
            "--tokenizer",
            tmp_path,
            "--out",
            tmp_path / "b",
        )
        == 0
    )
    assert "note: train: 1 examples are beyond 8 tokens and will be cut\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "arguments", "error"),
    [
        ([{"text": "a", "y": "1", "id": "u"}] * 3, ["--uid", "id"], "row 1: 2 rows repeat .* 'u', .*: row 2; mend id"),
        ([{"text": "a", "y": "1", "id": ""}] * 3, ["--uid", "id"], "row 1: 3 rows have no uid, .* first; mend id"),
        ([{"text": "a", "y": "1", "id": "u" * 300}] * 3, ["--uid", "id"], "row 1: uid .*longer than 256 bytes; mend"),
        ([{"text": "a", "y": ""}, {"text": "b", "y": "1"}], [], "row 1 has no label, the first of 1 without among 2"),
        ([{"text": "a", "y": "1"}] * 3, [], "every row has the label '1'; two classes are needed"),
        ([{"text": "a", "y": str(i / 7)} for i in range(40)], [], "40 different labels, 40 of them on one row alone"),
        ([{"text": "a", "y": "4,5"}] * 3, ["--regression"], "row 1: label '4,5' is not a number.* written like 4.5"),
        ([{"text": "a", "y": "x"}, {"text": "b", "y": " "}], [], "row 2 has no label, the first of 1 without"),
        ([{"text": "a", "y": "x"}, {"text": "b", "y": "x\ny"}], [], r"row 2: y is 'x\\ny'; a label holds no tab"),
        ([{"text": "a", "y": "x"}] * 3, ["--labels", "y,z"], "row 1: label 'x' is none of y, z; --labels names all"),
        ([{"text": "a", "y": "x"}] * 3, ["--uid", "no"], "--uid: .* has no column 'no'; it has 'text, y'"),
        (rows_of(9, "a b b,a"), [], "'b,a' is a list of labels; a row has one label: tasks with several are not"),
        (rows_of(9, "[1,2] [2]"), [], r"--label: '\[1,2\]' is a list of labels;"),
        (rows_of(9), ["--split", "train", "--metrics", "AUC"], "metric_meta is 'AUC'; legal values: MCC, F1, F1MAC"),
        (rows_of(9), ["--split", "train", "--metrics", "Pearson"], "metric_meta Pearson does not fit Classification"),
        (rows_of(9), ["--split", "dev", "--dev_share", "0.2"], "--split says that it is dev; drop one of the two"),
        (rows_of(9), ["--regression", "--labels", "1,2"], "--labels names classes, and --regression takes scores"),
        (rows_of(9), ["--dev_share", "1.5"], r"--dev_share is 1\.5; legal: a share in \(0, 1\)"),
        (rows_of(3), ["--dev_share", "0.01"], r"--dev_share: a share of 0\.01: that is 0 of 3 training rows"),
        (rows_of(9), ["--max_seq_len", "0"], "--max_seq_len is 0; legal: 1 to 65535"),
        (rows_of(9), ["--config", "x"], "--config is for a folder"),
        (rows_of(9), ["--delimiter", "ab"], "--delimiter 'ab': legal: one character"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_line_and_nothing_is_written(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]], arguments: list[str], error: str,
) -> None:  # fmt: skip
    more = [] if {"--dev_share", "--config", "--split"} & set(arguments) else ["--split", "train"]
    assert run(write(rows), *arguments, *more, "--out", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert re.search(error, told), told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_name_with_an_underscore_is_refused(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write(rows_of(20)), "--out", tmp_path / "out", task="my_task") == 2
    assert "a task name holds no '_', which separates task and split; write my-task" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_several_labels_or_tokens_in_a_row_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a", "y": ["x", "z"]}) + "\n")
    assert run(tmp_path / "a.jsonl", "--split", "train", "--out", tmp_path / "out") == 2
    assert "row 1: y is ['x', 'z']; a row has one label or one score: tasks with several are not supported" in (
        capsys.readouterr().err
    )
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": ["a", "b"], "y": "x"}) + "\n")
    assert run(tmp_path / "a.jsonl", "--split", "train", "--out", tmp_path / "out") == 2
    assert "row 1: text is ['a', 'b'], no text; join its parts to one text first" in capsys.readouterr().err


def test_a_later_split_keeps_the_labels_of_the_task(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write(rows_of(20, "a c")), "--out", tmp_path / "out") == 0
    assert run(write([{"text": "x", "y": "c"}]), "--split", "test", "--out", tmp_path / "out") == 0
    task = load_task_defs(tmp_path / "out/task_def.yml")["mine"]
    assert read_canonical(tmp_path / "out/mine_test.tsv", task).labels.tolist() == [1]
    assert run(write([{"text": "x", "y": "b"}]), "--split", "test", "--out", tmp_path / "out") == 2
    assert "a.csv: row 1: label 'b' is none of a, c" in capsys.readouterr().err
    assert run(write([{"text": "x", "y": "1"}]), "--split", "test", "--regression", "--out", tmp_path / "out") == 2
    assert "was imported before with PremiseOnly and Classification" in capsys.readouterr().err
    for given in (["--labels", "c,a"], ["--metrics", "MCC"]):
        assert run(write([{"text": "x", "y": "c"}]), "--split", "test", *given, "--out", tmp_path / "out") == 2
        assert f"{given[0]} {given[1]}: task mine was imported before with" in capsys.readouterr().err


def test_a_test_set_without_labels_gets_the_dummy(tmp_path: Path) -> None:
    pieces = {"train": [{"text": "a", "y": "no"}, {"text": "b", "y": "yes"}], "test": [{"text": "c", "y": None}]}
    pieces["dev"] = pieces["train"]
    for split, rows in pieces.items():
        (tmp_path / f"{split}.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    files = [tmp_path / f"{split}.jsonl.gz" for split in pieces]
    assert run(*files, "--out", tmp_path / "out") == 0
    assert (tmp_path / "out/mine_test.tsv").read_text() == "0\tno\tc\n"


def test_a_test_set_may_lack_the_column_of_labels(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = write(rows_of(20), "a_train.csv"), write([{"text": "c"}], "a_test.csv")
    assert run(train, test, "--out", tmp_path / "out") == 0
    assert (tmp_path / "out/mine_test.tsv").read_text() == "0\tno\tc\n"
    assert "note: test: 1 rows have no label and get no\n" in capsys.readouterr().out
    assert run(test, "--split", "test", "--out", tmp_path / "out") == 2, "alone, the column may be a slip"
    assert "--label: " in capsys.readouterr().err


def test_delimiter_and_quoting_are_refused_where_they_say_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "y": "x"}\n')
    for setting, value in (("--delimiter", ";"), ("--quoting", "none")):
        assert run(tmp_path / "a.jsonl", setting, value, "--out", tmp_path / "out") == 2
        told = f"{setting}: {tmp_path / 'a.jsonl'} is a .jsonl file, which has neither delimiters nor quotes; drop it\n"
        assert capsys.readouterr().err == f"error: {told}"
        assert run(tmp_path, setting, value, "--out", tmp_path / "out") == 2
        assert f"{setting} is for CSV and TSV files by name, FILE {tmp_path} is a folder" in capsys.readouterr().err


def test_classes_that_differ_in_case_alone_are_told(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write(rows_of(30, "Yes no yes")), "--out", tmp_path / "out") == 0
    assert "note: classes that differ in case alone: Yes, yes\n" in capsys.readouterr().out


def test_a_label_may_stand_in_brackets(write: Callable[..., Path], tmp_path: Path) -> None:
    assert run(write(rows_of(20, "[NEG] [POS]")), "--out", tmp_path / "out") == 0
    assert load_task_defs(tmp_path / "out/task_def.yml")["mine"].labels == ("[NEG]", "[POS]")


def test_a_label_may_hold_a_comma(write: Callable[..., Path], tmp_path: Path) -> None:
    rows = [row | {"y": ("b, c", "b", "c")[i % 3]} for i, row in enumerate(rows_of(30))]
    assert run(write(rows), "--labels", '"b, c", c, b', "--out", tmp_path / "out") == 0
    assert load_task_defs(tmp_path / "out/task_def.yml")["mine"].labels == ("b, c", "c", "b")


def test_the_next_command_imports_a_split_that_a_study_would_miss(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def after(*arguments: object) -> str:
        assert run(write(rows_of(20)), *arguments, "--out", tmp_path / "out") == 0
        return capsys.readouterr().out.partition("next: python -m ")[2]

    wanted = f"data_utils.import_dataset FILE --task mine --text text --label y --split {{}} --out {tmp_path / 'out'}\n"
    assert after("--split", "test") == wanted.format("train")
    assert after("--split", "train") == wanted.format("dev")
    assert after("--split", "dev").startswith("experiments.study --task_def ")


def test_files_that_an_earlier_import_left_are_named(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([], ["--split", "test"], ["--split", "dev"]):
        assert run(write(rows_of(20)), *arguments, "--out", tmp_path / "out") == 0
        assert "earlier import" not in capsys.readouterr().out
    assert run(write(rows_of(20)), "--out", tmp_path / "out") == 0
    assert f"note: {tmp_path / 'out/mine_test.tsv'} is of an earlier import and stays\n" in capsys.readouterr().out


def test_a_message_names_the_row_of_the_file_whatever_was_held_out_or_left_out(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row | {"y": str(i)} for i, row in enumerate(rows_of(40))]
    rows[0]["y"], rows[33]["y"], rows[36]["y"] = "-", "", ""
    arguments = ["--regression", "--skip_label", "-", "--dev_share", "0.5", "--out", tmp_path / "out"]
    assert run(write(rows), *arguments) == 2
    told = re.search(r"a\.csv: row (\d+) has no label", capsys.readouterr().err)
    assert told is not None
    assert int(told[1]) in (34, 37)
    for row in (33, 36):
        rows[row]["y"] = "4,5"
    assert run(write(rows), *arguments) == 2
    told = re.search(r"a\.csv: row (\d+): label '4,5'", capsys.readouterr().err)
    assert told is not None
    assert int(told[1]) in (34, 37)
    shards = [write([{"text": "a", "y": "x"}], "a.csv"), write([{"text": "a", "y": "x"}, {"text": "b"}], "b.csv")]
    assert run(*shards, "--split", "train", "--out", tmp_path / "out") == 2
    assert "b.csv: row 2 has no label" in capsys.readouterr().err


def test_classes_that_a_missing_label_made_floats_are_whole_again_in_every_format(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [{"text": f"t{i}", "y": ["0.0", "1.0", ""][i % 3]} for i in range(30)]
    values = [row | {"y": float(row["y"]) if row["y"] else None} for row in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, values)))
    for file in (write(rows), tmp_path / "a.jsonl"):
        assert run(file, "--skip_label", "", "--out", tmp_path / "out") == 0
        assert load_task_defs(tmp_path / "out/task_def.yml")["mine"].labels == ("0", "1")
    assert (
        run(
            write([row | {"y": row["y"].replace("1.0", "1.5")} for row in rows]),
            "--skip_label",
            "",
            "--out",
            tmp_path / "out",
        )
        == 0
    )
    assert load_task_defs(tmp_path / "out/task_def.yml")["mine"].labels == ("0.0", "1.5")


def test_half_a_character_in_a_label_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "y": "x"}\n{"text": "b", "y": "\\ud800"}\n')
    assert run(tmp_path / "a.jsonl", "--split", "train", "--out", tmp_path / "out") == 2
    assert "row 2: y holds half of a surrogate pair" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_file_names_the_setting_and_the_fix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "no.csv", "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err == (
        f"error: FILE {tmp_path / 'no.csv'} does not exist; name a table, or a folder of a data set from the Hub\n"
    )
    assert not (tmp_path / "out").exists()
