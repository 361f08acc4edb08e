"""A headless Chromium, driven over WebDriver with the standard library."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

KEYS = {"Tab": "\ue004", "Enter": "\ue007", "Right": "\ue014", "Left": "\ue012", "Space": " "}
_STARTUP_SECONDS = 60.0
_CALL_SECONDS = 120.0
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Browser:
    """One session: a window, what its pages logged, and the protocol of its developer tools."""

    def __init__(self, server: str, binary: str) -> None:
        flags = ["--headless=new", "--hide-scrollbars", "--disable-dev-shm-usage", "--disable-gpu"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            flags.append("--no-sandbox")  # as root the sandbox does not start; the pages are our own
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": binary, "args": flags},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        self._url = server
        asked = {"capabilities": {"alwaysMatch": capabilities}}
        self._url = f"{server}/session/{self._call('POST', '/session', asked)['sessionId']}"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if method == "GET" else json.dumps(body or {}).encode()
        asked = urllib.request.Request(
            self._url + path, data, {"Content-Type": "application/json"}, method=method
        )
        # No proxy of the surroundings: the driver is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(asked, timeout=_CALL_SECONDS) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"].splitlines()[0]) from error

    def close(self) -> None:
        self._call("DELETE", "")

    def open(self, page: Path, fragment: str = "") -> None:
        self._call("POST", "/url", {"url": "about:blank"})  # else a new fragment alone loads nothing
        self.messages(), self.requests()  # those of the page before
        self._call("POST", "/url", {"url": page.resolve().as_uri() + fragment})

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what the body of a JavaScript function gives back."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def tools(self, command: str, **parameters: Any) -> Any:
        """Run a command of the DevTools protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def window(self, width: int, height: int = 800) -> None:
        """Give the page this many CSS pixels: a window cannot be made as narrow as a phone."""
        self.tools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def media(self, kind: str = "screen", scheme: str = "light") -> None:
        """Show the page as on `screen` or in `print`, for a reader who prefers `light` or `dark`."""
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        self.tools("Emulation.setEmulatedMedia", media=kind, features=wanted)

    def scripts(self, allowed: bool) -> None:
        self.tools("Emulation.setScriptExecutionDisabled", value=not allowed)

    def press(self, *keys: str) -> None:
        strokes = [{"type": kind, "value": KEYS[key]} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": strokes}]})

    def _element(self, selector: str) -> dict[str, str]:
        return self._call("POST", "/element", {"using": "css selector", "value": selector})

    def click(self, selector: str) -> None:
        """Click as a mouse does: what is hidden or covered cannot be."""
        self._call("POST", f"/element/{next(iter(self._element(selector).values()))}/click")

    def point(self, selector: str) -> None:
        """Move the mouse over the middle of an element."""
        move = {"type": "pointerMove", "duration": 0, "x": 0, "y": 0, "origin": self._element(selector)}
        mouse = {"type": "pointer", "id": "mouse", "actions": [move]}
        self.run("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", selector)
        self._call("POST", "/actions", {"actions": [mouse]})

    def messages(self) -> list[str]:
        """Return what the console got since it was last asked."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """Return the addresses that were asked for since this was last called."""
        entries = self._call("POST", "/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in entries]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def picture(self, path: Path, whole: bool = False) -> None:
        """Write what the window shows, or the whole page, as PNG."""
        shot = self.tools("Page.captureScreenshot", captureBeyondViewport=whole, **self._clip(whole))
        path.write_bytes(base64.b64decode(shot["data"]))

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.tools("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def pdf(self, path: Path) -> None:
        self.tools("Emulation.setEmulatedMedia", media="", features=[])
        printed = self.tools("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        path.write_bytes(base64.b64decode(printed["data"]))


def _find() -> tuple[str, str]:
    """Return the paths of Chromium and its driver, or skip the test where one of them is missing."""
    binary = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    driver = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver")
    if binary and driver:
        return binary, driver
    pytest.skip("no Chromium or no chromedriver: as root, scripts/browser installs both on Debian")


@contextmanager
def browser() -> Iterator[Browser]:
    """Start a headless Chromium and end it behind; the test is skipped where there is none."""
    binary, driver = _find()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [driver, f"--port={port}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(server, port)
            session = Browser(f"http://127.0.0.1:{port}", binary)
            try:
                yield session
            finally:
                session.close()
        finally:
            server.terminate()


def _wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + _STARTUP_SECONDS
    while True:
        assert server.poll() is None, f"chromedriver ended with {server.returncode}"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < end, "chromedriver does not listen"
            time.sleep(0.05)
