import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """Folder with real GLUE files (CoLA, MRPC, RTE, STS-B); tests that want it are skipped without it."""
    folder = Path(os.environ.get("PATS_GLUE_DIR", ROOT.parent / "shared" / "glue"))
    if not (folder / "CoLA" / "train.tsv").is_file():
        pytest.skip(f"no GLUE files in {folder}: set PATS_GLUE_DIR to a folder with CoLA/, MRPC/, RTE/, STS-B/")
    return folder
