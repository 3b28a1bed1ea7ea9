"""A small stand-in for the hub on this machine, which huggingface_hub's own client talks to.

It keeps the commits of repositories in memory and answers the routes that creating, uploading, listing and downloading use. Data
sets are only read: their repositories are called ``datasets/user/name``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

Files = dict[str, bytes]


@dataclass
class Repo:
    """The commits of a repository, each with all its files, and its branches."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Files, branch: str, message: str) -> str:
        content = json.dumps([message, sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items())])
        name = hashlib.sha1(content.encode()).hexdigest()
        self.commits[name], self.branches[branch] = dict(files), name
        self.messages.append(message)
        return name

    def at(self, revision: str) -> tuple[str, Files] | None:
        name = self.branches.get(revision, revision)
        return (name, self.commits[name]) if name in self.commits else None


class Hub:
    """The repositories, the large files and what was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.endpoint = ""

    def add(self, name: str, folder: Path, revision: str = "main") -> str:
        """Put a folder into a repository, and return the commit."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return self.repos.setdefault(name, Repo()).commit(files, revision, "by hand")


class Handler(BaseHTTPRequestHandler):
    """The routes; ``hub`` is set on a subclass."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")

    def do_GET(self) -> None:
        self.route()

    do_HEAD = do_POST = do_PUT = do_GET

    def route(self) -> None:
        body = self.read_body()
        path = unquote(urlsplit(self.path).path)
        for method, pattern, answer in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split():
                answer(self, body, *found.groups())
                return
        self.send(404, {"error": f"no route {self.command} {path}"})

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while length := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def found(self, name: str, revision: str) -> tuple[str, Files] | None:
        """Return the commit and its files, or answer 404 as the hub does."""
        repo = self.hub.repos.get(name)
        at = repo.at(revision) if repo else None
        if at is None:
            self.send(404, {}, {"X-Error-Code": "RevisionNotFound" if repo else "RepoNotFound"})
        return at

    def create(self, body: bytes) -> None:
        given = json.loads(body)
        name = f"{given['organization']}/{given['name']}"
        status = 409 if name in self.hub.repos else 200
        self.hub.repos.setdefault(name, Repo()).branches or self.hub.repos[name].commit({}, "main", "initial commit")
        self.send(status, {"url": f"{self.hub.endpoint}/{name}", "name": name})

    def branch(self, body: bytes, name: str, branch: str) -> None:
        repo = self.hub.repos[name]
        repo.branches.setdefault(branch, repo.branches["main"])
        self.send(200, {})

    def info(self, body: bytes, name: str, revision: str | None = None) -> None:
        if at := self.found(name, revision or "main"):
            files = [{"rfilename": file} for file in at[1]]
            name = name.removeprefix("datasets/")
            self.send(200, {"id": name, "modelId": name, "sha": at[0], "siblings": files, "tags": [], "private": False})

    def tree(self, body: bytes, name: str, revision: str, folder: str = "") -> None:
        if at := self.found(name, revision):
            rows = [
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for file, data in at[1].items()
                if file.startswith(f"{folder}/" if folder else "")
            ]
            self.send(200, rows) if rows or not folder else self.send(404, {}, {"X-Error-Code": "EntryNotFound"})

    def paths_info(self, body: bytes, name: str, revision: str) -> None:
        if at := self.found(name, revision):
            asked = parse_qs(body.decode()).get("paths", [])
            rows = [
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for file, data in at[1].items()
                if file in asked
            ]
            self.send(200, rows)

    def validate(self, body: bytes) -> None:
        self.send(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        files = json.loads(body)["files"]
        modes = ["lfs" if file["path"].endswith(".safetensors") else "regular" for file in files]
        rows = [
            {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}
            for file, mode in zip(files, modes, strict=True)
        ]
        self.send(200, {"files": rows})

    def batch(self, body: bytes, name: str) -> None:
        rows = [
            {**one, "actions": {"upload": {"href": f"{self.hub.endpoint}/large/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        self.send(200, {"transfer": "basic", "objects": rows})

    def put_large(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        self.send(200, {})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        at = self.found(name, revision)
        if at is None:
            return
        files, message = dict(at[1]), ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        oid = self.hub.repos[name].commit(files, revision, message)
        self.send(200, {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def resolve(self, body: bytes, name: str, revision: str, file: str) -> None:
        if at := self.found(name, revision):
            headers = {"X-Repo-Commit": at[0], "Accept-Ranges": "bytes"}
            if file not in at[1]:
                self.send(404, {}, headers | {"X-Error-Code": "EntryNotFound"})
                return
            data = at[1][file]
            self.send(200, data, headers | {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'})


_NAME = r"([^/]+/[^/]+)"
_DATASET = r"(datasets/[^/]+/[^/]+)"
ROUTES = (
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", rf"/api/models/{_NAME}/branch/([^/]+)", Handler.branch),
    ("GET", rf"/api/models/{_NAME}", Handler.info),
    ("GET", rf"/api/models/{_NAME}/revision/([^/]+)", Handler.info),
    ("GET", rf"/api/models/{_NAME}/tree/([^/]+)/?", Handler.tree),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("POST", rf"/api/models/{_NAME}/preupload/([^/]+)", Handler.preupload),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/large/([0-9a-f]+)", Handler.put_large),
    ("POST", rf"/api/models/{_NAME}/commit/([^/]+)", Handler.commit),
    ("GET HEAD", rf"/{_NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
    ("GET", rf"/api/{_DATASET}", Handler.info),
    ("GET", rf"/api/{_DATASET}/revision/([^/]+)", Handler.info),
    ("GET", rf"/api/{_DATASET}/tree/([^/]+)/?(.*)", Handler.tree),
    ("POST", rf"/api/{_DATASET}/paths-info/([^/]+)", Handler.paths_info),
    ("GET HEAD", rf"/{_DATASET}/resolve/([^/]+)/(.+)", Handler.resolve),
)


@contextmanager
def running_hub(patch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """Run the stand-in, and turn huggingface_hub of this process to it.

    Args:
        patch: Undoes the change in the end.
        cache: Where downloads go.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    patch.setattr(constants, "ENDPOINT", hub.endpoint)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr("datasets.config.HF_ENDPOINT", hub.endpoint)
    patch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    patch.setattr("datasets.config.HF_DATASETS_CACHE", cache / "datasets")
    patch.setattr("huggingface_hub.hf_api.api.endpoint", hub.endpoint)
    patch.setattr("transformers.utils.hub._hf_api", None)  # an earlier test may have made it, with its own endpoint
    patch.setenv("HF_TOKEN", "hf_stand_in")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    close_session()
    try:
        yield hub
    finally:
        close_session()
        server.shutdown()
        server.server_close()
        thread.join()
