"""predict.py: the logits of the evaluation, rows in their order, files as the GLUE server wants them."""

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import predict as command
from data_utils.errors import SettingError, shown
from data_utils.task_def import load_task_defs
from data_utils.text_rows import TextRows, iterate_rows, looks_like_header, parse_columns
from experiments.glue.glue_prepro import GLUE_TASK_DEF
from experiments.glue.submission import FILES, official_rows, submission_lines, test_sets
from mt_dnn.trained import prediction
from mt_dnn.trained.export import export
from mt_dnn.trained.load import load_run, read_run
from tests.full_disk import no_file_longer_than

ROOT = Path(__file__).resolve().parents[1]
TASKS = load_task_defs(GLUE_TASK_DEF)
test_sets.__test__ = False  # no test, for all its name


@pytest.fixture(scope="module")
def models(tiny_trained, tmp_path_factory):
    """(model, task) to what predict.py takes: run directories and exported folders."""
    root = tmp_path_factory.mktemp("folders")
    for task, run_dir in tiny_trained.items():
        export(read_run(run_dir), root / task)
    return {
        **{("run", task): run_dir for task, run_dir in tiny_trained.items()},
        **{("exported", task): root / task for task in tiny_trained},
    }


def data_of(tiny_trained):
    return read_run(tiny_trained["cola"]).config.data_dir


def main(*arguments):
    return command.main(["--device", "cpu", *map(str, arguments)])


def error_of(capsys, *arguments):
    assert main(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


@pytest.mark.parametrize("kind", ["run", "exported"])
def test_dev_predictions_are_those_of_the_evaluation(kind, models, tiny_trained, tmp_path):
    data = data_of(tiny_trained)
    for task, epoch in (("cola", "best"), ("stsb", "best"), ("cola", "last")):
        if (kind, epoch) == ("exported", "last"):
            continue
        more = ["--epoch", epoch] if kind == "run" else []
        out = tmp_path / "out.jsonl"
        assert main(models[kind, task], data / f"{task}_dev.tsv", "--format", "jsonl", "--out", out, *more) == 0
        found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        arrays = np.load(tiny_trained[task] / "predictions.npz")
        expected = arrays[f"{task}_dev.{epoch}_logits"]
        assert [row["uid"] for row in found] == [uid.decode() for uid in arrays[f"{task}_dev.uids"]]
        if task == "stsb":
            np.testing.assert_array_equal(np.float32([row["score"] for row in found]), expected[:, 0])
            continue
        np.testing.assert_array_equal(np.float32([row["logits"] for row in found]), expected)
        assert [row["label"] for row in found] == [str(label) for label in expected.argmax(axis=1)]
        shares = np.exp(expected.astype(np.float64))
        shares /= shares.sum(axis=1, keepdims=True)
        np.testing.assert_allclose([list(row["probabilities"].values()) for row in found], shares, rtol=1e-6)


def test_many_pieces_keep_their_order_and_memory_holds_a_few(tiny_trained, monkeypatch):
    model = load_run(read_run(tiny_trained["cola"]), "best", "cpu")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["good", "bad", "film", "very"], size=rng.integers(1, 30))) for _ in range(60)]
    whole = next(prediction.predict(model, [TextRows([str(i) for i in range(60)], texts, None)]))[1]
    asked = []

    def pieces():
        for start in range(0, 60, 7):
            asked.append(start)
            yield TextRows([str(i) for i in range(start, min(start + 7, 60))], texts[start : start + 7], None)

    uids, logits = [], []
    for done, (rows, found) in enumerate(prediction.predict(model, pieces(), batch_tokens=64), start=1):
        assert len(asked) <= done + 2
        uids += rows.uids
        logits.append(found)
    assert uids == [str(i) for i in range(60)]
    np.testing.assert_allclose(np.concatenate(logits), whole, atol=1e-5)


def test_standard_input_to_a_reader_that_soon_has_seen_enough(models, tmp_path):
    # A byte order mark, CRLF, quotes, an empty line; then more than one piece.
    lines = '\ufeffgood film\r\nit is "bad"\n\nthe very good plot\n' + "a good film\n" * 3000
    done = subprocess.run(
        f'"{sys.executable}" "{ROOT}/predict.py" "{models["exported", "cola"]}" --columns premise --device cpu'
        " | head -n 5; exit ${PIPESTATUS[0]}",
        shell=True, executable="/bin/bash", input=lines.encode(), capture_output=True, check=False, cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    header, *rows = done.stdout.decode().splitlines()
    assert header == "uid\tlabel\tp_0\tp_1"
    assert [row.split("\t")[0] for row in rows] == ["0", "1", "2", "3"]
    for row in rows:
        _, label, *shares = row.split("\t")
        assert sum(map(float, shares)) == pytest.approx(1.0, abs=1e-5)
        assert float(shares[int(label)]) == max(map(float, shares))


def test_columns_in_another_order_and_a_header(models, tiny_trained, tmp_path):
    rows = [line.split("\t") for line in (data_of(tiny_trained) / "stsb_dev.tsv").read_text().splitlines()]
    file = tmp_path / "pairs.tsv"
    file.write_text("b\tmore\tid\ta\n" + "".join(f"{b}\tx\t{uid}\t{a}\n" for uid, _, a, b in rows), encoding="utf-8")
    plain, other = tmp_path / "plain.tsv", tmp_path / "other.tsv"
    assert main(models["run", "stsb"], data_of(tiny_trained) / "stsb_dev.tsv", "--out", plain) == 0
    columns = ["--columns", "hypothesis,-,uid,premise", "--skip_header"]
    assert main(models["run", "stsb"], file, "--out", other, *columns) == 0
    assert plain.read_text().startswith("uid\tscore\n0\t")
    assert other.read_text() == plain.read_text()


@pytest.mark.parametrize("kind", ["run", "exported"])
def test_submission_files(kind, models, tiny_trained, tmp_path, capsys):
    for task, name in (("cola", "CoLA.tsv"), ("stsb", "STS-B.tsv")):
        more = [] if kind == "run" else ["--data_dir", data_of(tiny_trained)]
        assert main(models[kind, task], "--submission", tmp_path / "glue", *more) == 0
        assert f"has 30 rows, the official file {official_rows(f'{task}_test')}" in capsys.readouterr().err
        header, *rows = (tmp_path / "glue" / name).read_text().splitlines()
        assert header == "index\tprediction"
        expected = np.load(tiny_trained[task] / "predictions.npz")[f"{task}_dev.best_logits"]  # the same texts
        shown = [f"{np.clip(x, 0, 5):.3f}" for x in expected[:, 0]] if task == "stsb" else expected.argmax(axis=1)
        assert rows == [f"{i}\t{label}" for i, label in enumerate(shown)]


def test_submissions_use_the_official_words():
    logits = np.eye(3, dtype=np.float32)
    lines = list(submission_lines(TASKS["mnli"], "mnli_matched_test", ["0", "1", "2"], logits))
    assert lines == ["0\tcontradiction\n", "1\tneutral\n", "2\tentailment\n"]
    assert list(submission_lines(TASKS["rte"], "rte_test", ["7"], logits[1:2, :2])) == ["7\tentailment\n"]
    scores = np.float32([[-0.2], [2.71828], [5.4]])
    assert list(submission_lines(TASKS["stsb"], "stsb_test", ["0", "1", "2"], scores)) == [
        "0\t0.000\n", "1\t2.718\n", "2\t5.000\n",
    ]  # fmt: skip
    with pytest.raises(SettingError, match="uid 'a-1' is no number"):
        list(submission_lines(TASKS["rte"], "rte_test", ["a-1"], logits[:1, :2]))
    tests = {task.dataset_name(split) for task in TASKS.values() for split in task.split_names if "test" in split}
    assert tests == set(FILES)
    assert sum(map(official_rows, FILES)) == 1063 + 9796 + 9847 + 1725 + 5463 + 390965 + 3000 + 1821 + 1379 + 146


def test_mistakes_are_one_line_and_leave_nothing(models, tiny_trained, tmp_path, capsys, monkeypatch):
    run, exported, dev = models["run", "cola"], models["exported", "cola"], data_of(tiny_trained) / "cola_dev.tsv"
    out = tmp_path / "out.tsv"
    assert "MODEL nowhere does not exist" in error_of(capsys, "nowhere", dev)
    assert "is no run directory" in error_of(capsys, tmp_path, dev)
    assert "--epoch is for run directories" in error_of(capsys, exported, dev, "--epoch", "last")
    assert "'text' is unknown; each of uid, label," in error_of(capsys, run, dev, "--columns", "uid,text")
    assert "'uid' is given twice" in error_of(capsys, run, dev, "--columns", "uid,uid,premise")
    assert "task cola needs premise" in error_of(capsys, run, dev, "--columns", "premise,hypothesis")
    bad = tmp_path / "bad.tsv"
    bad.write_bytes(b"0\t1\tgood\n1\tgood\n")
    assert "bad.tsv: line 2: 2 columns instead of 3 (uid, label, premise)" in error_of(capsys, run, bad, "--out", out)
    bad.write_bytes(b"0\t1\tgood\n1\t0\t\xff\n")
    assert "bad.tsv: line 2: not UTF-8" in error_of(capsys, run, bad, "--out", out)
    assert "--out is given, but --submission" in error_of(capsys, run, "--submission", tmp_path, "--out", out)
    assert "cola_test.tsv does not exist" in error_of(
        capsys, run, "--submission", tmp_path / "glue", "--data_dir", tmp_path
    )
    with pytest.raises(SettingError, match="toy is no task of GLUE"):
        test_sets(replace(TASKS["cola"], name="toy"), tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert "standard input is a terminal" in error_of(capsys, run)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tsv"]


@pytest.mark.parametrize(
    ("task", "header", "columns"),
    [
        ("cola", "uid\tlabel\tpremise", "uid,label,premise"),
        ("cola", "\tlabel\tsentence", "uid,label,premise"),
        ("cola", "7\tLabel\ta good film", "uid,label,premise"),
        ("cola", "id\ttext", "uid,premise"),
        ("stsb", "index\tscore\tsentence1\tsentence2", "uid,label,premise,hypothesis"),
        ("stsb", "sentence1\tsentence2\twhatever", "premise,hypothesis,-"),
    ],
)
def test_a_header_is_no_example(models, tmp_path, capsys, task, header, columns):
    file, out = tmp_path / "in.tsv", tmp_path / "out.tsv"
    row = "\t".join({"uid": "9", "label": "1"}.get(name, "good film") for name in columns.split(","))
    file.write_text(f"{header}\n{row}\n", encoding="utf-8")
    run = models["run", task]
    told = error_of(capsys, run, file, "--columns", columns, "--out", out)
    assert f"{file}: line 1 ({shown(header)}) looks like a header" in told
    assert "--skip_header" in told
    assert not out.exists()
    assert main(run, file, "--columns", columns, "--skip_header", "--out", out) == 0
    assert len(out.read_text().splitlines()) == 2


def test_rows_that_are_no_header_are_scored(models, tmp_path, capsys):
    run = models["run", "cola"]
    for text, columns in (
        ("label\n", "premise"),  # a sentence of one word
        ("a\t?\tgood\n", "uid,label,premise"),  # nobody knows its label
        ("uid\t1\tpremise\n", "uid,label,premise"),
        ("id\tlabel\n", "uid,premise"),
    ):
        (tmp_path / "in.tsv").write_text(text)
        assert main(run, tmp_path / "in.tsv", "--columns", columns, "--out", tmp_path / "out.tsv") == 0
        assert len((tmp_path / "out.tsv").read_text().splitlines()) == 2
        assert capsys.readouterr().err == ""
    (tmp_path / "in.tsv").write_text("sentence\ngood\n")
    assert main(run, tmp_path / "in.tsv", "--columns", "premise", "--out", tmp_path / "out.tsv") == 0
    assert "line 1 ('sentence') looks like a header and is scored as a text" in capsys.readouterr().err
    assert len((tmp_path / "out.tsv").read_text().splitlines()) == 3


def test_a_label_of_the_task_is_no_heading():
    task = replace(TASKS["cola"], labels=("label", "other"))
    assert not looks_like_header("0\tlabel\tgood", ("uid", "label", "premise"), task)
    assert looks_like_header("0\ttarget\tgood", ("uid", "label", "premise"), task)
    assert not looks_like_header("uid\tlabel", ("uid", "label", "premise"), task)


def test_a_refused_first_row_comes_without_a_header(models, tmp_path, capsys):
    run = models["run", "cola"]
    (tmp_path / "cut.tsv").write_text("u1\t0\n", encoding="utf-8")
    assert main(run, tmp_path / "cut.tsv") == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "line 1: 2 columns instead of 3 (uid, label, premise); name the columns with --columns" in told.err
    (tmp_path / "none.tsv").write_text("", encoding="utf-8")
    assert main(run, tmp_path / "none.tsv") == 0
    assert capsys.readouterr().out == "uid\tlabel\tp_0\tp_1\n"


def test_empty_lines_at_the_end_are_no_rows_but_empty_texts_are(models, tmp_path):
    file, out = tmp_path / "in.tsv", tmp_path / "out.tsv"
    for text, more, n in (("0\t1\tgood\n\n\r\n", (), 1), ("good\n\n\n", ("--columns", "premise"), 3)):
        file.write_text(text, newline="")
        assert main(models["run", "cola"], file, "--out", out, *more) == 0
        assert len(out.read_text().splitlines()) == 1 + n


@pytest.mark.parametrize("kind", ["run", "exported"])
def test_texts_that_the_encoder_cannot_take_are_named(kind, models, tmp_path, capsys, monkeypatch):
    file, out = tmp_path / "in.tsv", tmp_path / "out.tsv"
    file.write_text("a\t1\tgood\nb\t1\t" + "good " * 700 + "\n")
    if kind == "exported":  # cut to what its tokenizer says, which fits
        assert main(models[kind, "cola"], file, "--out", out) == 0
        return
    told = error_of(capsys, models[kind, "cola"], file, "--out", out)
    assert f"{file}: row 2 (uid 'b') has 512 tokens, and this encoder takes 64; shorten the text" in told
    assert not out.exists()


def test_a_full_disk_names_the_file_and_leaves_nothing(models, tiny_trained, tmp_path, capsys):
    data = data_of(tiny_trained)
    run = models["run", "cola"]
    with no_file_longer_than(100):
        told = error_of(capsys, run, data / "cola_dev.tsv", "--out", tmp_path / "out.tsv")
        assert told == f"error: cannot write {tmp_path / 'out.tsv'}: File too large"
        told = error_of(capsys, run, "--submission", tmp_path)
        assert told == f"error: cannot write {tmp_path / 'CoLA.tsv'}: File too large"
    assert list(tmp_path.iterdir()) == []
    told = error_of(capsys, run, tmp_path / "none.tsv")
    assert told == f"error: INPUT {tmp_path / 'none.tsv'} does not exist; name a file of rows, or - for standard input"


def test_a_token_without_an_embedding_is_named(tiny_trained):
    model = load_run(read_run(tiny_trained["cola"]), "best", "cpu")
    size = model.network.encoder.limits.vocab_size
    model.tokenizer.tokenizer.add_tokens(["newword"])
    rows = [TextRows([str(i)], [text], None) for i, text in enumerate(["good", "bad", "a newword"])]
    found = prediction.predict(model, rows, name="in.tsv")
    assert [next(found)[0].uids, next(found)[0].uids] == [["0"], ["1"]]
    with pytest.raises(SettingError, match=rf"^in.tsv: row 3 \(uid '2'\) holds token id {size}, .* {size} rows"):
        next(found)


def test_an_ascii_terminal_gets_the_uids_as_they_are(models, tmp_path, monkeypatch):
    (tmp_path / "in.tsv").write_text("é\t1\tgood\n", encoding="utf-8")
    terminal = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal, encoding="ascii", write_through=True))
    assert main(models["run", "cola"], tmp_path / "in.tsv") == 0
    assert terminal.getvalue().splitlines()[1].startswith("é\t".encode())


TEXT = st.text(st.characters(exclude_characters="\t\r\n", exclude_categories=["Cs"]))


@given(st.lists(st.tuples(TEXT, TEXT, TEXT)), st.integers(1, 5))
def test_rows_come_back_whatever_the_piece(rows, size):
    columns = parse_columns("premise,uid,hypothesis", TASKS["rte"])
    lines = enumerate(("\t".join(row) for row in rows), start=1)
    pieces = list(iterate_rows(lines, "file", columns, size))
    assert all(1 <= len(piece.uids) <= size for piece in pieces)
    found = [row for piece in pieces for row in zip(piece.premise, piece.uids, piece.hypothesis, strict=True)]
    assert found == rows


@pytest.mark.parametrize("kind", ["run", "exported"])
def test_scores_are_those_of_the_evaluation(kind, models, tiny_trained, tmp_path, capsys):
    for task, metrics in (("cola", ["MCC", "ACC", "F1", "F1MAC"]), ("stsb", ["Pearson", "Spearman"])):
        best = json.loads((models["run", task] / "result.json").read_text())["best"]["metrics"][f"{task}_dev"]
        dev = data_of(tiny_trained) / f"{task}_dev.tsv"
        assert main(models[kind, task], dev, "--score", "--format", "jsonl") == 0
        found = json.loads(capsys.readouterr().out)
        assert list(found["metrics"]) == metrics
        assert found["n"] == 30
        assert {name: found["metrics"][name] for name in best} == pytest.approx(best, abs=1e-4, nan_ok=True)
    header = ["uid", "score", "one", "two"]
    rows = [line.split("\t") for line in dev.read_text().splitlines()]
    (tmp_path / "table.jsonl").write_text(
        "".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows)
    )
    columns = ["--text", "one", "--text_pair", "two", "--label", "score"]
    assert main(models[kind, "stsb"], tmp_path / "table.jsonl", "--score", *columns, "--format", "jsonl") == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == found["metrics"]


def test_labels_of_a_table_are_mapped_by_name_or_refused(models, tiny_trained, tmp_path, capsys):
    run, dev = models["run", "cola"], data_of(tiny_trained) / "cola_dev.tsv"
    rows = [line.split("\t") for line in dev.read_text().splitlines()]
    named = [f'"{text}",{("neg", "pos")[int(label)]}\n' for _, label, text in rows]
    (tmp_path / "named.csv").write_text("text,mood\n" + "".join(named) + "odd,-\n")
    table = [tmp_path / "named.csv", "--score", "--text", "text", "--label", "mood"]
    assert "row 1: label" in error_of(capsys, run, *table)
    assert "is none of 0, 1; name the one that it is with --label_map" in error_of(capsys, run, *table)
    mapped = [*table, "--label_map", "neg=0, pos=1"]
    assert "row 31: label '-' is none of 0, 1" in error_of(capsys, run, *mapped)
    assert main(run, *mapped, "--skip_label", "-", "--out", tmp_path / "scores.tsv") == 0
    assert capsys.readouterr().err == ""
    (tmp_path / "twice.tsv").write_text("1\t1\ta\n1\t0\tb\n")
    assert "twice.tsv: 1 rows repeat the uid of another" in error_of(capsys, run, tmp_path / "twice.tsv", "--score")
    unused = ["--skip_label", "-", "--skip_label", "odd", "--out", tmp_path / "scores.tsv"]
    assert main(run, *table, "--label_map", "neg=0,pos=1,x=1", *unused) == 0
    notes = "note: --skip_label 'odd': no row has it\nnote: --label_map x=1: no row has 'x'\n"
    assert capsys.readouterr().err == notes
    assert main(run, dev, "--score") == 0
    told = capsys.readouterr().out
    assert (tmp_path / "scores.tsv").read_text() == told
    assert told.splitlines()[0] == "metric\tscore"
    assert told.splitlines()[-1] == "n\t30"
    assert "'neg' is not FILE_LABEL=TASK_LABEL" in error_of(capsys, run, *table, "--label_map", "neg")
    assert "--text_pair: task cola has one text" in error_of(capsys, run, *table, "--text_pair", "mood")
    assert "--text and --label go together" in error_of(capsys, run, dev, "--score", "--text", "x")
    for option in ("--text", "--label_map", "--skip_label", "--delimiter"):
        assert f"{option} goes with --score; add it" in error_of(capsys, run, dev, option, "x")
        assert f"{option} goes with --score; drop it" in error_of(capsys, run, "--submission", tmp_path, option, "x")
    for option in ("--text_pair", "--label_map", "--skip_label", "--delimiter"):
        assert f"{option} is for a table; give --text and --label" in error_of(capsys, run, dev, "--score", option, "x")
    assert "a .csv file is no canonical one; give --text and --label" in error_of(capsys, run, table[0], "--score")
    odd = [f"{label};{text}\n" for text, label in (line.strip().replace('"', "").split(",") for line in named)]
    (tmp_path / "odd.csv").write_text("mood;text\n" + "x-;-\n-;-\n" + "".join(odd))
    mapped[0] = tmp_path / "odd.csv"
    assert "has no ',', but ';'; give --delimiter ';'" in error_of(capsys, run, *mapped)
    mapped += ["--delimiter", ";", "--skip_label", "-"]
    assert "odd.csv: row 1: label 'x-'" in error_of(capsys, run, *mapped)
    assert main(run, *mapped, "--skip_label", "x-") == 0
    assert capsys.readouterr().out == told
    assert "--score reads a file" in error_of(capsys, run, "--score")
    assert "has no column 'x'" in error_of(capsys, run, table[0], "--score", "--text", "x", "--label", "mood")
    shutil.copy(data_of(tiny_trained) / "stsb_dev.tsv", tmp_path / "other.tsv")
    assert "columns instead of 3" in error_of(capsys, run, tmp_path / "other.tsv", "--score")
