"""A device's own memory: how fast it copies, and whether it gives back what was written.

Patterns as in every memory test: all zeros, all ones, both kinds of stripes, and each word its own address,
which finds lines that are swapped or that reach two cells.
"""

from __future__ import annotations

import statistics
from typing import Any

from clustertools.measurement import Ending
from clustertools.probes.devices import Bench, on_each, stuck_at
from clustertools.probes.node import Here, Task
from clustertools.probes.orders import Order, Report, figure, together

_PATTERNS = (0, -1, 0x5555555555555555, ~0x5555555555555555)
_PIECE_BYTES = 256 << 20
#: What the comparison itself needs, and what others on the device may take meanwhile.
_SPARE_BYTES = 3 * _PIECE_BYTES
_COPIES = 10
#: A CPU's memory is the job's as well; it is looked at by sample only.
_CPU_LIMIT_BYTES = 256 << 20
stuck = stuck_at
gather = together


def tasks(order: Order, here: Here) -> list[Task]:
    """Parameters: `share` of the free memory that is looked at, `size_bytes` of the buffer that is copied."""
    share = order.number("share", 0.9, 0.0, 1.0)
    size = order.whole("size_bytes", (1 << 30) if here.cuda else (64 << 20), 4096, 1 << 40)

    def measure(bench: Bench) -> Report:
        report = _copy(bench, size)
        if report.ending is Ending.DONE:
            found = _patterns(bench, share)
            found.figures += report.figures
            return found
        return report

    return on_each(order, here, measure)


def _copy(bench: Bench, size: int) -> Report:
    torch, count = bench.torch, size // 8
    bench.progress.at(1, size)
    source = torch.arange(count, dtype=torch.int64, device=bench.device)
    target = torch.zeros_like(source)
    target.copy_(source)
    bench.fault.strike()
    bench.progress.at(2, size)
    times = [bench.timed(lambda: target.copy_(source)) for _ in range(_COPIES)]
    bench.progress.at(3, size)
    bench.fault.spoil(target)
    if wrong := int((target != source).sum().item()):
        return bench.wrong("a copy within its memory", wrong, count)
    # each byte is read once and written once
    value = 2.0 * count * 8 / statistics.fmean(times)
    return Report(
        Ending.DONE,
        figures=[
            figure(
                "memory_copy_bytes_per_second",
                value,
                size_bytes=size,
                part=bench.part,
                variant="read and write",
            )
        ],
    )


def _patterns(bench: Bench, share: float) -> Report:
    torch = bench.torch
    free = bench.free_bytes()
    wanted = int(free * share) if bench.is_gpu else min(int(free * share), _CPU_LIMIT_BYTES)
    pieces = max(0, min(wanted, free - _SPARE_BYTES)) // _PIECE_BYTES
    bench.progress.at(1, pieces * _PIECE_BYTES)
    count = _PIECE_BYTES // 8
    held: list[Any] = [torch.empty(count, dtype=torch.int64, device=bench.device) for _ in range(pieces)]
    wrong = 0
    for number, pattern in enumerate(_PATTERNS):
        bench.progress.at(2, pieces * _PIECE_BYTES, number)
        for piece in held:
            piece.fill_(pattern)
        bench.progress.at(3, pieces * _PIECE_BYTES, number)
        # all are written before the first is read: what lies in a cache must not stand for the memory
        wrong += sum(int((piece != pattern).sum().item()) for piece in held)
    for place, piece in enumerate(held):
        torch.arange(place * count, (place + 1) * count, out=piece)
    for place, piece in enumerate(held):
        own = torch.arange(place * count, (place + 1) * count, dtype=torch.int64, device=bench.device)
        wrong += int((piece != own).sum().item())
        del own
    if wrong:
        return bench.wrong("its memory (patterns written and read back)", wrong, 5 * pieces * count)
    return Report(
        Ending.DONE, evidence=[f"{bench.part}: {pieces * _PIECE_BYTES} bytes of memory hold what was written"]
    )
