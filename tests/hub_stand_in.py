"""A server on this machine in the place of the Hub: it takes commits and keeps their files."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class HubStandIn(ThreadingHTTPServer):
    """Repositories by name, each with its files by path.

    Attributes:
        token: The only account that may write.
        refused: A path that is refused, whatever the account.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.token, self.refused = "a token", ""


class _Handler(BaseHTTPRequestHandler):
    server: HubStandIn

    def do_POST(self) -> None:
        body = self._body()
        hub, path = self.server, self.path.partition("?")[0]
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._answer(401, {"error": "Invalid username or password."})
        elif hub.refused and path.endswith(hub.refused):
            self._answer(403, {"error": "Forbidden: no quota left"})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            exists = name in hub.repositories
            hub.repositories.setdefault(name, {})
            hub.private.setdefault(name, asked.get("private") is True or asked.get("visibility") == "private")
            self._answer(409 if exists else 200, {"url": f"{hub.url}/{name}", "name": name})
        elif path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self._answer(200, {"files": modes})
        elif path.endswith("/commit/main"):
            name = path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    hub.repositories[name][value["path"]] = base64.b64decode(value["content"])
            self._answer(
                200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"{hub.url}/{name}/commit/{'0' * 40}"}
            )
        else:
            self._answer(200, {})

    def do_GET(self) -> None:
        self._answer(200, {"id": "me/any", "sha": "0" * 40, "siblings": []})

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def hub_stand_in() -> Iterator[HubStandIn]:
    """Run the server while the block runs."""
    with HubStandIn() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
