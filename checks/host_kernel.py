"""What the kernel log says about the host: killed and stuck processes, hardware, file systems, storage."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from clustertools.check import Context, check
from clustertools.model import Clears, Finding, Reading, Remedy, Status, from_data, to_data
from clustertools.sources.kernel import KernelLine, read_kernel_log
from clustertools.sources.kernel_events import HostEvent, Kind, parse_host_event

LINE_CHARACTERS = 300
MOST_GROUPS = 128
MOST_NAMES = 8
GAP_SECONDS = 3600.0
HOUR = 3600.0


@dataclass(frozen=True)
class Limits:
    """How long an event of each kind counts after its last repetition."""

    #: A killed process is news for the job that lost it, and for the next hour's.
    oom_seconds: float = HOUR
    #: The kernel repeats the message every 120 s (kernel.hung_task_timeout_secs), but only ten times
    #: (kernel.hung_task_warnings): silence soon after the last one does not mean that the task goes on.
    hung_task_seconds: float = HOUR
    #: A server that is back says so in the log; this is for the case that the line was lost.
    nfs_seconds: float = HOUR
    #: Hardware and file systems: a day, so that no job of the morning starts on last night's fault.
    hardware_seconds: float = 24 * HOUR
    #: Processes killed for lack of memory, from which it is critical: one is a job's own fault, many are a
    #: node that cannot host jobs. A rule of thumb, not measured.
    oom_kills_critical: int = 20
    #: Lines of evidence in one finding, the first and the last ones.
    evidence_lines: int = 6


@dataclass(frozen=True)
class Rule:
    """What an event of one kind means. `limit` names the field of Limits that says how long it counts."""

    code: str
    status: Status
    remedy: Remedy
    limit: str
    meaning: str
    part: str = ""  # prefix of the part's name; empty: the whole node


RULES: dict[Kind, Rule] = {
    "oom-kill": Rule(
        "HostOomKill", Status.WARNING, Remedy.RESTART_APP, "oom_seconds",
        "the kernel killed a process because memory ran out",
    ),
    "hung-task": Rule(
        "HostHungTask", Status.WARNING, Remedy.INSPECT, "hung_task_seconds",
        "a task hangs in the kernel, mostly on storage or a driver",
    ),
    "lockup": Rule(
        "HostLockup", Status.CRITICAL, Remedy.REBOOT_NODE, "hardware_seconds",
        "a processor was stuck in the kernel",
    ),
    "oops": Rule(
        "HostKernelOops", Status.CRITICAL, Remedy.REBOOT_NODE, "reboot",
        "the kernel itself failed; it runs on, but nothing on it is to be trusted",
    ),
    "machine-check": Rule(
        "HostMachineCheck", Status.CRITICAL, Remedy.INSPECT, "hardware_seconds",
        "the hardware reported an error that it could not correct",
    ),
    "filesystem-error": Rule(
        "HostFilesystemError", Status.CRITICAL, Remedy.INSPECT, "hardware_seconds",
        "a file system is damaged or was made read-only", "fs@",
    ),
    "io-error": Rule(
        "HostIoError", Status.WARNING, Remedy.INSPECT, "hardware_seconds",
        "a disk failed to read or write", "disk@",
    ),
    "pcie-fatal": Rule(
        "PcieFatalError", Status.CRITICAL, Remedy.REBOOT_NODE, "hardware_seconds",
        "a fatal error on a PCIe link", "pci@",
    ),
    "slot-power": Rule(
        "PcieSlotPower", Status.WARNING, Remedy.INSPECT, "hardware_seconds",
        "a card does not get the power that it asks of its slot", "pci@",
    ),
    "nfs-silent": Rule(
        "NfsNotResponding", Status.WARNING, Remedy.INSPECT, "nfs_seconds",
        "an NFS server does not respond", "nfs@",
    ),
}  # fmt: skip


@dataclass
class Group:
    """The events of one kind on one part that still count."""

    kind: str
    part: str
    last_time: float
    count: int = 0
    names: list[str] = field(default_factory=list)
    last_pid: int = -1
    first_lines: list[str] = field(default_factory=list)
    last_lines: list[str] = field(default_factory=list)

    def keep_line(self, line: str, keep: int) -> None:
        line = line[:LINE_CHARACTERS]
        if len(self.first_lines) < (keep + 1) // 2:
            self.first_lines.append(line)
        else:
            self.last_lines = [*self.last_lines, line][-max(1, keep // 2) :]


def _lasts(rule: Rule, limits: Limits) -> float | None:
    """Seconds that an event counts; None: until the next boot."""
    return None if rule.limit == "reboot" else float(getattr(limits, rule.limit))


def _fold(
    standing: Iterable[Group], lines: Iterable[KernelLine], limits: Limits
) -> dict[tuple[str, str], Group]:
    groups = {(g.kind, g.part): g for g in standing}
    for line in lines:
        event = parse_host_event(line.text)
        if event is None:
            continue
        if event.kind == "nfs-back":
            groups.pop(("nfs-silent", _part(RULES["nfs-silent"], event)), None)
        elif event.kind in RULES:
            part = _part(RULES[event.kind], event)
            group = groups.setdefault((event.kind, part), Group(event.kind, part, line.time))
            _add(group, line, event, limits.evidence_lines)
    return groups


def _add(group: Group, line: KernelLine, event: HostEvent, keep: int) -> None:
    # one kill is told in two lines: "oom-kill:constraint=..." and "Killed process ..."
    if event.kind != "oom-kill" or event.pid != group.last_pid:
        group.count += 1
    group.last_pid = event.pid if event.pid is not None else -1
    group.last_time = max(group.last_time, line.time)
    if event.what and event.what not in group.names and len(group.names) < MOST_NAMES:
        group.names.append(event.what)
    group.keep_line(line.text, keep)


def _part(rule: Rule, event: HostEvent) -> str:
    # a name out of a log becomes part of a key: only plain characters
    return f"{rule.part}{re.sub(r'[^A-Za-z0-9_.:-]', '_', event.what)[:64]}" if rule.part else ""


def _finding(ctx: Context, group: Group) -> Finding:
    rule = RULES[group.kind]  # type: ignore[index]
    names = f": {', '.join(group.names)}" if group.names and not rule.part else ""
    often = f", {group.count} times" if group.count > 1 else ""
    many = group.kind == "oom-kill" and group.count >= ctx.limits.oom_kills_critical
    say = ctx.critical if many or rule.status is Status.CRITICAL else ctx.warning
    # while it stands it is reported again on each look, so all but a reboot end it by silence
    clears: Clears = "reboot" if rule.limit == "reboot" else "recovery"
    return say(
        rule.code, group.part, f"{rule.meaning}{names}{often}", time=group.last_time,
        evidence=(*group.first_lines, *group.last_lines), remedy=rule.remedy, clears=clears,
    )  # fmt: skip


def _remembered(ctx: Context) -> tuple[str, list[Group]]:
    past = ctx.past
    if past.get("boot_id") != ctx.host.boot_id or not isinstance(past.get("cursor"), str):
        return "", []
    try:
        standing = [from_data(Group, g) for g in past.get("standing", [])]
    except (KeyError, TypeError, ValueError):
        return "", []
    return past["cursor"], [g for g in standing if g.kind in RULES]


@check(
    limits=Limits,
    stages={"preflight", "watch", "prolog"},
    codes={
        **{rule.code: rule.meaning for rule in RULES.values()},
        "HostLogGap": "kernel messages were lost before they could be read; host events may be among them",
    },
)
def host_kernel(ctx: Context) -> Iterator[Finding | Reading]:
    """Reports what the kernel wrote about its own host since the last look, and what of it stands.

    Corrected machine checks are not reported here: their rate is what matters, and `host_memory` counts them.
    """
    cursor, standing = _remembered(ctx)
    log = read_kernel_log(ctx.host, cursor)
    now = ctx.host.now()
    kept = []
    for group in _fold(standing, log.lines, ctx.limits).values():
        lasts = _lasts(RULES[group.kind], ctx.limits)  # type: ignore[index]
        if lasts is None or now - group.last_time <= lasts:
            kept.append(group)
    kept = sorted(kept, key=lambda g: -g.last_time)[:MOST_GROUPS]
    ctx.remember.update(cursor=log.cursor, boot_id=ctx.host.boot_id, standing=[to_data(g) for g in kept])
    if log.gap:
        yield ctx.warning(
            "HostLogGap", "", f"{log.gap} kernel messages were lost before they could be read",
            clears=GAP_SECONDS,
        )  # fmt: skip
    if log.older:
        ctx.note(f"the ring has overwritten the first {log.older} messages of this boot")
    for group in sorted(kept, key=lambda g: (g.kind, g.part)):
        yield _finding(ctx, group)
