"""requirements.lock: what requirements.txt asks for, each with a version and hashes, from no place that it names."""

import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PINS = {name: Version(version) for name, version in re.findall(r"^([a-z0-9-]+)(?:\[.*\])?==(\S+)", LOCK, re.MULTILINE)}


def asked(file: str) -> list[Requirement]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_it_pins_all_that_is_asked_for() -> None:
    wanted = {canonicalize_name(need.name): need.specifier for need in asked("requirements.txt")}
    assert {name for name, range_ in wanted.items() if name not in PINS or PINS[name] not in range_} == set()
    (torch,) = asked("constraints.txt")
    assert PINS["torch"] in torch.specifier
    assert PINS["torch"].local == "cpu"


def test_every_pin_has_a_hash_and_none_a_place() -> None:
    lines = [line for line in LOCK.splitlines() if line and not line.lstrip().startswith("#")]
    pins = [number for number, line in enumerate(lines) if "==" in line]
    assert len(pins) == len(PINS)
    for first, after in zip(pins, [*pins[1:], len(lines)], strict=True):
        hashes = lines[first + 1 : after]
        assert hashes
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in hashes), lines[first]
    assert not re.search(r"://|--(extra-)?index|--find-links|file:", LOCK)
