"""What the server counts, and the latency record of its frames."""

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.config import FRAME_SECONDS, LATE_SECONDS
from engine.runtime.metrics import (
    RECENT_SECONDS,
    WINDOW_SECONDS,
    WINDOW_VALUES,
    Metrics,
    Stage,
    Window,
    find_percentiles,
)
from tests.runtime.rig import NotingDirector, Rig


def exported(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """The values of a metric by its labels, which are in the order of their names."""
    families = text_string_to_metric_families(metrics.text().decode())
    samples = [sample for family in families for sample in family.samples]
    return {tuple(s.labels.values()): s.value for s in samples if s.name == name}


def stages(metrics: Metrics) -> dict[str, dict[str, float]]:
    """Stage -> quantile -> milliseconds."""
    seconds: dict[str, dict[str, float]] = {}
    for (quantile, stage), value in exported(metrics, "personaplex_frame_seconds").items():
        seconds.setdefault(stage, {})[quantile] = round(value * 1e3, 3)
    return seconds


def all_four(value: float) -> dict[str, float]:
    return dict.fromkeys(("0.5", "0.95", "0.99", "1"), value)


# -- windows ---------------------------------------------------------------------------------------


def test_an_empty_window_has_zero_percentiles():
    assert Window().percentiles((50, 99)) == [0.0, 0.0]


@pytest.mark.parametrize("count", [1, 2, 3, 100, 999])
def test_percentiles_are_those_of_numpy(count):
    wanted, values = (0, 0.1, 50, 95, 99, 100), np.random.default_rng(count).normal(size=count)
    assert find_percentiles(values.copy(), wanted) == pytest.approx(np.percentile(values, wanted))


def test_a_window_that_is_full_keeps_the_last_values_only():
    window = Window()
    window.add(*[1000.0] * WINDOW_VALUES)
    for number in range(WINDOW_VALUES):
        window.add(number)
    assert window.percentiles((0, 50, 100)) == [0, (WINDOW_VALUES - 1) / 2, WINDOW_VALUES - 1]


def test_many_values_that_do_not_fit_before_the_end_of_the_ring_go_on_at_its_start():
    window = Window()
    window.add(*range(WINDOW_VALUES - 2))
    window.add(-1, -2, -3, -4, -5)
    assert sorted(window.values()) == [-5, -4, -3, -2, -1, *range(3, WINDOW_VALUES - 2)]


def test_what_clients_are_told_is_reckoned_once_for_all_of_them(monkeypatch):
    now, reckoned = 100.0, []
    metrics, percentiles = Metrics(lambda: now), Window.percentiles
    monkeypatch.setattr(
        Window, "percentiles", lambda window, of: reckoned.append(of) or percentiles(window, of)
    )
    metrics.ticked(1, 0.02)
    metrics.took(Stage.QUEUE, 0.004)
    assert [metrics.recent() for _ in range(9)] == [(0.02, 0.02, 0.004)] * 9
    assert len(reckoned) == 2
    metrics.ticked(1, 0.04)
    now += RECENT_SECONDS + 0.01
    assert metrics.recent()[0] == pytest.approx(0.03)


def test_a_window_forgets_what_is_older_than_a_minute():
    now = 100.0
    window = Window(lambda: now)
    window.add(1.0)
    now += WINDOW_SECONDS / 2
    window.add(2.0)
    assert sorted(window.values()) == [1.0, 2.0]
    now += WINDOW_SECONDS / 2 + 1
    assert window.values().tolist() == [2.0]
    now += WINDOW_SECONDS
    assert window.percentiles((50,)) == [0.0]


# -- the latency record ----------------------------------------------------------------------------


class SlowDirector(NotingDirector):
    """Thinks for a while."""

    def __init__(self, think) -> None:
        super().__init__()
        self._think = think

    def step(self, *args):
        self._think()
        return super().step(*args)


def test_each_stage_of_a_frame_is_timed_by_itself():
    rig = Rig(slots=1, tick=0.03)

    def pass_(seconds):
        rig.now += seconds

    seat = rig.join(SlowDirector(lambda: pass_(0.002)))
    listen = rig.backend.listen
    rig.backend.listen = lambda *args: pass_(0.02) or listen(*args)
    rig.hear(seat)
    pass_(0.005)  # the scheduler was busy meanwhile
    rig.turn()
    assert stages(rig.metrics) == {
        "queue": all_four(5.0),
        "listen": all_four(20.0),
        "choose": all_four(2.0),
        "speak": all_four(30.0),
        "host": all_four(2.0),
    }
    [frame] = rig.frames(seat)
    assert rig.now - frame.ready_at == 0


def test_the_record_counts_frames_not_ticks_and_no_first_tick_of_a_newcomer():
    rig = Rig(slots=3)
    seats = [rig.join() for _ in range(3)]
    assert not stages(rig.metrics)
    for tick, talking in ((0.01, seats[:1]), (0.05, seats)):
        rig.backend.tick_seconds = tick
        for seat in talking:
            rig.hear(seat)
        rig.turn()
        rig.advance(FRAME_SECONDS)
    assert stages(rig.metrics)["speak"] == all_four(50.0)  # the median too: most frames
    assert len(rig.metrics.record.stages[Stage.SPEAK].values()) == 4
    assert exported(rig.metrics, "personaplex_active_slots")["1",] == 3


def test_the_record_exports_its_quantiles_and_the_largest():
    metrics = Metrics(lambda: 0.0)
    for milliseconds in range(101):
        metrics.took(Stage.SEND, milliseconds / 1e3)
    assert stages(metrics) == {"send": {"0.5": 50, "0.95": 95, "0.99": 99, "1": 100}}


def test_after_a_minute_without_frames_the_record_has_no_values():
    rig = Rig(slots=1)
    seat = rig.join()
    rig.hear(seat)
    rig.turn()
    assert stages(rig.metrics)
    rig.now += WINDOW_SECONDS + 1
    assert not stages(rig.metrics)
    assert not exported(rig.metrics, "personaplex_active_slots")


@pytest.mark.parametrize("samples", [1, 1919, 1920, 1921, 3840, 19200])
def test_a_seat_says_how_many_frames_the_audio_completed(samples):
    rig = Rig(slots=1)
    seat = rig.join()
    rig.hear(seat, 0.5)
    complete = (960 + samples) // 1920
    assert seat.push_audio(np.zeros(samples, np.float32), rig.now) == complete


def test_an_answer_is_timed_until_it_is_sent():
    metrics = Metrics()
    metrics.sent(0.04)
    assert stages(metrics)["answer"] == all_four(40.0)


# -- counters --------------------------------------------------------------------------------------


def test_a_frame_is_late_after_120_ms():
    metrics = Metrics()
    assert not metrics.sent(LATE_SECONDS)
    assert metrics.sent(0.121)
    assert metrics.registry.get_sample_value("personaplex_late_frames_total") == 1
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
