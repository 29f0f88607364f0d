"""What one `clustertools check` costs a node: wall time, CPU time and peak memory, beside a bare Python.

A prolog and a health check every minute start from nothing each time, so imports are most of the bill.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

RUNS = int(os.environ.get("RUNS", "15"))
CASES = {
    "python -c pass": ["-c", "pass"],
    "python -I -c pass": ["-I", "-c", "pass"],
    "clustertools --version": ["-I", "-m", "clustertools", "--version"],
    "clustertools check --list": ["-I", "-m", "clustertools", "check", "--list"],
    "clustertools check": ["-I", "-m", "clustertools", "check"],
}


@dataclass(frozen=True)
class Cost:
    """One run. `peak_mib` is the largest process of it: itself or one of its children."""

    wall_ms: float
    cpu_ms: float
    peak_mib: float


def cost(arguments: list[str]) -> Cost:
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, _, usage = os.wait4(child.pid, 0)
    child.returncode = 0
    wall = time.perf_counter() - began
    return Cost(wall * 1000, (usage.ru_utime + usage.ru_stime) * 1000, usage.ru_maxrss / 1024)


def main() -> None:
    print(f"median of {RUNS} runs (smallest wall time in brackets); ratios to the first row")
    print(f"{'':28}{'wall ms':>18}{'CPU ms':>9}{'peak MiB':>10}{'wall':>8}{'memory':>8}")
    base: Cost | None = None
    for name, arguments in CASES.items():
        cost(arguments)  # once for the page cache and the .pyc files
        runs = [cost(arguments) for _ in range(RUNS)]
        middle = Cost(
            statistics.median(r.wall_ms for r in runs),
            statistics.median(r.cpu_ms for r in runs),
            statistics.median(r.peak_mib for r in runs),
        )
        base = base or middle
        wall = f"{middle.wall_ms:.0f} ({min(r.wall_ms for r in runs):.0f})"
        ratios = f"{middle.wall_ms / base.wall_ms:>7.1f}x{middle.peak_mib / base.peak_mib:>7.1f}x"
        print(f"{name:28}{wall:>18}{middle.cpu_ms:>9.0f}{middle.peak_mib:>10.1f}{ratios}")


if __name__ == "__main__":
    main()
