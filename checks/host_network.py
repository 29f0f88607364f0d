"""The node's IP network: names resolve, what it depends on can be reached, connections can be tracked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.errors import Absent, Unparsable
from clustertools.model import Finding, Reading
from clustertools.sources.endpoints import probe


@dataclass(frozen=True)
class Limits:
    # libc's resolver waits 5 s for each server before the next (resolv.conf(5)); by then a login hangs
    answer_seconds: float = 3.0
    # node-problem-detector: conntrack table more than 90 % full
    conntrack_ratio: float = 0.90


@check(
    limits=Limits,
    stages={"preflight", "watch"},
    codes={
        "DnsSilent": "no name server of this node answers",
        "HostUnreachable": "a host and port that this node depends on does not answer",
        "ConntrackFull": "the table of tracked connections is nearly full: new ones will be dropped",
        "DefaultRouteLost": "the node had a default route since its boot, and has none now",
    },
    confirm=2,
    interval_seconds=300,
    cost_seconds=0.15,
)
def host_network(ctx: Context) -> Iterator[Finding | Reading]:
    """Name servers of /etc/resolv.conf, `expect["reachable"]` (HOST:PORT), conntrack, the default route.

    A name server is asked for the root's own servers; any answer will do, a refusal too. A node that never
    had a default route is none that lost it.
    """
    yield from _conntrack(ctx)
    yield from _route(ctx)
    servers = _name_servers(ctx)
    reachable = [str(place) for place in ctx.expect.get("reachable", ())]
    what = [f"dns:{server}" for server in servers] + [f"tcp:{place}" for place in reachable]
    answers = {a.what: a for a in probe(ctx.host, what, deadline_seconds=ctx.limits.answer_seconds)}
    asked = [answers[f"dns:{server}"] for server in servers]
    if asked and all(a.error for a in asked):
        yield ctx.warning(
            "DnsSilent", "dns",
            f"none of {len(asked)} name servers answers within {ctx.limits.answer_seconds:g} s",
            evidence=tuple(f"{a.what.partition(':')[2]}: {a.error}" for a in asked),
        )  # fmt: skip
    for answer in asked:
        if answer.error and not all(a.error for a in asked):
            ctx.note(f"the name server {answer.what.partition(':')[2]} does not answer; another one does")
    for place in reachable:
        answer = answers[f"tcp:{place}"]
        if answer.error:
            # it may be the other side's fault, so no node is drained for it
            yield ctx.warning(
                "HostUnreachable", f"tcp@{place}", f"{place} cannot be reached: {answer.error}"
            )  # fmt: skip
        else:
            yield ctx.reading("connect_seconds", answer.elapsed_seconds, f"tcp@{place}")


def _name_servers(ctx: Context) -> list[str]:
    try:
        text = ctx.host.read("/etc/resolv.conf", 0, 65536)
    except Absent:
        ctx.note("no /etc/resolv.conf: names are not looked up at a server")
        return []
    # nameserver 127.0.0.53          (libc asks the first three, resolv.conf(5))
    return re.findall(r"^nameserver\s+([0-9A-Fa-f.:]{2,45})(?:%\w+)?\s*$", text, re.MULTILINE)[:3]


def _conntrack(ctx: Context) -> Iterator[Finding | Reading]:
    try:
        texts = [ctx.host.read(f"/proc/sys/net/netfilter/nf_conntrack_{n}").strip() for n in ("count", "max")]
    except Absent:
        # nobody tracks connections here
        return
    if not all(re.fullmatch(r"\d{1,12}", text) for text in texts):
        raise Unparsable("nf_conntrack_count or nf_conntrack_max is not a number", " ".join(texts))
    count, most = map(int, texts)
    ratio = count / most if most else 0.0
    yield ctx.reading("conntrack_used_ratio", ratio)
    if ratio > ctx.limits.conntrack_ratio:
        yield ctx.warning(
            "ConntrackFull", "conntrack",
            f"{count} of at most {most} connections are tracked ({ratio:.0%}, limit "
            f"{ctx.limits.conntrack_ratio:.0%})",
        )  # fmt: skip


def _route(ctx: Context) -> Iterator[Finding]:
    # Iface	Destination	Gateway ...
    # eno1	00000000	FE0012C6	0003 ...       flag 0001: up
    lines = ctx.host.read("/proc/net/route").splitlines()
    if lines and not lines[0].startswith("Iface"):
        raise Unparsable("/proc/net/route has an unknown form", lines[0])
    names = [words[0] for words in map(str.split, lines[1:]) if len(words) > 7 and _is_default(words)]
    before = ctx.past.get("route") or {}
    had = before.get("names") if before.get("boot_id") == ctx.host.boot_id else None
    ctx.remember["route"] = {"boot_id": ctx.host.boot_id, "names": names or had or []}
    if had and not names:
        yield ctx.warning(
            "DefaultRouteLost",
            "route",
            f"the default route over {', '.join(had)} is gone since an earlier look",
        )


def _is_default(words: list[str]) -> bool:
    return words[1] == "00000000" == words[7] and int(words[3], 16) & 1 == 1
