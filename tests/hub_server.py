"""A small hub on this machine: the parts of Hugging Face's HTTP protocol that its client uses.

Repositories of models and data sets, with revisions, access rules, large files behind a redirect,
and uploads. Files are served by range, so that a client can resume.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin")  # stored with LFS, as on the hub


@dataclass
class Repository:
    """Files by commit, and commits by branch or tag."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str | None = None  # that may read it; None for everybody
    gated: bool = False

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        content = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode())
        self.commits[content.hexdigest()] = files
        self.refs[ref] = content.hexdigest()
        return content.hexdigest()


@dataclass
class Hub:
    """The state of the server.

    Attributes:
        models: by `org/name`.
        datasets: by `org/name`.
        requests: what was asked for: method, path, first byte of a range.
        cut: after how many bytes of a large file, by its SHA-256, the connection breaks; once.
        stall: after how many bytes of it nothing more is sent; once.
        stalled: whether that has happened.
        status: answered to everything, if it is not None.
        writer: the token that may push.
        read_only: whether it may not, after all.
    """

    models: dict[str, Repository] = field(default_factory=dict)
    datasets: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    stall: dict[str, int] = field(default_factory=dict)
    stalled: bool = False
    status: int | None = None
    writer: str = "hf_writer"
    read_only: bool = False
    uploaded: dict[str, bytes] = field(default_factory=dict)

    def model(self, name: str, files: dict[str, bytes], **rules: Any) -> str:
        """Add a repository with one commit, whose name is returned."""
        self.models[name] = Repository(**rules)
        return self.models[name].commit(files)

    def asked(self, text: str) -> list[tuple[str, str, int]]:
        """The requests whose path contains a text."""
        return [request for request in self.requests if text in request[1]]


def serve(hub: Hub, address: tuple[str, int]) -> ThreadingHTTPServer:
    """Start to serve; `shutdown` and `server_close` end it."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(address, handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        first = int(self.headers.get("Range", "bytes=0-").partition("=")[2].partition("-")[0])
        self.hub.requests.append((self.command, "/".join(parts), first))
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.hub.status is not None:
            return self._send(self.hub.status, {"error": "the hub is ill"})
        if parts[0] == "api":
            return self._api(parts[1:])
        if parts[0] == "large":  # where the hub redirects to for large files
            return self._file(self._found(parts[1]), parts[1])
        if parts[0] == "upload":
            self.hub.uploaded[parts[1]] = self.body
            return self._send(200, {})
        if parts[1].endswith(".git"):
            return self._upload_places()
        repositories = self.hub.models
        if parts[0] == "datasets":
            repositories, parts = self.hub.datasets, parts[1:]
        return self._resolve(repositories, "/".join(parts[:2]), parts[3:])

    def _found(self, digest: str) -> bytes:
        repositories = [*self.hub.models.values(), *self.hub.datasets.values()]
        files = [f for r in repositories for c in r.commits.values() for f in c.values()]
        return next(f for f in files if hashlib.sha256(f).hexdigest() == digest)

    def _resolve(self, repositories: dict[str, Repository], name: str, parts: list[str]) -> None:
        found = self._commit(repositories, name, parts[0], files=True)
        if found is None:
            return None
        commit, path = found, "/".join(parts[1:])
        content = repositories[name].commits[commit].get(path)
        headers = {"X-Repo-Commit": commit}
        if content is None:
            return self._send(404, {}, headers | {"X-Error-Code": "EntryNotFound"})
        if path.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
            store = self._address.replace("127.0.0.1", "localhost")  # another host, as on the hub
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            return self._send(302, {}, headers | {"Location": f"{store}/large/{digest}"})
        return self._file(content, path, headers | {"ETag": f'"{_blob(content)}"'})

    def _commit(
        self, repositories: dict[str, Repository], name: str, revision: str, files: bool = False
    ) -> str | None:
        """The commit of a revision, or None once it is refused."""
        repository, token = repositories.get(name), self._token
        if repository is None or (repository.token and not repository.gated and
                                  token != repository.token):  # fmt: skip
            code, header = (404 if token else 401), "RepoNotFound"
        elif repository.gated and files and token != repository.token:
            code, header = (403 if token else 401), "GatedRepo"
        else:
            commit = repository.refs.get(revision, revision)
            if commit in repository.commits:
                return commit
            code, header = 404, "RevisionNotFound"
        self._send(code, {"error": header}, {"X-Error-Code": header})
        return None

    def _api(self, parts: list[str]) -> None:
        if parts == ["whoami-v2"]:
            known = self._token == self.hub.writer
            return self._send(200 if known else 401, {"name": "org", "type": "user", "orgs": []})
        if parts == ["validate-yaml"]:
            return self._send(200, {"errors": [], "warnings": []})
        if parts == ["repos", "create"]:
            return self._create(json.loads(self.body))
        if parts[0] not in ("models", "datasets"):
            return self._send(404, {})
        kind, name, rest = parts[0], "/".join(parts[1:3]), parts[3:]
        repositories = getattr(self.hub, kind)
        action = rest[0] if rest else "revision"
        if action in ("preupload", "commit") and self._token != self.hub.writer:
            return self._send(403, {"error": "no right to write"})
        revision = rest[1] if len(rest) > 1 else "main"
        if action == "commit":
            return self._receive(repositories[name], revision)
        if action == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(self.body)["files"]
            ]
            return self._send(200, {"files": files})
        commit = self._commit(repositories, name, revision)
        if commit is None:
            return None
        files = repositories[name].commits[commit]
        if action == "tree":
            return self._send(200, _tree(files, "/".join(rest[2:]), b"recursive" in self._query))
        if action == "paths-info":
            wanted = parse_qs(self.body.decode()).get("paths") or json.loads(self.body)["paths"]
            entries = [e for e in _tree(files, "", recursive=True) if e["path"] in wanted]
            return self._send(200, entries)
        gated = "manual" if repositories[name].gated else False
        about = {"id": name, "sha": commit, "gated": gated, "private": False, "tags": []}
        siblings = [{"rfilename": path} for path in files]
        return self._send(200, about | {"siblings": siblings, "xetEnabled": False})

    def _create(self, about: dict[str, Any]) -> None:
        if self._token != self.hub.writer or self.hub.read_only:
            return self._send(403, {"error": "no right to create"})
        name = f"{about['organization']}/{about['name']}"
        private = about.get("private") or about.get("visibility") == "private"
        self.hub.models[name] = Repository(token=self.hub.writer if private else None)
        self.hub.models[name].commit({})
        return self._send(200, {"url": f"{self._address}/{name}", "name": name})

    def _upload_places(self) -> None:
        """Where each large file of a push goes (LFS batch API)."""
        objects = [
            {
                "oid": file["oid"],
                "size": file["size"],
                "actions": {"upload": {"href": f"{self._address}/upload/{file['oid']}"}},
            }
            for file in json.loads(self.body)["objects"]
        ]
        return self._send(200, {"transfer": "basic", "objects": objects})

    def _receive(self, repository: Repository, branch: str) -> None:
        files = dict(repository.commits[repository.refs[branch]])
        for line in self.body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
        commit = repository.commit(files, branch)
        return self._send(
            200, {"success": True, "commitOid": commit, "commitUrl": f"{self._address}/c/{commit}"}
        )

    def _file(self, content: bytes, name: str, headers: dict[str, str] | None = None) -> None:
        first = self.hub.requests[-1][2]
        end = len(content)
        limit = self.headers.get("Range", "").partition("=")[2].partition("-")[2]
        if limit:
            end = min(end, int(limit) + 1)
        self.send_response(206 if "Range" in self.headers else 200)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - first))
        self.end_headers()
        if self.command == "HEAD":
            return
        if (stall := self.hub.stall.pop(name, None)) is not None:
            self.wfile.write(content[:stall])
            self.hub.stalled = True
            self.connection.recv(1)  # until the client is gone
            self.close_connection = True
            return
        cut = self.hub.cut.pop(name, None)
        self.wfile.write(content[first : end if cut is None else first + cut])
        if cut is not None:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def _send(self, code: int, about: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(about).encode()
        self.send_response(code)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @property
    def _token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    @property
    def _query(self) -> bytes:
        return urlsplit(self.path).query.encode()

    @property
    def _address(self) -> str:
        return f"http://{self.headers['Host']}"


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _tree(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """The entries below a folder, as the hub lists them."""
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, content in files.items():
        if not path.startswith(prefix):
            continue
        above = [parent.as_posix() for parent in list(PurePosixPath(path).parents)[-2::-1]]
        inside = [one for one in above if one.startswith(prefix)]
        for one in inside if recursive else inside[:1]:
            entries[one] = {"type": "directory", "path": one, "oid": "0" * 40}
        if inside and not recursive:
            continue
        entry = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
        if path.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        entries[path] = entry
    return list(entries.values())
