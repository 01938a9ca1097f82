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


NORMAL = 0.25  # s: beside it, what the stall left behind would be 0.5 s and more


def test_after_jitter_and_a_stall_the_delay_is_back_within_5_s(browser, network, api, open_tab):
    """How exactly is for tests/demo/js/playout.test.mjs; a busy machine adds jitter of its own."""
    tab = open_tab(browser, f"http://127.0.0.1:{network.port}/?raw=1&tap=1")
    network.shaking = True
    tab.connect()

    def delays(since):
        found = lags(tab.tap("playback"), tab.tap("capture"))
        return [lag for time, lag in found if time > since]

    tab.until(lambda: len(delays(2)) >= 4, every=2)
    before, stalled_at = delays(2), tab.seconds()
    network.stall(1.0)
    tab.until(lambda: len(delays(stalled_at + 1 + 5)) >= 3, every=2)
    after = delays(stalled_at + 1 + 5)
    assert np.median(after) - np.median(before) < NORMAL
