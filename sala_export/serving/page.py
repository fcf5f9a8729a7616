"""The page to talk to the model: a few files that the server sends as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

_FOLDER = Path(__file__).with_name("page")
_INDEX = "index.html"
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_CONTENT_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No text can become markup by accident: browsers that know this refuse innerHTML and its like.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a browser asks each time whether its copy is still good
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    content: bytes
    media_type: str
    tag: str
    """Another content has another tag."""


def add_page(app: FastAPI) -> None:
    """Serve the page at `/`, and what it consists of below `/page/`. The files are read now, and held."""
    files = _files()

    async def index(request: Request) -> Response:
        return _answer(files[_INDEX], request)

    async def part(request: Request) -> Response:
        file = files.get(request.path_params["name"])
        if file is None:
            raise HTTPException(404)
        return _answer(file, request)

    app.add_route("/", index, methods=["GET"], include_in_schema=False)
    app.add_route("/page/{name}", part, methods=["GET"], include_in_schema=False)


def is_page(path: str) -> bool:
    """True for a path of the page, which holds no secret."""
    return path == "/" or path.startswith("/page/")


def _files() -> Mapping[str, _File]:
    files = {}
    for path in _FOLDER.iterdir():
        if path.suffix not in _MEDIA_TYPES:  # an editor's copy, for example
            continue
        content = path.read_bytes()
        tag = f'"{sha256(content).hexdigest()[:32]}"'
        files[path.name] = _File(content=content, media_type=_MEDIA_TYPES[path.suffix], tag=tag)
    return files


def _answer(file: _File, request: Request) -> Response:
    headers = {**_HEADERS, "ETag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
