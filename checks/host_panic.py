"""Whether the last boot ended in a panic: what the kernel left behind for the time after."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.errors import Absent, Unobservable
from clustertools.model import Finding, Reading, Remedy

#: What a record begins with is enough to tell a panic from an oops or a shutdown.
READ_BYTES = 64 << 10
LINES = 6
LINE_CHARACTERS = 300

#: The kernel's persistent store (Documentation/ABI/testing/pstore); systemd-pstore moves its records to
#: /var/lib/systemd/pstore and removes them; kdump leaves a log beside its dump (kdump-tools, kexec-tools).
PLACES = (
    "/sys/fs/pstore/dmesg-*",
    "/var/lib/systemd/pstore/*/dmesg.txt",
    "/var/lib/systemd/pstore/*/*/dmesg.txt",
    "/var/crash/*/vmcore-dmesg.txt",
    "/var/crash/*/dmesg.[0-9]*",
)
# Panic#1 Part1                    Oops#2 Part3         the first line of a record of pstore
_HEAD = re.compile(r"\A(?P<kind>Panic|Oops|Emergency|Shutdown|Reboot|Halt|Poweroff)#\d+ Part\d+", re.ASCII)
# <0>[ 5021.377001] Kernel panic - not syncing: Fatal machine check
_PANIC = re.compile(r"Kernel panic - not syncing[^\n]{0,200}")
# <1>[  913.120033] BUG: kernel NULL pointer dereference, address: 0000000000000008
_CAUSE = re.compile(
    r"Kernel panic - not syncing|\bBUG: |Oops: |kernel BUG at |Hardware Error|LOCKUP|RIP: |blocked for more"
)


@dataclass(frozen=True)
class Limits:
    """How long a panic is news."""

    #: A node that panicked yesterday and has run since is worth a look, not a second report: nobody may ever
    #: empty the store, so the age decides.
    news_seconds: float = 86_400.0


def _panic(text: str) -> str:
    """What the record of a panic says, empty for any other record."""
    head = _HEAD.match(text)
    said = _PANIC.search(text)
    if head is not None and head["kind"] != "Panic":
        return ""  # an oops that the kernel survived is in the log of its own boot
    return said[0] if said else "Kernel panic" if head else ""


@check(
    limits=Limits,
    stages={"preflight", "watch"},
    codes={"HostPanicked": "the kernel panicked, and the node came back from it"},
    needs=("root",),
)
def host_panic(ctx: Context) -> Iterator[Finding | Reading]:
    """Reports a panic of the last day, by the records that outlive a reboot.

    Where neither a persistent store nor kdump is set up a panic leaves nothing, and this check cannot know.
    """
    now = ctx.host.now()
    places = [path for pattern in PLACES for path in ctx.host.glob(pattern)]
    if not places and not _can_look(ctx):
        return
    found: list[tuple[float, str, str]] = []
    for path in places:
        try:
            time = ctx.host.stat(path).mtime
            if now - time > ctx.limits.news_seconds:
                continue
            text = ctx.host.read(path, limit=READ_BYTES)
        except Absent:
            continue  # systemd-pstore has moved it meanwhile
        except Unobservable as exc:
            ctx.unseen(str(exc))
            continue
        if _panic(text):
            found.append((time, path, text))
    if found:
        # the parts of one panic are records of their own
        time, path, text = max(found)
        said = next((said for _, _, t in found if (said := _panic(t)) != "Kernel panic"), "Kernel panic")
        lines = [line[:LINE_CHARACTERS] for line in text.splitlines() if _CAUSE.search(line)]
        yield ctx.warning(
            "HostPanicked", "", f"{said[:200]}; recorded in {path}",
            evidence=tuple(lines[:LINES]), remedy=Remedy.INSPECT, time=time,
        )  # fmt: skip


def _can_look(ctx: Context) -> bool:
    """Whether the store is readable: for others than root it looks empty."""
    try:
        ctx.host.stat("/sys/fs/pstore/.")
    except Absent:
        return True  # no such store on this machine
    except Unobservable as exc:
        ctx.unseen(f"/sys/fs/pstore: {exc}")
        return False
    return True
