"""Through a proxy with 0–80 ms of jitter and a stall of 1 s: playback adapts and recovers.

The socket echoes the user's own voice here, so that the delay can be measured on one clock: the
two worklets' taps, the microphone's and the speaker's.
"""

import numpy as np
import pytest

from tests.browser.badnet import BadNetwork
from tests.browser.sound import lags


@pytest.fixture
def network(scripted_server):
    with BadNetwork(scripted_server.port) as made:
        yield made


def test_after_jitter_and_a_stall_the_delay_is_back_within_5_s(browser, network, api, open_tab):
    tab = open_tab(browser, f"http://127.0.0.1:{network.port}/?raw=1&tap=1")
    network.shaking = True
    tab.connect()
    tab.until(lambda: tab.seconds() > 11)
    stalled_at = tab.seconds()
    network.stall(1.0)
    tab.until(lambda: tab.seconds() > stalled_at + 1 + 5 + 6)
    measured = lags(tab.tap("playback"), tab.tap("capture"))
    before = [lag for time, lag in measured if 3 < time < stalled_at]
    after = [lag for time, lag in measured if time > stalled_at + 1 + 5]
    assert len(before) >= 3
    assert len(after) >= 2
    assert np.median(before) < 0.6
    assert np.median(after) - np.median(before) < 0.1
    assert tab.page.locator(".lost").get_attribute("title").startswith("gaps ")
