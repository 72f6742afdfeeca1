"""The table a step is made of: one row per tensor, with addresses and hyper-parameters."""

import numpy as np

from ..noise import BLOCK

# Names of the optimizers' state, written once.
STEP, MOMENTUM, INFINITY_NORM = "step", "exp_avg", "exp_inf"
SENSITIVITY, SENSITIVITY_MEAN = "sensitivity", "sensitivity_mean"
STATE_COLUMNS = {MOMENTUM: "momentum", INFINITY_NORM: "infinity_norm", SENSITIVITY: "sensitivity"}  # of the table

# Rules of the deterministic update `d`.
RULE_NONE, RULE_MTDNN, RULE_TORCH = 0, 1, 2

ROW = np.dtype(
    [
        # Addresses of contiguous float32 arrays of `size` entries; 0 where the row does not use one.
        ("theta", np.int64),
        ("gradient", np.int64),
        ("update_gradient", np.int64),  # what the update takes: the same, but where a mask has left part of it
        ("momentum", np.int64),  # m
        ("infinity_norm", np.int64),  # u
        ("sensitivity", np.int64),  # EMA of |theta g|, the paper's sensitivity indicator
        ("gradient_stride", np.int64),  # bytes from one entry's gradient to the next: 4, or 0 where one block is all
        ("size", np.int64),
        ("first_block", np.int64),  # number of blocks in the rows before this one
        ("step", np.uint32),  # updates of this tensor, counting this one
        ("id_low", np.uint32),
        ("id_high", np.uint32),
        ("key_low", np.uint32),
        ("key_high", np.uint32),
        ("mask_threshold", np.int32),  # an entry is perturbed if its 12 mask bits are below it
        # What is done, in this order.
        ("track", np.int32),  # 1: update the sensitivity
        ("scale", np.int32),  # 1: SAGE's factor on the update
        ("rule", np.int32),
        ("noise", np.int32),  # 1: subtract the noise
        # The update.
        ("step_size", np.float32),  # learning rate, with the bias correction where the rule has one
        ("beta1", np.float32),
        ("one_minus_beta1", np.float32),
        ("beta2", np.float32),
        ("eps", np.float32),
        ("weight_decay", np.float32),
        # The sensitivity and the noise.
        ("beta", np.float32),
        ("one_minus_beta", np.float32),
        ("sensitivity_eps", np.float32),
        ("mean", np.float32),  # mean sensitivity of the tensor, or of the model
        ("amplitude", np.float32),  # noise scale, times the learning rate where the rule says so
        ("upper", np.float32),  # perturbed only where sensitivity < upper
        ("lower", np.float32),  # ... and mean / (sensitivity + eps) >= lower
        ("max_ratio", np.float32),
    ],
    align=True,
)


def new_table(sizes: list[int]) -> np.ndarray:
    """Make an empty table for tensors of these sizes, with the blocks numbered."""
    rows = np.zeros(len(sizes), ROW)
    rows["size"] = sizes
    rows["gradient_stride"] = 4
    number_blocks(rows)
    return rows


def number_blocks(rows: np.ndarray) -> None:
    """Number the blocks of a table through, row after row."""
    blocks = -(-rows["size"] // BLOCK)
    rows["first_block"] = np.cumsum(blocks) - blocks


def count_blocks(rows: np.ndarray) -> int:
    """Return the number of blocks of a table."""
    return int(rows["first_block"][-1] + -(-rows["size"][-1] // BLOCK)) if len(rows) else 0
