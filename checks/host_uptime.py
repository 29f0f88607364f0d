"""How long the node is up, and whether it boots over and over."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.errors import Unparsable
from clustertools.model import Finding, Reading, Remedy
from clustertools.text import in_words


@dataclass(frozen=True)
class Limits:
    # gcm (Meta) warns below 600 s; every repaired node is there once, so it is a note
    recent_seconds: float = 600.0
    # own choice: a repair takes two boots; a third one within six hours is no repair
    boots: int = 4
    boots_seconds: float = 21600.0


@check(
    limits=Limits,
    stages={"preflight", "watch", "prolog", "daily"},
    codes={"RebootLoop": "the node booted several times within hours"},
)
def host_uptime(ctx: Context) -> Iterator[Finding | Reading]:
    """The time since the boot, and the boots that earlier looks remember.

    The memory of a node that runs alone lies in /run and ends with the boot, so a loop shows where the memory
    is kept on a disk: with the watchdog.
    """
    text = ctx.host.read("/proc/uptime")
    # 90418.22 8912771.10
    match = re.fullmatch(r"(\d{1,12}\.\d+) \d+\.\d+\s*", text)
    if match is None:
        raise Unparsable("/proc/uptime has an unknown form", text)
    up, now, limits = float(match[1]), ctx.host.now(), ctx.limits
    yield ctx.reading("uptime_seconds", up)
    if up < limits.recent_seconds:
        ctx.note(f"booted {in_words(up)} ago")
    boots = [
        (str(boot), float(at)) for boot, at in ctx.past.get("boots", ()) if now - at < limits.boots_seconds
    ]
    if all(boot != ctx.host.boot_id for boot, _ in boots):
        boots.append((ctx.host.boot_id, now - up))
    ctx.remember["boots"] = boots = boots[-20:]
    recent = [at for _, at in boots if now - at < limits.boots_seconds]
    if len(recent) >= limits.boots:
        yield ctx.warning(
            "RebootLoop",
            "",
            f"{len(recent)} boots within {in_words(now - min(recent))} (limit {limits.boots - 1} in "
            f"{in_words(limits.boots_seconds)})",
            remedy=Remedy.INSPECT,
        )
