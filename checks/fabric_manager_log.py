"""What fabric manager wrote into its log about NVSwitches and the links to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from clustertools.check import Context, check
from clustertools.errors import Absent
from clustertools.model import Finding, Reading, Remedy, Status
from clustertools.sources.fabric_manager import read_log
from clustertools.sources.pci import nvswitches

_DAY_SECONDS = 86400.0
#: What is kept in memory at most: the newest.
MOST = 200


@dataclass(frozen=True)
class Limits:
    #: Errors that a switch got over, in a day. A healthy DGX may log a few when its links train (SXid 22013
    #: right after the start); own choice.
    non_fatal_per_day: int = 10


@dataclass(frozen=True)
class Rule:
    """How a kind of event is told."""

    code: str
    status: Status
    meaning: str
    remedy: Remedy


TOLD_AS = {
    "fatal": Rule("FabricSwitchFatal", Status.CRITICAL, "an NVSwitch had a fatal error", Remedy.REBOOT_NODE),
    "link-fatal": Rule(
        "FabricSwitchFatal", Status.CRITICAL, "an NVLink of a GPU had a fatal error", Remedy.REBOOT_NODE
    ),
    "topology": Rule(
        "FabricTopologyMismatch", Status.CRITICAL,
        "the number of NVSwitches fits no system that fabric manager knows: it gave up", Remedy.REBOOT_NODE,
    ),
    "multicast": Rule(
        "FabricMulticastFailed", Status.WARNING,
        "a multicast team could not be set up for a GPU (collectives by NVLS fail)", Remedy.RESET_GPU,
    ),
    "non-fatal": Rule(
        "FabricSwitchErrors", Status.WARNING, "an NVSwitch had errors that were not fatal", Remedy.INSPECT
    ),
    "link-non-fatal": Rule(
        "FabricSwitchErrors", Status.WARNING, "NVLinks of GPUs had errors that were not fatal", Remedy.INSPECT
    ),
}  # fmt: skip


@check(
    limits=Limits,
    stages={"preflight", "watch"},
    needs={"root"},
    codes={
        "FabricSwitchFatal": "fabric manager reports a fatal error of an NVSwitch or of an NVLink",
        "FabricTopologyMismatch": "fabric manager gave up: the NVSwitches are not those of any known system",
        "FabricMulticastFailed": "fabric manager could not set up a multicast team (NVLS)",
        "FabricSwitchErrors": "fabric manager reports many errors of NVSwitches that were not fatal",
    },
)
def fabric_manager_log(ctx: Context) -> Iterator[Finding | Reading]:
    """Reads /var/log/fabricmanager.log from where the last look ended, or from fabric manager's last start.

    What is fatal stands until fabric manager starts anew; the rest for a day. The log's own times have no
    zone, so an event counts from the look that found it.
    """
    if not nvswitches(ctx.host) and not ctx.expect.get("fabric_manager"):
        raise ctx.skip("no NVSwitch on the PCI bus")
    try:
        log = read_log(ctx.host, str(ctx.past.get("cursor") or ""))
    except Absent:
        raise ctx.skip("fabric manager has no log here") from None
    now = ctx.host.now()
    standing: list[dict[str, Any]] = [] if log.restarted else list(ctx.past.get("standing") or [])
    standing += [{"time": now, **asdict(event)} for event in log.events]
    standing = [s for s in standing if _critical(s) or now - s["time"] <= _DAY_SECONDS][-MOST:]
    ctx.remember.update(cursor=log.cursor, standing=standing)
    by_rule: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in standing:
        by_rule.setdefault((one["kind"], one["part"]), []).append(one)
    for (kind, part), told in sorted(by_rule.items()):
        rule = TOLD_AS[kind]
        yield ctx.reading("fabric_manager_events", len(told), part or kind)
        if rule.code == "FabricSwitchErrors" and len(told) <= ctx.limits.non_fatal_per_day:
            continue
        say = ctx.critical if rule.status is Status.CRITICAL else ctx.warning
        numbers = sorted({f"SXid {one['code']}" for one in told if one["code"]})
        often = f", {len(told)} times" if len(told) > 1 else ""
        yield say(
            rule.code, part, f"{rule.meaning}{often}{': ' if numbers else ''}{', '.join(numbers[:5])}",
            evidence=tuple(one["text"][:300] for one in told[-5:]), remedy=rule.remedy, time=told[-1]["time"],
        )  # fmt: skip


def _critical(one: dict[str, Any]) -> bool:
    return TOLD_AS[one["kind"]].status is Status.CRITICAL
