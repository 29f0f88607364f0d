"""One encrypted connection to one sshd: paramiko, and nothing else in the tool imports it.

paramiko's own SSHClient would do most of this. It reads known_hosts and the private key once for each host,
polls ten times a second on each connection, and takes host certificates that it does not verify; so its
Transport is used directly, with the host key checked here.
"""

from __future__ import annotations

import importlib
import logging
import os
import shlex
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import paramiko
from paramiko.common import MSG_CHANNEL_REQUEST, cMSG_CHANNEL_OPEN, cMSG_CHANNEL_REQUEST
from paramiko.message import Message

from clustertools.fleet import Fate
from clustertools.fleet.known_hosts import AUTHORITY, REVOKED, KnownHosts, fingerprint
from clustertools.fleet.ssh_target import LoginFailed, Target, hang_up
from clustertools.text import plain

# paramiko tells failures to a logger too; without a handler Python would print them
logging.getLogger("paramiko").addHandler(logging.NullHandler())

#: sshd ends a connection after six attempts (MaxAuthTries), and a key of the agent is one each.
KEYS_TO_TRY = 5
#: What of a program's output may be under way, or wait to be read, on each connection.
WINDOW_BYTES = 1 << 20
READ_AHEAD_BYTES = 1 << 16
#: So many packets (of 32 KiB at most) of a program that nobody listens to meanwhile are kept by paramiko.
PACKETS_A_RING = 4
SIGNALS = {name: int(signal.Signals[f"SIG{name}"]) for name in (
    "ABRT ALRM BUS FPE HUP ILL INT KILL PIPE QUIT SEGV SYS TERM USR1 USR2 XCPU XFSZ").split()}  # fmt: skip


class Wire(paramiko.Transport):  # type: ignore[misc]
    """paramiko's connection without its polling, and with the signals that end programs."""

    # the reading thread would wake that often only to look whether it should end; `stop_thread` wakes it
    _active_check_timeout = 60.0
    # paramiko makes these lists anew sixteen times a connection. Authenticated encryption comes first, which
    # the hardware does
    preferred_ciphers = tuple(sorted(paramiko.Transport._preferred_ciphers, key=lambda c: "gcm" not in c))
    preferred_macs = paramiko.Transport._preferred_macs
    preferred_kex = paramiko.Transport._preferred_kex
    preferred_pubkeys = paramiko.Transport._preferred_pubkeys
    preferred_compression = ("none",)
    _channel_handler_table: dict[int, Any]

    def __init__(self, sock: Any, key_types: Sequence[str]) -> None:
        super().__init__(_ReadAhead(sock), default_window_size=WINDOW_BYTES, packetizer_class=_Packetizer)
        all_types: tuple[str, ...] = paramiko.Transport._preferred_keys
        # the types that are known first, or a server with several keys would show one that nobody knows;
        # and no host certificates: paramiko does not verify who signed them
        self._my_keys = tuple(sorted(all_types, key=lambda t: t not in key_types))
        self._channel_handler_table = _CHANNEL_HANDLERS

    @property
    def preferred_keys(self) -> tuple[str, ...]:
        return self._my_keys

    def _log(self, level: int, msg: object, *args: object) -> None:
        pass

    def _parse_debug(self, m: Message) -> None:
        # sshd remarks on the key's options; paramiko would go through that letter by letter for its log
        pass

    def stop_thread(self) -> None:
        hang_up(self.sock)
        super().stop_thread()


class _ReadAhead:
    """A socket of which more is read at once than paramiko asks for: a packet is three reads otherwise."""

    def __init__(self, sock: Any) -> None:
        self._sock, self._buffer, self._at = sock, b"", 0
        for name in ("send", "settimeout", "shutdown"):
            setattr(self, name, getattr(sock, name))

    def recv(self, size: int) -> bytes:
        if self._at >= len(self._buffer):
            self._buffer, self._at = self._sock.recv(READ_AHEAD_BYTES), 0
        found = self._buffer[self._at : self._at + size]
        self._at += len(found)
        return found

    def close(self) -> None:
        try:
            self._sock.close()
        except EOFError:
            # a channel of a gateway that is gone already
            return

    @property
    def _closed(self) -> bool:
        return bool(self._sock._closed)

    def getpeername(self) -> Any:
        return self._sock.getpeername()


class _Packetizer(paramiko.Packetizer):  # type: ignore[misc]
    """Without one more thread for the time limit of the handshake: the caller hangs up instead."""

    def start_handshake(self, timeout: float) -> None:
        pass

    def complete_handshake(self) -> None:
        pass


def _take_request(channel: paramiko.Channel, message: Message) -> None:
    """What a server says about a channel: how the program ended. paramiko leaves the signals out."""
    kind = message.get_text()
    message.get_boolean()
    if kind == "exit-signal":
        channel.exit_status = -SIGNALS.get(message.get_text(), 1)
    elif kind == "exit-status":
        channel.exit_status = message.get_int()
    # all else needs no answer from a client that asked for nothing else


_CHANNEL_HANDLERS = {**paramiko.Transport._channel_handler_table, MSG_CHANNEL_REQUEST: _take_request}


class Keys:
    """The private keys that may be tried; each file is read once, however many nodes it opens."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[Any, str]] = {}
        self._agents: dict[str, list[Any]] = {}
        self._lock = threading.Lock()

    def of(self, target: Target) -> tuple[list[Any], list[str]]:
        """The keys for that target in the order to try them, and why others could not be used."""
        with self._lock:
            found, complaints = [], []
            for path in target.identity_files:
                if path not in self._files:
                    self._files[path] = _load(path)
                key, why = self._files[path]
                if key is not None:
                    found.append(key)
                elif why:
                    complaints.append(why)
            if found and target.identities_only:
                return found[:KEYS_TO_TRY], complaints
            if target.agent != "none":
                offered = self._agents.get(target.agent)
                if offered is None:
                    offered = self._agents[target.agent] = _agent_keys(target.agent)
                if target.identities_only:
                    wanted = {blob for blob in map(_public_half, target.identity_files) if blob}
                    offered = [key for key in offered if key.asbytes() in wanted]
                known = {key.asbytes() for key in found}
                found += [key for key in offered if key.asbytes() not in known]
            return found[:KEYS_TO_TRY], complaints


def _load(path: str) -> tuple[Any, str]:
    """The key in that file; or None, and why it cannot be used (nothing when there is no such file)."""
    try:
        return paramiko.PKey.from_path(path), ""
    except FileNotFoundError:
        return None, ""
    except (paramiko.PasswordRequiredException, TypeError):
        # cryptography says TypeError for "this key needs a passphrase"
        return None, f"{path} has a passphrase: add it to an agent (ssh-add {path})"
    except OSError as exc:
        return None, f"{path}: {exc.strerror}"
    except (paramiko.SSHException, ValueError) as exc:
        return None, f"{path}: {plain(str(exc), 120)}"


def _public_half(path: str) -> bytes:
    try:
        return bytes(paramiko.PublicBlob.from_file(path + ".pub").key_blob)
    except (OSError, ValueError, IndexError):
        # none beside the private key: then nothing of the agent belongs to it
        return b""


class _AgentKey(paramiko.AgentKey):  # type: ignore[misc]
    """A key of the agent that many threads may use: the agent answers one question after the other."""

    lock: threading.Lock

    def sign_ssh_data(self, data: bytes, algorithm: str | None = None) -> Any:
        with self.lock:
            return super().sign_ssh_data(data, algorithm)


def _agent_keys(address: str) -> list[Any]:
    if address:
        os.environ["SSH_AUTH_SOCK"] = address
    try:
        offered = paramiko.Agent().get_keys()
    except (paramiko.SSHException, OSError):
        # an agent that does not answer offers no keys; that nothing let us in is told with the login
        return []
    lock = threading.Lock()
    keys = []
    for key in offered:
        mine = _AgentKey(key.agent, key.blob, key.comment)
        mine.lock = lock
        keys.append(mine)
    return keys


class Login:
    """One attempt to get a session over a socket that is connected: handshake, host key, key.

    Its steps run on paramiko's own thread, as the server's answers come in; `done` is called there, once,
    with the wire or with what went wrong. `stage` says how far it came. It has no deadline of its own.
    """

    def __init__(
        self, target: Target, known_hosts: KnownHosts, keys: Keys,
        done: Callable[[Wire | None, LoginFailed | None], object],
    ) -> None:  # fmt: skip
        self.target, self.known_hosts, self.keys = target, known_hosts, keys
        self.stage = "waiting for its SSH banner"
        self._done = done
        self._wire: Wire | None = None
        self._to_try: list[Any] = []
        self._tried = 0
        self._complaints: list[str] = []

    def begin(self, sock: Any) -> None:
        known = self.known_hosts.find(self.target.known_as)
        types = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}
        accepted = [t for k in known if not k.marker for t in types.get(k.key_type, (k.key_type,))]
        self._wire = wire = Wire(sock, accepted)
        wire.banner_timeout = 3600.0
        self.stage = "exchanging keys"
        wire.start_client(event=Bell(lambda: self._step(self._negotiated)))

    def _step(self, step: Callable[[Wire], None]) -> None:
        wire = self._wire
        if wire is None:
            return
        try:
            step(wire)
        except LoginFailed as exc:
            self._end(None, exc)
        except Exception as exc:  # noqa: BLE001 - paramiko raises many things; each is told with its node
            what = plain(str(exc), 160) or type(exc).__name__
            self._end(None, LoginFailed(Fate.UNREACHABLE, f"{what}, while {self.stage}"))

    def _end(self, wire: Wire | None, failure: LoginFailed | None) -> None:
        mine, self._wire = self._wire, None
        if mine is not None:
            if wire is None:
                hang_up(mine.sock)
            self._done(wire, failure)

    def _negotiated(self, wire: Wire) -> None:
        # paramiko would ring again for each later exchange of keys
        wire.completion_event = None
        if not wire.active or not wire.initial_kex_done:
            raise self._broken(wire)
        self._check_host_key(wire)
        self.stage = "logging in"
        self._to_try, self._complaints = self.keys.of(self.target)
        self._try_next(wire)

    def _try_next(self, wire: Wire) -> None:
        if self._tried == len(self._to_try):
            raise self._refused()
        key = self._to_try[self._tried]
        self._tried += 1
        wire.auth_publickey(self.target.user, key, event=Bell(lambda: self._step(self._answered)))

    def _answered(self, wire: Wire) -> None:
        if wire.is_authenticated():
            self._end(wire, None)
            return
        exc = wire.get_exception()
        if isinstance(exc, paramiko.ssh_exception.PartialAuthentication):
            asked = ", ".join(exc.allowed_types)
            raise LoginFailed(
                Fate.REFUSED, f"a key is not enough for {self.target.user} there, it also asks for {asked}"
            )
        if not wire.active:
            self._complaints.append("it hung up" + (f": {plain(str(exc), 120)}" if str(exc or "") else ""))
            raise self._refused()
        self._try_next(wire)

    def _refused(self) -> LoginFailed:
        tried, user = self._tried, self.target.user
        if tried:
            reason = f"{'the key does' if tried == 1 else f'{tried} keys do'} not let {user} in (publickey)"
        else:
            reason = f"no private key to log in with as {user}: give an IdentityFile, or use an agent"
        return LoginFailed(Fate.REFUSED, "; ".join([reason, *self._complaints]))

    def _broken(self, wire: Wire) -> LoginFailed:
        exc = wire.get_exception()
        if isinstance(exc, paramiko.ssh_exception.IncompatiblePeer):
            return LoginFailed(Fate.REFUSED, f"no common algorithms: {plain(str(exc), 200)}")
        if exc is None:
            return LoginFailed(Fate.UNREACHABLE, f"it fell silent while {self.stage}")
        why = "" if isinstance(exc, EOFError) else f": {plain(str(exc), 160)}"
        return LoginFailed(
            Fate.UNREACHABLE,
            f"it hung up while {self.stage}{why}; sshd may be overloaded (MaxStartups): see its log",
            is_transient=True,
        )

    def _check_host_key(self, wire: Wire) -> None:
        """Raises LoginFailed with HOST_KEY unless the server's key is known for it, and not revoked."""
        key = wire.get_remote_server_key()
        blob, kind = key.asbytes(), key.get_name()
        known = self.known_hosts.find(self.target.known_as)
        shown = f"{kind.removeprefix('ssh-')} {fingerprint(blob)}"
        if any(k.marker == REVOKED and k.blob == blob for k in known):
            raise LoginFailed(Fate.HOST_KEY, f"its host key {shown} is marked as revoked")
        others = [k for k in known if not k.marker]
        if any(k.blob == blob for k in others):
            return
        target = self.target
        file = target.known_hosts_files[0] if target.known_hosts_files else "~/.ssh/known_hosts"
        scan = f"ssh-keyscan -p {target.port} {shlex.quote(target.address)}"
        if target.is_aliased:
            scan += f" | sed {shlex.quote(f's/^[^ ]*/{target.known_as}/')}"
        advice = (
            f"compare it with what `ssh-keygen -lf` says on the node, then `{scan} >> {shlex.quote(file)}`"
        )
        if others:
            old = next((k for k in others if k.key_type == kind), others[0])
            reason = (
                f"its host key changed: it shows {shown}, known is {old.fingerprint} "
                f"({old.path} line {old.line}); it was installed anew, or somebody is in between: {advice}, "
                f"after `ssh-keygen -R {shlex.quote(target.known_as)} -f {shlex.quote(old.path)}`"
            )
        elif any(k.marker == AUTHORITY for k in known):
            reason = (
                f"its host key {shown} is not known; only its @cert-authority is, which is not verified here"
            )
            reason += f": {advice}"
        else:
            reason = f"its host key {shown} is not known: {advice}"
        raise LoginFailed(Fate.HOST_KEY, reason)


class Bell:
    """Stands where paramiko wants a threading.Event, and calls somebody instead of waking a sleeper.

    `every`: only each time of so many.
    """

    def __init__(self, ring: Callable[[], None], every: int = 1) -> None:
        self._ring, self._every, self._count, self._is_set = ring, every, 0, False

    def set(self) -> None:
        self._is_set = True
        self._count += 1
        if self._count % self._every == 0:
            self._ring()

    def clear(self) -> None:
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    isSet = is_set

    def wait(self, timeout: float | None = None) -> bool:
        return self._is_set


def open_channel(
    wire: Wire, kind: str, address: tuple[str, int] | None, opened: Callable[[Any], object]
) -> None:
    """Ask for a channel, without waiting: `session`, or `direct-tcpip` to an address as the server sees it.

    `opened` is called once, on paramiko's thread: with the channel, or with None when the server gives none
    or the connection is gone. It must not wait there.
    """
    # paramiko's own open_channel waits for the answer, which takes a thread a node
    with wire.lock:
        number = wire._next_channel()
        channel = paramiko.Channel(number)
        wire._channels.put(number, channel)
        wire.channel_events[number] = Bell(lambda: answered())
        wire.channels_seen[number] = True
        channel._set_transport(wire)
        channel._set_window(WINDOW_BYTES, wire.default_max_packet_size)
    told: list[bool] = []

    def answered() -> None:
        if not told:
            told.append(True)
            opened(channel if channel.active else None)

    message = Message()
    message.add_byte(cMSG_CHANNEL_OPEN)
    message.add_string(kind)
    message.add_int(number)
    message.add_int(WINDOW_BYTES)
    message.add_int(wire.default_max_packet_size)
    if address is not None:
        for host, port in (address, ("127.0.0.1", 0)):
            message.add_string(host)
            message.add_int(port)
    wire._send_user_message(message)
    if not wire.active:
        answered()


def start(
    wire: Wire, command: bytes, is_input_whole: bool, is_heard: bool, ring: Callable[[], None],
    started: Callable[[Any], object],
) -> None:  # fmt: skip
    """Ask for a session and start a command in it, without waiting; `started`: as `opened` of open_channel.

    From then on `ring` is called there when the program ended or was lost, and when it said something: each
    time if it `is_heard`, else when there is much of it. `is_input_whole`: it gets no input.
    """

    def opened(channel: Any) -> None:
        if channel is not None:
            every = 1 if is_heard else PACKETS_A_RING
            channel.exit_status = None
            # without room in the program's window `send` says so instead of waiting
            channel.settimeout(0.0)
            channel.in_buffer.set_event(Bell(ring, every))
            channel.in_stderr_buffer.set_event(Bell(ring, every))
            channel.status_event = Bell(ring)
            message = Message()
            message.add_byte(cMSG_CHANNEL_REQUEST)
            message.add_int(channel.remote_chanid)
            message.add_string("exec")
            message.add_boolean(False)
            message.add_string(command)
            wire._send_user_message(message)
            if is_input_whole:
                channel.shutdown_write()
        started(channel)

    open_channel(wire, "session", None, opened)


def send(channel: paramiko.Channel, data: bytes, is_last: bool) -> int:
    """Give a program input, as much as it takes now, and the end of it after the last. How much that was."""
    sent = 0
    try:
        while sent < len(data):
            taken = channel.send(data[sent : sent + (1 << 20)])
            if not taken:
                return len(data)  # the channel is closed: nobody will ever read the rest
            sent += taken
        if is_last:
            channel.shutdown_write()
    except TimeoutError:
        return sent
    except (OSError, EOFError, paramiko.SSHException):
        return len(data)
    return sent


def read_config(text: str, host: str) -> dict[str, Any]:
    """What that text of an ssh_config says of the host, by keyword in lower case. Raises ValueError."""
    if paramiko.config.invoke is None:  # left out by whoever imported us
        paramiko.config.invoke = importlib.import_module("invoke")
    try:
        return dict(paramiko.SSHConfig.from_text(text).lookup(host))
    except (paramiko.ConfigParseError, paramiko.CouldNotCanonicalize) as exc:
        raise ValueError(str(exc)) from exc
