"""The client recipes of docs/samples, run as a reader would run them."""

import asyncio
import shutil
import sys
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from engine.errors import BusyError, InternalError, UnauthorizedError
from engine.wire.protocol import Kind, encode
from tests.modal.rehearsal import ROOT, SECONDS

SAMPLES = ROOT / "docs" / "samples"
NODE = shutil.which("node")
RECIPES = {
    "python": [sys.executable, str(SAMPLES / "connect.py")],
    "javascript": [NODE or "", "--experimental-websocket", str(SAMPLES / "connect.mjs")],
}


@dataclass
class Scripted:
    """A server that wakes up, is busy once, and then repeats what it is told to say."""

    refusal: Exception = field(default_factory=lambda: BusyError("all taken; retry in 0 s"))
    healthz: int = 0
    sockets: int = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/healthz", self.health)
        app.router.add_get("/api", self.api)
        return app

    async def health(self, _request: web.Request) -> web.Response:
        self.healthz += 1
        if isinstance(self.refusal, InternalError):
            return web.json_response({"status": "failed", "reason": "no licence"}, status=503)
        body = {"status": "waking", "phase": "loading", "percent": 40.0}
        return web.json_response(body, status=503 if self.healthz == 1 else 200)

    async def api(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(compress=False)
        await ws.prepare(request)
        self.sockets += 1
        if self.sockets == 1 or not isinstance(self.refusal, BusyError):
            await ws.send_bytes(encode(Kind.ERROR, str(self.refusal).encode()))
            await ws.close()
            return ws
        await ws.send_bytes(encode(Kind.HANDSHAKE))
        said = await ws.receive_bytes()
        assert said[0] == Kind.SAY
        await ws.send_bytes(encode(Kind.AUDIO, bytes(3840)))
        await ws.send_bytes(encode(Kind.TEXT, said[1:]))
        await ws.close()
        return ws


@pytest.fixture(params=RECIPES)
def recipe(request):
    if request.param == "javascript" and not NODE:
        pytest.skip("node is not here: install Node.js and npm")
    return RECIPES[request.param]


async def run(recipe: list[str], server: Scripted) -> tuple[int, str, str]:
    runner = web.AppRunner(server.app())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    process = await asyncio.create_subprocess_exec(
        *recipe,
        url,
        "Grüße from the recipe!",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), SECONDS)
    await runner.cleanup()
    return process.returncode, out.decode(), err.decode()


async def test_a_recipe_waits_for_waking_and_tries_again_when_busy(recipe):
    server = Scripted()
    code, out, err = await run(recipe, server)
    assert (code, out) == (0, "Grüße from the recipe!"), err
    assert (server.healthz, server.sockets) == (2, 2)


async def test_a_recipe_does_not_try_again_what_cannot_succeed(recipe):
    server = Scripted(UnauthorizedError("the token is wrong"))
    code, _out, err = await run(recipe, server)
    assert code != 0
    assert "unauthorized: the token is wrong" in err
    assert server.sockets == 1


async def test_a_recipe_says_at_once_why_a_server_cannot_start(recipe):
    server = Scripted(InternalError("the server cannot start: no licence"))
    code, _out, err = await run(recipe, server)
    assert code != 0
    assert "internal error: the server cannot start: no licence" in err
    assert (server.healthz, server.sockets) == (1, 1)
