"""Where the demo's time goes: what is added up, and what is said without data."""

import cProfile
import pstats
import time
from pathlib import Path

import pytest

from benchmarks import demo_profile


def outer():
    inner()
    time.sleep(0.02)


def inner():
    time.sleep(0.01)


def test_time_inside_a_function_counts_what_it_calls():
    profile = cProfile.Profile()
    profile.runcall(outer)
    stats = pstats.Stats(profile)
    here = Path(__file__).name
    assert 0.03 <= demo_profile.seconds_of(stats, here, "outer") < 1.0
    assert 0.01 <= demo_profile.seconds_of(stats, here, "inner") < demo_profile.seconds_of(stats, here, "outer")
    assert demo_profile.seconds_of(stats, "other.py", "inner") == 0.0


@pytest.mark.parametrize("place", [*demo_profile.PARTS.values(), demo_profile.TOTAL])
def test_the_parts_are_functions_that_exist(place):
    file, function = place
    (path,) = [p for folder in ("mt_dnn", "module") for p in (demo_profile.ROOT / folder).glob(file)]
    assert f"def {function}(" in path.read_text(encoding="utf-8")


def test_without_the_demos_data_it_says_what_makes_them(tmp_path, capsys):
    with pytest.raises(SystemExit):
        demo_profile.main(["--data_dir", str(tmp_path / "nothing")])
    assert "bash run_pats.sh makes it" in capsys.readouterr().err
