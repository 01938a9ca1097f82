"""A tab that was opened and left alone: after 45 s it holds nothing open. Runs last."""

import time

IDLE_SECONDS = 45


def test_nothing_is_open_on_an_idle_page_after_45_s(waiting_tab):
    left = waiting_tab.opened_at + IDLE_SECONDS - time.monotonic()
    waiting_tab.page.wait_for_timeout(max(0.0, left) * 1000)
    assert [request.url for request in waiting_tab.open] == []
    requests = len(waiting_tab.requests)
    waiting_tab.page.wait_for_timeout(2000)
    assert len(waiting_tab.requests) == requests
    assert waiting_tab.page.evaluate("window.PersonaPlex.call") is None
    assert waiting_tab.errors == []
