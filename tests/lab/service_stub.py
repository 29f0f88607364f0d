"""A loopback web service that notes every request, and a mail server beside it; both with TLS where wanted.

with ServiceStub() as service: service.script.append(Answer(429, headers={"Retry-After": "7"}))
with MailStub(tls="starttls", certificate=self_signed(tmp_path)) as server: ...
"""

from __future__ import annotations

import collections
import datetime
import email
import email.message
import email.policy
import http.server
import ipaddress
import json
import socketserver
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What to say to one request. Status 0 closes the connection; `drip_seconds`: a byte at a time."""

    status: int = 202
    text: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    drip_seconds: float = 0.0


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


def self_signed(folder: Path, *, name: str = "localhost") -> Path:
    """A file with key and certificate of a server called `name`; itself the authority to trust."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    names: list[x509.GeneralName] = [x509.DNSName(name)]
    if name == "localhost":
        names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    file = folder / f"{name}.pem"
    private = key.private_bytes(
        encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )  # fmt: skip
    file.write_bytes(private + certificate.public_bytes(encoding))
    return file


def context_of(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


class ServiceStub:
    """The service; `asked` holds what came, `script` what is answered first."""

    def __init__(self, *, certificate: Path | None = None) -> None:
        self.asked: list[Asked] = []
        self.script: collections.deque[Answer] = collections.deque()
        self.usual = Answer()
        self.released = threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._scheme = "http"
        if certificate:
            context = context_of(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self._scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> ServiceStub:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    @property
    def bodies(self) -> list[Any]:
        return [request.body for request in self.asked]

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        stub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {k.lower(): v for k, v in self.headers.items()}
                body = json.loads(raw) if raw else None
                stub.asked.append(Asked(self.command, self.path, headers, body))
                answer = stub.script.popleft() if stub.script else stub.usual
                if answer.status == 0:
                    self.close_connection = True
                    return
                try:
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(answer.text.encode())))
                    self.end_headers()
                    for byte in answer.text.encode() if answer.drip_seconds else b"":
                        self.wfile.write(bytes([byte]))
                        if stub.released.wait(answer.drip_seconds):
                            return
                    if not answer.drip_seconds:
                        self.wfile.write(answer.text.encode())
                except OSError:
                    self.close_connection = True  # the client gave up waiting

            do_GET = do_POST = answer

            def log_message(self, format: str, *args: Any) -> None:
                """Silent: the test looks at `asked`."""

        return Handler


@dataclass
class Session:
    """One mail as it came: the envelope, how it was protected, and the text."""

    sender: str = ""
    to: list[str] = field(default_factory=list)
    user: str = ""
    encrypted: bool = False
    raw: bytes = b""

    @property
    def mail(self) -> email.message.EmailMessage:
        return email.message_from_bytes(self.raw, policy=email.policy.default)  # type: ignore[return-value]


class MailStub:
    """An SMTP server with STARTTLS and AUTH PLAIN; `refuse` maps a command or an address to a reply."""

    user, password = "clustertools", "s3cret-pass-word"

    def __init__(self, *, tls: str = "none", certificate: Path | None = None) -> None:
        self.mails: list[Session] = []
        self.refuse: dict[str, str] = {}
        self.commands: list[str] = []
        self._context = context_of(certificate) if certificate else None
        self._tls = tls
        stub = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                if stub._tls == "tls":
                    self._encrypt()
                try:
                    stub._serve(self)
                except OSError:
                    return  # the client left

            def _encrypt(self) -> None:
                assert stub._context
                self.connection = stub._context.wrap_socket(self.connection, server_side=True)
                self.rfile = self.connection.makefile("rb")  # type: ignore[assignment]
                self.wfile = self.connection.makefile("wb", 0)  # type: ignore[assignment]

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that does not trust us breaks the handshake off: the test looks at its side."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> MailStub:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    @property
    def address(self) -> str:
        return f"localhost:{self._server.server_address[1]}"

    def _serve(self, peer: Any) -> None:
        import base64

        def say(text: str) -> None:
            peer.wfile.write(text.encode() + b"\r\n")

        encrypted = self._tls == "tls"
        session = Session(encrypted=encrypted)
        say(self.refuse.get("greeting", "220 stub"))
        while line := peer.rfile.readline().decode("utf-8", "replace").rstrip("\r\n"):
            verb, _, rest = line.partition(" ")
            self.commands.append(verb.upper())
            address = rest.partition("<")[2].partition(">")[0]
            refused = self.refuse.get(address) or self.refuse.get(verb.upper())
            if refused:
                say(refused)
            elif verb.upper() == "EHLO":
                offers = ["stub", "8BITMIME"]
                offers += ["STARTTLS"] if self._tls == "starttls" and not session.encrypted else []
                offers += ["AUTH PLAIN"] if session.encrypted or self._tls == "none" else []
                for offer in offers[:-1]:
                    say(f"250-{offer}")
                say(f"250 {offers[-1]}")
            elif verb.upper() == "STARTTLS":
                say("220 go")
                peer._encrypt()
                session.encrypted = True
            elif verb.upper() == "AUTH":
                given = base64.b64decode(rest.split()[-1]).split(b"\0")[1:]
                good = given == [self.user.encode(), self.password.encode()]
                session.user = self.user if good else ""
                say("235 welcome" if good else f"535 no, not with {given[-1].decode()}")
            elif verb.upper() == "MAIL":
                session.sender = address
                say("250 ok")
            elif verb.upper() == "RCPT":
                session.to.append(address)
                say("250 ok")
            elif verb.upper() == "DATA":
                say("354 go on")
                text = b""
                while (piece := peer.rfile.readline()) != b".\r\n":
                    text += piece
                session.raw = text
                self.mails.append(session)
                say("250 taken")
            else:
                say("221 bye" if verb.upper() == "QUIT" else "250 ok")
                if verb.upper() == "QUIT":
                    return
