"""Runs every benchmark beside it, or those that are named: `python benchmarks/run.py cold_start`.

A benchmark is a file with a function `main() -> None` that prints its figures. Never part of the tests: a
timed test fails on a busy machine.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from pathlib import Path

HERE = Path(__file__).parent


def machine() -> str:
    """The machine in one line, since a figure without it says nothing."""
    model = "unknown CPU"
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError as exc:
        model = f"CPU unknown ({exc.strerror})"
    cpus = len(os.sched_getaffinity(0))
    return f"{model}, {cpus} CPUs usable, Linux {platform.release()}, Python {platform.python_version()}"


def run(path: Path) -> None:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    print(f"\n== {path.stem}: {(module.__doc__ or '').strip().splitlines()[0]}", flush=True)
    module.main()


def main() -> int:
    wanted = sys.argv[1:]
    found = {p.stem: p for p in sorted(HERE.glob("*.py")) if p.stem != "run"}
    unknown = [name for name in wanted if name not in found]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(found)}", file=sys.stderr)
        return 3
    print(f"machine: {machine()}; load average {os.getloadavg()[0]:.1f}")
    for name in wanted or found:
        run(found[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
