"""An OpenAI-compatible endpoint on 127.0.0.1, a process of its own: judges by a rule, fails on demand.

Run as `python judge_server.py FOLDER SETTINGS`: the port is written to FOLDER/port, each request as a line to
FOLDER/requests. SETTINGS is JSON: `rule` (longer, first, tie, silent, foreign), `faults` (what the first
requests get instead of an answer), `seconds` (each answer takes), `key` (asked for).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

RULES = {
    "longer": lambda one, two: "1" if len(one) > len(two) else "2",
    "first": lambda one, two: "1",
    "tie": lambda one, two: "TIE",
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, b'{"data": []}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        settings = self.server.settings
        with self.server.lock:
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
            fault = settings["faults"].pop(0) if settings.get("faults") else {}
            line = {
                "path": self.path,
                "key": self.headers.get("Authorization"),
                "body": body,
                "at a time": self.server.most,
                "fault": fault,
            }
            with (self.server.folder / "requests").open("a") as file:
                file.write(json.dumps(line) + "\n")
        time.sleep(fault.get("seconds", settings.get("seconds", 0)))
        # Before anything is sent: with the answer in hand, its client may ask again at once.
        with self.server.lock:
            self.server.now -= 1
        self._answer(body, settings, fault)

    def _answer(self, body: Any, settings: Any, fault: Any) -> None:
        if settings.get("key") and self.headers.get("Authorization") != f"Bearer {settings['key']}":
            sent = str(self.headers.get("Authorization"))
            self._send(401, json.dumps({"error": f"wrong key {sent}"}).encode())
        elif "status" in fault:
            headers = {"Retry-After": str(fault["after"])} if "after" in fault else {}
            if fault["status"] == 302:
                headers["Location"] = "http://127.0.0.1:9/stolen"
            self._send(fault["status"], b"a fault of the test", headers)
        elif fault.get("cut"):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.wfile.flush()
            self.close_connection = True
        elif "text" in fault:
            self._send(200, fault["text"].encode())
        else:
            self._send(200, json.dumps(_completion(body, settings["rule"])).encode())

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _completion(body: Any, rule: str) -> Any:
    asked = body["messages"][-1]["content"]
    answers = re.findall(r"<answer_\d>\n(.*?)\n</answer_\d>", asked, re.DOTALL)
    text = f"I compared them.\nVERDICT: {RULES[rule](*answers)}" if rule in RULES else "Both are nice."
    return {"result": text} if rule == "foreign" else {"choices": [{"message": {"content": text}}]}


class JudgeServer:
    """A server that runs."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"
        self._folder = folder

    def requests(self) -> list[dict[str, Any]]:
        file = self._folder / "requests"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


@contextmanager
def judge_server(folder: Path, rule: str = "longer", **settings: Any) -> Iterator[JudgeServer]:
    """Start one in a process of its own, and end it behind."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "port").unlink(missing_ok=True)
    words = [sys.executable, __file__, str(folder), json.dumps({"rule": rule, **settings})]
    with subprocess.Popen(words) as process:
        try:
            end = time.monotonic() + 30
            while not (folder / "port").is_file():
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.02)
            yield JudgeServer(folder, int((folder / "port").read_text()))
        finally:
            process.kill()


def _serve(folder: Path, settings: dict[str, Any]) -> None:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.folder, server.settings, server.lock = folder, settings, threading.Lock()
    server.now = server.most = 0
    staging = folder / ".port"
    staging.write_text(str(server.server_address[1]))
    staging.rename(folder / "port")
    server.serve_forever()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), json.loads(sys.argv[2]))
