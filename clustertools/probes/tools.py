"""Tests of others, where a node has them: nvbandwidth and nccl-tests in place of our own code.

They run as a child's child with a deadline; what they print is read by `clustertools.sources.tools`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clustertools.errors import Absent, Unobservable
from clustertools.host import Completed
from clustertools.measurement import Ending
from clustertools.probes.children import Progress, run_tool
from clustertools.probes.devices import part_of
from clustertools.probes.node import Here, Task
from clustertools.probes.orders import Order, Report, figure
from clustertools.sources.tools import nccl_tests
from clustertools.sources.tools import nvbandwidth as nvbandwidth_reader

#: Our name of a collective, and of a type, and nccl-tests'.
NCCL_PROGRAMS = {
    "all_reduce": "all_reduce_perf", "all_gather": "all_gather_perf", "all_to_all": "alltoall_perf",
    "reduce_scatter": "reduce_scatter_perf",
}  # fmt: skip
_NCCL_TYPES = {
    "float32": "float", "float64": "double", "float16": "half", "bfloat16": "bfloat16", "int32": "int32",
    "int64": "int64",
}  # fmt: skip


def chosen(order: Order, here: Here, tool: str, own: str, program: str = "") -> str:
    """Whether `tool` or our `own` code is to be used: as the order says, else what is installed.

    Raises BadOrder for another name, Absent when the tool was asked for and is not here.
    """
    asked = order.text("tool", "auto", ("auto", tool, own))
    there = (program or tool) in here.tools
    if asked == tool and not there:
        raise Absent(f"{program or tool} is not installed on this node")
    return tool if there and asked != own else own


def tool_task(
    label: str, argv: Sequence[str], order: Order, read: Callable[[Completed], Report], attempts: int = 1
) -> Task:
    """A child that runs `argv` and reads what it prints. What cannot be started or read could not run."""
    settings = order.environment()
    until = time.monotonic() + order.timeout_seconds

    def work(progress: Progress) -> Report:
        for attempt in range(attempts):
            progress.at(1, 0, attempt)
            try:
                done = run_tool(argv, max(0.1, until - 0.5 - time.monotonic()), settings)
                report = read(done)
            except Unobservable as exc:
                hung = "did not end within" in str(exc)
                report = Report(Ending.HANG if hung else Ending.COULD_NOT_RUN, str(exc))
            if report.ending is Ending.DONE or time.monotonic() > until - 1.5:
                break
            if attempt + 1 < attempts:
                time.sleep(0.5)
        return report

    return Task(label, work)


def last_lines(done: Completed, lines: int = 6) -> list[str]:
    """What a program said at its end, its complaints last."""
    said = [line for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    return said[-lines:]


def failed(done: Completed, name: str) -> Report:
    """A program that ended with an error and told nothing that could be read."""
    words = last_lines(done)
    last = words[-1] if words else "it said nothing"
    return Report(Ending.COULD_NOT_RUN, f"{name} ended with exit code {done.returncode}: {last}", words)


# nvbandwidth


def nvbandwidth(order: Order, here: Here, metrics: Mapping[str, str]) -> list[Task]:
    """nvbandwidth's tests `metrics` (name -> our metric)."""

    def read(done: Completed) -> Report:
        try:
            told = nvbandwidth_reader.read(done.stdout)
        except Unobservable:
            if done.returncode:
                return failed(done, "nvbandwidth")
            raise
        return _from_nvbandwidth(told, metrics, here)

    return [tool_task("nvbandwidth", ("nvbandwidth", "-t", *metrics), order, read)]


def _from_nvbandwidth(told: Mapping[str, Any], metrics: Mapping[str, str], here: Here) -> Report:
    report = Report(Ending.DONE)
    for test in told["tests"]:
        if test["status"] in ("error", "failed"):
            # it compares each buffer with what it wrote: "Invalid value when checking the pattern at ..."
            wrong = "Invalid value" in test["message"]
            return Report(
                Ending.WRONG_DATA if wrong else Ending.CRASH,
                f"nvbandwidth {test['name']}: {test['message']}",
                blamed=[here.node],
            )
        if test["status"] == "waived":
            report.evidence.append(f"nvbandwidth cannot run {test['name']} on this node")
            continue
        for row, values in zip(test["rows"], test["matrix"], strict=False):
            for column, value in zip(test["columns"], values, strict=False):
                if value and test["name"] in metrics:
                    part = _part(test, row, column, here)
                    report.figures.append(
                        figure(metrics[test["name"]], value * 1e9, part=part, variant="nvbandwidth")
                    )
    if not report.figures:
        return Report(Ending.COULD_NOT_RUN, "nvbandwidth measured nothing here", report.evidence)
    return report


def _part(test: Mapping[str, Any], row: int, column: int, here: Here) -> str:
    def name(index: int) -> str:
        return part_of(here.devices[index]) if index < len(here.devices) else f"gpu{index}"

    if "CPU" in test["what"]:
        return name(column)
    # memcpy CE GPU(row) <- GPU(column) bandwidth (GB/s)
    source, target = (column, row) if "<-" in test["what"] else (row, column)
    return f"{name(source)} to {name(target)}"


# nccl-tests


def nccl_program(order: Order, here: Here) -> str:
    """The program of nccl-tests for this order, or "" when our own code is to be used.

    Only within one node: between nodes they need MPI. Raises Absent when they were asked for and cannot be.
    """
    program = NCCL_PROGRAMS.get(order.text("collective", "all_reduce"), "")
    possible = len(order.nodes) == 1 and bool(program) and len(here.devices) > 1
    if order.text("tool", "auto") == "nccl-tests" and not possible:
        raise Absent("nccl-tests can be used within one node of several GPUs only, and not for pairs")
    use = chosen(order, here, "nccl-tests", "torch", program)
    return program if possible and use == "nccl-tests" else ""


def nccl(order: Order, here: Here, program: str) -> list[Task]:
    """nccl-tests over the GPUs of this node, with its own comparison of the data (-c 1)."""
    sizes = order.sizes("sizes_bytes", [1 << 20])
    ranks = order.whole("ranks_per_node", 0, 0, 256) or len(here.devices)
    dtype = order.text("dtype", "float32", tuple(_NCCL_TYPES))
    argv = (
        program, "-b", str(min(sizes)), "-e", str(max(sizes)), "-f", "2", "-g", str(ranks), "-c", "1",
        "-w", str(order.whole("warmup", 2, 0, 10_000)), "-n", str(order.whole("iterations", 5, 1, 100_000)),
        "-d", _NCCL_TYPES[dtype],
    )  # fmt: skip
    collective = order.text("collective", "all_reduce")

    def read(done: Completed) -> Report:
        try:
            runs = nccl_tests.read(done.stdout)["runs"]
        except Unobservable:
            if done.returncode:
                return failed(done, program)
            raise
        return _from_nccl_tests(runs[-1], f"nccl-tests {dtype} {ranks} ranks {collective}", here, done)

    return [tool_task(program, argv, order, read)]


def _from_nccl_tests(run: Mapping[str, Any], variant: str, here: Here, done: Completed) -> Report:
    report = Report(Ending.DONE)
    wrong = 0
    for row in run["rows"]:
        way, size = row["out_of_place"] or row["in_place"], row["size_bytes"]
        if way is None:
            continue
        wrong += sum(int(one["wrong"] or 0) for one in (row["out_of_place"], row["in_place"]) if one)
        for name in ("busbw", "algbw"):
            value = 1e9 * way[f"{name}_gb_per_second"]
            report.figures.append(figure(f"{name}_bytes_per_second", value, size_bytes=size, variant=variant))
        report.figures.append(
            figure(
                "time_mean_seconds",
                way["time_microseconds"] / 1e6,
                size_bytes=size,
                variant=variant,
                higher_is_better=False,
            )
        )
    if wrong or run["ok"] is False:
        report.ending = Ending.WRONG_DATA
        report.detail = f"{run['test'] or 'nccl-tests'}: {wrong} wrong elements"
        report.blamed = [here.node]
    elif run["failures"] or done.returncode:
        words = run["failures"] or last_lines(done)
        report = Report(Ending.CRASH, words[-1] if words else f"exit code {done.returncode}", words)
        report.blamed = [here.node]
    elif not report.figures:
        report = Report(Ending.COULD_NOT_RUN, "nccl-tests measured nothing", last_lines(done))
    return report
