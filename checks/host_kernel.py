"""What the kernel log says of the kernel itself: killed, stuck and hung tasks, and failures of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.model import Clears, Finding, Reading, Remedy, Status
from clustertools.sources.kernel_groups import Group, Rule, Rules, follow

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
    #: A day, so that no job of the morning starts on last night's fault.
    lockup_seconds: float = 24 * HOUR
    #: Processes killed for lack of memory, from which it is critical: one is a job's own fault, many are a
    #: node that cannot host jobs. A rule of thumb, not measured.
    oom_kills_critical: int = 20
    #: Lines of evidence in one finding, the first and the last ones.
    evidence_lines: int = 6


RULES: Rules = {
    "oom-kill": Rule(
        "HostOomKill", Status.WARNING, Remedy.RESTART_APP, "oom_seconds",
        "the kernel killed a process because memory ran out",
    ),
    "hung-task": Rule(
        "HostHungTask", Status.WARNING, Remedy.INSPECT, "hung_task_seconds",
        "a task hangs in the kernel, mostly on storage or a driver",
    ),
    "lockup": Rule(
        "HostLockup", Status.CRITICAL, Remedy.REBOOT_NODE, "lockup_seconds",
        "a processor was stuck in the kernel",
    ),
    "oops": Rule(
        "HostKernelOops", Status.CRITICAL, Remedy.REBOOT_NODE, "reboot",
        "the kernel itself failed; it runs on, but nothing on it is to be trusted",
    ),
}  # fmt: skip


def _finding(ctx: Context, group: Group) -> Finding:
    rule = RULES[group.kind]  # type: ignore[index]
    many = group.kind == "oom-kill" and group.count >= ctx.limits.oom_kills_critical
    say = ctx.critical if many or rule.status is Status.CRITICAL else ctx.warning
    # while it stands it is reported again on each look, so all but a reboot end it by silence
    clears: Clears = "reboot" if rule.limit == "reboot" else "recovery"
    return say(
        rule.code, group.part, group.summary(rule), time=group.last_time, evidence=group.evidence,
        remedy=rule.remedy, clears=clears,
    )  # fmt: skip


@check(
    limits=Limits,
    stages={"preflight", "watch", "prolog"},
    codes={
        **{rule.code: rule.meaning for rule in RULES.values()},
        "HostLogGap": "kernel messages were lost before they could be read; host events may be among them",
    },
)
def host_kernel(ctx: Context) -> Iterator[Finding | Reading]:
    """Reports what the kernel wrote about itself and its tasks since the last look, and what of it stands."""
    followed = follow(ctx.host, ctx.past, RULES, ctx.limits)
    ctx.remember.update(followed.memory)
    if followed.log.gap:
        yield ctx.warning(
            "HostLogGap", "", f"{followed.log.gap} kernel messages were lost before they could be read",
            clears=GAP_SECONDS,
        )  # fmt: skip
    if followed.log.older:
        ctx.note(f"the ring has overwritten the first {followed.log.older} messages of this boot")
    for group in followed.groups:
        yield _finding(ctx, group)
