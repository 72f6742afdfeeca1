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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr  # not --quiet: mkdocs would not count its warnings
    return folder


def test_it_has_the_readme_with_its_diagram_and_the_records(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    assert "◄── method, module/methods/" in home
    assert (site / "records" / "demo" / "strip.png").is_file()
    assert "plain_loop.py" in (site / "examples" / "index.html").read_text(encoding="utf-8")


def test_the_reference_has_every_public_name(site: Path) -> None:
    page = (site / "docs" / "api.html").read_text(encoding="utf-8")
    names = {path.rpartition(".")[2] for path in re.findall(r'<h3 id="([\w.]+)"', page)}
    assert {*module.__all__, "MethodTrainer", "FineTuningMethod", "RunConfig"} <= names
    assert re.findall(r":[a-z]+:<code>", page) == [], "a role of reStructuredText was left"
