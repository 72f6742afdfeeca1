"""Fetch GLUE's official files, resume broken downloads, and refuse files that are not the official ones.

Called by ``scripts/download_glue.sh``. An archive goes to ``<out_dir>/.download``, is unpacked into a temporary
folder there and checked by row counts; only then its files appear in ``<out_dir>/<Task>/``.
"""

import argparse
import fcntl
import os
import shutil
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

if __package__ in {None, ""}:  # run as a script: the project root is two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_utils.command_line import CommandParser, status_of
from data_utils.errors import SettingError, error_line, naming, shown
from data_utils.task_def import TaskDef, load_task_defs
from experiments.glue.fetch import fetch
from experiments.glue.glue_prepro import GLUE_TASK_DEF, task_names
from experiments.glue.glue_readers import MSR_DEV_IDS, MSR_FILES, TASKS, read_msr_paraphrase, read_split

BASE_URL = "https://dl.fbaipublicfiles.com"
DEFAULT_TASKS = tuple(name for name in TASKS if name != "wnli")  # Table 1 has no WNLI
_MAX_UNPACKED = 4 * 2**30  # bytes; MNLI, the largest, has less than a third of it


@dataclass(frozen=True, slots=True)
class Download:
    """A file on the server."""

    url: str
    """Below the base URL."""
    name: str
    """Local name: an archive, or a file of the task's folder."""


DOWNLOADS: dict[str, tuple[Download, ...]] = {
    "cola": (Download("glue/data/CoLA.zip", "CoLA.zip"),),
    "mnli": (Download("glue/data/MNLI.zip", "MNLI.zip"),),
    "mrpc": (
        Download("senteval/senteval_data/msr_paraphrase_train.txt", MSR_FILES["train"]),
        Download("senteval/senteval_data/msr_paraphrase_test.txt", MSR_FILES["test"]),
        Download("glue/data/mrpc_dev_ids.tsv", MSR_DEV_IDS[0]),
    ),
    "qnli": (Download("glue/data/QNLIv2.zip", "QNLIv2.zip"),),
    "qqp": (Download("glue/data/QQP-clean.zip", "QQP-clean.zip"),),
    "rte": (Download("glue/data/RTE.zip", "RTE.zip"),),
    "sst": (Download("glue/data/SST-2.zip", "SST-2.zip"),),
    "stsb": (Download("glue/data/STS-B.zip", "STS-B.zip"),),
    "wnli": (Download("glue/data/WNLI.zip", "WNLI.zip"),),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, or 2 if a task could not be fetched (the others are)."""
    parser = CommandParser("download_glue.sh", "Fetch and check GLUE's official files.")
    parser.add_argument("--out_dir", type=Path, default=Path("data"), help="[%(default)s]")
    parser.add_argument(
        "--tasks", default=",".join(DEFAULT_TASKS), help="comma-separated; wnli on request [%(default)s]"
    )
    parser.add_argument(
        "--base_url",
        default=os.environ.get("GLUE_BASE_URL", BASE_URL),
        help="server with the same layout; also the environment variable GLUE_BASE_URL [%(default)s]",
    )
    args = parser.parse_args(argv)
    return status_of(lambda: _download(args))


def _download(args: argparse.Namespace) -> int:
    names = task_names(args.tasks) or ()
    if not args.base_url.startswith(("http://", "https://")):
        raise SettingError(f"--base_url {shown(args.base_url)}: must begin with http:// or https://")
    definitions = load_task_defs(GLUE_TASK_DEF)
    work = args.out_dir / ".download"
    work.mkdir(parents=True, exist_ok=True)
    failed = []
    with (work / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two downloads into one folder would mix their bytes
        for name in names:
            try:
                print(download_task(args.out_dir, definitions[name], args.base_url.rstrip("/")), flush=True)
            except (SettingError, OSError) as error:
                failed.append(name)
                print(f"error: {name}: {error_line(error)}", file=sys.stderr)
    if failed:
        raise SettingError(f"not fetched: {', '.join(failed)}; run the same command again to go on")
    return 0


def download_task(out_dir: Path, task_def: TaskDef, base_url: str) -> str:
    """Fetch one task into ``out_dir``, unless its files are there and have the official row counts.

    Args:
        out_dir: the task's folder appears in it.
        task_def: the task.
        base_url: server, without a slash at the end.

    Returns:
        A line that says what was done.

    Raises:
        SettingError: a file that is not the official one, or an archive that is damaged or unsafe.
        OSError: network or disk.
    """
    folder = out_dir / TASKS[task_def.name].folder
    if _is_complete(folder, task_def):
        return f"{folder}: complete, kept"
    work = out_dir / ".download"
    staging = work / f"{folder.name}.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    fetched = [fetch(f"{base_url}/{item.url}", work / item.name) for item in DOWNLOADS[task_def.name]]
    try:
        for path in fetched:
            if path.suffix == ".zip":
                unpack(path, staging, task_def.name)
            else:
                shutil.copyfile(path, staging / path.name)
        check_counts(staging, task_def)
    except SettingError:
        for path in fetched:  # damaged or wrong: another run shall not resume from it
            path.unlink(missing_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        raise
    folder.mkdir(exist_ok=True)
    for path in sorted(staging.iterdir()):
        path.replace(folder / path.name)
    staging.rmdir()
    for path in fetched:
        path.unlink()
    return f"{folder}: fetched and checked"


def unpack(archive: Path, target: Path, task: str) -> None:
    """Unpack a task's split files, by their bare names, into ``target``.

    Raises:
        SettingError: not a sound archive, a member that points outside its folder (nothing is unpacked then), more
            data than any GLUE task has, or a split that is missing.
    """
    wanted = [source.file for source in TASKS[task].splits.values()]
    try:
        with zipfile.ZipFile(archive) as content:
            members = content.infolist()
            for member in members:
                path = PurePosixPath(member.filename.replace("\\", "/"))
                is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
                if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or is_link:
                    raise SettingError(
                        f"{archive.name}: member {shown(member.filename)} points outside; nothing unpacked"
                    )
            for name in wanted:
                member = _find_member(members, name, archive.name)
                if member.file_size > _MAX_UNPACKED:
                    raise SettingError(f"{archive.name}: {member.filename} would unpack to {member.file_size} bytes")
                with naming(target / name), content.open(member) as source, (target / name).open("wb") as out:
                    shutil.copyfileobj(source, out)
    except (SettingError, OSError):
        raise
    except Exception as error:  # besides zipfile's own errors zlib's and the like, which it lets through
        raise SettingError(f"{archive.name}: damaged archive ({error}); run again to fetch it anew") from None


def check_counts(folder: Path, task_def: TaskDef) -> None:
    """Compare the rows of every split with the official counts.

    Raises:
        SettingError: another count (both are named), or a malformed row.
        OSError: a file is missing.
    """
    msr = read_msr_paraphrase(folder, task_def) if (folder / MSR_FILES["train"]).is_file() else {}
    for split, source in TASKS[task_def.name].splits.items():
        if msr:
            name = MSR_FILES["test" if split == "test" else "train"]
            rows = len(msr[split] if split in msr else read_split(folder / name, task_def, split))
        else:
            name = source.file
            rows = len(read_split(folder / name, task_def, split))
        if rows != source.rows:
            raise SettingError(
                f"{folder.name.removesuffix('.tmp')}/{name}: {rows} rows for {split}, the official file has "
                f"{source.rows}; not kept"
            )


def _is_complete(folder: Path, task_def: TaskDef) -> bool:
    try:
        check_counts(folder, task_def)
    except (SettingError, OSError):
        return False
    return True


def _find_member(members: Sequence[zipfile.ZipInfo], name: str, archive: str) -> zipfile.ZipInfo:
    """Return the member with this bare name, the one closest to the top (archives also hold the original corpora)."""
    found = [
        member
        for member in members
        if PurePosixPath(member.filename).name == name and not member.filename.startswith("__MACOSX")
    ]
    if not found:
        shown = ", ".join(member.filename for member in members[:8])
        raise SettingError(f"{archive}: has no {name}; it holds {shown}")
    return min(found, key=lambda member: len(PurePosixPath(member.filename).parts))


if __name__ == "__main__":
    sys.exit(main())
