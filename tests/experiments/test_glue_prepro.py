import csv
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from experiments.glue import glue_prepro, glue_readers
from experiments.glue.glue_readers import TASKS
from experiments.glue.hub_copies import HUB_COPIES, hub_split

ROOT = Path(__file__).resolve().parents[2]
PARSES = "sentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
MNLI_HEAD = f"index\tpromptID\tpairID\tgenre\t{PARSES}\tsentence1\tsentence2"
MNLI_DEV_HEAD = MNLI_HEAD + "\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label"
STSB_HEAD = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
MRPC_HEAD = "#1 ID\t#2 ID\t#1 String\t#2 String"


def mnli(index: int, a: str, b: str, *labels: str) -> str:
    return "\t".join([str(index), "p1", "p2", "fiction", "bp", "bp", "p", "p", a, b, *labels])


# Two or three rows of every file in its raw format, and the canonical rows MT-DNN makes of them.
RAW: dict[str, dict[str, tuple[list[str], list[str]]]] = {
    "cola": {
        "train.tsv": (["gj04\t1\t\tHe left.", "gj04\t0\t*\tLeft he."], ["0\t1\tHe left.", "1\t0\tLeft he."]),
        "dev.tsv": (["gj04\t0\t*\tHim."], ["0\t0\tHim."]),
        "test.tsv": (["index\tsentence", "0\tBill went."], ["0\t0\tBill went."]),
    },
    "mnli": {
        "train.tsv": (
            [f"{MNLI_HEAD}\tlabel1\tgold_label", mnli(0, "a", "b", "neutral", "neutral"), mnli(1, "a", "b", "x", "-")],
            ["0\tneutral\ta\tb"],
        ),
        "dev_matched.tsv": (
            [MNLI_DEV_HEAD, mnli(0, "a", "b", *"vwxyz", "-"), mnli(1, "c", "d", *"vwxyz", "entailment")],
            ["1\tentailment\tc\td"],
        ),
        "dev_mismatched.tsv": (
            [MNLI_DEV_HEAD, mnli(0, "e", "f", *"vwxyz", "contradiction")],
            ["0\tcontradiction\te\tf"],
        ),
        "test_matched.tsv": ([MNLI_HEAD, mnli(0, "g", "-")], ["0\tcontradiction\tg\t-"]),
        "test_mismatched.tsv": ([MNLI_HEAD, mnli(7, "g", "h")], ["7\tcontradiction\tg\th"]),
    },
    "mrpc": {
        "train.tsv": ([f"Quality\t{MRPC_HEAD}", '1\t5\t6\tsaid "x\ty"'], ['0\t1\tsaid "x\ty"']),
        "dev.tsv": ([f"Quality\t{MRPC_HEAD}", "0\t5\t6\tx\ty"], ["0\t0\tx\ty"]),
        "test.tsv": ([f"index\t{MRPC_HEAD}", "0\t5\t6\tx\ty"], ["0\t0\tx\ty"]),
    },
    "qnli": {
        "train.tsv": (["index\tquestion\tsentence\tlabel", "3\tq?\ts.\tentailment"], ["3\tentailment\tq?\ts."]),
        "dev.tsv": (["index\tquestion\tsentence\tlabel", "0\tq\ts\tnot_entailment"], ["0\tnot_entailment\tq\ts"]),
        "test.tsv": (["index\tquestion\tsentence", "0\tq\ts"], ["0\tnot_entailment\tq\ts"]),
    },
    "qqp": {
        "train.tsv": (
            [
                "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
                "9\t1\t2\tq1\tq2\t1",
                "8\t1\t2\tbroken",
                "7\t1\t2\tq3\tq4\t0",
            ],
            ["0\t1\tq1\tq2", "1\t0\tq3\tq4"],
        ),
        "dev.tsv": (
            ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "", "9\t1\t2\tq1\t\t1"],
            ["0\t1\tq1\t"],
        ),
        "test.tsv": (["id\tquestion1\tquestion2", "4\tq1\tq2"], ["4\t0\tq1\tq2"]),
    },
    "rte": {
        "train.tsv": (["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tentailment"], ["0\tentailment\ta\tb"]),
        "dev.tsv": (["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tnot_entailment"], ["0\tnot_entailment\ta\tb"]),
        "test.tsv": (["index\tsentence1\tsentence2", "0\ta\tb"], ["0\tnot_entailment\ta\tb"]),
    },
    "sst": {
        "train.tsv": (
            ["sentence\tlabel", "hide new secretions \t0", "NA\t1"],
            ["0\t0\thide new secretions ", "1\t1\tNA"],
        ),
        "dev.tsv": (["sentence\tlabel", "it 's good\t1"], ["0\t1\tit 's good"]),
        "test.tsv": (["index\tsentence", "0\tuneasy mishmash "], ["0\t0\tuneasy mishmash"]),
    },
    "stsb": {
        "train.tsv": (
            [f"{STSB_HEAD}\tscore", "0\tg\tf\ty\t1\tn\tn\ta\tb\t5.000", "1\tg\tf\ty\t1\tn\tn\tc\td\t0.25"],
            ["0\t5.000\ta\tb", "1\t0.25\tc\td"],
        ),
        "dev.tsv": ([f"{STSB_HEAD}\tscore", "0\tg\tf\ty\t1\tn\tn\ta\tb\t3.2"], ["0\t3.2\ta\tb"]),
        "test.tsv": ([STSB_HEAD, "0\tg\tf\ty\t1\tn\tn\ta\tb"], ["0\t0.0\ta\tb"]),
    },
    "wnli": {
        "train.tsv": (["index\tsentence1\tsentence2\tlabel", "4\ta\tb\t1"], ["0\t1\ta\tb"]),
        "dev.tsv": (["index\tsentence1\tsentence2\tlabel", "0\ta\tb\t0"], ["0\t0\ta\tb"]),
        "test.tsv": (["index\tsentence1\tsentence2", "0\ta\tb"], ["0\t0\ta\tb"]),
    },
}


def write_raw(root: Path, task: str, change: Callable[[str], str] = lambda text: text, bom: str = "") -> None:
    folder = root / TASKS[task].folder
    folder.mkdir(parents=True)
    for name, (lines, _) in RAW[task].items():
        (folder / name).write_bytes((bom + change("".join(line + "\n" for line in lines))).encode())


def check_canonical(out: Path, task: str) -> None:
    for split, source in TASKS[task].splits.items():
        expected = "".join(line + "\n" for line in RAW[task][source.file][1])
        assert (out / f"{task}_{split}.tsv").read_bytes() == expected.encode()


def run(root: Path, *more: str) -> int:
    return glue_prepro.main(["--root_dir", str(root), *more])


@pytest.mark.parametrize("task", TASKS)
def test_each_task_alone(tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_raw(tmp_path, task)
    assert run(tmp_path) == 0
    check_canonical(tmp_path / "canonical_data", task)
    captured = capsys.readouterr()
    absent = [name for name in TASKS if name != task]
    assert f"not found, skipped: {', '.join(absent)} " in captured.out
    for split, source in TASKS[task].splits.items():
        assert (
            f"for {split}, the official file has {source.rows}" in captured.err
        )  # three rows are not the official file


def test_all_tasks_at_once_into_another_folder(tmp_path: Path) -> None:
    for task in TASKS:
        write_raw(tmp_path / "raw", task)
    assert run(tmp_path / "raw", "--out", str(tmp_path / "out")) == 0
    for task in TASKS:
        check_canonical(tmp_path / "out", task)
    assert not (tmp_path / "raw" / "canonical_data").exists()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("form", ["crlf", "bom", "no last newline", "blank lines at the end"])
def test_forms_of_the_same_file(tmp_path: Path, task: str, form: str) -> None:
    changes: dict[str, Callable[[str], str]] = {
        "crlf": lambda text: text.replace("\n", "\r\n"),
        "bom": lambda text: text,
        "no last newline": lambda text: text.removesuffix("\n"),
        "blank lines at the end": lambda text: text + "\n\r\n\n",
    }
    write_raw(tmp_path, task, changes[form], bom="\ufeff" if form == "bom" else "")
    assert run(tmp_path) == 0
    check_canonical(tmp_path / "canonical_data", task)


def test_skipped_rows_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_raw(tmp_path, "qqp")
    write_raw(tmp_path, "mnli")
    assert run(tmp_path) == 0
    out = capsys.readouterr().out
    for name in ("qqp_train", "mnli_train", "mnli_matched_dev", "qqp_dev"):
        (line,) = [line for line in out.splitlines() if f"{name}.tsv" in line]
        assert line.endswith("(1 skipped)")


def test_odd_sentences_survive(tmp_path: Path) -> None:
    sentences = ["NA", "null", "nan", "", '"', 'a "quote', "a\u2028b\u0085c\x0b\x1cd", "日本 🙂", "\u00a0x", " inner "]
    folder = tmp_path / "SST-2"
    folder.mkdir()
    text = "".join(f"{sentence}\t1\n" for sentence in sentences)
    (folder / "dev.tsv").write_bytes(f"sentence\tlabel\n{text}".encode())
    assert run(tmp_path) == 0
    lines = (tmp_path / "canonical_data" / "sst_dev.tsv").read_bytes().decode().split("\n")
    # MT-DNN strips each line, which takes white space off the front of its first column.
    assert [line.split("\t")[2] for line in lines[:-1]] == [*sentences[:-2], "x", "inner "]


def test_a_carriage_return_inside_becomes_a_space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "dev.tsv").write_bytes(b"sentence\tlabel\r\na\rb\t1\r\n")
    assert run(tmp_path) == 0
    assert (tmp_path / "canonical_data" / "sst_dev.tsv").read_bytes() == b"0\t1\ta b\n"
    assert "1 with a CR inside, now a space" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "file", "lines", "line", "reason"),
    [
        ("cola", "dev.tsv", ["gj\t1\t\tok", "gj\t1\t\ta\ttab"], 2, "5 columns instead of 4; a sentence holds no tab"),
        ("cola", "dev.tsv", ["gj\t1\t\tok", "gj\t2\t\tx"], 2, "label '2' is none of 0, 1"),
        ("cola", "dev.tsv", ["gj\t1\t\tok", "", "gj\t1\t\tok"], 2, "1 columns instead of 4"),
        ("rte", "dev.tsv", ["index\tsentence1\tsentence2\tlabel", "0\ta\tb"], 2, "3 columns instead of 4"),
        ("rte", "dev.tsv", ["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tmaybe"], 2, "'maybe' is none of not_ent"),
        ("rte", "dev.tsv", ["0\ta\tb\tentailment"], 1, "no column 'sentence1'"),
        ("rte", "dev.tsv", ["index\tsentence1\tsentence2\tlabel", "0\ta\ud800\tb\tentailment"], 2, "not UTF-8"),
        ("stsb", "dev.tsv", [f"{STSB_HEAD}\tscore", "0\tg\tf\ty\t1\tn\tn\ta\tb\tx"], 2, "label 'x' is not a number"),
        ("qqp", "test.tsv", ["id\tquestion1\tquestion2", "0\ta"], 2, "2 columns instead of 3"),
        ("qqp", "dev.tsv", [RAW["qqp"]["dev.tsv"][0][0], "0\t1\t2\ta\tb\tc\t1"], 2, "7 columns instead of 6"),
        ("sst", "dev.tsv", ["sentence\tlabel"], 0, "holds no rows"),
        ("sst", "dev.tsv", [], 1, "no column 'sentence'"),
    ],
)
def test_malformed_rows_name_file_line_and_reason(
    tmp_path: Path,
    task: str,
    file: str,
    lines: list[str],
    line: int,
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / TASKS[task].folder / file
    path.parent.mkdir()
    path.write_bytes("".join(text + "\n" for text in lines).encode(errors="surrogatepass"))
    assert run(tmp_path) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {path}: " + (f"line {line}: " if line else ""))
    assert reason in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("canonical_data/*.tsv"))


def msr(root: Path, ids_name: str = "dev_ids.tsv", dev_ids: str = "3\t4\n") -> None:
    folder = root / "MRPC"
    folder.mkdir()
    rows = ['1\t1\t2\ta "q\tb', "0\t3\t4\tc\td", "0\t5\t6\te\tf"]
    (folder / "msr_paraphrase_train.txt").write_bytes(
        ("\ufeff" + "".join(f"{row}\r\n" for row in [f"Quality\t{MRPC_HEAD}", *rows])).encode()
    )
    (folder / "msr_paraphrase_test.txt").write_text(f"Quality\t{MRPC_HEAD}\n1\t7\t8\tg\th\n")
    (folder / ids_name).write_text(dev_ids)


@pytest.mark.parametrize("ids_name", ["dev_ids.tsv", "mrpc_dev_ids.tsv"])
def test_mrpc_from_the_original_corpus(tmp_path: Path, ids_name: str) -> None:
    msr(tmp_path, ids_name)
    assert run(tmp_path) == 0
    out = tmp_path / "canonical_data"
    assert (out / "mrpc_train.tsv").read_text() == '0\t1\ta "q\tb\n1\t0\te\tf\n'
    assert (out / "mrpc_dev.tsv").read_text() == "0\t0\tc\td\n"
    assert (out / "mrpc_test.tsv").read_text() == "0\t0\tg\th\n"  # a dummy label, though the corpus has one


def test_dev_pairs_that_are_not_there_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    msr(tmp_path, dev_ids="3\t4\n9\t9\n")
    assert run(tmp_path) == 2
    assert "1 of its 2 pairs are not in msr_paraphrase_train.txt" in capsys.readouterr().err


def test_the_corpus_without_dev_pairs_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    msr(tmp_path)
    (tmp_path / "MRPC" / "dev_ids.tsv").unlink()
    assert run(tmp_path) == 2
    assert "needs dev_ids.tsv beside it" in capsys.readouterr().err


def test_missing_splits_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_raw(tmp_path, "rte")
    (tmp_path / "RTE" / "test.tsv").unlink()
    assert run(tmp_path) == 0
    assert "rte: no RTE/test.tsv, test skipped" in capsys.readouterr().out
    assert not (tmp_path / "canonical_data" / "rte_test.tsv").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--tasks", "rte,cola"], "no files of cola (looked for CoLA/)"),
        (["--tasks", "rte,imdb"], "'imdb' is none of cola, mnli, mrpc"),
        (["--tasks", ","], "is none of cola"),
        (["--root_dir", "nowhere"], "nowhere: no such folder"),
        (["--task_def", "nowhere.yml"], "nowhere.yml"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path, options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_raw(tmp_path, "rte")
    assert run(tmp_path, *options) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert line.startswith("error: ")
    assert reason in line


def test_no_task_at_all_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 2
    assert "no GLUE task found (looked for CoLA/, MNLI/, MRPC/" in capsys.readouterr().err


def test_chosen_tasks_only(tmp_path: Path) -> None:
    write_raw(tmp_path, "rte")
    write_raw(tmp_path, "wnli")
    assert run(tmp_path, "--tasks", "WNLI") == 0
    assert {path.name[:4] for path in (tmp_path / "canonical_data").iterdir()} == {"wnli"}


def test_real_files_as_a_script(glue_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "experiments/glue/glue_prepro.py"), "--root_dir", str(glue_dir)]
    done = subprocess.run([*command, "--out", str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == ""  # no warning: every count is the official one
    assert len(list(tmp_path.iterdir())) == 12
    assert (
        (tmp_path / "cola_dev.tsv").read_bytes().startswith(b"0\t1\tThe sailors rode the breeze clear of the rocks.\n")
    )


def test_real_mrpc_from_the_corpus_is_glues(glue_dir: Path, tmp_path: Path) -> None:
    if not (glue_dir / "MRPC" / "msr_paraphrase_train.txt").is_file():
        pytest.skip(f"no msr_paraphrase files in {glue_dir}/MRPC")
    assert run(glue_dir, "--tasks", "mrpc", "--out", str(tmp_path / "glue")) == 0
    corpus = tmp_path / "raw" / "MRPC"
    corpus.mkdir(parents=True)
    for name in ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt", "dev_ids.tsv"):
        (corpus / name).write_bytes((glue_dir / "MRPC" / name).read_bytes())
    assert run(tmp_path / "raw", "--out", str(tmp_path / "corpus")) == 0
    for split in ("train", "dev", "test"):
        name = f"mrpc_{split}.tsv"
        assert (tmp_path / "corpus" / name).read_bytes() == (tmp_path / "glue" / name).read_bytes()


def hub_rows(task: str, split: str) -> list[dict[str, object]]:
    """The canonical rows of a split as the Hub has them: classes by number in its own order, -1 in test sets."""
    copy, rows = HUB_COPIES[task], []
    for index, line in enumerate(RAW[task][TASKS[task].splits[split].file][1]):
        _, label, *texts = line.split("\t")
        value: object = -1
        if not split.endswith("test"):
            by_name = label in copy.classes
            value = float(label) if not copy.classes else copy.classes.index(label) if by_name else int(label)
        rows.append({**dict(zip(copy.columns, texts, strict=True)), "label": value, "idx": index})
    return rows


def check_rows(out: Path, task: str) -> None:
    """Compare label and texts with the raw files' rows; the Hub numbers rows anew."""
    for split, source in TASKS[task].splits.items():
        found = [line.split("\t")[1:] for line in (out / f"{task}_{split}.tsv").read_text().splitlines()]
        expected = [line.split("\t")[1:] for line in RAW[task][source.file][1]]
        if task == "stsb" and not split.endswith("test"):
            found, expected = ([[f"{float(row[0]):.3f}", *row[1:]] for row in rows] for rows in (found, expected))
        assert found == expected, split


@pytest.mark.parametrize("names", ["in the file", "in the card", "nowhere"])
@pytest.mark.parametrize("task", TASKS)
def test_the_hubs_parquet_gives_the_raw_files_rows(
    tmp_path: Path, task: str, names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (requirements-parquet.txt)")
    from pyarrow import parquet

    copy = HUB_COPIES[task]
    (tmp_path / copy.folder).mkdir()
    feature = {"label": {"names": list(copy.classes), "_type": "ClassLabel"}} if copy.classes else {}
    for split in TASKS[task].splits:
        table = pa.Table.from_pylist(hub_rows(task, split))
        if names == "in the file":
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": feature}})})
        parquet.write_table(table, tmp_path / copy.folder / f"{hub_split(split)}-00000-of-00001.parquet")
    if names == "in the card":
        classes = {str(i): name for i, name in enumerate(copy.classes)}
        features = [{"name": "label", "dtype": {"class_label": {"names": classes}}}] if classes else []
        card = yaml.safe_dump({"dataset_info": [{"config_name": copy.folder, "features": features}]})
        (tmp_path / "README.md").write_text(f"---\n{card}---\n")
    assert run(tmp_path, "--tasks", task) == 0
    check_rows(tmp_path / "canonical_data", task)
    assert "from the copy train-00000-of-00001.parquet, classes by name" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["cola", "mnli", "rte", "sst"])
def test_csv_with_class_names_gives_the_raw_files_rows(tmp_path: Path, task: str) -> None:
    copy = HUB_COPIES[task]
    folder = tmp_path / TASKS[task].folder
    folder.mkdir()
    for split in TASKS[task].splits:
        with (folder / f"{hub_split(split)}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [*copy.columns, "label"], extrasaction="ignore")
            writer.writeheader()
            for row in hub_rows(task, split):
                number = int(str(row["label"]))
                writer.writerow(row | {"label": "" if number < 0 else copy.classes[number]})
    assert run(tmp_path) == 0
    check_rows(tmp_path / "canonical_data", task)


def test_numbers_without_names_are_refused_where_classes_have_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "MNLI").mkdir()
    file = tmp_path / "MNLI/train.csv"
    file.write_text("premise,hypothesis,label\na,b,0\n")
    assert run(tmp_path) == 2
    told = (
        "label 0 is a number without a name; mnli has contradiction, neutral, entailment, the Hub's copies entailment,"
    )
    assert told in capsys.readouterr().err
    file.write_text("premise,hypothesis,label,idx\na,b,0,0\n")
    assert run(tmp_path) == 0
    assert (tmp_path / "canonical_data/mnli_train.tsv").read_text() == "0\tentailment\ta\tb\n", "the Hub's first class"
    file.write_text("premise,hypothesis,label\na,b,maybe\n")
    assert run(tmp_path) == 2
    assert "label 'maybe' is none of contradiction, neutral, entailment, nor entailment," in capsys.readouterr().err
    file.write_text("text,label\na,0\n")
    assert run(tmp_path) == 2
    told = "no column 'premise'; a copy of mnli has premise, hypothesis, label, this 'text, label'; any other table: "
    assert told + "python -m data_utils.import_dataset" in capsys.readouterr().err
    for text, told in (
        ("premise;hypothesis;label\na;b;0\n", "line 1 has no ',', but ';'; is it the published file?"),
        ('premise,hypothesis,label\n"a"b",c,0\n', "line 2: ',' expected after '\"'; is it the published file?"),
    ):
        file.write_text(text)
        assert run(tmp_path) == 2
        error = capsys.readouterr().err
        assert told in error
        assert "--" not in error, "no flag of the importer's, which this command has not"


@pytest.mark.parametrize(("task", "told"), [("CoLA", "1 columns instead of 4"), ("RTE", "no column 'sentence1'")])
def test_a_table_of_another_form_is_told_of_the_importer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, told: str
) -> None:
    (tmp_path / task).mkdir()
    (tmp_path / task / "train.tsv").write_text('sentence,label\n"a ""b""",1\n')
    assert run(tmp_path) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.endswith("no tab-separated file; any other table: python -m data_utils.import_dataset\n")


def test_a_copy_as_the_hub_converts_it_is_found(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (requirements-parquet.txt)")
    from pyarrow import parquet

    (tmp_path / "cola/train").mkdir(parents=True)
    table = pa.table({"sentence": ["a", "b"], "label": ["acceptable", "unacceptable"]})
    parquet.write_table(table, tmp_path / "cola/train/0000.parquet")
    assert run(tmp_path) == 0
    assert (tmp_path / "canonical_data/cola_train.tsv").read_text() == "0\t1\ta\n1\t0\tb\n"


@pytest.mark.parametrize("task", TASKS)
def test_raw_files_under_gzip(tmp_path: Path, task: str) -> None:
    write_raw(tmp_path, task)
    for file in (tmp_path / TASKS[task].folder).iterdir():
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    assert run(tmp_path) == 0
    check_canonical(tmp_path / "canonical_data", task)


def test_a_damaged_gzip_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE/dev.tsv.gz").write_bytes(gzip.compress(b"index\tsentence1\tsentence2\tlabel\n")[:-9])
    assert run(tmp_path) == 2
    assert "RTE/dev.tsv.gz: damaged or cut off" in capsys.readouterr().err


def test_the_first_qnli_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_raw(tmp_path, "qnli")
    monkeypatch.setattr(glue_readers, "_QNLI_V1", {1})
    assert run(tmp_path) == 2
    assert "QNLI/train.tsv: 1 rows: this is QNLI v1, which GLUE replaced by v2" in capsys.readouterr().err


def test_columns_are_found_by_name_wherever_they_stand(tmp_path: Path) -> None:
    for name in ("CoLA", "RTE"):
        (tmp_path / name).mkdir()
    (tmp_path / "CoLA/dev.tsv").write_text("label\tnote\tsentence\n1\tx\tHe left.\n")  # saved anew, with a header
    head = "captionID\tgold\tlabel\tsentence2\tlabel1\tsentence1\tindex"
    (tmp_path / "RTE/dev.tsv").write_text(f"{head}\nc\tg\tentailment\tb\tx\ta\t7\n")
    assert run(tmp_path) == 0
    assert (tmp_path / "canonical_data/cola_dev.tsv").read_text() == "0\t1\tHe left.\n"
    assert (tmp_path / "canonical_data/rte_dev.tsv").read_text() == "7\tentailment\ta\tb\n"
