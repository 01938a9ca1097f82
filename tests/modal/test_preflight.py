"""`check` and `download`: what they say, and how they end."""

import json
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from demo.cloud import preflight, volume
from engine.config import ServerConfig
from engine.errors import ModelError
from engine.weights import hub, loading
from tests.modal.hub import FakeHub

CONFIG = ServerConfig(model=hub.DEFAULT_REPOSITORY)


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """No key, no token, no weights of this machine."""
    for name in ("HF_TOKEN", "DEEPSEEK_API_KEY", "PERSONAPLEX_MODEL", "PERSONAPLEX_GPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(volume, "SETTLE_SECONDS", 0.0)


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


@pytest.mark.parametrize("token", ["", "sk-123", "hf"])
def test_a_token_that_is_none_is_found_out(monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    assert not preflight.check_token(CONFIG)[0]


def test_a_licence_that_is_not_granted_is_said_with_the_page():
    code = (
        "from demo.cloud import preflight; from engine.config import ServerConfig\n"
        "print(preflight.check_licence(ServerConfig(model='nvidia/personaplex-7b-v1')))"
    )
    with FakeHub("gated") as stand_in:  # the hub's address is read when its client is imported
        environ = {"HF_ENDPOINT": stand_in.url, "HF_TOKEN": "hf_test", "PATH": "/usr/bin"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True
        )
    assert done.stdout.startswith("(False,"), done.stderr
    assert "accept the licence at https://huggingface.co/nvidia/personaplex-7b-v1" in done.stdout


@pytest.fixture(scope="module")
def deepseek():
    """A stand-in for a text model's address; the key says what it answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            key = self.headers["Authorization"].removeprefix("Bearer ")
            asked.append((self.path, key))
            self.send_response({"wrong": 401, "lost": 404}.get(key, 200))
            self.end_headers()
            self.wfile.write(json.dumps({"is_available": key == "paid"}).encode())

        def log_message(self, *_: object) -> None:
            pass

    asked: list[tuple[str, str]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("key", "fine", "words"),
    [
        ("paid", True, "takes the key, for the model deepseek-flash"),
        ("poor", False, "no balance"),
        ("wrong", False, "refuses the key (401)"),
        ("", True, "smart routing is off"),
    ],
)
def test_the_deepseek_key_is_tried_without_spending(monkeypatch, deepseek, key, fine, words):
    host, asked = deepseek
    asked.clear()
    monkeypatch.setattr(preflight, "DEEPSEEK_HOST", host)
    environ = {"DEEPSEEK_API_KEY": key, "DEEPSEEK_BASE_URL": f"http://{host}"}
    finding = preflight.check_deepseek(environ)
    assert finding[0] is fine
    assert words in finding[1]
    assert not key or key not in finding[1].replace("key", "")
    assert asked == ([("/user/balance", key)] if key else [])
    asked.clear()  # the address that other companies' programs use: the same balance
    finding = preflight.check_deepseek(environ | {"DEEPSEEK_BASE_URL": f"http://{host}/v1"})
    assert finding[0] is fine
    assert asked == ([("/user/balance", key)] if key else [])


def ask_once(answer: bytes) -> preflight.Finding:
    """What is found where the text model's address says these bytes to one request."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        environ = {"DEEPSEEK_API_KEY": "sk-1", "DEEPSEEK_BASE_URL": url}
        finding = preflight.check_deepseek(environ)
        thread.join()
    return finding


def test_the_key_follows_no_redirect(deepseek):
    host, asked = deepseek
    asked.clear()
    where = f"Location: http://{host}/models"
    fine, line = ask_once(f"HTTP/1.1 302 Found\r\n{where}\r\nContent-Length: 0\r\n\r\n".encode())
    assert (fine, asked) == (False, [])
    assert "answers 302" in line


def test_an_address_that_speaks_no_http_is_a_finding():
    fine, line = ask_once(b"220 mail.example ready\r\n")
    assert not fine
    assert "cannot be asked" in line


@pytest.mark.parametrize(
    ("key", "fine", "words"),
    [
        ("any", True, "takes the key, for the model big-one"),
        ("wrong", False, "refuses the key (401)"),
        ("lost", False, "answers 404; see DEEPSEEK_BASE_URL"),
    ],
)
def test_a_key_for_another_company_is_sent_to_that_company_only(deepseek, key, fine, words):
    host, asked = deepseek
    asked.clear()
    environ = {"DEEPSEEK_BASE_URL": f"http://{host}/v1/", "DEEPSEEK_MODEL": "big-one"}
    finding = preflight.check_deepseek(environ | {"DEEPSEEK_API_KEY": key})
    assert finding[0] is fine
    assert words in finding[1]
    assert asked == [("/v1/models", key)]


def test_a_token_with_quotes_or_a_line_end_is_tidied_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", ' "hf_123"\r\n')
    monkeypatch.setattr(preflight, "check_licence", lambda _: (True, "granted"))
    preflight.check(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("warning: HF_TOKEN had blanks, quotes or a line end")
    assert lines[1] == "ok       HF_TOKEN is set, 6 characters"


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
    assert committed == [True, True]  # the turn, then the weights
    assert recognisers == ["1"]  # so that PERSONAPLEX_TRANSCRIBE=1 finds it there
    assert lines[0] == "downloading model.safetensors: 0 %"
    assert len(lines) == 3  # not a hundred
    assert lines[-1].startswith("nvidia/personaplex-7b-v1 is on the volume, ")


def test_a_download_that_fails_is_one_line(monkeypatch):
    def fail(*_: object) -> None:
        raise ModelError("the disk is full")

    monkeypatch.setattr(hub, "fetch", fail)
    with pytest.raises(SystemExit, match=r"^error: the disk is full$"):
        preflight.download(lambda: None)
