"""Other people's clients: the public web client, the Moshi Python client, wscat, our terminal."""

import asyncio
import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import sphn

from engine.cli import main
from engine.dialogue.session import Session
from engine.wire.protocol import Kind, parse_query
from tests.sound import assert_says, best_match, speech
from tests.wire.ogg import packets, page, pages
from tests.wire.peer import connected, eventually

CACHE = Path(__file__).parents[2] / "artifacts"  # ignored by git
PUBLIC_WEB_QUERY = {
    "text_prompt": "You are a wise and friendly teacher.",
    "voice_prompt": "NATM1.pt",
    "text_temperature": "0.7",
    "text_topk": "25",
    "audio_temperature": "0.8",
    "audio_topk": "250",
    "pad_mult": "0",
    "text_seed": "318723",
    "audio_seed": "874619",
    "repetition_penalty_context": "64",
    "repetition_penalty": "1",
}


@pytest.fixture
def heard(monkeypatch):
    """The user samples that reach the conversations."""
    chunks = []
    hear = Session.push_audio

    def listen_in(self, pcm):
        chunks.append(pcm)
        return hear(self, pcm)

    monkeypatch.setattr(Session, "push_audio", listen_in)
    return chunks


def web_client_messages(pcm):
    """What the public web client's recorder sends: 20 ms packets, two to a page, BOS page first."""
    file = io.BytesIO()
    soundfile.write(file, pcm, 24_000, format="OGG", subtype="OPUS")
    head, tags, *audio = packets(file.getvalue())
    messages = [page([head], 2, 0, 0), page([tags], 0, 0, 1)]
    for number, i in enumerate(range(0, len(audio) - 1, 2)):
        messages.append(page(audio[i : i + 2], 0, (number + 1) * 1920, number + 2))
    return messages


async def test_the_byte_sequence_of_the_public_web_client_is_heard_and_answered(server, heard):
    spoken = speech("good morning dear server")
    messages = web_client_messages(spoken)
    assert messages[0][5] == 2
    assert b"OpusHead" in messages[0]
    async with connected(server.url, "/api/chat", **PUBLIC_WEB_QUERY) as peer:
        assert await peer.next() == (Kind.HANDSHAKE, b"")
        for message in messages:
            await peer.send(Kind.AUDIO, message)
        await peer.until(Kind.TEXT)
        await peer.until(Kind.AUDIO)
    assert best_match(np.concatenate(heard), spoken[: -24_000 // 5])[0] > 0.8
    assert not peer.of(Kind.METADATA)
    assert not peer.errors


def test_every_parameter_of_the_public_web_client_is_understood():
    query = parse_query(PUBLIC_WEB_QUERY)
    assert query.session.seed == 318723
    assert query.session.voice == "NATM1.pt"
    assert query.session.sampling.text_top_k == 25
    assert query.format == "opus"
    assert query.events is False


async def test_the_raw_pages_of_the_moshi_python_client_are_heard_and_answered(server, heard):
    spoken = speech("good morning dear server")
    writer = sphn.OpusStreamWriter(24_000)
    async with connected(server.url, "/api/chat") as peer:  # no query at all
        assert await peer.next() == (Kind.HANDSHAKE, b"")
        for i in range(0, len(spoken) - 1919, 1920):
            await peer.send(Kind.AUDIO, writer.append_pcm(spoken[i : i + 1920]))
        await peer.until(Kind.TEXT)
        await peer.until(Kind.AUDIO)
    assert best_match(np.concatenate(heard), spoken[: -24_000 // 5])[0] > 0.8
    assert b"OpusHead" in peer.of(Kind.AUDIO)[0]


async def test_opus_may_be_cut_anywhere(server, heard):
    spoken = speech("good morning")
    stream = sphn.OpusStreamWriter(24_000).append_pcm(spoken)
    async with connected(server.url) as peer:
        await peer.until(Kind.HANDSHAKE)
        for i in range(0, len(stream), 37):
            await peer.send(Kind.AUDIO, stream[i : i + 37])
        assert await peer.is_alive()
    assert best_match(np.concatenate(heard), spoken[:-4800])[0] > 0.8


async def test_the_opus_header_may_come_before_the_handshake(server, heard):
    spoken = speech("good morning")
    first, *rest = pages(sphn.OpusStreamWriter(24_000).append_pcm(spoken))
    async with connected(server.url) as peer:
        await peer.send(Kind.AUDIO, first)
        await peer.until(Kind.HANDSHAKE)
        for one in rest:
            await peer.send(Kind.AUDIO, one)
        await peer.until(Kind.AUDIO)
    assert not peer.errors


# -- wscat -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wscat():
    """The real wscat, from npm, kept in the ignored folder `artifacts`."""
    program = CACHE / "wscat" / "node_modules" / ".bin" / "wscat"
    if not program.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("npm is missing, so wscat is not tried (install Node.js)")
        (CACHE / "wscat").mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--no-save", "--silent", "--prefix", str(CACHE / "wscat")]
        done = subprocess.run([*command, "wscat@6"], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip("npm cannot fetch wscat here, so it is not tried (no network?)")
    return program


async def run_wscat(program, server, *options):
    process = await asyncio.create_subprocess_exec(
        *(str(program), "--no-color", "-c", server.url.replace("http", "ws") + "/api", *options),
        stdin=asyncio.subprocess.PIPE,  # left open: wscat hangs up at its end
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = await asyncio.wait_for(process.stdout.read(), 60)
    process.stdin.close()
    await process.wait()
    return output.decode(errors="replace")


async def test_wscat_sees_a_helpful_sentence(server, wscat):
    output = await run_wscat(wscat, server, "-x", "hello", "-w", "1")
    assert "\x05binary messages only" in output
    await eventually(lambda: server.engine.free == 6)


# -- python -m engine talk -------------------------------------------------------------------------


@pytest.fixture
def talk(server, capsys):
    """`python -m engine talk` inside this process: (exit code, stdout, stderr)."""

    async def run(*options, url=server.url):
        code = await asyncio.to_thread(main, ["talk", url, *options])
        return code, *capsys.readouterr()

    return run


def files(folder):
    names = {"--input": "in.wav", "--output": "out.wav", "--transcript": "out.txt"}
    soundfile.write(folder / "in.wav", np.zeros((4000, 2)), 16_000)
    return [part for option, name in names.items() for part in (option, str(folder / name))]


def assert_said_seven_umbrellas(folder):
    assert (folder / "out.txt").read_text() == "seven umbrellas\n"
    pcm, rate = soundfile.read(folder / "out.wav", dtype="float32")
    assert rate == 24_000
    assert_says(pcm, ["seven", "umbrellas"], voice="NATM0", at_least=0.8)


async def test_the_command_talk_takes_a_wav_and_gives_a_wav_and_a_transcript(server, tmp_path):
    options = ("--say", "seven umbrellas", "--voice", "NATM0", *files(tmp_path))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "engine", "talk", server.url, *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, err) == (0, b"")
    assert b"seven umbrellas" in out
    assert_said_seven_umbrellas(tmp_path)


async def test_talk_speaks_opus_too(talk, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.commands.talk.LINGER_SECONDS", 2.2)
    options = ("--say", "seven umbrellas", "--voice", "NATM0", "--format", "opus")
    code, _out, err = await talk(*options, *files(tmp_path))
    assert (code, err) == (0, "")
    assert_said_seven_umbrellas(tmp_path)


async def test_talk_says_in_one_line_that_its_wav_is_missing(talk, tmp_path):
    code, _out, err = await talk("--input", str(tmp_path / "none.wav"))
    assert code == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "none.wav" in err


async def test_talk_without_wav_and_microphone_says_so(talk, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    code, _out, err = await talk("--say", "hi")
    assert code == 1
    assert err.startswith("error: no --input, and the microphone needs the sounddevice package")


async def test_talk_to_nobody_fails_with_one_line(talk):
    code, _out, err = await talk("--say", "hi", url="http://127.0.0.1:9/?token=secret")
    assert code == 1
    assert err.startswith("error: no conversation at ws://127.0.0.1:9/api")
    assert err.count("\n") == 1
    assert "secret" not in err


async def test_talk_tells_what_the_server_refused(talk):
    code, _out, err = await talk("--voice", "Bob", "--say", "hi")
    assert code == 1
    assert "bad parameter: voice_prompt is 'Bob'" in err
