"""Page and socket behind a proxy that takes TLS off, as Modal's edge does: nginx, really."""

import shutil
import ssl
import subprocess
from pathlib import Path

import aiohttp
import pytest

from demo.app import build_app
from engine.config import ServerConfig
from engine.dialogue.service import Service
from engine.runtime.embedded import EmbeddedBackend
from tests.browser.serving import Served, warm
from tests.modal.rehearsal import free_port
from tests.nginx import NGINX, running_nginx

needs_nginx = pytest.mark.skipif(
    not (NGINX and shutil.which("openssl")),
    reason="nginx or openssl is not here: apt-get install nginx-light openssl",
)
TOKEN = "s3cret"
SETTINGS = """
  proxy_set_header X-Forwarded-Proto $scheme;
  proxy_set_header X-Forwarded-For $remote_addr;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
    location / {{ proxy_pass http://127.0.0.1:{upstream}; }}
  }}
"""


@pytest.fixture(scope="module")
def server():
    """The whole application, with a token."""
    engine = warm(Service(lambda _progress: EmbeddedBackend(2)))
    with Served(lambda: build_app(engine, ServerConfig(token=TOKEN))) as served:
        yield served
    engine.stop()


@pytest.fixture(scope="module")
def proxy(server, tmp_path_factory):
    """nginx in front of it, with a certificate of its own making; the https address."""
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    certificate(folder)
    settings = SETTINGS.format(folder=folder, port=port, upstream=server.port)
    with running_nginx(folder, settings):
        yield f"https://localhost:{port}", client_side(folder)


def certificate(folder: Path) -> None:
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    keys = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*command, *subject, *keys], check=True, capture_output=True)


def client_side(folder: Path) -> ssl.SSLContext:
    """A client that trusts exactly this certificate."""
    return ssl.create_default_context(cafile=str(folder / "cert.pem"))


def session(context: ssl.SSLContext) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context))


@needs_nginx
async def test_behind_tls_the_page_opens_with_the_token(proxy):
    url, context = proxy
    async with session(context) as http:
        async with http.get(f"{url}/?token={TOKEN}") as answer:
            page = await answer.text()
        assert answer.status == 200
        assert "history.replaceState" in page  # the token goes out of the address
        assert "http://localhost" not in page
        assert "gradio_config" in page
        async with http.get(f"{url}/pp/main.js") as script:
            assert script.status == 200


@needs_nginx
async def test_behind_tls_the_cookie_is_secure(proxy):
    url, context = proxy
    async with session(context) as http, http.get(f"{url}/?token={TOKEN}") as answer:
        cookie = answer.headers["Set-Cookie"].lower()
    assert answer.status == 200
    assert "; secure" in cookie
    assert "; httponly" in cookie
    assert "samesite=lax" in cookie


@needs_nginx
async def test_behind_tls_the_socket_talks_with_the_cookie_of_the_page(proxy):
    url, context = proxy
    async with session(context) as http:
        async with http.get(f"{url}/?token={TOKEN}"):
            pass
        socket = url.replace("https:", "wss:") + "/api?format=pcm16"
        async with http.ws_connect(socket, headers={"Origin": url}) as ws:
            await ws.send_bytes(b"\x07Hello through the proxy!")
            kinds: set[int] = set()
            while not {0, 1, 2} <= kinds:
                kinds.add((await ws.receive_bytes(timeout=60))[0])


@needs_nginx
async def test_behind_tls_another_page_cannot_use_the_cookie(proxy):
    url, context = proxy
    async with session(context) as http:
        async with http.get(f"{url}/?token={TOKEN}"):
            pass
        origin = {"Origin": "https://elsewhere.example"}
        async with http.ws_connect(url.replace("https:", "wss:") + "/api", headers=origin) as ws:
            assert (await ws.receive_bytes(timeout=60)).startswith(b"\x05unauthorized: ")


async def test_on_modal_it_is_https_whatever_the_proxy_says(server, monkeypatch):
    """Modal hands requests on as plain http, and is not known to add X-Forwarded-Proto."""
    monkeypatch.setenv("MODAL_TASK_ID", "ta-1")
    headers = {"Host": "someone--personaplex-server.modal.run"}
    async with aiohttp.ClientSession() as http:
        login = f"{server.url}?token={TOKEN}"
        async with http.get(login, headers=headers) as answer:
            assert "; secure" in answer.headers["Set-Cookie"].lower()
