"""The benchmark of the host's part of a step."""

import numpy as np
import pytest

from benchmarks.optimizer_host import contenders, summarise


def test_every_contender_steps():
    shapes = {"bert.encoder.layer.0.output.dense.weight": (30, 5), "bert.pooler.dense.bias": (2,)}
    steps = contenders(shapes)
    assert [*steps][:2] == ["Adamax", "Adamax, anew"]
    for step in steps.values():
        step()
        step()


def test_summary_from_known_times():
    summary = summarise({"Adamax": np.array([1.0, 2.0, 4.0]), "Adamax, anew": np.array([3.0, 4.0, 12.0])})
    assert summary["Adamax"] == {"median_ms": 2000.0, "low_ms": 1500.0, "high_ms": 3000.0, "over_kept": 1.0}
    assert summary["Adamax, anew"]["over_kept"] == pytest.approx(3.0)
