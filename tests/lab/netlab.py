"""N virtual nodes, each in its own network, process, mount and host name namespace, with a real sshd each.

    with NetLab(folder, nodes=8, leaves=2) as lab:
        lab.head("ssh", "n3", "hostname")
        with lab.slow("n3", 40e6):
            lab.head("clustertools", "preflight", ...)

Each node has two interfaces: `eth0` (10.77.0.i, management: ssh and Slurm, as fast as the machine) and `eth1`
(10.78.0.i, data: for collectives, every link shaped to the same rate). The data links of a leaf end in one
bridge, leaves are joined by a spine bridge; all lies in network namespaces of the lab's own, so that nothing
touches the machine's network and several labs run side by side. `head(...)` runs a program on the login node:
management network only, ~/.ssh set up.

A fault is applied at once and gives its undoing: `with lab.cut("n3"): ...`, or `undo = ...; undo.close()`.
Needs root, and a kernel with bridge, veth, HTB, TBF, u32 and blackhole; no netem, so no latency is added.
All dies with the process that made it, also when that is killed. What gloo shows of each fault, with figures:
docs/decisions.md, "What a collective shows of a fault".
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.lab.slurm import Slurm

PROGRAMS = ("ip", "tc", "sshd", "ssh-keygen", "ssh", "unshare", "nsenter", "setpriv", "tini")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MISSING = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
needs_netlab = pytest.mark.skipif(
    os.geteuid() != 0 or bool(MISSING),
    reason=f"needs root, iproute2, openssh-server and tini (missing: {MISSING})",
)

#: Of every data link. Eight ranks at this rate leave two cores half idle, so the links decide, not the cores.
LINK_BITS_PER_SECOND = 200e6
HEAD_ADDRESS = "10.77.0.254"
#: The storage probe writes 256 MiB by default.
SCRATCH_BYTES = 320 << 20

# One process tree: killing the first process of the head's namespace takes the nodes' namespaces with it.
HEAD = """#!/bin/sh
set -e
hostname head
mount --make-rprivate /
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/head/passwd /etc/passwd
exec tini -- sleep infinity
"""

# /run/sshd: sshd's own demand. shadow: sshd lets no locked account in, and root is locked on some machines.
# Waits for its network on its input: eth0 and eth1 are moved in when the namespace is there.
NODE = """#!/bin/sh
set -e
hostname {name}
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/{name}/passwd /etc/passwd
mount --bind {folder}/{name}/shadow /etc/shadow
mount -t tmpfs -o size={scratch} tmpfs {folder}/scratch
read -r go
exec tini -- {sshd} -D -f {folder}/{name}/sshd_config -E {folder}/{name}/sshd.log
"""

SSHD = """
Port 22
HostKey {folder}/{name}/host_key
AuthorizedKeysFile {folder}/{name}/authorized_keys
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UseDNS no
PrintMotd no
PrintLastLog no
MaxStartups 300
MaxSessions 100
LogLevel ERROR
Subsystem sftp internal-sftp
"""

# OpenSSH's default key exchange costs 65 ms of CPU a connection, this one 3
SSH_CONFIG = """
Host *
  User root
  IdentityFile {folder}/id
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  BatchMode yes
  ConnectTimeout 5
  KexAlgorithms curve25519-sha256
"""


class NetLab:
    """The nodes n1 ... nN and their head; use it as a context manager.

    `ssh_config` and `known_hosts` are files for the head's clients (also in its ~/.ssh); `scratch` is a
    folder that on each node is a small file system of its own.
    """

    def __init__(
        self, folder: Path, nodes: int = 8, leaves: int = 2, *, bits_per_second: float = LINK_BITS_PER_SECOND
    ) -> None:
        self.folder, self.bits_per_second = folder, bits_per_second
        self.nodes = [f"n{i}" for i in range(1, nodes + 1)]
        self.leaves = {name: i * leaves // nodes for i, name in enumerate(self.nodes)}
        self.ssh_config, self.known_hosts = folder / "ssh_config", folder / "known_hosts"
        self.scratch = folder / "scratch"
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._first: dict[str, int] = {}

    # -- life ---------------------------------------------------------------------------------------------

    def __enter__(self) -> NetLab:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in [*self.nodes, "head"]:
            self.kill(name)

    def _start(self) -> None:
        for path in (self.folder, *self.folder.parents):
            if path != Path("/tmp") and path.is_relative_to("/tmp"):  # munge and sshd see it as others
                path.mkdir(exist_ok=True)
                path.chmod(0o755)
        for name in ("head", "scratch", *self.nodes):
            (self.folder / name / "home" / ".ssh").mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write_files()
        self._spawn("head")
        self._first["head"] = self._first_process("head")
        self._ip("head", ["link set lo up", "link add mgmt type bridge", "link set mgmt up", *_address(
            "mgmt", HEAD_ADDRESS), *self._switches()])  # fmt: skip
        for name in self.nodes:
            self._spawn_node(name)
        for name in self.nodes:
            self._connect(name)
        for name in self.nodes:
            self.wait(lambda name=name: self._listens(name), f"sshd of {name}")

    def _write_files(self) -> None:
        folder = self.folder
        _key(folder / "id")
        hosts = [
            f"{self.address(name)} {name}\n{self.address(name, 'eth1')} {name}-data" for name in self.nodes
        ]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", f"{HEAD_ADDRESS} head", *hosts, ""]))
        self.ssh_config.write_text(SSH_CONFIG.format(folder=folder))
        shutil.copy(self.ssh_config, folder / "head" / "home" / ".ssh" / "config")
        accounts = Path("/etc/passwd").read_text().splitlines()
        for name in ("head", *self.nodes):
            home = f"root:x:0:0:root:{folder}/{name}/home:/bin/sh"
            rows = [home, *(row for row in accounts if not row.startswith("root:"))]
            (folder / name / "passwd").write_text("\n".join([*rows, ""]))
        for name in self.nodes:
            own = folder / name
            _key(own / "host_key")
            shutil.copy(folder / "id.pub", own / "authorized_keys")
            (own / "shadow").write_text("root:*:19000:0:99999:7:::\nsshd:!:19000::::::\n")
            (own / "sshd_config").write_text(SSHD.format(folder=folder, name=name))
        words = {"folder": folder, "scratch": SCRATCH_BYTES, "sshd": shutil.which("sshd", path=_PATH)}
        for name in ("head", *self.nodes):
            program = folder / name / "node"
            program.write_text((HEAD if name == "head" else NODE).format(name=name, **words))
            program.chmod(0o755)
        self._write_known_hosts()

    def _write_known_hosts(self) -> None:
        rows = [
            f"{name},{self.address(name)} {_public(self.folder / name / 'host_key')}" for name in self.nodes
        ]
        self.known_hosts.write_text("\n".join([*rows, ""]))
        shutil.copy(self.known_hosts, self.folder / "head" / "home" / ".ssh" / "known_hosts")

    def _spawn(self, name: str, inside: tuple[str, ...] = ()) -> None:
        with open(self.folder / name / "out", "ab") as out:
            self._children[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *inside, "unshare", "--net", "--pid", "--fork",
                 "--kill-child=KILL", "--mount", "--mount-proc", "--uts", str(self.folder / name / "node")],
                stdin=subprocess.PIPE, stdout=out, stderr=out, cwd="/", env={"PATH": _PATH},
                start_new_session=True,
            )  # fmt: skip

    def _spawn_node(self, name: str) -> None:
        self._spawn(
            name, inside=("nsenter", "-t", str(self._first["head"]), "--mount", "--uts", "--pid", "--")
        )
        self._first[name] = self._first_process(name)

    def _first_process(self, name: str) -> int:
        """The process that is 1 in its namespace, as we see it: below unshare, which may be below nsenter."""
        depth = len(_namespace_pids(os.getpid())) + (1 if name == "head" else 2)

        def found() -> int:
            pids = [self._children[name].pid]
            for pid in pids:  # grows as it goes down
                pids += _children(pid)
                numbers = _namespace_pids(pid)
                if len(numbers) == depth and numbers[-1] == 1:
                    return pid
            return 0

        pid = int(self.wait(found, f"first process of {name}"))
        if name == "head":
            self.wait(lambda: _command(pid) == "tini", "the head's files")
        return pid

    # -- network ------------------------------------------------------------------------------------------

    def address(self, node: str, interface: str = "eth0") -> str:
        return f"10.{77 if interface == 'eth0' else 78}.0.{node[1:]}"

    def _switches(self) -> list[str]:
        """A bridge a leaf, joined to the spine by a pair: up<leaf> at the leaf, down<leaf> at the spine."""
        leaves = sorted(set(self.leaves.values()))
        orders = ["link add spine type bridge", "link set spine up"]
        for leaf in leaves:
            orders += [
                f"link add leaf{leaf} type bridge", f"link set leaf{leaf} up",
                f"link add up{leaf} type veth peer name down{leaf}",
                f"link set up{leaf} master leaf{leaf} up", f"link set down{leaf} master spine up",
            ]  # fmt: skip
        return orders

    def _connect(self, name: str) -> None:
        """m<i> and d<i> are the switches' ends of a node's eth0 and eth1."""
        i, pid = name[1:], self._first[name]
        self._ip("head", [
            f"link add m{i} type veth peer name eth0 netns {pid}",
            f"link add d{i} type veth peer name eth1 netns {pid}",
            f"link set m{i} master mgmt up", f"link set d{i} master leaf{self.leaves[name]} up",
        ])  # fmt: skip
        self._ip(name, ["link set lo up", *_address("eth0", self.address(name)),
                        *_address("eth1", self.address(name, "eth1"))])  # fmt: skip
        rate = _rate(self.bits_per_second)
        self._tc(name, ["qdisc add dev eth1 root handle 1: htb default 10 r2q 1000",
                        f"class add dev eth1 parent 1: classid 1:10 htb {rate}"])  # fmt: skip
        self._tc("head", [f"qdisc add dev d{i} root {_bucket(self.bits_per_second)}"])
        child = self._children[name]
        assert child.stdin is not None
        child.stdin.write(b"go\n")
        child.stdin.close()

    def _ip(self, place: str, orders: list[str]) -> None:
        self._batch(place, ("ip", "-batch", "-"), orders)

    def _tc(self, place: str, orders: list[str]) -> None:
        self._batch(place, ("tc", "-batch", "-"), orders)

    def _batch(self, place: str, program: tuple[str, ...], orders: list[str]) -> None:
        done = subprocess.run(
            ["nsenter", "-t", str(self._first[place]), "--net", "--", *program], text=True, check=False,
            input="\n".join(orders) + "\n", capture_output=True, timeout=20, env={"PATH": _PATH},
        )  # fmt: skip
        assert done.returncode == 0, f"{place}: {program[0]} {orders}: {done.stderr}"

    def popen(self, place: str, *argv: str, **options: Any) -> subprocess.Popen[str]:
        """A process on `head` or on a node; it ends with this process and with its node."""
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{_PATH}", "HOME": f"{self.folder}/{place}/home",
            "CLUSTERTOOLS_STATE": f"{self.folder}/{place}/state",
            "LANG": "C.UTF-8", **options.pop("env", {}),
        }  # fmt: skip
        return subprocess.Popen(
            [*self._door(place), "setpriv", "--pdeathsig", "KILL", *argv], env=environment, text=True,
            **{"cwd": "/", "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
               **options},
        )  # fmt: skip

    def run(
        self,
        place: str,
        *argv: str,
        timeout: float = 60.0,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """`argv` on `head` or on a node, to its end."""
        with self.popen(place, *argv, stdin=subprocess.PIPE, env=dict(env or {})) as child:
            try:
                out, err = child.communicate(stdin, timeout)
            except subprocess.TimeoutExpired:
                child.kill()
                out, err = child.communicate()
                raise AssertionError(f"{place}: {argv} not within {timeout:g} s\n{out}\n{err}") from None
        return subprocess.CompletedProcess(list(argv), child.returncode, out, err)

    def head(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """A program on the login node."""
        return self.run("head", *argv, **options)

    def slurm(self, folder: Path, **options: Any) -> Slurm:
        """A Slurm of the same nodes, its controller on the head: not started yet; a context manager."""
        doors = {name: self._door(name) for name in ("head", *self.nodes)}
        return _Slurm(
            doors.pop("head"), folder, nodes=len(self.nodes), prefix=doors, controller=HEAD_ADDRESS,
            addresses={name: self.address(name) for name in self.nodes}, **options,
        )  # fmt: skip

    def _door(self, place: str) -> tuple[str, ...]:
        """The words before a command that runs it there."""
        spaces = ("--net", "--mount", "--uts", "--pid")
        return "nsenter", "-t", str(self._first[place]), *spaces, "--"

    # -- faults of the network ----------------------------------------------------------------------------

    def slow(self, node: str, bits_per_second: float, direction: str = "both") -> ExitStack:
        """The node's data link is slower than its peers'; `direction` is both, `send` or `receive`."""

        def apply(bits: float) -> None:
            if direction != "receive":
                self._tc(node, [f"class change dev eth1 parent 1: classid 1:10 htb {_rate(bits)}"])
            if direction != "send":
                self._tc("head", [f"qdisc change dev d{node[1:]} root {_bucket(bits)}"])

        return _applied(lambda: apply(bits_per_second), lambda: apply(self.bits_per_second))

    def slow_path(self, a: str, b: str, bits_per_second: float) -> ExitStack:
        """Only what `a` and `b` send to each other is slow; both are good with all others."""
        rate = _rate(bits_per_second)
        return self._path(a, b, f"class add dev eth1 parent 1: classid 1:{{minor}} htb {rate}")

    def cut_path(self, a: str, b: str) -> ExitStack:
        """What `a` and `b` send to each other vanishes; nobody is told."""
        return self._path(
            a, b, f"class add dev eth1 parent 1: classid 1:{{minor}} htb {_rate(self.bits_per_second)}",
            "qdisc add dev eth1 parent 1:{minor} blackhole",
        )  # fmt: skip

    def _path(self, a: str, b: str, *orders: str) -> ExitStack:
        def apply() -> None:
            for here, there in ((a, b), (b, a)):
                minor = 100 + int(there[1:])
                address = self.address(there, "eth1")
                chosen = (
                    f"filter add dev eth1 parent 1: protocol ip prio {minor} u32 match ip dst {address}/32"
                )
                made = [order.format(minor=minor) for order in orders]
                self._tc(here, [*made, f"{chosen} flowid 1:{minor}"])

        def undo() -> None:
            for here, there in ((a, b), (b, a)):
                minor = 100 + int(there[1:])
                self._tc(here, [f"filter del dev eth1 parent 1: protocol ip prio {minor}",
                                f"class del dev eth1 classid 1:{minor}"])  # fmt: skip

        return _applied(apply, undo)

    def slow_uplink(self, leaf: int, bits_per_second: float) -> ExitStack:
        """Between a leaf switch and the spine; within the leaf all is well."""
        ends = [f"{end}{leaf}" for end in ("up", "down")]
        return _applied(
            lambda: self._tc(
                "head", [f"qdisc add dev {end} root {_bucket(bits_per_second)}" for end in ends]
            ),
            lambda: self._tc("head", [f"qdisc del dev {end} root" for end in ends]),
        )

    def cut(self, node: str, interface: str = "eth1") -> ExitStack:
        """The cable is out: no carrier. `eth0` takes ssh and Slurm away, `eth1` only the collectives."""
        port = f"{'m' if interface == 'eth0' else 'd'}{node[1:]}"
        return _applied(
            lambda: self._ip("head", [f"link set {port} down"]),
            lambda: self._ip("head", [f"link set {port} up"]),
        )

    def mute(self, node: str) -> ExitStack:
        """What the node sends over its data link vanishes, with the link up: nobody is told."""
        blackhole = "dev eth1 parent 1:10 blackhole"
        return _applied(
            lambda: self._tc(node, [f"qdisc add {blackhole}"]),
            lambda: self._tc(node, [f"qdisc del {blackhole}"]),
        )

    # -- faults of a node ---------------------------------------------------------------------------------

    def kill(self, name: str) -> None:
        """As a power cut would: all that runs on the node is gone. There is no way back."""
        child, first = self._children.pop(name, None), self._first.pop(name, None)
        if child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if first is not None:
                os.kill(first, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(10)

    def freeze(self, node: str) -> ExitStack:
        """Every process of the node stops in its tracks; the kernel still answers for it."""
        first = self._first[node]
        network, depth = _namespace(first), len(_namespace_pids(first))
        inside = [
            pid for pid in _processes() if _namespace(pid) == network and len(_namespace_pids(pid)) >= depth
        ]
        # nsenter stops itself when its child is stopped, and only it can go on by itself
        doors = [pid for pid in map(_parent, inside) if _command(pid) == "nsenter"]
        return _applied(
            lambda: _signal(inside, signal.SIGSTOP), lambda: _signal([*inside, *doors], signal.SIGCONT)
        )

    def hang_sshd(self, node: str) -> ExitStack:
        """Connections are taken and never greeted; sessions that are open go on."""
        listener = self._listener(node)
        return _applied(
            lambda: _signal([listener], signal.SIGSTOP), lambda: _signal([listener], signal.SIGCONT)
        )

    def refuse_key(self, node: str) -> ExitStack:
        """The node lets nobody in."""
        keys = self.folder / node / "authorized_keys"
        content = keys.read_text()
        return _applied(lambda: keys.write_text(""), lambda: keys.write_text(content))

    def change_host_key(self, node: str) -> ExitStack:
        """As after a new installation: the node's host key is not the one that the head knows."""
        key, other = self.folder / node / "host_key", self.folder / node / "other_key"
        old, old_public = key.read_bytes(), key.with_suffix(".pub").read_text()

        def put(content: bytes, public: str) -> None:
            key.write_bytes(content)
            os.kill(self._listener(node), signal.SIGHUP)
            # it listens before it begins anew, for a moment, and not at all while it does
            scan = ("ssh-keyscan", "-T", "1", "-t", "ed25519", node)
            shown = public.split()[1]
            self.wait(lambda: shown in self.head(*scan).stdout, f"sshd of {node} with another key")

        _key(other)
        new, new_public = other.read_bytes(), other.with_suffix(".pub").read_text()
        return _applied(lambda: put(new, new_public), lambda: put(old, old_public))

    def without_torch(self, node: str) -> ExitStack:
        """The node's Python has no torch: a whiteout lies over its package."""
        import torch

        assert torch.__file__ is not None
        packages = Path(torch.__file__).parent.parent
        cover = self.folder / node / "no_torch"
        cover.mkdir(exist_ok=True)
        for path in (*packages.glob("torch"), *packages.glob("torch-*")):
            with contextlib.suppress(FileExistsError):
                os.mknod(cover / path.name, 0o600, os.makedev(0, 0))
        mount = f"mount -t overlay overlay -o lowerdir={cover}:{packages} {packages}"
        return self._mounted(node, mount, f"umount -l {packages}")

    def full_disk(self, node: str) -> ExitStack:
        """No byte more fits onto the node's scratch."""
        filler = self.scratch / "filler"
        fill = f"fallocate -l {SCRATCH_BYTES} {filler} || cat /dev/zero > {filler} || true"
        return self._mounted(node, fill, f"rm {filler}")

    def read_only_disk(self, node: str) -> ExitStack:
        remount = "mount -o remount,{} {}"
        return self._mounted(node, remount.format("ro", self.scratch), remount.format("rw", self.scratch))

    def _mounted(self, node: str, order: str, undo: str) -> ExitStack:
        def on_node(text: str) -> None:
            done = self.run(node, "sh", "-c", text)
            assert done.returncode == 0, f"{node}: {text}: {done.stderr}"

        return _applied(lambda: on_node(order), lambda: on_node(undo))

    def _listener(self, node: str) -> int:
        """sshd's own process: the child of the node's first one."""
        return next(pid for pid in _children(self._first[node]) if _command(pid).startswith("sshd"))

    def _listens(self, node: str) -> bool:
        """A listening socket on port 22, as /proc/net/tcp has it: `0: 00000000:0016 00000000:0000 0A ...`"""
        rows = Path(f"/proc/{self._first[node]}/net/tcp").read_text().splitlines()
        return any(row.split()[1].endswith(":0016") and row.split()[3] == "0A" for row in rows[1:])

    def wait(self, true: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
        until = time.monotonic() + seconds
        while not (found := true()):
            dead = [name for name, child in self._children.items() if child.poll() is not None]
            assert not dead, f"{dead} ended while waiting for {what}{self.logs()}"
            assert time.monotonic() < until, f"not within {seconds:g} s: {what}{self.logs()}"
            time.sleep(0.01)
        return found

    def logs(self, lines: int = 12) -> str:
        tails = []
        for path in sorted(self.folder.glob("*/*")):
            if path.name in {"out", "sshd.log"} and (text := path.read_text(errors="replace").splitlines()):
                tails += [f"\n--- {path.relative_to(self.folder)}", *text[-lines:]]
        return "\n".join(tails)


class _Slurm(Slurm):
    """Its controller and its commands are on the head of a NetLab, as the nodes' daemons are on its nodes."""

    def __init__(self, head: tuple[str, ...], folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        self._head = head

    def _spawn(self, name: str, *argv: str) -> None:
        super()._spawn(name, *(self._head if name == "slurmctld" else ()), *argv)

    def run(self, *argv: str, **options: Any) -> str:
        return super().run(*self._head, *argv, **options)


def _rate(bits_per_second: float) -> str:
    """The burst is one packet as the sender's stack makes it (64 KiB): less would cut each one up."""
    bits = round(bits_per_second)
    return f"rate {bits}bit ceil {bits}bit burst 64k cburst 64k quantum 65536"


def _bucket(bits_per_second: float) -> str:
    """The limit holds what several senders have under way to one node: nothing is lost and sent again."""
    return f"tbf rate {round(bits_per_second)}bit burst 128k limit 4m"


def _address(interface: str, address: str) -> list[str]:
    return [f"addr add {address}/24 dev {interface}", f"link set {interface} up"]


def _applied(apply: Callable[[], object], undo: Callable[[], object]) -> ExitStack:
    apply()
    stack = ExitStack()
    stack.callback(undo)
    return stack


def _key(path: Path) -> None:
    if not path.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True)


def _public(path: Path) -> str:
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


def _processes() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _children(pid: int) -> list[int]:
    return [int(word) for word in _said(pid, f"task/{pid}/children").split()]


def _namespace_pids(pid: int) -> list[int]:
    """Its numbers from our namespace down to its own."""
    return _numbers(pid, "NSpid:")


def _parent(pid: int) -> int:
    return next(iter(_numbers(pid, "PPid:")), 0)


def _numbers(pid: int, name: str) -> list[int]:
    """Of a line of its status: `NSpid:	4711	12	1`"""
    rows = _said(pid, "status").splitlines()
    return [int(word) for row in rows if row.startswith(name) for word in row.split()[1:]]


def _command(pid: int) -> str:
    return _said(pid, "comm").strip()


def _said(pid: int, file: str) -> str:
    """Nothing of a process that is gone meanwhile."""
    try:
        return Path(f"/proc/{pid}/{file}").read_text()
    except OSError:
        return ""


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:  # gone meanwhile
        return ""


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
