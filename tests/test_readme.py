"""What README.md shows a newcomer is there and works; the scripts themselves are tested in test_scripts.py."""

import re
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


@pytest.mark.parametrize("name", sorted(set(re.findall(r"(?:bash|python) ((?:\w+/)*\w+\.(?:sh|py))", README))))
def test_scripts_are_there(name):
    assert (ROOT / name).is_file()


def test_flags_of_train_py_exist():
    from mt_dnn.config_parser import build_parser

    text = build_parser().format_help()
    (command,) = re.findall(r"python train\.py (.*pats.*)", README)
    assert all(flag in text for flag in re.findall(r"--[\w.]+", command))
