"""The kernel log since a place in it, and what its lines say about GPUs, switches and the host.

    log = read_kernel_log(host, cursor)    # cursor "" at first; keep log.cursor for the next time
    for line in log.lines:
        xid = parse_xid(line.text)

The ring buffer `/dev/kmsg` comes first: it needs no child process and no journald, answers in a millisecond,
and its sequence numbers count what was lost. The journal is asked when the ring cannot be read (the journal
needs only a group), and to fill in what the ring has already overwritten. Where neither /run/log/journal nor
/var/log/journal holds a file, nothing is started.

The parsers are pure. They search one text, of which they look at the first 4096 characters (a kernel record
holds about 1000), and give None for everything else: in a log the unknown is normal.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from clustertools.errors import Unobservable, Unparsable
from clustertools.host import Host
from clustertools.model import pci_address

#: Journal entries that a first look asks for. A node that logs more in one boot keeps the newest.
FIRST_LOOK_ENTRIES = 5000
_JOURNALCTL = ("journalctl", "-k", "-o", "json", "--no-pager")  # -k means this boot's kernel messages
_JOURNAL_TIMEOUT_SECONDS = 8.0
#: No sequence number: the line came from the journal.
UNNUMBERED = -1


@dataclass(frozen=True, slots=True)
class KernelLine:
    """One record. `facility` 0 is the kernel, 1 a program that wrote into /dev/kmsg; `level` is 0 to 7."""

    time: float
    sequence: int
    facility: int
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class KernelLog:
    """New lines, oldest first, and the cursor for the next time.

    `gap` records were lost since the cursor. `older` records of this boot were overwritten before the first
    look, which is normal on a node that has been up for long.
    """

    lines: tuple[KernelLine, ...]
    cursor: str
    gap: int
    source: str
    older: int = 0


@dataclass(frozen=True, slots=True)
class _Place:
    """What a cursor says: the source, the boot, the record's time on the boot clock, its place there."""

    source: str
    boot_id: str
    microseconds: int
    position: str

    def __str__(self) -> str:
        return f"{self.source}:{self.boot_id}:{self.microseconds}:{self.position}"


@dataclass(frozen=True, slots=True)
class _Record:
    microseconds: int
    position: str
    line: KernelLine


def read_kernel_log(host: Host, cursor: str = "") -> KernelLog:
    """The kernel's messages after `cursor`, or all of this boot that is still there.

    A cursor of another boot, or one that means nothing, is as none. Raises Unobservable when neither the ring
    nor the journal can be read, or when the boot time is not known; Unparsable for a record of unknown form.
    """
    past = _place(cursor, host.boot_id)
    try:
        text = host.read("/dev/kmsg")
    except Unobservable as ring:
        if not _journal_is_kept(host):
            raise
        try:
            return _from_journal(host, past, _boot_time(host))
        except Unobservable as journal:
            raise Unobservable(f"{ring}; and the journal: {journal}") from journal
    return _from_ring(host, text, past, _boot_time(host))


def _place(cursor: str, boot_id: str) -> _Place | None:
    # kmsg:4f1c...:1234567:89 or journal:4f1c...:1234567:s=...;i=...
    parts = cursor.split(":", 3)
    if len(parts) != 4 or parts[0] not in ("kmsg", "journal") or parts[1] != boot_id:
        return None
    digits = (parts[2], parts[3]) if parts[0] == "kmsg" else (parts[2],)
    if not all(re.fullmatch(r"\d{1,18}", d, re.ASCII) for d in digits):
        return None
    return _Place(parts[0], parts[1], int(parts[2]), parts[3])


def _boot_time(host: Host) -> float:
    # btime 1700000000
    match = re.search(r"^btime (\d+)$", host.read("/proc/stat"), re.MULTILINE)
    if match is None:
        raise Unparsable("/proc/stat has no btime")
    return float(match[1])


def _from_ring(host: Host, text: str, past: _Place | None, boot_time: float) -> KernelLog:
    records = _ring_records(text, boot_time)
    if not records:
        return KernelLog((), str(past) if past else "", 0, "kmsg")
    last = records[-1]
    known = None
    # numbers that went back do not belong to this ring: then only the time tells old from new
    if past and past.source == "kmsg" and int(past.position) <= last.line.sequence:
        known = int(past.position)
    if known is not None:
        new = [r for r in records if r.line.sequence > known]
    else:
        new = [r for r in records if past is None or r.microseconds > past.microseconds]
    gap = 0
    if known is not None:
        numbers = [known, *(r.line.sequence for r in new)]
        gap = sum(max(0, b - a - 1) for a, b in itertools.pairwise(numbers))
    older = records[0].line.sequence if past is None else 0
    if new and (gap or older) and _journal_is_kept(host):
        filled: list[_Record] = []
        # the journal is a bonus here: without it the loss stays counted
        with contextlib.suppress(Unobservable):
            filled = [
                r
                for r in _journal_records(_journal(host, "-n", str(FIRST_LOOK_ENTRIES)), boot_time)
                if (past.microseconds if past else -1) < r.microseconds < new[0].microseconds
            ]
        new = [*filled, *new]
        gap, older = max(0, gap - len(filled)), max(0, older - len(filled))
    place = _Place("kmsg", host.boot_id, last.microseconds, str(last.line.sequence))
    return KernelLog(tuple(r.line for r in new), str(place), gap, "kmsg", older)


@functools.lru_cache(maxsize=1)  # several checks read the same ring in one pass
def _ring_records(text: str, boot_time: float) -> tuple[_Record, ...]:
    """The records of the ring, by number. `priority,sequence,microseconds,flags[,more];text` (kernel
    documentation, ABI dev-kmsg); raises Unparsable for another form."""
    records: dict[int, _Record] = {}
    last = -1
    for raw in text.split("\n"):
        if not raw or raw.startswith(" "):  # " SUBSYSTEM=pci": the device dictionary of the record above
            continue
        # 6,339,5140900,-;NET: Registered protocol family 10
        head, separator, message = raw.partition(";")
        fields = head.split(",")
        if not separator or len(fields) < 3 or not all(f.isascii() and f.isdigit() for f in fields[:3]):
            raise Unparsable("/dev/kmsg: a record of unknown form", raw)
        if any(len(f) > 18 for f in fields[:3]):
            raise Unparsable("/dev/kmsg: a number that no kernel writes", raw)
        priority, sequence, microseconds = (int(f) for f in fields[:3])
        if fields[3:4] == ["+"] and last in records:  # the rest of a line, as kernels before 4.9 gave it
            first = records[last].line
            message, priority = (first.text + message)[:_LOOKED_AT], first.facility << 3 | first.level
            records[last] = replace(records[last], line=replace(first, text=""))  # its number was not lost
        line = KernelLine(boot_time + microseconds / 1e6, sequence, priority >> 3, priority & 7, message)
        records[sequence] = _Record(microseconds, str(sequence), line)
        last = sequence
    return tuple(records[number] for number in sorted(records))


def _journal_is_kept(host: Host) -> bool:
    return any(host.glob(f"{folder}/log/journal/*/*.journal") for folder in ("/run", "/var"))


def _journal(host: Host, *options: str) -> str:
    done = host.run(*_JOURNALCTL, *options, timeout_seconds=_JOURNAL_TIMEOUT_SECONDS).check()
    if done.truncated:  # the last line may be half a one; the cursor then stops before it
        return done.stdout[: done.stdout.rfind("\n") + 1]
    return done.stdout


def _from_journal(host: Host, past: _Place | None, boot_time: float) -> KernelLog:
    records: list[_Record] = []
    gap = 0
    if past and past.source == "journal":
        # with --cursor the known entry comes first again: proof that we may still read and that it is there
        with contextlib.suppress(Unobservable):  # the entry was removed meanwhile: look at the whole boot
            records = list(_journal_records(_journal(host, f"--cursor={past.position}"), boot_time))
        if records and records[0].position == past.position:
            records = records[1:]
            return _journal_log(host, past, records, 0)
        gap = 1  # at least one: how many went with it, nobody knows
    records = list(_journal_records(_journal(host, "-n", str(FIRST_LOOK_ENTRIES)), boot_time))
    if not records:
        raise Unobservable(
            "no kernel message of this boot can be read (this needs root or the group systemd-journal)"
        )
    if past:
        records = [r for r in records if r.microseconds > past.microseconds]
    return _journal_log(host, past, records, gap)


def _journal_log(host: Host, past: _Place | None, records: Sequence[_Record], gap: int) -> KernelLog:
    cursor = str(past) if past else ""
    if records:
        cursor = str(_Place("journal", host.boot_id, records[-1].microseconds, records[-1].position))
    return KernelLog(tuple(r.line for r in records), cursor, gap, "journal")


def _journal_records(text: str, boot_time: float) -> Iterator[_Record]:
    """Parse `journalctl -o json`: one object a line (systemd, "Journal JSON Format")."""
    for raw in text.split("\n"):
        if not raw.strip():
            continue
        try:
            entry = json.loads(raw)
            position, realtime = str(entry["__CURSOR"]), int(entry["__REALTIME_TIMESTAMP"])
            since_boot = int(entry.get("_SOURCE_MONOTONIC_TIMESTAMP") or entry["__MONOTONIC_TIMESTAMP"])
            facility, level = int(entry.get("SYSLOG_FACILITY", 0)), int(entry.get("PRIORITY", 6))
            # the receiver's clock is right unless journald read the ring late; the earlier is nearer
            time = min(realtime / 1e6, boot_time + since_boot / 1e6)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as exc:
            raise Unparsable("journalctl: a line that is not a journal entry", raw) from exc
        message = _text(entry.get("MESSAGE"))
        # of "NVRM: Xid ..." written by a program journald makes the identifier NVRM and the message "Xid ..."
        identifier = _text(entry.get("SYSLOG_IDENTIFIER"))
        if identifier and identifier != "kernel":
            message = f"{identifier}: {message}"
        yield _Record(since_boot, position, KernelLine(time, UNNUMBERED, facility, level, message))


def _text(value: object) -> str:
    """A journal field: a string, or a list of bytes where it was not valid UTF-8."""
    if isinstance(value, list):
        return bytes(b for b in value if isinstance(b, int) and 0 <= b < 256).decode("utf-8", "replace")
    # half a surrogate pair is valid JSON and no valid text
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else ""


# ---- what a line says --------------------------------------------------------------------------------

_LOOKED_AT = 4096
# kept as text: `re` compiles each when it is first needed, so that importing this module is cheap
_ADDRESS = r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?"

# NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python, GPU has fallen off the bus.
# NVRM: Xid (PCI:0000:3b:00 GPU-I:05): 94, pid='<unknown>', name=<unknown>, Contained: ...
# NVRM: Xid (0000:03:00): 31, Ch 00000010, engmask 00000101, intr 10000000
_XID = (
    rf"(?s)(?:^|[\s:])NVRM: Xid \((?:PCI:)?(?P<pci>{_ADDRESS})(?: GPU-I:(?P<mig>\d{{1,4}}))?\): "
    r"(?P<code>\d{1,5})(?!\d)[,:]?\s*(?P<rest>.*)"
)
# pid=1234, name=python, ...    pid='<unknown>', name=<unknown>, ...
_PROCESS = r"(?a)pid='?(?:(?P<pid>\d{1,10})|<unknown>)'?,\s*(?:name=(?P<name>[^,]*),\s*)?"
# NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus.
# NVRM: The NVIDIA GPU 0000:3b:00.0 (PCI ID: 10de:2330) installed in this system has fallen off the bus
# NVRM: GPU 18:00.0: GPU has fallen off the bus.
_FALLEN = rf"(?s)NVRM: .{{0,200}}?\b(?P<pci>{_ADDRESS}|[0-9a-fA-F]{{2}}:[0-9a-fA-F]{{2}}\.[0-7])"
# NVRM: GPU at PCI:0000:3b:00: GPU-8f6a9ea1-4b4f-2e34-9a1e-0a4bd5a3a1f4
_UUID = rf"NVRM: GPU at PCI:(?P<pci>{_ADDRESS}): (?P<uuid>GPU-[0-9a-fA-F-]{{36}})"
# GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)
_RECOVERY = (
    r"recovery action changed from 0x[0-9a-fA-F]{1,8} \((?P<was>[^()]{0,60})\) "
    r"to 0x(?P<number>[0-9a-fA-F]{1,8}) \((?P<now>[^()]{0,60})\)"
)
# RLW_REMAP Nonfatal XC0 i0 Link 00 (0x00000004 0x80000000 0x00000000 0x00000000 0x00000000 0x00000000)
_NVLINK5 = (
    r"(?i)(?P<unit>[A-Z][A-Z0-9_]{2,40})\s+(?P<severity>Fatal|Link[ -]?Fatal|Non-?fatal)\s+"
    r"(?:XC\d\s+)?(?:i\d\s+)?Link\s+(?P<link>-?\d{1,4})\s+"
    r"\((?P<words>0x[0-9a-fA-F]{1,8}(?:[ ,]+0x[0-9a-fA-F]{1,8})*)"
)
# NVLink: fatal error detected on link 14(0x0, 0x0, 0x10000, 0x0, 0x0, 0x0, 0x0)
_NVLINK74 = (
    r"detected on link (?P<link>\d{1,4})\s?"
    r"\((?P<words>0x[0-9a-fA-F]{1,8}(?:,\s?0x[0-9a-fA-F]{1,8}){6})\)"
)
# Graphics SM Warp Exception on (GPC 3, TPC 5, SM 1): Illegal Instruction Parameter
_SHADER = r"\(GPC (?P<gpc>\d{1,3}), TPC (?P<tpc>\d{1,3})\b"
# NVRM: knvlinkUpdatePostRxDetectLinkMask_IMPL: Failed to update Rx Detect Link mask!
# NVRM: knvlinkDiscoverPostRxDetLinks_GH100: Getting peer1's postRxDetLinkMask failed!
_POST_RX = (
    r"NVRM: knvlink(?:UpdatePostRxDetectLinkMask_\w{1,20}: Failed to update"
    r"|DiscoverPostRxDetLinks_\w{1,20}: .{0,60}failed)"
)
# NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024
_DRIVER_LOAD = r"NVRM: loading NVIDIA UNIX .{0,60}Kernel Module\b"
# nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 32 LTSSM Fault Up
# nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Severity 1 Engine instance 32 Sub-engine instance 00
_SXID = (
    rf"(?s)(?P<switch>nvidia-nvswitch\d{{1,3}}):? SXid \(PCI:(?P<pci>{_ADDRESS})\): "
    r"(?P<code>\d{1,6})(?!\d),?\s*(?:(?P<severity>Fatal|Non-fatal),?\s*)?"
    r"(?:Link (?P<link>\d{1,4})\s*)?(?P<rest>.*)"
)


@dataclass(frozen=True, slots=True)
class Xid:
    """One Xid line. `pci` is normalised, empty when the line names no GPU; `pid` is None when not known."""

    code: int
    pci: str
    text: str
    pid: int | None = None
    process: str = ""
    mig: str = ""


@dataclass(frozen=True, slots=True)
class RecoveryAction:
    """What an Xid 154 says: the driver's words before and now, and the number of the latter."""

    was: str
    now: str
    number: int


@dataclass(frozen=True, slots=True)
class Nvlink5Error:
    """The extended form of Xid 144 to 150. `sub_code` is bits 20 to 25 of the first word, `intrinfo`."""

    unit: str
    fatal: bool
    link: int
    error_status: int
    sub_code: int
    intrinfo: int = 0


@dataclass(frozen=True, slots=True)
class NvlinkRegisters:
    """The link and the seven register words of an Xid 74."""

    link: int
    registers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sxid:
    """One SXid line. `fatal` is the driver's word, None on the lines of detail that follow the first."""

    code: int
    pci: str
    switch: str
    fatal: bool | None
    link: int | None
    text: str


def parse_xid(text: str) -> Xid | None:
    """The Xid that a line reports; also a GPU that has fallen off the bus where the driver gave no Xid."""
    text = text[:_LOOKED_AT]
    match = re.search(_XID, text)
    if match is None:
        return _fallen_off(text)
    rest, pid, process = match["rest"], None, ""
    who = re.match(_PROCESS, rest)
    if who:
        rest = rest[who.end() :]
        pid = int(who["pid"]) if who["pid"] else None
        process = who["name"] or ""
        process = "" if process == "<unknown>" else process
    return Xid(int(match["code"]), pci_address(match["pci"]), rest.strip(), pid, process, match["mig"] or "")


def _fallen_off(text: str) -> Xid | None:
    if "NVRM:" not in text or "fallen off the bus" not in text or "Xid (" in text:
        return None
    match = re.search(_FALLEN, text)
    return Xid(79, pci_address(match["pci"]) if match else "", "GPU has fallen off the bus")


def almost_xid(text: str) -> bool:
    """Whether a line looks like an Xid but has a form that `parse_xid` does not know."""
    return ("NVRM: Xid" in text[:_LOOKED_AT] or "NVRM: XID" in text[:_LOOKED_AT]) and parse_xid(text) is None


def parse_recovery_action(text: str) -> RecoveryAction | None:
    """The decision in the text of an Xid 154."""
    match = re.search(_RECOVERY, text[:_LOOKED_AT])
    return RecoveryAction(match["was"], match["now"], int(match["number"], 16)) if match else None


def parse_nvlink5(text: str) -> Nvlink5Error | None:
    """The extended form in the text of an Xid 144 to 150."""
    match = re.search(_NVLINK5, text[:_LOOKED_AT])
    if match is None:
        return None
    words = [int(w, 16) for w in re.findall(r"0x[0-9a-fA-F]{1,8}", match["words"])]
    fatal = not match["severity"].lower().startswith("non")
    status = words[1] if len(words) > 1 else 0
    return Nvlink5Error(
        match["unit"].upper(), fatal, int(match["link"]), status, words[0] >> 20 & 0x3F, words[0]
    )


def parse_nvlink74(text: str) -> NvlinkRegisters | None:
    """Link and register words in the text of an Xid 74; None where the driver printed none."""
    match = re.search(_NVLINK74, text[:_LOOKED_AT])
    if match is None:
        return None
    return NvlinkRegisters(int(match["link"]), tuple(int(w, 16) for w in match["words"].split(",")))


def parse_shader(text: str) -> tuple[int, int] | None:
    """The (GPC, TPC) in the text of an Xid 13: which part of the chip ran the instruction."""
    match = re.search(_SHADER, text[:_LOOKED_AT])
    return (int(match["gpc"]), int(match["tpc"])) if match else None


def is_post_rx_failure(text: str) -> bool:
    """Whether the driver says that it could not find out which NVLinks have a partner."""
    return re.search(_POST_RX, text[:_LOOKED_AT]) is not None


def parse_gpu_uuid(text: str) -> tuple[str, str] | None:
    """(PCI address, UUID) of the line that the driver prints before a GPU's first Xid."""
    match = re.search(_UUID, text[:_LOOKED_AT])
    return (pci_address(match["pci"]), match["uuid"]) if match else None


def is_driver_load(text: str) -> bool:
    """Whether the line says that the NVIDIA kernel module was loaded: every GPU starts anew."""
    return re.search(_DRIVER_LOAD, text[:_LOOKED_AT]) is not None


def parse_sxid(text: str) -> Sxid | None:
    """The SXid that a line of the NVSwitch driver reports."""
    match = re.search(_SXID, text[:_LOOKED_AT])
    if match is None:
        return None
    severity = {"Fatal": True, "Non-fatal": False}.get(match["severity"] or "")
    link = int(match["link"]) if match["link"] else None
    return Sxid(
        int(match["code"]), pci_address(match["pci"]), match["switch"], severity, link, match["rest"].strip()
    )
