"""Columns of the tables as Triton's constants: its kernels read globals as constexpr only."""

import triton.language as tl

from .device_table import Column, Draw, Flag, Record, Setting

AT_THETA, AT_GRADIENT, AT_MOMENTUM, AT_NORM, AT_SENSITIVITY, AT_STEP, AT_MEAN, *_rest = (
    tl.constexpr(int(c)) for c in Column
)
AT_LR, AT_SIZE, AT_FIRST_BLOCK, AT_IDENTITY, AT_GROUP, AT_NAME = _rest
SET_LR, SET_BETA1, SET_ONE_MINUS_BETA1, SET_BETA2, SET_EPS, SET_DECAY, *_rest = (tl.constexpr(int(c)) for c in Setting)
SET_BIAS, SET_BETA, SET_ONE_MINUS_BETA, SET_SENSITIVITY_EPS, SET_SCALE, SET_TIMES_LR, *_rest = _rest
SET_UPPER, SET_TIMES_MEAN, SET_LOWER, SET_MAX_RATIO, SET_MODEL_MEAN, SET_TENSOR_MASK, *_rest = _rest
SET_THRESHOLD, SET_KEY_LOW, SET_KEY_HIGH = _rest
REC_STEP_SIZE, REC_BETA1, REC_ONE_MINUS_BETA1, REC_BETA2, REC_EPS, REC_DECAY, *_rest = (
    tl.constexpr(int(c)) for c in Record
)
REC_BETA, REC_ONE_MINUS_BETA, REC_SENSITIVITY_EPS, REC_MEAN, REC_AMPLITUDE, *_rest = _rest
REC_UPPER, REC_LOWER, REC_MAX_RATIO = _rest
DRAW_STEP, DRAW_THRESHOLD, DRAW_KEY_LOW, DRAW_KEY_HIGH = (tl.constexpr(int(c)) for c in Draw)
BAD, SKIP, REFUSED, FIRST_BAD = (tl.constexpr(int(c)) for c in Flag)
COLUMNS, SETTINGS, RECORDS, DRAWS = (tl.constexpr(len(t)) for t in (Column, Setting, Record, Draw))
