"""Kinds of error lines in the kernel log that nobody has described: how many there are, and a few of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.model import Finding, Reading
from clustertools.sources.kernel import read_kernel_log
from clustertools.sources.kernel_kinds import is_familiar, kind_of

#: Levels 0 to 3 are emergency to error (kernel, include/linux/kern_levels.h).
ERROR_LEVEL = 3
#: Facility 0 is the kernel; 1 is a program that wrote into /dev/kmsg.
KERNEL = 0
MOST_KINDS = 256


@dataclass(frozen=True)
class Limits:
    """How much is told."""

    #: Kinds that the note shows, the newest ones.
    samples: int = 5


@check(limits=Limits, stages={"preflight", "watch"}, codes={})
def kernel_unfamiliar(ctx: Context) -> Iterator[Finding | Reading]:
    """Counts the kinds of error lines of this boot that neither a check nor the list of harmless ones knows.

    Never a finding: what is unknown is mostly harmless. It is there for the person who looks at a node that
    misbehaves without a reason, and to be compared between nodes. Imbue's cluster-health warns of each.
    """
    past = ctx.past if ctx.past.get("boot_id") == ctx.host.boot_id else {}
    cursor, known = past.get("cursor"), past.get("kinds")
    if not (isinstance(cursor, str) and isinstance(known, list)):
        cursor, known = "", []
    log = read_kernel_log(ctx.host, cursor)
    kinds = {str(kind): None for kind in known}
    for line in log.lines:
        if line.level > ERROR_LEVEL or line.facility != KERNEL:
            continue
        kind = kind_of(line.text)
        if kind and kind not in kinds and not is_familiar(line.text):
            kinds[kind] = None
    names = list(kinds)[-MOST_KINDS:]
    ctx.remember.update(cursor=log.cursor, boot_id=ctx.host.boot_id, kinds=names)
    yield ctx.reading("kernel_unfamiliar_error_kinds_total", len(names))
    for name in names[-ctx.limits.samples :]:
        ctx.note(f"unfamiliar: {name}")
