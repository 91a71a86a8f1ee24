"""Files of the page, each under a path of its own, read once; nothing else of the disk can be asked for."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

FOLDER = Path(__file__).parent / "web"
ROOT = "/playground/"
INDEX = "index.html"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
SMALLEST_COMPRESSED = 1024
"""Bytes below which compressing a file gains nothing."""
SECURITY = {
    # labels and model text are untrusted: whatever gets into the page can neither run nor load, nor send anything elsewhere
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True)
class PageFile:
    """A file as it is sent."""

    content: bytes
    compressed: bytes | None
    """With gzip; None where that gains nothing."""
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> PageFile:
        """Read a file. Raises KeyError for one of an unknown type."""
        content = path.read_bytes()
        return cls(
            content,
            gzip.compress(content, mtime=0) if len(content) >= SMALLEST_COMPRESSED else None,
            f"{TYPES[path.suffix]}; charset=utf-8",
            f'"{hashlib.sha256(content).hexdigest()[:32]}"',
        )

    def response(self, request: Request) -> Response:
        """Answer with the file, or that what the browser has is still right."""
        # asked about each time, so that a page never runs with modules of another version of the server
        headers = {**SECURITY, "ETag": self.etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        content = self.content
        if self.compressed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            content, headers["Content-Encoding"] = self.compressed, "gzip"
        return Response(content, media_type=self.media_type, headers=headers)


@cache
def _file(path: Path) -> PageFile:
    return PageFile.read(path)


def _page(path: Path) -> Callable[[Request], Awaitable[Response]]:
    async def page(request: Request) -> Response:
        return _file(path).response(request)

    return page


async def _to_page(request: Request) -> Response:
    # relative to the path that was asked for, so that it also holds behind a proxy that serves us under a prefix
    target = "playground/" if request.url.path.endswith("/") else request.url.path.rpartition("/")[2] + "/"
    return RedirectResponse(target, 307, headers=SECURITY)


router = APIRouter(include_in_schema=False)
for _redirected in ("/", ROOT.rstrip("/")):
    router.add_api_route(_redirected, _to_page, methods=["GET", "HEAD"])
router.add_api_route(ROOT, _page(FOLDER / INDEX), methods=["GET", "HEAD"])
for _one in sorted(file for file in FOLDER.rglob("*") if file.suffix in TYPES and file.name != INDEX):
    router.add_api_route(f"{ROOT}{_one.relative_to(FOLDER).as_posix()}", _page(_one), methods=["GET", "HEAD"])

PATHS = frozenset(route.path for route in router.routes)  # type: ignore[attr-defined]  # all of them are added above
"""Paths of the page: public, as a browser cannot send a key with them; what they show asks for the key."""
