"""Read the noise stream through the CPU kernel itself: theta = 0, ratio = 1, amplitude = 1 leaves theta = -z."""

import numpy as np

from module.kernels.cpu import update_rows
from module.kernels.rows import new_table
from module.noise import MASK_LEVELS, tensor_id


def kernel_rows(sizes):
    rows = new_table(sizes)
    rows["noise"] = 1
    rows["mean"] = rows["sensitivity_eps"] = rows["amplitude"] = 1.0
    rows["upper"], rows["lower"], rows["max_ratio"] = np.inf, -np.inf, np.inf
    rows["mask_threshold"] = MASK_LEVELS
    return rows


def draw(seed, step, path, n, threshold=MASK_LEVELS):
    """Normals of n entries, float32; 0 where the mask bits are not below the threshold."""
    theta, sensitivity = np.zeros(n, np.float32), np.zeros(n, np.float32)
    rows = kernel_rows([n])
    identity = tensor_id(path)
    rows["theta"], rows["sensitivity"] = theta.ctypes.data, sensitivity.ctypes.data
    rows["step"], rows["identity"] = step, np.array([identity], np.uint64).view(np.int64)
    rows["key_low"], rows["key_high"] = seed & 0xFFFFFFFF, seed >> 32
    rows["mask_threshold"] = threshold
    update_rows(rows)
    return -theta
