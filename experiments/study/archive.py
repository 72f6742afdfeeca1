r"""Finished runs in one file, carried to another machine: a study goes on there where it stopped.

    python -m experiments.study.archive pack runs records/mine/runs.tar.xz
    python -m experiments.study.archive unpack runs records/mine/runs.tar.xz
    python -m experiments.study ...            the study's own command: it computes what is still missing

A run's settings, result, metrics, predictions and sensitivities are packed; its weights, logs and scores on other sets
are not. Tables, tests, figures and searches need no more. Runs that are not finished or have failed are left out.
Equal runs make an equal file. What is packed and unpacked is checked by the checksums of the results. A run that is
already there stays; one that differs, or is being computed, is refused before anything is written. A file is replaced
only if every run in it is packed again.
"""

from __future__ import annotations

import io
import lzma
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from data_utils.atomic import write_bytes_atomic
from data_utils.command_line import CommandParser, status_of
from data_utils.errors import SettingError, in_one_line, shown
from data_utils.regular_file import read_regular
from mt_dnn.results import Status
from mt_dnn.run_directory import RunDirectory, RunLocked

FILES = ("run.json", "metrics.jsonl", "predictions.npz", "sensitivity.json", "result.json")
"""Files of a run that are packed, in the order in which they are unpacked: with its result a run is done."""
_DEPTH = 5  # <task>/<encoder>/<method>/<run id>/seed=<seed>

PackedRuns = Mapping[str, Mapping[str, bytes]]
"""Folder of a run below ``output_dir`` -> name of a file in it -> content."""


def pack(runs: Path, file: Path) -> int:
    """Pack the finished runs under a folder; the same runs give the same bytes.

    Args:
        runs: ``output_dir`` of the runs.
        file: The archive, replaced if it exists.

    Returns:
        How many runs were packed.

    Raises:
        SettingError: no finished run, a damaged one, or an archive with runs that are not under the folder.
        OSError: the archive cannot be written.
    """
    found = read_runs(runs)
    if not found:
        raise SettingError(
            f"no finished runs under {runs}: give the output_dir of the runs, which has "
            "<task>/<encoder>/<method>/<run id>/seed=<seed>"
        )
    if file.exists():
        lost = sorted(read_archive(file).keys() - found.keys())
        if lost:
            raise SettingError(
                f"{file} has {len(lost)} runs that are not finished under {runs} (first: {lost[0]}); unpack it first, "
                "or choose another file"
            )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for run, contents in found.items():
            for name, content in contents.items():
                member = tarfile.TarInfo(f"{run}/{name}")  # of no time and no owner
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    write_bytes_atomic(file, lzma.compress(buffer.getvalue(), preset=9))
    return len(found)


def unpack(runs: Path, file: Path) -> tuple[int, int]:
    """Unpack runs under a folder, which is made if it is missing: all of them, or none if one is refused.

    Returns:
        How many were unpacked, and how many were already there.

    Raises:
        SettingError: a damaged archive, a path in it that is not of a run, a run in it that is damaged, or one under
            the folder that differs or is being computed.
        OSError: the folder cannot be written.
    """
    packed = read_archive(file)
    _check(packed, file)
    todo = {run: contents for run, contents in packed.items() if _is_missing(runs / run, contents, file)}
    for run in todo:
        if (runs / run).exists():
            with _locked(runs / run):
                pass
    for run, contents in todo.items():
        with _locked(runs / run):
            _is_missing(runs / run, contents, file)  # another process may have ended it meanwhile
            for name in FILES:
                if name in contents:
                    write_bytes_atomic(runs / run / name, contents[name])
    return len(todo), len(packed) - len(todo)


def read_runs(runs: Path) -> dict[str, dict[str, bytes]]:
    """Read the finished runs under a folder, and those that a search has pruned; sorted by their folders.

    Raises:
        SettingError: one of them is damaged.
    """
    found = {}
    for folder in sorted(runs.glob("/".join(["*"] * (_DEPTH - 1) + ["seed=*"]))):
        directory = RunDirectory(folder)
        result = directory.read_result()
        if result is None or result.status is Status.FAILED:
            continue
        directory.read_description()
        for name in FILES:
            if name in result.files and (name != "metrics.jsonl" or directory.metrics_jsonl.is_file()):
                directory.check_file(folder / name, result)
        paths = [folder / name for name in FILES if (folder / name).is_file()]
        found[folder.relative_to(runs).as_posix()] = {path.name: read_regular(path) for path in paths}
    return found


def read_archive(file: Path) -> dict[str, dict[str, bytes]]:
    """Read an archive of runs; nothing is written.

    Raises:
        SettingError: it is damaged, or holds something that is no file of a run, such as a path out of the folder.
        OSError: it cannot be read.
    """
    data = read_regular(file)
    found: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(lzma.decompress(data)), mode="r:") as tar:
            members = [(member, tar.extractfile(member) if member.isreg() else None) for member in tar.getmembers()]
            contents = [(member.name, None if content is None else content.read()) for member, content in members]
    except MemoryError:
        raise
    except Exception as error:  # the archives' readers let nearly anything through
        raise SettingError(
            f"{file} is damaged, or no archive of runs ({in_one_line(error)}); copy or pack it again"
        ) from None
    for path, content in contents:
        run, _, name = path.rpartition("/")
        if content is None or not _is_run(run) or name not in FILES or name in found.get(run, ()):
            raise SettingError(
                f"{file} holds {shown(path)}, which is no file of a run, or is there twice; legal: "
                f"<task>/<encoder>/<method>/<run id>/seed=<seed>/ and one of {', '.join(FILES)}"
            )
        found.setdefault(run, {})[name] = content
    return found


def _is_run(folder: str) -> bool:
    """Whether it is the path of a run below its ``output_dir``, and leads nowhere else."""
    parts = folder.split("/")
    return len(parts) == _DEPTH and parts[-1].startswith("seed=") and not {"", ".", ".."} & set(parts)


def _check(packed: PackedRuns, file: Path) -> None:
    """Refuse runs of an archive that are not finished or are damaged."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for run, contents in packed.items():
            (root / run).mkdir(parents=True)
            for name, content in contents.items():
                (root / run / name).write_bytes(content)
        try:
            whole = read_runs(root)
        except SettingError as error:
            raise SettingError(f"{file}: {str(error).replace(f'{root}/', '')}, and pack it again") from None
    for run in packed.keys() - whole.keys():
        raise SettingError(f"{file}: {run} is not finished; pack it again")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a run's lock, or refuse a run that is being computed."""
    with ExitStack() as stack:
        try:
            stack.enter_context(RunDirectory(folder).lock())
        except RunLocked as error:
            raise SettingError(f"{error}; let it end, or unpack into another folder") from None
        yield


def _is_missing(folder: Path, contents: Mapping[str, bytes], file: Path) -> bool:
    """Whether files of a run are still to be unpacked.

    Raises:
        SettingError: the folder has a file that differs.
    """
    for name in FILES:
        there = folder / name
        if there.exists() and read_regular(there) != contents.get(name):
            raise SettingError(
                f"{there} is not the one in {file}, and stays; unpack into another folder, or delete {folder}"
            )
    return not all((folder / name).exists() for name in contents)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 2 for a wrong setting or file."""
    parser = CommandParser(
        "python -m experiments.study.archive", __doc__, "\nExit status: 0 done, 2 a setting or file is wrong."
    )
    parser.add_argument("action", choices=("pack", "unpack"))
    parser.add_argument("runs", type=Path, help="output_dir of the runs")
    parser.add_argument("file", type=Path, help="the archive, such as runs.tar.xz")
    chosen = parser.parse_args(arguments)
    return status_of(lambda: _tell(chosen.action, chosen.runs, chosen.file))


def _tell(action: str, runs: Path, file: Path) -> None:
    if action == "pack":
        print(f"{pack(runs, file)} runs packed into {file}, {file.stat().st_size} bytes")
        return
    unpacked, there = unpack(runs, file)
    print(f"{unpacked} runs unpacked into {runs}, {there} were already there")


if __name__ == "__main__":
    sys.exit(main())
