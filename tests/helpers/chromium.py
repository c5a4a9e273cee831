"""Chromium without a window, used by mouse and keys as people do, through the pipe of its DevTools protocol."""

import base64
import fcntl
import itertools
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

PROGRAM = shutil.which(os.environ.get("CHROMIUM", "chromium"))
_SECONDS = 60
_KEYS = {
    "Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36,
    "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40,
}  # fmt: skip


class Browser:
    """A page in Chromium.

    ``requests`` are the URLs of requests that its policy let pass, by their ids; ``errors`` what its scripts and its
    policy complained about.
    """

    def __init__(self, process: subprocess.Popen, commands: int, answers: int) -> None:
        self._process, self._commands, self._answers = process, commands, answers
        self._numbers, self._unread, self._session = itertools.count(1), b"", None
        self.requests: dict[str, str] = {}
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command, and returns its answer; events before it are taken note of."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + _SECONDS
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], max(0, deadline - time.monotonic()))
            part = os.read(self._answers, 2**16) if ready else b""
            if not part:
                raise RuntimeError(f"Chromium did not answer; exit status {self._process.poll()}")
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests[params["requestId"]] = params["request"]["url"]
        elif method == "Network.loadingFailed" and params.get("blockedReason") == "csp":
            del self.requests[params["requestId"]]
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])

    def open(self, file: Path) -> None:
        self.requests.clear()
        self.errors.clear()
        self.call("Page.navigate", url=file.absolute().as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Waits until an expression is true."""
        deadline = time.monotonic() + _SECONDS
        while not self.js(condition):
            assert time.monotonic() < deadline, f"never became true: {condition}"
            time.sleep(0.02)

    def place(self, selector: str, x: float = 0.5, y: float = 0.5) -> tuple[float, float]:
        """Position on the screen of a point in an element, which is scrolled to; in shares of its width and height."""
        box = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center'}); "
            "const {left, top, width, height} = e.getBoundingClientRect(); return [left, top, width, height]; })()"
        )
        return box[0] + x * box[2], box[1] + y * box[3]

    def point(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        self._mouse("mouseMoved", *self.place(selector, x, y))

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        self.drag(selector, (x, y))

    def drag(self, selector: str, *points: tuple[float, float]) -> None:
        places = [self.place(selector, *point) for point in points]
        self._mouse("mouseMoved", *places[0])
        self._mouse("mousePressed", *places[0], button="left", buttons=1, clickCount=1)
        for place in places[1:]:
            self._mouse("mouseMoved", *place, button="left", buttons=1)
        self._mouse("mouseReleased", *places[-1], button="left", clickCount=1)

    def tap(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        left, top = self.place(selector, x, y)
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": left, "y": top}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def _mouse(self, kind: str, x: float, y: float, **details: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **details)

    def press(self, *keys: str) -> None:
        for key in keys:
            known = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": _KEYS[key]}
            text = {"text": {"Enter": "\r"}.get(key, key)} if key in ("Enter", " ") else {}
            self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **known, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **known)

    def screen(self, width: int, height: int, *, phone: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)

    def prefer(self, scheme: str) -> None:
        """Sets what the system prefers, ``light`` or ``dark``."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def picture(self) -> bytes:
        """What is on the screen, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def pdf(self) -> bytes:
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Starts Chromium with an empty profile."""
    commands, answers = os.pipe(), os.pipe()
    # Chromium reads 3 and writes 4, which the shell opens; high numbers, as either of the pipes may have these.
    reads, writes = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (commands[0], answers[1]))
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
    arguments += [
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--hide-scrollbars",
    ]
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{reads} 4>&{writes}', "bash", PROGRAM, *arguments, f"--user-data-dir={profile}"],
        pass_fds=(reads, writes),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in (commands[0], answers[1], reads, writes):
        os.close(end)
    try:
        yield Browser(process, commands[1], answers[0])
    finally:
        os.close(commands[1])  # its end
        os.close(answers[0])
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
