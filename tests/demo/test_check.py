"""`python -m engine check` against the whole application with the embedded backend."""

import pytest

from demo.app import build_app
from engine.cli import main
from engine.config import ServerConfig
from engine.dialogue.service import Service
from engine.runtime.embedded import EmbeddedBackend
from tests.browser.serving import Served, warm

TOKEN = "s3cret"


@pytest.fixture(scope="module")
def server():
    service = warm(Service(lambda _progress: EmbeddedBackend(2)))
    with Served(lambda: build_app(service, ServerConfig(token=TOKEN))) as served:
        yield served
    service.stop()


def test_a_server_that_works_passes_every_check(server, capsys):
    assert main(["check", server.url, "--token", TOKEN]) == 0
    said = capsys.readouterr().out
    assert said.count("pass  ") == 8
    assert "first_word_s" in said


def test_what_does_not_pass_is_named_and_the_exit_code_says_so(server, capsys):
    assert main(["check", server.url]) == 1
    said = capsys.readouterr().out
    assert "pass  /healthz answers 200" in said
    assert "FAIL  a ping comes back: unauthorized: " in said


@pytest.mark.parametrize("wait", ["-1", "nan", "inf", "soon"])
def test_a_wait_that_is_no_time_is_refused(wait, capsys):
    with pytest.raises(SystemExit) as refused:
        main(["check", "http://127.0.0.1:1", f"--wait={wait}"])
    assert refused.value.code == 2
    assert "argument --wait" in capsys.readouterr().err
