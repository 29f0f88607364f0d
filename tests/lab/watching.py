"""A machine in memory whose faults a test sets, a check that reports them, and a watchdog over both.

lab = WatchLab(tmp_path); lab.machine.fault("GpuLost"); lab.pass_().transitions
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clustertools.check import Check, NoLimits
from clustertools.delivery import Mail
from clustertools.errors import Absent, Unobservable
from clustertools.host import FileStat
from clustertools.model import Attempt, Clears, Job, Playbook, Remedy, Status, Step
from clustertools.schedulers import RunSpec
from clustertools.store import Store
from clustertools.watchdog import Pass, Settings, Watchdog

NOON = 1_790_000_000.0
CODES = {code: code for code in ("GpuLost", "LinkDown", "FanStopped", "JobStuck")}
SPEC = RunSpec("big", ("true",))
RESTART = Playbook("again", ("JobStuck",), "Look at the stacks.", steps=(Step("restart"),))


class Machine:
    """A Host with a clock, faults and files of the test's own."""

    name = "n1"

    def __init__(self) -> None:
        self.time = NOON
        self.boot_id = "boot-1"
        self.faults: dict[tuple[str, str], tuple[Status, Clears, str]] = {}
        self.files: dict[str, str] = {}
        self.blind = ""
        self.unseen_files: set[str] = set()

    def fault(
        self, code: str, part: str = "", *, status: Status = Status.CRITICAL, clears: Clears = "recovery",
        text: str = "",
    ) -> None:  # fmt: skip
        self.faults[code, part] = (status, clears, text or f"{code} it is")

    def now(self) -> float:
        return self.time

    def run(self, *argv: str, timeout_seconds: float = 10.0, stdin: str = "") -> Any:
        raise Unobservable("no commands here")

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        self.stat(path)
        return self.files[path]

    def stat(self, path: str) -> FileStat:
        if path in self.unseen_files:
            raise Unobservable(f"{path}: the server is away")
        if path not in self.files:
            raise Absent(f"{path}: no such file")
        return FileStat(len(self.files[path]), self.time, 1)

    def glob(self, pattern: str) -> list[str]:
        return []


def check_of(
    machine: Machine, name: str = "node_check", looked: list[Any] | None = None, **more: Any
) -> Check:
    """A check that reports the machine's faults; every context that it got goes into `looked`."""

    def look(ctx: Any) -> Any:
        if looked is not None:
            looked.append(ctx)
        if machine.blind:
            raise Unobservable(machine.blind)
        for (code, part), (status, clears, text) in sorted(machine.faults.items()):
            if code == "JobStuck":
                continue
            say = ctx.critical if status is Status.CRITICAL else ctx.warning
            yield say(code, part, text, remedy=Remedy.INSPECT, clears=clears, evidence=(text,))

    more = {"interval_seconds": 0.0, **more}
    return Check(name, look, "doc", NoLimits, frozenset({"watch"}), CODES, **more)


def job_check_of(machine: Machine) -> Check:
    def look(ctx: Any) -> Any:
        if ("JobStuck", "") in machine.faults:
            yield ctx.critical("JobStuck", "", "the run is stuck", nodes=("n1",))

    return Check("job_check", look, "doc", NoLimits, frozenset({"job"}), CODES, interval_seconds=0.0)


class Runs:
    """A scheduler whose only run is `big`; notes what it is asked to do."""

    kind = "fake"
    supported = frozenset({"restart", "capture", "cancel"})

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.away = ""
        self.breaks: Exception | None = None
        self.state: Any = "running"

    def job(self, spec: RunSpec, attempts: tuple[Attempt, ...]) -> Job:
        if self.away:
            raise Unobservable(self.away)
        return Job("1", "big", self.state, attempts[-1].number, ("n1",), attempts=attempts)

    def submit(self, spec: RunSpec, attempt: Attempt) -> str:
        if self.breaks:
            raise self.breaks
        self.asked.append(f"submit {attempt.number}")
        self.state = "running"
        return str(attempt.number)

    def cancel(self, spec: RunSpec, job: Job, why: str, *, force: bool) -> None:
        self.asked.append("cancel")
        self.state = "ended"

    def leftovers(self, spec: RunSpec, job: Job) -> list[int]:
        return []

    def preview(self, kind: str, target: Any, options: Mapping[str, Any]) -> str:
        return f"{kind} {target}"


class WatchLab:
    """A watchdog over a Machine and Runs, with its store in a folder."""

    def __init__(self, folder: Path, *, mail: Mail | None = None, run: bool = False, **settings: Any) -> None:
        self.folder = folder
        self.machine = Machine()
        self.runs = Runs()
        self.store = Store(folder / "state.db")
        checks = [check_of(self.machine)]
        self.watchdog = Watchdog(
            self.store, self.machine, self.runs, checks, playbooks=(RESTART,), mail=mail or Mail(),
            settings=Settings(**{"blind_confirm": 2, **settings}), evidence_folder=folder / "evidence",
        )  # fmt: skip
        if run:
            self.watchdog.specs = [SPEC]
            self.watchdog.checks = [*checks, job_check_of(self.machine)]
            with self.store.transaction():
                self.store.put_attempt(Attempt("big", 1, "t1", started_at=NOON, first_step=1, last_step=9))

    def set(self, **settings: Any) -> None:
        self.watchdog.settings = dataclasses.replace(self.watchdog.settings, **settings)

    def pass_(self, seconds: float = 30.0) -> Pass:
        self.machine.time += seconds
        return self.watchdog.once()

    def passes(self, count: int, seconds: float = 30.0) -> list[Pass]:
        return [self.pass_(seconds) for _ in range(count)]

    def reopened(self) -> Store:
        """The store as another process sees it, read-only."""
        return Store(self.folder / "state.db", read_only=True)
