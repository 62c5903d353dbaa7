"""The web page: static files, and no state of its own; everything that it shows comes from the routes.

The files hold no secret and are given to everybody, because the page itself asks for the token.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.exceptions import HTTPException

from rayzyme.access import Role
from rayzyme.chemistry import draw_reaction
from rayzyme.chemistry.reactions import atoms_on_larger_side
from rayzyme.errors import InvalidReaction
from rayzyme_serve import access, faults
from rayzyme_serve.service import Service, service_of

router = APIRouter()

_FOLDER: Final = Path(__file__).parent / "static"
# Said here, because what a machine's own table of types holds is not known, and a browser runs no module of another type.
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_METHODS: Final = ["GET", "HEAD"]
# An image from bytes that a script was given: the drawing of a reaction, which cannot be fetched without the token.
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    tag: str


@router.api_route("/", methods=_METHODS, include_in_schema=False)
def page(request: Request) -> Response:
    """The page."""
    return _answer(request, "index.html")


@router.api_route("/static/{name}", methods=_METHODS, include_in_schema=False)
def static(request: Request, name: str) -> Response:
    """What belongs to it."""
    return _answer(request, name)


@router.get(
    "/v1/reactions/drawing",
    tags=["screening"],
    response_class=Response,
    responses={200: {"content": {"image/svg+xml": {}}}, **faults.responses(400, 401, 403, 422, 429, 503)},
    dependencies=[Depends(access.require(Role.VIEWER))],
)
def drawing(
    service: Annotated[Service, Depends(service_of)],
    reaction: Annotated[str, Query(description="Reaction SMILES, reactants>>products.")],
    width: Annotated[int, Query(ge=100, le=2000, description="Width in pixels.")] = 700,
    max_height: Annotated[int, Query(ge=100, le=2000, description="Height in pixels that it has at most.")] = 2000,
) -> Response:
    """A reaction as a picture (SVG), as high as it becomes at a width."""
    limits = service.settings.serve
    if len(reaction) > limits.max_reaction_length:
        raise InvalidReaction(f"the reaction has {len(reaction)} characters, more than {limits.max_reaction_length}")
    if (atoms := atoms_on_larger_side(reaction)) > limits.max_atoms:
        raise InvalidReaction(f"the reaction has {atoms} atoms on one side; up to {limits.max_atoms} are drawn")
    svg = draw_reaction(reaction, width, None, max_height)
    return Response(svg, media_type=_TYPES[".svg"], headers={"Cache-Control": "private, max-age=3600"})


@cache
def _files() -> dict[str, _File]:
    """All files by name: what is not among them is not given, whatever a path looks like."""
    found = {}
    for path in sorted(_FOLDER.iterdir()):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            found[path.name] = _File(content, _TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


def _answer(request: Request, name: str) -> Response:
    file = _files().get(name)
    if file is None:
        raise HTTPException(404, f"there is no file {name!r} here")
    # Asked about every time, and sent only when it has changed: a page never runs with modules of another version.
    headers = {"ETag": file.tag, "Cache-Control": "no-cache", "Content-Security-Policy": _POLICY}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")}
    if known & {file.tag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
