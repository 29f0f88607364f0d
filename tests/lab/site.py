"""A site in a folder: a config, a check whose faults are a file, a state folder, and the real command.

site = Site(tmp_path); site.fault("LabFault gpu@0000:3b:00.0 it broke"); site.watch("--once")
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CHECKS = Path(__file__).parents[2] / "checks"
#: Reads `CODE PART TEXT` lines; "blind" alone means that it cannot look. LabEvent ends by a reboot.
CHECK = '''
"""Faults that a test wrote into a file."""
from clustertools.check import check
from clustertools.errors import Unobservable

FILE = {file!r}

CODES = {{"LabFault": "a fault", "LabWarning": "less", "LabManual": "needs hands"}}

@check(stages={{"watch"}}, codes=CODES, interval_seconds=0.0)
def lab_fault(ctx):
    "Reports what the file says."
    for line in ctx.host.read(FILE).splitlines():
        if line == "blind":
            raise Unobservable("the file says blind")
        code, part, text = line.split(" ", 2)
        say = ctx.warning if code == "LabWarning" else ctx.critical
        part = "" if part == "-" else part
        yield say(code, part, text, evidence=(text,), clears="manual" if code == "LabManual" else "recovery")
'''


class Site:
    """`config` is the text of its config file; what a test sets in it counts from the next start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.faults = folder / "faults"
        self.faults.write_text("")
        self.checks = folder / "checks.d"
        self.checks.mkdir(parents=True)
        (self.checks / "lab_fault.py").write_text(CHECK.format(file=str(self.faults)))
        self.config = folder / "config.yaml"
        self.etc = folder / "etc"
        self.write_config("")

    def write_config(self, more: str, *, only: tuple[str, ...] = ("lab_fault",)) -> None:
        """The config with only these checks enabled, and `more`."""
        names = sorted(p.stem for p in CHECKS.glob("[a-z]*.py") if not p.stem.startswith("job_"))
        off = "".join(f"  {name}: {{enabled: false}}\n" for name in names if name not in only)
        self.config.write_text(f"site_checks: [{self.checks}]\nchecks:\n{off}{more}")

    def fault(self, *lines: str) -> None:
        self.faults.write_text("".join(line + "\n" for line in lines))

    def environment(self, **more: str) -> dict[str, str]:
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("CLUSTERTOOLS_", "NOTIFY_", "WATCHDOG_"))
        }
        return {**kept, "CLUSTERTOOLS_ETC": str(self.etc), "CLUSTERTOOLS_STATE": str(self.state),
                "CLUSTERTOOLS_CONFIG": str(self.config), "TZ": "UTC", **more}  # fmt: skip

    def start(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        """`clustertools WORDS`, its two streams as pipes."""
        environment = self.environment(**more.pop("environment", {}))
        return subprocess.Popen(
            [sys.executable, "-m", "clustertools", *words], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more,
        )  # fmt: skip

    def run(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """`clustertools WORDS` to its end."""
        process = self.start(*words, **more)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def watch(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return self.run("watch", *words, **more)
