"""Where the page may stand: behind nginx at `/` and under paths, and in another site's frame."""

import pytest
from aiohttp import web

from demo.app import build_app
from engine.config import ServerConfig
from tests.browser.serving import Served
from tests.modal.rehearsal import free_port
from tests.nginx import NGINX, running_nginx

TOKEN = "open sesame"
SETTINGS = """
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://127.0.0.1:{upstream}; }}
    location /personaplex/ {{ proxy_pass http://127.0.0.1:{upstream}/; }}
    location /kept/ {{ proxy_pass http://127.0.0.1:{upstream}; }}
    # as Traefik does: the path is taken off, and `/bare` has no last slash
    location = /bare {{ proxy_pass http://127.0.0.1:{upstream}/; }}
    location /bare/ {{ proxy_pass http://127.0.0.1:{upstream}/; }}
  }}
"""
FRAME = '<iframe src="{url}?token=open+sesame" allow="microphone; autoplay" width=1000 height=700>'


@pytest.fixture(scope="module")
def server_of_paths(chromium, engine):
    with Served(lambda: build_app(engine, ServerConfig(root_path="/kept"))) as served:
        yield served


@pytest.fixture(scope="module")
def nginx(server_of_paths, tmp_path_factory):
    if NGINX is None:
        pytest.skip("nginx is missing (apt install nginx-light): the page is not tried behind it")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    with running_nginx(folder, SETTINGS.format(port=port, upstream=server_of_paths.port)):
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("path", ["/", "/personaplex/", "/kept/", "/bare"])
def test_behind_nginx_the_page_talks_at_every_path(browser, nginx, open_tab, path):
    tab = open_tab(browser, nginx + path)
    tab.connect()
    tab.until(lambda: tab.seconds() > 1)
    if path.endswith("/"):  # else a browser looks beside it, before the page has moved itself
        assert all(url.startswith((nginx + path, "blob:")) for url in tab.requests)


@pytest.fixture(scope="module")
def embedding_site(chromium, engine):
    """A page of another site that shows ours, and the server that lets it."""
    port = free_port()
    config = ServerConfig(token=TOKEN, frame_ancestors=f"http://localhost:{port}")

    async def show(_request):
        return web.Response(text=FRAME.format(url=locked.url), content_type="text/html")

    def make():
        app = web.Application()
        app.router.add_get("/", show)
        return app

    with Served(lambda: build_app(engine, config)) as locked, Served(make, port) as outer:
        yield f"http://localhost:{outer.port}/"


def test_in_another_sites_frame_the_token_of_its_address_opens_page_and_socket(
    browser, embedding_site
):
    """The cookie does not come along there: http, and another site."""
    context = browser.new_context(permissions=["microphone"])
    page = context.new_page()
    page.goto(embedding_site)
    frame = page.frames[1]
    frame.wait_for_selector(".pp-there")
    assert "token" not in frame.evaluate("location.href")
    frame.click("#pp-start")
    frame.wait_for_function("window.PersonaPlex.state.live")
    context.close()
