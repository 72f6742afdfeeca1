"""What README.md tells a newcomer to type works."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("script", sorted(set(re.findall(r"bash ((?:scripts/)?\w+\.sh)", README))))
def test_scripts_explain_themselves(script):
    done = subprocess.run(["bash", str(ROOT / script), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert script.rpartition("/")[2] in done.stdout


@pytest.mark.parametrize(
    "script", sorted(p.relative_to(ROOT) for p in [ROOT / "run_pats.sh", *ROOT.glob("scripts/*.sh")])
)
def test_scripts_parse(script):
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--data"], "--data"),
        (["--encoder"], "--encoder"),
        (["--encoder", "x"], "--data_dir is missing"),
        (["--data_dir", "/nowhere", "--encoder", "x"], "/nowhere"),
    ],
)
def test_run_pats_names_a_wrong_argument(arguments, named):
    done = subprocess.run(["bash", str(ROOT / "run_pats.sh"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert named in line
