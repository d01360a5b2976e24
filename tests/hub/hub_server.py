"""A hub on loopback: the endpoints that huggingface_hub uses to push and pull, with faults on request.

Repositories are in memory; a commit's id is the sha1 of its content and parent, files are known as git knows
them (blobs by sha1; large ones by sha256, as the hub's large file storage does). Every request is kept in
`requests` with the bytes it moved.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin")
LFS_FROM = 1 << 20
"""Other files of this size or more are large ones as well."""


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """One repository: its commits (files by name), and its branches."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        parent = self.branches.get(branch, "")
        listing = sorted((name, blob_id(data)) for name, data in files.items())
        sha = hashlib.sha1(json.dumps([parent, len(self.commits), listing]).encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


@dataclass(frozen=True)
class Request:
    """One request that was answered: what was asked, how, and the bytes of the two bodies."""

    method: str
    path: str
    status: int
    received: int
    sent: int
    headers: dict[str, str]
    """Names in lower case."""


@dataclass
class Faults:
    """What goes wrong. Paths are matched by search with a regular expression."""

    status: dict[str, int] = field(default_factory=dict)
    """Path -> the status that it answers with."""
    cut: dict[str, int] = field(default_factory=dict)
    """Path -> the connection is cut after that many bytes of its body, once; then `status` may follow."""
    hang_up: list[str] = field(default_factory=list)
    """Paths whose request is read and never answered."""
    bodies: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    """Path -> other bytes than there are."""
    meanwhile: dict[str, Callable[[], object]] = field(default_factory=dict)
    """Path -> what somebody else does, once, just before it is answered."""
    ignore_range: bool = False
    """Whole files are sent although a part was asked for."""
    then: dict[str, dict[str, int]] = field(default_factory=dict)
    """Path that was cut -> the `status` that holds from then on."""


class Hub:
    """The server, started by `with`."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults = Faults()
        self.may_write = True
        self.extra_siblings: dict[str, list[dict[str, Any]]] = {}
        self.sizes: dict[str, int] = {}
        """File name -> the size that is stated, instead of the true one."""
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, cdn)) for cdn in (False, True)]
        for server in self._servers:
            server.daemon_threads = True

    def __enter__(self) -> Hub:
        self._threads = [threading.Thread(target=s.serve_forever, args=(0.02,)) for s in self._servers]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def cdn(self) -> str:
        """Where large files are served from: another origin, as on the hub."""
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def seed(self, name: str, files: dict[str, bytes], branch: str = "main", *, private: bool = False) -> str:
        """Commit `files` to a repository, made where it is missing; the commit."""
        repo = self.repos.setdefault(name, Repo(private))
        self.objects |= {hashlib.sha256(d).hexdigest(): d for n, d in files.items() if is_large(n, d)}
        return repo.commit(files, branch)

    def head(self, name: str, branch: str = "main") -> dict[str, bytes]:
        repo = self.repos[name]
        return repo.commits[repo.branches[branch]]

    def seen(self, method: str, pattern: str) -> list[Request]:
        """The requests of a method whose path matches."""
        return [r for r in self.requests if r.method == method and re.search(pattern, r.path)]


def is_large(name: str, data: bytes) -> bool:
    return name.endswith(LFS_SUFFIXES) or len(data) >= LFS_FROM


class _Cut(Exception):
    """The connection is to be cut."""


def _handler(hub: Hub, cdn: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (ConnectionError, _Cut):
                self.close_connection = True

        def do_GET(self) -> None:
            self._answer()

        do_HEAD = do_POST = do_PUT = do_GET

        # Reading the request, writing the answer

        def _answer(self) -> None:
            self.path_only = unquote(urlsplit(self.path).path)
            self.query = parse_qs(urlsplit(self.path).query)
            self.body = self._read()
            if any(re.search(p, self.path_only) for p in hub.faults.hang_up):
                self._note(0, 0)
                raise _Cut
            for pattern in [p for p in hub.faults.meanwhile if re.search(p, self.path_only)]:
                hub.faults.meanwhile.pop(pattern)()
            status = next((s for p, s in hub.faults.status.items() if re.search(p, self.path_only)), None)
            if status is not None:
                given = self.headers.get("Authorization", "nobody")
                self._json({"error": f"a fault on request of {given} {'x' * 4000}\nsecond line"}, status)
            else:
                self._cdn() if cdn else self._hub()

        def _read(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _note(self, status: int, sent: int) -> None:
            hub.requests.append(
                Request(
                    self.command,
                    self.path_only,
                    status,
                    len(self.body),
                    sent,
                    {n.lower(): v for n, v in self.headers.items()},
                )
            )

        def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
            cut = next((p for p in hub.faults.cut if re.search(p, self.path_only)), None)
            sent = len(body) if cut is None or self.command == "HEAD" else min(len(body), hub.faults.cut[cut])
            self._note(status, sent if self.command != "HEAD" else 0)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            if "Content_Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(body[:sent])
            self.wfile.flush()
            if cut is not None and sent < len(body):
                hub.faults.status |= hub.faults.then.get(cut, {})
                del hub.faults.cut[cut]
                raise _Cut

        def _json(self, value: Any, status: int = 200, **headers: str) -> None:
            self._send(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

        def _missing(self, code: str) -> None:
            self._json({"error": code}, 404, X_Error_Code=code)

        # The hub's endpoints

        def _hub(self) -> None:
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if given and given != hub.token:
                self._json(
                    {"error": f"Invalid user token {given}."},
                    401,
                    X_Error_Message="Invalid credentials in Authorization header",
                )
                return
            self.known = bool(given)
            for method, pattern, answer in (
                ("GET", r"/api/whoami-v2", self._whoami),
                ("POST", r"/api/validate-yaml", self._validate),
                ("POST", r"/api/repos/create", self._create),
                ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<branch>.+)", self._branch),
                ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<branch>.+)", self._preupload),
                ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<branch>.+)", self._commit),
                ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>.+)", self._info),
                ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>.+)", self._tree),
                ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)", self._info),
                ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
                ("POST", r"/lfs/verify", self._verify),
                ("GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)", self._resolve),
            ):
                asked = "GET" if self.command == "HEAD" else self.command
                match = re.fullmatch(pattern, self.path_only)
                if match and asked == method:
                    answer(**match.groupdict())
                    return
            self._missing("NoSuchEndpoint")

        def _whoami(self) -> None:
            self._json({"type": "user", "name": "anna"} if self.known else {}, 200 if self.known else 401)

        def _validate(self) -> None:
            front = json.loads(self.body)["content"].split("---")
            self._json(
                {"errors": [], "warnings": []} if len(front) > 2 else {"errors": [{"message": "none"}]}
            )

        def _writable(self) -> bool:
            if not self.known:
                self._json({"error": "Invalid username or password."}, 401)
            elif not hub.may_write:
                self._json({"error": "You don't have the rights to write here."}, 403)
            return self.known and hub.may_write

        def _create(self) -> None:
            asked = json.loads(self.body)
            name = f"{asked['organization'] or 'anna'}/{asked['name']}"
            if not self._writable():
                return
            if name in hub.repos:
                self._json(
                    {"error": "You already created this model repo", "url": f"{hub.endpoint}/{name}"}, 409
                )
                return
            hub.repos[name] = Repo(asked.get("visibility") == "private")
            hub.repos[name].commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
            self._json({"url": f"{hub.endpoint}/{name}", "name": name})

        def _repo(self, name: str) -> Repo | None:
            repo = hub.repos.get(name)
            if repo is None or (repo.private and not self.known):
                if self.known:
                    self._missing("RepoNotFound")
                else:  # the hub does not tell strangers what is private and what is not there
                    self._json({"error": "Repository not found"}, 401, X_Error_Code="RepoNotFound")
                return None
            return repo

        def _at(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
            repo = self._repo(name)
            if repo is None:
                return None
            sha = repo.find(revision)
            if sha is None:
                self._missing("RevisionNotFound")
                return None
            return sha, repo.commits[sha]

        def _branch(self, repo: str, branch: str) -> None:
            held = self._repo(repo)
            if held is None or not self._writable():
                return
            if branch in held.branches:
                self._json({"error": "Reference already exists"}, 409)
                return
            held.branches[branch] = held.branches["main"]
            self._json({})

        def _info(self, repo: str, revision: str = "main") -> None:
            found = self._at(repo, revision)
            if found is None:
                return
            sha, files = found
            siblings = [self._sibling(name, data) for name, data in sorted(files.items())]
            siblings += hub.extra_siblings.get(repo, [])
            self._json(
                {"_id": "0", "id": repo, "modelId": repo, "sha": sha, "private": False, "siblings": siblings}
            )

        def _sibling(self, name: str, data: bytes) -> dict[str, Any]:
            size = hub.sizes.get(name, len(data))
            found: dict[str, Any] = {"rfilename": name}
            if "blobs" in self.query:
                found |= {"size": size, "blobId": blob_id(data)}
                if is_large(name, data):
                    found["lfs"] = {
                        "size": size,
                        "sha256": hashlib.sha256(data).hexdigest(),
                        "pointerSize": 130,
                    }
            return found

        def _tree(self, repo: str, revision: str) -> None:
            found = self._at(repo, revision)
            if found is None:
                return
            rows = []
            for name, data in sorted(found[1].items()):
                row: dict[str, Any] = {
                    "type": "file",
                    "path": name,
                    "size": len(data),
                    "oid": blob_id(data),
                }
                if is_large(name, data):
                    row["lfs"] = {
                        "oid": hashlib.sha256(data).hexdigest(),
                        "size": len(data),
                        "pointerSize": 130,
                    }
                rows.append(row)
            self._json(rows)

        def _preupload(self, repo: str, branch: str) -> None:
            if self._repo(repo) is None or not self._writable():
                return
            found = self._at(repo, branch)
            if found is None:
                return
            answer = []
            for file in json.loads(self.body)["files"]:
                name = file["path"]
                large = name.endswith(LFS_SUFFIXES) or file["size"] >= LFS_FROM
                held = found[1].get(name)
                oid = None
                if held is not None:
                    oid = hashlib.sha256(held).hexdigest() if large else blob_id(held)
                mode = "lfs" if large else "regular"
                answer.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self._json({"files": answer})

        def _batch(self, repo: str) -> None:
            if self._repo(repo) is None or not self._writable():
                return
            objects = []
            for asked in json.loads(self.body)["objects"]:
                entry: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
                if asked["oid"] not in hub.objects:
                    upload = f"{hub.cdn}/upload/{asked['oid']}"
                    verify = f"{hub.endpoint}/lfs/verify"
                    entry["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
                objects.append(entry)
            self._json({"transfer": "basic", "objects": objects})

        def _verify(self) -> None:
            asked = json.loads(self.body)
            held = hub.objects.get(asked["oid"])
            good = held is not None and len(held) == asked["size"]
            self._json({}, 200 if good else 404)

        def _commit(self, repo: str, branch: str) -> None:
            held = self._repo(repo)
            if held is None or not self._writable():
                return
            files = dict(held.commits[held.branches[branch]])
            for line in self.body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "header":
                    if value.get("parentCommit") not in (None, held.branches[branch]):
                        self._json({"error": "A commit has happened since."}, 412)
                        return
                elif item["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
                elif item["key"] == "deletedFile":
                    del files[value["path"]]
            sha = held.commit(files, branch)
            self._json({"commitUrl": f"{hub.endpoint}/{repo}/commit/{sha}", "commitOid": sha})

        def _resolve(self, repo: str, revision: str, name: str) -> None:
            found = self._at(repo, revision)
            if found is None:
                return
            sha, files = found
            if name not in files:
                self._json({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
                return
            data = files[name]
            if not is_large(name, data):
                self._bytes(data, ETag=f'"{blob_id(data)}"', X_Repo_Commit=sha)
                return
            digest = hashlib.sha256(data).hexdigest()
            self._send(
                302,
                Location=f"{hub.cdn}/object/{digest}/{name}",
                X_Repo_Commit=sha,
                X_Linked_Size=str(len(data)),
                X_Linked_ETag=f'"{digest}"',
                ETag=f'"{digest}"',
            )

        # Where large files lie

        def _cdn(self) -> None:
            match = re.fullmatch(r"/(upload|object)/([0-9a-f]{64})(/.+)?", self.path_only)
            if match is None:
                self._missing("NoSuchEndpoint")
            elif self.command == "PUT" and match[1] == "upload":
                if hashlib.sha256(self.body).hexdigest() == match[2]:
                    hub.objects[match[2]] = self.body
                self._send(200 if match[2] in hub.objects else 400)
            else:
                self._bytes(hub.objects[match[2]], ETag=f'"{match[2]}"')

        def _bytes(self, data: bytes, **headers: str) -> None:
            change = next((f for p, f in hub.faults.bodies.items() if re.search(p, self.path_only)), None)
            data = change(data) if change else data
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if asked is None or hub.faults.ignore_range:
                self._send(200, data, Accept_Ranges="bytes", **headers)
                return
            start, end = int(asked[1]), int(asked[2]) + 1 if asked[2] else len(data)
            part = data[start:end]
            span = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
            self._send(206, part, Content_Range=span, **headers)

    return Handler
