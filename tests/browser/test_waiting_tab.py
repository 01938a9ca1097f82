"""A tab that was opened and left alone: after 45 s of its own clock it holds nothing open."""

import pytest

from tests.browser.driver import Tab

IDLE_MS = 45_000


@pytest.fixture
def waiting_tab(browser, server):
    tab = Tab(browser, server.url, clock=True)
    yield tab
    tab.close()


def test_nothing_is_open_on_an_idle_page_after_45_s(waiting_tab):
    page = waiting_tab.page
    waiting_tab.until(lambda: not waiting_tab.open)  # what loading asked for has come
    page.clock.run_for(IDLE_MS)  # what the page would do in them, it does now
    page.wait_for_timeout(1000)
    assert [request.url for request in waiting_tab.open] == []
    requests = len(waiting_tab.requests)
    page.clock.run_for(IDLE_MS)
    page.wait_for_timeout(1000)
    assert len(waiting_tab.requests) == requests
    assert page.evaluate("window.PersonaPlex.call") is None
    assert waiting_tab.errors == []
