"""Who may talk: one shared token, in the query, as a bearer, or in the page's cookie.

A cookie travels by itself, so it counts only from our own pages (the Origin is checked).
"""

import hmac
from urllib.parse import urlsplit

from aiohttp import web

from engine.errors import UnauthorizedError

COOKIE = "personaplex_token"


def same(given: str, token: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode(errors="replace"), token.encode())


def authorize(request: web.Request, token: str, allowed_origins: tuple[str, ...]) -> None:
    """Raises UnauthorizedError unless the server is open or the token is right."""
    if not token:
        return
    bearer = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
    for given in (request.query.get("token", ""), bearer):
        if given and same(given, token):
            return
    cookie = request.cookies.get(COOKIE, "")
    if cookie and same(cookie, token):
        if own_origin(request, allowed_origins):
            return
        raise UnauthorizedError("this page's origin may not use the cookie; connect with token=")
    raise UnauthorizedError("the token is wrong or missing; connect with ?token=…")


def own_origin(request: web.Request, allowed: tuple[str, ...]) -> bool:
    """Whether the page that connects is ours, or from an origin that is listed by name."""
    origin = request.headers.get("Origin")
    if origin is None:
        return False  # browsers always send it; others have the token itself
    hosts = {request.host, request.headers.get("X-Forwarded-Host", request.host)}
    return urlsplit(origin).netloc in hosts or origin in allowed


def cors(request: web.Request, allowed: tuple[str, ...]) -> dict[str, str]:
    """Headers that let a page of another origin read an answer."""
    origin = request.headers.get("Origin", "")
    if "*" in allowed:
        return {"Access-Control-Allow-Origin": "*"}
    if origin in allowed:
        return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
    return {}
