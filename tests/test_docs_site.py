"""The documentation site is built strictly: links, anchors and docstrings are found, each page is in the navigation."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import module

pytest.importorskip("mkdocs")  # requirements-docs.txt
ROOT = Path(__file__).resolve().parents[1]


def test_it_is_built_strictly_with_the_readme_the_records_and_every_public_name(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr  # not --quiet: mkdocs would not count its warnings
    assert "◄── method, module/methods/" in (tmp_path / "index.html").read_text(encoding="utf-8"), "the diagram"
    assert (tmp_path / "records" / "demo" / "strip.png").is_file()
    assert "plain_loop.py" in (tmp_path / "examples" / "index.html").read_text(encoding="utf-8")
    reference = (tmp_path / "docs" / "api.html").read_text(encoding="utf-8")
    names = {path.rpartition(".")[2] for path in re.findall(r'<h3 id="([\w.]+)"', reference)}
    assert {*module.__all__, "MethodTrainer", "FineTuningMethod", "RunConfig"} <= names
    assert re.findall(r":[a-z]+:<code>", reference) == [], "a role of reStructuredText was left"
