"""What a check is, how checks are found, and how one is run.

    @check(limits=Limits, stages={"preflight", "watch"}, codes={"EccUncorrected": "..."})
    def gpu_ecc(ctx):
        "One line that says what it looks at."
        for gpu in gpus(ctx.host): ...
            yield ctx.critical("EccUncorrected", gpu_part(gpu.pci), "...", remedy=Remedy.RESET_GPU)

`run` never raises: what could not be looked at becomes UNKNOWN, what does not apply SKIPPED.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clustertools.errors import ConfigError, LookNeeded, NotApplicable, Unobservable
from clustertools.host import DEFAULT_TIMEOUT_SECONDS, Completed, FileStat, Host, PassingHost
from clustertools.model import (
    Clears,
    Finding,
    Job,
    Reading,
    Remedy,
    Status,
    Subject,
    Verdict,
    worst,
)
from clustertools.stats import Rate, counter_rate

if TYPE_CHECKING:
    from clustertools.sources.job_look import JobLook

#: Where a check may be used. `job` checks look at one run, the others at one node. In `prolog` and `epilog`
#: the node, or the job's share of it, is idle. `daily` is for what takes seconds and changes slowly: the BMC.
STAGES = frozenset({"preflight", "watch", "prolog", "epilog", "daily", "job"})
#: What a check may need beside a Linux node; without it the check is UNKNOWN or looks at less.
NEEDS = frozenset({"root", "idle"})
#: How the name of a check of runs begins: by this a node tells them without importing them.
JOB_PREFIX = "job_"
#: A site's own checks, one `NAME.py` each.
SITE_FOLDERS = ("/etc/clustertools/checks.d",)


@dataclass(frozen=True, slots=True)
class NoLimits:
    """For checks that compare with nothing."""


@dataclass(frozen=True)
class Check:
    """A check as declared: the function and what the machine needs to know to run it."""

    name: str
    look: Callable[[Context], Iterable[Finding | Reading]]
    doc: str
    limits: type
    stages: frozenset[str]
    codes: Mapping[str, str]
    confirm: int = 1
    timeout_seconds: float = 20.0
    interval_seconds: float = 60.0
    source: str = ""
    cost_seconds: float = 0.1
    needs: frozenset[str] = frozenset()

    @property
    def summary(self) -> str:
        return self.doc.strip().splitlines()[0]


_registry: dict[str, Check] = {}


def check(
    *,
    codes: Mapping[str, str],
    stages: Iterable[str],
    limits: type = NoLimits,
    confirm: int = 1,
    timeout_seconds: float = 20.0,
    interval_seconds: float = 60.0,
    cost_seconds: float = 0.1,
    needs: Iterable[str] = (),
) -> Callable[[Callable[[Context], Iterable[Finding | Reading]]], Check]:
    """Declare a check.

    `codes` maps each code that it may yield to one sentence. `limits` is a frozen dataclass with defaults,
    which config may override. `confirm` is the number of passes in a row that must report a state before it
    becomes an incident; events (those that do not clear by recovery) are believed at once. `cost_seconds` is
    the wall time that it takes at most on a healthy node, what its commands take included, and `needs` says
    what it cannot do without: "root", or "idle" GPUs.
    Raises ConfigError when the declaration breaks the rules of the house.
    """

    def declare(look: Callable[[Context], Iterable[Finding | Reading]]) -> Check:
        name, module = look.__name__, look.__module__
        wrong = []
        if module.rsplit(".", 1)[-1] != name and module != "__main__":
            wrong.append(f"check {name}: the function must be named as its file ({module})")
        if not (look.__doc__ or "").strip():
            wrong.append(f"check {name}: needs a docstring that says what it looks at")
        if not (dataclasses.is_dataclass(limits) and limits.__dataclass_params__.frozen):  # type: ignore[attr-defined]
            wrong.append(f"check {name}: limits must be a frozen dataclass")
        unknown = set(stages) - STAGES
        if unknown or not set(stages):
            wrong.append(f"check {name}: stages {sorted(unknown)} unknown; choose from {sorted(STAGES)}")
        if name.startswith(JOB_PREFIX) and set(stages) != {"job"}:
            wrong.append(f"check {name}: {JOB_PREFIX}... is a check of runs, whose only stage is job")
        if set(needs) - NEEDS:
            wrong.append(
                f"check {name}: needs {sorted(set(needs) - NEEDS)} unknown; choose from {sorted(NEEDS)}"
            )
        bad = [c for c in codes if not (c[:1].isupper() and c.isalnum())]
        if bad:
            wrong.append(f"check {name}: codes must be CamelCase, not {bad}")
        if name in _registry and _registry[name].look.__module__ != module:
            wrong.append(f"check {name}: declared twice, in {_registry[name].look.__module__} and {module}")
        if wrong:
            raise ConfigError(*wrong)
        declared = Check(
            name, look, look.__doc__ or "", limits, frozenset(stages), dict(codes), confirm,
            timeout_seconds, interval_seconds, getattr(sys.modules.get(module), "__file__", "") or "",
            cost_seconds, frozenset(needs),
        )  # fmt: skip
        _registry[name] = declared
        return declared

    return declare


class Deadlined(PassingHost):
    """A host whose answers must all come before one moment: no check outlives its own deadline."""

    def __init__(self, host: Host, seconds: float) -> None:
        super().__init__(host)
        self._end = time.monotonic() + seconds
        self._seconds = seconds

    def _left(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise Unobservable(f"the check ran past its own deadline of {self._seconds:g} s")
        return left

    def run(self, *argv: str, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS, stdin: str = "") -> Completed:
        return self.host.run(*argv, timeout_seconds=min(timeout_seconds, self._left()), stdin=stdin)

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        self._left()
        return self.host.read(path, offset, limit)

    def stat(self, path: str) -> FileStat:
        self._left()
        return self.host.stat(path)

    def glob(self, pattern: str) -> list[str]:
        self._left()
        return self.host.glob(pattern)


@dataclass
class Context:
    """What a check is given: the host, its limits, the node's expectations, and what it remembered.

    `past` is what this check put into `remember` the last time it ran on this subject (empty at first).
    """

    host: Host
    check: Check
    limits: Any
    subject: Subject
    expect: Mapping[str, Any] = field(default_factory=dict)
    past: Mapping[str, Any] = field(default_factory=dict)
    remember: dict[str, Any] = field(default_factory=dict)
    job: Job | None = None
    blind: list[str] = field(default_factory=list)
    detail: list[str] = field(default_factory=list)
    looked: JobLook | None = None
    ends: dict[str, str] = field(default_factory=dict)

    def _about(self, part: str | Subject) -> Subject:
        return part if isinstance(part, Subject) else dataclasses.replace(self.subject, part=part)

    def reading(self, name: str, value: float, part: str | Subject = "") -> Reading:
        """One number; `name` ends in its unit."""
        return Reading(self._about(part), name, float(value), self.host.now())

    def _finding(
        self,
        status: Status,
        code: str,
        part: str | Subject,
        summary: str,
        *,
        evidence: tuple[str, ...] = (),
        remedy: Remedy = Remedy.NONE,
        clears: Clears = "recovery",
        time: float | None = None,
        nodes: tuple[str, ...] = (),
        since: float = 0.0,
        edition: int = 0,
        daily: bool = False,
    ) -> Finding:
        if code not in self.check.codes:
            raise ConfigError(f"check {self.check.name} yields {code}, which it does not declare")
        at = self.host.now() if time is None else time
        about = self._about(part)
        return Finding(
            self.check.name, code, about, status, summary, evidence, remedy, clears, at, nodes, since,
            edition=edition, daily=daily,
        )  # fmt: skip

    #: A fault that somebody must act on.
    critical = functools.partialmethod(_finding, Status.CRITICAL)
    #: Something to look at in working hours.
    warning = functools.partialmethod(_finding, Status.WARNING)

    def rates(
        self, counters: Mapping[str, float], *, width_bits: int | None = None, name: str = "counters"
    ) -> dict[str, Rate]:
        """How fast each counter has grown since this check's last look; none at the first look.

        `counters` are by a key that lasts ("mlx5_0/1 symbol_error"). Resets and wraps are handled as
        `stats.counter_rate` does; another boot id than the last time means that all began at zero again, so
        nothing is told for this once. What was counted is remembered under `name`.
        """
        now, boot = self.host.now(), _boot_id(self.host)
        before = self.past.get(name) or {}
        self.remember[name] = {"time": now, "boot_id": boot, "values": dict(counters)}
        if not before or before["boot_id"] != boot:
            return {}
        seconds = now - before["time"]
        grown = {
            key: counter_rate(before["values"][key], value, seconds, width_bits=width_bits)
            for key, value in counters.items()
            if key in before["values"]
        }
        return {key: rate for key, rate in grown.items() if rate is not None}

    def look(self) -> JobLook:
        """What the nodes of the job show now: stacks, GPUs, ports. For a job in doubt only; it is dear.

        The check is broken off here and run again once its nodes were looked at.
        """
        if self.looked is None:
            raise LookNeeded
        return self.looked

    def unseen(self, reason: str) -> None:
        """Note that a part could not be looked at: the rest counts, but nothing resolves on this pass."""
        self.blind.append(reason)

    def over(self, code: str, sentence: str, part: str | Subject = "") -> None:
        """Say how a finding of an earlier look ended; it is told where its beginning was. May be repeated."""
        self.ends[f"{code}:{self._about(part)}"] = sentence

    def note(self, text: str) -> None:
        """A sentence for the person who reads the verdict; not a finding."""
        self.detail.append(text)

    def skip(self, reason: str) -> NotApplicable:
        """The exception to raise when the check does not apply here: `raise ctx.skip("no NVIDIA device")`."""
        return NotApplicable(reason)


def run(
    check: Check,
    host: Host,
    *,
    limits: Any = None,
    expect: Mapping[str, Any] | None = None,
    past: Mapping[str, Any] | None = None,
    job: Job | None = None,
    cluster: str = "",
    looked: JobLook | None = None,
) -> Verdict:
    """Run one check and give its verdict. Never raises, whatever the check or the machine does.

    A check of a job that has to see the job's nodes gives a verdict with `wants_look`, as if it had not run;
    run it again with what was `looked` at.
    """
    began = time.monotonic()
    subject = Subject(cluster=cluster, run=job.run) if job else Subject(cluster=cluster, node=host.name)
    ctx = Context(
        Deadlined(host, check.timeout_seconds), check, limits if limits is not None else check.limits(),
        subject, expect or {}, past or {}, job=job, looked=looked,
    )  # fmt: skip
    findings: list[Finding] = []
    readings: list[Reading] = []
    status: Status | None = None
    whole = False
    try:
        for item in check.look(ctx) or ():
            (readings if isinstance(item, Reading) else findings).append(item)  # type: ignore[arg-type]
        whole = True
    except LookNeeded:
        return Verdict(
            check.name, subject, Status.SKIPPED, detail="waits for a look at the job's nodes",
            elapsed_seconds=time.monotonic() - began, boot_id=_boot_id(host), time=host.now(),
            memory=dict(ctx.past), wants_look=True,
        )  # fmt: skip
    except NotApplicable as exc:
        status = Status.SKIPPED
        ctx.detail.append(str(exc))
    except Unobservable as exc:
        ctx.blind.append(str(exc))
    except Exception as exc:  # noqa: BLE001 - a fault in one check must not take the others with it
        ctx.blind.append(f"the check itself failed: {type(exc).__name__}: {exc}")
        ctx.detail.append(traceback.format_exc(limit=-6))
    if status is None:
        status = worst(f.status for f in findings)
        if ctx.blind:
            status = max(status, Status.UNKNOWN)
    return Verdict(
        check.name, subject, status, tuple(findings), tuple(readings), "\n".join(ctx.detail),
        "; ".join(ctx.blind), time.monotonic() - began, _boot_id(host), host.now(),
        # a check that broke off may have read more than it told: next time it begins where it began now
        dict(ctx.remember if whole or (status is Status.SKIPPED and ctx.remember) else ctx.past),
        ends=ctx.ends if whole else {},
    )  # fmt: skip


def _boot_id(host: Host) -> str:
    try:
        return host.boot_id
    except Unobservable:
        return ""


def discover(site_folders: Iterable[str] = SITE_FOLDERS, *, job_checks: bool = True) -> Mapping[str, Check]:
    """Import every check: ours, those of installed packs, and the site's own files. Sorted by name.

    Without `job_checks` those called `job_...` are left out: none of them runs on a node that looks at
    itself, and what they import (logs, checkpoints, stacks) is a fifth of what that look costs.

    Packs register under the entry point group `clustertools.checks`. A site file is `NAME.py` in one of
    `site_folders`; it imports and lists as `clustertools.checks.NAME`. Raises ConfigError for a file that
    cannot be imported, with its path: a check that silently does not exist would look like health.
    """
    package = importlib.import_module("clustertools.checks")

    for folder in site_folders:
        if folder not in package.__path__ and Path(folder).is_dir():
            package.__path__.append(folder)

    def wanted(name: str) -> bool:
        return job_checks or not name.rsplit(".", 1)[-1].startswith(JOB_PREFIX)

    for module in pkgutil.iter_modules(package.__path__, "clustertools.checks."):
        if wanted(module.name):
            _import(module.name)
    for name in filter(wanted, _entry_points()):
        _import(name)
    return {name: found for name, found in sorted(_registry.items()) if wanted(name)}


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except ConfigError:
        raise
    except Exception as exc:
        raise ConfigError(f"could not load the check {name}: {type(exc).__name__}: {exc}") from exc


def _entry_points() -> Iterator[str]:
    from importlib.metadata import entry_points

    for point in entry_points(group="clustertools.checks"):
        yield point.value


def select(names: Iterable[str], stage: str, checks: Mapping[str, Check]) -> list[Check]:
    """The checks called `names`, or all of `stage` when none is named.

    Raises ConfigError for a name that does not exist, with the nearest one that does.
    """
    wanted = list(names)
    if not wanted:
        return [c for c in checks.values() if stage in c.stages]
    import difflib

    wrong = []
    for name in wanted:
        if name not in checks:
            near = difflib.get_close_matches(name, checks, 1)
            hint = f"; did you mean {near[0]}?" if near else "; `clustertools checks list` shows them all"
            wrong.append(f"there is no check named {name!r}{hint}")
    if wrong:
        raise ConfigError(*wrong)
    return [checks[name] for name in wanted]
