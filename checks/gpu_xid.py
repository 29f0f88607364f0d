"""Xid and SXid lines of the kernel log: what the NVIDIA driver reported about GPUs and NVSwitches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from clustertools.catalog import finding_codes, nvlink5_rule, nvlink74, remedy_from, sxid, xid
from clustertools.check import Context, check
from clustertools.errors import Unobservable
from clustertools.host import Host
from clustertools.model import (
    Clears,
    Finding,
    Reading,
    Remedy,
    Status,
    from_data,
    gpu_part,
    pci_address,
    to_data,
)
from clustertools.sources.cgroup import COMMAND_CHARACTERS, job_of
from clustertools.sources.kernel import (
    KernelLine,
    Sxid,
    Xid,
    almost_xid,
    is_driver_load,
    is_post_rx_failure,
    parse_gpu_uuid,
    parse_nvlink5,
    parse_nvlink74,
    parse_recovery_action,
    parse_sxid,
    parse_xid,
    read_kernel_log,
)
from clustertools.sources.pci import nvidia_devices
from clustertools.text import in_words

RECOVERY_XID = 154
NVLINK_XID = 74
#: Processes named in one finding, and those whose job is looked up in one look.
MOST_PROCESSES = 4
MOST_JOBS = 16
#: So long a note is not made longer.
MOST_NOTE = 200
#: What an application does to several GPUs at once; a fault of the hardware hits one.
APPLICATION_XIDS = frozenset((13, 31, 43))
#: A line in evidence is cut here: enough for the seven register words of an Xid 74.
LINE_CHARACTERS = 300
#: More parts than any node has; a flood of invented addresses must not fill the memory.
MOST_GROUPS = 256
#: What a kernel says of lost records is news for this long.
GAP_SECONDS = 3600.0
NOT_FOUND = "the driver could not find out which NVLinks have a partner"


@dataclass(frozen=True)
class Limits:
    """How long an event counts, and which events belong together."""

    #: Events older than this are history, unless only a reboot or a person ends them. Azure's check uses 2 h,
    #: gcm the whole ring; a day covers a job that starts on a node which failed overnight.
    max_age_seconds: float = 86_400.0
    #: A consequence follows its root within this time on the same GPU (NVIDIA's flow for Xid 45 and 48 looks
    #: for companions "in the same burst"; the driver tears channels down for some seconds).
    consequence_seconds: float = 60.0
    #: Lines of evidence in one finding, the first and the last ones.
    evidence_lines: int = 6


@dataclass
class Group:
    """The events with one finding code on one part that still stand: a storm is one of these."""

    code: str
    part: str
    status: Status
    remedy: Remedy
    clears: Clears
    meaning: str
    first_time: float
    last_time: float
    count: int = 0
    numbers: list[int] = field(default_factory=list)
    consequences: list[int] = field(default_factory=list)
    note: str = ""
    who: list[str] = field(default_factory=list)
    uuid: str = ""
    first_lines: list[str] = field(default_factory=list)
    last_lines: list[str] = field(default_factory=list)

    def add(self, time: float, line: str, keep: int) -> None:
        self.last_time = max(self.last_time, time)
        self.keep_line(line, keep)

    def keep_line(self, line: str, keep: int) -> None:
        line = line[:LINE_CHARACTERS]
        if len(self.first_lines) < (keep + 1) // 2:
            self.first_lines.append(line)
        else:
            self.last_lines = [*self.last_lines, line][-max(1, keep // 2) :]

    @property
    def stands_until_reboot(self) -> bool:
        return self.clears in ("reboot", "manual")


class Events:
    """Folds lines, oldest first, into groups; knows which event is a consequence of which."""

    def __init__(
        self, limits: Limits, standing: Iterable[Group], uuids: Mapping[str, str], host: Host
    ) -> None:
        self.limits = limits
        self.groups = {(g.code, g.part): g for g in standing}
        self.uuids = dict(uuids)
        self.host = host
        self.jobs: dict[tuple[int, str], str] = {}
        self.seen = 0

    def line(self, line: KernelLine) -> None:
        text = line.text
        if "NVRM:" not in text and "SXid" not in text:
            return
        if is_driver_load(text):
            self._repaired(None)
        elif (named := parse_gpu_uuid(text)) is not None:
            if len(self.uuids) < MOST_GROUPS:
                self.uuids[gpu_part(named[0])] = named[1]
        elif is_post_rx_failure(text):
            # any on this boot is unhealthy to gpud, which asks for a reboot; links may work all the same
            group = self._group(
                "NvlinkDiscoveryFailed",
                "",
                line.time,
                Status.WARNING,
                Remedy.REBOOT_NODE,
                "reboot",
                NOT_FOUND,
            )
            group.count += 1
            group.add(line.time, text, self.limits.evidence_lines)
        elif (event := parse_xid(text)) is not None:
            self.seen += 1
            self._xid(line, event)
        elif (switch := parse_sxid(text)) is not None:
            self.seen += 1
            self._sxid(line, switch)

    def _near(self, part: str, time: float) -> list[Group]:
        """Groups on the same part that were seen about now, the most serious first."""
        close = [
            g for g in self.groups.values() if g.part == part and abs(g.last_time - time) <= self._window
        ]
        return sorted(close, key=lambda g: (-g.status, g.first_time))

    def _repaired(self, part: str | None) -> None:
        """A GPU (None: every GPU) starts anew: what a reset cures is over."""
        for key, group in list(self.groups.items()):
            if part in (None, group.part) and not group.stands_until_reboot:
                del self.groups[key]

    def _xid(self, line: KernelLine, event: Xid) -> None:
        part = gpu_part(event.pci) if event.pci else self._lost_lately(line.time)
        near = self._near(part, line.time)
        if event.code == RECOVERY_XID:
            self._recovery(line, event, part, near)
            return
        entry = xid(event.code)
        if any(set(g.numbers) & set(entry.follows) for g in near):
            root = next(g for g in near if set(g.numbers) & set(entry.follows))
            self._absorb(root, event.code, line.text)
            return
        status, remedy, clears, note = entry.status, entry.remedy, entry.clears, ""
        if 144 <= event.code <= 150:
            status, remedy, note = _nvlink5(event, status, remedy)
        elif event.code == NVLINK_XID:
            switches = self._switches(line.time)
            fatal = next((g for g in switches if g.status is Status.CRITICAL), None)
            if fatal is not None:  # the switch stops its fabric; what its GPUs say of their links follows
                self._absorb(fatal, event.code, line.text)
                return
            status, remedy, note = _nvlink74(event, status, remedy)
            if switches:
                note += f"; {switches[0].part} reported an error at the same time: look at it first"
        group = self._group(entry.finding_code, part, line.time, status, remedy, clears, entry.meaning)
        if note not in group.note and len(group.note) < MOST_NOTE:  # several links may be told of
            group.note = f"{group.note}; {note}".strip("; ")
        if "Xid (" in line.text or not group.count:  # the plain sentence about a lost GPU repeats its Xid 79
            group.count += 1
        if event.code not in group.numbers:
            group.numbers.append(event.code)
        group.uuid = self.uuids.get(part, group.uuid)
        self._attribute(group, event, line.time)
        group.add(line.time, line.text, self.limits.evidence_lines)
        self._adopt(group, near)

    def _switches(self, time: float) -> list[Group]:
        """Groups of NVSwitches that were seen about now, the most serious first."""
        close = [
            g
            for g in self.groups.values()
            if g.part.startswith("nvswitch@")
            and g.status > Status.OK
            and abs(g.last_time - time) <= self._window
        ]
        return sorted(close, key=lambda g: -g.status)

    def _attribute(self, group: Group, event: Xid, time: float) -> None:
        """Name the process of an event and, while that still lives, its job."""
        if not event.pid or len(group.who) >= MOST_PROCESSES:
            return
        key = (event.pid, event.process)
        if key not in self.jobs and len(self.jobs) < MOST_JOBS:
            self.jobs[key] = job_of(self.host, event.pid, event.process, time)
        job = f" of job {self.jobs[key]}" if self.jobs.get(key) else ""
        who = f"pid {event.pid} {event.process[:COMMAND_CHARACTERS]}".strip() + job
        # later the process may be gone: what was known of it before is kept
        if not any(known.startswith(who) for known in group.who):
            group.who = [known for known in group.who if not who.startswith(known)] + [who]

    def _lost_lately(self, time: float) -> str:
        """The part of a line that names no GPU: the one that was lost a moment ago, if there is one."""
        for group in self.groups.values():
            close = abs(group.last_time - time) <= self._window
            if 79 in group.numbers and close:
                return group.part
        return ""

    def _adopt(self, root: Group, near: list[Group]) -> None:
        """Consequences may be logged before their root, and the driver's decision as well."""
        for other in near:
            key = (other.code, other.part)
            if other is root or key not in self.groups:
                continue
            follows = all(set(xid(n).follows) & set(root.numbers) for n in other.numbers)
            brief = other.last_time - other.first_time <= self.limits.consequence_seconds
            if other.numbers == [RECOVERY_XID]:
                _obey(root, other.remedy)
            elif not (other.numbers and follows and brief):
                continue
            del self.groups[key]
            for number in other.numbers:
                self._absorb(root, number, (other.first_lines + other.last_lines)[0])

    def _absorb(self, root: Group, number: int, line: str) -> None:
        """Name a consequence in its root, once: hundreds of Xid 45 must not push the root's own lines out.

        They do not make the root any younger either.
        """
        if number not in root.consequences:
            root.consequences.append(number)
            entry = xid(number)
            if entry.status is Status.CRITICAL and len(root.note) < MOST_NOTE:
                root.note = f"{root.note}; {entry.meaning}".strip("; ")
            root.keep_line(line, self.limits.evidence_lines)

    def _recovery(self, line: KernelLine, event: Xid, part: str, near: list[Group]) -> None:
        """Xid 154: the driver itself says what the GPU needs, and when it needs nothing any more."""
        said = parse_recovery_action(event.text)
        try:
            remedy = remedy_from("nvml", said.now) if said else Remedy.INSPECT
        except ValueError:
            remedy = Remedy.INSPECT
        if said and remedy is Remedy.NONE:
            self._repaired(part)
            return
        root = next(
            (g for g in near if g.numbers and g.numbers != [RECOVERY_XID] and g.status > Status.OK), None
        )
        if root is not None:
            _obey(root, remedy)
            self._absorb(root, RECOVERY_XID, line.text)
            return
        entry = xid(RECOVERY_XID)
        group = self._group(
            entry.finding_code, part, line.time, entry.status, remedy, entry.clears, entry.meaning
        )
        group.status, group.clears = entry.status, entry.clears  # the newest decision counts
        _obey(group, remedy)
        group.count += 1
        group.numbers = [RECOVERY_XID]
        group.note = f"the driver asks for: {said.now}" if said else "its text was not understood"
        group.add(line.time, line.text, self.limits.evidence_lines)

    def _sxid(self, line: KernelLine, event: Sxid) -> None:
        part = f"nvswitch@{pci_address(event.pci)}"
        entry = sxid(event.code)
        near = self._near(part, line.time)
        if event.fatal is None and near:
            near[0].keep_line(line.text, self.limits.evidence_lines)  # a line of detail
            return
        status, remedy, clears = entry.status, entry.remedy, entry.clears
        if event.fatal and status is not Status.CRITICAL:
            status, remedy, clears = Status.CRITICAL, Remedy.REBOOT_NODE, "reboot"
        code = "SxidFatal" if status is Status.CRITICAL else "SxidNonFatal"
        if status is Status.OK:
            code = "SxidIgnored"
        group = self._group(code, part, line.time, status, remedy, clears, entry.meaning)
        group.count += 1
        link = "" if event.link is None else f" on link {event.link}"
        told = f"SXid {event.code} {entry.meaning}{link}"
        if told not in group.note and len(group.note) < 120:
            group.note = f"{group.note}; {told}".strip("; ")
        group.add(line.time, line.text, self.limits.evidence_lines)
        if status is Status.CRITICAL:
            links = [g for g in self.groups.values() if g.numbers == [NVLINK_XID]]
            self._adopt_links(group, [g for g in links if abs(g.last_time - line.time) <= self._window])

    @property
    def _window(self) -> float:
        return float(self.limits.consequence_seconds)

    def _adopt_links(self, switch: Group, links: list[Group]) -> None:
        """GPUs may tell of their links before the switch tells of itself."""
        for group in links:
            if group.last_time - group.first_time <= self._window:
                del self.groups[(group.code, group.part)]
                self._absorb(switch, NVLINK_XID, group.first_lines[0])

    def _group(
        self, code: str, part: str, time: float, status: Status, remedy: Remedy, clears: Clears, meaning: str
    ) -> Group:
        group = self.groups.get((code, part))
        if group is None:
            group = Group(code, part, status, remedy, clears, meaning, time, time)
            self.groups[(code, part)] = group
        elif status > group.status:
            group.status, group.remedy, group.clears = status, remedy, clears
        return group

    def standing(self, now: float) -> list[Group]:
        """The groups that still count at `now`, the newest ones when there are too many."""
        kept = []
        for group in self.groups.values():
            lasts = group.clears if isinstance(group.clears, float) else self.limits.max_age_seconds
            young = now - group.last_time <= min(lasts, self.limits.max_age_seconds)
            if young or group.stands_until_reboot:
                kept.append(group)
        return sorted(kept, key=lambda g: -g.last_time)[:MOST_GROUPS]


def _obey(group: Group, remedy: Remedy) -> None:
    """The driver's own decision is the remedy; a GPU that must be reset takes no job before that."""
    group.remedy = remedy
    if remedy in (Remedy.RESET_GPU, Remedy.REBOOT_NODE):
        group.status = Status.CRITICAL
    if remedy is Remedy.REBOOT_NODE:
        group.clears = "reboot"


def _nvlink5(event: Xid, status: Status, remedy: Remedy) -> tuple[Status, Remedy, str]:
    """Status, remedy and a note for an Xid 144 to 150, by the rule for its unit (catalog/nvlink5.yaml)."""
    said = parse_nvlink5(event.text)
    if said is None:
        return status, remedy, ""
    rule = nvlink5_rule(event.code, said.unit, said.error_status, said.sub_code, said.intrinfo)
    where = f"{said.unit} link {said.link}"
    now = rule.now if rule else ""
    if said.fatal and now in ("ignore", "follow-154", ""):
        now = "reset"  # the driver's own word in the line: some rules are promoted
    status, remedy = {
        "reset": (Status.CRITICAL, Remedy.RESET_GPU),
        "drain": (Status.CRITICAL, Remedy.DRAIN_AND_RESET),
        "inspect": (Status.CRITICAL, Remedy.INSPECT),
        # the other end of the link is the source: to drain this node would take the wrong one
        "peer": (Status.WARNING, Remedy.INSPECT),
        "follow-154": (Status.WARNING, Remedy.RESTART_APP),
        "ignore": (Status.OK, Remedy.NONE),
    }.get(now, (status, remedy))
    if now == "peer":
        return status, remedy, f"{where}; look at the peer device: the other end of this link is the source"
    return status, remedy, f"{where}; look at {rule.look_at}" if rule and rule.look_at != "nothing" else where


def _nvlink74(event: Xid, status: Status, remedy: Remedy) -> tuple[Status, Remedy, str]:
    """Status, remedy and a note for an Xid 74, by the bits of its registers (catalog/nvlink74.yaml)."""
    said = parse_nvlink74(event.text)
    if said is None:
        return status, remedy, ""
    found = nvlink74(said.registers)
    verdicts = {bits.verdict for bits in found}
    if verdicts == {"ignore"}:
        status, remedy = Status.OK, Remedy.NONE
    elif verdicts and verdicts <= {"ignore", "watch"}:
        status, remedy = Status.WARNING, Remedy.NONE
    told = "; ".join(str(bits) for bits in found if bits.verdict != "ignore")
    return status, remedy, f"link {said.link}" + (f": {told}" if told else "")


def _at_the_same_time(group: Group, groups: Iterable[Group], seconds: float) -> str:
    """What it means that other GPUs saw the same: an application, where it can be one's own fault."""
    if not set(group.numbers) & APPLICATION_XIDS:
        return ""
    others = [
        g
        for g in groups
        if g.code == group.code
        and g.part != group.part
        and g.first_time - seconds <= group.last_time
        and group.first_time - seconds <= g.last_time
    ]
    return f"; so on {len(others)} other GPUs at that time: the application's own fault" if others else ""


def _finding(ctx: Context, group: Group, groups: Iterable[Group]) -> Finding:
    numbers = f" (Xid {', '.join(map(str, group.numbers))})" if group.numbers else ""
    seconds = group.last_time - group.first_time
    often = f", {group.count} times" if group.count > 1 else ""
    often += f" in {in_words(seconds)}" if group.count > 1 and seconds >= 1 else ""
    after = f"; with Xid {', '.join(map(str, group.consequences))}" if group.consequences else ""
    note = f"; {group.note}" if group.note else ""
    note += _at_the_same_time(group, groups, ctx.limits.consequence_seconds)
    note += f"; {', '.join(group.who)}" if group.who else ""
    note += f"; {group.uuid}" if group.uuid else ""
    say = ctx.critical if group.status is Status.CRITICAL else ctx.warning
    # while it stands it is reported again on each look, so all but a reboot and a person end it by silence
    clears: Clears = group.clears if group.stands_until_reboot else "recovery"
    return say(
        group.code, group.part, f"{group.meaning}{numbers}{often}{note}{after}", time=group.last_time,
        evidence=(*group.first_lines, *group.last_lines), remedy=group.remedy, clears=clears,
    )  # fmt: skip


def _remembered(ctx: Context) -> tuple[str, list[Group], dict[str, str]]:
    """Cursor, standing groups and UUIDs of the last look; none of another boot or that make no sense."""
    past = ctx.past
    if past.get("boot_id") != ctx.host.boot_id or not isinstance(past.get("cursor"), str):
        return "", [], {}
    try:
        standing = [from_data(Group, g) for g in past.get("standing", [])]
        return past["cursor"], standing, {str(k): str(v) for k, v in dict(past.get("uuids", {})).items()}
    except (KeyError, TypeError, ValueError):
        return "", [], {}


@check(
    limits=Limits,
    stages={"preflight", "watch", "prolog"},
    codes={
        **finding_codes(),
        "SxidFatal": "an NVSwitch reported an error that stops its fabric",
        "SxidNonFatal": "an NVSwitch reported an error that it survived",
        "NvlinkDiscoveryFailed": NOT_FOUND,
        "KernelLogGap": "kernel messages were lost before they could be read; an Xid may be among them",
    },
)
def gpu_xid(ctx: Context) -> Iterator[Finding | Reading]:
    """Reports what the NVIDIA driver wrote into the kernel log since the last look, and what of it stands.

    An event stands until its time is over, the driver is loaded anew, an Xid 154 says that nothing is needed
    any more, or (where only that helps) the node reboots. A storm is one finding with a count. What follows
    from another Xid on the same GPU is evidence of that one. The remedy of an Xid 154 is obeyed. Where the
    rules of NVLink 5 say that the other end of a link is the source, the finding says so and drains nothing.
    """
    cursor, standing, uuids = _remembered(ctx)
    try:
        log = read_kernel_log(ctx.host, cursor)
    except Unobservable:
        if not nvidia_devices(ctx.host):
            raise ctx.skip("no NVIDIA device on the PCI bus") from None
        raise
    events = Events(ctx.limits, standing, uuids, ctx.host)
    odd = ""
    for line in log.lines:
        events.line(line)
        odd = odd or (line.text if almost_xid(line.text) else "")
    if not (events.seen or standing or odd) and not nvidia_devices(ctx.host):
        raise ctx.skip("no NVIDIA device on the PCI bus")
    kept = events.standing(ctx.host.now())
    ctx.remember.update(cursor=log.cursor, boot_id=ctx.host.boot_id, standing=[to_data(g) for g in kept])
    ctx.remember["uuids"] = events.uuids
    yield ctx.reading("xid_events", events.seen)
    if log.gap:
        yield ctx.warning(
            "KernelLogGap", "", f"{log.gap} kernel messages were lost before they could be read",
            remedy=Remedy.NONE, clears=GAP_SECONDS,
        )  # fmt: skip
    if odd:
        ctx.unseen(f"an Xid line of unknown form: {odd[:LINE_CHARACTERS]!r}")
    if log.older:
        ctx.note(f"the ring has overwritten the first {log.older} messages of this boot")
    for group in sorted(kept, key=lambda g: (-g.status, g.part, g.code)):
        if group.status is Status.OK:
            ctx.note(f"ignored by policy: {group.meaning} on {group.part or 'the node'}, {group.count} times")
        else:
            yield _finding(ctx, group, kept)
