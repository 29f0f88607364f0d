"""RDMA writes between two nodes by perftest's ib_write_bw: one port's bandwidth, without any collective.

Of each group the first node serves and the second measures. The tool compares no data: it tells slow, never
wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from clustertools.errors import Absent, Unobservable
from clustertools.host import Completed
from clustertools.measurement import Ending
from clustertools.probes.node import Here, Task
from clustertools.probes.orders import BadOrder, Order, Report, figure, together
from clustertools.probes.tools import failed, last_lines, tool_task
from clustertools.sources.tools import ib_write_bw

gather = together
#: The server may be up a moment later than the client.
_ATTEMPTS = 6
# Couldn't connect to 10.77.0.1:18515        Unable to init the socket connection
_NO_CONNECTION = re.compile(r"Couldn't connect to|Unable to init the socket connection")


def tasks(order: Order, here: Here) -> list[Task]:
    """Parameters: `address`, `port`, `device`, `size_bytes`, `iterations`, `both_ways`, `gpu`."""
    if "ib_write_bw" not in here.tools:
        raise Absent("ib_write_bw is not installed on this node (package perftest)")
    if len(order.nodes) != 2:
        raise BadOrder(f"ib_write_bw is between two nodes, not {len(order.nodes)}")
    device, address = order.text("device", ""), order.text("address", "")
    if device and not re.fullmatch(r"[A-Za-z0-9_]{1,64}", device):
        raise BadOrder("device: the name of an RDMA device was expected, as mlx5_0")
    if not address or address.startswith("-"):
        raise BadOrder("address: the address of the group's first node was expected")
    size = order.whole("size_bytes", 8 << 20, 2, 1 << 30)
    argv = [
        "ib_write_bw", "--report_gbits", "-F", "-s", str(size), "-n",
        str(order.whole("iterations", 1000, 5, 1_000_000)), "-p", str(order.whole("port", 18515, 1, 65535)),
    ]  # fmt: skip
    argv += ["-d", device] if device else []
    both = order.whole("both_ways", 0, 0, 1)
    argv += ["-b"] if both else []
    gpu = order.whole("gpu", -1, -1, 63)
    argv += [f"--use_cuda={gpu}"] if gpu >= 0 else []
    client = here.node == order.nodes[1]
    variant = "both ways" if both else "one way"
    variant += ", GPU memory" if gpu >= 0 else ""

    def read(done: Completed) -> Report:
        if done.returncode:
            report = failed(done, "ib_write_bw")
            if not _NO_CONNECTION.search(done.stdout + done.stderr):
                return report
            return Report(Ending.CRASH, report.detail, report.evidence, [order.nodes[0]])
        rows: list[dict[str, Any]] = ib_write_bw.read(done.stdout)["tests"][-1]["rows"]
        if not rows:
            raise Unobservable(f"ib_write_bw printed no figure: {last_lines(done)[-1:]}")
        if not client:
            return Report(Ending.DONE)
        return Report(
            Ending.DONE,
            figures=[
                figure(
                    "rdma_write_bytes_per_second",
                    row["average_gigabits_per_second"] * 1e9 / 8,
                    size_bytes=row["size_bytes"],
                    variant=variant,
                    part=device,
                    nodes=order.nodes,
                )
                for row in rows
            ],
        )

    words = [*argv, address] if client else argv
    return [tool_task("ib_write_bw", words, order, read, _ATTEMPTS if client else 1)]


def stuck(order: Order, here: Here, since_seconds: float, at: Sequence[int]) -> Report:
    """A server that waits for a client that never comes, or a transfer that does not end."""
    return Report(Ending.HANG, f"ib_write_bw did not end for {since_seconds:.1f} s")
