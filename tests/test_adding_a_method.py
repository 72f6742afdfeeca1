"""The page on adding a method, run as it is written: a package of a user's own, found through its entry point."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "adding_a_method.md"


def block(language: str, after: str) -> str:
    """The first code block of a language after a text."""
    page = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"```{language}\n(.*?)```", page[page.index(after) :], re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder for sys.path with the page's method, as an installer would leave it."""
    folder = tmp_path / "site"
    info = folder / "smooth_logits-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "smooth_logits.py").write_text(block("python", "`smooth_logits.py`:"), encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: smooth-logits\nVersion: 1.0\n", encoding="utf-8")
    declared = block("toml", "## Making it known").replace('[project.entry-points."pats.methods"]', "[pats.methods]")
    (info / "entry_points.txt").write_text(declared.replace('"', ""), encoding="utf-8")
    return folder


def python(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_method_and_its_test_are_under_sixty_lines_of_code_and_pass(package: Path, tmp_path: Path) -> None:
    method, test = block("python", "`smooth_logits.py`:"), block("python", "## Its test")
    code = [line for line in (method + test).splitlines() if line.strip()]
    assert len(code) < 60
    file = tmp_path / "test_smooth_logits.py"
    file.write_text(test, encoding="utf-8")
    done = python("-m", "pytest", "-q", "-p", "tests.conftest", "--rootdir", str(tmp_path), str(file), path=package)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_its_settings_are_explained_and_checked(package: Path) -> None:
    done = python("train.py", "--help", path=package)
    assert "--smooth_logits.noise_scale" in done.stdout
    assert "Standard deviation of the noise on the logits" in done.stdout
    done = python("train.py", "--method", "smooth_logits+pats", "--smooth_logits.smoothing", "2", path=package)
    assert done.returncode == 2
    assert done.stderr == "error: smooth_logits: Invalid smoothing: 2.0: a number in [0, 1) is needed\n"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("smooth_logits = nosuch:Method", "cannot be loaded: No module named 'nosuch'"),
        ("smooth = smooth_logits:SmoothLogits", "is no subclass of FineTuningMethod with name = 'smooth'"),
        ("pats = module.methods.pats:PATS", "takes the name of another method: rename it"),
    ],
)
def test_what_is_wrong_with_an_entry_point_is_said(package: Path, entry: str, message: str) -> None:
    file = package / "smooth_logits-1.0.dist-info" / "entry_points.txt"
    file.write_text(f"[pats.methods]\n{entry}\n", encoding="utf-8")
    done = python("-c", "import module.methods", path=package)
    assert message in done.stderr.splitlines()[-1]
