"""One command on many real sshd's: ours beside pdsh, clush, parallel-ssh and the ssh libraries.

`python benchmarks/fanout.py --hosts 200 --rounds 5 --with-peers` also installs the libraries, into a folder
that is deleted again. All rounds are interleaved, so that a busy moment hits everybody. The sshd's run on the
same machine: wall time is about half the CPU time of both sides on two CPUs, and the client's own CPU time is
what is comparable between machines.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from tests.lab.sshd import Sshds  # noqa: E402

HERE = Path(__file__).resolve().parent
LIBRARIES = ("paramiko", "fabric", "asyncssh", "parallel_ssh")
PACKAGES = ("paramiko", "fabric", "asyncssh", "parallel-ssh", "ansible-core")
KEX = "KexAlgorithms=curve25519-sha256"
OURS = "clustertools on"


@dataclass
class Measured:
    """The rounds of one of them."""

    argv: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    complaint: str = ""

    def go(self, count: int) -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        done = subprocess.run(
            self.argv, env={**os.environ, **self.environment}, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors="replace", timeout=300, check=False,
        )  # fmt: skip
        self.wall.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        answered = done.stdout.count("load average") or json_answered(done.stdout)
        if answered < count and not self.complaint:
            self.complaint = f"{answered} of {count} answered: {done.stderr.strip()[-120:]!r}"


def json_answered(text: str) -> int:
    with contextlib.suppress(ValueError, IndexError):
        return int(json.loads(text.strip().splitlines()[-1])["answered"])
    return 0


@contextlib.contextmanager
def servers(count: int) -> Iterator[Sshds]:
    with tempfile.TemporaryDirectory(prefix="fanout") as folder:
        # all with the same number of connections allowed at once as hosts: a gateway is not what is measured
        lab = Sshds(Path(folder) / "lab", count, prefix="node", extra="MaxStartups 300:30:300")
        with lab:
            yield lab


def contestants(lab: Sshds, count: int, python: str | None) -> dict[str, Measured]:
    config, nodes = str(lab.ssh_config), f"node[1-{count}]"
    found = {
        OURS: Measured(
            [sys.executable, "-m", "clustertools", "on", "-F", config, "-w", nodes, "--json", "--", "uptime"],
            {"PYTHONPATH": str(REPOSITORY)},
        )
    }
    hosts = lab.folder / "hosts"
    hosts.write_text("\n".join(lab.nodes) + "\n")
    for label, kex in (("", ""), (", curve25519", f" -o {KEX}")):
        if shutil.which("pdsh"):
            found["pdsh" + label] = Measured(
                ["pdsh", "-R", "ssh", "-f", str(count), "-w", nodes, "uptime"],
                {"PDSH_SSH_ARGS_APPEND": f"-F {config}{kex}", "PDSH_SSH_ARGS": f"-2 -a -x -l{lab.user} %h"},
            )
        if shutil.which("clush"):
            found["clush" + label] = Measured(
                ["clush", "-f", str(count), "-O", f"ssh_options=-F {config}{kex}", "-w", nodes, "uptime"]
            )
        if shutil.which("parallel-ssh"):
            extra = ["-O", KEX] if kex else []
            found["parallel-ssh (pssh)" + label] = Measured(
                [
                    "parallel-ssh",
                    "-i",
                    "-p",
                    str(count),
                    "-h",
                    str(hosts),
                    "-x",
                    f"-F {config}",
                    *extra,
                    "uptime",
                ]
            )
    if python:
        for name in LIBRARIES:
            argv = [python, str(HERE / "fanout_peers.py"), name, config, str(count), "1", str(count)]
            found[name.replace("_", "-") + " (library)"] = Measured(argv)
        ansible = Path(python).parent / "ansible"
        if ansible.exists():
            inventory = lab.folder / "inventory"
            inventory.write_text("[lab]\n" + "\n".join(lab.nodes) + "\n")
            found["ansible -m raw, curve25519"] = Measured(
                [str(ansible), "-i", str(inventory), "lab", "-m", "raw", "-a", "uptime", "-f", str(count)],
                {
                    "ANSIBLE_SSH_ARGS": f"-F {config} -o {KEX} -o ControlMaster=no",
                    "ANSIBLE_PYTHON_INTERPRETER": "/bin/true",
                    "ANSIBLE_HOME": str(lab.folder / "ansible"),
                },
            )
    return found


def table(title: str, measured: dict[str, Measured]) -> None:
    best = statistics.median(measured[OURS].wall)
    own_cpu = statistics.median(measured[OURS].cpu)
    print(f"\n{title}\n\n| | wall s (median, least) | ours is faster by | client CPU s | CPU to ours |")
    print("|---|---|---|---|---|")
    for name, m in sorted(measured.items(), key=lambda item: statistics.median(item[1].wall)):
        wall, cpu = statistics.median(m.wall), statistics.median(m.cpu)
        note = f" ({m.complaint})" if m.complaint else ""
        figures = f"{wall:.2f}, {min(m.wall):.2f} | {wall / best:.2f} | {cpu:.2f} | {cpu / own_cpu:.1f}"
        print(f"| {name}{note} | {figures} |")


def kept(lab: Sshds, count: int, rounds: int, python: str | None) -> None:
    """The second and third command over connections that are there, beside the first."""
    print("\nThe same connections again\n\n| | first s | next s | faster by |\n|---|---|---|---|")
    for name in ("ours", *(LIBRARIES if python else ())):
        first, later = [], []
        for _ in range(rounds):
            argv = [sys.executable if name == "ours" else str(python), str(HERE / "fanout_peers.py"), name]
            done = subprocess.run(
                [*argv, str(lab.ssh_config), str(count), "3", str(count)], capture_output=True, text=True,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, timeout=300, check=False,
            )  # fmt: skip
            if done.returncode:
                print(f"| {name} | failed: {done.stderr.strip()[-100:]} | | |")
                break
            seconds = json.loads(done.stdout.strip().splitlines()[-1])["seconds"]
            first.append(seconds[0])
            later += seconds[1:]
        else:
            a, b = statistics.median(first), statistics.median(later)
            print(f"| {name} | {a:.2f} | {b:.2f} | {a / b:.1f} |")


def bad_hosts(lab: Sshds, count: int, measured: dict[str, Measured]) -> None:
    """A tenth of them in trouble, of every kind: nobody may wait longer than the connect deadline."""
    bad = lab.nodes[: count // 10]
    changed: dict[str, str | None] = {}
    for number, name in enumerate(bad):
        kind = number % 4
        if kind == 0:
            lab.kill(name)
        elif kind == 1:
            lab.hang(name)
        elif kind == 2:
            lab.configure(name, refuses=True)
            lab.start(name)
            lab.wait_for(name)
        else:
            other = (lab.folder / f"{lab.nodes[-1]}.key.pub").read_text().split()[:2]
            changed[name] = " ".join(other)
    lab.write_known_hosts(changed)
    one = measured[OURS]
    began = time.perf_counter()
    done = subprocess.run(
        one.argv, env={**os.environ, **one.environment}, capture_output=True, text=True, check=False
    )
    wall = time.perf_counter() - began
    fates: dict[str, int] = {}
    for line in done.stdout.splitlines():
        fate = json.loads(line)["fate"]
        fates[fate] = fates.get(fate, 0) + 1
    print(
        f"\n{len(bad)} of {count} in trouble (gone, hung, key refused, host key changed), ConnectTimeout 5 s:"
    )
    print(f"ours: {wall:.2f} s, {fates}")
    for name, m in measured.items():
        if name == OURS or ", curve25519" not in name:
            continue
        began = time.perf_counter()
        subprocess.run(
            m.argv, env={**os.environ, **m.environment}, capture_output=True, check=False, timeout=300
        )
        print(f"{name}: {time.perf_counter() - began:.2f} s")


def library_python(folder: Path) -> str:
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = str(folder / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return python


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--with-peers", action="store_true", help="install the libraries, for the time of this"
    )
    parser.add_argument("--peers-python", help="a Python that has the libraries already")
    parser.add_argument("--only", default="", help="only those whose name has this in it, and ours")
    options = parser.parse_args(arguments or [])
    with contextlib.ExitStack() as stack:
        python = options.peers_python
        if options.with_peers:
            python = library_python(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers"))))
        lab = stack.enter_context(servers(options.hosts))
        measured = contestants(lab, options.hosts, python)
        measured = {n: m for n, m in measured.items() if n == OURS or options.only in n}
        load = []
        for _ in range(options.rounds):
            for one in measured.values():
                load.append(os.getloadavg()[0])
                one.go(options.hosts)
        title = f"{options.hosts} hosts, {options.rounds} rounds interleaved, one process each from its start"
        table(title, measured)
        print(f"\nload average during the rounds: {min(load):.1f} to {max(load):.1f}")
        kept(lab, options.hosts, options.rounds, python)
        bad_hosts(lab, options.hosts, measured)


if __name__ == "__main__":
    from run import machine

    print(f"machine: {machine()}", flush=True)
    main(sys.argv[1:])
