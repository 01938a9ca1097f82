"""Who may see the page when the server has a token: a cookie that `/?token=…` hands out.

The socket checks for itself (engine/wire/server.py). This file guards the page's own requests.
"""

import os

from aiohttp import web

from engine.errors import UnauthorizedError
from engine.wire.server import COOKIE, is_right_token

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


def ask_for_token(request: web.Request, token: str) -> web.Response | None:
    """What a visitor gets instead of a file: the cookie, or the form. None: it has the cookie."""
    given = request.query.get("token") if request.path == "/" else None
    cookie = request.cookies.get(COOKIE, "") if given is None else ""
    status, note = 401, WRONG if given else FIRST
    try:
        if given and is_right_token(request, given):
            return hand_out_cookie(request, token)
        if cookie and is_right_token(request, cookie):
            return None
    except UnauthorizedError:
        status, note = 429, TOO_MANY
    headers = {"Cache-Control": "no-store"}
    page = ASK.replace("NOTE", note)
    return web.Response(status=status, text=page, content_type="text/html", headers=headers)


def hand_out_cookie(request: web.Request, token: str) -> web.Response:
    """Set the cookie, and take the token out of the address bar."""
    response = web.Response(status=303, headers={"Location": "./", "Cache-Control": "no-store"})
    response.set_cookie(
        COOKIE,
        token,
        max_age=COOKIE_SECONDS,
        httponly=True,
        secure=find_scheme(request) == "https",
        samesite="Lax",
    )
    return response


def find_scheme(request: web.Request) -> str:
    """`https` if the browser came by https, even if a proxy in front took it off."""
    if "MODAL_TASK_ID" in os.environ:  # always behind https there, and not known to say so
        return "https"
    forwarded = request.headers.get("X-Forwarded-Proto", "").split(",")[0].strip().lower()
    return forwarded if forwarded in ("http", "https") else request.scheme
