import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_utils.array_file import ArrayWriter


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 300), min_size=1, max_size=5),
    dtype=st.sampled_from(["<u2", "<u4", "<i8", "<f4", "|S7"]),
)
def test_pieces_make_the_bytes_of_numpy_save(tmp_path: Path, lengths: list[int], dtype: str) -> None:
    pieces = [np.arange(n).astype(dtype) for n in lengths]
    path = tmp_path / "a.npy"
    path.unlink(missing_ok=True)
    with ArrayWriter(path) as writer:
        for piece in pieces:
            writer.append(piece)
        entry = writer.finish()
    expected = io.BytesIO()
    np.save(expected, np.concatenate(pieces))
    data = path.read_bytes()
    assert data == expected.getvalue()
    assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "dtype": dtype}


def test_headers_of_any_count_are_equally_long() -> None:
    def header(n: int) -> int:
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": "|S256", "fortran_order": False, "shape": (n,)})
        return file.tell()

    assert header(0) == header(2**62)  # the true count is written over the first header


def test_mixed_dtypes_and_existing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with ArrayWriter(path) as writer:
        writer.append(np.zeros(2, dtype=np.int64))
        with pytest.raises(ValueError, match="piece of float32 in a file of int64"):
            writer.append(np.zeros(2, dtype=np.float32))
    with pytest.raises(FileExistsError):
        ArrayWriter(path)
