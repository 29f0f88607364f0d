"""Makes every fault anew and shows what the watchdog did about it, with the times: docs/faults.md.

    python -m tests.lab.fault_table            prints the table
    python -m tests.lab.fault_table --write    writes docs/faults.md

Needs root, Slurm, munge, tini, bindfs and PyTorch; takes some minutes. Exit code 1 when an answer was wrong.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab import fault_matrix, watch_troubles
from tests.lab.fault_matrix import FAULTS, Row

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
NAMES = [fault.name for fault in (*FAULTS, *watch_troubles.TROUBLES)]
HEAD = """# Faults, and what the watchdog does about them

Each row was made for real: PyTorch jobs over gloo, started by torchrun in batch jobs of a real Slurm, watched
by `clustertools watch --act`, which knows of them no more than their log and the folder of their checkpoints.
*Told* is the time from the fault to the incident, *trains again* that to the job's next step, which with
PyTorch on this machine is mostly the start of PyTorch. Silence is called a hang after 5 s here; the default
is 5 minutes, or five times the longest silence that the job has shown. *Named* is whom the message calls
perhaps guilty; of none of these nodes it is sure enough to leave it out. *From step*: where the job went on;
all of them save every 10 steps.

Measured on {machine}, all within {seconds:.0f} s. Made by
`python -m tests.lab.fault_table --write`; the same plays are the tests `tests/test_fault_matrix.py`.

| Fault | Told as | Named | Told after | What was done | From step | Trains again after |
| --- | --- | --- | ---: | --- | ---: | ---: |
"""


def line(row: Row) -> str:
    """A row of the table."""
    fault = row.fault
    whom = row.named or ("nobody" if row.told else "–")
    cells = (
        fault.name, ", ".join(row.told) or "–", whom,
        _seconds(row.detect_seconds), row.did, "–" if row.resumed is None else str(row.resumed),
        _seconds(row.recover_seconds),
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} s"


def page(rows: Sequence[Row], seconds: float, load: float) -> str:
    return HEAD.format(machine=machine(load), seconds=seconds) + "\n".join(line(row) for row in rows) + "\n"


def machine(load: float) -> str:
    """This machine in words, and how busy it was: what the times depend on."""
    model = next(
        (
            text.partition(":")[2].strip()
            for text in Path("/proc/cpuinfo").read_text().splitlines()
            if text.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, with a load of up to {load:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    told: list[Row] = []
    wrong, load, began = False, 0.0, time.monotonic()
    for play in (fault_matrix.play, watch_troubles.blind, watch_troubles.killed):
        with tempfile.TemporaryDirectory(prefix="faults") as name:
            rows = play(Path(name))
        for row in rows:
            print(line(row), *row.wrong, sep="\n  WRONG: ", flush=True)
        wrong = wrong or any(row.wrong for row in rows)
        told += rows
        load = max(load, os.getloadavg()[0])
    text = page(told, time.monotonic() - began, load)
    if options.write and not wrong:
        PAGE.write_text(text, encoding="utf-8")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
