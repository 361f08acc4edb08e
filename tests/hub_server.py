"""A small Hugging Face hub on 127.0.0.1, serving local folders as repositories under any id.

It answers what `huggingface_hub`, `transformers` and `datasets` ask when they load something, so tests run
the real download code without a network. The clients read `HF_ENDPOINT` when they are imported, hence they
must run in a subprocess started with `HubServer.environment(...)`.
"""

import hashlib
import json
import os
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

_API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<repo>.+?)"
    r"(?:/(?P<verb>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<path>.+))?)?"
)
_RESOLVE = re.compile(
    r"/(?:(?P<kind>datasets)/)?(?P<repo>.+?)/(?P<verb>resolve)/(?P<revision>[^/]+)/(?P<path>.+)"
)


class Fault(NamedTuple):
    """What a request gets instead of its answer; put it into `HubServer.faults`.

    Attributes:
        status: HTTP status to answer with; 200 serves the file.
        code: The hub's own error code (`X-Error-Code`), which decides the exception that clients raise.
        cut_after: Close the connection after this many bytes of the body.
        reset: Close it without the farewell of TCP, as a crashed machine or a middle box does.
        short_by: Leave out so many bytes of the body's end, and announce the shorter length.
        seconds: Wait so long before the answer.
        message: The hub's words for it.
    """

    status: int = HTTPStatus.OK
    code: str = ""
    cut_after: int | None = None
    reset: bool = False
    short_by: int = 0
    seconds: float = 0
    message: str = "A fault injected by the test."


GATED_ANONYMOUS = Fault(HTTPStatus.UNAUTHORIZED, "GatedRepo")
GATED_NOT_ALLOWED = Fault(HTTPStatus.FORBIDDEN, "GatedRepo")
NOT_FOUND = Fault(HTTPStatus.NOT_FOUND, "RepoNotFound")
RATE_LIMITED = Fault(HTTPStatus.TOO_MANY_REQUESTS)
SERVER_ERROR = Fault(HTTPStatus.INTERNAL_SERVER_ERROR)


class HubServer:
    """Serve model and dataset folders while the `with` block runs.

    Attributes:
        requests: Every request so far, as `"GET /mistralai/Mistral-7B-v0.1/resolve/main/config.json"`.
        ranges: Of every request for a file's content its path, and the byte from which on it was asked for.
        faults: From a part of such a line to the faults of the requests containing it, one each, in turn;
            once they are used up the requests are served again. `repeat(GATED_ANONYMOUS)` never ends. A `*`
            in the part stands for anything.
    """

    def __init__(
        self,
        models: Mapping[str, str | Path] | None = None,
        datasets: Mapping[str, str | Path] | None = None,
    ) -> None:
        """Take the folders, by repository id; they are read anew at each request.

        `owner/name@branch` is another branch than main of the repository.
        """
        self.requests: list[str] = []
        self.ranges: list[tuple[str, int]] = []
        self.faults: dict[str, Iterator[Fault]] = {}
        self._folders = {("models", repo): Path(folder) for repo, folder in (models or {}).items()}
        self._folders |= {("datasets", repo): Path(folder) for repo, folder in (datasets or {}).items()}

    def __enter__(self) -> Self:
        """Start to serve on a free port."""
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.hub = self
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop and free the port."""
        self._http.shutdown()
        self._http.server_close()

    @property
    def endpoint(self) -> str:
        """What `HF_ENDPOINT` must be."""
        return f"http://127.0.0.1:{self._http.server_port}"

    def environment(self, home: str | Path) -> dict[str, str]:
        """Environment for a subprocess that knows no other hub and keeps its caches under `home`."""
        # Tokens, cache folders, offline switches and proxies of the person running the tests must not leak.
        theirs = re.compile(r"(HF_|HUGGING|TRANSFORMERS_).*|.*_proxy", re.IGNORECASE)
        kept = {name: value for name, value in os.environ.items() if not theirs.fullmatch(name)}
        return kept | {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def answer(
        self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> "_Answer":
        """Answer one request; `target` is the still quoted path, with its query."""
        url = urlsplit(target)
        line = f"{method} {unquote(url.path)}"
        self.requests.append(line)
        turns = [turn for part, turn in self.faults.items() if fnmatchcase(line, f"*{part}*")]
        fault = next(chain.from_iterable(turns), Fault())
        if fault.status != HTTPStatus.OK:
            return _error(fault.status, fault.code, fault.message)
        written = self.write(method, url.path, body, headers or {})
        if written is not None:
            return written._replace(fault=fault)
        match = _API.fullmatch(url.path) or _RESOLVE.fullmatch(url.path)
        if match is None:
            return _error(HTTPStatus.NOT_FOUND, "", f"This test server has no {url.path}")
        asked = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
        branches = self._branches(asked.get("kind", "models"), asked["repo"])
        if not branches:
            return _error(HTTPStatus.NOT_FOUND, "RepoNotFound", "Repository not found")
        found = [
            (_commit_of(files), files)
            for name, files in branches
            if asked.get("revision", "main") in (name, _commit_of(files))
        ]
        if not found:
            return _error(HTTPStatus.NOT_FOUND, "RevisionNotFound", "Invalid rev id")
        commit, files = found[0]
        answers: dict[str, Callable[[], _Answer]] = {
            "revision": lambda: _json(_repo_info(asked["repo"], commit, files)),
            "tree": lambda: _tree(files, asked.get("path", ""), "recursive=true" in url.query.lower()),
            "paths-info": lambda: _json(_paths_info(files, parse_qs(body.decode())["paths"])),
            "resolve": lambda: _file(files, asked["path"]),
        }
        answer = answers[asked.get("verb", "revision")]()
        answer.headers["X-Repo-Commit"] = commit
        return answer._replace(fault=fault)

    def write(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> "_Answer | None":
        """Answer a request that changes something; None where it is none. This hub takes nothing."""
        return None

    def _branches(self, kind: str, repo: str) -> list[tuple[str, dict[str, bytes]]]:
        """Return the branches of a repository, each with its files by path."""
        names = [name.partition("@") for of, name in self._folders if of == kind]
        return [
            (branch or "main", _read_files(self._folders[kind, f"{name}{at}{branch}"]))
            for name, at, branch in names
            if name == repo
        ]


class _Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes
    fault: Fault = Fault()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body are two writes; with Nagle's algorithm each answer would wait for a delayed ACK.
    disable_nagle_algorithm = True

    def _respond(self) -> None:
        body = self._body()
        found = self.server.hub.answer(self.command, self.path, body, self.headers)
        answer = _apply_range(found, self.headers.get("Range"))
        fault = answer.fault
        if self.command == "GET" and "Accept-Ranges" in answer.headers:
            found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            self.server.hub.ranges.append((self.path, int(found[1]) if found else 0))
        time.sleep(fault.seconds)
        sent = answer.body[: len(answer.body) - fault.short_by] if self.command == "GET" else answer.body
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        if self.command == "HEAD":
            return
        with suppress(BrokenPipeError, ConnectionResetError):  # of a client that did not wait
            self.wfile.write(sent[: fault.cut_after])
        if fault.cut_after is not None:
            self.close_connection = True
            self._hang_up(fault.reset)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _hang_up(self, reset: bool) -> None:
        if reset:
            self.wfile.flush()
            time.sleep(0.05)  # what was sent is read before
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_POST = do_PUT = _respond  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Keep quiet: the requests are in `HubServer.requests`."""


def _json(value: Any) -> _Answer:
    return _Answer(HTTPStatus.OK, {"Content-Type": "application/json"}, json.dumps(value).encode())


def _error(status: int, code: str, message: str) -> _Answer:
    answer = _json({"error": message})
    headers = answer.headers | {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return answer._replace(status=status, headers=headers)


def _file(files: Mapping[str, bytes], path: str) -> _Answer:
    if path not in files:
        return _error(HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found")
    headers = {"Content-Type": "application/octet-stream", "ETag": f'"{_blob_id(files[path])}"'}
    return _Answer(HTTPStatus.OK, headers | {"Accept-Ranges": "bytes"}, files[path])


def _apply_range(answer: _Answer, header: str | None) -> _Answer:
    """Serve a part of a file: how clients go on after a cut connection, and how they stream."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", header or "")
    if match is None or "Accept-Ranges" not in answer.headers:
        return answer
    size = len(answer.body)
    start, end = int(match[1]), min(int(match[2] or size - 1), size - 1)
    headers = answer.headers | {"Content-Range": f"bytes {start}-{end}/{size}"}
    part = answer.body[start : end + 1]
    return answer._replace(status=HTTPStatus.PARTIAL_CONTENT, headers=headers, body=part)


def _repo_info(repo: str, commit: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    siblings = [{"rfilename": path} for path in files]
    info = {"id": repo, "sha": commit, "private": False, "gated": False, "tags": [], "siblings": siblings}
    front = re.match(r"---\n(.*?)\n---", files.get("README.md", b"").decode(), re.DOTALL)
    return info | ({"cardData": yaml.safe_load(front[1])} if front else {})


def _tree(files: Mapping[str, bytes], folder: str, recursive: bool) -> _Answer:
    entries = [entry for entry in _entries(files) if _inside(entry["path"], folder, recursive)]
    if folder and not entries:
        return _error(HTTPStatus.NOT_FOUND, "EntryNotFound", f"{folder} does not exist")
    return _json(entries)


def _inside(path: str, folder: str, recursive: bool) -> bool:
    prefix = f"{folder}/" if folder else ""
    return path.startswith(prefix) and (recursive or "/" not in path.removeprefix(prefix))


def _paths_info(files: Mapping[str, bytes], paths: list[str]) -> list[dict[str, Any]]:
    return [entry for entry in _entries(files) if entry["path"] in paths]


def _entries(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    folders = sorted({parent.as_posix() for path in files for parent in Path(path).parents} - {"."})
    entries = [("directory", path, b"") for path in folders] + [("file", *file) for file in files.items()]
    return [{"type": k, "path": path, "oid": _blob_id(data), "size": len(data)} for k, path, data in entries]


def _read_files(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _commit_of(files: Mapping[str, bytes]) -> str:
    """A commit id in git's form that changes whenever a file does."""
    return hashlib.sha1(
        json.dumps({path: _blob_id(data) for path, data in files.items()}).encode()
    ).hexdigest()


_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train_prefs
    path: data/train_prefs-*
  - split: test_prefs
    path: data/test_prefs-*
---
A few dozen pairs in the columns of UltraFeedback binarized.
"""


def write_ultrafeedback(folder: str | Path, train: int = 48, test: int = 24, seed: int = 0) -> Path:
    """Write a folder to serve as `HuggingFaceH4/ultrafeedback_binarized`: splits train_prefs and test_prefs.

    The chosen answer of each pair is right and the rejected one is not; no prompt occurs twice.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(folder)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(_CARD, encoding="utf-8")
    rows = _pairs(train + test, random.Random(seed))
    for split, part in (("train_prefs", rows[:train]), ("test_prefs", rows[train:])):
        pq.write_table(pa.Table.from_pylist(part), folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def _pairs(count: int, rng: random.Random) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < count:
        prompt, right, wrong = rng.choice((_sum_pair, _order_pair))(rng)
        ask = {"content": prompt, "role": "user"}
        chosen, rejected = ([ask, {"content": text, "role": "assistant"}] for text in (right, wrong))
        rows[prompt] = {
            "prompt": prompt,
            "prompt_id": hashlib.sha256(prompt.encode()).hexdigest(),
            "chosen": chosen,
            "rejected": rejected,
            "messages": chosen,
            "score_chosen": rng.randrange(14, 20) / 2,
            "score_rejected": rng.randrange(2, 12) / 2,
        }
    return list(rows.values())


def _sum_pair(rng: random.Random) -> tuple[str, str, str]:
    a, b = rng.randrange(10, 99), rng.randrange(10, 99)
    off = a + b + rng.choice((-10, -1, 1, 10))
    return f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}.", f"I think it is {off}, but who knows."


def _order_pair(rng: random.Random) -> tuple[str, str, str]:
    numbers = rng.sample(range(100), 4)
    question = f"Sort these numbers from small to large: {numbers}"
    return (
        question,
        f"From small to large: {sorted(numbers)}.",
        f"{sorted(numbers, reverse=True)}, of course.",
    )
