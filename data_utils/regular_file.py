"""Regular files, read as a whole; pipes and devices, which would block, are refused."""

import stat
from pathlib import Path

from data_utils.errors import SettingError


def read_regular(path: Path) -> bytes:
    """Return a file's content.

    Raises:
        SettingError: It is a folder, a pipe or a device.
        OSError: It is missing or cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise SettingError(f"{path} is no regular file")
    return path.read_bytes()
