"""The program that the head talks to on each node: orders in, answers out, the work in children.

    python3 -m clustertools.probes.serve [--without-torch]

It greets, then reads one JSON order a line and answers each that names this node exactly once. It holds no
CUDA context and no second thread, so that forking from it is safe; torch is imported once, before the first
fork, which makes a child ready in milliseconds. It ends at the end of its input, at `{"end": true}` and at
SIGTERM or SIGHUP, and leaves no process behind, except those that the kernel does not let go (named in an
answer).
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import selectors
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clustertools.errors import Unobservable
from clustertools.measurement import Ending
from clustertools.probes import children, faults
from clustertools.probes.children import Child
from clustertools.probes.node import (
    DEVICES_SECONDS,
    Here,
    Probe,
    Task,
    addresses,
    look_for_devices,
    node_name,
    tools,
)
from clustertools.probes.orders import BadOrder, Order, Report, answer_line, read_order
from clustertools.probes.rendezvous import known_complaint
from clustertools.text import plain

PROBES = (
    "collective", "gemm", "memory", "host_device", "peer", "storage", "ib_write_bw", "dcgm_diag",
)  # fmt: skip
#: A longer line is no order.
LINE_CAP_BYTES = 4 << 20
#: So long the other ranks of this node may go on after one has failed: they wait for it, mostly in vain.
GRACE_SECONDS = 2.0
_USAGE = "usage: probe serve [--without-torch]"


class _Ended(BaseException):
    """A signal, or a reader that went away: nothing more is to be done, whatever is going on."""


@dataclass(slots=True)
class _Running:
    """The order that is being carried out."""

    order: Order
    probe: Probe
    began: float
    children: list[Child]
    deadline: float = 0.0
    reports: dict[int, Report] = field(default_factory=dict)


def main(argv: Sequence[str]) -> int:
    """Serve until the end of input. `argv` are the words after `probe serve`: perhaps an option."""
    words = list(argv)
    if set(words) - {"--without-torch"}:
        print(_USAGE, file=sys.stderr)
        return 3
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _end)
    server = _Server(import_torch="--without-torch" not in words)
    try:
        server.run()
    except _Ended:
        pass  # the way that this program is ended
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        server.close()
    return 0


def _end(*_: object) -> None:
    raise _Ended


def _import_torch() -> tuple[str | None, str]:
    """(version of torch or None, what went wrong)."""
    # numpy's linear algebra would start its threads at import, and a process with threads must not fork
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # torch's store asks for the name of each address that it meets; a name server that is slow to say that
    # there is none would otherwise cost 5 s at each connection
    os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")
    # its warnings would push the words that matter out of what is kept of a child's output
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # GPUs are then numbered as nvidia-smi numbers them
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    try:
        import torch
        import torch.distributed  # here, so that no child pays for it
    except ModuleNotFoundError as exc:
        return None, "" if exc.name == "torch" else f"torch cannot be imported: {exc}"
    except Exception as exc:  # noqa: BLE001 - a torch that does not fit its libraries fails in many ways
        return None, f"torch cannot be imported: {type(exc).__name__}: {plain(str(exc), 200)}"
    return str(torch.__version__), ""


class _Server:
    def __init__(self, *, import_torch: bool) -> None:
        self.import_torch = import_torch
        self.selector = selectors.DefaultSelector()
        self.here = Here(node_name())
        self.buffer = bytearray()
        self.skipping = False
        self.waiting: deque[Order] = deque()
        self.running: _Running | None = None
        self.lingering: list[Child] = []
        self.linger_until = 0.0
        self.left_behind: list[Child] = []
        self.ended = False

    def run(self) -> None:
        version, problem = _import_torch() if self.import_torch else (None, "")
        self.here = replace(self.here, torch=version, addresses=addresses(), tools=tools())
        self._look_for_devices([problem] if problem else [])
        self._say({"hello": self.here.hello(time.time())})
        self.selector.register(0, selectors.EVENT_READ)
        while not self.ended:
            if self.running is None and self.waiting:
                self._begin(self.waiting.popleft())
            for key, _ in self.selector.select(self._pause()):
                if key.fd == 0:
                    self._read()
                else:
                    self._hear(key.data, key.fd)
            self._look_after()

    def close(self) -> None:
        """Kill and reap every child."""
        running = self.running.children if self.running else []
        children.end_all([*running, *self.lingering, *self.left_behind])

    def _say(self, value: dict[str, Any] | str) -> None:
        line = value if isinstance(value, str) else json.dumps(value)
        rest = memoryview((line + "\n").encode())
        try:
            while rest:
                rest = rest[os.write(1, rest) :]
        except OSError as exc:  # the head is gone
            raise _Ended from exc

    # orders

    def _read(self) -> None:
        data = os.read(0, 1 << 16)
        received = time.time()
        if not data:
            self.ended = True
            return
        self.buffer += data
        while (end := self.buffer.find(b"\n")) >= 0 and not self.ended:
            line = bytes(self.buffer[:end])
            del self.buffer[: end + 1]
            if self.skipping:
                self.skipping = False
            elif line.strip():
                self._take(line.decode("utf-8", "replace"), received)
        if len(self.buffer) > LINE_CAP_BYTES and not self.skipping:
            self._say({"error": f"a line of more than {LINE_CAP_BYTES} bytes was skipped"})
            self.skipping = True
        if self.skipping:
            self.buffer.clear()

    def _take(self, line: str, received: float) -> None:
        try:
            order = read_order(line, self.here.node)
            if order is not None and order.probe == "clock":
                order.number("head_time", math.nan, 0.0, 1e12)
        except BadOrder as exc:
            self._say({"error": str(exc)})
            return
        if order is None:
            return
        if order.probe == "end":
            self.ended = True
        elif order.probe == "clock":
            # at once, whatever else is going on: a child would only add its own delay
            times = {"head": order.parameters["head_time"], "received": received, "sent": time.time()}
            self._say(answer_line(order, self.here.node, Report(Ending.DONE), 0.0, clock=times))
        else:
            self.waiting.append(order)

    def _begin(self, order: Order) -> None:
        self._end_lingering()
        began = time.monotonic()
        try:
            probe = _probe(order.probe)
            tasks = probe.tasks(order, self.here)
        except (BadOrder, Unobservable) as exc:
            self._answer(order, Report(Ending.COULD_NOT_RUN, str(exc)), began)
            return
        except Exception as exc:  # noqa: BLE001 - a fault of ours must not silence the node
            detail = f"a fault in the probe itself: {type(exc).__name__}: {exc}"
            self._answer(order, Report(Ending.COULD_NOT_RUN, detail), began)
            return
        self.running = _Running(order, probe, began, [], began + order.timeout_seconds)
        for task in tasks:
            self.running.children.append(self._start(task))

    def _start(self, task: Task) -> Child:
        fds = [key.fd for key in self.selector.get_map().values() if key.fd > 2]
        child = children.start(task.work, task.label, close=fds, lingers=task.lingers)
        self.selector.register(child.report_fd, selectors.EVENT_READ, child)
        self.selector.register(child.output_fd, selectors.EVENT_READ, child)
        return child

    # children

    def _hear(self, child: Child, fd: int) -> None:
        if not child.take(fd):
            self.selector.unregister(fd)
            child.open_pipes -= 1

    def _pause(self) -> float | None:
        if self.running is None:
            if self.lingering and not self.waiting:
                return max(0.0, self.linger_until - time.monotonic())
            return None if not self.waiting else 0.0
        # the end of a child shows first as the end of its pipes
        ending = any(not child.open_pipes and not child.gone for child in self.running.children)
        return max(0.0, min(0.002 if ending else 0.25, self.running.deadline - time.monotonic()))

    def _look_after(self) -> None:
        """See who has ended, end what is over its time, and answer when all are through."""
        self.left_behind = [child for child in self.left_behind if not child.reap()]
        running = self.running
        if running is None:
            if self.lingering and time.monotonic() >= self.linger_until:
                self._end_lingering()
            return
        for child in running.children:
            if child.pid not in running.reports and child.reap():
                running.reports[child.pid] = report = self._report_of(child, running.order)
                if report.ending is not Ending.DONE:
                    until = time.monotonic() + GRACE_SECONDS
                    running.deadline = min(running.deadline, until)
        waited_for = [child for child in running.children if not child.gone and not child.lingers]
        if waited_for and time.monotonic() < running.deadline:
            return
        for child in waited_for:
            running.reports[child.pid] = self._stuck(running, child)
        self._finish(running)

    def _report_of(self, child: Child, order: Order) -> Report:
        while child.take(child.report_fd) and _more(child.report_fd):
            pass
        while child.take(child.output_fd) and _more(child.output_fd):
            pass
        try:
            return Report.from_json(child.said.decode())
        except (ValueError, KeyError, TypeError):
            code = child.exit_code or 0
            if code == -signal.SIGABRT:
                # NCCL's watchdog thread aborts a healthy rank when a peer is gone, and says so before
                names = {name: name for name in order.nodes}
                known = known_complaint("\n".join(child.last_words(40)), names, self.here.node)
                if known is not None:
                    known.detail = f"{child.label}: {known.detail}"
                    return known
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            return Report(
                Ending.CRASH,
                f"{child.label} {how} without a report",
                child.last_words(),
                [self.here.node],
            )

    def _stuck(self, running: _Running, child: Child) -> Report:
        since, *at = child.progress.read()
        report = running.probe.stuck(
            running.order, self.here, time.monotonic() - since, (at[0], at[1], at[2], at[3])
        )
        report.detail = f"{child.label}: {report.detail}"
        report.evidence += [report.detail, *child.last_words(3)]
        return report

    def _finish(self, running: _Running) -> None:
        over = [child for child in running.children if not child.lingers]
        self.lingering = [child for child in running.children if child.lingers and not child.gone]
        # the other nodes' ranks began at about the same time, and have as long
        self.linger_until = running.began + running.order.timeout_seconds
        left = children.end_all(self._stopped(over))
        reports = [running.reports[child.pid] for child in running.children if child.pid in running.reports]
        report = running.probe.gather(reports)
        for child in left:
            report.evidence.insert(
                0,
                f"process {child.pid} ({child.label}) cannot be killed: it hangs in the kernel, state "
                f"{child.state() or 'unknown'}; it is left behind",
            )
            report.blamed = list(dict.fromkeys([self.here.node, *report.blamed]))
        self.left_behind += left
        for child in self._stopped([child for child in running.children if child.lingers and child.gone]):
            child.close()
        for child in over:
            child.close()
        self.running = None
        self._answer(running.order, report, running.began)

    def _end_lingering(self) -> None:
        self.left_behind += children.end_all(self._stopped(self.lingering))
        for child in self.lingering:
            child.close()
        self.lingering = []

    def _stopped(self, those: list[Child]) -> list[Child]:
        """The same, no longer listened to."""
        for child in those:
            for fd in (child.report_fd, child.output_fd):
                if fd in self.selector.get_map():
                    self.selector.unregister(fd)
        return those

    def _answer(self, order: Order, report: Report, began: float) -> None:
        report.evidence = [*faults.notes(), *report.evidence]
        self._say(answer_line(order, self.here.node, report, time.monotonic() - began))

    def _look_for_devices(self, problems: list[str]) -> None:
        child = self._start(Task("looking for GPUs", look_for_devices))
        until = time.monotonic() + DEVICES_SECONDS
        while not child.reap() and (left := until - time.monotonic()) > 0:
            for key, _ in self.selector.select(min(left, 0.25)):
                self._hear(child, key.fd)
        if child.gone:
            report = self._report_of(child, Order(0, "", (), 0.0))
            problems += [report.detail] if report.detail else []
            problems += report.evidence
            self.here = replace(
                self.here,
                cuda=bool(report.private.get("cuda", False)),
                devices=tuple(report.private.get("devices", ())),
            )
        else:
            problems.append(f"the driver did not tell its GPUs within {DEVICES_SECONDS:g} s")
        self._stopped([child])
        self.left_behind += children.end_all([child])
        child.close()
        self.here = replace(self.here, problems=tuple(plain(text) for text in problems))


@functools.cache
def _probe(name: str) -> Probe:
    if name not in PROBES:
        raise BadOrder(f"probe: {plain(name, 60)} is not one of {', '.join(PROBES)}")
    module: Any = importlib.import_module(f"clustertools.probes.{name}")
    probe: Probe = module
    return probe


def _more(fd: int) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        return bool(selector.select(0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
