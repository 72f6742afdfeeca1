"""A headless Chromium for tests, spoken to over its debugging pipe; nothing is installed but the browser itself."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
# The browser reads commands from file 3 and writes answers to file 4.
_LAUNCH = """
import os, sys
read, write, *command = sys.argv[1:]
read, write = os.dup(int(read)), os.dup(int(write))
os.dup2(read, 13), os.dup2(write, 14)
os.dup2(13, 3), os.dup2(14, 4)
os.execv(command[0], command)
"""


def find_browser() -> str | None:
    """Path of a Chromium: the environment variable CHROMIUM, else what is on PATH."""
    return next((path for name in (os.environ.get("CHROMIUM"), *_NAMES) if name and (path := shutil.which(name))), None)


class Browser:
    """One tab. Commands and events are those of the Chrome DevTools protocol."""

    def __init__(self, send: int, receive: int) -> None:
        self._send = os.fdopen(send, "wb", buffering=0)
        self._receive = os.fdopen(receive, "rb")
        self._numbers = itertools.count(1)
        self._messages: Queue[dict[str, Any]] = Queue()
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        threading.Thread(target=self._listen, daemon=True).start()
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.command(f"{domain}.enable")

    def _listen(self) -> None:
        rest = b""
        while chunk := self._receive.read1(1 << 20):
            *whole, rest = (rest + chunk).split(b"\0")
            for message in whole:
                self._messages.put(json.loads(message))

    def _next(self, seconds: float) -> dict[str, Any]:
        message = self._messages.get(timeout=seconds)
        if "method" in message:
            self.events.append(message)
        return message

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._send.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(60)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def wait_for(self, event: str, seconds: float = 30) -> dict[str, Any]:
        """The first event of that name since the events were last cleared, now or to come."""
        deadline = time.monotonic() + seconds
        while True:
            for message in self.events:
                if message["method"] == event:
                    return message["params"]
            try:
                self._next(max(0.01, deadline - time.monotonic()))
            except Empty:
                raise AssertionError(f"no {event} within {seconds} s") from None

    def open(self, path: Path, fragment: str = "") -> None:
        self.events.clear()
        self.command("Page.navigate", url=f"{path.resolve().as_uri()}{fragment}")
        self.wait_for("Page.loadEventFired")

    def reload(self) -> None:
        self.events.clear()
        self.command("Page.reload")
        self.wait_for("Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page."""
        answer = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, text: str = "") -> None:
        code = {"Enter": 13, "Tab": 9, " ": 32}[key]
        for kind in ("keyDown", "keyUp"):
            self.command("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text)

    def show(self, width: int, height: int = 800, dark: bool = False, media: str = "screen") -> None:
        """Set the window's size in CSS pixels, the system's theme and the medium."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def scripts(self, on: bool) -> None:
        self.command("Emulation.setScriptExecutionDisabled", value=not on)

    def screenshot(self, file: Path, whole: bool = False) -> None:
        answer = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(answer["data"]))

    def complaints(self) -> list[str]:
        """Console messages, exceptions, policy violations and requests for anything but local files."""
        self.evaluate("0")  # what is on its way arrives before the answer
        found = []
        for message in self.events:
            name, values = message["method"], message["params"]
            if name in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                found.append(json.dumps(values))
            elif name == "Network.requestWillBeSent" and not values["request"]["url"].startswith(("file:", "data:")):
                found.append(values["request"]["url"])
        return found


@contextmanager
def headless(profile: Path) -> Iterator[Browser]:
    """Start a browser.

    Args:
        profile: An empty folder for its files.
    """
    path = find_browser()
    assert path is not None, "find_browser() says whether there is one"
    their_read, our_write = os.pipe()
    our_read, their_write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", _LAUNCH, str(their_read), str(their_write), path, *_FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(their_read, their_write), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(their_read)
    os.close(their_write)
    try:
        browser = Browser(our_write, our_read)
        yield browser
        browser._session = None
        browser.command("Browser.close")
        process.wait(20)
    finally:
        process.kill()
        process.wait()
