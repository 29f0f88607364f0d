"""One pass of the cluster's watchdog over many jobs: CPU seconds, memory, size of the state.

    python benchmarks/watch_scale.py                  1,000 jobs on 10,000 nodes, logs on tmpfs
    python benchmarks/watch_scale.py --fuse           the same below a FUSE mount, as on a shared file system
    python benchmarks/watch_scale.py --profile 3      where pass 3 spent its time

Slurm's answers are made up (tests/lab/many_nodes.py), all files are real. The first pass is cold: every log
and checkpoint is seen for the first time. Before each of the others every log has grown by three lines. CPU
time is that of this process and of all its children; what Slurm's own commands take is not in it.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import os
import platform
import pstats
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from clustertools.check import discover  # noqa: E402
from clustertools.policy import load_playbooks  # noqa: E402
from clustertools.schedulers.slurm import SlurmScheduler  # noqa: E402
from clustertools.store import Store  # noqa: E402
from clustertools.watchdog import Settings, Watchdog  # noqa: E402
from tests.lab.many_jobs import ManyJobs  # noqa: E402
from tests.lab.many_nodes import BigCluster, wanted  # noqa: E402

TICK = os.sysconf("SC_CLK_TCK")
#: What a pass over a thousand jobs may take.
TARGET_CPU_SECONDS, TARGET_MIB = 2.0, 250.0


def cpu_seconds() -> float:
    """Of this process and of all that it started, those that still live included."""
    mine = os.times()
    total = mine.user + mine.system + mine.children_user + mine.children_system
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text().rsplit(") ", 1)[1].split()
            if int(fields[1]) == os.getpid():
                total += sum(int(field) for field in fields[11:15]) / TICK
    return total


def memory_mib() -> tuple[float, float]:
    """Resident now: this process, and its children together."""

    def of(pid: str) -> float:
        text = Path(f"/proc/{pid}/status").read_text()
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS")) / 1024

    children = 0.0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, StopIteration):
            if int(entry.read_text().rsplit(") ", 1)[1].split()[1]) == os.getpid():
                children += of(entry.parent.name)
    return of("self"), children


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """The folder once more, below a FUSE mount: a file system that may hang its reader."""
    point = folder.with_name(folder.name + "-fuse")
    point.mkdir()
    server = subprocess.Popen(["bindfs", "-f", str(folder), str(point)])
    try:
        while not os.path.ismount(point):
            time.sleep(0.02)
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=False)
        server.terminate()
        server.wait(5)


def watchdog(site: ManyJobs, cluster: BigCluster, state: Path) -> Watchdog:
    checks = [check for check in discover(site_folders=()).values() if "job" in check.stages]
    return Watchdog(
        Store(state), cluster, SlurmScheduler(cluster), checks, playbooks=load_playbooks(()),
        settings=Settings(), wanted=wanted(site),
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--fuse", action="store_true", help="logs below a FUSE mount (root, bindfs)")
    parser.add_argument("--profile", type=int, default=-1, metavar="PASS")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    options = parser.parse_args()
    top = Path(tempfile.mkdtemp(prefix="watch-scale-", dir=options.folder))
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, top)
        site = ManyJobs(top / "runs", options.jobs)
        if options.fuse:
            site.folder = stack.enter_context(mounted(site.folder))
        cluster = BigCluster(site, options.nodes)
        dog = watchdog(site, cluster, top / "state.db")
        stack.callback(dog.store.close)
        print(
            f"{'pass':8}{'CPU s':>8}{'wall s':>8}{'verdicts':>10}{'findings':>10}{'blind':>7}"
            f"{'MiB':>6}{'+children':>10}{'state MB':>10}"
        )
        worst = 0.0
        for number in range(options.passes):
            if number:
                site.grow()
            profile = cProfile.Profile() if number == options.profile else None
            began, cpu = time.perf_counter(), cpu_seconds()
            if profile:
                profile.enable()
            seen = dog.once()
            if profile:
                profile.disable()
            cpu, wall = cpu_seconds() - cpu, time.perf_counter() - began
            own, children = memory_mib()
            size = sum(path.stat().st_size for path in top.glob("state.db*")) / 1e6
            findings = sum(len(verdict.findings) for verdict in seen.verdicts)
            name = "cold" if number == 0 else f"warm {number}"
            print(
                f"{name:8}{cpu:8.2f}{wall:8.2f}{len(seen.verdicts):10}{findings:10}{len(seen.blind):7}"
                f"{own:6.0f}{children:10.0f}{size:10.1f}",
                flush=True,
            )
            worst = max(worst, cpu) if number and not profile else worst
            if profile:
                pstats.Stats(profile).sort_stats("cumulative").print_stats(70)
        began = cpu_seconds()
        known = dog.scheduler.nodes()  # type: ignore[attr-defined]
        print(f"all {len(known)} nodes once: {cpu_seconds() - began:.2f} s CPU")
    print(
        f"worst warm pass {worst:.2f} s CPU (target {TARGET_CPU_SECONDS}), "
        f"{own:.0f} MiB (target {TARGET_MIB:.0f})"
    )
    return 0 if worst <= TARGET_CPU_SECONDS and own <= TARGET_MIB else 1


if __name__ == "__main__":
    raise SystemExit(main())
