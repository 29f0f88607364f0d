"""A real Slurm of a few virtual nodes on this machine: its own munge, ports and folders; no systemd.

    with Slurm(folder, nodes=3, health=script) as slurm:
        slurm.run("srun", "-N2", "hostname")
        slurm.batch("#!/bin/sh\nsrun hostname\n", "-N2")

As root each node has its own pid, mount and UTS namespace: its host name differs, its /run and
/etc/clustertools are its own, and killing it kills all that runs on it. Otherwise the nodes are plain
`slurmd -N`. Nodes may lie in network namespaces that somebody else made: `prefix` and `addresses`.
Everything dies with the process that made it, also when that is killed: `setpriv --pdeathsig` outside,
`unshare --kill-child` inside.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("slurmctld", "slurmd", "munged", "setpriv", "unshare", "tini")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
#: For tests with a real Slurm whose nodes are to be apart from each other.
needs_slurm = pytest.mark.skipif(
    os.geteuid() != 0 or bool(MISSING), reason=f"needs root, slurm-wlm, munge and tini (missing: {MISSING})"
)
SOON_SECONDS = 30.0

# AuthInfo cred_expire: a requeued batch job waits for the life of its credential, 120 s by default.
# The short timeouts make a dead node visible within seconds. See slurm.conf(5), Slurm 22.05.
CONF = """
ClusterName=lab
SlurmctldHost=localhost({controller})
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/log/slurmd-%n.log
SlurmdSpoolDir={folder}/spool/%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
MpiDefault=none
SwitchType=switch/none
ReturnToService=1
SlurmdTimeout=10
SlurmctldTimeout=2
TCPTimeout=1
MessageTimeout=5
KillWait=3
MinJobAge=300
GresTypes=gpu
{scripts}
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""

# /etc/slurm is where Slurm's own commands look: a health check is given no SLURM_CONF
NODE = """#!/bin/sh
set -e
hostname {name}
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount --bind {folder}/etc/slurm /etc/slurm
mkdir -p /etc/clustertools
mount --bind {folder}/{name}/clustertools /etc/clustertools
exec tini -- slurmd -D -N {name}
"""


class Slurm:
    """The cluster; use it as a context manager. `conf` is its slurm.conf, `log` its logs' folder.

    `health`, `prolog` and `epilog` are programs for slurm.conf; `node_folder(n)` is what the node sees as
    /etc/clustertools. `gpus` are GPUs a node that are nothing but names (as root).

    `prefix` starts a node's daemon by other words (`{"n1": ("ip", "netns", "exec", "ct1")}`, as root),
    `addresses` says where the head and the other nodes reach it, `controller` where they reach slurmctld.
    """

    def __init__(
        self, folder: Path, nodes: int = 2, *, health: Path | str = "", prolog: Path | str = "",
        epilog: Path | str = "", interval_seconds: int = 2, extra: str = "", cpus: int = 4,
        gpus: int = 0, prefix: Mapping[str, Sequence[str]] | None = None,
        addresses: Mapping[str, str] | None = None, controller: str = "127.0.0.1",
    ) -> None:  # fmt: skip
        self.folder, self.log, self.conf = folder, folder / "log", folder / "etc" / "slurm" / "slurm.conf"
        self.nodes = [f"n{i}" for i in range(1, nodes + 1)]
        self.is_apart = os.geteuid() == 0
        self.extra, self.cpus, self.gpus = extra, cpus, gpus
        self.prefix, self.addresses, self.controller = prefix or {}, addresses or {}, controller
        self.scripts = {"Prolog": str(prolog), "Epilog": str(epilog), "HealthCheckProgram": str(health)}
        self.interval_seconds = interval_seconds
        self._batches = 0
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Slurm:
        if self._children:  # started already
            return self
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in [*self.nodes, "slurmctld", "munged"]:
            self.kill(name)
        with contextlib.suppress(OSError):  # the last steps' leftovers may still be on their way out
            shutil.rmtree(self.folder / "spool")

    def _start(self) -> None:
        for name in ("log", "state", "spool", "etc/slurm"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for path in (self.folder, *self.folder.parents):
            if path != Path("/tmp") and path.is_relative_to("/tmp"):  # munge: no socket below a closed folder
                path.chmod(0o755)
        self._write_conf()
        self._start_munge()
        self.start("slurmctld")
        for name in self.nodes:
            self.start(name)
        self.wait(lambda: set(self.states().values()) == {"idle"}, "all nodes idle")

    def _write_conf(self) -> None:
        port = _free_ports(len(self.nodes) + 1)
        lines = [f"{key}={value}" for key, value in self.scripts.items() if value]
        if self.scripts["HealthCheckProgram"]:
            lines += [f"HealthCheckInterval={self.interval_seconds}", "HealthCheckNodeState=ANY"]
        nodes = [
            f"NodeName={name} NodeHostname=localhost NodeAddr={self.addresses.get(name, '127.0.0.1')} "
            f"Port={port + i} CPUs={self.cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={self.cpus} "
            f"ThreadsPerCore=1 RealMemory=100" + (f" Gres=gpu:{self.gpus}" if self.gpus else "")
            for i, name in enumerate(self.nodes, 1)
        ]
        if self.gpus:
            for i in range(self.gpus):
                # slurmd wants devices, and takes a GPU's number from its name; these are /dev/null
                os.mknod(self.folder / f"nvidia{i}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            files = f"{self.folder}/nvidia[0-{self.gpus - 1}]"
            (self.conf.parent / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={files}\n")
        self.conf.write_text(
            CONF.format(
                port=port, user=getpass.getuser(), folder=self.folder, names=",".join(self.nodes),
                controller=self.controller, nodes="\n".join(nodes), scripts="\n".join([*lines, self.extra]),
            )
        )  # fmt: skip
        # nothing here uses it; slurmd, left to find it out, needs /sys/fs/cgroup, which "ip netns exec" hides
        (self.conf.parent / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        for name in self.nodes:
            self.node_folder(name).mkdir(parents=True, exist_ok=True)
            program = self.folder / name / "node"
            program.write_text(NODE.format(name=name, folder=self.folder))
            program.chmod(0o755)

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        folder.mkdir(mode=0o755)
        (folder / "key").write_bytes(os.urandom(1024))
        (folder / "key").chmod(0o400)
        self._spawn(
            "munged", "munged", "--foreground", "--force", f"--key-file={folder}/key",
            f"--socket={folder}/socket", f"--pid-file={folder}/pid", f"--log-file={folder}/log",
            f"--seed-file={folder}/seed",
        )  # fmt: skip
        self.wait(lambda: (folder / "socket").exists(), "munge's socket")

    def _spawn(self, name: str, *argv: str) -> None:
        self.kill(name)
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SLURM_CONF": str(self.conf)}
        if self.is_apart and name in self.nodes:
            environment.pop("SLURM_CONF")  # found in the node's own /etc/slurm
        with open(self.log / f"{name}.out", "ab") as out:
            self._children[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *argv], env=environment, stdin=subprocess.DEVNULL,
                stdout=out, stderr=out, cwd="/", start_new_session=True,
            )  # fmt: skip

    def start(self, name: str) -> None:
        """Start `slurmctld` or a node (again)."""
        if name == "slurmctld":
            # its helper for scripts dies with it in a namespace of their own, and only there
            apart = ("unshare", "--pid", "--fork", "--kill-child=KILL") if self.is_apart else ()
            self._spawn(name, *apart, "slurmctld", "-D")
        elif self.is_apart:
            self._spawn(
                name, *self.prefix.get(name, ()), "unshare", "--pid", "--fork", "--kill-child=KILL",
                "--mount", "--mount-proc", "--uts", str(self.folder / name / "node"),
            )  # fmt: skip
        else:
            self._spawn(name, "slurmd", "-D", "-N", name)

    def kill(self, name: str) -> None:
        """End a daemon at once, as a power cut would: with all that runs on the node."""
        child = self._children.pop(name, None)
        if child is None:
            return
        # the first process of a namespace takes the others with it; unshare then reaps it and ends by itself
        first = Path(f"/proc/{child.pid}/task/{child.pid}/children")
        with contextlib.suppress(OSError, ProcessLookupError, subprocess.TimeoutExpired):
            for pid in first.read_text().split():
                os.kill(int(pid), signal.SIGKILL)
                child.wait(2)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(10)

    def enter(self, node: str, *argv: str, **environment: str) -> subprocess.Popen[str]:
        """A process inside a node, with nothing in its environment but what is given here."""
        first = Path(f"/proc/{self._children[node].pid}/task/{self._children[node].pid}/children")
        pid = first.read_text().split()[0]
        return subprocess.Popen(
            ["/usr/bin/nsenter", "-t", pid, "--mount", "--uts", "--pid", "--net", "--", *argv],
            env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def freeze(self, name: str, number: int = signal.SIGSTOP) -> None:
        """Stop a daemon in its tracks (SIGCONT goes on): it takes connections and answers nothing."""
        os.killpg(self._children[name].pid, number)
        for pid in self._below(self._children[name].pid):  # tini gives slurmd a group of its own
            if Path(f"/proc/{pid}/comm").read_text().strip() == "slurmd":
                os.kill(pid, number)

    def freeze_node(self, node: str, number: int = signal.SIGSTOP) -> None:
        """Stop all that runs on a node."""
        for pid in self._below(self._children[node].pid):
            os.kill(pid, number)

    def _below(self, pid: int) -> list[int]:
        """The children of a process, and theirs."""
        found = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [*found, *(lower for child in found for lower in self._below(child))]

    def node_folder(self, name: str) -> Path:
        return self.folder / name / "clustertools"

    def run(self, *argv: str, check: bool = True, timeout: float = 30.0) -> str:
        """What one of Slurm's commands prints. Raises AssertionError with its complaint."""
        done = subprocess.run(
            argv, env={**os.environ, "SLURM_CONF": str(self.conf)}, capture_output=True, text=True,
            timeout=timeout, check=False, cwd="/",
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{' '.join(argv)}: {done.stderr}{self.logs()}"
        return done.stdout

    def submit(self, script: str, *options: str, arguments: Sequence[str] = (), user: int = 0) -> str:
        """Submit a job script and give its number; `user` submits it as somebody else (as root)."""
        self._batches += 1
        path = self.folder / f"batch{self._batches}"
        path.write_text(script)
        path.chmod(0o755)
        somebody = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups") if user else ()
        said = f"--output={path}-%j.out"
        return self.run(*somebody, "sbatch", "--parsable", said, *options, str(path), *arguments).strip()

    def batch(self, script: str, *options: str, check: bool = True, timeout: float = 60.0) -> str:
        """Submit a job script, wait for its end and give what it said; `options` are sbatch's."""
        self._batches += 1
        path, said = (self.folder / f"batch{self._batches}{end}" for end in ("", ".out"))
        path.write_text(script)
        try:
            self.run(
                "sbatch", "--wait", f"--output={said}", *options, str(path), check=check, timeout=timeout
            )
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n--- the job said\n{said.read_text()}") from exc
        return said.read_text()

    def states(self) -> dict[str, str]:
        """Node -> its state as sinfo says it: idle, drained, down* ..."""
        rows = self.run("sinfo", "-h", "-N", "-o", "%N %T", check=False).split("\n")
        return dict(row.split() for row in rows if row.strip())

    def reasons(self) -> dict[str, str]:
        """Node -> why it is not in service, for those that carry a reason."""
        rows = self.run("sinfo", "-h", "-N", "-o", "%N|%E").splitlines()
        return {n: why for n, _, why in (row.partition("|") for row in rows) if why != "none"}

    def wait(self, true: Any, what: str, seconds: float = SOON_SECONDS) -> Any:
        """Poll until `true()`; AssertionError with the ends of the logs when it never is."""
        until = time.monotonic() + seconds
        while not (found := true()):
            dead = [n for n, c in self._children.items() if c.poll() is not None]
            assert not dead, f"{dead} ended while waiting for {what}{self.logs()}"
            assert time.monotonic() < until, f"not within {seconds:g} s: {what}{self.logs()}"
            time.sleep(0.05)
        return found

    def logs(self, lines: int = 12) -> str:
        tails = []
        for path in sorted(self.log.iterdir()):
            text = path.read_text(errors="replace").splitlines()[-lines:]
            tails += [f"\n--- {path.name}", *text] if text else []
        return "\n".join(tails)


def _free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on; several labs may look at the same time."""
    chance = random.Random(os.getpid() ^ time.monotonic_ns())
    for _ in range(200):
        first = chance.randrange(20000, 32000, 64)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                taken = stack.enter_context(socket.socket())
                taken.bind(("127.0.0.1", port))
            return first
    raise AssertionError("no free ports")


@contextlib.contextmanager
def cluster(folder: Path, **options: Any) -> Iterator[Slurm]:
    """`Slurm`, tried once more when another process took one of its ports in between."""
    try:
        slurm = Slurm(folder, **options).__enter__()
    except AssertionError as exc:
        if "Address already in use" not in str(exc):
            raise
        shutil.rmtree(folder / "munge")
        slurm = Slurm(folder, **options).__enter__()
    with slurm:
        yield slurm
