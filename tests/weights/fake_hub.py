"""A hub on this machine: the few calls that fetching and uploading a model need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest


@dataclass
class Repo:
    """Commits, oldest first: name to content."""

    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])
    private: bool = False
    gated: bool = False

    def sha(self, number: int = -1) -> str:
        number = number % len(self.commits)
        names = repr(
            sorted((n, hashlib.sha1(c).hexdigest()) for n, c in self.commits[number].items())
        )
        return hashlib.sha1(f"{number} {names}".encode()).hexdigest()

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        for number, files in enumerate(self.commits):
            if revision == self.sha(number):
                return revision, files
        return (self.sha(), self.commits[-1]) if revision in ("main", "") else None


@dataclass
class Hub:
    """What is on it, what was asked of it, and how it behaves."""

    endpoint: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    token: str = "a-token"
    objects: dict[str, bytes] = field(default_factory=dict)
    large: tuple[str, ...] = ()
    """Endings of names that go through large-file storage."""
    failing: int | None = None
    """Status that every call is answered with."""

    def add(self, name: str, files: dict[str, bytes], **how: Any) -> Repo:
        self.repos[name] = Repo([files], **how)
        return self.repos[name]

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for."""
        return [
            line.rpartition("/")[2]
            for line in self.asked
            if line.startswith("GET /") and "/resolve/" in line
        ]


class _Refused(Exception):
    def __init__(self, status: int, code: str = "") -> None:
        super().__init__(status)
        self.status, self.code = status, code


_Answer = tuple[bytes, dict[str, str]]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self, body: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        try:
            if self.hub.failing is not None:
                raise _Refused(self.hub.failing)
            content, headers = self._answer(path, body)
            status = 200
        except _Refused as refused:
            content, status = json.dumps({"error": str(refused)}).encode(), refused.status
            headers = {"X-Error-Code": refused.code} if refused.code else {}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = _serve

    def _with_body(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._serve(body)

    do_POST = do_PUT = _with_body

    def _answer(self, path: str, body: bytes) -> _Answer:
        routes: list[tuple[str, Callable[..., _Answer]]] = [
            (r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self._info),
            (r"/api/models/([^/]+/[^/]+)/tree/(.+)", self._tree),
            (r"/api/models/([^/]+/[^/]+)/preupload/.+", lambda name: self._modes(name, body)),
            (r"/api/models/([^/]+/[^/]+)/commit/.+", lambda name: self._commit(name, body)),
            (r"/api/repos/create", lambda: self._create(body)),
            (r"/api/validate-yaml", lambda: (b"{}", {})),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", lambda name: self._batch(name, body)),
            (r"/objects/(\w+)", lambda oid: self._object(oid, body)),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
        ]
        for pattern, answer in routes:
            if match := re.fullmatch(pattern, path):
                return answer(*match.groups())
        raise _Refused(404)

    @property
    def _may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _repo(self, name: str) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._may_write):
            raise _Refused(401, "RepoNotFound")
        if repo.gated:
            raise _Refused(403, "GatedRepo")
        return repo

    def _files(self, name: str, revision: str | None) -> tuple[str, dict[str, bytes]]:
        found = self._repo(name).files(revision or "main")
        if found is None:
            raise _Refused(404, "RevisionNotFound")
        return found

    def _info(self, name: str, revision: str | None) -> _Answer:
        sha, files = self._files(name, revision)
        siblings = [{"rfilename": file} for file in files]
        value = {"id": name, "sha": sha, "private": self._repo(name).private, "siblings": siblings}
        return json.dumps({**value, "tags": [], "downloads": 0, "likes": 0}).encode(), {}

    def _tree(self, name: str, revision: str) -> _Answer:
        _, files = self._files(name, revision)
        rows = [
            {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
            for n, c in files.items()
        ]
        return json.dumps(rows).encode(), {}

    def _resolve(self, name: str, revision: str, file: str) -> _Answer:
        sha, files = self._files(name, revision)
        if file not in files:
            raise _Refused(404, "EntryNotFound")
        etag = hashlib.sha256(files[file]).hexdigest()
        return files[file], {"X-Repo-Commit": sha, "ETag": f'"{etag}"'}

    def _create(self, body: bytes) -> _Answer:
        if not self._may_write:
            raise _Refused(401)
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repos.setdefault(name, Repo(private=private))
        return json.dumps({"url": f"{self.hub.endpoint}/{name}"}).encode(), {}

    def _modes(self, name: str, body: bytes) -> _Answer:
        if not self._may_write:
            raise _Refused(403)
        self._repo(name)
        rows = []
        for file in json.loads(body)["files"]:
            is_large = file["path"].endswith(self.hub.large) if self.hub.large else False
            mode = "lfs" if is_large else "regular"
            rows.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        return json.dumps({"files": rows}).encode(), {}

    def _batch(self, name: str, body: bytes) -> _Answer:
        objects = [
            {
                **wanted,
                "actions": {"upload": {"href": f"{self.hub.endpoint}/objects/{wanted['oid']}"}},
            }
            for wanted in json.loads(body)["objects"]
        ]
        content = json.dumps({"transfer": "basic", "objects": objects}).encode()
        return content, {"Content-Type": "application/vnd.git-lfs+json"}

    def _object(self, oid: str, body: bytes) -> _Answer:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        return b"", {}

    def _commit(self, name: str, body: bytes) -> _Answer:
        if not self._may_write:
            raise _Refused(403)
        repo = self._repo(name)
        files = dict(repo.commits[-1])
        for text in body.splitlines():
            line = json.loads(text)
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        repo.commits.append(files)
        url = f"{self.hub.endpoint}/{name}/commit/{repo.sha()}"
        return json.dumps({"commitUrl": url, "commitOid": repo.sha()}).encode(), {}


def use(hub: Hub, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Let the environment name this hub, and an empty cache."""
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True, raising=False)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that listens while the block runs."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
