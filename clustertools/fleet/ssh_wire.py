"""One encrypted connection to one sshd: paramiko, and nothing else in the tool imports it.

paramiko's own SSHClient would do most of this. It reads known_hosts and the private key once for each host,
polls ten times a second on each connection, and takes host certificates that it does not verify; so its
Transport is used directly, with the host key checked here.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import paramiko
from paramiko.common import MSG_CHANNEL_REQUEST
from paramiko.message import Message

from clustertools.fleet import Fate
from clustertools.fleet.known_hosts import AUTHORITY, REVOKED, KnownHosts, fingerprint
from clustertools.fleet.ssh_target import Target
from clustertools.text import plain

# paramiko tells failures to a logger too; without a handler Python would print them
logging.getLogger("paramiko").addHandler(logging.NullHandler())

#: sshd ends a connection after six attempts (MaxAuthTries), and a key of the agent is one each.
KEYS_TO_TRY = 5
#: What of a program's output may be under way, or wait to be read, on each connection.
WINDOW_BYTES = 1 << 20
SIGNALS = {name: int(signal.Signals[f"SIG{name}"]) for name in (
    "ABRT ALRM BUS FPE HUP ILL INT KILL PIPE QUIT SEGV SYS TERM USR1 USR2 XCPU XFSZ").split()}  # fmt: skip


class LoginFailed(Exception):
    """No session, and why. `is_transient`: the server hung up before it knew us, as a busy one does."""

    def __init__(self, fate: Fate, reason: str, *, is_transient: bool = False) -> None:
        super().__init__(reason)
        self.fate, self.reason, self.is_transient = fate, reason, is_transient


class Wire(paramiko.Transport):  # type: ignore[misc]
    """paramiko's connection without its polling, and with the signals that end programs."""

    # the reading thread would wake that often only to look whether it should end; `stop_thread` wakes it
    _active_check_timeout = 60.0
    # authenticated encryption with hardware behind it first; then paramiko's own order
    _preferred_ciphers = ("aes128-gcm@openssh.com", *(
        c for c in paramiko.Transport._preferred_ciphers if c != "aes128-gcm@openssh.com"))  # fmt: skip

    def __init__(self, sock: Any, key_types: Sequence[str]) -> None:
        super().__init__(sock, default_window_size=WINDOW_BYTES, packetizer_class=_Packetizer)
        all_types: tuple[str, ...] = paramiko.Transport._preferred_keys
        # the types that are known first, or a server with several keys would show one that nobody knows
        self._preferred_keys = tuple(sorted(all_types, key=lambda t: t not in key_types))
        self._channel_handler_table = {
            **paramiko.Transport._channel_handler_table,
            MSG_CHANNEL_REQUEST: _take_request,
        }

    @property
    def preferred_keys(self) -> Any:
        # without host certificates: paramiko does not verify who signed them
        return self._filter_algorithm("keys")

    def _log(self, level: int, msg: object, *args: object) -> None:
        pass

    def stop_thread(self) -> None:
        hang_up(self.sock)
        super().stop_thread()


class _Packetizer(paramiko.Packetizer):  # type: ignore[misc]
    """Without one more thread for the time limit of the handshake: the caller hangs up instead."""

    def start_handshake(self, timeout: float) -> None:
        pass

    def complete_handshake(self) -> None:
        pass


def _take_request(channel: paramiko.Channel, message: Message) -> None:
    """What a server says about a channel; paramiko knows the exit status and leaves out the exit signal."""
    if message.get_text() == "exit-signal":
        message.get_boolean()
        name = message.get_text()
        channel.exit_status = -SIGNALS.get(name, 1)
        return
    message.rewind()
    message.get_int()  # the channel's number, which was read before
    paramiko.Channel._handle_request(channel, message)


def hang_up(sock: Any) -> None:
    """Wake whoever reads from that socket or channel, with the end of it."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except (OSError, EOFError):
        # it was not connected, or is closed already
        return


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


@dataclass
class Login:
    """One attempt to get a session over a socket that is connected. `stage` says how far it came."""

    target: Target
    known_hosts: KnownHosts
    keys: Keys
    stage: str = "waiting for its SSH banner"
    wire: Wire | None = None
    is_given_up: bool = field(default=False)

    def give_up(self, sock: Any) -> None:
        """From another thread: end the attempt now."""
        self.is_given_up = True
        hang_up(sock)

    def attempt(self, sock: Any, until: float) -> Wire:
        """Handshake, host key, key. Raises LoginFailed; `until` is a monotonic time."""
        known = self.known_hosts.find(self.target.known_as)
        types = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}
        accepted = [k for k in known if not k.marker]
        self.wire = wire = Wire(sock, [t for k in accepted for t in types.get(k.key_type, (k.key_type,))])
        try:
            self.stage = "exchanging keys"
            done = threading.Event()
            wire.banner_timeout = max(0.1, until - time.monotonic())
            wire.start_client(event=done)
            done.wait(max(0.1, until - time.monotonic()))
            if not wire.active or not wire.initial_kex_done:
                raise self._broken(wire)
            self._check_host_key(wire)
            self.stage = "logging in"
            self._log_in(wire, until)
        except BaseException:
            wire.close()
            raise
        return wire

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
        scan = f"ssh-keyscan -p {target.port} {target.address}"
        if target.is_aliased:
            scan += f" | sed 's/^[^ ]*/{target.known_as}/'"
        advice = f"compare it with what `ssh-keygen -lf` says on the node, then `{scan} >> {file}`"
        if others:
            old = next((k for k in others if k.key_type == kind), others[0])
            reason = (
                f"its host key changed: it shows {shown}, known is {old.fingerprint} "
                f"({old.path} line {old.line}); it was installed anew, or somebody is in between: {advice}, "
                f"after `ssh-keygen -R '{target.known_as}' -f {old.path}`"
            )
        elif any(k.marker == AUTHORITY for k in known):
            reason = (
                f"its host key {shown} is not known; only its @cert-authority is, which is not verified here"
            )
            reason += f": {advice}"
        else:
            reason = f"its host key {shown} is not known: {advice}"
        raise LoginFailed(Fate.HOST_KEY, reason)

    def _log_in(self, wire: Wire, until: float) -> None:
        keys, complaints = self.keys.of(self.target)
        asked = ""
        for key in keys:
            done = threading.Event()
            try:
                wire.auth_publickey(self.target.user, key, event=done)
                done.wait(max(0.1, until - time.monotonic()))
            except (paramiko.SSHException, EOFError, OSError) as exc:
                complaints.append(plain(str(exc), 120) or type(exc).__name__)
                break
            if wire.is_authenticated():
                return
            exc_now = wire.get_exception()
            if isinstance(exc_now, paramiko.ssh_exception.PartialAuthentication):
                asked = ", ".join(exc_now.allowed_types)
                break
            if not wire.active:
                complaints.append("it hung up" + (f": {plain(str(exc_now), 120)}" if exc_now else ""))
                break
            if not done.is_set():
                raise LoginFailed(Fate.UNREACHABLE, "it fell silent while logging in")
        if asked:
            reason = f"a key is not enough for {self.target.user} there, it also asks for {asked}"
        elif keys:
            reason = (
                f"none of {len(keys)} key{'s' if len(keys) > 1 else ''} let {self.target.user} in (publickey)"
            )
        else:
            reason = (
                f"no private key to log in with as {self.target.user}: give an IdentityFile, or use an agent"
            )
        raise LoginFailed(Fate.REFUSED, "; ".join([reason, *complaints]))


class Bell:
    """Stands where paramiko wants a threading.Event, and calls somebody instead of waking a sleeper."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring, self._is_set = ring, False

    def set(self) -> None:
        self._is_set = True
        self._ring()

    def clear(self) -> None:
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    isSet = is_set

    def wait(self, timeout: float | None = None) -> bool:
        return self._is_set


def start(wire: Wire, command: bytes, ring: Callable[[], None], seconds: float) -> paramiko.Channel:
    """Start a command; `ring` is called, on any thread, when it said something, ended or was lost.

    Raises LoginFailed (LOST) when the connection or the server does not give a session any more.
    """
    try:
        channel = wire.open_session(timeout=seconds)
        channel.in_buffer.set_event(Bell(ring))
        channel.in_stderr_buffer.set_event(Bell(ring))
        channel.status_event = Bell(ring)
        channel.exit_status = None
        # without room in the program's window `send` says so instead of waiting
        channel.settimeout(0.0)
        channel.exec_command(command)
    except (paramiko.SSHException, EOFError, OSError) as exc:
        why = plain(str(exc), 160) or type(exc).__name__
        raise LoginFailed(Fate.LOST, f"the connection gives no session: {why}") from exc
    return channel


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
    try:
        return dict(paramiko.SSHConfig.from_text(text).lookup(host))
    except (paramiko.ConfigParseError, paramiko.CouldNotCanonicalize) as exc:
        raise ValueError(str(exc)) from exc
