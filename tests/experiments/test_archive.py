import io
import lzma
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from experiments.study import study
from experiments.study.__main__ import main as run_study
from experiments.study.archive import FILES, main, pack, read_archive
from mt_dnn.config import RunConfig
from mt_dnn.results import RunResult, Status
from mt_dnn.run_directory import RunDirectory
from tests.edits import edit_json, flip
from tests.experiments.fake_runs import calls, fake_run, write_run
from tests.experiments.search_runs import PoolInProcess


def with_files(folder: Path) -> Path:
    """Give a finished run predictions, weights and their checksums."""
    directory = RunDirectory(folder)
    directory.write_predictions({"cola_dev.best_logits": np.arange(6.0).reshape(3, 2)})
    directory.checkpoints.mkdir()
    (directory.checkpoints / "best.safetensors").write_bytes(b"weights")
    edit_json(directory.result_json, files={**directory.hashes(), "checkpoints/best.safetensors": "0" * 64})
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two finished runs with weights, a pruned, a failed and an unfinished one."""
    for seed in (1, 2):
        with_files(write_run(tmp_path / "runs", seed=seed))
    write_run(tmp_path / "runs", seed=3, status=Status.PRUNED)
    write_run(tmp_path / "runs", seed=4, status=Status.FAILED)
    write_run(tmp_path / "runs", seed=5, finished=False)
    return tmp_path / "runs"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write_archive(file: Path, members: Mapping[str, bytes], link: str = "") -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        if link:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    file.write_bytes(lzma.compress(buffer.getvalue()))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: Path | str) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_finished_runs_come_out_as_they_went_in_without_weights(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, there = tmp_path / "runs.tar.xz", tmp_path / "there"
    assert main(["pack", str(runs), str(file)]) == 0
    assert capsys.readouterr().out.startswith("3 runs packed")
    assert main(["unpack", str(there), str(file)]) == 0
    assert capsys.readouterr().out == f"3 runs unpacked into {there}, 0 were already there\n"
    packed = {name: content for name, content in contents(runs).items() if name.rpartition("/")[2] in FILES}
    expected = {
        name: content for name, content in packed.items() if name.split("/")[4] in ("seed=1", "seed=2", "seed=3")
    }
    found = contents(there)
    assert {name: content for name, content in found.items() if not name.endswith("/.lock")} == expected
    assert len(expected) == 2 * 4 + 3


def test_equal_runs_make_an_equal_file(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "copy", copy_function=shutil.copyfile)  # of other times
    assert pack(runs, tmp_path / "one") == pack(tmp_path / "copy", tmp_path / "two") == 3
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_unpacking_again_adds_what_is_missing(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, there = tmp_path / "runs.tar.xz", tmp_path / "there"
    pack(runs, file)
    assert main(["unpack", str(there), str(file)]) == 0
    before = contents(there)
    first = next(there.glob("*/*/*/*/seed=1"))
    shutil.rmtree(first)
    (next(there.glob("*/*/*/*/seed=2")) / "result.json").unlink()  # as a kill leaves it: the result comes last
    capsys.readouterr()
    assert main(["unpack", str(there), str(file)]) == 0
    assert capsys.readouterr().out == f"2 runs unpacked into {there}, 1 were already there\n"
    assert contents(there) == before


def test_a_run_that_differs_is_kept_and_nothing_is_unpacked(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, there = tmp_path / "runs.tar.xz", tmp_path / "there"
    pack(runs, file)
    other = write_run(there, seed=2, best=70.0)
    before = contents(there)
    refused = refusal(capsys, "unpack", there, file)
    assert f"{other}/" in refused
    assert f" is not the one in {file}, and stays; unpack into another folder, or delete {other}" in refused
    assert contents(there) == before


def test_a_run_that_is_being_computed_is_left_alone(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, there = tmp_path / "runs.tar.xz", tmp_path / "there"
    pack(runs, file)
    run = next(there / run for run in read_archive(file) if run.endswith("seed=2"))
    with RunDirectory(run).lock():
        assert "is being computed by another process; let it end" in refusal(capsys, "unpack", there, file)
    assert list(contents(there)) == [f"{run.relative_to(there).as_posix()}/.lock"]


@pytest.mark.parametrize("position", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_a_damaged_archive_is_refused(
    position: float, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "runs.tar.xz"
    pack(runs, file)
    whole = file.read_bytes()
    flip(file, position)
    assert f"{file} is damaged" in refusal(capsys, "unpack", tmp_path / "there", file)
    file.write_bytes(whole[: int(position * (len(whole) - 1))])
    assert f"{file} is damaged" in refusal(capsys, "unpack", tmp_path / "there", file)
    assert f"{file} is damaged" in refusal(capsys, "pack", runs, file)  # nor is it replaced
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    "path",
    [
        "../a/b/c/seed=1/result.json", "/a/b/c/d/seed=1/result.json", "a/b/../../seed=1/result.json",
        "a/b/c/d/seed=1/../result.json", "a/b/c/d/seed=1/best.safetensors", "a/b/c/d/e/result.json", "result.json",
    ],
)  # fmt: skip
def test_a_path_that_is_not_of_a_run_is_refused(path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "runs.tar.xz"
    write_archive(file, {path: b"{}"})
    assert f"holds '{path}', which is no file of a run" in refusal(capsys, "unpack", tmp_path / "there", file)
    assert [p.name for p in tmp_path.iterdir()] == ["runs.tar.xz"]


def test_a_link_and_a_second_file_of_a_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, path = tmp_path / "runs.tar.xz", "a/b/c/d/seed=1/result.json"
    write_archive(file, {}, link=path)
    assert "which is no file of a run" in refusal(capsys, "unpack", tmp_path / "there", file)
    write_archive(file, {path: b"{}"}, link=path)
    assert "which is no file of a run, or is there twice" in refusal(capsys, "unpack", tmp_path / "there", file)


def test_an_archive_with_a_run_that_is_no_whole_one_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, there = tmp_path / "runs.tar.xz", tmp_path / "there"
    pack(runs, file)
    run, files = next(iter(read_archive(file).items()))
    members = {f"{run}/{name}": content for name, content in files.items()}

    def told(**changes: bytes | None) -> str:
        changed = {**members, **{f"{run}/{name.replace('_', '.')}": value for name, value in changes.items()}}
        write_archive(file, {name: content for name, content in changed.items() if content is not None})
        return refusal(capsys, "unpack", there, file)

    assert f"{run}/predictions.npz is damaged" in told(predictions_npz=b"0")
    assert f"{run}/predictions.npz is missing" in told(predictions_npz=None)
    assert f"{run}/result.json is damaged" in told(result_json=b"{}")
    assert f"{run}/run.json is damaged" in told(run_json=b"[")
    assert f"{run} is not finished" in told(result_json=None)
    moved = run.replace("seed=1", "seed=9")
    write_archive(file, {name.replace(run, moved): content for name, content in members.items()})
    assert f"{moved}/result.json is the result of {run}" in refusal(capsys, "unpack", there, file)
    assert not there.exists()


def test_a_damaged_run_is_not_packed(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(next(runs.glob("*/*/*/*/seed=2")) / "predictions.npz")
    assert "predictions.npz is damaged" in refusal(capsys, "pack", runs, tmp_path / "runs.tar.xz")
    assert not (tmp_path / "runs.tar.xz").exists()


def test_no_run_is_lost_from_an_archive(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "runs.tar.xz"
    assert f"no finished runs under {tmp_path / 'none'}" in refusal(capsys, "pack", tmp_path / "none", file)
    pack(runs, file)
    before = file.read_bytes()
    write_run(tmp_path / "fresh", method="pats")
    assert "has 3 runs that are not finished under" in refusal(capsys, "pack", tmp_path / "fresh", file)
    assert file.read_bytes() == before
    assert main(["unpack", str(tmp_path / "fresh"), str(file)]) == 0
    assert pack(tmp_path / "fresh", file) == 4


def test_a_study_goes_on_with_unpacked_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "open_all", lambda config: None)  # fake runs need no token caches
    monkeypatch.setattr(study, "Pool", PoolInProcess)
    monkeypatch.setattr(study, "_figures", lambda table, out: [])
    monkeypatch.setattr(study, "write_ensembles", lambda *_: [])  # fake runs have no predictions
    (tmp_path / "vanilla.yml").write_text(
        "encoder: all-MiniLM-L6-v2\nmethod: vanilla\nsource: a test\nsettings: {epochs: 1}\n"
        "tasks: {cola: {learning_rate: 1.0e-4}}\n"
    )

    def run_with_weights(config: RunConfig, on_progress: object = None) -> RunResult:
        result = fake_run(config)
        with_files(RunDirectory(next(config.output_dir.glob(f"*/*/*/*/seed={config.seed}"))).path)
        return result

    def go(machine: str, seeds: int) -> Path:
        root = tmp_path / machine
        (root / "data").mkdir(parents=True)
        for split in ("train", "dev"):
            (root / f"data/cola_{split}.tsv").write_text("1\t1\tsome words\n" * 40)
        if (tmp_path / "runs.tar.xz").exists():
            assert main(["unpack", str(root / "runs"), str(tmp_path / "runs.tar.xz")]) == 0
        arguments = [
            "--recipes", str(tmp_path / "vanilla.yml"), "--data_dir", str(root / "data"), "--output_dir",
            str(root / "runs"), "--results_dir", str(root / "results"), "--name", "test", "--seeds", str(seeds),
            "--devices", "cpu", "--workers_per_device", "1",
        ]  # fmt: skip
        assert run_study(arguments, run=run_with_weights) == 0
        return root / "runs"

    here = go("here", 2)
    pack(here, tmp_path / "runs.tar.xz")
    there = go("there", 3)
    assert len(calls(here)) == 2
    assert [line.split()[2] for line in calls(there)] == ["3"]
