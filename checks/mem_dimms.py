"""The memory modules: as many and as large as there should be, all alike, at the speed that they have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from clustertools.check import Context, check
from clustertools.errors import Absent
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.tools import dmidecode_memory

_GIB = 1 << 30


@check(
    stages={"daily"},
    interval_seconds=86400.0,
    cost_seconds=0.3,
    needs={"root"},
    codes={
        "DimmMissing": "fewer memory modules are installed than this node class should have",
        "DimmMixed": "memory modules of different sizes are installed",
        "DimmSlow": "memory modules run slower than they can, while others of the node do not",
    },
)
def mem_dimms(ctx: Context) -> Iterator[Finding | Reading]:
    """`dmidecode -t memory`: what sits in each socket, against `expect["dimms"]` and against each other.

    `dimms` is a number, or a mapping with `count` and `size_bytes`. What the firmware switched off after a
    failed test is often no longer listed, so this shows a module that host_memory only misses as bytes.
    """
    try:
        done = ctx.host.run("dmidecode", "-t", "memory", timeout_seconds=15.0)
    except Absent as exc:
        raise ctx.skip("dmidecode is not installed") from exc
    modules = dmidecode_memory.read(done.check().stdout)["modules"]
    yield ctx.reading("dimms_total", len(modules))
    yield from _expected(ctx, modules)
    yield from _mixed(ctx, modules)
    yield from _slow(ctx, modules)


def _expected(ctx: Context, modules: list[Mapping[str, Any]]) -> Iterator[Finding]:
    told = ctx.expect.get("dimms")
    wanted = told if isinstance(told, Mapping) else {"count": told} if told is not None else {}
    if "count" in wanted and len(modules) < int(wanted["count"]):
        yield ctx.critical(
            "DimmMissing", "memory", f"{len(modules)} memory modules, {int(wanted['count'])} expected",
            evidence=tuple(f"{m.get('place', '?')}: {m['size_bytes'] / _GIB:.0f} GiB" for m in modules[:32]),
            remedy=Remedy.INSPECT,
        )  # fmt: skip
    small = [m for m in modules if m["size_bytes"] < int(wanted.get("size_bytes", 0))]
    if small:
        yield ctx.warning(
            "DimmMixed", "memory",
            f"{len(small)} memory modules have less than {int(wanted['size_bytes']) / _GIB:.0f} GiB: "
            + ", ".join(str(m.get("place", "?")) for m in small[:8]),
        )  # fmt: skip


def _mixed(ctx: Context, modules: list[Mapping[str, Any]]) -> Iterator[Finding]:
    """One odd module among many alike was put in by mistake; halves of two sizes were meant so."""
    if not any(m.get("configured_transfers_per_second") for m in modules):
        # Hyper-V: one of 4 GB below the hole for devices, many of 64 GB, and what is left
        ctx.note("no module tells its speed: a hypervisor made them up, and their sizes say nothing")
        return
    sizes = Counter(m["size_bytes"] for m in modules)
    if len(modules) < 4 or len(sizes) < 2:
        return
    usual, count = sizes.most_common(1)[0]
    odd = [m for m in modules if m["size_bytes"] != usual]
    if len(odd) * 4 <= count:
        named = ", ".join(f"{m.get('place', '?')} {m['size_bytes'] / _GIB:.0f} GiB" for m in odd[:8])
        yield ctx.warning("DimmMixed", "memory", f"{count} modules have {usual / _GIB:.0f} GiB, but {named}")


def _slow(ctx: Context, modules: list[Mapping[str, Any]]) -> Iterator[Finding]:
    """All slow alike is how boards run full channels, or a choice in the firmware: no finding."""
    speeds = {str(m.get("place", n)): m.get("configured_transfers_per_second") for n, m in enumerate(modules)}
    known = {place: speed for place, speed in speeds.items() if speed}
    if not known:
        return
    fastest = max(known.values())
    slow = [place for place, speed in known.items() if speed < fastest]
    if slow:
        yield ctx.warning(
            "DimmSlow", "memory",
            f"{len(slow)} of {len(known)} modules run below the {fastest / 1e6:.0f} MT/s of the others: "
            + ", ".join(f"{place} {known[place] / 1e6:.0f} MT/s" for place in slow[:8]),
        )  # fmt: skip
