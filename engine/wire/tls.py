"""TLS of the server's own port: a certificate that is given, or one of our own making.

Browsers give no microphone to pages of http://192.168.…, so a server for the house needs it.
"""

import asyncio
import datetime
import ipaddress
import os
import socket
import ssl
from asyncio.sslproto import SSLProtocol
from pathlib import Path
from typing import Any

from engine.config import ServerConfig
from engine.errors import ConfigError
from engine.wire.limits import REQUEST_SECONDS, Connection, MinuteLog

VALID_DAYS = 800  # Apple's systems accept at most 825
RENEW_DAYS = 30  # before the end
NOWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}  # nothing is sent there
LOG = MinuteLog()
PLAIN = "plain bytes came to the port of TLS: clients use https:// or wss://"
DISTRUST = (
    "a client does not accept this server's certificate: it asks its user, or must be told to"
)


class WatchedTls(ssl.SSLObject):
    """One connection's TLS. asyncio tells nobody why a handshake failed; this does."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLError as error:
            note_fault(error)
            raise

    def read(self, *given: Any) -> Any:
        try:
            return super().read(*given)
        except ssl.SSLError as error:  # in TLS 1.3 a client's distrust comes only here
            note_fault(error)
            raise


class CountedTls(SSLProtocol):
    """One connection's TLS, counted from its first moment: asyncio counts from the handshake's end.

    One too many is closed without an answer, which could only be read after a handshake.
    """

    def __init__(self, connection: Connection, context: ssl.SSLContext) -> None:
        loop, late = asyncio.get_running_loop(), REQUEST_SECONDS
        super().__init__(loop, connection, context, None, True, ssl_handshake_timeout=late)
        self._connection = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._connection.enter(transport):
            super().connection_made(transport)
        else:
            transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._connection.leave()  # it may never have heard of it


def note_fault(error: ssl.SSLError) -> None:
    """Log what a client does wrong that comes without TLS, or does not trust us."""
    reason = error.reason or ""
    if reason in ("HTTP_REQUEST", "WRONG_VERSION_NUMBER"):
        LOG.note(PLAIN)
    elif "ALERT" in reason and ("CERT" in reason or "CA" in reason):
        LOG.note(DISTRUST)


def make_context(config: ServerConfig) -> ssl.SSLContext | None:
    """TLS as the settings want it; None: plain. Raises ConfigError."""
    if not (config.tls or config.tls_cert):
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = WatchedTls
    if config.tls:
        path = own_certificate()
        if not is_fresh(path):
            write_certificate(path)
        context.load_cert_chain(path)
        return context
    for name in ("tls_cert", "tls_key"):
        if not Path(getattr(config, name)).expanduser().is_file():
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} {getattr(config, name)} is no file; use a file in PEM")
    cert, key = (Path(path).expanduser() for path in (config.tls_cert, config.tls_key))
    try:
        context.load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ValueError) as error:  # ssl's own is an OSError
        why = getattr(error, "reason", None) or error
        raise ConfigError(
            f"{cert} and {key} are no certificate and its key without a password ({why}); "
            "use PEM files that belong together"
        ) from None
    return context


def own_certificate() -> Path:
    """The file of --tls self, with its key, among a person's settings."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return folder / "personaplex" / "tls.pem"


def list_addresses(families: tuple[int, ...] = (socket.AF_INET, socket.AF_INET6)) -> list[str]:
    """The addresses by which other machines reach this one, the usual one of each family."""
    found = []
    for family in families:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((NOWHERE[family], 9))
                found.append(probe.getsockname()[0])
        except OSError:  # no network of this family
            continue
    return [one for one in found if not ipaddress.ip_address(one).is_loopback]


# -- a certificate of our own ----------------------------------------------------------------------


def is_fresh(path: Path) -> bool:
    """Whether a certificate is there that lasts: browsers remember it, so it is kept."""
    from cryptography import x509  # here: only --tls self needs it

    try:
        end = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError):
        return False
    return end - datetime.datetime.now(datetime.UTC) > datetime.timedelta(days=RENEW_DAYS)


def write_certificate(path: Path) -> None:
    """A key and a certificate for this machine's names, in one file that only its owner reads."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "PersonaPlex on this machine")])
    hosts = [x509.DNSName(host) for host in dict.fromkeys(("localhost", own_name())) if host]
    hosts += [
        x509.IPAddress(ipaddress.ip_address(one)) for one in ("127.0.0.1", "::1", *list_addresses())
    ]
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + made.public_bytes(serialization.Encoding.PEM)
    part = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch(mode=0o600)
        part.write_bytes(pem)
        part.replace(path)  # whole or not
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({os.strerror(error.errno or 0)}); set XDG_CONFIG_HOME to a "
            "folder that can, or use --tls-cert and --tls-key"
        ) from None


def own_name() -> str:
    """This machine's name, where a certificate may hold it."""
    name = socket.gethostname().strip(".")
    return name if name.isascii() and 0 < len(name) < 64 else ""
