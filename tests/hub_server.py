"""A small Hugging Face Hub for tests: model repositories in memory, served on 127.0.0.1.

It answers the calls that the real `huggingface_hub` client makes, and refuses what the Hub would.
The client reads its environment when imported, so run it in a fresh process that has
`HubServer.environment`; `HF_HUB_DISABLE_XET=1` is a must there, for Xet never falls back to LFS.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

_LFS_SUFFIXES = (".bin", ".gguf", ".npz", ".onnx", ".pkl", ".pt", ".pth", ".safetensors", ".zip")


@dataclass(frozen=True)
class Commit:
    """One state of a repository; `oids` are sha256 for the files in LFS, else git's blob hashes."""

    sha: str
    message: str
    files: dict[str, bytes]
    oids: dict[str, str]
    lfs: frozenset[str]


@dataclass
class Repository:
    """A model repository, `owner/name`, with one branch, `main`; `objects` are its LFS uploads."""

    name: str
    private: bool
    commits: list[Commit] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, bytes]:
        """The newest commit's files, by path."""
        return self.commits[-1].files

    def at(self, revision: str) -> Commit:
        """Find a commit by `main` or by its sha."""
        for commit in reversed(self.commits):
            if revision in ("main", commit.sha):
                return commit
        raise _RefusalError(404, f"Invalid rev id: {revision!a}", "RevisionNotFound")

    def commit(self, message: str, files: Mapping[str, bytes], lfs: Collection[str] = ()) -> Commit:
        """Add a commit that leaves just `files`, of which `lfs` names those stored through LFS."""
        oids = {path: hashlib.sha256(files[path]).hexdigest() for path in lfs}
        for path in files.keys() - oids.keys():
            oids[path] = hashlib.sha1(b"blob %d\0" % len(files[path]) + files[path]).hexdigest()
        # Its place is hashed in, so that going back to an earlier content is still a new commit.
        content = json.dumps([self.name, len(self.commits), message, sorted(oids.items())])
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits.append(Commit(sha, message, dict(files), oids, frozenset(lfs)))
        return self.commits[-1]

    def push(self, header: dict[str, Any], *operations: dict[str, Any]) -> Commit:
        """Carry out the lines of a client's commit, all or none of them."""
        files, lfs = dict(self.files), set(self.commits[-1].lfs)
        if not self.commits[-1].sha.startswith(header["value"].get("parentCommit", "")):
            raise _RefusalError(412, "A commit has happened since. Please refresh and try again.")
        for operation in operations:
            key, value, path = operation["key"], operation["value"], operation["value"]["path"]
            lfs.discard(path)
            if key == "file":
                files[path] = base64.b64decode(value["content"], validate=True)
            elif key == "lfsFile":
                files[path] = self.objects.get(value["oid"], b"")
                if not files[path] or len(files[path]) != value.get("size", len(files[path])):
                    raise _RefusalError(400, f"LFS pointer to a file that does not exist: {path!a}")
                lfs.add(path)
            elif key != "deletedFile":
                raise _RefusalError(501, f"The test Hub does not know {key!a} lines")
            elif files.pop(path, None) is None:
                raise _RefusalError(404, "A file with this name doesn't exist", "EntryNotFound")
        return self.commit(header["value"]["summary"], files, lfs)


class HubServer(ThreadingHTTPServer):
    """The server, running from its making to the end of its context.

    Attributes:
        token: The one token it knows: it writes anywhere and reads what is private.
        url: What a client's `HF_ENDPOINT` must be.
        repositories: Every repository, by `owner/name`.
        requests: Every answered request as (method, path without its query, status), in order.
    """

    def __init__(self, token: str = "hf_test") -> None:
        """Start to serve on a free port."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token, self.url = token, f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.uploads: dict[str, tuple[Repository, str, int]] = {}
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def __exit__(self, *_: object) -> None:
        """Stop, and give the port back."""
        self.shutdown()
        self.server_close()

    def environment(self, home: str | Path, token: str | None = None) -> dict[str, str]:
        """Return the variables, to lay over `os.environ`, that point a client process here.

        Args:
            home: The client's `HF_HOME`; a new folder makes it forget what it has downloaded.
            token: What it authenticates with: the right token unless given, "" for none.
        """
        disabled = ("XET", "TELEMETRY", "UPDATE_CHECK", "PROGRESS_BARS")
        return {f"HF_HUB_DISABLE_{name}": "1" for name in disabled} | {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token if token is None else token,
            "HF_HOME": str(home),
            # A developer's own settings of the following would win over those above.
            "HF_HUB_CACHE": str(Path(home, "hub")),
            "HF_TOKEN_PATH": str(Path(home, "token")),
            **dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"), "0"),
            **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1"),
        }

    def create(self, repo_id: str, *, private: bool = False) -> Repository:
        """Add a repository as `create_repo` does, with a first commit of `.gitattributes` only."""
        repository = Repository(repo_id, private)
        lines = (f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in _LFS_SUFFIXES)
        repository.commit("initial commit", {".gitattributes": "".join(lines).encode()})
        self.repositories[repo_id] = repository
        return repository


class _RefusalError(Exception):
    """An error answer; by its code the client picks the exception that it raises."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet: `HubServer.requests` is the log."""

    def _serve(self) -> None:
        # The body is read even if it is then refused: the connection's next request follows it.
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.route, _, self.query = self.path.partition("?")
        self.status, self.extra = 200, dict[str, str]()
        try:
            with self.server.lock:
                answer = self._answer()
        except _RefusalError as refusal:
            answer, self.status = {"error": str(refusal)}, refusal.status
            self.extra |= {"X-Error-Message": str(refusal), "X-Error-Code": refusal.code}
        except (KeyError, TypeError, ValueError) as error:
            answer, self.status = {"error": f"Malformed request: {error!r}"}, 400
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        # Noted before it is sent, so that a test finds every request its client has finished.
        self.server.requests.append((self.command, self.route, self.status))
        self.send_response(self.status)
        for name, value in {**self.extra, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _answer(self) -> Any:
        """Return the bytes or the JSON value to send; `status` and `extra` go along with it."""
        authorization = self.headers.get("Authorization")
        if authorization not in (None, f"Bearer {self.server.token}"):
            # Even where none is needed; by these words the client knows it is not a missing repo.
            raise _RefusalError(401, "Invalid credentials in Authorization header")
        for method, guarded, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, self.route)
            if match and method == self.command.replace("HEAD", "GET"):
                self.part = {name: unquote(part or "") for name, part in match.groupdict().items()}
                self._admit(guarded=guarded, trusted=bool(authorization))
                return answer(self)
        # The client retries most 5xx answers but not this one: an unknown call fails at once.
        raise _RefusalError(501, f"The test Hub does not know {self.command} {self.route}")

    def _admit(self, *, guarded: bool, trusted: bool) -> None:
        """Find the repository and the commit that are asked for, if the client may see them."""
        found = self.server.repositories.get(self.part.get("repo", ""))
        code = "RepoNotFound" if "repo" in self.part else ""
        if not trusted and (guarded or (code and (not found or found.private))):
            # As on the Hub, a stranger cannot tell a private repository from a missing one.
            raise _RefusalError(401, "Invalid username or password.", code)
        if found:
            self.repo, self.commit = found, found.at(self.part.get("revision") or "main")
            # Under this the client caches a file, or that there is none.
            self.extra["X-Repo-Commit"] = self.commit.sha
        elif code:
            raise _RefusalError(404, "Repository not found", code)

    def _create(self) -> Any:
        asked = json.loads(self.body)
        if asked.get("type", "model") != "model":
            raise _RefusalError(501, "The test Hub has model repositories only")
        repo_id = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        self.status = 409 if repo_id in self.server.repositories else 200
        if self.status == 200:
            # Newer clients send `visibility`, older ones `private`.
            private = asked.get("visibility") == "private" or asked.get("private") is True
            self.server.create(repo_id, private=private)
        return {"url": f"{self.server.url}/{repo_id}"}  # With `exist_ok`, read from a 409 too.

    def _info(self) -> Any:
        info = {"id": self.repo.name, "private": self.repo.private, "sha": self.commit.sha}
        return info | {"tags": [], "siblings": [{"rfilename": path} for path in self.commit.files]}

    def _tree(self) -> Any:
        folder, entries = self.part["path"], {}
        for path, data in self.commit.files.items():
            entry = {"type": "file", "size": len(data), "oid": self.commit.oids[path]}
            lfs = {"lfs": entry | {"pointerSize": 134}} if path in self.commit.lfs else {}
            entries[path] = entry | lfs | {"path": path}
            for parent in map(str, PurePosixPath(path).parents[:-1]):
                entries[parent] = {"type": "directory", "oid": self.commit.sha, "path": parent}
        if folder and folder not in entries:
            raise _RefusalError(404, f"No {folder!a} here", "EntryNotFound")
        below = ".+" if "recursive=true" in self.query else "[^/]+"
        wanted = re.compile((re.escape(f"{folder}/") if folder else "") + below)
        return [entry for path, entry in entries.items() if wanted.fullmatch(path)]

    def _preupload(self) -> Any:
        files = json.loads(self.body)["files"]
        for file in files:
            path, binary = file["path"], b"\0" in base64.b64decode(file.pop("sample"))
            lfs = binary or path.endswith(_LFS_SUFFIXES) or file["size"] > 10 * 2**20
            file |= {"uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            file["oid"] = self.commit.oids.get(path)  # The client then leaves out what is the same.
        return {"files": files}

    def _lfs_batch(self) -> Any:
        objects = json.loads(self.body)["objects"]
        for known in objects:
            if known["oid"] not in self.repo.objects:
                # The client sends the bytes without its token: the address is the permission.
                key = secrets.token_urlsafe()
                self.server.uploads[key] = (self.repo, known["oid"], known["size"])
                known["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{key}"}}
        return {"transfer": "basic", "objects": objects}

    def _lfs_upload(self) -> Any:
        repository, oid, size = self.server.uploads[self.part["key"]]
        if len(self.body) != size or hashlib.sha256(self.body).hexdigest() != oid:
            raise _RefusalError(400, "The bytes are not those that were announced")
        repository.objects[oid] = self.body
        return b""

    def _commit(self) -> Any:
        if self.part["revision"] != "main" or "create_pr" in self.query:
            raise _RefusalError(501, "The test Hub commits to main only")
        sha = self.repo.push(*map(json.loads, self.body.splitlines())).sha
        return {"commitOid": sha, "commitUrl": f"{self.server.url}/{self.repo.name}/commit/{sha}"}

    def _resolve(self) -> Any:
        path, commit = self.part["path"], self.commit
        if path not in commit.files:
            raise _RefusalError(404, "Entry not found", "EntryNotFound")
        oid, size = f'"{commit.oids[path]}"', str(len(commit.files[path]))
        linked = {"X-Linked-ETag": oid, "X-Linked-Size": size} if path in commit.lfs else {}
        self.extra |= {"ETag": oid} | linked
        return commit.files[path]


_REPO, _REVISION, _PATH = r"(?P<repo>[^/]+(?:/[^/]+)?)", r"(?P<revision>[^/]+)", "(?P<path>.+)"
# The method, whether it needs the token even in a public repository, the path, the answer.
_ROUTES: list[tuple[str, bool, str, Callable[[_Handler], Any]]] = [
    ("GET", True, "/api/whoami-v2", lambda _: {"type": "user", "name": "tester", "orgs": []}),
    ("POST", False, "/api/validate-yaml", lambda _: {"errors": [], "warnings": []}),
    ("POST", True, "/api/repos/create", _Handler._create),
    ("GET", False, f"/api/models/{_REPO}(?:/revision/{_REVISION})?", _Handler._info),
    ("GET", False, f"/api/models/{_REPO}/tree/{_REVISION}(?:/{_PATH})?", _Handler._tree),
    ("POST", True, f"/api/models/{_REPO}/preupload/{_REVISION}", _Handler._preupload),
    ("POST", True, f"/api/models/{_REPO}/commit/{_REVISION}", _Handler._commit),
    ("POST", True, rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler._lfs_batch),
    ("PUT", False, "/lfs/(?P<key>[^/]+)", _Handler._lfs_upload),
    ("GET", False, f"/{_REPO}/resolve/{_REVISION}/{_PATH}", _Handler._resolve),
]
