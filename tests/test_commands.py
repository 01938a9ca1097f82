"""Commands and what is given to them: files, voices, addresses."""

import asyncio
import io
import signal
import struct
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import soundfile
from huggingface_hub import errors

from engine.cli import main
from engine.commands import check as checking
from engine.commands import offline, trace
from engine.commands.serve import build_service, tell
from engine.config import ServerConfig
from engine.dialogue.service import Service
from engine.errors import ConfigError
from engine.lookup.routing import build_answers
from engine.wire.client import api_url, base_url

TINY = Path(__file__).parent / "golden" / "tiny"


def test_voices_lists_a_checkpoints_voices_default_first(capsys):
    assert main(["voices", "--model", str(TINY)]) == 0
    assert capsys.readouterr().out.split() == ["TINYF0", "TINYM0"]


def test_voices_of_the_embedded_backend_are_the_public_names(capsys):
    assert main(["voices", "--model", "embedded"]) == 0
    names = capsys.readouterr().out.split()
    assert (names[0], len(names)) == ("NATF2", 18)


def test_download_says_where_the_files_are(monkeypatch, capsys):
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo, name, **options: str(TINY / name)
    )
    assert main(["download", "--revision", "abc"]) == 0
    assert f"is in {TINY}, with 2 voices" in capsys.readouterr().out


def test_download_fetches_a_recogniser_where_it_is_asked_for(monkeypatch, capsys):
    fetched, folders = [], {"kyutai/stt-1b-en_fr-candle": TINY.parent / "stt_tiny"}

    def fetch(repo: str, name: str, **options) -> str:
        fetched.append((repo, name))
        return str(folders.get(repo, TINY) / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert main(["download", "--transcribe", "1"]) == 0
    names = [name for repo, name in fetched if repo in folders]
    assert names == ["config.json", "tokenizer_en_fr_audio_8000.model", "model.safetensors"]
    assert f"the recogniser is in {TINY.parent / 'stt_tiny'}" in capsys.readouterr().out


def test_download_that_fails_exits_1_with_one_line(monkeypatch, capsys):
    def offline(*args, **kwargs):
        raise errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    assert main(["download"]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: huggingface.co cannot be reached")
    assert "\n" not in said


# -- what is written -------------------------------------------------------------------------------


def refused(capsys, *command: str) -> str:
    """The one line that a command ends with."""
    assert main(list(command)) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert "\n" not in said
    return said


def offline_command(wav: Path, *more: str) -> list[str]:
    return ["offline", "--model", "embedded", "--input", str(wav), *more]


@pytest.fixture
def never(monkeypatch):
    """No conversation is begun: what is wrong is found before."""
    monkeypatch.setattr(offline, "load_model", lambda *_: pytest.fail("it was begun"))
    monkeypatch.setattr("engine.commands.talk.talk", lambda *_: pytest.fail("it was begun"))
    monkeypatch.setattr(trace, "load_model", lambda *_: pytest.fail("it was begun"))


@pytest.fixture
def wav(tmp_path) -> Path:
    path = tmp_path / "in.wav"
    soundfile.write(path, np.zeros(2400), 24_000)
    return path


OUTPUTS = {
    "talk": [("--output", "out.wav"), ("--transcript", "out.txt")],
    "offline": [("--output", "out.wav"), ("--output-text", "out.json")],
    "trace": [("--out", "out.safetensors")],
}


@pytest.mark.parametrize(
    ("command", "option"),
    [(command, name) for command, all_ in OUTPUTS.items() for name, _ in all_],
)
def test_an_output_that_cannot_be_written_is_found_before_the_run(
    never, capsys, tmp_path, wav, command, option
):
    (tmp_path / "file").touch()
    good = tmp_path / "good"
    words = ["talk", "http://127.0.0.1:9"] if command == "talk" else [command]
    for name, file in OUTPUTS[command]:
        words += [name, str((tmp_path / "file" if name == option else good) / file)]
    said = refused(capsys, *words, "--input", str(wav))
    assert said.startswith(f"error: {option} {tmp_path / 'file'}")
    assert said.endswith("cannot be written (Not a directory); give another") or "exists" in said
    assert not list(good.glob("*"))  # the look leaves nothing behind


@pytest.mark.parametrize(
    ("command", "option", "file"),
    [
        ("talk", "--output", "out.mp4"),
        ("talk", "--output", "out"),
        ("offline", "--output", "out.txt"),
        ("offline", "--output-text", "out.wav"),
        ("trace", "--out", "out.pt"),
    ],
)
def test_a_wrong_ending_is_named_at_once(never, capsys, tmp_path, wav, command, option, file):
    words = ["talk", "http://127.0.0.1:9"] if command == "talk" else [command]
    for name, good in OUTPUTS[command]:
        words += [name, str(tmp_path / (file if name == option else good))]
    said = refused(capsys, *words, "--input", str(wav))
    assert said.startswith(f"error: {option} {tmp_path / file} has another ending than .")


def restore_interrupt() -> None:
    """As in a terminal: what a script starts with `&` inherits that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


async def test_a_talk_that_is_broken_off_keeps_what_was_said(server, tmp_path, wav):
    out, text = tmp_path / "out.wav", tmp_path / "out.txt"
    soundfile.write(wav, np.zeros(24_000 * 60), 24_000)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "engine", "talk", server.url, "--say", "seven umbrellas"),
        *("--input", str(wav), "--output", str(out), "--transcript", str(text)),
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=restore_interrupt,
    )
    async with asyncio.timeout(60):
        heard = b""
        while b"umbrellas" not in heard:
            part = await process.stdout.read(100)
            assert part, heard  # else it has ended
            heard += part
        process.send_signal(signal.SIGINT)
        await process.wait()
    assert text.read_text() == "seven umbrellas\n"
    assert len(soundfile.read(out)[0]) > 12_000


# -- what is read ----------------------------------------------------------------------------------


def header(data_size: int, samples: int = 0) -> bytes:
    """A wav of 24 kHz mono PCM16 that says this size and has so many samples."""
    form = struct.pack("<HHIIHH", 1, 1, 24_000, 48_000, 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", data_size)
    return b"RIFF" + struct.pack("<I", 36) + body + b"\1\0" * samples


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (header(0), "holds no samples (it is empty); use a recording"),
        (header(0, 2400), "says that it holds none, as one that was written into a pipe"),
        (b"", "cannot be read as audio"),
        (header(0)[:30], "cannot be read as audio"),
        (b"\x1a\x45\xdf\xa3" + bytes(100), "cannot be read as audio (Format not recognised)"),
    ],
)
def test_a_file_without_sound_is_one_clear_line(never, capsys, tmp_path, data, told):
    path = tmp_path / "bad.wav"
    path.write_bytes(data)
    out = ["--output", str(tmp_path / "o.wav"), "--output-text", str(tmp_path / "o.json")]
    said = refused(capsys, *offline_command(path, *out))
    assert said.startswith(f"error: {path} ")
    assert told in said


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 96_000])
def test_a_wav_that_says_another_size_than_it_has_is_read_as_far_as_it_goes(tmp_path, size):
    """Programs that write into a pipe do not know the size; cut files have less than they say."""
    path = tmp_path / "odd.wav"
    path.write_bytes(header(size, samples=24_000))
    assert len(offline.read_wav(path)) == 24_000


# -- voices by name --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TINYM0.wav", "tinym0", "voices/TinyM0.WAV"])
def test_offline_finds_the_voice_that_is_meant(name):
    assert offline.resolve_voice(name, ("TINYF0", "TINYM0")) == "TINYM0"


@pytest.mark.parametrize("model", ["embedded", str(TINY)])
@pytest.mark.parametrize("command", ["offline", "trace"])
def test_a_wrong_voice_is_refused_before_the_model_is_loaded(
    never, capsys, tmp_path, wav, model, command
):
    words = [command, "--model", model, "--input", str(wav), "--voice", "NATM9"]
    for name, file in OUTPUTS[command]:
        words += [name, str(tmp_path / file)]
    said = refused(capsys, *words)
    assert said.startswith("error: voice 'NATM9' not found; use one of ")


@pytest.mark.parametrize("model", ["embedded", str(TINY)])
def test_a_server_with_a_wrong_voice_does_not_start(model):
    died = []
    config = ServerConfig(model=model, device="cpu", slots=1, voice="NATM9")
    with pytest.raises(ConfigError, match=r"--voice 'NATM9' not found; use one of "):
        start(build_service(config, died.append))
    assert (len(died) == 1) == (model != "embedded")  # that one is refused before the port opens


def test_a_servers_voice_may_be_written_as_the_file_is():
    service = build_service(ServerConfig(model="embedded", slots=1, voice="natm1.pt"))
    start(service)
    assert service.default_voice == "NATM1"
    service.stop()


def start(service: Service) -> None:
    service.start()
    service.wait(60)


def test_voices_says_which_files_it_leaves_out(tmp_path, capsys, caplog):
    (tmp_path / "voices").mkdir()
    soundfile.write(tmp_path / "voices" / "silent.wav", np.zeros(24_000), 24_000)
    soundfile.write(tmp_path / "voices" / "good.wav", np.tile([0.3, -0.3], 12_000), 24_000)
    assert main(["voices", "--model", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == ["good"]
    assert "silent.wav: a voice without any sound" in caplog.text


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "socket", "page"),
    [
        ("localhost:8998", "ws://localhost:8998/api", "http://localhost:8998"),
        ("http://h", "ws://h/api", "http://h"),
        ("https://h/", "wss://h/api", "https://h"),
        ("wss://h/api", "wss://h/api", "https://h"),
        ("wss://h/api/", "wss://h/api", "https://h"),
        ("wss://h/api/chat", "wss://h/api/chat", "https://h"),
        ("https://h/voice", "wss://h/voice/api", "https://h/voice"),
        ("https://h/voice/api", "wss://h/voice/api", "https://h/voice"),
        ("https://h/apis/v1/", "wss://h/apis/v1/api", "https://h/apis/v1"),
        ("https://h/api-gw/x/api/chat", "wss://h/api-gw/x/api/chat", "https://h/api-gw/x"),
        ("http://h/v?token=a", "ws://h/v/api?token=a", "http://h/v"),
    ],
)
def test_a_path_in_an_address_is_kept(given, socket, page):
    assert api_url(given) == socket
    assert base_url(given) == page


# -- check -----------------------------------------------------------------------------------------


async def check_lines(capsys, url: str, *options: str) -> tuple[int, str]:
    code = await asyncio.to_thread(main, ["check", url, *options])
    return code, capsys.readouterr().out


async def test_check_passes_a_server_without_a_page_under_a_path_too(serve, capsys):
    without = serve(slots=2, root_path="/voice")
    code, told = await check_lines(capsys, f"{without.url}/voice")
    assert code == 0, told
    assert "8 passed, 0 failed" in told
    assert "no page here, as with engine serve" in told


@pytest.mark.parametrize(
    ("state", "reason", "passes"),
    [
        ("done", None, True),
        ("failed", "no key", True),
        ("failed", "key refused (401)", False),
        ("failed", "no connection", False),
        ("stale", "interrupted", False),
    ],
)
async def test_check_fails_where_a_question_could_not_be_answered(
    serve, monkeypatch, state, reason, passes
):
    server = serve(slots=1, answers=build_answers(ServerConfig(), {}))
    read = checking._read_until

    async def read_until(client, over):
        seen = await read(client, over)
        if seen[-1].data.get("type") == "route":
            seen[-1].data |= {"state": state, "reason": reason}
        return seen

    monkeypatch.setattr(checking, "_read_until", read_until)
    check = checking.ServerCheck(server.url, None, None)
    if passes:
        await check._ask()
    else:
        with pytest.raises(checking.CheckError, match=f"the route {state}: "):
            await check._ask()


def test_a_line_for_the_operator_is_written_in_one_go():
    """Threads write at once, and an unbuffered stream takes text and line end apart."""

    class Stream(io.StringIO):
        def write(self, text):
            written.append(text)
            return len(text)

    written = []
    tell("listening", Stream())
    assert written == ["listening\n"]
