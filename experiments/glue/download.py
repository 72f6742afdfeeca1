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
from data_utils.file_hash import sha256_of
from data_utils.task_def import TaskDef, load_task_defs
from experiments.glue.fetch import fetch
from experiments.glue.glue_prepro import GLUE_TASK_DEF, task_names
from experiments.glue.glue_readers import MSR_DEV_IDS, MSR_FILES, TASKS, read_msr_paraphrase, read_split
from experiments.glue.hub_copies import HUB_COPIES, find_copy, hub_split

BASE_URL = "https://dl.fbaipublicfiles.com"
HUB_URL = "https://huggingface.co/datasets/nyu-mll/glue/resolve/main"
"""The second source: the same tasks as Parquet files."""
DEFAULT_TASKS = tuple(name for name in TASKS if name != "wnli")  # Table 1 has no WNLI
_MAX_UNPACKED = 4 * 2**30  # bytes; MNLI, the largest, has less than a third of it


@dataclass(frozen=True, slots=True)
class Download:
    """A file on the server."""

    url: str
    """Below the base URL."""
    name: str
    """Local name: an archive, or a file of the task's folder."""
    sha256: str
    """Of the official file, as the description of the Hub's data set "glue" lists it."""


def _archive(name: str, sha256: str) -> Download:
    return Download(f"glue/data/{name}", name, sha256)


DOWNLOADS: dict[str, tuple[Download, ...]] = {
    "cola": (_archive("CoLA.zip", "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff"),),
    "mnli": (_archive("MNLI.zip", "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633"),),
    "mrpc": (
        Download(
            "senteval/senteval_data/msr_paraphrase_train.txt",
            MSR_FILES["train"],
            "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89",
        ),
        Download(
            "senteval/senteval_data/msr_paraphrase_test.txt",
            MSR_FILES["test"],
            "a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784",
        ),
        Download(
            "glue/data/mrpc_dev_ids.tsv",
            MSR_DEV_IDS[0],
            "971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7",
        ),
    ),
    "qnli": (_archive("QNLIv2.zip", "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5"),),
    "qqp": (_archive("QQP-clean.zip", "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0"),),
    "rte": (_archive("RTE.zip", "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee"),),
    "sst": (_archive("SST-2.zip", "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa"),),
    "stsb": (_archive("STS-B.zip", "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85"),),
    "wnli": (_archive("WNLI.zip", "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46"),),
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
    parser.add_argument(
        "--source",
        choices=("official", "hub"),
        default="official",
        help="hub: the Hub's Parquet copies instead (requirements-parquet.txt; GLUE_HUB_URL names another server)",
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
                if args.source == "hub":
                    hub_url = os.environ.get("GLUE_HUB_URL", HUB_URL).rstrip("/")
                    print(download_copy(args.out_dir, definitions[name], hub_url), flush=True)
                else:
                    print(download_task(args.out_dir, definitions[name], args.base_url.rstrip("/")), flush=True)
            except (SettingError, OSError) as error:
                failed.append(name)
                print(f"error: {name}: {error_line(error)}", file=sys.stderr)
    if failed:
        other = "hub" if args.source == "official" else "official"
        raise SettingError(
            f"not fetched: {', '.join(failed)}; run the same command again to go on, or with --source {other}"
        )
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
        if base_url == BASE_URL:  # a mirror may have packed the files anew; their rows are counted all the same
            for item, path in zip(DOWNLOADS[task_def.name], fetched, strict=True):
                check_sum(path, item.sha256)
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


def check_sum(path: Path, sha256: str) -> None:
    """Compare a file with the official checksum.

    Raises:
        SettingError: it differs.
    """
    if (found := sha256_of(path)) != sha256:
        raise SettingError(f"{path.name}: SHA-256 is {found}, the official file's {sha256}; not kept")


def download_copy(out_dir: Path, task_def: TaskDef, hub_url: str) -> str:
    """Fetch the Hub's Parquet files of one task into ``out_dir``, unless they are there and have the official rows.

    Args:
        out_dir: the configuration's folder appears in it.
        task_def: the task.
        hub_url: the data set, without a slash at the end.

    Returns:
        A line that says what was done.

    Raises:
        SettingError: a file that is not the official one, or pyarrow is not installed.
        OSError: network or disk.
    """
    name = HUB_COPIES[task_def.name].folder
    folder, work = out_dir / name, out_dir / ".download" / name
    if folder.is_dir() and _copy_counts(out_dir, task_def) == _official_counts(task_def):
        return f"{folder}: complete, kept"
    work.mkdir(parents=True, exist_ok=True)
    for split in TASKS[task_def.name].splits:
        file = f"{hub_split(split)}-00000-of-00001.parquet"
        fetch(f"{hub_url}/{name}/{file}", work / file)
    if (counts := _copy_counts(work.parent, task_def)) != _official_counts(task_def):
        shutil.rmtree(work)
        raise SettingError(f"{name}: rows {counts}, the official files have {_official_counts(task_def)}; not kept")
    shutil.rmtree(folder, ignore_errors=True)
    work.replace(folder)
    return f"{folder}: fetched and checked"


def _copy_counts(root: Path, task_def: TaskDef) -> dict[str, int]:
    return {split: sum(map(len, tables)) for split, tables in find_copy(root, task_def.name).items()}


def _official_counts(task_def: TaskDef) -> dict[str, int]:
    return {split: source.rows for split, source in TASKS[task_def.name].splits.items()}


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
