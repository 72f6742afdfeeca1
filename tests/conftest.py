from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mt_dnn.config import RunConfig

ROOT = Path(__file__).resolve().parents[1]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect no garbage while tests are collected: all that is made there stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def all_is_searched_in_the_end() -> Iterator[None]:
    """Give back what :func:`no_search_of_what_stays` keeps: some libraries name on exit what was not collected."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def no_search_of_what_stays() -> None:
    """Keep libraries and collected tests, a million objects, out of the garbage collections that follow.

    ``transformers.Trainer`` makes a full one before each training: two thirds of the time of a short one.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Let ``os.fsync`` check its file and return: only a loss of power would tell the difference.

    Processes that a test starts, and kills, do wait for the disk.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: os.fstat(file) and None)
        yield


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """Folder with real GLUE files (CoLA, MRPC, RTE, STS-B); tests that want it are skipped without it."""
    folder = Path(os.environ.get("PATS_GLUE_DIR", ROOT.parent / "shared" / "glue"))
    if not (folder / "CoLA" / "train.tsv").is_file():
        pytest.skip(f"no GLUE files in {folder}: set PATS_GLUE_DIR to a folder with CoLA/, MRPC/, RTE/, STS-B/")
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a two-layer random BERT with its tokenizer."""
    from tests.tiny import make_encoder

    return make_encoder(tmp_path_factory.mktemp("encoders") / "tiny-bert")


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the canonical files and task_def.yml of the tasks toy and toyscore."""
    from tests.tiny import make_task

    return make_task(tmp_path_factory.mktemp("tiny") / "canonical_data")


@pytest.fixture(scope="session")
def tiny_trained(tiny_encoder: Path, tiny_task: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of finished runs of the tiny encoder by task: cola (classes) and stsb (pairs, a score).

    Their data are those of the tasks toy and toyscore, with a test set, in the folder that their ``run.json`` names.
    """
    from experiments.glue.glue_prepro import GLUE_TASK_DEF
    from mt_dnn.config_parser import config_from_mapping
    from mt_dnn.run import run
    from mt_dnn.run_id import run_dir
    from tests.tiny import as_glue

    root = tmp_path_factory.mktemp("trained")
    as_glue(tiny_task, root / "canonical_data")
    found = {}
    for task in ("cola", "stsb"):
        config = config_from_mapping(
            {
                "task_def": GLUE_TASK_DEF,
                "data_dir": root / "canonical_data", "train_datasets": task, "init_checkpoint": str(tiny_encoder),
                "output_dir": root / "runs", "epochs": 3, "batch_size": 16, "learning_rate": 1e-2, "seed": 1,
                "method": "pats", "precision": "fp32", "tensorboard": False, "device": "cpu", "save": "both",
            }
        )  # fmt: skip
        run(config)
        found[task] = run_dir(config)
    return found


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the workers of a study's pool from a process that has imported torch: each saves seconds of imports.

    They are processes as ever. test_pool.py and test_adding_a_method.py start them as a user's study does.
    """
    from tests.child import FORKSERVER

    monkeypatch.setattr("experiments.study.launch.worker._CONTEXT", FORKSERVER)


@pytest.fixture
def tiny_run(tiny_encoder: Path, tiny_task: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """Make the configuration of a short run of the tiny encoder on the task toy, with changes."""
    from mt_dnn.config_parser import config_from_mapping

    def make(**changes: Any) -> RunConfig:
        settings = {
            "task_def": tiny_task / "task_def.yml",
            "data_dir": tiny_task,
            "train_datasets": "toy",
            "init_checkpoint": str(tiny_encoder),
            "output_dir": tmp_path / "runs",
            "epochs": 3,
            "batch_size": 16,
            "learning_rate": 3e-2,
            "precision": "fp32",
            "tensorboard": False,
            "log_per_updates": 2,
            "device": "cpu",
            "threads": 1,
            "seed": 1,
        }
        return config_from_mapping({**settings, **changes})

    return make
