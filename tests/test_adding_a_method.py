"""The page on adding a method, run as it is written: a package of a user's own, found through its entry point."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.child import Child, Ended
from tests.tiny import as_glue

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


def as_installed(*command: object, path: Path, starts_others: bool = False) -> Ended:
    """Run a command where the package is installed."""
    return Child(command, starts_others=starts_others, PYTHONPATH=os.pathsep.join([str(path), str(ROOT)])).wait()


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
    done = as_installed(
        "-m", "pytest", "-q", "-p", "tests.conftest", "--rootdir", str(tmp_path), str(file), path=package
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_a_study_compares_it_with_its_control(
    package: Path, tiny_encoder: Path, tiny_task: Path, tmp_path: Path
) -> None:
    as_glue(tiny_task, tmp_path / "data")
    options = {
        "encoder": tiny_encoder, "methods": "vanilla,smooth_logits", "tasks": "cola", "seeds": "1", "set": "epochs=1",
        "data_dir": tmp_path / "data", "output_dir": tmp_path / "runs", "results_dir": tmp_path / "results",
        "devices": "cpu", "workers_per_device": 1, "name": "mine",
    }  # fmt: skip
    arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    done = as_installed("-m", "experiments.study", *arguments, path=package, starts_others=True)
    assert done.returncode == 0, done.stderr
    assert "smooth_logits has no recipe of its own: that of vanilla is taken" in done.stderr
    assert "those of all-MiniLM-L6-v2, the known encoder nearest in size" in done.stderr
    assert "| smoothed logits - vanilla |" in done.stdout
    assert "By the recipe of another method or encoder: " in done.stdout


def test_its_settings_are_explained_and_checked(package: Path) -> None:
    done = python("train.py", "--method", "smooth_logits", "--help", path=package)
    assert "--smooth_logits.noise_scale" in done.stdout
    assert "Standard deviation of the noise on the logits" in done.stdout
    done = python("train.py", "--method", "smooth_logits+pats", "--smooth_logits.smoothing", "2", path=package)
    assert done.returncode == 2
    assert done.stderr == "error: smooth_logits: Invalid smoothing: 2.0: a number in [0, 1) is needed\n"
    done = python("train.py", "--smooth_logits.smoothing", "0.2", path=package)
    assert done.stderr.startswith("error: settings are given for smooth_logits, but method is 'vanilla'")


def test_in_this_repository_a_method_is_one_file(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "module", tmp_path / "module", ignore=shutil.ignore_patterns("__pycache__"))
    methods = tmp_path / "module" / "methods"
    code = block("python", "`smooth_logits.py`:")
    (methods / "smooth_logits.py").write_text(code, encoding="utf-8")
    (methods / "parts" / "helper.py").write_text(code.replace('"smooth_logits"', '"helper"'), encoding="utf-8")
    listing = """\
import sys
from module.methods import METHODS
print(list(METHODS)[0], list(METHODS)[-1], "helper" in METHODS, "torch" in sys.modules)
print(METHODS.title("smooth_logits"), METHODS.title("sage"), METHODS.title("gone"))
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", listing], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["vanilla smooth_logits False False", "smoothed logits SAGE gone"]


LISTING = """\
import sys
from mt_dnn.config_parser import config_from_arguments
config_from_arguments(["--method", "vanilla"])
import experiments.study.tables, experiments.study.study
from experiments.study.table.cells import beside_controls
from module.methods import METHODS
print("smooth_logits" in METHODS, list(METHODS)[-1], "smooth_logits" in sys.modules)
print(beside_controls(["pats", "smooth_logits", "vanilla"]), "smooth_logits" in sys.modules)
"""


def test_only_who_asks_for_it_imports_it(package: Path) -> None:
    done = python("-c", LISTING, path=package)
    assert done.stdout.splitlines() == [
        "True smooth_logits False",
        "('vanilla', 'pats', 'smooth_logits') True",  # a table that has it must know what it is compared with
    ]
    (package / "smooth_logits.py").write_text("class Broken(:", encoding="utf-8")
    done = python("-c", LISTING, path=package)
    assert done.stdout.splitlines()[1] == "('vanilla', 'pats', 'smooth_logits') False"
    done = python("train.py", "--help", path=package)
    assert done.returncode == 0
    assert "Methods of installed packages: smooth_logits; their settings: --method NAME --help" in done.stdout


# The broken one last: the others must not have touched it.
COMMANDS = """
import sys, train
for command in (["--method", "vanilla", "--epochs", "none"], ["--help"], ["--method", sys.argv[1], "--epochs", "0"]):
    try:
        status = train.main(command)
    except SystemExit as end:
        status = end.code
    print("status", status, file=sys.stderr)
"""
BROKEN = {
    "syntax": "class Broken(:",
    "exit": "raise SystemExit(3)",
    "missing": "import nosuch",
    "other": "SmoothLogits = 3",
}


@pytest.mark.parametrize(
    ("entry", "code", "method", "message"),
    [
        ("smooth_logits = nosuch:Method", None, "smooth_logits", "ModuleNotFoundError: No module named 'nosuch'"),
        (
            "smooth_logits = smooth_logits:Absent",
            None,
            "smooth_logits",
            "AttributeError: module 'smooth_logits' has no",
        ),
        (
            "smooth_logits = smooth_logits:SmoothLogits",
            "syntax",
            "smooth_logits",
            "SyntaxError: invalid syntax (smooth",
        ),
        ("smooth_logits = smooth_logits:SmoothLogits", "exit", "smooth_logits", "cannot be imported: SystemExit: 3"),
        ("smooth_logits = smooth_logits:SmoothLogits", "missing", "smooth_logits", "No module named 'nosuch'"),
        (
            "smooth_logits = smooth_logits:SmoothLogits",
            "other",
            "smooth_logits",
            "no subclass of FineTuningMethod with",
        ),
        ("smooth = smooth_logits:SmoothLogits", None, "smooth", "no subclass of FineTuningMethod with name = 'smooth'"),
        (
            "pats = module.methods.pats:PATSMethod",
            None,
            "pats",
            "takes the name of another method: uninstall one of them",
        ),
        ("smooth/x = smooth_logits:SmoothLogits", None, "smooth/x", "has a name that no setting can have"),
        ("seed = smooth_logits:SmoothLogits", None, "seed", "no subclass of FineTuningMethod with name = 'seed'"),
    ],
)
def test_what_is_wrong_with_an_entry_point_is_said_to_who_asks_for_it(
    package: Path, entry: str, code: str | None, method: str, message: str
) -> None:
    file = package / "smooth_logits-1.0.dist-info" / "entry_points.txt"
    file.write_text(f"[pats.methods]\n{entry}\n", encoding="utf-8")
    if code is not None:
        (package / "smooth_logits.py").write_text(BROKEN[code] + "\n", encoding="utf-8")
    done = python("-c", COMMANDS, method, path=package)
    others, ended, helped, said, end = done.stderr.splitlines()
    assert others.startswith("error: epochs is none;")
    assert (ended, helped, end) == ("status 2", "status 0", "status 2")
    assert said.startswith(f"error: Method {method!r} of an installed package (entry point ")
    assert message in said


def test_a_method_that_is_not_installed_any_more_is_named(package: Path) -> None:
    code = "from mt_dnn.config_parser import config_from_mapping as f; f({'method': 'gone', 'gone': {'x': 1}})"
    done = python("-c", code, path=package)
    assert "Invalid method: 'gone' in 'gone': known are vanilla," in done.stderr
    assert done.stderr.splitlines()[-1].endswith("smooth_logits, joined with +; no installed package brings it")


def test_damaged_metadata_of_a_package_are_in_nobodys_way(package: Path) -> None:
    (package / "smooth_logits-1.0.dist-info" / "entry_points.txt").write_bytes(b"[pats.methods]\nnonsense\n\xff\n")
    done = python("train.py", "--method", "vanilla", "--epochs", "0", path=package)
    assert done.stderr.startswith("error: epochs is 0;")
    done = python("train.py", "--method", "smooth_logits", path=package)
    assert done.returncode == 2
    assert "the metadata of installed packages cannot be read: " in done.stderr
    assert done.stderr.count("\n") == 1
