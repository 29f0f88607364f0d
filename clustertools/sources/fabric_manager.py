"""NVIDIA's fabric manager: whether it runs, and what it wrote into its log.

    service(host)                        # Service(active=True, state="active (running)")
    log = read_log(host, cursor)         # log.events since the cursor, or since its last start

The log is /var/log/fabricmanager.log (LOG_FILE_NAME in /usr/share/nvidia/nvswitch/fabricmanager.cfg), which
grows up to LOG_FILE_MAX_SIZE and over restarts. Only root may read it on many systems.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal

from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.host import Host
from clustertools.model import pci_address

LOG = "/var/log/fabricmanager.log"
#: A first look, or one after long, reads no more than the end of the log.
TAIL_BYTES = 1 << 20
_LOOKED_AT = 1024
#: As the kernel cuts the name of the process nv-fabricmanager.
PROCESS = "nv-fabricmanage"

Kind = Literal["fatal", "non-fatal", "link-fatal", "link-non-fatal", "multicast", "topology", "start"]


@dataclass(frozen=True, slots=True)
class Service:
    """`known`: systemd has a unit of this name. `state` is in systemd's words."""

    known: bool
    active: bool
    state: str


@dataclass(frozen=True, slots=True)
class FabricEvent:
    """One line that says something. `part` is the NVSwitch that it names, `code` the SXid."""

    kind: Kind
    text: str
    part: str = ""
    code: int | None = None


@dataclass(frozen=True, slots=True)
class FabricLog:
    """Events in order. `restarted`: fabric manager started within what was read; nothing before counts."""

    events: tuple[FabricEvent, ...]
    cursor: str
    restarted: bool


_SWITCH = r" (?P<code>\d{1,6})(?:.{0,80}bus id (?P<pci>[0-9A-Fa-f:.]{12,18}))?"
_SHAPES: tuple[tuple[Kind, str], ...] = (
    # one line each, from logs in the tests of leptonai/gpud and in public reports
    # [Jul 23 2024 07:53:55] [ERROR] [tid 841] detected NVSwitch fatal error 20034 on fid 0 on NVSwitch
    #     pci bus id 00000000:86:00.0 physical id 3 port 33
    # ... detected NVSwitch non-fatal error 22013 on NodeId 0 on NVSwitch pci bus id 00000000:08:00.0 ...
    ("fatal", r"detected NVSwitch fatal error" + _SWITCH),
    ("non-fatal", r"detected NVSwitch non-fatal error" + _SWITCH),
    # [Jul 19 2025 18:34:55] [ERROR] [tid 192] Fabric Manager detected GPU NVL Non Fatal error on :
    ("link-non-fatal", r"detected GPU NVL Non[ -]Fatal error"),
    ("link-fatal", r"detected GPU NVL Fatal error"),
    # [Sep 17 2024 06:01:46] [ERROR] [tid 1230079] failed to find the GPU handle 5410063385821516767 in the
    #     multicast team request setup 6130285411925746235.
    ("multicast", r"failed to find the GPU handle \d{1,20} in the multicast team"),
    # detected number of NVSwitches don't match with any supported system topology, aborting fabric manager
    ("topology", r"NVSwitches don't match with any supported system topology"),
    # [Feb 25 2025 13:59:40] [INFO] [tid 1803] Fabric Manager version 535.161.08 is running with the following
    #     configuration options
    ("start", r"Fabric Manager version \S{1,40} is running with the following configuration"),
)


@functools.cache
def _shapes() -> tuple[tuple[Kind, re.Pattern[str]], ...]:
    return tuple((kind, re.compile(shape, re.IGNORECASE)) for kind, shape in _SHAPES)


def parse_line(text: str) -> FabricEvent | None:
    """What one line says; None for the others, which are nearly all."""
    text = text[:_LOOKED_AT]
    for kind, shape in _shapes():
        if match := shape.search(text):
            found = match.groupdict()
            return FabricEvent(kind, text, _part(found.get("pci")), int(found.get("code") or 0) or None)
    return None


def _part(address: str | None) -> str:
    try:
        return f"pci@{pci_address(address)}" if address else ""
    except ValueError:
        return ""


def read_log(host: Host, cursor: str = "") -> FabricLog:
    """What the log says after `cursor` (another file or a shorter one: from its beginning).

    Without a cursor: since fabric manager last started. Raises Absent without a log, Unobservable where we
    may not read it.
    """
    info = host.stat(LOG)
    inode, offset = _place(cursor)
    if inode != info.inode or offset > info.size_bytes:
        offset = 0
    begin = max(offset, info.size_bytes - TAIL_BYTES)
    text = host.read(LOG, begin, info.size_bytes - begin)
    # a line that is still being written is left for the next time
    whole, newline, rest = text.rpartition("\n")
    events = [event for line in (whole + newline).splitlines() if (event := parse_line(line))]
    starts = [n for n, event in enumerate(events) if event.kind == "start"]
    if starts:
        events = events[starts[-1] + 1 :]
    end = info.size_bytes - len(rest.encode("utf-8", "replace"))
    return FabricLog(tuple(events), f"{info.inode}:{max(end, 0)}", bool(starts))


def _place(cursor: str) -> tuple[int, int]:
    # 1311234:88120
    match = re.fullmatch(r"([0-9]{1,20}):([0-9]{1,20})", cursor)
    return (int(match[1]), int(match[2])) if match else (-1, 0)


def unit(host: Host, name: str) -> Service:
    """How systemd sees the unit. Raises Absent where systemd does not run, Unparsable for another form."""
    done = host.run(
        "systemctl", "show", name, "--property=LoadState,ActiveState,SubState,Result", timeout_seconds=5.0
    )
    # System has not been booted with systemd as init system (PID 1). Can't operate.
    if done.returncode and re.search(r"not been booted with systemd|Failed to connect to bus", done.stderr):
        raise Absent("systemd does not run here")
    told = dict(line.split("=", 1) for line in done.check().stdout.splitlines() if "=" in line)
    # LoadState=loaded\nActiveState=active\nSubState=running\nResult=success
    if not {"LoadState", "ActiveState"} <= told.keys():
        raise Unparsable(f"systemctl show {name} has an unknown form", done.stdout)
    state = f"{told['ActiveState']} ({told.get('SubState', '')})"
    if told.get("Result", "success") not in ("success", ""):
        state += f", {told['Result']}"
    return Service(told["LoadState"] == "loaded", told["ActiveState"] == "active", state)


def runs(host: Host, process: str) -> bool:
    """Whether a process of this name runs, of those that we see: a container sees its own only."""
    for path in host.glob("/proc/[0-9]*/comm"):
        try:
            if host.read(path).strip() == process:
                return True
        except Unobservable:
            continue  # it ended between the listing and the look
    return False
