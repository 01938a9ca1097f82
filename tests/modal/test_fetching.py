"""Containers that start at once: one fetches, the others find it; a killed one holds nobody up."""

import json
import subprocess
import sys
from pathlib import Path

from demo.cloud.volume import STALE_SECONDS, FetchTurn
from engine.weights import hub
from tests.modal.hub import FakeHub
from tests.modal.rehearsal import ROOT, SECONDS, clean

# A container's view of a volume: as it was at its start; others' files come by `reload`, its own go
# out by `commit`, and of two commits of one file the last wins. `pause` waits until both containers
# have come as far, which is the worst order: both looked before either wrote.
CONTAINER = """
import os, shutil, sys, time
from pathlib import Path
from demo.cloud import volume
from engine.config import ServerConfig

name, view, shared, here, there = sys.argv[1], *map(Path, sys.argv[2:])
def copy(source, target):
    for path in source.rglob("*"):
        into = target / path.relative_to(source)
        if path.is_symlink() or path.is_file():
            into.parent.mkdir(parents=True, exist_ok=True)
            draft = here.with_suffix(".draft")  # beside the folders, where nobody copies it
            shutil.copy2(path, draft, follow_symlinks=False)
            draft.replace(into)
paused = 0
def pause(seconds):
    global paused
    paused += 1
    if paused == 1:
        here.touch()
        while not there.exists():
            time.sleep(0.01)
        commit()  # the last one wins; both are committed when both go on
        here.with_suffix(".committed").touch()
        while not there.with_suffix(".committed").exists():
            time.sleep(0.01)
    else:
        time.sleep(0.05)
def commit():
    copy(view, shared)
os.environ["HF_HUB_CACHE"] = str(view)
config = ServerConfig(model="nvidia/personaplex-7b-v1", transcribe="0")
fetched = volume.fetch(config, lambda *_: None, commit, lambda: copy(shared, view), pause)
print("fetched" if fetched else "found", volume.pin_to_local(config).revision[:6])
"""


def test_of_two_containers_that_start_at_once_one_fetches(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    with FakeHub() as stand_in:
        environ = {"HF_ENDPOINT": stand_in.url, "HF_TOKEN": "hf_x", "PYTHONPATH": str(ROOT)}
        running = []
        for name, other in (("one", "two"), ("two", "one")):
            (tmp_path / name).mkdir()
            paths = [tmp_path / name, shared, tmp_path / f"{name}.here", tmp_path / f"{other}.here"]
            running.append(
                subprocess.Popen(
                    [sys.executable, "-c", CONTAINER, name, *map(str, paths)],
                    env=clean(tmp_path, **environ),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        said = [process.communicate(timeout=SECONDS) for process in running]
    assert sorted(out for out, _ in said) == ["fetched c0ffee\n", "found c0ffee\n"], said
    assert stand_in.fetched[hub.LM_FILE] == 1


class Volume:
    """A folder that nobody else writes, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now, self.waited = folder, 1000.0, 0.0

    def pause(self, seconds: float) -> None:
        self.waited += seconds
        self.now += seconds

    def turn(self) -> FetchTurn:
        return FetchTurn(self.folder, lambda: None, lambda: None, self.pause, lambda: self.now)


def test_a_container_that_was_killed_holds_nobody_up_for_long(tmp_path):
    volume = Volume(tmp_path)
    (tmp_path / "fetching.json").write_text(json.dumps({"by": "killed", "at": volume.now - 60}))
    told = []
    turn = volume.turn()
    assert turn.take(lambda: True, lambda phase, _: told.append(phase))
    assert STALE_SECONDS - 70 < volume.waited < STALE_SECONDS
    assert set(told) == {"another container fetches the weights"}
    assert len(told) > 10  # each is a sign of life for who watches the load
    turn.end()


def test_who_waits_goes_on_when_the_weights_are_there(tmp_path):
    volume = Volume(tmp_path)
    (tmp_path / "fetching.json").write_text(json.dumps({"by": "other", "at": volume.now}))
    assert not volume.turn().take(lambda: volume.waited < 30, lambda *_: None)


def test_a_clock_that_went_wrong_holds_nobody_up_for_ever(tmp_path):
    volume = Volume(tmp_path)
    (tmp_path / "fetching.json").write_text(json.dumps({"by": "other", "at": volume.now + 86_400}))
    turn = volume.turn()
    assert turn.take(lambda: volume.waited < 600, lambda *_: None)
    turn.end()


def test_a_turn_that_has_ended_is_free_at_once(tmp_path):
    volume = Volume(tmp_path)
    first = volume.turn()
    assert first.take(lambda: True, lambda *_: None)
    first.end()
    waited = volume.waited
    second = volume.turn()
    assert second.take(lambda: True, lambda *_: None)
    second.end()
    assert volume.waited - waited < 5


def test_a_damaged_lock_and_a_full_disk_keep_nobody_from_fetching(tmp_path):
    (tmp_path / "fetching.json").write_text("{")
    volume = Volume(tmp_path)
    turn = volume.turn()
    assert turn.take(lambda: True, lambda *_: None)
    turn.end()
    nowhere = Volume(tmp_path / "fetching.json" / "no folder").turn()
    assert nowhere.take(lambda: True, lambda *_: None)
    nowhere.end()
