"""One file over HTTP, resumed where a former attempt broke off."""

import http.client
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path

_SECONDS = 60.0  # without a byte
_CHUNK = 1 << 20


def fetch(url: str, target: Path) -> Path:
    """Download ``url`` to ``target``; what is there already is kept.

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
            length = response.headers.get("Content-Length")
            total = have + int(length) if length is not None else None
            doing = f"going on from {have / 1e6:.1f} MB" if have else "fetching"
            print(f"{doing}: {url}" + (f" ({total / 1e6:.1f} MB)" if total else ""), file=sys.stderr)
            with part.open("ab" if have else "wb") as out:
                shutil.copyfileobj(response, out, _CHUNK)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            part.unlink()  # as long as the file or longer: not to be trusted, and small loss
            return fetch(url, target)
        raise OSError(f"{url}: HTTP {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise OSError(f"{url}: no connection ({error.reason})") from None
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise OSError(f"{url}: the connection broke off ({error}); run again to go on") from None
    size = part.stat().st_size
    if total is not None and size != total:
        raise OSError(f"{url}: the connection broke off at {size} of {total} bytes; run again to go on")
    part.replace(target)
    return target
