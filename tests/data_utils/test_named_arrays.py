"""Files of named arrays: what is written is read, and a damaged one is refused with its remedy."""

from pathlib import Path

import numpy as np
import pytest

from data_utils.errors import SettingError
from data_utils.named_arrays import arrays_bytes, read_arrays


def test_arrays_are_read_as_they_were_written(tmp_path: Path) -> None:
    arrays = {"a.uids": np.array([b"x", b"yz"]), "a.logits": np.float32([[0.5, -1.0]]), "empty": np.zeros((0, 2))}
    (tmp_path / "a.npz").write_bytes(arrays_bytes(arrays))
    found = read_arrays(tmp_path / "a.npz", "")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("cut", [0, 10, -30])
def test_a_damaged_file_is_refused_with_the_remedy(tmp_path: Path, cut: int) -> None:
    (tmp_path / "a.npz").write_bytes(arrays_bytes({"a": np.arange(100)})[:cut])
    with pytest.raises(SettingError, match=r"a\.npz is damaged \(.+\); make it anew$"):
        read_arrays(tmp_path / "a.npz", "make it anew")
