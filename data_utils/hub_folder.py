"""Folders of data sets as the Hub has them: files by split, names of the classes in the files or beside them.

Known layouts: ``data/train-00000-of-00001.parquet`` and ``<config>/train-00000-of-00001.parquet``, the same without
``data/``, ``<config>/train/0000.parquet``, plain ``train.csv``, and ``train/data-00000-of-00001.arrow`` of
``save_to_disk``.
"""

import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from data_utils.errors import SettingError, shown
from data_utils.json_file import read_json
from data_utils.table_file import RawTable, class_names_of, is_table, read_table
from data_utils.yaml_file import yaml_value

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "dev"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_DESCRIPTIONS = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
_SHARD = re.compile(r"(.+?)-[0-9]{5}-of-[0-9]{5}(-[0-9a-f]+)?")


def read_hub_folder(folder: Path, config: str | None = None) -> dict[str, list[RawTable]]:
    """Read the tables of a data set.

    Args:
        folder: the data set, as it is cloned or saved.
        config: one of its configurations, where it has several.

    Returns:
        Split as in canonical files (``train``, ``dev``, ``matched_dev``) -> its tables in order.

    Raises:
        SettingError: no file of a split, several configurations and none chosen, or a file that cannot be read.
    """
    root = folder if config is None else folder / config
    if not root.is_dir():
        raise SettingError(f"--config {shown(config)}: no folder {root}; there are {', '.join(_subfolders(folder))}")
    files: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file() and is_table(path)):
        inside = path.relative_to(root).parts
        split = _split_of_file(path)
        if split is None or path.name in _DESCRIPTIONS or any(part.startswith(".") for part in inside):
            continue
        group = inside[0] if len(inside) > 1 and inside[0] != "data" and dev_name(inside[0]) is None else ""
        files.setdefault(group, {}).setdefault(split, []).append(path)
    if not files:
        raise SettingError(
            f"{root}: no table of a split; its files are called like train-00000-of-00001.parquet; "
            "give a file that is called otherwise by itself"
        )
    if len(files) > 1:
        several = ", ".join(filter(None, files))
        raise SettingError(f"{root}: holds several data sets: {several}", remedy="give one of them as --config")
    (group,) = files
    names = _described(folder, config or group, itertools.chain.from_iterable(files[group].values()))
    return {split: [_named(read_table(path), names) for path in paths] for split, paths in files[group].items()}


def split_in_name(path: Path) -> str | None:
    """Return the split that a word of a file's name tells, such as ``dev`` for ``reviews_dev.csv``; None for none."""
    words = re.split(r"[^a-z]+", path.name.lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def dev_name(split: str) -> str | None:
    """Return a split's name in canonical files: ``validation_matched`` -> ``matched_dev``; None for no split."""
    first, _, rest = split.partition("_")
    found = _SPLITS.get(first)
    return f"{rest}_{found}" if found and rest else found


def _split_of_file(path: Path) -> str | None:
    stem = path.name.partition(".")[0]
    shard = _SHARD.fullmatch(stem)
    return dev_name(shard[1] if shard else stem) or dev_name(path.parent.name)


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _named(table: RawTable, names: dict[str, tuple[str, ...]]) -> RawTable:
    known = {column: classes for column, classes in names.items() if column in table.columns}
    return replace(table, class_names=known | table.class_names)


def _described(folder: Path, config: str, files: Iterable[Path]) -> dict[str, tuple[str, ...]]:
    """Column -> class names, of the descriptions beside the files and above them; those of other data sets stay out."""
    above = {parent for file in files for parent in file.parents if parent == folder or folder in parent.parents}
    found: dict[str, tuple[str, ...]] = {}
    for place in sorted(above):
        if (file := place / "dataset_info.json").is_file():
            found |= class_names_of(json.dumps(read_json(file)))
        if (file := place / "dataset_infos.json").is_file():
            content = read_json(file)
            of_all = content.get(config, {}) if config else next(iter(content.values()), {})
            found |= class_names_of(json.dumps(of_all))
        if (file := place / "README.md").is_file():
            found |= _of_card(file.read_text(encoding="utf-8", errors="replace"), config)
    return found


def _of_card(text: str, config: str) -> dict[str, tuple[str, ...]]:
    """Column -> class names, of the metadata at the head of a data set's card."""
    head = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    try:
        content = yaml_value(head[1]) if head else {}
    except (yaml.YAMLError, ValueError):
        return {}  # a card is written by hand; without it classes are numbers
    infos: Any = content.get("dataset_info", []) if isinstance(content, dict) else []
    infos = [info for info in (infos if isinstance(infos, list) else [infos]) if isinstance(info, dict)]
    alone = len(infos) == 1 and not (config and "config_name" in infos[0])
    chosen = [info for info in infos if alone or info.get("config_name", "default") == (config or "default")]
    found = {}
    for feature in (feature for info in chosen for feature in info.get("features") or []):
        dtype = feature.get("dtype") if isinstance(feature, dict) else None
        names = dtype.get("class_label", {}).get("names") if isinstance(dtype, dict) else None
        if isinstance(names, dict | list):
            found[str(feature["name"])] = tuple(map(str, names.values() if isinstance(names, dict) else names))
    return found
