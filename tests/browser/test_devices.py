"""Devices that the system takes away in a call: the page says which, and gets it back."""

import pytest
from playwright.sync_api import expect

# What the system does is done to the page's own objects: no test can lock a telephone.
TRACK = "PersonaPlex.call.devices.stream.getAudioTracks()[0]"


@pytest.fixture
def tab(one_tab, api):
    one_tab.rest()
    one_tab.connect()
    one_tab.until(lambda: one_tab.level("mic") > 0)
    yield one_tab
    assert one_tab.errors == []


def test_sound_that_the_system_stops_comes_back_with_the_next_touch(tab):
    tab.page.evaluate("PersonaPlex.call.devices.context.suspend()")
    tab.see("Sound stopped")
    expect(tab.sentence).to_contain_text("Tap anywhere")
    tab.page.wait_for_timeout(1500)  # no audio comes, and the line is not to blame
    tab.see("Sound stopped")
    tab.page.mouse.click(5, 5)
    expect(tab.headline).not_to_have_text("Sound stopped")
    assert tab.page.evaluate("PersonaPlex.call.devices.context.state") == "running"


def test_a_microphone_that_the_system_mutes_is_named_until_it_is_back(tab):
    name = tab.page.evaluate(f"{TRACK}.label")
    assert name
    tab.page.evaluate(f"{TRACK}.dispatchEvent(new Event('mute'))")
    expect(tab.notice).to_contain_text(f"“{name}” fell silent")
    tab.until(lambda: not tab.page.evaluate("PersonaPlex.state.facts.microphone"))
    tab.page.evaluate(f"{TRACK}.dispatchEvent(new Event('unmute'))")
    expect(tab.notice).to_be_hidden()
    tab.until(lambda: tab.page.evaluate("PersonaPlex.state.facts.microphone"))


def unplug(tab):
    tab.page.evaluate(
        f"{{ const track = {TRACK}; track.stop(); track.dispatchEvent(new Event('ended')); }}"
    )
    expect(tab.notice).to_contain_text("unplugged or taken away")
    expect(tab.page.locator("#pp-mic")).to_have_text("Find mic")


def test_an_unplugged_microphone_is_found_again_by_its_button(tab):
    unplug(tab)
    tab.page.click("#pp-mic")
    expect(tab.page.locator("#pp-mic")).to_have_text("Mute")
    expect(tab.notice).to_be_hidden()
    tab.until(lambda: tab.level("mic") > 20)


def test_a_microphone_that_is_plugged_in_again_is_taken_by_itself(tab):
    unplug(tab)
    tab.page.evaluate("navigator.mediaDevices.dispatchEvent(new Event('devicechange'))")
    expect(tab.page.locator("#pp-mic")).to_have_text("Mute")
    tab.until(lambda: tab.level("mic") > 20)


NOTHING = """() => {
    navigator.mediaDevices.getUserMedia = async () => {
        const context = new AudioContext();
        const silence = context.createGain();
        silence.gain.value = 0;
        const tone = context.createOscillator();
        const out = context.createMediaStreamDestination();
        tone.connect(silence).connect(out);
        tone.start();
        window.raise = () => { silence.gain.value = 0.5; };
        return out.stream;
    };
}"""


def test_a_microphone_that_delivers_only_zeros_is_named(browser, scripted_server, api, open_tab):
    tab = open_tab(browser, scripted_server.url)
    tab.page.evaluate(NOTHING)
    tab.connect()
    expect(tab.notice).to_contain_text("delivers only silence")
    tab.page.evaluate("window.raise()")
    expect(tab.notice).to_be_hidden()
    tab.page.click("#pp-mic")  # our own silence is no fault of the microphone
    tab.page.wait_for_timeout(3500)
    expect(tab.notice).to_be_hidden()
