"""Copies between every two GPUs of the node, over NVLink or PCIe: the matrix, and whether the data are right.

By nvbandwidth where that is installed, as its `device_to_device_memcpy_read_ce`.
"""

from __future__ import annotations

import statistics

from clustertools.errors import Unobservable
from clustertools.measurement import Ending
from clustertools.probes import tools
from clustertools.probes.devices import Bench, in_one_child, part_of, stuck_at
from clustertools.probes.node import Here, Task
from clustertools.probes.orders import Order, Report, figure, together

_COPIES = 10
stuck = stuck_at
gather = together
_NVBANDWIDTH = {"device_to_device_memcpy_read_ce": "peer_copy_bytes_per_second"}


def tasks(order: Order, here: Here) -> list[Task]:
    """Parameters: `size_bytes` of the buffer, `tool`."""
    size = order.whole("size_bytes", 256 << 20, 4096, 1 << 40)
    if tools.chosen(order, here, "nvbandwidth", "torch") == "nvbandwidth":
        return tools.nvbandwidth(order, here, _NVBANDWIDTH)
    if here.cuda and len(here.devices) < 2:
        raise Unobservable("there is only one GPU here, and a copy between two needs another")

    def measure(bench: Bench) -> Report:
        report = Report(Ending.DONE)
        parts = [part_of(device) for device in here.devices]
        for source in range(len(parts)):
            for target in range(len(parts)):
                if source == target:
                    continue
                found = _copy(bench, source, target, f"{parts[source]} to {parts[target]}", size)
                report = together([report, found])
        return report

    return in_one_child(order, here, measure)


def _copy(bench: Bench, source: int, target: int, part: str, size: int) -> Report:
    torch, count = bench.torch, size // 8
    direct = torch.cuda.can_device_access_peer(source, target)
    bench.progress.at(1, size, source * 1000 + target)
    sent = torch.arange(count, dtype=torch.int64, device=f"cuda:{source}")
    got = torch.zeros(count, dtype=torch.int64, device=f"cuda:{target}")

    def copy() -> None:
        got.copy_(sent, non_blocking=True)
        torch.cuda.synchronize(source)
        torch.cuda.synchronize(target)

    copy()
    bench.progress.at(2, size, source * 1000 + target)
    times = [bench.timed(copy) for _ in range(_COPIES)]
    bench.progress.at(3, size, source * 1000 + target)
    if wrong := int((got.cpu() != sent.cpu()).sum().item()):
        return Report(
            Ending.WRONG_DATA,
            f"{part}: {wrong} of {count} elements arrived wrong",
            blamed=[bench.node],
        )
    # over the host is another path, not a slow one
    variant = "peer to peer" if direct else "through the host"
    value = 8.0 * count / statistics.fmean(times)
    return Report(
        Ending.DONE,
        figures=[figure("peer_copy_bytes_per_second", value, size_bytes=size, part=part, variant=variant)],
    )
