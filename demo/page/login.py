"""Who may see the page when the server has a token: who comes with it, `/?token=…`, or its cookie.

The socket checks for itself (engine/wire/server.py). This file guards the page alone: its scripts
are no secret. In a frame of another site a browser may keep no cookie. Then the page goes on with
the token of its own address, which it takes out of sight and keeps in memory (html/page.html).
"""

import os
from http.cookies import SimpleCookie

from aiohttp import web

from engine.errors import UnauthorizedError
from engine.wire.server import CONFIG, COOKIE, find_root, is_right_token

COOKIE_SECONDS = 30 * 24 * 3600

ASK = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>PersonaPlex: access token</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="favicon.ico"><style>
:root { color-scheme: light dark; }
body { font: 1.05rem/1.5 system-ui, sans-serif; max-width: 26rem; margin: 18vh auto;
  padding: 0 1rem; }
input, button { font: inherit; padding: .5rem .75rem; border-radius: .5rem; border: 1px solid; }
input { width: 100%; box-sizing: border-box; margin: .25rem 0 1rem; }
</style></head><body><main><h1>PersonaPlex</h1>
<p>NOTE</p>
<form method="get"><label for="token">Access token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Open the page</button></form></main></body></html>
"""
FIRST = "This server is for invited guests. Enter the token you were given."
WRONG = "That token is not the right one. Check it and try again."
TOO_MANY = "Too many wrong tokens came from your address. Wait a minute and try again."


def ask_for_token(request: web.Request) -> web.Response | None:
    """The form, for a visitor without the token and its cookie; None: this one may come in."""
    given = request.query.get("token")
    known = request.cookies.get(COOKIE, "") if given is None else given
    status, note = 401, WRONG if given else FIRST
    try:
        if known and is_right_token(request, known):
            return None
    except UnauthorizedError:
        status, note = 429, TOO_MANY
    headers = {"Cache-Control": "no-store"}
    page = ASK.replace("NOTE", note)
    return web.Response(status=status, text=page, content_type="text/html", headers=headers)


def hand_out_cookie(response: web.Response, request: web.Request) -> web.Response:
    """Put the cookie on the page for who came with `?token=`.

    Where other sites may show the page in a frame, the cookie may go with it, and is kept apart for
    each of them (Partitioned). Browsers take such a cookie over https only.
    """
    config = request.app[CONFIG]
    if request.query.get("token") is None:
        return response
    secure = find_scheme(request) == "https"
    framed = secure and config.frame_ancestors != "'self'"
    response.headers["Cache-Control"] = "no-store"
    cookie = SimpleCookie({COOKIE: config.token})[COOKIE]
    cookie.update({"max-age": COOKIE_SECONDS, "path": f"{find_root(request)}/", "httponly": True})
    cookie.update({"secure": secure, "samesite": "None" if framed else "Lax"})
    apart = "; Partitioned" if framed else ""  # Python's own cookies know it from 3.14 on
    response.headers.add("Set-Cookie", cookie.OutputString() + apart)
    return response


def find_scheme(request: web.Request) -> str:
    """`https` if the browser came by https, even if a proxy in front took it off."""
    if "MODAL_TASK_ID" in os.environ:  # always behind https there, and not known to say so
        return "https"
    forwarded = request.headers.get("X-Forwarded-Proto", "").split(",")[0].strip().lower()
    return forwarded if forwarded in ("http", "https") else request.scheme
