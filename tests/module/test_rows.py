"""The tables of a step: what a group states stands in the columns of its names."""

from dataclasses import fields

import pytest

from module.bert_optim import Adamax, PATSAdamax, SAGEAdamax
from module.kernels.rows import AS_STATED, RECORD, ROW, SETTINGS, TENSOR, GroupSettings, settings_table
from module.pats_rule import PATSRule
from tests.module.models import make_parameters


def test_settings_stand_in_the_columns_of_their_names():
    groups = [{field.name: float(i + 3 * k) for i, field in enumerate(fields(GroupSettings))} for k in range(2)]
    table = settings_table([GroupSettings(**group) for group in groups])
    for row, group in zip(table, groups, strict=True):
        assert {name: row[name] for name in SETTINGS.names} == {**group, "lr": 0.0}


def test_a_gpus_tables_are_parts_of_the_cpus_row():
    assert ROW.names[: len(TENSOR.names)] == TENSOR.names
    assert {name: ROW.fields[name][0] for name in RECORD.names} == {
        name: RECORD.fields[name][0] for name in RECORD.names
    }
    assert AS_STATED == RECORD.names[: len(AS_STATED)] == SETTINGS.names[: len(AS_STATED)]  # copied as they stand


@pytest.mark.parametrize("kind", [Adamax, SAGEAdamax, PATSAdamax])
def test_an_optimizer_states_what_there_is(kind):
    optimizer = kind(make_parameters().items(), 2e-3, (0.5, 0.75), 0.25, 0.125)
    stated = GroupSettings(**optimizer.settings(optimizer.param_groups[0]))
    assert (stated.lr, stated.beta1, stated.one_minus_beta1, stated.beta2) == (2e-3, 0.5, 0.5, 0.75)
    assert (stated.eps, stated.weight_decay) == (0.25, 0.125)
    assert (stated.scale, stated.noise) == (kind is SAGEAdamax, kind is PATSAdamax)


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({}, {"threshold": 1e-6, "threshold_times_mean": False, "lower": -float("inf"), "max_ratio": float("inf")}),
        (
            {"threshold_mode": "relative", "sensitivity_threshold": 0.5},
            {"threshold": 0.5, "threshold_times_mean": True},
        ),
        ({"threshold_mode": "ratio", "sensitivity_threshold": 0.5}, {"threshold": float("inf"), "lower": 0.5}),
        ({"max_ratio": 4.0, "mean_scope": "model"}, {"max_ratio": 4.0, "model_mean": True, "tensor_mask": False}),
        ({"mask_scope": "tensor", "noise_probability": 0.25}, {"tensor_mask": True, "mask_threshold": 1024}),
        ({"noise_scale": 0.0}, {"noise": False, "noise_scale": 0.0}),
    ],
)
def test_a_rule_states_its_switches(switches, expected):
    stated = GroupSettings(**PATSRule(**switches).settings(2**63 + 5))
    assert {name: getattr(stated, name) for name in expected} == expected
    assert (stated.key_low, stated.key_high) == (5, 1 << 31)
