"""Collectives between the nodes of a group: their bandwidth by size, and whether every element is right.

nccl on GPUs and gloo on CPUs, by the same program. `pairs` lets every two nodes exchange data, so that a path
that no ring uses is seen as well.

Definitions of algbw and busbw: nccl-tests doc/PERFORMANCE.md (GB = 10^9 bytes); the time of an iteration is
the mean over ranks, as its default `-a 1`. Each iteration is waited for; filling the buffer anew stands
outside the timed part and is the rank's own work, which tells a slow node from a slow network.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from clustertools.errors import Unobservable
from clustertools.measurement import Ending
from clustertools.probes import known_answers, tools
from clustertools.probes.children import Progress
from clustertools.probes.faults import fault_of
from clustertools.probes.known_answers import Seen, percentile
from clustertools.probes.node import Here, Task, interface_towards
from clustertools.probes.orders import BadOrder, Order, Report, figure, together
from clustertools.probes.rendezvous import Meeting, NotMet, complaint, meet, serve_store

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "pairs")
DTYPES = ("float32", "float64", "float16", "bfloat16", "int32", "int64")
#: A rank whose own work took so much more than the usual is told; see `_late`.
LATE_FACTOR = 3.0
LATE_SECONDS = 0.002
_START, _MEETING, _CONNECTING, _OWN_WORK, _INSIDE, _CHECKING, _AGREEING = range(7)
_STAGES = {
    _START: "starting",
    _MEETING: "in the rendezvous",
    _CONNECTING: "connecting to its peers",
    _OWN_WORK: "at its own work before the collective",
    _INSIDE: "in the collective",
    _CHECKING: "checking the result",
    _AGREEING: "putting the results of all ranks together",
}


@dataclass(frozen=True, slots=True)
class Wish:
    """A collective order, read."""

    collective: str
    sizes: tuple[int, ...]
    warmup: int
    iterations: int
    dtype: str
    backend: str
    local_ranks: int
    address: str
    port: int


def wish(order: Order, here: Here) -> Wish:
    """What the order asks of this node. Raises BadOrder, or Unobservable where this node cannot do it."""
    backend = order.text("backend", "auto", ("auto", "nccl", "gloo"))
    if backend == "auto":
        backend = "nccl" if here.cuda else "gloo"
    asked = order.whole("ranks_per_node", 0, 0, 256)
    if backend == "nccl" and not here.cuda:
        raise Unobservable("nccl needs GPUs that torch can use, and there are none here")
    if backend == "nccl" and asked > len(here.devices):
        raise Unobservable(f"{asked} ranks on this node need as many GPUs, and it has {len(here.devices)}")
    address = order.text("address", "")
    if not address or address != address.strip() or address.startswith("-"):
        raise BadOrder("address: the address of the group's first node was expected")
    return Wish(
        order.text("collective", "all_reduce", COLLECTIVES),
        order.sizes("sizes_bytes", [1 << 20]),
        order.whole("warmup", 2, 0, 10_000),
        order.whole("iterations", 5, 1, 100_000),
        order.text("dtype", "float32", DTYPES),
        backend,
        asked or (len(here.devices) if backend == "nccl" else 1),
        address,
        order.whole("port", 0, 1, 65535),
    )


def tasks(order: Order, here: Here) -> list[Task]:
    """One child for each rank of this node; and on the group's first node, one for the store."""
    if here.torch is None:
        raise Unobservable("a collective needs PyTorch, and this Python has none")
    if program := tools.nccl_program(order, here):
        return tools.nccl(order, here, program)
    asked = wish(order, here)
    settings = order.environment()
    if len(order.nodes) == 1 and asked.local_ranks == 1:
        raise Unobservable("one rank has nobody to exchange data with")
    if len(order.nodes) == 1 and asked.collective == "pairs":
        raise Unobservable("pairs are between nodes, and the group has only one")
    until = time.monotonic() + order.timeout_seconds
    started = [
        Task(f"rank {n}", _rank_work(order, here, asked, settings, n, until))
        for n in range(asked.local_ranks)
    ]
    if here.node == order.nodes[0]:
        # first, since all others wait for it
        def serve(progress: Progress) -> Report:
            return serve_store(asked.port, order.timeout_seconds, progress)

        started.insert(0, Task("store", serve, lingers=True))
    return started


def stuck(order: Order, here: Here, since_seconds: float, at: tuple[int, int, int, int]) -> Report:
    """What a rank was doing when the deadline came. Its node is blamed when it did not even enter."""
    stage, size, iteration, peer = at
    where = _STAGES[stage]
    if size:
        where += f" ({order.parameters.get('collective', 'all_reduce')}, {size} bytes, iteration {iteration})"
    if peer and peer <= len(order.nodes):
        where += f" with {order.nodes[peer - 1]}"
    if stage in (_START, _OWN_WORK, _CHECKING) and since_seconds > 0.2 * order.timeout_seconds:
        return Report(
            Ending.HANG,
            f"did not come to the collective: {where} for {since_seconds:.1f} s",
            blamed=[here.node],
        )
    moving = ", still moving" if since_seconds < 0.1 * order.timeout_seconds else ""
    return Report(Ending.HANG, f"{where} for {since_seconds:.1f} s{moving}")


def gather(reports: Sequence[Report]) -> Report:
    """All ranks of this node as one; what several of them exchanged with another node is added up."""
    report = together(reports)
    sums: dict[tuple[str, str, int], dict[str, Any]] = {}
    for told in report.figures:
        kept = sums.setdefault((told["metric"], told["part"], told["size_bytes"]), told)
        if kept is not told:
            kept["value"] += told["value"]
    report.figures = list(sums.values())
    return report


def _rank_work(
    order: Order, here: Here, asked: Wish, settings: dict[str, str], local_rank: int, until: float
) -> Callable[[Progress], Report]:
    def work(progress: Progress) -> Report:
        warnings.simplefilter("ignore")  # of names that a later torch has others for
        os.environ.update(settings)
        if interface := interface_towards(asked.address, asked.port):
            # by itself gloo takes the interface of the host's name, which on many systems is the loopback
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        progress.at(_MEETING)
        try:
            found = meet(
                asked.address,
                asked.port,
                meeting=f"order-{order.id}",
                nodes=order.nodes,
                node=here.node,
                local_rank=local_rank,
                local_ranks=asked.local_ranks,
                # leaves time to say who is missing before this child is killed
                until=until - min(2.0, 0.2 * order.timeout_seconds),
            )
        except NotMet as exc:
            return Report(Ending.HANG, str(exc), blamed=exc.blamed)
        try:
            return _Rank(order, here, asked, found, local_rank, progress).run()
        except RuntimeError as exc:  # torch's own errors all come down to it
            report = complaint(str(exc), found.address_of, here.node)
            report.detail = f"rank {found.rank}: {report.detail}"
            return report

    return work


class _Rank:
    """One rank of the group, in its own process."""

    def __init__(
        self, order: Order, here: Here, asked: Wish, found: Meeting, local_rank: int, progress: Progress
    ) -> None:
        import torch
        import torch.distributed as dist

        self.torch, self.dist = torch, dist
        self.order, self.here, self.asked, self.found, self.progress = order, here, asked, found, progress
        self.rank, self.ranks, self.local_rank = found.rank, found.ranks, local_rank
        self.dtype = getattr(torch, asked.dtype)
        self.element_bytes = torch.empty((), dtype=self.dtype).element_size()
        self.fault = fault_of(self.rank)
        if asked.backend == "nccl":
            torch.cuda.set_device(local_rank)
            self.device = torch.device("cuda", local_rank)
            self.settle: Callable[[], None] = torch.cuda.synchronize
        else:
            self.device = torch.device("cpu")
            self.settle = _nothing
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // asked.local_ranks))
        self.wrong = 0
        self.sources: dict[int, int] = {}
        self.own_data_wrong = False

    def run(self) -> Report:
        asked = self.asked
        self.progress.at(_CONNECTING)
        self.dist.init_process_group(
            asked.backend,
            store=self.found.store,
            rank=self.rank,
            world_size=self.ranks,
            # the parent's deadline comes first: one judge of what is a hang
            timeout=timedelta(seconds=self.order.timeout_seconds + 60),
        )
        self.dist.barrier()
        if asked.collective == "pairs":
            report = self._pairs()
        else:
            report = self._sizes()
        self.progress.at(_AGREEING)
        self._agree(report)
        # nobody leaves while another may still be reading from it
        self.found.store.add("left", 1)
        until = time.monotonic() + 2.0
        while self.found.store.add("left", 0) < self.ranks and time.monotonic() < until:
            time.sleep(0.002)
        return report

    # collectives

    def _sizes(self) -> Report:
        own: list[list[float]] = []
        inside: list[list[float]] = []
        for size in self.asked.sizes:
            operation = _Operation(self, size)
            times = self._repeat(operation.prepare, operation.go, operation.check, size)
            own.append([one for one, _ in times])
            inside.append([other for _, other in times])
            self.own_data_wrong = self.own_data_wrong or operation.input_is_wrong()
        self.progress.at(_AGREEING)
        all_own, all_inside = self._of_all(own), self._of_all(inside)
        report = Report(Ending.DONE, node_seconds=sum(sum(row) for row in own))
        report.evidence += _late(all_own, self.found.node_of)
        if self.rank == 0:
            for place, size in enumerate(self.asked.sizes):
                by_rank = [times[place] for times in all_inside]
                means = [statistics.fmean(column) for column in zip(*by_rank, strict=True)]
                report.figures += self._figures(size, means)
        return report

    def _repeat(
        self,
        prepare: Callable[[], None],
        go: Callable[[], None],
        check: Callable[[], None],
        size: int,
        peer: int = 0,
    ) -> list[tuple[float, float]]:
        """(own work, collective) in seconds of each timed iteration; checks the first and last results."""
        times = []
        total = self.asked.warmup + self.asked.iterations
        for n in range(total):
            began = time.perf_counter()
            self.progress.at(_OWN_WORK, size, n + 1, peer)
            if n == min(1, total - 1):
                self.fault.strike()
            self.fault.delay()
            prepare()
            self.settle()
            entered = time.perf_counter()
            self.progress.at(_INSIDE, size, n + 1, peer)
            go()
            self.settle()
            ended = time.perf_counter()
            if n >= self.asked.warmup:
                times.append((entered - began, ended - entered))
            if n in (0, total - 1):
                self.progress.at(_CHECKING, size, n + 1, peer)
                check()
        return times

    def _figures(self, size: int, means: Sequence[float]) -> list[dict[str, Any]]:
        asked = self.asked
        variant = f"{asked.backend} {asked.dtype} {self.ranks} ranks {asked.collective}"
        part = known_answers.elements(asked.collective, size, self.element_bytes, self.ranks)
        blocks = 1 if asked.collective == "all_reduce" else self.ranks
        moved = part * blocks * self.element_bytes
        mean = statistics.fmean(means)
        factor = known_answers.bus_factor(asked.collective, self.ranks)
        told = [
            figure("busbw_bytes_per_second", factor * moved / mean, size_bytes=size, variant=variant),
            figure("algbw_bytes_per_second", moved / mean, size_bytes=size, variant=variant),
        ]
        for metric, value in (
            ("time_mean_seconds", mean),
            ("time_min_seconds", min(means)),
            ("time_p50_seconds", percentile(means, 0.50)),
            ("time_p99_seconds", percentile(means, 0.99)),
        ):
            told.append(figure(metric, value, size_bytes=size, variant=variant, higher_is_better=False))
        return told

    # every two nodes

    def _pairs(self) -> Report:
        """Every two nodes exchange data, rank by rank of equal place, many pairs at once."""
        report = Report(Ending.DONE)
        nodes, me = self.order.nodes, self.order.nodes.index(self.here.node)
        for met in known_answers.rounds(len(nodes)):
            mine = next((pair for pair in met if me in pair), None)
            other = next((n for n in mine or () if n != me), None)
            theirs = self.found.local(nodes[other]) if other is not None else []
            if mine is not None and other is not None and self.local_rank < len(theirs):
                self._pair(report, mine, other, theirs[self.local_rank])
            self.dist.barrier()  # a slow pair must not run into the next round's figures
        return report

    def _pair(self, report: Report, pair: tuple[int, int], other: int, their_rank: int) -> None:
        nodes, asked = self.order.nodes, self.asked
        for size in asked.sizes:
            exchange = _Exchange(self, size, their_rank)
            times = self._repeat(exchange.prepare, exchange.go, exchange.check, size, other + 1)
            report.node_seconds += sum(own for own, _ in times)
            self.own_data_wrong = self.own_data_wrong or exchange.input_is_wrong()
            if pair[0] == nodes.index(self.here.node):
                mean = statistics.fmean(inside for _, inside in times)
                names = [nodes[n] for n in pair]
                report.figures.append(
                    figure(
                        "busbw_bytes_per_second",
                        exchange.moved_bytes / mean,
                        size_bytes=size,
                        variant=f"{asked.backend} {asked.dtype} pairs of {asked.local_ranks} ranks a node",
                        part="-".join(names),
                        nodes=names,
                    )
                )

    # what all ranks know together

    def count_wrong(self, source: int | None, wrong: int) -> None:
        self.wrong += wrong
        if wrong and source is not None:
            self.sources[source] = self.sources.get(source, 0) + wrong

    def _of_all(self, rows: list[list[float]]) -> list[list[list[float]]]:
        """Every rank's table of times, by rank."""
        mine = self.torch.tensor(rows, dtype=self.torch.float64, device=self.device)
        return [table.tolist() for table in self._gathered(mine)]

    def _gathered(self, mine: Any) -> list[Any]:
        everybody = [self.torch.zeros_like(mine) for _ in range(self.ranks)]
        self.dist.all_gather(everybody, mine)
        return everybody

    def _agree(self, report: Report) -> None:
        """Make the report that of wrong data when any rank saw some, with the same blame on all."""
        row = [self.wrong, int(self.own_data_wrong)] + [self.sources.get(n, 0) for n in range(self.ranks)]
        mine = self.torch.tensor(row, dtype=self.torch.int64, device=self.device)
        total = mine[:2].clone()
        self.dist.all_reduce(total)
        if not any(total.tolist()):
            return
        seen = []
        for rank, (wrong, own, *sources) in enumerate(table.tolist() for table in self._gathered(mine)):
            by = {source: count for source, count in enumerate(sources) if count}
            seen.append(Seen(rank, wrong, by, bool(own)))
        ranks, why = known_answers.guilty(seen, self.ranks)
        node_of = self.found.node_of
        report.ending = Ending.WRONG_DATA
        report.blamed = list(dict.fromkeys(node_of[rank] for rank in ranks))
        named = ", ".join(f"rank {rank} ({node_of[rank]})" for rank in ranks) or "no rank alone"
        report.detail = f"wrong elements in the result of {self.asked.collective}; {named}: {why}"
        for one in seen:
            if one.wrong:
                whose = ", ".join(f"{count} from rank {n} ({node_of[n]})" for n, count in one.sources.items())
                report.evidence.append(
                    f"rank {one.rank} ({node_of[one.rank]}) saw {one.wrong} wrong elements"
                    + (f": {whose}" if whose else "")
                )


class _Operation:
    """One collective at one size: its buffers, how it is run, and what must come out."""

    def __init__(self, rank: _Rank, size_bytes: int) -> None:
        self.on, torch = rank, rank.torch
        kind, ranks = rank.asked.collective, rank.ranks
        self.kind = kind
        self.count = known_answers.elements(kind, size_bytes, rank.element_bytes, ranks)
        sums = kind in ("all_reduce", "reduce_scatter")
        own = known_answers.contribution(rank.rank, ranks) if sums else known_answers.block(rank.rank)
        if kind == "all_to_all":
            parts = [self._filled(known_answers.block(rank.rank, target)) for target in range(ranks)]
            self.truth = torch.cat(parts)
        elif kind == "reduce_scatter":
            self.truth = self._filled(own).repeat(ranks)
        else:
            self.truth = self._filled(own)
        self.source = self.truth.clone()
        rank.fault.spoil(self.source)
        many = kind in ("all_gather", "all_to_all")
        self.result = torch.zeros(self.count * (ranks if many else 1), dtype=rank.dtype, device=rank.device)
        self.by_pairs = rank.asked.backend == "gloo" and kind in ("reduce_scatter", "all_to_all")
        #: Where reduce_scatter by pairs receives the blocks that it sums up.
        self.received = torch.zeros_like(self.source) if kind == "reduce_scatter" and self.by_pairs else None

    def _filled(self, period: Sequence[int]) -> Any:
        return filled(self.on, period, self.count)

    def prepare(self) -> None:
        # what an earlier iteration left there must not pass for a result
        if self.kind == "all_reduce":
            self.result.copy_(self.source)
        else:
            self.result.zero_()

    def go(self) -> None:
        dist = self.on.dist
        if self.kind == "all_reduce":
            dist.all_reduce(self.result)
        elif self.kind == "all_gather":
            _named(dist, "all_gather_single", "all_gather_into_tensor")(self.result, self.source)
        elif self.by_pairs:
            self._by_pairs()
        elif self.kind == "reduce_scatter":
            _named(dist, "reduce_scatter_single", "reduce_scatter_tensor")(self.result, self.source)
        else:
            dist.all_to_all_single(self.result, self.source)

    def _by_pairs(self) -> None:
        """gloo has neither of these in every version of torch: each block goes straight to its rank."""
        me, dist = self.on.rank, self.on.dist
        target = self.result if self.received is None else self.received
        outgoing, incoming = self.source.split(self.count), target.split(self.count)
        waiting = []
        for step in range(1, self.on.ranks):
            to, by = (me + step) % self.on.ranks, (me - step) % self.on.ranks
            waiting += [dist.irecv(incoming[by], by), dist.isend(outgoing[to], to)]
        incoming[me].copy_(outgoing[me])
        for one in waiting:
            one.wait()
        if self.received is not None:
            for part in incoming:
                self.result.add_(part)

    def check(self) -> None:
        on = self.on
        if self.kind in ("all_reduce", "reduce_scatter"):
            on.count_wrong(None, differing(self.result, self._filled(known_answers.expected_sum(on.ranks))))
            return
        for source, part in enumerate(self.result.split(self.count)):
            target = on.rank if self.kind == "all_to_all" else 0
            on.count_wrong(source, differing(part, self._filled(known_answers.block(source, target))))

    def input_is_wrong(self) -> bool:
        return differing(self.source, self.truth) > 0


class _Exchange:
    """Two ranks send each other as much at the same time."""

    def __init__(self, rank: _Rank, size_bytes: int, peer: int) -> None:
        self.on, self.peer = rank, peer
        self.count = known_answers.elements("pairs", size_bytes, rank.element_bytes, 2)
        self.moved_bytes = self.count * rank.element_bytes
        self.truth = filled(rank, known_answers.block(rank.rank), self.count)
        self.source = self.truth.clone()
        rank.fault.spoil(self.source)
        self.result = rank.torch.zeros_like(self.source)

    def prepare(self) -> None:
        self.result.zero_()

    def go(self) -> None:
        dist = self.on.dist
        steps = [
            dist.P2POp(dist.isend, self.source, self.peer),
            dist.P2POp(dist.irecv, self.result, self.peer),
        ]
        for one in dist.batch_isend_irecv(steps):
            one.wait()

    def check(self) -> None:
        truth = filled(self.on, known_answers.block(self.peer), self.count)
        self.on.count_wrong(self.peer, differing(self.result, truth))

    def input_is_wrong(self) -> bool:
        return differing(self.source, self.truth) > 0


def filled(rank: _Rank, period: Sequence[int], count: int) -> Any:
    """`count` elements of a pattern, on the rank's device."""
    pattern = rank.torch.tensor(period, dtype=rank.dtype, device=rank.device)
    return pattern.repeat(-(-count // len(period)))[:count].clone()


def differing(one: Any, other: Any) -> int:
    """How many elements differ; NaN differs from everything."""
    return int((one != other).sum().item())


def _late(all_own: Sequence[Sequence[Sequence[float]]], node_of: Sequence[str]) -> list[str]:
    """Which ranks' own work between the collectives kept the others waiting."""
    usual = [statistics.fmean(time for row in rows for time in row) for rows in all_own]
    middle = statistics.median(usual)
    return [
        f"rank {rank} ({node_of[rank]}) comes late: {1000 * mean:.1f} ms of its own work before each "
        f"collective, the median rank {1000 * middle:.1f} ms"
        for rank, mean in enumerate(usual)
        if mean > LATE_FACTOR * middle and mean > middle + LATE_SECONDS
    ]


def _named(module: Any, *names: str) -> Any:
    """The first of these that this version of torch has."""
    return next(getattr(module, name) for name in names if hasattr(module, name))


def _nothing() -> None:
    """What settling is on a CPU: calls there end when they are done."""
