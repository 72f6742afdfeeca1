"""One-dimensional ``.npy`` files, written piece by piece: memory holds one piece."""

import hashlib
import os
from io import BufferedRandom
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_utils.errors import naming


class ArrayWriter:
    """Writes a ``.npy`` file as it grows; its bytes are those of ``numpy.save`` on the pieces end to end.

    The dtype is the first piece's. A file that was not closed with :meth:`finish` has length 0 in its header.

    Args:
        path: the file; it must not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BufferedRandom = path.open("xb+")
        self._dtype: np.dtype[Any] | None = None
        self._length = 0

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with naming(self._path):
            self._file.close()

    def append(self, piece: NDArray[Any]) -> None:
        """Add a one-dimensional piece.

        Raises:
            ValueError: its dtype is not the first piece's.
            OSError: the disk is full, ...
        """
        with naming(self._path):
            if self._dtype is None:
                self._dtype = piece.dtype
                self._write_header()
            if piece.dtype != self._dtype:
                raise ValueError(f"piece of {piece.dtype} in a file of {self._dtype}")
            self._file.write(piece.tobytes())
        self._length += len(piece)

    def finish(self) -> dict[str, Any]:
        """Complete the file and flush it to disk.

        Returns:
            ``bytes``, ``sha256`` (hex) and ``dtype`` of the file.
        """
        assert self._dtype is not None, "at least one piece"
        with naming(self._path):
            # NumPy pads headers to a fixed length for any count, so the true one fits over the first.
            self._file.seek(0)
            self._write_header()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.seek(0)
            digest = hashlib.file_digest(self._file, "sha256").hexdigest()
        return {"bytes": self._file.tell(), "sha256": digest, "dtype": self._dtype.str}

    def _write_header(self) -> None:
        assert self._dtype is not None
        facts = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._file, facts)
