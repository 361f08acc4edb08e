"""The test hub as one that can be written to, as `huggingface_hub` makes a repository and fills it.

Large files go the way of Git LFS. (The other way, hf_xet's, speaks a protocol of its own in compiled code.)
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from hub_server import HubServer, _Answer, _error, _json

_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<verb>preupload|commit)/(?P<revision>[^/]+)")
_BATCH = re.compile(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
_LARGE = (".safetensors", ".bin")


class WritableHub(HubServer):
    """Takes what is sent into folders under `storage`, one for each repository, from those who have a token.

    Attributes:
        tokens: By token the owners whose repositories it may write to.
        created: What was asked for each repository that was made.
        commits: The header of each commit, and the paths in it.
    """

    def __init__(self, storage: Path, tokens: Mapping[str, tuple[str, ...]], **folders: Any) -> None:
        """Take the folders of HubServer too."""
        super().__init__(**folders)
        self.storage, self.tokens = storage, dict(tokens)
        self.created: list[dict[str, Any]] = []
        self.commits: list[dict[str, Any]] = []

    def environment(self, home: str | Path) -> dict[str, str]:
        """Environment whose clients upload large files by Git LFS."""
        return super().environment(home) | {"HF_HUB_DISABLE_XET": "1"}

    def write(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> _Answer | None:
        """Make repositories, take files and commits."""
        if method == "PUT" and path.startswith("/lfs/"):
            return self._take(path.removeprefix("/lfs/"), body)
        if method == "POST" and path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if method == "POST" and path == "/api/repos/create":
            return self._create(json.loads(body), headers)
        match = _API.fullmatch(path) or _BATCH.fullmatch(path)
        if method != "POST" or match is None:
            return None
        refused = self._refused(match["repo"].partition("/")[0], headers)
        if refused is not None:
            return refused
        if "verb" not in match.groupdict():
            return self._batch(json.loads(body))
        return (
            self._preupload(json.loads(body))
            if match["verb"] == "preupload"
            else self._commit(match["repo"], body)
        )

    def _refused(self, owner: str, headers: Mapping[str, str]) -> _Answer | None:
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.tokens:
            return _error(HTTPStatus.UNAUTHORIZED, "", "Invalid username or password.")
        if owner not in self.tokens[token]:
            message = f"You don't have the rights to create a model under the namespace {owner}."
            return _error(HTTPStatus.FORBIDDEN, "", message)
        return None

    def _create(self, asked: dict[str, Any], headers: Mapping[str, str]) -> _Answer:
        repo = f"{asked['organization']}/{asked['name']}"
        refused = self._refused(asked["organization"], headers)
        if refused is not None:
            return refused
        url = {"url": f"{self.endpoint}/{repo}"}
        if ("models", repo) in self._folders:
            return _json({**url, "error": "You already created this model repo"})._replace(
                status=HTTPStatus.CONFLICT
            )
        self.created.append(asked)
        (self.storage / repo).mkdir(parents=True)
        self._folders["models", repo] = self.storage / repo
        return _json(url)

    def _preupload(self, asked: dict[str, Any]) -> _Answer:
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(_LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in asked["files"]
        ]
        return _json({"files": modes})

    def _batch(self, asked: dict[str, Any]) -> _Answer:
        there = {path.name for path in (self.storage / "lfs").glob("*")}
        objects = [
            {
                **one,
                **(
                    {}
                    if one["oid"] in there
                    else {"actions": {"upload": {"href": f"{self.endpoint}/lfs/{one['oid']}"}}}
                ),
            }
            for one in asked["objects"]
        ]
        return _json({"transfer": "basic", "objects": objects})

    def _take(self, oid: str, body: bytes) -> _Answer:
        if hashlib.sha256(body).hexdigest() != oid:
            return _error(HTTPStatus.BAD_REQUEST, "", "Content does not match the object id")
        (self.storage / "lfs").mkdir(exist_ok=True, parents=True)
        (self.storage / "lfs" / oid).write_bytes(body)
        return _json({})

    def _commit(self, repo: str, body: bytes) -> _Answer:
        if ("models", repo) not in self._folders:
            return _error(HTTPStatus.NOT_FOUND, "RepoNotFound", "Repository not found")
        folder, lines = self._folders["models", repo], [json.loads(line) for line in body.splitlines()]
        paths = []
        for line in lines[1:]:
            value = line["value"]
            content = base64.b64decode(value["content"]) if line["key"] == "file" else None
            if content is None:
                content = (self.storage / "lfs" / value["oid"]).read_bytes()
            (folder / value["path"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / value["path"]).write_bytes(content)
            paths.append(value["path"])
        self.commits.append({**lines[0]["value"], "paths": paths})
        return _json(
            {
                "commitUrl": f"{self.endpoint}/{repo}/commit/{len(self.commits):040x}",
                "commitOid": f"{len(self.commits):040x}",
            }
        )
