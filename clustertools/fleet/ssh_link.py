"""How one connection comes about: name, TCP, banner, gateway, login, and what is said when it does not.

A link belongs to the pump's thread; what blocks (names, the handshake) is done by a worker. All sockets are
dialled at once and a handshake begins when the banner is there, so that a node that hangs before it costs
neither a worker nor anybody else's time.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import random
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from clustertools.errors import ConfigError
from clustertools.fleet import Fate
from clustertools.fleet.known_hosts import KnownHosts
from clustertools.fleet.pump import READ, WRITE, Pump, Timer, Workers
from clustertools.fleet.ssh_target import (
    LoginFailed,
    SshSettings,
    Target,
    Targets,
    hang_up,
)
from clustertools.text import plain

if TYPE_CHECKING:
    from clustertools.fleet.ssh_wire import Keys, Login, Wire

#: A busy sshd hangs up on some (MaxStartups); those that it did are tried again a little later, so often.
TRIES = 3
RETRY_SECONDS = (0.2, 0.6)
#: A handshake that takes longer waits for its node, not for us: it does not keep others from theirs.
SLOW_HANDSHAKE_SECONDS = 2.0
#: The kernel's own look whether a silent node is still there: lost after 15 + 3 * 5 seconds.
KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


class Hub:
    """What all the links of a transport share."""

    def __init__(self, settings: SshSettings, on_fault: Callable[[Exception], None]) -> None:
        self.settings = settings
        self.targets = Targets(settings, _read_hard)
        self._keys: Keys | None = None
        self.workers = Workers(settings.at_once)
        self.pump = Pump(on_fault)
        self._known: dict[tuple[str, ...], KnownHosts] = {}
        self._links: dict[object, Link] = {}
        #: ProxyCommands mostly go to one gateway, as a login of their own each.
        self.proxies = Turns(settings.per_gateway)
        self.handshakes = Turns(settings.at_once)
        # a quarter of a second, in which the nodes can already be dialled
        self.workers.do(_import_wire)

    @property
    def keys(self) -> Keys:
        if self._keys is None:
            from clustertools.fleet.ssh_wire import Keys

            self._keys = Keys()
        return self._keys

    def known_hosts(self, paths: tuple[str, ...]) -> KnownHosts:
        """Raises ConfigError when one is there and cannot be read."""
        if paths not in self._known:
            try:
                self._known[paths] = KnownHosts.from_files(paths)
            except OSError as exc:
                raise ConfigError(
                    f"the known host keys in {exc.filename} cannot be read: {exc.strerror}"
                ) from exc
        return self._known[paths]

    def link(self, node: str) -> Link:
        """The link to a node, which may not be open yet. Raises ConfigError."""
        if node not in self._links:
            self._links[node] = Link(self, self.targets.of(node))
            allow_files(2 * len(self._links) + 128)
        return self._links[node]

    def gateway(self, gateways: tuple[str, ...]) -> Link:
        """The link to the last of those gateways, through the others. Raises ConfigError."""
        if gateways not in self._links:
            self._links[gateways] = Link(self, self.targets.of_gateway(gateways))
        return self._links[gateways]

    def give_up(self, why: str) -> None:
        """On the pump's thread: every connection that is being made fails."""
        for link in tuple(self._links.values()):
            link.give_up(why)

    def close(self) -> None:
        """On the pump's thread: every connection ends."""
        for link in self._links.values():
            link.close()


def _import_wire() -> None:
    # paramiko imports invoke, for `Match exec`; that is a third of its own start, and seldom needed
    is_without = "invoke" not in sys.modules
    if is_without:
        sys.modules["invoke"] = None  # type: ignore[assignment]
    try:
        importlib.import_module("clustertools.fleet.ssh_wire")
    finally:
        if is_without:
            del sys.modules["invoke"]


def _read_hard(text: str, host: str) -> Mapping[str, Any]:
    from clustertools.fleet.ssh_wire import read_config

    return read_config(text, host)


class Turns:
    """At most `width` at a time; the others wait for their turn."""

    def __init__(self, width: int) -> None:
        self._free, self._waiting = width, deque[Callable[[], bool]]()

    def take(self, begin: Callable[[], bool]) -> None:
        """Call `begin`, now or later; it says whether it still wanted its turn. Then `give` has to follow."""
        self._waiting.append(begin)
        self._go_on()

    def give(self) -> None:
        self._free += 1
        self._go_on()

    def _go_on(self) -> None:
        while self._free > 0 and self._waiting:
            self._free -= 1
            if not self._waiting.popleft()():
                self._free += 1


class Link:
    """The connection to one target. `when_open` brings it about, and makes a broken one anew."""

    def __init__(self, hub: Hub, target: Target) -> None:
        self.hub, self.target = hub, target
        self.known_hosts = hub.known_hosts(target.known_hosts_files)
        self.wire: Wire | None = None
        self._waiting: list[tuple[Callable[[Wire], object], Callable[[Fate, str], object]]] = []
        self._attempt: _Attempt | None = None
        #: The ProxyCommand that carries it.
        self.child: subprocess.Popen[bytes] | None = None
        #: The gateway that it waits for.
        self.waits_for: Link | None = None

    def when_open(self, opened: Callable[[Wire], object], failed: Callable[[Fate, str], object]) -> None:
        """On the pump's thread: call one of them, now or when it is known."""
        if self.wire is not None and self.wire.is_active():
            opened(self.wire)
            return
        self._waiting.append((opened, failed))
        if self._attempt is None:
            self._drop()
            self._attempt = _Attempt(self)
            self._attempt.begin()

    def settle(self, wire: Wire | None, fate: Fate = Fate.COMPLETED, reason: str = "") -> None:
        """The attempt is over: tell those who wait."""
        self.wire, self._attempt, self.waits_for = wire, None, None
        waiting, self._waiting = self._waiting, []
        for opened, failed in waiting:
            if wire is not None:
                opened(wire)
            else:
                failed(fate, reason)

    def close(self) -> None:
        self.give_up("the transport was closed")
        self._drop()

    def give_up(self, why: str) -> None:
        if self._attempt is not None:
            self._attempt.fail(Fate.UNREACHABLE, why)

    def _drop(self) -> None:
        if self.wire is not None:
            # its thread reads the end of it, and closes all else
            hang_up(self.wire.sock)
        if self.child is not None:
            end_child(self.child)
        self.wire, self.child = None, None


class _Attempt:
    """One try, with all its repetitions, to open a link within the connect deadline."""

    def __init__(self, link: Link) -> None:
        self.link, self.hub, self.target, self.pump = link, link.hub, link.target, link.hub.pump
        self._stage = "looking up its name"
        self._login: Login | None = None
        self._sock: Any = None
        self._child: subprocess.Popen[bytes] | None = None
        self._addresses: list[tuple[int, Any]] = []
        self._errors: list[str] = []
        self._is_over = self._is_with_paramiko = self._is_shaking = False
        self._tries = 0
        self._is_proxied = False
        self._timer: Timer | None = None
        self._until = 0.0

    def begin(self) -> None:
        target = self.target
        if target.gateways:
            try:
                gateway = self.hub.gateway(target.gateways)
            except ConfigError as exc:
                self.fail(Fate.UNREACHABLE, str(exc))
                return
            self.link.waits_for = further = gateway
            while further is not self.link and further.waits_for is not None:
                further = further.waits_for
            if further is self.link:
                self.fail(Fate.UNREACHABLE, "its gateways lead to each other: see ProxyJump in ssh_config")
                return
            name = ",".join(target.gateways)

            def failed(fate: Fate, reason: str) -> None:
                self.fail(Fate.UNREACHABLE, f"its gateway {name} cannot be used ({fate.value}): {reason}")

            gateway.when_open(self._jump_first, failed)
        elif target.proxy_command:
            self.hub.proxies.take(self._spawn_first)
        else:
            self._start_clock()
            self._look_up()

    def _start_clock(self, seconds: float | None = None) -> None:
        if seconds is None:
            seconds = self.target.connect_timeout_seconds
        self._until = time.monotonic() + seconds
        self._timer = self.pump.after(seconds, self._too_late)

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _too_late(self) -> None:
        stage = self._login.stage if self._login is not None else self._stage
        self.fail(
            Fate.UNREACHABLE, f"no answer within {self.target.connect_timeout_seconds:g} s, while {stage}"
        )

    def fail(self, fate: Fate, reason: str) -> None:
        if self._end():
            self._drop()
            self.link.settle(None, fate, reason)

    def _end(self) -> bool:
        """Whether this is the first end: what comes later (a worker, a deadline) does not count any more."""
        if self._is_over:
            return False
        self._is_over = True
        self._stop_clock()
        self._give_handshake()
        self._give_proxy()
        return True

    def _drop(self) -> None:
        """Close what was opened; what paramiko reads from is hung up, and closed by its thread."""
        if self._is_with_paramiko:
            if self._sock is not None:
                hang_up(self._sock)
        elif self._sock is not None:
            self.pump.forget(self._sock)
            self._sock.close()
        self._sock, self._login, self._is_with_paramiko = None, None, False
        if self._child is not None:
            end_child(self._child)
            self._child = None

    # straight to the node

    def _look_up(self) -> None:
        target = self.target
        for family in (socket.AF_INET, socket.AF_INET6):
            if target.family in (socket.AF_UNSPEC, family) and is_numeric(family, target.address):
                self._found([(family, (target.address, target.port))])
                return
        self.hub.workers.do(self._resolve)

    def _resolve(self) -> None:
        target = self.target
        try:
            found = socket.getaddrinfo(target.address, target.port, target.family, socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) and exc.strerror else "it is no host name"
            reason = f"its name {plain(target.address, 100)!r} does not resolve: {why}"
            self.pump.call(self.fail, Fate.UNREACHABLE, reason)
            return
        self.pump.call(self._found, [(family, address) for family, _, _, _, address in found])

    def _found(self, addresses: list[tuple[int, Any]]) -> None:
        if not self._is_over:
            self._addresses = addresses
            self._dial(0)

    def _dial(self, number: int) -> None:
        """Connect to the address of that number, or to a later one."""
        if self._is_over:
            return
        if number >= len(self._addresses):
            self.fail(Fate.UNREACHABLE, "; ".join(dict.fromkeys(self._errors)))
            return
        family, address = self._addresses[number]
        self._stage = f"connecting to {address[0]} port {address[1]}"
        try:
            sock = self._sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as exc:
            self.fail(Fate.UNREACHABLE, f"no socket could be had for it: {exc.strerror} (see ulimit -n)")
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)

        def ready() -> None:
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                refuse(code)
            else:
                self._stage = "waiting for its SSH banner"
                self.pump.watch(sock, READ, lambda: self._hear(sock))

        def refuse(code: int) -> None:
            self._errors.append(f"{os.strerror(code)} ({address[0]} port {address[1]})")
            self._drop()
            self._dial(number + 1)

        code = sock.connect_ex(address)
        if code in (0, errno.EINPROGRESS):
            self.pump.watch(sock, WRITE, ready)
        else:
            refuse(code)

    def _hear(self, sock: socket.socket) -> None:
        """The first bytes are there: a banner, a complaint, or the end of it."""
        try:
            first = sock.recv(255, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError as exc:
            self._hung_up(exc.strerror or str(exc))
            return
        if not first:
            self._hung_up("the connection was closed")
            return
        self.pump.forget(sock)
        sock.setblocking(True)
        self._log_in(lambda: sock)

    def _hung_up(self, why: str) -> None:
        self._again(
            f"{why} before its SSH banner; sshd may be overloaded (MaxStartups) or refuse this address"
        )

    def _again(self, reason: str) -> None:
        """Try again a little later, unless it was tried often enough."""
        self._give_handshake()
        self._drop()
        self._tries += 1
        pause = random.uniform(*RETRY_SECONDS)
        if self._tries >= TRIES or time.monotonic() + pause >= self._until:
            self.fail(Fate.UNREACHABLE, reason + (f" (tried {self._tries} times)" if self._tries > 1 else ""))
            return
        if self.target.gateways:
            self.pump.after(pause, lambda: self._jump(self._through) if not self._is_over else None)
        elif self.target.proxy_command:
            self.pump.after(pause, self._spawn)
        else:
            self.pump.after(pause, lambda: self._dial(0))

    # around a corner

    def _jump_first(self, wire: Wire) -> None:
        if not self._is_over:
            self._start_clock()
            self._jump(wire)

    def _jump(self, wire: Wire) -> None:
        """One more channel of the gateway's connection: its sshd counts no further login."""
        from clustertools.fleet.ssh_wire import open_channel

        address = (self.target.address, self.target.port)
        self._through, self._stage = wire, f"its gateway connects to {address[0]} port {address[1]}"

        def opened(channel: Any) -> None:
            self.pump.call(self._jumped, channel)

        def work() -> None:
            try:
                open_channel(wire, "direct-tcpip", address, opened)
            except Exception as exc:  # noqa: BLE001 - paramiko raises many things; each is told with its node
                what = plain(str(exc), 160) or type(exc).__name__
                self.pump.call(self.fail, Fate.UNREACHABLE, f"{what}, while {self._stage}")

        self.hub.workers.do(work)

    def _jumped(self, channel: Any) -> None:
        if self._is_over:
            if channel is not None:
                hang_up(channel)
        elif channel is None:
            self.fail(
                Fate.UNREACHABLE, "its gateway could not connect to it, or may not (AllowTcpForwarding)"
            )
        else:
            self._stage = "waiting for its SSH banner"
            self._log_in(lambda: channel)

    def _spawn_first(self) -> bool:
        if self._is_over:
            return False
        self._is_proxied = True
        self.pump.after(SLOW_HANDSHAKE_SECONDS, self._give_proxy)
        self._start_clock()
        self._spawn()
        return True

    def _give_proxy(self) -> None:
        if self._is_proxied:
            self._is_proxied = False
            self.hub.proxies.give()

    def _spawn(self) -> None:
        """The user's ProxyCommand, as words: there is no shell in between."""
        if self._is_over:
            return
        words = shlex.split(self.target.proxy_command)
        if words[:1] == ["exec"]:
            del words[0]
        ours, theirs = socket.socketpair()
        self._stage = f"waiting for {plain(words[0], 60) if words else 'ProxyCommand'}, its ProxyCommand"
        try:
            with theirs:
                self._child = subprocess.Popen(
                    words,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
        except (OSError, ValueError, IndexError) as exc:
            ours.close()
            self.fail(Fate.UNREACHABLE, f"its ProxyCommand cannot be started: {plain(str(exc), 120)}")
            return
        self._sock = ours
        ours.setblocking(False)
        self.pump.watch(ours, READ, lambda: self._hear(ours))

    # the handshake: a worker begins it, and paramiko's thread for this connection goes on with it

    def _log_in(self, connected: Callable[[], Any]) -> None:
        """Have a handshake when there is a turn. The wait for it is our own doing, and does not count."""
        left = self._until - time.monotonic()
        self._stop_clock()

        def begin() -> bool:
            if self._is_over:
                return False
            self._is_shaking = True
            self._start_clock(left)
            self.pump.after(SLOW_HANDSHAKE_SECONDS, self._give_handshake)
            self._is_with_paramiko = True
            self.hub.workers.do(lambda: self._shake_hands(connected))
            return True

        self.hub.handshakes.take(begin)

    def _give_handshake(self) -> None:
        if self._is_shaking:
            self._is_shaking = False
            self.hub.handshakes.give()

    def _shake_hands(self, connected: Callable[[], Any]) -> None:
        """On a worker."""
        from clustertools.fleet.ssh_wire import Login

        def done(wire: Wire | None, failure: LoginFailed | None) -> None:
            self.pump.call(self._logged_in, login, wire, failure)

        login = self._login = Login(self.target, self.link.known_hosts, self.hub.keys, done)
        if self._is_over:
            return
        try:
            self._sock = connected()
            login.begin(self._sock)
        except Exception as exc:  # noqa: BLE001 - paramiko raises many things; each is told with its node
            what = plain(str(exc), 160) or type(exc).__name__
            done(None, LoginFailed(Fate.UNREACHABLE, f"{what}, while {self._stage}"))

    def _logged_in(self, login: Login, wire: Wire | None, failure: LoginFailed | None) -> None:
        if self._login is not login or self._is_over:
            # given up in the meantime
            if wire is not None:
                hang_up(wire.sock)
            return
        if wire is not None:
            self._end()
            self.link.child, self._child = self._child, None
            self.link.settle(wire)
        elif failure is not None and failure.is_transient:
            self._login = None
            self._again(failure.reason)
        elif failure is not None:
            self._login = None
            self.fail(failure.fate, failure.reason)


def allow_files(count: int) -> None:
    """Have at least so many files open at once, as far as the system lets us; 1024 are usual."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        most = 4 * count if hard == resource.RLIM_INFINITY else min(4 * count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def is_numeric(family: int, address: str) -> bool:
    try:
        socket.inet_pton(family, address)
    except OSError:
        return False
    return True


def end_child(child: subprocess.Popen[bytes]) -> None:
    """End a ProxyCommand and what it started. It is reaped when the next process is started."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
