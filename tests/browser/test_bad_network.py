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


NORMAL = 0.4  # s: on a busy machine too; what the stall left behind would be 0.5 s and more


ROUNDS = 3  # a machine with too much to do adds jitter of its own; one quiet round is enough


def test_after_jitter_and_a_stall_the_delay_is_back_within_5_s(browser, network, api, open_tab):
    """To the millisecond this is held by tests/demo/js/playout.test.mjs, without a real clock."""
    network.shaking = True
    changes = [measure(browser, network, open_tab)]
    while min(changes) >= NORMAL and len(changes) < ROUNDS:
        changes.append(measure(browser, network, open_tab))
    assert min(changes) < NORMAL


def measure(browser, network, open_tab) -> float:
    """How much longer (s) the delay is from 5 s after a stall on than it was before."""
    tab = open_tab(browser, f"http://127.0.0.1:{network.port}/?raw=1&tap=1")
    tab.connect()
    tab.until(lambda: tab.seconds() > 5, every=0.5)
    stalled_at = tab.seconds()
    network.stall(1.0)
    tab.until(lambda: tab.seconds() > stalled_at + 1 + 5 + 3, every=0.5)
    found = lags(tab.tap("playback"), tab.tap("capture"))
    before = [lag for time, lag in found if 2 < time < stalled_at]
    after = [lag for time, lag in found if time > stalled_at + 1 + 5]
    tab.end()
    return float(np.median(after) - np.median(before)) if before and after else np.inf
