"""The parts of a container's life that need no process: settings, volume, compile caches."""

import socket
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest

from demo.app import LatePage
from demo.cloud import container as container_module
from demo.cloud import volume
from demo.cloud.container import Container
from demo.cloud.settings import container_config
from engine.config import ServerConfig
from engine.errors import ConfigError, ModelError
from engine.model.gpu.cuda import CACHE_VARIABLE
from engine.runtime.embedded import EmbeddedBackend
from engine.weights import hub


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """Nobody else is there: nobody waits for a commit to be seen, and nobody looks at a page.

    All of them at once would be at work for 12 s when these tests are long over.
    """
    monkeypatch.setattr(volume, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(LatePage, "_make", lambda *_: None)


@pytest.fixture
def hf_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    return tmp_path


def downloaded(home: Path, commit: str, revision: str = "main") -> None:
    """What the hub's client leaves behind after a whole download."""
    folder = home / "hub" / "models--nvidia--personaplex-7b-v1"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name in hub.FILES:
        (snapshot / name).touch()
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / revision).write_text(commit)


def test_the_model_is_never_auto_in_a_container():
    config = container_config({}, 8998)
    assert (config.model, config.device) == (hub.DEFAULT_REPOSITORY, "cuda")
    assert (config.host, config.port) == ("0.0.0.0", 8998)
    assert container_config({"PERSONAPLEX_MODEL": "auto"}, 8998).model == hub.DEFAULT_REPOSITORY
    assert container_config({"PERSONAPLEX_MODEL": "embedded"}, 8998).device == "auto"


def test_the_model_without_a_gpu_is_refused_with_the_way_out():
    with pytest.raises(ConfigError, match="deploy with PERSONAPLEX_MODEL=embedded"):
        container_config({"PERSONAPLEX_GPU": "none"}, 8998)


def test_a_snapshot_of_a_failure_tries_again_when_it_is_thawed(monkeypatch, capsys):
    """Else one failed download would last until the next deployment."""
    loads = iter([ModelError("the hub is down"), EmbeddedBackend(1)])

    def load(*_: object) -> EmbeddedBackend:
        outcome = next(loads)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr("engine.commands.serve.load_backend", load)
    environ = {"PERSONAPLEX_MODEL": "embedded", "PERSONAPLEX_TRANSCRIBE": "0"}
    container = Container(environ, port=0, snapshot=True, leave=pytest.fail)
    container.start()
    assert container._service.failed == "the hub is down"
    container.resume()
    container._service.wait(60)
    assert container._service.failed == ""
    container.stop()
    assert capsys.readouterr().out.count("error: ") == 1


@pytest.mark.parametrize(
    "bad",
    [("SLOTS", "many"), ("BUFFER_CONTAINERS", "x"), ("AUTOSCALE", "door"), ("MODEL", "m" * 5000)],
)
def test_a_setting_that_a_secret_brings_ends_no_container(bad):
    """It is seen only here, and would end each container that the platform starts anew."""
    name, value = bad
    environ = {"PERSONAPLEX_MODEL": "embedded", f"PERSONAPLEX_{name}": value}
    container = Container(environ, port=0, fleet=Mock(), leave=pytest.fail)
    container.start()
    words = "the start broke: OSError" if name == "MODEL" else value
    with pytest.raises((ConfigError, ModelError), match=words):
        container._service.wait(60)
    container.stop()
    assert words in container._service.failed


def test_a_gpu_that_is_gone_ends_the_container(monkeypatch, capsys):
    """A new machine has one. With our own errors the container would stay up without a model."""
    monkeypatch.setattr(container_module, "cuda_device_name", lambda: "")
    ended: list[int] = []
    over = threading.Event()
    container = Container(port=0, environ={}, leave=lambda code: (ended.append(code), over.set()))
    container.start()
    assert over.wait(60)
    assert ended == [1]
    assert "error: this machine's GPU does not answer" in capsys.readouterr().out


def test_a_port_that_is_taken_ends_the_start(capsys):
    ended: list[int] = []
    over = threading.Event()
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        container = Container(
            {"PERSONAPLEX_MODEL": "embedded"},
            port=taken.getsockname()[1],
            leave=lambda code: (ended.append(code), over.set()),
        )
        container._opened.set()  # nobody is there to end the process, so `start` must not wait
        container.start()
        assert over.wait(60)
    assert ended == [1]
    assert "error: cannot listen on 0.0.0.0:" in capsys.readouterr().out


def test_weights_that_are_here_are_loaded_without_asking_anybody(hf_home):
    downloaded(hf_home, "c0ffee")
    config = ServerConfig(model=hub.DEFAULT_REPOSITORY)
    assert volume.pin_to_local(config).revision == "c0ffee"
    assert not volume.fetch(config, lambda *_: None, pytest.fail)


def test_a_download_that_broke_off_is_resumed_and_then_committed(hf_home, monkeypatch):
    downloaded(hf_home, "c0ffee")
    (hf_home / "hub/models--nvidia--personaplex-7b-v1/snapshots/c0ffee" / hub.LM_FILE).unlink()
    happened: list[object] = []
    monkeypatch.setattr(hub, "fetch", lambda *args: happened.append(args[:2]))
    config = ServerConfig(model=hub.DEFAULT_REPOSITORY)
    assert volume.fetch(
        config, lambda phase, _: happened.append(phase), lambda: happened.append("committed")
    )
    assert happened == [
        "committed",  # that it is our turn
        (hub.DEFAULT_REPOSITORY, None),
        "saving the weights to the volume",
        "committed",
    ]


def test_a_damaged_name_of_a_commit_is_fetched_again(hf_home):
    downloaded(hf_home, "c0ffee")
    (hf_home / "hub/models--nvidia--personaplex-7b-v1/refs/main").write_bytes(b"\xff\xfe")
    config = ServerConfig(model=hub.DEFAULT_REPOSITORY)
    assert volume.pin_to_local(config) is config


def test_another_revision_than_the_one_that_is_here_is_fetched(hf_home):
    downloaded(hf_home, "c0ffee")
    config = ServerConfig(model=hub.DEFAULT_REPOSITORY, revision="v2")
    assert volume.pin_to_local(config) is config
    downloaded(hf_home, "beef", revision="v2")
    assert volume.pin_to_local(config).revision == "beef"


def test_a_model_folder_is_never_fetched(tmp_path):
    config = ServerConfig(model=str(tmp_path))
    assert not volume.fetch(config, lambda *_: None, pytest.fail)


def test_compiled_code_is_kept_apart_by_device_and_version(monkeypatch):
    environ: dict[str, str] = {}
    monkeypatch.setattr(volume, "cuda_device_name", lambda: "NVIDIA A10G")
    monkeypatch.setattr(volume.metadata, "version", lambda package: "3.5.0")
    volume.set_compile_cache(environ, Path("/cache"))
    assert environ.pop(CACHE_VARIABLE) == "/cache/compiled/cuda"
    assert environ == {"TRITON_CACHE_DIR": "/cache/compiled/nvidia-a10g-triton3.5.0"}
    monkeypatch.setattr(volume, "cuda_device_name", lambda: "NVIDIA L40S")
    other: dict[str, str] = {}
    volume.set_compile_cache(other, Path("/cache"))
    assert other["TRITON_CACHE_DIR"] == "/cache/compiled/nvidia-l40s-triton3.5.0"
    mine = {"TRITON_CACHE_DIR": "/mine", CACHE_VARIABLE: "/mine-too"}
    volume.set_compile_cache(mine, Path("/cache"))
    assert mine == {"TRITON_CACHE_DIR": "/mine", CACHE_VARIABLE: "/mine-too"}


def test_a_server_that_hangs_when_the_engine_dies_is_cut_off(monkeypatch, capsys):
    class Hung:
        def call_soon_threadsafe(self, *_: object) -> None:
            """A loop that is stuck takes the call and never makes it."""

    ended: list[int] = []
    over = threading.Event()
    container = Container({}, leave=lambda code: (ended.append(code), over.set()))
    container._loop = Hung()
    monkeypatch.setattr(container_module, "STOP_SECONDS", 0.05)
    container._died(RuntimeError("the GPU fell off the bus"))
    assert over.wait(60)
    assert ended == [1]
    assert capsys.readouterr().out == (
        "error: RuntimeError at an unknown place; the server would not end\n"
    )


def test_a_recogniser_is_fetched_where_it_is_turned_on_and_missing(hf_home, tmp_path, monkeypatch):
    from engine.weights import loading as recogniser

    downloaded(hf_home, "c0ffee")
    asked: list[str] = []
    monkeypatch.setattr(
        recogniser, "download_recogniser", lambda name, _: asked.append(name) or tmp_path
    )
    config = ServerConfig(model=hub.DEFAULT_REPOSITORY, transcribe="1")
    committed: list[bool] = []
    assert volume.fetch(config, lambda *_: None, lambda: committed.append(True))
    assert (asked, committed) == (["1"], [True, True])
    folder = ServerConfig(model=hub.DEFAULT_REPOSITORY, transcribe=str(tmp_path))
    assert not volume.fetch(folder, lambda *_: None, pytest.fail)
    embedded = ServerConfig(model="embedded", transcribe="1")
    assert not volume.fetch(embedded, lambda *_: None, pytest.fail)


def test_int8_weights_that_a_start_reads_are_made_and_committed_once(hf_home, monkeypatch):
    from engine.weights import loading

    downloaded(hf_home, "c0ffee")
    snapshot = hf_home / "hub/models--nvidia--personaplex-7b-v1/snapshots/c0ffee"
    happened: list[str] = []

    def quantise(folder: Path, device: str, report) -> None:
        if not (folder / "model.int8").exists():
            (folder / "model.int8").mkdir()
            report(100.0)

    def keep(weights: str) -> None:
        config = ServerConfig(model=hub.DEFAULT_REPOSITORY, device="cpu", weights=weights)
        volume.keep_int8(
            config, lambda phase, _: happened.append(phase), lambda: happened.append("committed")
        )

    monkeypatch.setattr(hub, "find", lambda *_: snapshot)
    monkeypatch.setattr(loading, "quantise_checkpoint", quantise)
    keep("bf16")
    keep("auto")  # without a verdict it is bf16
    assert not happened
    keep("int8")
    made = "keeping the int8 weights"
    assert happened == [made, "saving the int8 weights to the volume", "committed"]
    happened.clear()
    keep("int8")
    assert not happened


def test_int8_weights_that_cannot_be_kept_cost_a_line(hf_home, monkeypatch, caplog):
    from engine.weights import loading

    downloaded(hf_home, "c0ffee")

    def quantise(*_: object) -> None:
        raise ModelError("no space left")

    monkeypatch.setattr(hub, "find", lambda *_: hf_home)
    monkeypatch.setattr(loading, "quantise_checkpoint", quantise)
    config = ServerConfig(model=hub.DEFAULT_REPOSITORY, device="cpu", weights="int8")
    volume.keep_int8(config, lambda *_: None, pytest.fail)
    assert caplog.messages == ["no space left"]
