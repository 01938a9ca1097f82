"""`gates`: the verdict on int8 with the weights on the volume, and every start after it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from demo.cloud import acceptance
from demo.cloud.acceptance import AUTO, WHOLE, Effort, judge_int8, run_bench
from demo.cloud.settings import container_config
from demo.cloud.volume import pin_to_local
from engine.bench import capacity, drift
from engine.cli import main
from engine.model.transformer import Linear
from engine.runtime.choose import load_backend
from engine.weights import hub
from engine.weights.verdict import VERDICT, choose_precision, write_verdict
from tests.modal.benches import STT, TINY, Benches
from tests.modal.hub import FakeHub
from tests.modal.rehearsal import ROOT, clean

COMMIT, NEWER = "c0ffee" * 6 + "c0ff", "beef" * 10
VOLUME = "personaplex-weights"


def downloaded(cache: Path, commit: str) -> Path:
    """The tiny checkpoint as the hub's client would leave the public one; its snapshot."""
    repository = cache / "hf" / "hub" / "models--nvidia--personaplex-7b-v1"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name in hub.FILES:
        shutil.copy(TINY / name, snapshot)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A volume with weights and nothing else, on a machine without a GPU."""
    for name in [name for name in os.environ if name.startswith(("PERSONAPLEX_", "HF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setenv("PERSONAPLEX_DEVICE", "cpu")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "compiled"))  # so that the run sets none
    downloaded(tmp_path, COMMIT)
    return tmp_path


def snapshot_of(cache: Path, commit: str = COMMIT) -> Path:
    return cache / "hf/hub/models--nvidia--personaplex-7b-v1/snapshots" / commit


def test_a_good_verdict_is_kept_and_committed_and_said(cache, capsys):
    benches = Benches(snapshot_of(cache), good=True, held={"bf16": 4, "auto": 16})
    judge_int8(cache, VOLUME, benches.commit, bench=benches)
    order = ["drift", "committed no verdict", "bf16", "auto", "committed a verdict"]
    assert benches.said == order
    said = capsys.readouterr().out
    assert "held        4 of 16 in bf16\n" in said
    assert "            16 of 16 with weights int8, keys and values int8\n" in said
    assert "verdict     weights int8, keys and values int8\n" in said
    assert "next start  weights int8, keys and values int8\n" in said
    path = (snapshot_of(cache) / VERDICT).relative_to(cache)
    assert f"\n  modal volume rm personaplex-weights {path}\n" in said


def test_a_bad_verdict_is_a_result_and_bf16_stays(cache, capsys):
    benches = Benches(snapshot_of(cache), good=False, held={"bf16": 4})
    judge_int8(cache, VOLUME, benches.commit, bench=benches)
    assert benches.said == ["drift", "committed no verdict", "bf16", "committed a verdict"]
    said = capsys.readouterr().out
    assert "in int8" not in said
    assert said.endswith("Nothing to do: bf16 stays.\n")
    assert precision(start()) == ("plain", "plain")


def test_int8_that_holds_fewer_conversations_is_not_allowed(cache, capsys):
    benches = Benches(snapshot_of(cache), good=True, held={"bf16": 4, "auto": 3})
    judge_int8(cache, VOLUME, benches.commit, bench=benches)
    assert benches.said[-1] == "committed no verdict"
    said = capsys.readouterr().out
    assert "verdict     weights bf16, keys and values bf16, for int8 holds fewer\n" in said


@pytest.mark.parametrize("bf16", [0, 4])
def test_int8_that_holds_nobody_is_not_allowed_though_bf16_holds_nobody_either(cache, capsys, bf16):
    benches = Benches(snapshot_of(cache), good=True, held={"bf16": bf16, "auto": 0})
    judge_int8(cache, VOLUME, benches.commit, bench=benches)
    assert benches.said[-1] == "committed no verdict"
    said = capsys.readouterr().out
    assert "verdict     weights bf16, keys and values bf16, for int8 holds nobody\n" in said
    assert precision(start()) == ("plain", "plain")


def test_int8_that_holds_somebody_where_bf16_holds_nobody_is_allowed(cache):
    benches = Benches(snapshot_of(cache), good=True, held={"bf16": 0, "auto": 1})
    judge_int8(cache, VOLUME, benches.commit, bench=benches)
    assert benches.said[-1] == "committed a verdict"


def test_a_bad_verdict_stays_though_bf16_holds_nobody(cache):
    benches = Benches(snapshot_of(cache), good=False, held={"bf16": 0})
    judge_int8(cache, VOLUME, benches.commit, bench=benches)
    assert benches.said[-1] == "committed a verdict"


def test_a_bench_is_a_process_whose_exit_code_counts(capfd):
    assert run_bench(["dance"]) == 2
    assert "invalid choice: 'dance'" in capfd.readouterr().err


def test_a_recogniser_alone_in_int8_is_said_and_what_to_do_about_it(cache, monkeypatch, capsys):
    monkeypatch.setenv("PERSONAPLEX_TRANSCRIBE", str(STT))
    benches = Benches(snapshot_of(cache), False, {"bf16": 4, "auto": 5}, recogniser=True)
    judge_int8(cache, VOLUME, benches.commit, bench=benches)
    said = capsys.readouterr().out
    assert "5 of 16 with weights bf16, keys and values bf16, recogniser int8\n" in said
    assert "recogniser  weights int8\n" in said
    assert "Nothing to do: `auto` obeys." in said


def test_int8_that_breaks_under_load_is_not_allowed(cache):
    benches = Benches(snapshot_of(cache), good=True, held={"bf16": 4})
    with pytest.raises(SystemExit, match=r"^error: bench capacity .* so bf16 stays$"):
        judge_int8(cache, VOLUME, benches.commit, bench=benches)
    assert benches.said[-2:] == ["auto", "committed no verdict"]


def test_a_drift_that_breaks_changes_nothing(cache):
    write_verdict(snapshot_of(cache), "cpu", True, True, True, {})
    with pytest.raises(SystemExit, match=r"^error: bench drift .* the verdict is what it was$"):
        judge_int8(cache, VOLUME, pytest.fail, bench=lambda _: 1)
    assert (snapshot_of(cache) / VERDICT).exists()


def test_the_whole_effort_is_enough_for_a_verdict():
    assert WHOLE.frames >= drift.LEAST_FRAMES


def test_a_setting_that_forces_bf16_is_said(cache, monkeypatch, capsys):
    monkeypatch.setenv("PERSONAPLEX_WEIGHTS", "bf16")
    benches = Benches(snapshot_of(cache), good=True, held={"bf16": 4, "auto": 16})
    judge_int8(cache, VOLUME, benches.commit, bench=benches)
    assert "next start  weights bf16, keys and values int8, as PERS" in capsys.readouterr().out


def test_the_whole_run_on_the_tiny_checkpoint_ends_in_a_start_that_obeys(cache, monkeypatch, capfd):
    """Real benches in this process, but for bf16's; how fast this machine is does not count.

    Nor how it rounds: any drift is small enough, or the verdict were another one elsewhere.
    """
    monkeypatch.setenv("PERSONAPLEX_TRANSCRIBE", str(STT))
    monkeypatch.setenv("PERSONAPLEX_SLOTS", "1")
    anything = {"LEAST_TOP1": 0.0, "LEAST_WORDS_TOP1": 0.0, "LEAST_SPOKEN": 0.0, "MOST_KL": 1e9}
    anything |= {"SMALL_RISE": 1e9, "MOST_SLOPE_OFF": 1e9, "MOST_STEPS_OFF": 1e9}
    for name, value in {"LEAST_FRAMES": 20, **anything}.items():
        monkeypatch.setattr(drift, name, value)
    easy = {"LAG_SECONDS": 60.0, "LATE_SHARE": 2.0, "TICK_SHARE": 0.0, "WARM_UP_SECONDS": 0.2}
    for name, value in easy.items():
        monkeypatch.setattr(capacity, name, value)
    stand_in = Benches(snapshot_of(cache), good=True, held={"bf16": 1})
    committed: list[bool] = []
    effort = Effort(frames=20, seconds=0.5, step_seconds=0.3)

    def bench(words: list[str]) -> int:
        return stand_in(words) if "bf16" in words else main(["bench", *words])

    judge_int8(
        cache,
        VOLUME,
        lambda: committed.append((snapshot_of(cache) / VERDICT).exists()),
        effort,
        bench,
    )
    (results,) = (snapshot_of(cache) / "gates").iterdir()
    found = json.loads((results / "drift.json").read_text())
    assert (found["frames"], len(found["rows"])) == (20, 4)
    tried = sorted(path.stem for path in results.glob("capacity-*"))
    assert not committed[0]
    assert committed[-1]
    allowed = choose_precision(AUTO, snapshot_of(cache), "cpu")
    assert allowed == ("int8", "int8")
    assert tried == ["capacity-auto-auto", "capacity-bf16-bf16"]
    said = capfd.readouterr().out
    assert "next start  weights {}, keys and values {}".format(*allowed) in said
    assert re.search(r"^recogniser  weights int8$", said, re.MULTILINE)
    assert precision(start()) == tuple(name.replace("bf16", "plain") for name in allowed)


# -- what a start makes of it ----------------------------------------------------------------------


def start():
    """The backend that a container started now would load."""
    config = pin_to_local(container_config(os.environ, 8998))
    return load_backend(config, lambda *_: None)


def precision(backend) -> tuple[str, str]:
    """Of weights, of keys and values; what is plain is float32 on a CPU, bf16 on a GPU."""
    products = [m for m in backend.checkpoint.lm.modules() if isinstance(m, Linear)]
    weights = {m.weight is not None and m.weight.dtype == torch.int8 for m in products}
    kv = backend.loop.rings.kv.dtype == torch.int8
    assert len(weights) == 1
    return "int8" if weights.pop() else "plain", "int8" if kv else "plain"


def test_every_start_after_the_verdict_obeys_it_and_none_before(cache):
    before = start()
    write_verdict(snapshot_of(cache), "cpu", True, True, True, {})
    assert precision(start()) == ("int8", "int8")
    assert precision(before) == ("plain", "plain")
    (snapshot_of(cache) / VERDICT).unlink()
    assert precision(start()) == ("plain", "plain")


def test_another_revision_of_the_weights_has_no_verdict(cache):
    write_verdict(snapshot_of(cache), "cpu", True, True, True, {})
    downloaded(cache, NEWER)
    assert precision(start()) == ("plain", "plain")


# -- runs that cannot judge ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"PERSONAPLEX_GPU": "none", "PERSONAPLEX_DEVICE": "auto"}, "PERSONAPLEX_GPU is none"),
        ({"PERSONAPLEX_MODEL": "embedded"}, "which has no weights to judge"),
        ({"PERSONAPLEX_DEVICE": "cuda"}, "there is no GPU here"),
        ({"PERSONAPLEX_SLOTS": "many"}, "PERSONAPLEX_SLOTS is 'many'"),
    ],
)
def test_where_nothing_can_be_judged_the_end_is_one_line(cache, monkeypatch, environ, words):
    monkeypatch.setattr(acceptance, "has_cuda", lambda: False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        judge_int8(cache, VOLUME, pytest.fail, bench=pytest.fail)
    assert str(ended.value).startswith("error: ")
    assert words in str(ended.value)
    assert "\n" not in str(ended.value)


def test_without_the_licence_the_end_is_one_line(tmp_path):
    code = (
        "from pathlib import Path; from demo.cloud.acceptance import judge_int8\n"
        "judge_int8(Path('cache'), 'volume', print)"
    )
    with FakeHub("gated") as stand_in:  # the hub's address is read when its client is imported
        environ = {"HF_ENDPOINT": stand_in.url, "HF_TOKEN": "hf_test", "PERSONAPLEX_DEVICE": "cpu"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=clean(tmp_path, PYTHONPATH=str(ROOT), **environ),
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: this token may not read nvidia/personaplex-7b-v1 (403)")
    assert len(done.stderr.splitlines()) == 1
