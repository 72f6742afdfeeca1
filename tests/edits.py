"""Changes to the files of a run, as a person with an editor or a bad disk makes them."""

import json
from pathlib import Path
from typing import Any

from data_utils.json_file import read_json, write_json


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file, its checksum with them; None removes a key."""
    content = {**read_json(path), **changes}
    write_json(path, {key: value for key, value in content.items() if value is not None})


def replace_in_json(path: Path, *changes: tuple[str, str]) -> None:
    """Replace texts in a JSON file, in the order given, its checksum with them."""
    text = json.dumps(read_json(path))
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    write_json(path, json.loads(text))


def flip(path: Path, position: float = 0.5) -> None:
    """Flip a bit of a file at a share of its length."""
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)
