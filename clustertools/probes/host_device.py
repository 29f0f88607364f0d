"""Copies between host memory and each GPU over PCIe: both ways alone, and both at once; one GPU at a time.

The buffer is pinned, as for every copy of a training job. By nvbandwidth where that is installed, as its
`host_to_device_memcpy_ce` and `device_to_host_memcpy_ce`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from clustertools.measurement import Ending
from clustertools.probes import tools
from clustertools.probes.devices import Bench, in_one_child, part_of, stuck_at
from clustertools.probes.node import Here, Task
from clustertools.probes.orders import Order, Report, figure, together

_COPIES = 10
stuck = stuck_at
gather = together
_NVBANDWIDTH = {
    "host_to_device_memcpy_ce": "host_to_device_bytes_per_second",
    "device_to_host_memcpy_ce": "device_to_host_bytes_per_second",
}


def tasks(order: Order, here: Here) -> list[Task]:
    """Parameters: `size_bytes` of the buffer, `tool`."""
    size = order.whole("size_bytes", 256 << 20, 4096, 1 << 40)
    if tools.chosen(order, here, "nvbandwidth", "torch") == "nvbandwidth":
        return tools.nvbandwidth(order, here, _NVBANDWIDTH)

    def measure(bench: Bench) -> Report:
        report = Report(Ending.DONE)
        for number, device in enumerate(here.devices):
            found = _copies(bench, number, part_of(device), size)
            report = together([report, found])
            if found.ending is not Ending.DONE:
                break
        return report

    return in_one_child(order, here, measure)


def _copies(bench: Bench, number: int, part: str, size: int) -> Report:
    torch = bench.torch
    torch.cuda.set_device(number)
    count = size // 8
    bench.progress.at(1, size, number)
    source: Any = torch.arange(count, dtype=torch.int64).pin_memory()
    back = torch.zeros(count, dtype=torch.int64).pin_memory()
    there, other = (torch.zeros(count, dtype=torch.int64, device=f"cuda:{number}") for _ in range(2))
    one, two = torch.cuda.Stream(number), torch.cuda.Stream(number)

    def both() -> None:
        with torch.cuda.stream(one):
            there.copy_(source, non_blocking=True)
        with torch.cuda.stream(two):
            back.copy_(other, non_blocking=True)
        one.synchronize()
        two.synchronize()

    def seconds(work: Callable[[], object]) -> float:
        def settled() -> None:
            work()
            torch.cuda.synchronize(number)

        settled()
        return statistics.fmean(bench.timed(settled) for _ in range(_COPIES))

    bench.progress.at(2, size, number)
    inward = seconds(lambda: there.copy_(source, non_blocking=True))
    outward = seconds(lambda: back.copy_(there, non_blocking=True))
    bench.progress.at(3, size, number)
    if wrong := int((back != source).sum().item()):
        report = bench.wrong("a copy to it and back", wrong, count)
        report.detail = report.detail.replace(bench.part, part, 1)
        return report
    at_once = seconds(both)
    moved = 8.0 * count
    return Report(
        Ending.DONE,
        figures=[
            figure(metric, value, size_bytes=size, part=part, variant="pinned")
            for metric, value in (
                ("host_to_device_bytes_per_second", moved / inward),
                ("device_to_host_bytes_per_second", moved / outward),
                ("both_ways_bytes_per_second", 2 * moved / at_once),
            )
        ],
    )
