import os
from pathlib import Path

import pytest

import prepro_std
from data_utils import token_cache
from data_utils.token_cache import TokenCache, open_cache
from experiments.glue.glue_prepro import GLUE_TASK_DEF
from tests.full_disk import no_file_longer_than

ROOT = Path(__file__).resolve().parents[2]
TASKS = """
pair:
  {data_format: PremiseAndOneHypothesis, task_type: Classification, n_class: 2, metric_meta: [ACC], enable_san: false}
single:
  {data_format: PremiseOnly, task_type: Classification, n_class: 2, metric_meta: [ACC], enable_san: false}
empty:
  {data_format: PremiseOnly, task_type: Classification, n_class: 2, metric_meta: [ACC], enable_san: false}
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "tasks.yml").write_text(TASKS)
    (tmp_path / "pair_train.tsv").write_text("0\t1\tthe cat\ta dog\n1\t0\tsun\t\n")
    (tmp_path / "single_train.tsv").write_text("0\t1\tthe cat sat on the mat\n")
    (tmp_path / "single_dev.tsv").write_text("0\t0\t\n")
    return tmp_path


def run(data: Path, tokenizer: Path, *more: str) -> int:
    arguments = ["--root_dir", str(data), "--task_def", str(data / "tasks.yml"), "--model", str(tokenizer)]
    return prepro_std.main([*arguments, *more])


def cache(data: Path, name: str, max_seq_len: int = 512) -> TokenCache:
    return open_cache(data / "cache" / "tiny-bert" / str(max_seq_len) / name)


def test_every_file_gets_a_cache(data: Path, wordpiece_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data, wordpiece_folder) == 0
    assert len(cache(data, "pair_train")) == 2
    assert cache(data, "pair_train").segment.tolist() == [4, 3]
    assert len(cache(data, "single_train")) == len(cache(data, "single_dev")) == 1
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 3
    assert f"{cache(data, 'pair_train').path}: 2 examples, 11 tokens, longest 7\n" in out


def test_tasks_length_folder_and_workers(
    data: Path,
    wordpiece_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAYON_NUM_THREADS", "7")  # restored afterwards
    options = ["--tasks", "single", "--max_seq_len", "6", "--cache_dir", str(tmp_path / "else"), "--workers", "1"]
    assert run(data, wordpiece_folder, *options) == 0
    folder = tmp_path / "else" / "tiny-bert" / "6"
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} == {"single_train", "single_dev"}
    assert open_cache(folder / "single_train").lengths.tolist() == [6]
    assert "longest 6, 1 cut to 6" in capsys.readouterr().out
    assert os.environ["RAYON_NUM_THREADS"] == "1"


def test_a_damaged_cache_is_named_and_mended(
    data: Path, wordpiece_folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(data, wordpiece_folder) == 0
    file = cache(data, "single_train").path / "tokens.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"\xff")
    # Every byte is read, even of files that were verified before and look untouched.
    monkeypatch.setattr(token_cache, "is_stamped", lambda *_: True)
    assert run(data, wordpiece_folder) == 0
    assert f"{file}: damaged" in caplog.text
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--tasks", "nope"], "unknown task 'nope'"),
        (["--tasks", "single,empty"], "empty_test, each .tsv); docs/data.md tells the form of <task>_train.tsv"),
        (["--root_dir", "nowhere"], "no canonical file of pair, single, empty"),
        (["--max_seq_len", "2"], "max_seq_len is 2"),
        (["--workers", "0"], "--workers is 0"),
        (["--model", "./nowhere"], "nowhere"),
        (["--task_def", "nowhere.yml"], "nowhere.yml"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    data: Path, wordpiece_folder: Path, options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, wordpiece_folder, *options) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert reason in err
    assert err.count("\n") == 1


def test_the_default_task_file_exists() -> None:
    default = prepro_std._parser().get_default("task_def")
    assert default == GLUE_TASK_DEF == ROOT / "experiments/glue/glue_task_def.yml"
    assert default.is_file()


def test_tasks_that_cannot_be_run_are_left_out(
    data: Path, wordpiece_folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with (data / "tasks.yml").open("a") as file:
        file.write(
            "ranking: {data_format: PremiseOnly, task_type: Ranking, n_class: 2, metric_meta: [ACC], enable_san: no}\n"
        )
    assert run(data, wordpiece_folder) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert "task ranking: task_type is 'Ranking'; legal values: Classification, Regression; left out" in caplog.text
    assert run(data, wordpiece_folder, "--tasks", "single,ranking") == 2
    assert "task ranking: task_type is 'Ranking'" in capsys.readouterr().err


def test_a_full_disk_is_told_with_the_cache(
    data: Path, wordpiece_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with no_file_longer_than(64):
        assert run(data, wordpiece_folder, "--tasks", "pair") == 2
    folder = data / "cache" / "tiny-bert" / "512" / "pair_train"
    assert capsys.readouterr().err == f"error: cannot write {folder}: File too large\n"
    assert [path.name for path in folder.parent.iterdir()] == [".pair_train.lock"]
