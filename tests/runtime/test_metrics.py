"""What the server counts."""

from engine.config import LATE_SECONDS
from engine.runtime.metrics import WINDOW, Metrics, Window


def test_an_empty_window_has_zero_percentiles():
    assert Window().percentiles((50, 99)) == [0.0, 0.0]


def test_percentiles_look_back_over_the_last_values_only():
    window = Window()
    for _ in range(WINDOW):
        window.add(1000.0)
    for number in range(WINDOW):
        window.add(number)
    assert window.percentiles((0, 50, 100)) == [0, (WINDOW - 1) / 2, WINDOW - 1]


def test_a_frame_is_late_after_120_ms():
    metrics = Metrics()
    assert not metrics.sent(LATE_SECONDS)
    assert metrics.sent(0.121)
    assert metrics.late_frames == 1
    assert b"personaplex_late_frames_total 1.0" in metrics.text()


def test_conversations_are_counted_by_how_they_ended():
    metrics = Metrics()
    for reason in ("left", "left", "idle"):
        metrics.opened()
        metrics.ended(reason)
    metrics.opened()
    text = metrics.text().decode()
    assert "personaplex_conversations 1.0" in text
    assert 'personaplex_conversations_ended_total{reason="left"} 2.0' in text
    assert 'personaplex_conversations_ended_total{reason="idle"} 1.0' in text


def test_a_tick_counts_its_frames_and_its_time():
    metrics = Metrics()
    metrics.ticked(3, 0.004)
    text = metrics.text().decode()
    assert "personaplex_ticks_total 1.0" in text
    assert "personaplex_frames_total 3.0" in text
    assert 'personaplex_step_seconds_bucket{le="0.005"} 1.0' in text


def test_two_servers_in_one_process_do_not_share_counters():
    first, second = Metrics(), Metrics()
    first.ignored()
    assert b"personaplex_ignored_messages_total 0.0" in second.text()
