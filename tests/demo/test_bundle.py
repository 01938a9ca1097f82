"""The page's scripts and styles in two files, and what links and tabs show of it."""

import json
import re

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from tests.browser.serving import rendered_once
from tests.demo import lazy_page


@pytest.fixture(scope="module")
def shell():
    return (lazy_page.FRONTEND / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def _rendered_once():
    with rendered_once():
        yield


@pytest.fixture
async def client():
    app = web.Application()
    lazy_page.add_page(app, lazy_page.page_config())
    made = TestClient(TestServer(app))
    await made.start_server()
    yield made
    await made.close()


def test_a_part_stands_after_all_that_it_needs(shell):
    entry = re.search(r'src="\./assets/([^"]+\.js)"', shell)[1]
    scripts, styles = lazy_page.find_parts(entry, ["html", "number"])
    names = list(scripts)
    for at, name in enumerate(names):
        needed = lazy_page.NEEDS.findall((lazy_page.ASSETS / name).read_text(encoding="utf-8"))
        assert set(needed) <= set(names[:at])
    assert names.index(entry) < len(names) - 1
    assert styles


def test_a_component_brings_its_own_parts_and_no_others(shell):
    few, many = (
        lazy_page.make_bundle(shell, parts, lazy_page.STATIC)
        for parts in (["html"], ["html", "slider"])
    )
    assert set(few.parts) < set(many.parts)
    assert len(few.parts) < 70


def test_gradios_styles_stand_in_a_layer_below_ours(shell):
    style = lazy_page.make_bundle(shell, ["html"], lazy_page.STATIC).style
    layer, ours = style.split("\n}\n", 1)
    assert layer.startswith("@layer gradio {")
    assert "svelte" in layer
    assert "outline:none!important" not in layer
    assert "svelte" not in ours


def test_another_build_of_gradios_is_refused_at_the_start():
    with pytest.raises(RuntimeError, match=r"adapt demo/page/bundle\.py"):
        lazy_page.make_bundle("<html></html>", ["html"], lazy_page.STATIC)


async def test_the_page_names_two_files_that_may_be_kept_for_ever(client):
    text = await (await client.get("/")).text()
    script = re.search(r"defer src=\"(.*?)\"", text)[1]
    style = re.search(r"sheet\" href=\"(.*?)\"", text)[1]
    for path in (script, style):
        assert not path.startswith(("/", "http"))  # relative: a proxy may show it under a path
        async with client.get(f"/{path}") as response:
            assert response.status == 200
            assert "immutable" in response.headers["Cache-Control"]
    theme = re.search(r'href="(theme\.css\?v=\w+)"', text)[1]
    async with client.get(f"/{theme}") as response:
        assert "immutable" in response.headers["Cache-Control"]
    loaded = await (await client.get(f"/{script}")).text()
    own = json.loads(re.search(r"pageModules\.add\((\{.*\}), \[", loaded)[1])
    assert {f"pp/{path.name}" for path in lazy_page.STATIC.glob("*.js")} - set(own) == {
        "pp/modules.js"
    }


async def test_link_previews_and_the_icon_are_our_own(client):
    text = await (await client.get("/")).text()
    head = text[: text.index("window.gradio_config")]
    assert re.search(r"<title>PersonaPlex", head)
    tags = dict(re.findall(r'<meta (?:property|name)="([\w:-]+)" content="([^"]*)"', head))
    assert "PersonaPlex" in tags["og:title"]
    assert "while it speaks" in tags["description"]
    assert tags["description"] == tags["og:description"]
    assert "radio" not in head.split("</title>")[1].replace("window.gradio_config", "")
    icon = re.search(r'rel="icon" href="([^"]+)"', head)[1]
    assert icon.startswith("data:image/svg+xml;base64,")  # asked of nobody, in a call neither
    for path in (tags["og:image"], "favicon.ico"):
        async with client.get(f"/{path}") as response:
            assert response.status == 200
            assert response.headers["Content-Type"].startswith("image/")
