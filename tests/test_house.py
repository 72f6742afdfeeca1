"""The house: one name, one noun."""

import ast
from collections import Counter
from pathlib import Path

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
