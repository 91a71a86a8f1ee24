"""A hub of one's own: serves folders as repositories, over HTTP, the way the hub client asks for them."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LocalHub:
    """Every folder `<root>/<org>/<name>` is a repository with one commit, which `main` points to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.gated: set[str] = set()
        """Repositories whose files are refused."""
        self.served: list[str] = []
        """Paths of the files that were downloaded, in order."""
        self.url = ""

    @contextmanager
    def running(self) -> Iterator[LocalHub]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                status, headers, body = hub.answer(unquote(urlsplit(self.path).path), self.command == "GET")
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def answer(self, path: str, is_download: bool) -> tuple[int, dict[str, str], bytes]:
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", path):
            return self._about(match[1], match[2], match[3] or "main", match[4] or "")
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        assert match is not None, path
        return self._file(match[1], match[3], is_download)

    def _about(self, repository: str, what: str | None, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        folder = self.root / repository
        if not folder.is_dir():
            return _error(404, "RepoNotFound")
        if revision not in ("main", COMMIT):
            return _error(404, "RevisionNotFound")
        if what != "tree":
            return _json({"id": repository, "sha": COMMIT, "siblings": []})
        if not (folder / path).is_dir():
            return _error(404, "EntryNotFound")
        listing = [
            {
                "type": "file",
                "size": item.stat().st_size,
                "oid": _etag(item),
                "path": item.relative_to(folder).as_posix(),
            }
            if item.is_file()
            else {"type": "directory", "oid": "0", "size": 0, "path": item.relative_to(folder).as_posix()}
            for item in sorted((folder / path).iterdir())
        ]
        return _json(listing)

    def _file(self, repository: str, path: str, is_download: bool) -> tuple[int, dict[str, str], bytes]:
        file = self.root / repository / path
        if repository in self.gated:
            return _error(403, "GatedRepo")
        if not file.is_file():
            return _error(404, "EntryNotFound")
        if is_download:
            self.served.append(path)
        return 200, {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT}, file.read_bytes()


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def _json(value: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _error(status: int, code: str) -> tuple[int, dict[str, str], bytes]:
    return status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}"
