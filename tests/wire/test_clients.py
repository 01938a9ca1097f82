"""Other people's clients: the public web client, the Moshi Python client, wscat, our terminal."""

import asyncio
import io
import logging
import shutil
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
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


# -- the rules of public clients -------------------------------------------------------------------

DEAF_SECONDS = 1.0  # in which NVIDIA's web client, and its forks, throw away what they get


async def hear(server, path, text, **query):
    """(what a client hears that drops audio for a second after its connect, when 0x00 came)."""
    pcm, words, ready_at = [], "", None
    async with connected(server.url, path, format="pcm16", **query) as peer:
        opened = time.monotonic()
        await peer.say(text)
        while not words.endswith(text.split()[-1]) or len(pcm) < 8:
            kind, payload = await peer.next()
            seconds = time.monotonic() - opened
            ready_at = seconds if kind is Kind.HANDSHAKE else ready_at
            words += payload.decode() if kind is Kind.TEXT else ""
            if kind is Kind.AUDIO and seconds >= DEAF_SECONDS:
                pcm.append(np.frombuffer(payload, "<i2") / 32768)
        for _ in range(10):  # the rest of its last word
            pcm.append(np.frombuffer(await peer.until(Kind.AUDIO), "<i2") / 32768)
    return np.concatenate(pcm), ready_at


async def test_a_client_that_is_deaf_for_its_first_second_hears_hello(server):
    pcm, ready_at = await hear(server, "/api/chat", "hello friend", voice_prompt="NATM0")
    assert ready_at >= 1.2
    assert_says(pcm.astype(np.float32), ["hello"], voice="NATM0", at_least=0.8)


@pytest.mark.parametrize(
    ("path", "query"), [("/api", {}), ("/api/chat", {"warm": 0}), ("/api/chat", {"events": 1})]
)
async def test_all_others_are_greeted_at_once(server, monkeypatch, path, query):
    monkeypatch.setattr("engine.wire.server.WARM_SECONDS", 3600.0)
    async with connected(server.url, path, **query) as peer:
        assert await peer.until(Kind.HANDSHAKE) == b""


async def test_a_reader_that_looks_once_a_message_gets_every_page(server):
    """sphn 0.1 hands out one page for each message that it is given: two in one lose the second."""
    async with connected(server.url) as peer:
        await peer.say("Seven yellow umbrellas.")
        await peer.until(Kind.TEXT)
        for _ in range(20):
            await peer.until(Kind.AUDIO)
    messages = peer.of(Kind.AUDIO)
    assert [message[:4] for message in messages] == [b"OggS"] * len(messages)
    assert {message.count(b"OggS") for message in messages} == {1}


async def test_ogg_without_its_kind_byte_is_explained(server):
    async with connected(server.url) as peer:
        await peer.until(Kind.HANDSHAKE)
        await peer.ws.send_bytes(
            sphn.OpusStreamWriter(24_000).append_pcm(np.zeros(1920, np.float32))
        )
        text, code = await peer.end()
    assert text == "bad audio: this is Ogg without its kind; put the byte 0x01 before each message"
    assert code == 1003


async def test_other_messages_of_unknown_kinds_are_ignored_as_ever(server):
    async with connected(server.url) as peer:
        for message in (b"", b"\x08", b"hello", b"\xff\xfb\x90", bytes(100)):
            await peer.ws.send_bytes(message)
        assert await peer.is_alive()
    assert not peer.errors


async def test_a_byte_too_many_between_pages_is_counted_and_the_user_is_heard(serve, heard):
    server, spoken = serve(slots=1), speech("good morning")
    async with connected(server.url) as peer:
        await peer.until(Kind.HANDSHAKE)
        for one in pages(sphn.OpusStreamWriter(24_000).append_pcm(spoken)):
            await peer.send(Kind.AUDIO, b"\1" + one)  # its kind byte, twice
        assert await peer.is_alive()
    assert best_match(np.concatenate(heard), spoken[:-4800])[0] > 0.8
    assert "personaplex_ignored_messages_total 0.0" not in server.engine.metrics.text().decode()


@pytest.mark.parametrize("url", ["{}/api/chat?token={}&x=", "{}?token={}&x="])
async def test_a_client_without_a_field_for_the_token_gives_it_in_its_address(serve, url):
    """Moshi's Python client puts /api/chat behind whatever --url is."""
    guarded = serve(slots=1, token="open sesame")
    whole = url.format(guarded.url, "open%20sesame") + "/api/chat"
    if "/api/chat?" not in whole:
        whole = whole.replace("?", "/api?")
    async with aiohttp.ClientSession() as http, http.ws_connect(whole) as ws:
        assert await ws.receive_bytes(timeout=20) == b"\0"


# -- refusals in the log ---------------------------------------------------------------------------


async def test_the_log_says_why_a_client_is_refused_once_a_minute(serve, caplog):
    caplog.set_level(logging.INFO)
    server = serve(slots=1)
    for _ in range(5):  # a client that shows nothing of the reason tries again and again
        async with connected(server.url, text_topk="zanzibarine") as peer:
            await peer.end()
    browser = {"User-Agent": "Mozilla/5.0 zanzibarine"}
    async with connected(server.url, headers=browser, voice_prompt="Zebulon") as peer:
        await peer.end()
    lines = [r.getMessage() for r in caplog.records if "conversation ended" in r.getMessage()]
    assert [line.partition(" (1 times")[0] for line in lines] == [
        "conversation ended: bad parameter (text_topk: not a whole number), of a Python client",
        "conversation ended: bad parameter (voice_prompt: unknown), of a browser",
    ]
    assert "zanzibarine" not in caplog.text


async def test_the_log_says_which_kind_of_audio_came(serve, caplog):
    caplog.set_level(logging.INFO)
    async with connected(serve(slots=1).url) as peer:
        await peer.send(Kind.AUDIO, b"\x1a\x45\xdf\xa3" + bytes(100))
        await peer.end()
    assert "bad audio (WebM, as MediaRecorder makes it), of a Python client" in caplog.text


# -- Node's ws -------------------------------------------------------------------------------------

NODE = """
const {{ WebSocket }} = require({module!r});
const ws = new WebSocket({url!r}, ["first.of.mine", "second"]);
ws.on("open", () => console.log("open", ws.protocol));
ws.on("message", () => ws.close(4001, "enough"));
ws.on("close", code => console.log("close", code));
ws.on("error", error => console.log("error", error.message));
"""


async def test_node_ws_with_sub_protocols_connects_and_hears_its_own_close_code(server, wscat):
    module = str(CACHE / "wscat" / "node_modules" / "ws")
    code = NODE.format(module=module, url=server.url.replace("http", "ws") + "/api")
    process = await asyncio.create_subprocess_exec(
        "node", "-e", code, stdout=asyncio.subprocess.PIPE
    )
    out, _err = await asyncio.wait_for(process.communicate(), 60)
    assert out.decode().split("\n")[:2] == ["open first.of.mine", "close 4001"]


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


async def test_an_answer_that_is_no_socket_is_told_without_the_address_and_its_secrets(
    server, talk
):
    for url in (f"{server.url}/nowhere?token=secret", f"{server.url}/nowhere?resume=secret"):
        code, _out, err = await talk("--say", "hi", url=url)
        assert code == 1
        assert "/nowhere/api: HTTP 404" in err
        assert "secret" not in err


async def test_talk_tells_what_the_server_refused(talk):
    code, _out, err = await talk("--voice", "Bob", "--say", "hi")
    assert code == 1
    assert "bad parameter: voice_prompt is 'Bob'" in err
