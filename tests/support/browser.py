"""A headless Chromium, driven through its debugging pipe (the DevTools protocol, without any library)."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = (
    "chromium",
    "chromium-headless-shell",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "msedge",
)
SECONDS = 60
KEY_CODES = {
    "Backspace": 8, "Enter": 13, "Escape": 27, "PageUp": 33, "PageDown": 34, "End": 35, "Home": 36, "ArrowLeft": 37,
    "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Delete": 46, "F2": 113,
}  # fmt: skip

# The middle of an element that is in the same place two pictures of the screen later and that a click there would
# hit; null of another. An element that was drawn anew meanwhile is nowhere.
AT_REST = """async selector => {
  const middle = element => {
    const box = element.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
  };
  const frame = () => new Promise(resolve => { requestAnimationFrame(resolve); setTimeout(resolve, 100); });
  const element = document.querySelector(selector);
  element.scrollIntoView({block: "center"});
  const before = middle(element);
  await frame();
  await frame();
  const after = middle(element), still = before[0] === after[0] && before[1] === after[1];
  return still && element.contains(document.elementFromPoint(...after)) ? after : null;
}"""


def find_browser() -> str | None:
    """The browser's program, or None. CHROMIUM names another."""
    return next(
        (path for name in (os.environ.get("CHROMIUM", ""), *NAMES) if (path := shutil.which(name))), None
    )


class Tab:
    """One page. ``requests`` are the addresses that it asked for, ``errors`` what its script threw."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, receive
        self._number, self._buffer, self._session = 0, b"", ""
        self._traced: list[dict[str, Any]] | None = None
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']['message']}")
                result: dict[str, Any] = found["result"]
                return result

    def open(self, address: str) -> None:
        """Go to a page and wait until it is there."""
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"].get("exception", {}).get("description", "error"))
        return found["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + SECONDS
        while not self._is(script):
            if time.monotonic() > end:
                raise TimeoutError(script)
            time.sleep(0.05)

    def _is(self, script: str) -> bool:
        """Whether an expression is true; not while the page gives way to another."""
        try:
            return bool(self.evaluate(script))
        except RuntimeError as error:
            if "navigated or closed" in str(error) or "context was destroyed" in str(error):
                return False
            raise

    def click(self, selector: str, *, shift: bool = False, ctrl: bool = False, times: int = 1) -> None:
        """Click in the middle of an element, as a mouse does, once it lies still and nothing lies over it."""
        end = time.monotonic() + SECONDS
        while not (place := self.evaluate(f"({AT_REST})({json.dumps(selector)})")):
            if time.monotonic() > end:
                raise TimeoutError(f"{selector} moves, or something lies over it")
            time.sleep(0.05)
        for count in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self.call(
                    "Input.dispatchMouseEvent",
                    type=kind,
                    x=place[0],
                    y=place[1],
                    button="left",
                    clickCount=count,
                    modifiers=8 * shift + 2 * ctrl,
                )

    def press(self, key: str, *, shift: bool = False, ctrl: bool = False, alt: bool = False) -> None:
        """Press a key and let it go: a letter, or a name such as ``Enter`` or ``ArrowDown``."""
        words: dict[str, Any] = {"key": key, "modifiers": alt + 2 * ctrl + 8 * shift}
        words["windowsVirtualKeyCode"] = KEY_CODES.get(key, ord(key[0].upper()))
        letter = "\r" if key == "Enter" else key if len(key) == 1 and not (ctrl or alt) else None
        self.call("Input.dispatchKeyEvent", type="keyDown", **words, **({"text": letter} if letter else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **words)

    def resize(self, width: int, height: int, scheme: str = "light") -> None:
        """Give the page another size in pixels, and a scheme of colours: ``light`` or ``dark``."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    @contextmanager
    def tasks(self) -> Iterator[list[float]]:
        """Milliseconds of the page's tasks meanwhile, the longest first; the list is filled at the end.

        By the browser's own log, in the time of their thread: what else the machine does is not counted.
        """
        found: list[float] = []
        self._traced = events = []
        self.call("Tracing.start", transferMode="ReportEvents", categories="toplevel")
        try:
            yield found
        finally:
            self.call("Tracing.end")
            while self._traced is not None:
                self._next()
            names = {
                event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"
            }
            found += sorted(
                (
                    event.get("tdur", 0) / 1000
                    for event in events
                    if event["name"].endswith("RunTask") and names.get(event["tid"]) == "CrRendererMain"
                ),
                reverse=True,
            )

    def picture(self, path: Path) -> None:
        """Save what is seen as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def write(self, selector: str, text: str) -> None:
        """Type into a field."""
        self.click(selector)
        self.call("Input.insertText", text=text)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._receive], [], [], SECONDS)[0]:
                raise TimeoutError("the browser does not answer")
            piece = os.read(self._receive, 1 << 20)
            if not piece:
                raise RuntimeError("the browser has ended")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        if message.get("method") == "Tracing.dataCollected" and self._traced is not None:
            self._traced += message["params"]["value"]
        if message.get("method") == "Tracing.tracingComplete":
            self._traced = None
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(message["params"]["exceptionDetails"].get("text", "error"))
        return message


@contextmanager
def open_browser(program: str, profile: Path, *options: str) -> Iterator[Tab]:
    """Start the browser, with the network cut off, and end it. ``options`` are more of the browser's own."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    words = [
        program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
        "--proxy-server=127.0.0.1:9", "--window-size=1200,900", f"--user-data-dir={profile}",
        *options,
    ]  # fmt: skip
    # The browser reads from descriptor 3 and writes to 4.
    line = f'exec "$0" "$@" 3<&{to_read} 4>&{from_write}'
    process = subprocess.Popen(
        ["bash", "-c", line, *words],
        pass_fds=(to_read, from_write),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(from_write)
    try:
        yield Tab(to_write, from_read)
    finally:
        os.close(to_write)
        os.close(from_read)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
