"""What every check of a node costs on the recording h100-healthy, from a cold start: wall time, CPU, memory.

Nothing is waited for there, no child is started: what is left is our own reading, parsing and judging. The
last row reads the recording without libyaml (PyYAML's C loader), as on a machine whose PyYAML lacks it.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path

from cold_start import cost

HOST = Path(__file__).parents[1] / "tests" / "hosts" / "h100-healthy"
RUNS = int(os.environ.get("RUNS", "15"))
#: A prolog should not be felt.
TARGET_MS = 1000

_CHECK = f"sys.exit(main(['check', '--stage', 'preflight', '--host', {str(HOST)!r}]))"
CASES = {
    "python -c pass": "pass",
    "check, all of a node": f"import sys; from clustertools.cli import main; {_CHECK}",
    "the same without libyaml": (
        f"import sys, yaml; del yaml.CSafeLoader; from clustertools.cli import main; {_CHECK}"
    ),
}


def main() -> None:
    print(f"median of {RUNS} runs (smallest in brackets); target: under {TARGET_MS} ms")
    print(f"{'':28}{'wall ms':>18}{'CPU ms':>9}{'peak MiB':>10}")
    for name, program in CASES.items():
        cost(["-I", "-c", program])  # once for the page cache and the .pyc files
        runs = [cost(["-I", "-c", program]) for _ in range(RUNS)]
        walls = [r.wall_ms for r in runs]
        wall = f"{statistics.median(walls):.0f} ({min(walls):.0f})"
        cpu = statistics.median(r.cpu_ms for r in runs)
        peak = statistics.median(r.peak_mib for r in runs)
        print(f"{name:28}{wall:>18}{cpu:>9.0f}{peak:>10.1f}")


if __name__ == "__main__":
    main()
