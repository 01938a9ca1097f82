"""The benches behind the gates: what is loaded under load, and when a verdict takes effect."""

import json
import shutil
from pathlib import Path

import pytest

from demo.cloud.acceptance import AUTO, FAITHFUL, WHOLE, Capacity, Measured, measure
from engine.config import ServerConfig
from engine.errors import ModelError
from engine.weights.verdict import (
    VERDICT,
    choose_precision,
    choose_recogniser_precision,
    write_verdict,
)
from tests.modal.benches import STT, TINY, Benches


@pytest.fixture
def folder(tmp_path) -> Path:
    ignored = shutil.ignore_patterns("expected", "*.int8")
    return shutil.copytree(TINY, tmp_path / "tiny", ignore=ignored)


def judged(folder: Path, benches: Benches, bench=None) -> Measured:
    config = ServerConfig(model=str(folder), transcribe=str(STT), device="cpu")
    measured, _results = measure(folder, config, benches.commit, WHOLE, bench or benches)
    return measured


def start(folder: Path) -> tuple[str, str, str]:
    """Weights, keys and values, and the recogniser's weights, of a start with `auto`."""
    return *choose_precision(AUTO, folder, "cpu"), choose_recogniser_precision(
        "auto", folder, STT, "cpu"
    )


@pytest.mark.parametrize(
    ("model", "recogniser"), [(True, False), (False, True), (True, True), (True, None)]
)
def test_under_load_is_what_the_next_start_takes_after_bf16_throughout(folder, model, recogniser):
    benches = Benches(folder, model, {"bf16": 4, "auto": 5}, recogniser)
    measured = judged(folder, benches)
    assert benches.taken == [("bf16", "bf16", "bf16"), start(folder)]
    names = {False: "bf16", None: "bf16", True: "int8"}
    assert start(folder) == (names[model], names[model], names[recogniser])
    assert (*measured.mode, measured.recogniser) == start(folder)
    assert (measured.plain, measured.int8) == (Capacity(4, 16), Capacity(5, 16))


def test_where_no_int8_is_good_only_bf16_is_loaded(folder):
    benches = Benches(folder, False, {"bf16": 4}, recogniser=False)
    assert judged(folder, benches).int8 is None
    assert benches.taken == [("bf16", "bf16", "bf16")]


def test_a_recogniser_alone_in_int8_that_holds_fewer_is_not_allowed(folder):
    benches = Benches(folder, False, {"bf16": 4, "auto": 3}, recogniser=True)
    assert judged(folder, benches).lost
    assert start(folder) == ("bf16", "bf16", "bf16")


@pytest.mark.parametrize("dies_in", ["bf16", "auto"])
def test_a_run_that_is_killed_under_load_leaves_the_former_verdict(folder, dies_in):
    write_verdict(folder, "cpu", False, True, False, {"of": "a former run"})
    benches = Benches(folder, True, {"bf16": 4, "auto": 5})

    def bench(words: list[str]) -> int:
        assert start(folder) == ("bf16", "int8", "bf16")
        if words[0] == "capacity" and dies_in in words:
            raise KeyboardInterrupt
        return benches(words)

    with pytest.raises(KeyboardInterrupt):
        judged(folder, benches, bench)
    assert json.loads((folder / VERDICT).read_text())["of"] == "a former run"


def test_bf16_that_breaks_under_load_says_nothing_of_a_former_verdict(folder):
    write_verdict(folder, "cpu", False, True, False, {})
    with pytest.raises(ModelError, match="nothing is changed"):
        judged(folder, Benches(folder, True, {}))
    assert start(folder) == ("bf16", "int8", "bf16")


def test_int8_that_breaks_under_load_leaves_none(folder):
    write_verdict(folder, "cpu", True, True, True, {})
    benches = Benches(folder, True, {"bf16": 4})
    with pytest.raises(ModelError, match="there is no verdict now, so bf16 stays"):
        judged(folder, benches)
    assert choose_precision(AUTO, folder, "cpu") == FAITHFUL


def test_the_servers_under_load_read_the_very_same_weights(folder):
    """Else they would convert 16 GB anew, and a verdict would be one on other weights."""
    seen, models = [], []
    benches = Benches(folder, True, {"bf16": 4, "auto": 5})

    def bench(words: list[str]) -> int:
        model = Path(words[words.index("--model") + 1])
        models.append(model)
        seen.append({path.name: path.resolve() for path in model.iterdir()})
        return benches(words)

    judged(folder, benches, bench)
    drift, *under_load = seen
    assert len(under_load) == 2
    assert all({**files, VERDICT: None} == {**drift, VERDICT: None} for files in under_load)
    assert [model.exists() for model in models] == [True, False, False]
