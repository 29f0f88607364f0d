"""Xids that come again on one GPU: over boots, over days, over the processes of different users."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from clustertools.catalog import xid
from clustertools.check import Context, check
from clustertools.errors import Unobservable
from clustertools.model import Finding, Reading, Remedy, Status, from_data, gpu_part, to_data
from clustertools.sources.kernel import (
    KernelLine,
    parse_gpu_uuid,
    parse_shader,
    parse_sxid,
    parse_xid,
    read_kernel_log,
)
from clustertools.sources.pci import nvidia_devices

DAY = 86_400.0
LINE_CHARACTERS = 300
#: Kinds of events, and times of one, that are remembered: a flood must not fill the memory.
MOST_EVENTS = 256
MOST_TIMES = 8
#: A contained memory error hurt one application and nothing else: gpud too never makes more of it.
NEVER_ESCALATES = frozenset((94, 154))
#: Errors of the GPU's own memory: what a new GPU cures.
MEMORY_XIDS = frozenset((48, 64, 95, 140))
GRAPHICS_XID, MMU_XID, NVLINK_XID = 13, 31, 74


@dataclass(frozen=True)
class Limits:
    """What counts as coming again, and for how long it is remembered."""

    #: Boots with the same fatal Xid on the same GPU. gpud asks for an inspection after two reboots in vain.
    boots: int = 3
    #: Times of it within a day, whatever was done in between (NVIDIA/NVSentinel).
    times_a_day: int = 5
    #: Different processes that a fault of the application's kind hit on one GPU only (NVIDIA/NVSentinel).
    processes: int = 2
    #: Between the first and the last of these processes: one that crashes in a loop is back within minutes.
    apart_seconds: float = 3600.0
    #: Events nearer than this are one: a burst, and what follows from it.
    burst_seconds: float = 60.0
    #: Such faults are compared over so long.
    spread_seconds: float = DAY
    #: What is older is forgotten, as gpud does after 14 days.
    memory_seconds: float = 14 * DAY


@dataclass
class Seen:
    """One Xid on one GPU on one boot; of an application's kind also of one process in one place."""

    part: str
    uuid: str
    code: int
    boot_id: str
    who: str = ""
    place: str = ""
    line: str = ""
    times: list[float] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, int, str, str, str]:
        return self.part, self.code, self.boot_id, self.who, self.place

    def same_gpu(self, other: Seen) -> bool:
        """By UUID where both are known: a GPU may have been exchanged, or moved to another slot."""
        return self.uuid == other.uuid if self.uuid and other.uuid else self.part == other.part


class History:
    """What was seen, with the new lines added to it."""

    def __init__(self, limits: Limits, boot_id: str, known: list[Seen], uuids: Mapping[str, str]) -> None:
        self.limits, self.boot_id = limits, boot_id
        self.seen = {one.key: one for one in known}
        self.uuids = dict(uuids)
        self.switch_failed = float("-inf")
        self.new = 0

    def line(self, line: KernelLine) -> None:
        text = line.text
        if "SXid" in text:
            switch = parse_sxid(text)
            if switch is not None and switch.fatal:
                self.switch_failed = line.time
            return
        if "NVRM:" not in text:
            return
        named = parse_gpu_uuid(text)
        if named is not None:
            part = gpu_part(named[0])
            if len(self.uuids) < MOST_EVENTS:
                self.uuids[part] = named[1]
            return
        event = parse_xid(text)
        if event is None or not event.pci or event.code in NEVER_ESCALATES:
            return
        part, who, place = gpu_part(event.pci), "", ""
        if event.code in (GRAPHICS_XID, MMU_XID):
            if not event.pid:
                return
            who = f"{event.pid} {event.process[:15]}".strip()
            at = parse_shader(event.text)
            place = f"GPC {at[0]}, TPC {at[1]}" if at else ""
        elif xid(event.code).status is not Status.CRITICAL or self._follows(part, event.code, line.time):
            return
        one = Seen(part, self.uuids.get(part, ""), event.code, self.boot_id, who, place)
        one = self.seen.setdefault(one.key, one)
        one.line = line.text[:LINE_CHARACTERS]
        self.new += 1
        if not one.times or line.time - one.times[-1] > self.limits.burst_seconds:
            one.times = [*one.times, line.time][-MOST_TIMES:]

    def _follows(self, part: str, code: int, time: float) -> bool:
        """Whether it is a consequence of what was seen a moment ago: then that one counts."""
        near = self.limits.burst_seconds
        if code == NVLINK_XID and abs(time - self.switch_failed) <= near:
            return True
        roots = xid(code).follows
        return any(
            one.part == part and one.code in roots and one.times and abs(time - one.times[-1]) <= near
            for one in self.seen.values()
        )

    def kept(self, now: float) -> list[Seen]:
        """What is remembered: the newest, none older than the limit."""
        young = [s for s in self.seen.values() if s.times and now - s.times[-1] <= self.limits.memory_seconds]
        return sorted(young, key=lambda s: -s.times[-1])[:MOST_EVENTS]


def _recurring(ctx: Context, kept: list[Seen], boot_id: str) -> Iterator[Finding]:
    """The same fatal Xid again and again, the last time on this boot."""
    now = ctx.host.now()
    told = set()
    for one in kept:
        if one.boot_id != boot_id or one.who or one.part in told:
            continue
        alike = [s for s in kept if s.code == one.code and s.same_gpu(one)]
        boots = {s.boot_id for s in alike}
        today = sum(1 for s in alike for t in s.times if now - t <= DAY)
        if len(boots) >= ctx.limits.boots:
            how = f"on {len(boots)} boots"
        elif today >= ctx.limits.times_a_day:
            how = f"{today} times within a day"
        else:
            continue
        told.add(one.part)
        meaning = xid(one.code).meaning
        yield ctx.critical(
            "XidRecurring", one.part,
            f"{meaning} (Xid {one.code}) {how}: neither reset nor reboot has cured this GPU"
            + (f"; {one.uuid}" if one.uuid else ""),
            evidence=tuple(s.line for s in alike[:6]), clears="manual", time=one.times[-1],
            remedy=Remedy.REPLACE if one.code in MEMORY_XIDS else Remedy.INSPECT,
        )  # fmt: skip


def _suspect(ctx: Context, kept: list[Seen]) -> Iterator[Finding]:
    """Faults of the application's kind that keep to one GPU while the processes change."""
    now, limits = ctx.host.now(), ctx.limits
    faults = [s for s in kept if s.who and now - s.times[-1] <= limits.spread_seconds]
    told = set()
    for one in faults:
        mine = [s for s in faults if s.code == one.code and s.part == one.part and s.uuid == one.uuid]
        if one.code == GRAPHICS_XID:
            # a wrong program fails all over the chip; a wrong chip fails in one place, whatever the program
            places: dict[tuple[str, str], set[str]] = {}
            for s in mine:
                places.setdefault((s.boot_id, s.who), set()).add(s.place)
            mine = [s for s in mine if one.place and places[s.boot_id, s.who] == {one.place}]
        elif any(_together(s, t, limits.burst_seconds) for s in mine for t in faults if t.code == one.code):
            continue
        who = {(s.boot_id, s.who) for s in mine}
        times = [t for s in mine for t in s.times]
        if one.part in told or len(who) < limits.processes:
            continue
        if max(times) - min(times) < limits.apart_seconds:
            continue
        told.add(one.part)
        names = ", ".join(sorted(name for _, name in who)[:4])
        where = f" at {one.place}" if one.place and one.code == GRAPHICS_XID else ""
        yield ctx.warning(
            "XidHardwareSuspect", one.part,
            f"{xid(one.code).meaning} (Xid {one.code}){where} in {len(who)} different processes, and on "
            f"no other GPU: the hardware is suspect; pid {names}" + (f"; {one.uuid}" if one.uuid else ""),
            evidence=tuple(s.line for s in mine[:6]), remedy=Remedy.INSPECT, time=max(times),
        )  # fmt: skip


def _together(one: Seen, other: Seen, seconds: float) -> bool:
    """Whether two GPUs had it at the same time: then it is the application of both."""
    if one.part == other.part or one.boot_id != other.boot_id:
        return False
    return any(abs(a - b) <= seconds for a in one.times for b in other.times)


def _remembered(ctx: Context) -> tuple[str, list[Seen], dict[str, str]]:
    """Cursor and UUIDs, of this boot only, and what was seen on any boot."""
    past = ctx.past
    try:
        known = [from_data(Seen, one) for one in past.get("seen", [])]
        known = [one for one in known if all(isinstance(t, (int, float)) for t in one.times)]
        uuids = {str(part): str(uuid) for part, uuid in dict(past.get("uuids", {})).items()}
    except (KeyError, TypeError, ValueError):
        return "", [], {}
    if past.get("boot_id") != ctx.host.boot_id or not isinstance(past.get("cursor"), str):
        # without its cursor the log of this boot is read again: what was seen of it is not counted twice
        return "", [one for one in known if one.boot_id != ctx.host.boot_id], {}
    return past["cursor"], known, uuids


@check(
    limits=Limits,
    stages={"preflight", "watch"},
    codes={
        "XidRecurring": "a GPU has the same fatal Xid again after reboots, or many times a day",
        "XidHardwareSuspect": "a fault that looks like an application's stays with one GPU while the "
        "applications change",
    },
)
def gpu_xid_repeats(ctx: Context) -> Iterator[Finding | Reading]:
    """Remembers the Xids of each GPU over boots and processes, and reports those that come again.

    It needs the memory of earlier looks (the watchdog, or `check --remember`). A GPU is known by its UUID
    where the driver printed it, else by its PCI address. Xid 94, which hurts only one application, never
    counts; what follows from another Xid counts as that one.
    """
    cursor, known, uuids = _remembered(ctx)
    try:
        log = read_kernel_log(ctx.host, cursor)
    except Unobservable:
        if not nvidia_devices(ctx.host):
            raise ctx.skip("no NVIDIA device on the PCI bus") from None
        raise
    history = History(ctx.limits, ctx.host.boot_id, known, uuids)
    for line in log.lines:
        history.line(line)
    if not (history.new or known) and not nvidia_devices(ctx.host):
        raise ctx.skip("no NVIDIA device on the PCI bus")
    kept = history.kept(ctx.host.now())
    ctx.remember.update(
        cursor=log.cursor, boot_id=ctx.host.boot_id, seen=[to_data(s) for s in kept], uuids=history.uuids
    )
    yield from _recurring(ctx, kept, ctx.host.boot_id)
    yield from _suspect(ctx, kept)
