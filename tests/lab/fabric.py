"""A real InfiniBand fabric without hardware: ibsim holds the switches and adapters, OpenSM brings them up.

    with FabricLab(fat_tree(16, down=4, spines=2)) as lab:
        lab.unlink(adapter_guid(5), 1)
        lab.host().run("iblinkinfo", "-l").stdout

The tools of infiniband-diags run unchanged: a preloaded library sends their MADs to the simulator instead of
/dev/infiniband/umad*. No root is needed, and several fabrics live side by side, each on its own socket.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from clustertools.errors import Absent
from clustertools.host import Completed, LocalHost, PassingHost

PRELOAD = Path("/usr/lib/x86_64-linux-gnu/umad2sim/libumad2sim.so")
TOOLS = ("ibsim", "opensm", "iblinkinfo", "ibnetdiscover", "ibqueryerrors", "perfquery", "sminfo")
#: A test that is killed leaves no simulator behind.
_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()


def missing() -> list[str]:
    """What of it is not installed."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    lacking = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    return lacking if PRELOAD.exists() else [*lacking, str(PRELOAD)]


def adapter_guid(host: int, rail: int = 0) -> int:
    return 0x0002C90300000000 + host * 0x1000 + rail * 0x10


def leaf_guid(leaf: int) -> int:
    return 0xE41D2D0300000000 + leaf * 0x10


def spine_guid(spine: int) -> int:
    return 0xE41D2D0400000000 + spine * 0x10


def fat_tree(
    hosts: int,
    *,
    rails: int = 1,
    down: int = 4,
    spines: int = 2,
    speed: str = "4xHDR",
    links: Mapping[tuple[str, int], str] | None = None,
    swap: tuple[int, int] = (0, 0),
) -> str:
    """A rail-optimised two-level fat tree in ibnetdiscover's format, which ibsim reads.

    Host h hangs with rail r at port h % down + 1 of leaf (h // down) * rails + r; port down + s + 1 of
    the leaf leads to spine s. `links` gives links another width and speed by the switch
    port: {("leaf001", 3): "1xHDR"}; `swap` exchanges the cables of two hosts. ibsim 0.10 knows
    speeds up to HDR, and a switch may have 254 ports.
    """
    links = links or {}
    leaves = -(-hosts // down) * rails
    out: list[str] = []
    place = {**{h: h for h in range(hosts)}, swap[0]: swap[1], swap[1]: swap[0]}

    def rate(leaf: int, port: int) -> str:
        return links.get((f"leaf{leaf:03d}", port), speed)

    for h in range(hosts):
        for r in range(rails):
            guid, leaf, port = adapter_guid(h, r), place[h] // down * rails + r, place[h] % down + 1
            out.append(f"vendid=0x2c9\ndevid=0x101b\nsysimgguid=0x{guid:x}\ncaguid=0x{guid:x}")
            out.append(f'Ca\t1 "H-{guid:016x}"\t\t# "node{h:04d} mlx5_{r}"')
            out.append(
                f'[1]({guid + 1:x}) \t"S-{leaf_guid(leaf):016x}"[{port}]\t\t'
                f'# lid 0 lmc 0 "leaf{leaf:03d}" lid 0 {rate(leaf, port)}\n'
            )
    for leaf in range(leaves):
        guid = leaf_guid(leaf)
        out.append(f"vendid=0x2c9\ndevid=0xd2f0\nsysimgguid=0x{guid:x}\nswitchguid=0x{guid:x}({guid:x})")
        out.append(
            f'Switch\t{down + spines} "S-{guid:016x}"\t\t# "leaf{leaf:03d}" enhanced port 0 lid 0 lmc 0'
        )
        for p in range(down):
            h, r = leaf // rails * down + p, leaf % rails
            if h < hosts:
                h = place[h]
                ca = adapter_guid(h, r)
                out.append(
                    f'[{p + 1}]\t"H-{ca:016x}"[1]({ca + 1:x}) \t\t'
                    f'# "node{h:04d} mlx5_{r}" lid 0 {rate(leaf, p + 1)}'
                )
        for s in range(spines):
            port = down + s + 1
            out.append(
                f'[{port}]\t"S-{spine_guid(s):016x}"[{leaf + 1}]\t\t# "spine{s:03d}" lid 0 {rate(leaf, port)}'
            )
        out.append("")
    for s in range(spines):
        guid = spine_guid(s)
        out.append(f"vendid=0x2c9\ndevid=0xd2f0\nsysimgguid=0x{guid:x}\nswitchguid=0x{guid:x}({guid:x})")
        out.append(f'Switch\t{leaves} "S-{guid:016x}"\t\t# "spine{s:03d}" enhanced port 0 lid 0 lmc 0')
        for leaf in range(leaves):
            port = down + s + 1
            out.append(
                f'[{leaf + 1}]\t"S-{leaf_guid(leaf):016x}"[{port}]\t\t'
                f'# "leaf{leaf:03d}" lid 0 {rate(leaf, port)}'
            )
        out.append("")
    return "\n".join(out) + "\n"


class FabricLab:
    """One fabric: a simulator, a subnet manager and the folder in which they live. A context manager."""

    def __init__(self, topology: str, *, opensm: tuple[str, ...] = (), seen_from: str = "") -> None:
        self.topology = topology
        self._opensm_options = opensm
        self._seen_from = seen_from
        self._children: list[subprocess.Popen[bytes]] = []
        self.folder = Path()

    def __enter__(self) -> FabricLab:
        self.folder = Path(tempfile.mkdtemp(prefix="ct-fabric-"))
        try:
            self._up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for child in reversed(self._children):
            child.kill()
            child.wait()
        if self._children and self._children[0].stdin:
            self._children[0].stdin.close()
        self._children.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _up(self, seconds: float = 90.0) -> None:
        net = self.folder / "net"
        net.write_text(self.topology)
        log = self.folder / "ibsim.log"
        # its defaults stop at 2048 nodes and 256 switches
        sizes = ("-N", "12000", "-S", "1024", "-P", "131072", "-L", "49151")
        with log.open("wb") as out:
            self._children.append(
                subprocess.Popen(
                    [*_DIES_WITH_US, "ibsim", "-s", *sizes, str(net)],
                    stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, env=self._environment(),
                )
            )  # fmt: skip
        deadline = time.monotonic() + seconds
        self._until(lambda: b"simulator ready" in log.read_bytes(), deadline, "ibsim")
        self.start_manager()
        self._until(lambda: bool(list(self.folder.glob("osm/opensm-subnet.lst"))), deadline, "opensm")
        self.settle(deadline - time.monotonic())

    def _environment(self) -> dict[str, str]:
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        return {"PATH": path, "LC_ALL": "C", "IBSIM_SOCKNAME": self.folder.name}

    def start_manager(self, seen_from: str = "", priority: int | None = None) -> subprocess.Popen[bytes]:
        """An OpenSM, on the adapter of that name when given (the first starts by itself)."""
        place = self.folder / ("osm" if not seen_from else f"osm-{len(self._children)}")
        place.mkdir(exist_ok=True)
        environment = {
            **self._environment(), "LD_PRELOAD": str(PRELOAD), "OSM_TMP_DIR": str(place),
            "OSM_CACHE_DIR": str(place), **({"SIM_HOST": seen_from} if seen_from else {}),
        }  # fmt: skip
        command = [*_DIES_WITH_US, "opensm", "-f", str(place / "opensm.log"), *self._opensm_options]
        command += [] if priority is None else ["-p", str(priority)]
        with (place / "out").open("wb") as out:
            child = subprocess.Popen(
                command, cwd=place, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                env=environment,
            )  # fmt: skip
        self._children.append(child)
        return child

    def _until(self, done: object, deadline: float, what: str) -> None:
        while not done():  # type: ignore[operator]
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{what} did not come up; {(self.folder / 'ibsim.log').read_text()[-500:]}"
                )
            for child in self._children:
                if child.poll() is not None:
                    raise RuntimeError(f"{child.args!r} ended with {child.returncode}")
            time.sleep(0.05)

    def settle(self, seconds: float = 30.0) -> None:
        """Wait until no link is between Down and Active."""

        def quiet() -> bool:
            done = self.run("iblinkinfo", "-l")
            return done.returncode == 0 and "Init" not in done.stdout and "Armed" not in done.stdout

        self._until(quiet, time.monotonic() + seconds, "the links")

    def argv(self, *argv: str, seen_from: str = "") -> tuple[str, ...]:
        """The command line that runs a tool inside; in the folder, since the preload makes ./sys-PID."""
        seen_from = seen_from or self._seen_from
        where = (f"SIM_HOST={seen_from}",) if seen_from else ()
        return (
            "env", "-C", str(self.folder), f"LD_PRELOAD={PRELOAD}", f"IBSIM_SOCKNAME={self.folder.name}",
            *where, *argv,
        )  # fmt: skip

    def run(self, *argv: str, seen_from: str = "", timeout_seconds: float = 60.0) -> Completed:
        """A tool's answer inside this fabric."""
        return LocalHost().run(*self.argv(*argv, seen_from=seen_from), timeout_seconds=timeout_seconds)

    def console(self, command: str) -> None:
        """A command of ibsim's console: Unlink, ReLink, PerformanceSet, Error ..."""
        console = self._children[0].stdin
        assert console is not None
        console.write(command.encode() + b"\n")
        console.flush()
        time.sleep(0.1)
        complaint = (self.folder / "ibsim.log").read_text().splitlines()[-1:]
        if complaint and ("error" in complaint[0].lower() or "unknown" in complaint[0].lower()):
            raise ValueError(f"{command}: {complaint[0]}")

    def unlink(self, guid: int, port: int | None = None) -> None:
        """Pull the cable from a port, or all cables of a node."""
        self.console(f"Unlink {_node(guid)}{_port(port)}")

    def relink(self, guid: int, port: int | None = None) -> None:
        self.console(f"ReLink {_node(guid)}{_port(port)}")

    def count(self, guid: int, port: int, **counters: int) -> None:
        """Set counters of a port: SymbolErrorCounter=4321, LinkDownedCounter=3."""
        for name, value in counters.items():
            self.console(f"PerformanceSet {_node(guid)}{_port(port)} PortCounters.{name}={value}")

    def host(self, number: int = 0) -> FabricHost:
        """A machine of this fabric as the checks see it."""
        name = f"node{number:04d}"
        return FabricHost(LocalHost(name), self, seen_from=f"{name} mlx5_0", files=port_files())


def _node(guid: int) -> str:
    kind = "S" if guid >> 32 >= 0xE41D2D03 else "H"
    return f'"{kind}-{guid:016x}"'


def _port(port: int | None) -> str:
    return "" if port is None else f"[{port}]"


def port_files(*, device: str = "ibsim0", state: str = "4: ACTIVE") -> dict[str, str]:
    """/sys of an adapter with one port, as the kernel's drivers fill it."""
    folder = f"/sys/class/infiniband/{device}/ports/1"
    return {
        "/sys/class/infiniband_mad/umad0/ibdev": f"{device}\n",
        "/sys/class/infiniband_mad/umad0/port": "1\n",
        "/dev/infiniband/umad0": "",
        f"{folder}/link_layer": "InfiniBand\n",
        f"{folder}/state": f"{state}\n",
        f"{folder}/phys_state": "3: Disabled\n" if state.endswith("DOWN") else "5: LinkUp\n",
    }


class FabricHost(PassingHost):
    """The port `Host`: tools run in the simulator, files are those given, the clock is set by hand."""

    def __init__(self, local: LocalHost, lab: FabricLab, *, seen_from: str, files: dict[str, str]) -> None:
        super().__init__(local)
        self.lab, self.seen_from, self.files = lab, seen_from, files
        self.time = 1_786_000_000.0

    def now(self) -> float:
        return self.time

    def run(self, *argv: str, timeout_seconds: float = 10.0, stdin: str = "") -> Completed:
        return self.lab.run(*argv, seen_from=self.seen_from, timeout_seconds=timeout_seconds)

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        if path not in self.files:
            raise Absent(f"{path}: no such file")
        return self.files[path][offset : None if limit is None else offset + limit]

    def glob(self, pattern: str) -> list[str]:
        depth = pattern.count("/")
        short = {"/".join(path.split("/")[: depth + 1]) for path in self.files}
        return sorted(path for path in short if fnmatch.fnmatchcase(path, pattern))


# ------------------------------------------------------------------ recordings

RECORDED = Path(__file__).parent / "recorded_fabric"
#: The answers that the recorded hosts need, as asked through the first port of the host that looks.
ANSWERS = {
    "iblinkinfo": ("iblinkinfo", "-l"),
    "ibqueryerrors": ("ibqueryerrors", "--switch"),
    "sminfo": ("sminfo",),
    "saquery": ("saquery", "SMIR"),
    "peer": ("iblinkinfo", "-l", "-D", "0"),
    "perfquery": ("perfquery", "2", "1"),  # leaf000, port 1
}


def break_it(lab: FabricLab) -> None:
    """leaf003 is dead, three of the four hosts of leaf002 are gone, node0005 too, one uplink is cut."""
    lab.unlink(leaf_guid(3))
    for host in (8, 9, 10, 5):
        lab.unlink(adapter_guid(host), 1)
    lab.unlink(leaf_guid(1), 6)
    lab.count(leaf_guid(0), 2, SymbolErrorCounter=65535, PortRcvErrors=4122)


def main() -> None:
    """Record the fabric when it is well and when it is not: `python -m tests.lab.fabric`."""
    faulty = fat_tree(
        16, down=4, spines=2, links={("leaf001", 3): "1xHDR", ("leaf000", 6): "4xEDR"}, swap=(2, 3)
    )
    for name, topology in (("healthy", fat_tree(16, down=4, spines=2)), ("faulty", faulty)):
        with FabricLab(topology) as lab:
            if name == "faulty":
                break_it(lab)
                time.sleep(1.0)
            for answer, argv in ANSWERS.items():
                place = RECORDED / name / f"{answer}.txt"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(lab.run(*argv).stdout)


if __name__ == "__main__":
    main()
