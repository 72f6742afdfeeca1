"""One file over HTTP, resumed where a former attempt broke off."""

import http.client
import io
import os
import shutil
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path

from data_utils.atomic import NamedFile

_SECONDS = 60.0  # without a byte
_CHUNK = 1 << 20


def fetch(url: str, target: Path) -> Path:
    """Download ``url`` to ``target``; bytes that are there already are kept.

    The bytes go to ``<target>.part``. If that is there, only the rest is asked for; a server that cannot send a part
    sends the whole, which replaces it. ``target`` appears when every byte that the server announced is there.

    Returns:
        ``target``.

    Raises:
        OSError: no connection, an HTTP error, or one that broke off; the message names the URL.
    """
    if target.is_file():
        return target
    part = target.with_name(target.name + ".part")
    have = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "download_glue"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_SECONDS) as response:
            if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                have = 0
            length = response.headers.get("Content-Length", "")
            # Without a sensible one the check of the archive must do.
            total = have + int(length) if length.isdecimal() and len(length) < 20 else None
            doing = f"going on from {have / 1e6:.1f} MB" if have else "fetching"
            print(f"{doing}: {url}" + (f" ({total / 1e6:.1f} MB)" if total else ""), file=sys.stderr)
            _copy(response, part, have)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            part.unlink()  # as long as the file or longer: not to be trusted, and small loss
            return fetch(url, target)
        # Of redirects in a circle urllib tells in several lines.
        raise OSError(f"{url}: HTTP {error.code} {' '.join(str(error.reason).split())}") from None
    except urllib.error.URLError as error:
        raise OSError(f"{url}: no connection ({error.reason})") from None
    except (http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        raise OSError(f"{url}: the connection broke off ({error}); run again to go on") from None
    except ValueError as error:
        raise OSError(f"{url}: no address that can be fetched ({error})") from None
    size = part.stat().st_size
    if total is not None and size != total:
        raise OSError(f"{url}: the connection broke off at {size} of {total} bytes; run again to go on")
    part.replace(target)
    return target


def _copy(response: http.client.HTTPResponse, part: Path, have: int) -> None:
    """Append a response to a file, or begin the file anew if ``have`` is 0."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if have else os.O_TRUNC)
    with io.BufferedWriter(NamedFile(os.open(part, flags, 0o666), part)) as out:
        shutil.copyfileobj(response, out, _CHUNK)
