"""Damaged files: no command gives a wrong answer without a word, and none ends in a traceback. See tests/damage.py."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.damage import Outcome, classify, damages

ROOT = Path(__file__).resolve().parents[1]
WHOLE = Outcome(0, "82.5", "")


@pytest.mark.slow
def test_no_damage_is_silent_and_none_ends_in_a_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "tests.damage", "--flips", "2"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert done.stdout.splitlines()[-2].startswith("| all |")


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (Outcome(0, "82.5", "a note\n"), "harmless"),
        (Outcome(2, "", "error: /runs/seed=1/result.json is damaged\n"), "named"),
        (Outcome(0, "missing", "warning: /runs/seed=1/result.json is damaged\n"), "named"),
        (Outcome(0, "81.5", ""), "silent"),
        (Outcome(2, "", "error: something is wrong\n"), "silent"),
        (Outcome(98, "", "Traceback (most recent call last)\n"), "traceback"),
        (Outcome(-11, "82.5", ""), "traceback"),
    ],
)
def test_kinds_of_outcomes(outcome, kind):
    assert classify(outcome, WHOLE, Path("/runs/seed=1/result.json")) == kind


def test_damages_differ_from_the_whole_file():
    data = bytes(range(200))
    made = list(damages(data, 5, random.Random(0)))
    assert [name for name, _ in made] == ["flip"] * 5 + ["truncation"] * 4 + ["empty"]
    assert all(damaged != data for _, damaged in made)
    assert all(sum((a ^ b).bit_count() for a, b in zip(x, data, strict=True)) == 1 for _, x in made[:5])
