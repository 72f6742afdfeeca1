"""The starting point of a run: a pretrained encoder, or the trained network of a finished run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_utils.errors import SettingError, shown
from data_utils.file_hash import remembered_sha256
from mt_dnn.encoder.source import EncoderSource, content_files, hub_commit, resolve_encoder, tokenizer_folder
from mt_dnn.results import RunDirectory, Status

COMMIT = "commit"
"""Of an encoder from the Hub, in the place of file names."""
_TRAINED = "trained weights"


@dataclass(frozen=True, slots=True)
class StartingRun:
    """A finished run that another one starts from."""

    init_checkpoint: str
    """The starting point of the run itself."""
    weights: Path
    """File of its best epoch, or of its last one where no other was kept."""


def starting_run(init_checkpoint: str) -> StartingRun | None:
    """Read the run that a starting point names; None where it names an encoder.

    Raises:
        SettingError: the run is not over, failed or diverged, kept no weights, or a file of it is damaged.
    """
    path = Path(init_checkpoint).expanduser()
    directory = RunDirectory(path)
    if not directory.run_json.is_file():
        return None
    result, told = directory.read_result(moved=True), f"init_checkpoint: the run {path}"
    if result is None or result.status in (Status.FAILED, Status.PRUNED):
        raise SettingError(f"{told} is not over; start its command again and wait for result.json")
    if result.status is Status.DIVERGED:
        raise SettingError(f"{told} diverged ({result.error}); give one that did not")
    kept = sorted(name for name in result.files if name.endswith(".safetensors"))  # those of the best epoch come first
    if not kept:
        raise SettingError(
            f"{told} kept no weights; delete {directory.result_json} and start it again with --save best"
        )
    weights = path / kept[0]
    directory.check_file(weights, result)
    before = ((directory.read_description() or {}).get("config") or {}).get("init_checkpoint")
    if not isinstance(before, str):
        raise SettingError(f"{directory.run_json} cannot be read by this version: init_checkpoint is {shown(before)}")
    return StartingRun(before, weights)


def resolve_start(init_checkpoint: str) -> EncoderSource:
    """Find the files of a starting point; see :func:`mt_dnn.encoder.source.resolve_encoder`.

    Raises:
        SettingError: as there and as :func:`starting_run`.
    """
    run = starting_run(init_checkpoint)
    if run is None:
        return resolve_encoder(init_checkpoint)
    encoder = resolve_start(run.init_checkpoint)
    return EncoderSource(encoder.name, encoder.folder, run.weights)


def tokenizer_of(init_checkpoint: str) -> Path:
    """Folder with configuration and tokenizer of a starting point; no weights are fetched.

    Raises:
        SettingError: as :func:`resolve_start`.
    """
    run = starting_run(init_checkpoint)
    return tokenizer_folder(init_checkpoint) if run is None else tokenizer_of(run.init_checkpoint)


def content_of(init_checkpoint: str) -> dict[str, str]:
    """Name of each file of a starting point -> SHA-256; of an encoder from the Hub, ``commit`` -> its revision there.

    Raises:
        SettingError: as :func:`resolve_start`.
    """
    run = starting_run(init_checkpoint)
    if run is not None:
        return {**content_of(run.init_checkpoint), _TRAINED: remembered_sha256(run.weights)}
    folder = tokenizer_folder(init_checkpoint)
    commit = hub_commit(folder)
    return {COMMIT: commit} if commit else {file.name: remembered_sha256(file) for file in content_files(folder)}
