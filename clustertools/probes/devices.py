"""What the probes of one node's own devices share: a child for each GPU, or one for the CPU.

A GPU is named as everywhere else, `gpu@` and its PCI address. A CPU stands in where there is no GPU, so that
the same program runs, and is tested, on any machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clustertools.errors import Unobservable
from clustertools.measurement import Ending
from clustertools.probes.children import Progress
from clustertools.probes.faults import Fault, fault_of
from clustertools.probes.node import Here, Task
from clustertools.probes.orders import Order, Report
from clustertools.probes.rendezvous import complaint

_STAGES = ("starting", "preparing", "measuring", "checking")


def part_of(device: Mapping[str, Any]) -> str:
    """`gpu@0000:3b:00.0`, or its number where the address is not known."""
    return f"gpu@{device['pci']}" if device.get("pci") else f"gpu{device['index']}"


@dataclass(frozen=True, slots=True)
class Bench:
    """One device under test, inside its child."""

    torch: Any
    device: Any
    part: str
    node: str
    fault: Fault
    progress: Progress
    #: By the monotonic clock; the parent kills at the order's own deadline, a little later.
    until: float

    @property
    def is_gpu(self) -> bool:
        return bool(self.device.type == "cuda")

    def settle(self) -> None:
        """Wait until what was started has ended."""
        if self.is_gpu:
            self.torch.cuda.synchronize(self.device)

    def timed(self, work: Callable[[], object]) -> float:
        """Seconds that `work` takes, waited for on both sides."""
        self.settle()
        began = time.perf_counter()
        work()
        self.settle()
        return time.perf_counter() - began

    def free_bytes(self) -> int:
        if self.is_gpu:
            return int(self.torch.cuda.mem_get_info(self.device)[0])
        return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))

    def wrong(self, what: str, count: int, total: int) -> Report:
        """The report of wrong data: this device gave them, whatever its speed."""
        return Report(
            Ending.WRONG_DATA,
            f"{self.part}: {count} of {total} elements are wrong in {what}",
            blamed=[self.node],
        )


def on_each(order: Order, here: Here, measure: Callable[[Bench], Report]) -> list[Task]:
    """A child for each GPU, all at the same time; or one for the CPU."""
    count = len(here.devices) if here.cuda else 1
    return [_task(order, here, n, measure) for n in range(count)]


def in_one_child(order: Order, here: Here, measure: Callable[[Bench], Report]) -> list[Task]:
    """One child that has the whole node: for copies that would disturb each other."""
    if not here.cuda:
        raise Unobservable("there is no GPU here that torch can use")
    return [_task(order, here, 0, measure)]


def _task(order: Order, here: Here, number: int, measure: Callable[[Bench], Report]) -> Task:
    if here.torch is None:
        raise Unobservable(f"{order.probe} needs PyTorch, and this Python has none")
    part = part_of(here.devices[number]) if here.cuda else "cpu"
    until = time.monotonic() + order.timeout_seconds

    def work(progress: Progress) -> Report:
        import torch

        progress.at(1)
        library: Any = torch
        fault = fault_of(number)
        if here.cuda:
            library.cuda.set_device(number)
            device = library.device("cuda", number)
        else:
            device = library.device("cpu")
            library.set_num_threads(len(os.sched_getaffinity(0)))
        try:
            report = measure(Bench(library, device, part, here.node, fault, progress, until))
        except RuntimeError as exc:  # torch's own errors all come down to it
            report = complaint(str(exc), {}, here.node)
            report.detail = f"{part}: {report.detail}"
        return report

    return Task(part, work)


def stuck_at(order: Order, here: Here, since_seconds: float, at: Sequence[int]) -> Report:
    """A device of a node that does not come to an end has nobody else to wait for: the node is blamed."""
    stage = _STAGES[min(at[0], len(_STAGES) - 1)]
    return Report(Ending.HANG, f"{order.probe}: {stage} for {since_seconds:.1f} s", blamed=[here.node])
