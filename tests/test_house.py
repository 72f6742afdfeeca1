"""The house: one name, one noun."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [
    *ROOT.glob("*.py"),
    *(f for d in ("module", "mt_dnn", "data_utils", "experiments", "benchmarks") for f in (ROOT / d).rglob("*.py")),
]


def _twice(names):
    return [name for name, count in Counter(names).items() if count > 1]


def test_no_file_name_stands_for_two_nouns():
    # A file of a method bears the method's name.
    assert _twice(f.name for f in FILES if f.parent.name != "methods" and not f.name.startswith("__")) == []


def test_no_class_name_stands_for_two_nouns():
    bodies = [ast.parse(f.read_text(encoding="utf-8")).body for f in FILES]
    classes = [node.name for body in bodies for node in body if isinstance(node, ast.ClassDef)]
    assert _twice(name for name in classes if not name.startswith("_")) == []


def test_a_commands_help_names_its_module():
    for file in FILES:
        text, module = file.read_text(encoding="utf-8"), ".".join(file.relative_to(ROOT).with_suffix("").parts)
        named = re.findall(r'CommandParser\(\s*"python -m ([\w.]+)"', text)
        named += [f"benchmarks.{name}" for name in re.findall(r'(?:make|training)_parser\(\s*"(\w+)"', text)]
        assert named in ([], [module.removesuffix(".__main__")]), file


def test_a_benchmark_reports_a_mistake_in_one_line():
    for file in (ROOT / "benchmarks").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert ("def main(" in text) == ("sys.exit(status_of(main))" in text), file


@pytest.mark.parametrize("folder", ["benchmarks", "data_utils", "experiments", "module", "mt_dnn"])
def test_a_docstring_begins_with_its_subject(folder):
    hanging = re.compile(r"(What|Where|How|Which|Whose|Those|The same|Nothing)\b")
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            text = ast.get_docstring(node) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) else None
            assert not hanging.match(text or ""), file
