"""`check` and `download`: what they say, and how they end."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from demo.cloud import preflight
from engine.config import ServerConfig
from engine.errors import ModelError
from engine.weights import hub, loading
from tests.modal.hub import RefusingHub

CONFIG = ServerConfig(model=hub.DEFAULT_REPOSITORY)


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """No key, no token, no weights of this machine."""
    for name in ("HF_TOKEN", "DEEPSEEK_API_KEY", "PERSONAPLEX_MODEL", "PERSONAPLEX_GPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def test_everything_in_order_ends_in_the_next_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PERSONAPLEX_MODEL", "embedded")
    preflight.check(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "ok       model embedded: needs no Hugging Face token",
        "ok       smart routing is off: there is no DEEPSEEK_API_KEY (this is fine)",
        f"ok       the volume at {tmp_path} is writable",
        "ready: modal deploy modal_app.py",
    ]
    assert not list(tmp_path.glob(".check-*"))


def test_every_problem_is_a_line_and_the_end_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(preflight, "check_licence", lambda _: (False, "not granted"))
    with pytest.raises(SystemExit, match="3 problems"):
        preflight.check(tmp_path / "missing")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "PROBLEM  HF_TOKEN is missing from the secret huggingface-secret"
    assert lines[1] == "PROBLEM  not granted"
    assert lines[4].endswith("modal run modal_app.py::download")


@pytest.mark.parametrize("token", ["", "sk-123", " hf_123", '"hf_123"'])
def test_a_token_that_is_none_is_found_out(monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    assert not preflight.check_token(CONFIG)[0]


def test_a_licence_that_is_not_granted_is_said_with_the_page():
    code = (
        "from demo.cloud import preflight; from engine.config import ServerConfig\n"
        "print(preflight.check_licence(ServerConfig(model='nvidia/personaplex-7b-v1')))"
    )
    with RefusingHub("gated") as stand_in:  # the hub's address is read when its client is imported
        environ = {"HF_ENDPOINT": stand_in.url, "HF_TOKEN": "hf_test", "PATH": "/usr/bin"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True
        )
    assert done.stdout.startswith("(False,"), done.stderr
    assert "accept the licence at https://huggingface.co/nvidia/personaplex-7b-v1" in done.stdout


@pytest.fixture(scope="module")
def deepseek():
    """A stand-in for the balance endpoint; the key says what it answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/user/balance"
            key = self.headers["Authorization"].removeprefix("Bearer ")
            self.send_response(401 if key == "wrong" else 200)
            self.end_headers()
            self.wfile.write(json.dumps({"is_available": key == "paid"}).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("key", "fine", "words"),
    [
        ("paid", True, "the DeepSeek key works"),
        ("poor", False, "no balance"),
        ("wrong", False, "refuses the key (401)"),
        ("", True, "smart routing is off"),
    ],
)
def test_the_deepseek_key_is_tried_without_spending(deepseek, key, fine, words):
    finding = preflight.check_deepseek(key, deepseek)
    assert finding[0] is fine
    assert words in finding[1]
    assert not key or key not in finding[1].replace("key", "")


def test_download_says_when_there_is_nothing_to_do(monkeypatch, capsys):
    monkeypatch.setenv("PERSONAPLEX_MODEL", "embedded")
    preflight.download(pytest.fail)
    assert capsys.readouterr().out == "model embedded needs no download\n"


def test_download_prints_progress_and_commits(monkeypatch, capsys):
    def fetch(_repository, _revision, progress):
        for percent in range(101):
            progress("downloading model.safetensors", float(percent))

    committed: list[bool] = []
    recognisers: list[str] = []
    monkeypatch.delenv("PERSONAPLEX_TRANSCRIBE")  # tests set it
    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(
        loading, "download_recogniser", lambda name, _: recognisers.append(name) or Path("here")
    )
    preflight.download(lambda: committed.append(True))
    lines = capsys.readouterr().out.splitlines()
    assert committed == [True]
    assert recognisers == ["1"]  # so that PERSONAPLEX_TRANSCRIBE=1 finds it there
    assert lines[0] == "downloading model.safetensors: 0 %"
    assert len(lines) == 3  # not a hundred
    assert lines[-1].startswith("nvidia/personaplex-7b-v1 is on the volume, ")


def test_a_download_that_fails_is_one_line(monkeypatch):
    def fail(*_: object) -> None:
        raise ModelError("the disk is full")

    monkeypatch.setattr(hub, "fetch", fail)
    with pytest.raises(SystemExit, match=r"^error: the disk is full$"):
        preflight.download(pytest.fail)
