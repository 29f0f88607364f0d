"""Lustre as this client sees it: its own health, and its connections to the servers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.errors import Absent, Unparsable
from clustertools.model import Finding, Reading, Remedy

#: The client's own health since Lustre 2.11, and before.
_HEALTH = ("/sys/fs/lustre/health_check", "/proc/fs/lustre/health_check")
#: A file for each data (osc) and metadata (mdc) target; newer clients keep it in debugfs, where only root
#: looks.
_STATES = (
    "/proc/fs/lustre/osc/*/state",
    "/proc/fs/lustre/mdc/*/state",
    "/sys/kernel/debug/lustre/osc/*/state",
    "/sys/kernel/debug/lustre/mdc/*/state",
)
#: FULL is connected; an idle client hangs up after 20 s by itself (IDLE) and connects again when asked.
_WELL = frozenset(("FULL", "IDLE", "NEW", "CLOSED"))


@dataclass(frozen=True)
class Limits:
    # a server's failover and the recovery after it take up to 5 minutes by Lustre's own default (the Lustre
    # manual, "recovery_time_soft" 300 s); all that wait for it go on afterwards
    away_critical_seconds: float = 300.0


@check(
    limits=Limits,
    stages={"preflight", "watch", "prolog"},
    cost_seconds=0.05,
    confirm=2,
    codes={
        "LustreUnhealthy": "the Lustre client says of itself that it is not healthy",
        "LustreTargetAway": "a Lustre server does not answer this node",
    },
)
def fs_lustre(ctx: Context) -> Iterator[Finding | Reading]:
    """The Lustre client's health_check, and the state of its connection to each target.

    A target that an administrator set inactive has no connection and is only noted.
    """
    health = _health(ctx)
    yield ctx.reading("lustre_healthy_ratio", float(health == "healthy"))
    if health != "healthy":
        bug = "LBUG" in health
        yield ctx.critical(
            "LustreUnhealthy", "lustre",
            f"Lustre's health_check says {health[:120]!r}" + (": an assertion failed in it" if bug else ""),
            remedy=Remedy.REBOOT_NODE if bug else Remedy.INSPECT,
        )  # fmt: skip
    paths = sorted(path for pattern in _STATES for path in ctx.host.glob(pattern))
    if not paths:
        ctx.note("the states of the Lustre targets are not to be seen (they need root, or none is mounted)")
    for path in paths:
        yield from _target(ctx, path)


def _health(ctx: Context) -> str:
    for path in _HEALTH:
        try:
            return " ".join(ctx.host.read(path).split())
        except Absent:
            continue
    raise ctx.skip("no Lustre client is loaded")


def _target(ctx: Context, path: str) -> Iterator[Finding]:
    # fs1-OST0003-osc-ffff9c0e4d3a2000
    name = path.split("/")[-2]
    target = re.sub(r"-(osc|mdc)-[0-9a-f]{8,16}$", "", name)
    try:
        text = ctx.host.read(path)
    except Absent:
        return  # it was unmounted in between
    # current_state: FULL
    match = re.match(r"current_state: ([A-Z_]{2,20})\s", text)
    if match is None:
        raise Unparsable(f"{path} has an unknown form", text)
    if match[1] in _WELL:
        return
    # - [ 1681000001, DISCONN ]      the last line is the newest; a retry alternates DISCONN and CONNECTING
    history = re.findall(r"^ *- \[ ?([0-9]{1,12}), ([A-Z_]{2,20}) ?\]", text, re.MULTILINE)
    since = None
    for at, state in reversed(history):
        if state in _WELL:
            break
        since = float(at)
    seconds = ctx.host.now() - since if since is not None else 0.0
    said = f"Lustre target {target} is {match[1]}" + (f" for {seconds:.0f} s" if since is not None else "")
    if seconds >= ctx.limits.away_critical_seconds:
        yield ctx.critical(
            "LustreTargetAway", f"lustre@{target}",
            f"{said} (limit {ctx.limits.away_critical_seconds:.0f} s): what lies there hangs",
            remedy=Remedy.INSPECT, since=since or 0.0,
        )  # fmt: skip
    else:
        yield ctx.warning("LustreTargetAway", f"lustre@{target}", said, since=since or 0.0)
