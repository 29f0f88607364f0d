"""NVIDIA's own diagnostic of the GPUs, `dcgmi diag`: level 1 takes seconds, 2 minutes, 3 half an hour.

A level's tests are DCGM's: deployment at 1, memory and PCIe at 2, stress at 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from clustertools.errors import Absent, Unobservable
from clustertools.host import Completed
from clustertools.measurement import Ending
from clustertools.probes.node import Here, Task
from clustertools.probes.orders import Order, Report, together
from clustertools.probes.tools import failed, tool_task
from clustertools.sources.tools import dcgm_diag

gather = together


def tasks(order: Order, here: Here) -> list[Task]:
    """Parameters: `level`, 1 to 4."""
    if "dcgmi" not in here.tools:
        raise Absent("dcgmi is not installed on this node (package datacenter-gpu-manager)")
    level = order.whole("level", 1, 1, 4)

    def read(done: Completed) -> Report:
        try:
            told = dcgm_diag.read(done.stdout)
        except Unobservable:
            if done.returncode:
                return failed(done, "dcgmi diag")
            raise
        if told["error"]:
            return Report(Ending.COULD_NOT_RUN, f"dcgmi diag: {told['error']}")
        bad: list[str] = []
        other: list[str] = []
        for test in told["tests"]:
            for result in test["results"]:
                whose = " ".join(str(number) for number in result["ids"])
                what = "; ".join(message["text"] for message in result["messages"])
                line = f"{test['name']}: {result['status']} {result['entity'] or ''} {whose} {what}"
                (bad if result["status"] == "fail" else other).append(" ".join(line.split()))
        if bad:
            # the diagnostic says which device failed its test: a fault of this node, whatever its speed
            return Report(Ending.CRASH, f"dcgmi diag: {bad[0]}", bad, [here.node])
        if not any(test["status"] in ("pass", "warn") for test in told["tests"]):
            return Report(Ending.COULD_NOT_RUN, "dcgmi diag passed no test: all were skipped", other)
        return Report(Ending.DONE, evidence=[line for line in other if ": pass" not in line])

    return [tool_task("dcgmi diag", ("dcgmi", "diag", "-r", str(level), "-j"), order, read)]


def stuck(order: Order, here: Here, since_seconds: float, at: Sequence[int]) -> Report:
    return Report(Ending.HANG, f"dcgmi diag did not end for {since_seconds:.1f} s", blamed=[here.node])
