"""TLS of the server's own port, what its log says of clients that come the wrong way, addresses."""

import asyncio
import contextlib
import datetime
import socket
import ssl

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509

from engine.commands.serve import describe_addresses
from engine.config import ServerConfig
from engine.dialogue.service import Service
from engine.errors import ConfigError
from engine.runtime.embedded import EmbeddedBackend
from engine.wire import limits, tls
from engine.wire.client import Client
from engine.wire.protocol import Kind
from engine.wire.server import add_routes, listening
from tests.browser.serving import warm
from tests.wire.peer import eventually
from tests.wire.raw import raw, request


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A person without settings; what minutes ago was logged is forgotten."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(tls, "LOG", tls.MinuteLog())
    return tmp_path / "personaplex"


@pytest.fixture(scope="module")
def engine():
    engine = warm(Service(lambda _progress: EmbeddedBackend(2)))
    yield engine
    engine.stop()


@contextlib.asynccontextmanager
async def served(engine, host="127.0.0.1", **settings):
    config = ServerConfig(host=host, port=0, **settings)
    app = web.Application()
    add_routes(app, engine, config)
    async with listening(app, host, 0, tls.make_context(config)) as port:
        yield port


async def test_a_server_with_a_certificate_of_its_own_talks_over_tls(engine, home):
    async with served(engine, tls="self") as port:
        async with Client(f"https://localhost:{port}") as client:  # it trusts what was made here
            await client.say("Hello.")
            async for message in client.messages():
                if message.kind is Kind.TEXT:
                    break
        assert message.text == " Hello."


async def test_a_stranger_does_not_trust_it_and_the_log_says_so(engine, home, caplog):
    def connect(port: int) -> None:  # asyncio's TLS would not say why it leaves
        with socket.create_connection(("127.0.0.1", port)) as line:
            ssl.create_default_context().wrap_socket(line, server_hostname="localhost")

    async with served(engine, tls="self") as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.to_thread(connect, port)
        await eventually(lambda: tls.DISTRUST in caplog.text)


async def test_who_is_silent_before_the_handshake_is_counted_until_he_leaves(engine, home):
    async with served(engine, tls="self", max_sockets_per_address=3) as port:
        url = f"http://127.0.0.1:{port}"
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(raw(url))
            async with raw(url) as fourth:
                assert await is_closed_in_time(fourth)
            with pytest.raises(ConnectionError):
                await ask(port)
        assert await ask(port, attempts=100) == 200


async def test_who_does_not_end_the_handshake_is_closed_and_counted_no_more(
    engine, home, monkeypatch
):
    monkeypatch.setattr(tls, "REQUEST_SECONDS", 0.1)
    one = {"tls": "self", "max_sockets_per_address": 1}
    async with served(engine, **one) as port, raw(f"http://127.0.0.1:{port}") as silent:
        assert await is_closed_in_time(silent)
        assert await ask(port, attempts=100) == 200


async def test_an_idle_connection_makes_room_with_tls_too(engine, home):
    async with (
        served(engine, tls="self", max_sockets_per_address=2) as port,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(4):  # each keeps its connection
            connector = aiohttp.TCPConnector(ssl=False)
            http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            async with http.get(f"https://127.0.0.1:{port}/healthz") as answer:
                assert answer.status == 200


async def is_closed_in_time(line):
    """Whether it ends before a handshake has to."""
    async with asyncio.timeout(limits.REQUEST_SECONDS / 2):
        return await line.is_closed()


async def ask(port, attempts=1):
    """The status of /healthz, from a client that trusts everybody; it may try several times."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as http:
        while True:
            attempts -= 1
            try:
                async with http.get(f"https://127.0.0.1:{port}/healthz") as answer:
                    return answer.status
            except aiohttp.ClientConnectionError as error:
                if not attempts:
                    raise ConnectionError from error
                await asyncio.sleep(0.05)


async def test_plain_bytes_on_the_port_of_tls_are_in_the_log(engine, home, caplog):
    async with served(engine, tls="self") as port:
        for data in (request("/api"), b"\0\1\2 zanzibarine\r\n\r\n"):
            async with raw(f"http://127.0.0.1:{port}") as line:
                await line.send(data)
                assert await line.is_closed()
    assert caplog.text.count(tls.PLAIN) == 1
    assert "zanzibarine" not in caplog.text


async def test_tls_on_the_plain_port_is_in_the_log(engine, home, caplog):
    async with served(engine) as port, aiohttp.ClientSession() as http:
        for _ in range(2):
            with pytest.raises(aiohttp.ClientConnectorError):
                await http.get(f"https://127.0.0.1:{port}/healthz")
        async with http.get(f"http://127.0.0.1:{port}/healthz") as answer:
            assert answer.status == 200
    assert caplog.text.count("TLS came to a port without it") == 1
    assert "Error handling request" not in caplog.text


async def test_two_colons_answer_on_both_families(engine, home):
    async with served(engine, host="::") as port, aiohttp.ClientSession() as http:
        for host in ("127.0.0.1", "[::1]"):
            async with http.get(f"http://{host}:{port}/healthz") as answer:
                assert answer.status == 200


# -- certificates ----------------------------------------------------------------------------------


def test_a_certificate_of_our_own_is_kept_and_is_its_owners_only(home):
    assert tls.make_context(ServerConfig(tls="self"))
    path = home / "tls.pem"
    made = path.read_bytes()
    assert path.stat().st_mode & 0o77 == 0
    assert tls.make_context(ServerConfig(tls="self"))
    assert path.read_bytes() == made
    assert [one.name for one in home.iterdir()] == ["tls.pem"]


def test_it_names_this_machine_as_browsers_call_it(home):
    tls.make_context(ServerConfig(tls="self"))
    made = x509.load_pem_x509_certificate((home / "tls.pem").read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "localhost" in names.get_values_for_type(x509.DNSName)
    addresses = {str(one) for one in names.get_values_for_type(x509.IPAddress)}
    assert {"127.0.0.1", "::1", *tls.list_addresses()} <= addresses


@pytest.mark.parametrize("days", [-1, 10])
def test_a_certificate_that_ends_soon_is_made_anew(home, monkeypatch, days):
    monkeypatch.setattr(tls, "VALID_DAYS", days)
    tls.make_context(ServerConfig(tls="self"))
    made = (home / "tls.pem").read_bytes()
    monkeypatch.setattr(tls, "VALID_DAYS", 800)
    tls.make_context(ServerConfig(tls="self"))
    assert (home / "tls.pem").read_bytes() != made
    new = x509.load_pem_x509_certificate((home / "tls.pem").read_bytes())
    assert new.not_valid_after_utc > datetime.datetime.now(datetime.UTC)


def test_a_folder_that_cannot_be_written_is_one_clear_line(home):
    home.write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match=r"tls\.pem cannot be written \(.*XDG_CONFIG_HOME"):
        tls.make_context(ServerConfig(tls="self"))


def test_a_given_certificate_is_used(home, tmp_path):
    tls.write_certificate(tmp_path / "mine.pem")
    mine = str(tmp_path / "mine.pem")
    context = tls.make_context(ServerConfig(tls_cert=mine, tls_key=mine))
    assert isinstance(context, ssl.SSLContext)
    assert not home.exists()


def test_without_tls_nothing_is_made_and_cryptography_is_not_needed(home, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cryptography", None)
    assert tls.make_context(ServerConfig()) is None
    assert not home.exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"tls": "yes"}, "tls is 'yes'; use self, or --tls-cert and --tls-key"),
        ({"tls_cert": "a.pem"}, "--tls-cert and --tls-key go together"),
        ({"tls_key": "a.pem"}, "--tls-cert and --tls-key go together"),
        ({"tls": "self", "tls_cert": "a", "tls_key": "b"}, "without --tls self"),
        ({"tls_cert": "/none.pem", "tls_key": "/none.pem"}, "--tls-cert /none.pem is no file"),
    ],
)
def test_settings_of_tls_that_do_not_fit_are_one_clear_line(settings, told):
    with pytest.raises(ConfigError) as error:
        tls.make_context(ServerConfig(**settings))
    assert told in str(error.value)


def test_a_file_that_is_no_certificate_is_one_clear_line(home, tmp_path):
    tls.write_certificate(tmp_path / "a.pem")
    tls.write_certificate(tmp_path / "b.pem")
    (tmp_path / "c.pem").write_text("no certificate")
    for cert, key in (("a", "b"), ("c", "a"), ("a", "c")):
        files = {"tls_cert": str(tmp_path / f"{cert}.pem"), "tls_key": str(tmp_path / f"{key}.pem")}
        with pytest.raises(ConfigError, match="are no certificate and its key"):
            tls.make_context(ServerConfig(**files))


# -- addresses that can be opened ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "secure", "first"),
    [
        ("0.0.0.0", False, "listening on http://localhost:8998"),
        ("::", True, "listening on https://localhost:8998"),
        ("127.0.0.1", False, "listening on http://localhost:8998"),
        ("::1", False, "listening on http://[::1]:8998"),
        ("192.168.1.5", True, "listening on https://192.168.1.5:8998"),
    ],
)
def test_the_start_prints_addresses_that_can_be_opened(monkeypatch, host, secure, first):
    monkeypatch.setattr(
        "engine.commands.serve.list_addresses",
        lambda families: [a for f, a in LAN if f in families],
    )
    config = ServerConfig(host=host, tls="self" if secure else "")
    lines = describe_addresses(config, 8998)
    assert lines[0] == first
    scheme = "https" if secure else "http"
    others = [line.split()[3] for line in lines[1:]]
    assert others == {
        "0.0.0.0": [f"{scheme}://192.168.1.5:8998"],
        "::": [f"{scheme}://192.168.1.5:8998", f"{scheme}://[fd00::5]:8998"],
    }.get(host, [])
    assert all(("--tls self" in line) != secure for line in lines[1:])


LAN = [(socket.AF_INET, "192.168.1.5"), (socket.AF_INET6, "fd00::5")]


async def test_the_addresses_of_this_machine_are_its_own(engine, home):
    async with served(engine, host="0.0.0.0") as port:
        for address in tls.list_addresses((socket.AF_INET,)):
            _reader, writer = await asyncio.open_connection(address, port)
            writer.close()
