"""Which backend `--model` means on which machine."""

from dataclasses import replace
from unittest.mock import Mock

import pytest

from engine.config import ServerConfig
from engine.errors import ModelError
from engine.runtime import choose
from engine.runtime.choose import (
    DEFAULT_REPOSITORY,
    EMBEDDED_SLOTS,
    choose_model,
    find_recogniser,
    has_cuda,
    load_backend,
)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine without CUDA, token or weights; the test adds what it has."""
    monkeypatch.setattr(choose, "has_cuda", lambda: False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path


@pytest.mark.parametrize("model", ["embedded", "someone/somewhere", "/a/folder"])
def test_what_was_asked_for_is_taken(machine, model):
    assert choose_model(model) == (model, "as asked")


def test_without_a_gpu_the_test_voice_speaks(machine, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "x")
    source, why = choose_model("auto")
    assert source == "embedded"
    assert "no CUDA" in why


def test_with_a_gpu_but_nothing_to_run_on_it_the_reason_is_told(machine, monkeypatch):
    monkeypatch.setattr(choose, "has_cuda", lambda: True)
    source, why = choose_model("auto")
    assert source == "embedded"
    assert "HF_TOKEN" in why


def test_with_a_gpu_and_a_token_the_model_is_loaded(machine, monkeypatch):
    monkeypatch.setattr(choose, "has_cuda", lambda: True)
    monkeypatch.setenv("HF_TOKEN", "x")
    assert choose_model("auto")[0] == DEFAULT_REPOSITORY


def test_with_a_gpu_and_weights_the_model_is_loaded(machine, monkeypatch):
    monkeypatch.setattr(choose, "has_cuda", lambda: True)
    folder = machine / "hub" / "models--nvidia--personaplex-7b-v1" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    assert choose_model("auto")[0] == "embedded"
    (folder / "model.safetensors").touch()
    assert choose_model("auto")[0] == DEFAULT_REPOSITORY


class Driver:
    """NVIDIA's driver library with one GPU; its first call ends with this code."""

    def __init__(self, code: int) -> None:
        self.cuInit = lambda _flags: code

    def cuDeviceGetName(self, name, _size, _device) -> int:
        name.value = b"NVIDIA A10G"
        return 0


@pytest.mark.parametrize(("code", "there"), [(0, True), (100, False)])  # 100: no device
def test_a_gpu_is_there_where_the_driver_says_so(code, there, monkeypatch):
    monkeypatch.setattr(choose.ctypes, "CDLL", lambda _name: Driver(code))
    assert has_cuda() is there


def test_asking_for_cuda_never_fails_where_there_is_no_driver(monkeypatch):
    def fail(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(choose.ctypes, "CDLL", fail)
    assert has_cuda() is False


@pytest.mark.parametrize(("asked", "slots"), [(3, 3), (0, EMBEDDED_SLOTS)])
def test_the_number_of_slots_is_a_setting(asked, slots):
    config = ServerConfig(model="embedded", slots=asked)
    assert load_backend(config, lambda phase, percent: None).slots == slots


def test_every_setting_of_the_model_reaches_its_start(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "engine.runtime.starting.load_personaplex", lambda *given: asked.extend(given)
    )
    monkeypatch.setattr(choose, "has_cuda", lambda: True)
    config = ServerConfig(model="someone/somewhere", slots=3, eager=True, revision="r")
    load_backend(config, progress=print)
    assert asked == [replace(config, device="cuda"), print, None]  # no key: no words


def test_a_recogniser_is_looked_for_once_and_its_folder_is_loaded(monkeypatch, tmp_path):
    given, asked = [], []
    monkeypatch.setattr("engine.runtime.starting.load_personaplex", lambda *all: given.extend(all))
    monkeypatch.setattr(
        "engine.weights.loading.download_recogniser",
        lambda source, _progress: asked.append(source) or tmp_path,
    )
    config = ServerConfig(model="someone/somewhere", transcribe="a/recogniser")
    load_backend(config, progress=print)
    assert (asked, given[2]) == (["a/recogniser"], tmp_path)


@pytest.mark.parametrize("asked", ["auto", "1"])
def test_only_a_recogniser_that_was_asked_for_by_name_must_be_there(monkeypatch, caplog, asked):
    monkeypatch.setenv("DEEPSEEK_API_KEY", "k")
    monkeypatch.setattr(
        "engine.weights.loading.download_recogniser", Mock(side_effect=ModelError("no network"))
    )
    config = ServerConfig(model="someone/somewhere", transcribe=asked)
    if asked == "auto":
        assert find_recogniser(config, print) is None
        assert "no recogniser in the model: no network" in caplog.text
    else:
        with pytest.raises(ModelError, match="no network"):
            find_recogniser(config, print)
