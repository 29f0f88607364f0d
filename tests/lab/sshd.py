"""Real sshd's on this machine, one address each: 127.0.1.1, 127.0.1.2, ... with their own keys.

    with Sshds(folder, 8) as lab:
        SshTransport(SshSettings(config=lab.ssh_config)).run(lab.nodes, ("uptime",))

As root each has its own pid and mount namespace: a throw-away user with a shell of one's choice, who is in
no passwd of this machine, and killing it kills all that runs on it. Otherwise they are plain sshd's, and the
user is whoever runs the tests. Everything dies with the process that made it, also when that is killed.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", ""))
MISSING = [name for name in ("ssh-keygen", "setpriv", "unshare") if shutil.which(name) is None]
needs_sshd = pytest.mark.skipif(
    not SSHD or bool(MISSING),
    reason=f"needs openssh-server and openssh-client (missing: {MISSING or 'sshd'})",
)
SOON_SECONDS = 20.0
USER, USER_ID = "labrat", 61234

# StrictModes: the keys lie in a folder of the tests, not in a home. See sshd_config(5).
CONF = """
Port {port}
ListenAddress {address}
HostKey {folder}/{name}.key
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AuthorizedKeysFile {authorized}
StrictModes no
LogLevel VERBOSE
UseDNS no
PrintMotd no
PrintLastLog no
Subsystem sftp internal-sftp
{extra}
"""

NODE = """#!/bin/sh
set -e
mount --make-rprivate /
mount --bind {folder}/passwd /etc/passwd
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/sshd /run/lab
mount --bind {folder} /run/lab
exec {sshd} -D -e -f {folder}/{name}.conf
"""


class Sshds:
    """The servers; use it as a context manager. Their names are `nodes`, and `ssh_config` knows them all.

    `shell` is the login shell of the user, `extra` lines for every sshd_config, `prefix` begins the names.
    """

    def __init__(
        self, folder: Path, count: int, *, shell: str = "/bin/sh", extra: str = "", prefix: str = "lab"
    ) -> None:
        self.folder, self.extra = folder, extra
        self.is_apart = os.geteuid() == 0
        self.user = USER if self.is_apart else getpass.getuser()
        self.addresses = {f"{prefix}{i}": f"127.0.1.{i}" for i in range(1, count + 1)}
        self.nodes = tuple(self.addresses)
        self._held = contextlib.ExitStack()
        self.port = self._hold_port()
        self.ssh_config, self.known_hosts = folder / "ssh_config", folder / "known_hosts"
        self.identity = folder / "id"
        #: The home of the user, as the nodes see it.
        self.home = "/run/lab" if self.is_apart else str(folder)
        self._shell = shell
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Sshds:
        self.folder.mkdir(parents=True, exist_ok=True)
        # the user of the servers reads it as /run/lab: the folders above it are closed to others by pytest
        self.folder.chmod(0o755)
        self.make_key("id")
        shutil.copy(self.folder / "id.pub", self.folder / "authorized_keys")
        (self.folder / "authorized_keys").chmod(0o644)
        passwd = Path("/etc/passwd").read_text()
        passwd += f"{USER}:*:{USER_ID}:{USER_ID}:lab:{self.home}:{self._shell}\n"
        if "\nsshd:" not in passwd:
            passwd += "sshd:*:61233:65534::/run/sshd:/usr/sbin/nologin\n"
        (self.folder / "passwd").write_text(passwd)
        for name in self.nodes:
            self.make_key(f"{name}.key")
            self.configure(name)
            self.start(name)
        self.write_known_hosts()
        self.ssh_config.write_text(
            "".join(f"Host {n}\n  HostName {a}\n  HostKeyAlias {n}\n" for n, a in self.addresses.items())
            + f"Host *\n  Port {self.port}\n  User {self.user}\n  IdentityFile {self.identity}\n"
            f"  IdentitiesOnly yes\n  UserKnownHostsFile {self.known_hosts}\n  GlobalKnownHostsFile none\n"
            "  ConnectTimeout 5\n  BatchMode yes\n"
        )
        for name in self.nodes:
            self.wait_for(name)
        return self

    def __exit__(self, *exc: object) -> None:
        for name in tuple(self._children):
            self.kill(name)
        self._held.close()

    def _hold_port(self) -> int:
        """A port that no other lab uses meanwhile: each holds its own on an address beside the nodes."""
        chance = random.Random(os.getpid() ^ time.monotonic_ns())
        for _ in range(100):
            port = chance.randrange(20000, 32000)
            guard = socket.socket()
            with contextlib.suppress(OSError):
                guard.bind(("127.0.2.1", port))
                guard.listen()
                self._held.enter_context(guard)
                return port
            guard.close()
        raise AssertionError("no free port")

    def make_key(self, name: str, kind: str = "ed25519") -> Path:
        """A key pair in the folder, unless it is there."""
        path = self.folder / name
        if not path.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", path], check=True)
        return path

    def write_known_hosts(self, changed: dict[str, str | None] | None = None) -> None:
        """Everybody's key, but for those in `changed`: the key to write instead, or None for no line."""
        lines = []
        for name, address in self.addresses.items():
            key = " ".join((self.folder / f"{name}.key.pub").read_text().split()[:2])
            instead = (changed or {}).get(name, key)
            if instead is not None:
                lines += [f"{name} {instead}", f"[{address}]:{self.port} {instead}"]
        self.known_hosts.write_text("\n".join(lines) + "\n")

    def configure(self, name: str, *, refuses: bool = False, extra: str = "") -> None:
        """Write the sshd_config of one; it counts from its next start. `refuses`: no key lets anybody in."""
        (self.folder / f"{name}.conf").write_text(
            CONF.format(
                port=self.port,
                address=self.addresses[name],
                folder=self.folder,
                name=name,
                authorized="/dev/null" if refuses else f"{self.home}/authorized_keys",
                extra=self.extra + "\n" + extra,
            )
        )

    def start(self, name: str) -> None:
        self.kill(name)
        argv = ["setpriv", "--pdeathsig", "KILL"]
        if self.is_apart:
            node = self.folder / f"{name}.node"
            node.write_text(NODE.format(folder=self.folder, name=name, sshd=SSHD))
            node.chmod(0o755)
            argv += ["unshare", "--pid", "--fork", "--kill-child=KILL", "--mount", "--mount-proc", str(node)]
        else:
            argv += [str(SSHD), "-D", "-e", "-f", str(self.folder / f"{name}.conf")]
        with open(self.folder / f"{name}.log", "ab") as log:
            self._children[name] = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            )  # fmt: skip

    def wait_for(self, name: str) -> None:
        """Until it shows its banner. AssertionError with its log when it does not."""
        until = time.monotonic() + SOON_SECONDS
        while True:
            with contextlib.suppress(OSError), self.connect(name) as sock:
                if sock.recv(4) == b"SSH-":
                    return
            log = (self.folder / f"{name}.log").read_text()[-2000:]
            assert self._children[name].poll() is None, f"{name} ended: {log}"
            assert time.monotonic() < until, f"{name} does not listen: {log}"
            time.sleep(0.02)

    def connect(self, name: str) -> socket.socket:
        return socket.create_connection((self.addresses[name], self.port), timeout=2)

    def listener(self, name: str) -> int:
        """The process that listens."""
        pid = self._children[name].pid
        return _children(pid)[0] if self.is_apart else pid

    def sessions(self, name: str) -> list[int]:
        """The sshd processes that serve connections, without what they started."""
        return [
            pid
            for pid in _descendants(self.listener(name))
            if Path(f"/proc/{pid}/comm").read_text().strip().startswith("sshd")
        ]

    def hang(self, name: str) -> None:
        """From now on it takes connections and says nothing. Sessions that there are go on."""
        os.kill(self.listener(name), signal.SIGSTOP)

    def freeze_sessions(self, name: str) -> None:
        for pid in self.sessions(name):
            os.kill(pid, signal.SIGSTOP)

    def break_sessions(self, name: str) -> None:
        """End all its connections at once, and leave what runs on the node."""
        for pid in self.sessions(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill(self, name: str) -> None:
        """As a power cut would: with all that runs on the node."""
        child = self._children.pop(name, None)
        if child is None:
            return
        with contextlib.suppress(OSError, IndexError):
            for pid in _children(child.pid) if self.is_apart else _descendants(child.pid):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(10)

    def black_hole(self) -> str:
        """An address from which no answer to a connection comes: its queue is full, so SYN is dropped."""
        address = "127.0.1.254"
        server = self._held.enter_context(socket.socket())
        server.bind((address, self.port))
        server.listen(0)
        for _ in range(3):
            filler = self._held.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect((address, self.port))
        return address

    def running(self, *words: str) -> list[int]:
        """The processes of this machine and its nodes whose command line has these words in a row."""
        wanted = "\0".join(words).encode() + b"\0"
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if wanted in b"\0" + path.read_bytes():
                    found.append(int(path.parent.name))
        return found


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for child in _children(pid):
            yield child
            yield from _descendants(child)
