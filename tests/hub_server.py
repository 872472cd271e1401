"""A stand-in for the model and dataset hub on the loopback interface, so that hub code is tested without a network.

It serves a directory tree: `ROOT/models/OWNER/NAME/...` and `ROOT/datasets/OWNER/NAME/...` as the branch `main`, and
`ROOT/datasets/OWNER/NAME@REVISION/...` (the revision percent-encoded) as another branch. A commit's hash is the hash of
its files. A repository with a file named `.gated` refuses its files, as one does whose terms the user has not accepted.

The client libraries read their endpoint when they are imported, so use the server from a subprocess:

    with HubServer(root) as hub:
        subprocess.run([sys.executable, "-c", code], env=hub.environment(tmp_path / "home"), check=True)
"""

import hashlib
import json
import os
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import TracebackType
from urllib.parse import parse_qs, quote, unquote, urlsplit


def commit_of(folder: Path) -> str:
    """The 40-digit hash that stands for the state of a repository's files."""
    digest = hashlib.sha1()
    for path in files_of(folder):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def files_of(folder: Path) -> list[Path]:
    """Every file of a repository except the mark of a gated one."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".gated")


class HubServer:
    """Serves the repositories under `root` until the `with` block ends.

    Args:
        root: Holds `models/OWNER/NAME/...` and `datasets/OWNER/NAME/...`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        """The address to give as the endpoint."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Environment of a subprocess that sees this server as the hub and keeps its cache in `home`."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        return kept | ours | {"HF_HUB_DISABLE_XET": "1"} | more

    def commit(self, kind: str, repository: str, revision: str = "main") -> str:
        """The hash that this revision resolves to; `kind` is "models" or "datasets"."""
        folder = self.folder(kind, repository, revision)
        assert folder is not None, f"{kind}/{repository}@{revision} is not served"
        return commit_of(folder)

    def folder(self, kind: str, repository: str, revision: str) -> Path | None:
        """The files of a branch or a commit; None where there is none."""
        main = self.root / kind / repository
        if revision == "main":
            return main if main.is_dir() else None
        branch = main.with_name(f"{main.name}@{quote(revision, safe='')}")
        if branch.is_dir():
            return branch
        candidates = [main, *main.parent.glob(f"{main.name}@*")]
        return next((path for path in candidates if path.is_dir() and commit_of(path) == revision), None)

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: HubServer, *args: object) -> None:
        self.hub = hub
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the requests are kept in `HubServer.requests`."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append(f"{self.command} {self.path}")
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "api" and len(parts) >= 4:
            self._api(parts[1], "/".join(parts[2:4]), parts[4:], body)
        elif "resolve" in parts:
            kind = "datasets" if parts[0] == "datasets" else "models"
            start = parts.index("resolve")
            repository = "/".join(parts[start - 2 : start])
            self._file(kind, repository, parts[start + 1], "/".join(parts[start + 2 :]))
        else:
            self._error(404, "", "no such address")

    def _api(self, kind: str, repository: str, rest: list[str], body: bytes) -> None:
        what, revision, *below = [*rest, "main"] if len(rest) == 1 else rest or ["revision", "main"]
        folder = self._find(kind, repository, revision)
        if folder is None:
            return
        if what == "revision":
            self._send_json(self._info(repository, folder))
        elif what == "tree":
            prefix = "/".join(below)
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() in ("1", "true")
            self._send_json(_tree(folder, prefix, recursive))
        elif what == "paths-info":
            paths = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            entries = {entry["path"]: entry for entry in _tree(folder, "", recursive=True)}
            self._send_json([entries[path] for path in paths if path in entries])
        else:
            self._error(404, "", f"not served: {what}")

    def _find(self, kind: str, repository: str, revision: str) -> Path | None:
        folder = self.hub.folder(kind, repository, revision)
        if folder is None and self.hub.folder(kind, repository, "main") is None:
            self._error(401, "RepoNotFound", "Repository not found")
        elif folder is None:
            self._error(404, "RevisionNotFound", "Invalid rev id")
        return folder

    def _info(self, repository: str, folder: Path) -> dict[str, object]:
        names = [path.relative_to(folder).as_posix() for path in files_of(folder)]
        return {
            "_id": "0" * 24,
            "id": repository,
            "sha": commit_of(folder),
            "private": False,
            "gated": "auto" if (folder / ".gated").exists() else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": name} for name in names],
        }

    def _file(self, kind: str, repository: str, revision: str, name: str) -> None:
        folder = self._find(kind, repository, revision)
        if folder is None:
            return
        if (folder / ".gated").exists():
            self._error(403, "GatedRepo", "Access to this repository is restricted")
            return
        path = folder / name
        if not path.is_file():
            self._error(404, "EntryNotFound", "Entry not found")
            return
        data = path.read_bytes()
        start, end = _range(self.headers.get("Range"), len(data))
        self.send_response(200 if end - start == len(data) else 206)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit_of(folder))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self._finish("application/octet-stream", data[start:end])

    def _send_json(self, value: object) -> None:
        self.send_response(200)
        self._finish("application/json", json.dumps(value).encode())

    def _error(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self._finish("application/json", json.dumps({"error": message}).encode())

    def _finish(self, content_type: str, data: bytes) -> None:
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _tree(folder: Path, prefix: str, recursive: bool) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = []
    base = folder / prefix
    kept = set(files_of(folder))
    for path in sorted(base.rglob("*") if recursive else base.glob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            entries.append({"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest()})
        elif path in kept:
            oid = hashlib.sha1(path.read_bytes()).hexdigest()
            entries.append({"type": "file", "path": name, "oid": oid, "size": path.stat().st_size})
    return entries


def _range(header: str | None, size: int) -> tuple[int, int]:
    if header is None:
        return 0, size
    first, _, last = header.removeprefix("bytes=").partition("-")
    return int(first), min(int(last) + 1, size) if last else size
