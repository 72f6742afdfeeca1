"""What README.md and the other pages show is there and works; the scripts themselves are tested in test_scripts.py."""

import dataclasses
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

from experiments.study import __main__ as study_main
from experiments.study.arguments import build_parser
from experiments.study.plan import chosen_recipes
from experiments.study.recipe import check_budgets
from module.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "module" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
PAGES += sorted((ROOT / "records").rglob("README.md"))
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
FOLDERS = "benchmarks|data_utils|docs|examples|experiments|module|mt_dnn|records|scripts|tests"


def without_code(text):
    """A page without its blocks of code, where neither headings nor links are."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchor(heading):
    """What GitHub makes of a heading: its text in lower case, no punctuation, hyphens for spaces."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")


@cache
def sections(page):
    """Anchor -> text of each section of a page; a heading that comes again has a number, as on GitHub."""
    parts = re.split(r"^#+ (.+)\n", without_code(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    found = {}
    for heading, text in zip(parts[1::2], parts[2::2], strict=True):
        name = anchor(heading)
        number = sum(re.fullmatch(rf"{re.escape(name)}(-\d+)?", other) is not None for other in found)
        found[f"{name}-{number}" if number else name] = text
    return found


def named(pattern):
    """Every (page, match) of a pattern in the pages, once each."""
    found = {(page, match) for page, text in TEXTS.items() for match in re.findall(pattern, text)}
    return [pytest.param(*pair, id=f"{pair[0].relative_to(ROOT)}: {pair[1]}") for pair in sorted(found)]


def test_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize(
    ("heading", "wanted"),
    [
        ("2. Canonical TSV", "2-canonical-tsv"),
        ('What "marked" means', "what-marked-means"),
        ("Stopping, sharing, pruning", "stopping-sharing-pruning"),
        ("`--launcher ray` on [SLURM](cluster.md)", "--launcher-ray-on-slurm"),
        ("γ is absolute", "γ-is-absolute"),
    ],
)
def test_anchors_are_those_of_github(heading, wanted):
    assert anchor(heading) == wanted


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(TEXTS[page]))
    for link in links:
        if re.match(r"\w+:", link):
            continue
        path, _, place = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not place or place in sections(target), link


@pytest.mark.parametrize(("page", "name"), named(r"(?:bash|python) ((?:\w+/)*\w+\.(?:sh|py))\b"))
def test_scripts_are_there(page, name):
    assert (ROOT / name).is_file()


@pytest.mark.parametrize(("page", "name"), named(r"python -m (\w+(?:\.\w+)*)"))
def test_modules_can_be_run(page, name):
    file = ROOT.joinpath(*name.split("."))
    if (ROOT / name.split(".")[0]).is_dir():
        file = file / "__main__.py" if file.is_dir() else file.with_suffix(".py")
        assert "__main__" in file.read_text(encoding="utf-8") or file.name == "__main__.py"
    else:
        assert importlib.util.find_spec(name) is not None


@pytest.mark.parametrize(("page", "name"), named(rf"(?<![\w/.<>-])((?:{FOLDERS})/(?:[\w.-]+/)*(?:[\w.-]*\.\w+)?)"))
def test_paths_are_there(page, name):
    """A path of this project; of one with a ``<placeholder>`` the part before it."""
    assert (ROOT / name).exists()


def studies():
    """Every command of a study that names its encoder, in the pages and in the help of the study."""
    texts = {**TEXTS, ROOT / "experiments/study/__main__.py": study_main.__doc__}
    found = [
        (page, command)
        for page, text in texts.items()
        for command in re.findall(r"python -m experiments\.study (.*?)(?:\s{3,}|#|`|$)", joined(text), re.MULTILINE)
        if "--encoder" in command and "..." not in command
    ]
    return [pytest.param(command, id=f"{page.relative_to(ROOT)}: {command}") for page, command in found]


def joined(text):
    """A text whose commands stand in one line each."""
    return re.sub(r" *\\\n\s*", " ", text)


@pytest.mark.parametrize("command", studies())
def test_studies_are_not_refused_for_grids_of_different_sizes(command):
    a_run = re.sub(r"runs/\w+/([\w-]+)/\w+/<run id>", r"\1", command)  # has its encoder's recipes
    chosen = build_parser("experiments.study", "").parse_args(a_run.split())
    chosen.methods = ",".join(name for name in chosen.methods.split(",") if name in METHODS)  # but a reader's own
    assert chosen.unequal_grids or chosen.search or check_budgets(chosen_recipes(chosen)) is None


def test_flags_of_train_py_exist():
    from mt_dnn.config_parser import build_parser as train_parser

    text = train_parser().format_help()
    (command,) = re.findall(r"python train\.py (.*pats.*)", README)
    assert all(flag in text for flag in re.findall(r"--[\w.]+", command))


def section_of(method):
    """Link of a method's row in README.md, and the text of the section that it leads to."""
    rows = [line for line in README.splitlines() if line.startswith("| [`")]
    links = [
        link for row in rows for names, link in re.findall(r"\[([^\]]+)\]\(([^)]+)\)", row) if f"`{method}`" in names
    ]
    (link,) = links
    path, _, place = link.partition("#")
    return link, sections(ROOT / path)[place]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_row_and_a_section_with_all_its_settings(name):
    link, section = section_of(name)
    assert f"`{name}`" in section or f"`--method {name}`" in section
    if link.startswith("docs/pats.md"):  # whose settings and open choices have sections of their own
        section = "".join(sections(ROOT / "docs/pats.md").values())
    settings = [field.name for field in dataclasses.fields(METHODS[name].Settings)]
    assert [setting for setting in settings if f"`{setting}`" not in section] == []


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.is_control])
def test_sections_of_methods_have_one_shape(name):
    _, section = section_of(name)
    labels = ["Paper.", "What it does.", "Cost.", "With others.", "Differs."]
    assert [label for label in re.findall(r"^\*\*([^*]+)\*\*", section, re.MULTILINE) if label in labels] == labels
