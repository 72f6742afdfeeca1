"""Files of several named arrays (``.npz``)."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_utils.errors import SettingError, in_one_line


def arrays_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the content of a file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes no ** mapping
    return buffer.getvalue()


def read_arrays(file: Path, remedy: str) -> dict[str, NDArray[Any]]:
    """Read a file.

    Raises:
        SettingError: it is damaged; ends in the remedy.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # a damaged archive makes zipfile, zlib and NumPy raise nearly anything
        raise SettingError(f"{file} is damaged ({in_one_line(error)}); {remedy}") from None
