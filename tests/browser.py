"""Headless Chromium through its debugging pipe: no driver, no other package.

    python tests/browser.py PAGE.html PICTURE.png [WIDTH [HEIGHT [dark]]]

takes a picture of a page in 128 colours; HEIGHT 0 is the whole page.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage "
    "--hide-scrollbars --remote-debugging-pipe"
).split()


def find_chromium() -> str | None:
    """The path of Chromium, from `$CHROMIUM` or a common name; None if there is none."""
    found = [os.environ.get("CHROMIUM"), *(shutil.which(name) for name in NAMES)]
    return next((path for path in found if path), None)


class Page:
    """One open tab, with its requests and console errors."""

    def __init__(self, send: Any, receive: Any) -> None:
        self.send, self.receive, self.number, self.session = send, receive, 0, ""
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a DevTools command and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        self.send.write(json.dumps(message).encode() + b"\0")
        self.send.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, path: Path, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Open a file at a width, and wait until it has loaded."""
        self.requests.clear()
        self.complaints.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.size(width, height)
        self.loaded = False
        self.call("Page.navigate", url=path.absolute().as_uri())
        while not self.loaded:
            self._next()
        self.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 100)))")

    def size(self, width: int, height: int) -> None:
        """Set the window size in CSS pixels; below 600 it emulates a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def evaluate(self, script: str) -> Any:
        """Evaluate a JavaScript expression in the page."""
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def picture(self) -> bytes:
        """A screenshot of the window, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def _next(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self.receive.read(1)) != b"\0":
            assert byte, "the browser has gone"
            text += byte
        message = json.loads(text)
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Log.entryAdded":
            self.complaints.append(parameters["entry"]["text"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.complaints.append(json.dumps(parameters))
        elif method == "Page.loadEventFired":
            self.loaded = True
        return message


@contextmanager
def browser(program: str) -> Iterator[Page]:
    """Start Chromium with a temporary profile and yield a page in it."""
    to_read, send = os.pipe()
    receive, to_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # It reads commands from file descriptor 3 and answers on 4.
        shell = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        command = ["bash", "-c", shell, program, *SWITCHES, f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            command,
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        with os.fdopen(send, "wb") as sender, os.fdopen(receive, "rb") as receiver:
            page = Page(sender, receiver)
            try:
                yield page
            finally:
                page.session = ""
                with suppress(OSError, AssertionError):
                    page.call("Browser.close")
                process.wait(timeout=20)


def main(page: str, out: str, width: str = "1440", height: str = "900", theme: str = "") -> None:
    """Take a screenshot of a page."""
    program = find_chromium()
    assert program, "found no Chromium"
    with browser(program) as tab:
        tab.open(Path(page), width=int(width), dark=theme == "dark")
        whole = tab.evaluate("document.documentElement.scrollHeight")
        tab.size(int(width), int(height) or whole)
        picture = Image.open(io.BytesIO(tab.picture())).convert("RGB")
        picture.quantize(128, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
