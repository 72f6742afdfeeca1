"""The library as its users get it: the built wheel in an empty environment, and the examples run with it."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
HAS_PEFT = find_spec("peft") is not None  # requirements-lora.txt
EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.py")) if HAS_PEFT or "lora" not in path.name]
PACKAGE = "pats_finetuning"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LIBRARY_README = (ROOT / "module" / "README.md").read_text(encoding="utf-8")
# Stands for a machine without triton; transformers and torch do without it too.
RUN = """
import runpy, sys
sys.modules["triton"] = None
import pats_finetuning
assert "torch" not in sys.modules, "the package waits for torch until it is used"
for name in pats_finetuning.__all__:
    getattr(pats_finetuning, name)
print("from", pats_finetuning.__file__, pats_finetuning.__version__)
for path in sys.argv[1:]:
    print("example", path)
    runpy.run_path(path, run_name="__main__")
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a new virtual environment with the wheel; this one's packages are behind it, but not this project."""
    folder = tmp_path_factory.mktemp("library")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "module", source / "module", ignore=shutil.ignore_patterns("__pycache__"))
    quiet = ["-q", "--disable-pip-version-check", "--no-deps", "--no-index"]
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", *quiet, "--no-build-isolation", "-w", folder, source], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "twine", "--no-color", "check", "--strict", wheel], check=True)
    subprocess.run([*pip, "--python", folder / "venv", "install", *quiet, wheel], check=True)
    return folder / "venv"


def site_packages(environment: Path) -> Path:
    return next((environment / "lib").glob("python*/site-packages"))


def test_it_takes_one_name_and_ships_its_types(environment: Path) -> None:
    found = {path.name for path in site_packages(environment).iterdir()} - {"this_environment.pth"}
    assert {name for name in found if not name.endswith(".dist-info")} == {PACKAGE}
    package = site_packages(environment) / PACKAGE
    assert (package / "py.typed").is_file()
    folders = {path.parent.relative_to(ROOT / "module") for path in (ROOT / "module").rglob("__init__.py")}
    assert folders == {path.parent.relative_to(package) for path in package.rglob("__init__.py")}


PLUG_IN = """
from {package}.method import FineTuningMethod
from {package}.methods.sam import SAM

class Mine(FineTuningMethod):
    name = "mine"
    base = SAM
"""


@pytest.mark.parametrize("written_against", ["module", PACKAGE])
@pytest.mark.parametrize("used_in", ["module", PACKAGE])
def test_a_plug_in_works_under_both_names(
    environment: Path, tmp_path: Path, used_in: str, written_against: str
) -> None:
    (tmp_path / "plug_in.py").write_text(PLUG_IN.format(package=written_against), encoding="utf-8")
    folder = tmp_path / "plug_in-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: plug-in\nVersion: 1.0\n", encoding="utf-8")
    (folder / "entry_points.txt").write_text("[pats.methods]\nmine = plug_in:Mine\n", encoding="utf-8")
    (site_packages(environment) / "this_environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
    code = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}, *[{str(ROOT)!r}] * {used_in == "module"}]
from {used_in}.methods import METHODS, build_method
from {used_in}.methods.sam import SAM
assert METHODS["mine"].base is SAM
print([method.name for method in build_method("sam+mine").methods])
"""
    python = environment / "bin" / "python"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.strip() == "['sam', 'mine']", done.stderr[-2000:]


def test_examples_run_from_an_empty_folder(environment: Path, tmp_path: Path) -> None:
    (site_packages(environment) / "this_environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (block,) = re.findall(r"```python\n(.*?)```", LIBRARY_README, re.DOTALL)
    (tmp_path / "readme.py").write_text(block, encoding="utf-8")
    command = [environment / "bin" / "python", "-I", "-c", RUN, *EXAMPLES, "readme.py"]
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"from {site_packages(environment) / PACKAGE}" in done.stdout
    accuracies = re.findall(r"accuracy (\d\.\d\d)", done.stdout)
    assert len(accuracies) == len(EXAMPLES) == 5 + HAS_PEFT
    assert all(float(accuracy) > 0.9 for accuracy in accuracies), done.stdout


def test_examples_are_short() -> None:
    assert all(len(path.read_text(encoding="utf-8").splitlines()) < 30 for path in EXAMPLES)


def test_what_is_required_is_what_is_imported_in_the_studys_ranges() -> None:
    required = {re.split(r"[<>=]", line)[0]: line for line in PROJECT["dependencies"]}
    study = requirements("requirements.txt")
    assert set(required.values()) <= study
    imported = set()
    for path in (ROOT / "module").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {(path.name, alias.name.partition(".")[0]) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add((path.name, str(node.module).partition(".")[0]))
    others = {(file, name) for file, name in imported if name not in sys.stdlib_module_names}
    # What alone needs the user's own libraries; nobody else may ask for them.
    assert {pair for pair in others if pair[1] in ("transformers", "peft")} == {
        ("transformers.py", "transformers"), ("lora.py", "peft"),
    }  # fmt: skip
    # llvmlite is numba's own; triton comes with torch on CUDA, and is imported there alone.
    assert {name for _, name in others} - {"llvmlite", "triton", "transformers", "peft"} == set(required)


def requirements(file: str) -> set[str]:
    """The lines of a requirements file, without comments."""
    lines = (line.partition(" #")[0] for line in (ROOT / file).read_text(encoding="utf-8").splitlines())
    return {line for line in lines if line and not line.startswith("#")}


def test_extras_are_what_the_requirements_files_say() -> None:
    extras = {
        name: {line.replace("'", '"') for line in lines} for name, lines in PROJECT["optional-dependencies"].items()
    }
    study = requirements("requirements.txt")
    assert extras["study"] == study - set(PROJECT["dependencies"])
    assert extras["transformers"] == {next(s for s in study if s.startswith("transformers"))} | requirements(
        "requirements-bench.txt"
    )
    assert extras["cuda"] <= requirements("requirements-dev.txt")


def test_torch_has_no_upper_bound_but_in_the_constraints() -> None:
    files = [*ROOT.glob("requirements*.txt"), ROOT / "pyproject.toml"]
    bounds = {
        bound for file in files for bound in re.findall(r'^[^#\n]*?\btorch([<>=~!][^"; #\n]*)', file.read_text(), re.M)
    }
    assert bounds == {">=2.6"}
    assert requirements("constraints.txt") == {"torch==2.13.0"}


def test_the_page_of_the_index_has_no_relative_links() -> None:
    assert re.findall(r"\]\((?!https://)([^)]*)\)", LIBRARY_README) == []


def test_authors_are_those_of_the_citation() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["authors"] == citation["authors"]
    assert set(PROJECT["urls"].values()) == {citation["preferred-citation"]["url"]}


def test_public_names_are_those_of_the_declaration() -> None:
    import module

    tree = ast.parse((ROOT / "module" / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level for alias in node.names
    }
    assert typed == set(module.__all__)
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


def test_noisytune_as_a_function_is_the_method() -> None:
    import torch

    from module import noisytune
    from module.methods.noisytune import NoisyTuneSettings
    from tests.module.hooked import Hooked
    from tests.module.models import make_parameters

    for include_head in (False, True):
        settings = NoisyTuneSettings(noise_scale=0.3, include_head=include_head)
        trained = Hooked("noisytune", {"noisytune": settings}).values()
        alone = make_parameters()
        noisytune(alone.items(), noise_scale=0.3, seed=1, include_head=include_head)
        assert all(torch.equal(alone[name], trained[name]) for name in alone)
        assert not torch.equal(alone["bert.encoder.layer.0.intermediate.dense.weight"],
                               make_parameters()["bert.encoder.layer.0.intermediate.dense.weight"])  # fmt: skip
    with pytest.raises(ValueError, match=r"Invalid noise_scale: -1: a number of at least 0"):
        noisytune(make_parameters().items(), noise_scale=-1)
