"""Reports of preflights as the tests of their renderings want them: small, hostile, and of 1,024 nodes."""

from __future__ import annotations

import functools
import random

from clustertools.measurement import Figure, Grade, Judged, Suspect
from clustertools.model import Finding, Remedy, Status, Subject
from clustertools.preflight_report import (
    Case,
    GroupResult,
    NodeResult,
    Remark,
    Repeat,
    Report,
    Round,
    Stage,
    Terms,
    Untested,
)

MARKUP = "<script>alert(1)</script>\"'&</title><img src=x onerror=alert(1)>"
ANSI = "\x1b[31mred\x1b]0;title\x07\x9b2J\r\nnext\u202egnp"
SIZES = tuple(1 << n for n in range(10, 31, 2))


def busbw(nodes: tuple[str, ...], size: int, value: float, variant: str = "nccl float32 8 ranks") -> Figure:
    return Figure("collective", nodes, "busbw_bytes_per_second", value, "", size, variant)


def judged(figure: Figure, grade: Grade = Grade.GOOD, ratio: float = 1.0, against: str = "") -> Judged:
    return Judged(
        figure, grade, "peers", ratio, against or f"{figure.value / ratio / 1e9:.1f} GB/s of its peers"
    )


def curve(nodes: tuple[str, ...], factor: float = 1.0, grade: Grade = Grade.GOOD) -> tuple[Judged, ...]:
    """Busbw by size, as a ring has it: latency first, then the link."""
    return tuple(
        judged(busbw(nodes, size, factor * size / (20e-6 + size / 92e9)), grade, factor) for size in SIZES
    )


def node(name: str, grade: Grade = Grade.GOOD, *reasons: str, **more) -> NodeResult:
    factor = {Grade.SLOW: 0.45}.get(grade, 1.0) * random.Random(name).uniform(0.98, 1.02)
    more.setdefault("judged", curve((name,), factor, grade))
    more.setdefault(
        "cases",
        (
            Case("checks", "gpu_ecc", Grade.GOOD, "", 0.1),
            Case("alone", "gemm", grade, "; ".join(reasons), 2.0),
        ),
    )
    return NodeResult(name, grade, reasons, **more)


ECC = Finding(
    "gpu_ecc",
    "EccUncorrected",
    Subject(node="gpu003", part="gpu@0000:3b:00.0"),
    Status.CRITICAL,
    "3 uncorrectable errors since driver load (limit 0)",
    ("volatile uncorrected: 3",),
    Remedy.RESET_GPU,
)
CLOCK = Finding("gpu_clock", "GpuClockLow", Subject(node="gpu001"), Status.WARNING, "1,410 MHz of 1,980 MHz")


def small() -> Report:
    """Sixteen nodes and two spares with a bit of everything."""
    names = tuple(f"gpu{n:03d}" for n in range(1, 17))
    special = {
        "gpu001": node("gpu001", findings=(CLOCK,)),
        "gpu003": node("gpu003", Grade.BAD_HARDWARE, findings=(ECC,), decided_by="check"),
        "gpu007": node(
            "gpu007",
            Grade.SLOW,
            "all-reduce of 64 MiB at 41.2 GB/s, 0.45 of its peers' 91.6 GB/s",
            decided_by="isolation, then peers",
            confidence=0.97,
        ),
        "gpu009": node(
            "gpu009", Grade.UNTESTED, "connection refused", fate="unreachable", judged=(), cases=()
        ),
        "gpu010": node(
            "gpu010", Grade.UNTESTED, "connection refused", fate="unreachable", judged=(), cases=()
        ),
        "gpu012": node("gpu012", Grade.COULD_NOT_RUN, "no torch for its Python 3.10", judged=()),
    }
    nodes = tuple(special.get(name) or node(name) for name in names)
    spares = (node("spare1", spare=True), node("spare2", spare=True))
    good = [n.node for n in nodes if n.grade is Grade.GOOD]
    pairs = tuple(
        judged(
            busbw((a, b), 1 << 26, 4.6e10 * (0.5 if (i < 5) != (k < 5) else 1.0)),
            Grade.SLOW if (i < 5) != (k < 5) else Grade.GOOD,
            0.5 if (i < 5) != (k < 5) else 1.0,
        )
        for i, a in enumerate(good)
        for k, b in enumerate(good)
        if i < k
    )
    return Report(
        1_700_000_000.0,
        1_700_000_131.0,
        names,
        (*nodes, *spares),
        "lab",
        "ssh",
        "4812",
        300.0,
        Terms(at_least=12),
        stages=(
            Stage("reach", 18, 16, 1.2),
            Stage("checks", 16, 16, 9.0),
            Stage("pairs", 64, 40, 60.0, "budget over"),
        ),
        suspects=(
            Suspect("node", ("gpu007",), Grade.SLOW, 0.97, "every group with it is slow"),
            Suspect(
                "boundary", ("gpu[001-006]", "gpu[008-016]"), Grade.SLOW, 0.91, "pairs across it reach half"
            ),
        ),
        rounds=(
            Round(
                "halves, to see which is slow",
                (
                    GroupResult(names[:8], Grade.SLOW, 0.45),
                    GroupResult(names[8:], Grade.GOOD, 1.0),
                ),
                8.0,
            ),
            Round(
                "quarters of the slow half",
                (
                    GroupResult(names[:4], Grade.GOOD, 0.99),
                    GroupResult(names[4:8], Grade.SLOW, 0.45),
                ),
                7.5,
            ),
        ),
        untested=(
            Untested("storage", "no path was named"),
            Untested("all-reduce of all nodes", "the budget was over", names, required=False),
        ),
        remarks=(
            Remark(
                "driver 535.104 where the others have 550.54",
                Status.WARNING,
                ("gpu005", "gpu006"),
                ("nvidia-smi: 535.104",),
            ),
            Remark("NCCL_IB_HCA is set on all nodes", Status.OK),
        ),
        group_figures=(*pairs, *curve(names[:8], 0.45, Grade.SLOW), *curve(names[8:], 1.0)),
        seed=17,
        versions={"clustertools": "0.1.0", "torch": "2.13.0", "NCCL": "2.29.3"},
        command=("clustertools", "preflight", "-w", "gpu[001-016]", "--budget", "5m"),
        repeats=(
            Repeat("the all-reduce of gpu007 and gpu008", ("all_reduce_perf", "-b", "64M", "-e", "64M")),
        ),
    )


def hostile() -> Report:
    """Markup, escapes and quotes wherever a text may come from a node, a user or a log."""
    evil = MARKUP + ANSI
    finding = Finding("x", evil, Subject(node=evil, part=evil), Status.CRITICAL, evil, (evil, evil))
    figures = (
        *curve((evil,), 0.4, Grade.SLOW),
        judged(busbw((evil, "n2"), 1 << 26, 1e10), Grade.SLOW, 0.4, evil),
    )
    return Report(
        0.0,
        1.0,
        (evil, "n2", "n3"),
        (
            NodeResult(
                evil,
                Grade.SLOW,
                (evil,),
                evil,
                0.5,
                (finding,),
                figures[:-1],
                (Case(evil, evil, Grade.SLOW, evil, 1.0),),
                fate="completed",
                leaf=evil,
            ),
            NodeResult("n2", Grade.GOOD, judged=curve(("n2",))),
            NodeResult("n3", Grade.UNTESTED, (evil,), fate=evil),
        ),
        evil,
        evil,
        evil,
        1.0,
        Terms(at_least=1, allow_slow_paths=True),
        (Stage(evil, 1, 1, 1.0, evil),),
        (
            Suspect("path", (evil, "n2"), Grade.SLOW, 0.5, evil),
            Suspect(evil, (evil, evil), Grade.SLOW, 0.5, evil),
        ),
        (Round(evil, (GroupResult((evil, "n2"), Grade.SLOW, 0.4),), 1.0),),
        (Untested(evil, evil, (evil, "<i>x</i>")),),
        (Remark(evil, Status.WARNING, (evil,), (evil,)),),
        figures[-1:],
        1,
        {evil: evil},
        (evil, "a b"),
        (Repeat(evil, (evil, "$(id)")),),
    )


@functools.cache
def large(count: int = 1024, seed: int = 3) -> Report:
    """Thirty-two to a leaf; about one in fifty with something, each with its own numbers."""
    draw = random.Random(seed)
    names = tuple(f"gpu{n:04d}" for n in range(1, count + 1))
    nodes = []
    for place, name in enumerate(names):
        kind, leaf = draw.random(), f"leaf{place // 32:02d}"
        if kind < 0.01:
            rate = draw.uniform(20, 60)
            why = f"all-reduce of 64 MiB at {rate:.1f} GB/s, {rate / 92:.2f} of its peers' 92.0 GB/s"
            nodes.append(
                node(name, Grade.SLOW, why, leaf=leaf, decided_by="peers", confidence=draw.uniform(0.8, 1))
            )
        elif kind < 0.015:
            nodes.append(
                node(
                    name,
                    Grade.UNTESTED,
                    "no route to host",
                    fate="unreachable",
                    leaf=leaf,
                    judged=(),
                    cases=(),
                )
            )
        else:
            nodes.append(node(name, leaf=leaf))
    pairs = tuple(
        judged(busbw((names[i], names[k]), 1 << 26, 4.6e10 * draw.uniform(0.95, 1.0)))
        for _ in range(4 * count)
        if count > 1
        for i, k in (draw.sample(range(count), 2),)
    )
    return Report(
        0.0,
        240.0,
        names,
        tuple(nodes),
        "big",
        "srun",
        "77",
        300.0,
        Terms(at_least=max(1, count - 64)),
        stages=(Stage("reach", count, count, 4.0),),
        group_figures=pairs,
    )
