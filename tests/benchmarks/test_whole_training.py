"""The command lines of benchmarks.throughput and benchmarks.memory, and how they sum up."""

import argparse
import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import memory, throughput
from benchmarks.benchmark_parser import at_least_one, some_of, thread_count
from benchmarks.glue_rows import ROOT


def test_ratios_are_of_times_within_a_turn():
    # The second turn is ten times slower for everybody: the ratio stays.
    seconds = {"vanilla": np.array([1.0, 10.0]), "pats": np.array([1.25, 12.5]), "trainer": np.array([3.0, 30.0])}
    summary = throughput.summarise(seconds, rows=20)
    assert summary["trainer"]["times_as_fast"]["vanilla"] == {"median": 3.0, "quartiles": [3.0, 3.0], "turns": 2}
    assert summary["trainer"]["times_as_fast"]["pats"]["median"] == pytest.approx(2.4)
    assert summary["vanilla"]["times_as_fast"]["pats"]["median"] == pytest.approx(0.8)
    assert summary["vanilla"]["examples_per_second"]["median"] == 11.0
    assert "trainer" not in summary["vanilla"]["times_as_fast"]


def test_memory_is_compared_with_the_trainer():
    peaks = {"pats": [{"rss": 30 << 20}, {"rss": 10 << 20}, {"rss": 11 << 20}], "trainer": [{"rss": 22 << 20}]}
    summary = memory.summarise(peaks)
    assert summary["pats"] == {"kind": "rss", "median_mib": 11.0, "range_mib": [10.0, 30.0], "over_trainer": 0.5}


def test_the_allocators_peak_counts_where_there_is_one():
    peaks = {"pats": [{"rss": 1, "cuda": 6 << 20}], "trainer": [{"rss": 1, "cuda": 4 << 20}]}
    summary = memory.summarise(peaks)
    assert summary["pats"]["kind"] == "cuda"
    assert summary["pats"]["over_trainer"] == 1.5


def test_peak_memory_sees_what_was_freed():
    code = (
        "from benchmarks.peak_memory import peak_rss\nbefore = peak_rss()\n"
        "block = bytes([1]) * 300_000_000\ndel block\nprint(peak_rss() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 200_000_000 < int(done.stdout) < 400_000_000


def test_options_name_what_is_wrong():
    assert some_of(("cola", "rte"))("rte,cola,rte") == ["rte", "cola"]
    with pytest.raises(argparse.ArgumentTypeError, match="'sst' is none of cola, rte"):
        some_of(("cola", "rte"))("sst")
    with pytest.raises(argparse.ArgumentTypeError, match="'0' is no whole number >= 1"):
        at_least_one("0")
    assert [thread_count("1"), thread_count("1024")] == [1, 1024]
    for text in ("0", "1025", "100000", "1e3", "9" * 5000):
        with pytest.raises((argparse.ArgumentTypeError, ValueError)):
            thread_count(text)


@pytest.mark.slow
def test_throughput_from_the_command_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("accelerate")
    monkeypatch.setenv("PATS_GLUE_DIR", str(tmp_path / "none"))
    out = tmp_path / "figures" / "throughput.json"
    throughput.main(
        ["--tasks", "cola", "--precisions", "fp32", "--contenders", "pats,trainer", "--rows", "4", "--turns", "1",
         "--out", str(out)]
    )  # fmt: skip
    figures = json.loads(out.read_text())["tasks"]["cola"]["fp32"]
    assert figures["training_rows"] == 4
    assert figures["dev_rows"] == 1
    assert set(figures["contenders"]) == {"pats", "trainer"} == set(figures["dev_metrics_of_last_turn"])
    assert figures["contenders"]["trainer"]["times_as_fast"]["pats"]["turns"] == 1
    assert "pats / trainer" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATS_GLUE_DIR", str(tmp_path / "none"))
    out = tmp_path / "memory.json"
    memory.main(
        ["--tasks", "cola", "--precisions", "fp32", "--contenders", "sage", "--rows", "4", "--repeats", "1",
         "--out", str(out)]
    )  # fmt: skip
    (figures,) = json.loads(out.read_text())["tasks"]["cola"]["fp32"].values()
    assert figures["median_mib"] > 4 * 90  # the encoder's weights, gradients and two moments at the least
    assert "sage" in capsys.readouterr().out
