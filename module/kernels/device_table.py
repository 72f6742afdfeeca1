"""Columns of the tables that a step on a GPU reads: written by the host, read by :mod:`module.kernels.cuda`."""

from enum import IntEnum


class Column(IntEnum):
    """Columns of the table of tensors, int64: addresses (0: no such buffer) and what does not change."""

    THETA = 0
    GRADIENT = 1
    MOMENTUM = 2
    INFINITY_NORM = 3
    SENSITIVITY = 4
    STEP = 5  # float32 scalar
    MEAN = 6  # float64 scalar, the tensor's mean sensitivity; 0: the tensor has no sensitivity
    LR = 7  # float32 scalar on the device, or 0: the settings' value
    SIZE = 8
    FIRST_BLOCK = 9  # number of blocks in the rows before this one
    IDENTITY = 10  # in the noise stream
    GROUP = 11  # row of the settings
    NAME = 12  # number of the tensor's name


class Setting(IntEnum):
    """Columns of the settings, float64, one row per parameter group."""

    LR = 0
    BETA1 = 1
    ONE_MINUS_BETA1 = 2
    BETA2 = 3
    EPS = 4
    WEIGHT_DECAY = 5
    BIAS_CORRECTION = 6  # 1: the step size is lr / (1 - beta1^t)
    BETA = 7  # of the sensitivity; rounded to float32
    ONE_MINUS_BETA = 8
    SENSITIVITY_EPS = 9
    NOISE_SCALE = 10
    NOISE_TIMES_LR = 11
    UPPER = 12  # perturbed only where sensitivity < upper
    UPPER_TIMES_MEAN = 13  # 1: upper is a multiple of the mean
    LOWER = 14  # ... and mean / (sensitivity + eps) >= lower
    MAX_RATIO = 15
    MODEL_MEAN = 16  # 1: the mean over the model
    TENSOR_MASK = 17  # 1: one mask draw per tensor
    MASK_THRESHOLD = 18
    KEY_LOW = 19
    KEY_HIGH = 20


class Record(IntEnum):
    """Columns of a step's records, float32, one row per tensor: what the update of its entries needs."""

    STEP_SIZE = 0
    BETA1 = 1
    ONE_MINUS_BETA1 = 2
    BETA2 = 3
    EPS = 4
    WEIGHT_DECAY = 5
    BETA = 6
    ONE_MINUS_BETA = 7
    SENSITIVITY_EPS = 8
    MEAN = 9
    AMPLITUDE = 10
    UPPER = 11
    LOWER = 12
    MAX_RATIO = 13


class Draw(IntEnum):
    """Columns of a step's draws, uint32 bits in int32, one row per tensor."""

    STEP = 0
    MASK_THRESHOLD = 1
    KEY_LOW = 2
    KEY_HIGH = 3


class Flag(IntEnum):
    """What a step leaves behind, int32."""

    BAD = 0  # smallest number of a name whose gradient is not finite, in the step under way; NO_NAME: none
    SKIP = 1  # 1: the step under way changes nothing
    REFUSED = 2  # steps refused since the host last looked
    FIRST_BAD = 3  # the name's number of the first of them


NO_NAME = 0x7FFFFFFF
