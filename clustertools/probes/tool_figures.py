"""What the tools of others measured, as trials: nccl-tests, nvbandwidth, perftest and `dcgmi diag`. Pure.

    told = nccl_tests.read(text)                       # clustertools.sources.tools
    trial = from_nccl_tests(told, ("gpu-001", "gpu-002"), collective="all_reduce")

A tool that ended without an error has not passed: wrong data stand in a column, a test that was skipped looks
like one that was not asked for, and an average over message sizes is no bandwidth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clustertools.measurement import Ending, Figure, Trial

_GB = 1e9
_NOTHING_SAID = "it printed no figure and no error"
#: Tests of nvbandwidth by how their names begin, to the probe that they are figures of, and its metric.
_COPIES = (
    ("host_device_latency", "host_device", "latency_seconds"),
    ("device_to_device_latency", "peer", "latency_seconds"),
    ("host_to_device_bidirectional", "host_device", "both_ways_bytes_per_second"),
    ("device_to_host_bidirectional", "host_device", "both_ways_bytes_per_second"),
    ("host_to_", "host_device", "host_to_device_bytes_per_second"),
    ("device_to_host", "host_device", "device_to_host_bytes_per_second"),
    ("all_to_host", "host_device", "device_to_host_bytes_per_second"),
    ("device_local", "memory", "memory_copy_bytes_per_second"),
    ("device_to_device", "peer", "peer_copy_bytes_per_second"),
    ("all_to_one", "peer", "peer_copy_bytes_per_second"),
    ("one_to_all", "peer", "peer_copy_bytes_per_second"),
    ("multinode", "peer", "peer_copy_bytes_per_second"),
)
_PERFTEST_LATENCIES = {"typical_microseconds": "latency_seconds", "p99_microseconds": "latency_p99_seconds"}
#: DCGM's severities (dcgm_errors.h): to watch, and to set right by configuration; neither is broken hardware.
_NO_HARDWARE = (1, 5)


def from_nccl_tests(told: Mapping[str, Any], nodes: Sequence[str], *, collective: str = "") -> Trial:
    """The runs of one program of nccl-tests or rccl-tests on `nodes`, from `nccl_tests.read`.

    One figure a message size: the better placement, since noise only slows. The "Avg bus bandwidth" is never
    used: it is a mean over sizes, and 0 when a rank failed. `#wrong` above 0 is wrong data, whatever the
    speed. `collective` names it where the output does not (before 2.17).
    """
    figures: list[Figure] = []
    evidence: list[str] = []
    ending, detail = Ending.DONE, ""
    for run in told["runs"]:
        name = collective or str(run["test"] or "").removesuffix("_perf") or "collective"
        ranks = _ranks(run)
        wrong = [_told_wrong(row) for row in run["rows"] if _told_wrong(row)]
        if wrong or run["ok"] is False or run["out_of_bounds"]:
            ending = Ending.WRONG_DATA
            detail = detail or f"{name}: " + (wrong[0] if wrong else "results out of bounds")
            evidence += wrong[:8]
        if run["failures"]:
            evidence += run["failures"][:8]
            if ending is Ending.DONE:
                ending, detail = Ending.CRASH, str(run["failures"][0])
        elif run["ok"] is None and run["rows"] and run["average_busbw_gb_per_second"] is None:
            evidence.append(f"{name}: the output stops after {run['rows'][-1]['size_bytes']} bytes")
            if ending is Ending.DONE:
                ending, detail = Ending.CRASH, evidence[-1]
        if run["validated"] is False:
            evidence.append(f"{name}: the data were not compared (-c 0)")
        for row in run["rows"]:
            value = _better_placement(row)
            if value is None:
                continue
            told_ranks = f" {ranks} ranks" if ranks else ""
            variant = f"nccl-tests {row['type']}{told_ranks} {name}"
            figures.append(
                Figure(
                    "collective",
                    tuple(nodes),
                    "busbw_bytes_per_second",
                    value,
                    "",
                    row["size_bytes"],
                    variant,
                )
            )
    if not figures and ending is Ending.DONE:
        ending, detail = Ending.COULD_NOT_RUN, _NOTHING_SAID
        if any(run["rows"] for run in told["runs"]):
            detail = "every busbw is 0: a single rank has nobody to send to"
    return Trial("collective", tuple(nodes), ending, tuple(figures), detail, tuple(evidence))


def _ranks(run: Mapping[str, Any]) -> int:
    """How many took part; 0 when its list of devices is not whole (cut out of a longer output)."""
    ranks = sorted({device["rank"] for device in run["devices"]})
    return len(ranks) if ranks == list(range(len(ranks))) else 0


def _told_wrong(row: Mapping[str, Any]) -> str:
    """A sentence on wrong elements of one row; empty when none are known. Old versions print an error there,
    which is a fraction and no count."""
    for place in ("out_of_place", "in_place"):
        wrong = (row[place] or {}).get("wrong")
        if isinstance(wrong, int) and wrong > 0:
            return f"{wrong} wrong elements of {row['elements']} at {row['size_bytes']} bytes, {place}"
        if isinstance(wrong, float) and (math.isnan(wrong) or wrong > 1):
            return f"an error of {wrong:g} at {row['size_bytes']} bytes, {place}"
    return ""


def _better_placement(row: Mapping[str, Any]) -> float | None:
    """Bytes per second; None where nothing was measured, as on one rank, whose factor is 0."""
    told = [row[place]["busbw_gb_per_second"] for place in ("out_of_place", "in_place") if row[place]]
    values = [value for value in told if value is not None and math.isfinite(value) and value > 0]
    return max(values) * _GB if values else None


def from_nvbandwidth(told: Mapping[str, Any], node: str, *, parts: Sequence[str] = ()) -> Trial:
    """The tests of nvbandwidth on one node, from `nvbandwidth.read`.

    One figure a cell of a matrix; `parts` are the names of the GPUs in the tool's order (`gpu0` and so on
    without them). A waived test is not possible on this machine, and is no figure.
    """
    figures: list[Figure] = []
    evidence: list[str] = []
    ending, detail = Ending.DONE, ""
    for test in told["tests"]:
        found = [(probe, metric) for begin, probe, metric in _COPIES if test["name"].startswith(begin)]
        if test["status"] in ("failed", "error"):
            evidence.append(f"{test['name']}: {test['message'] or test['status']}")
            # "Invalid value when checking the pattern at 0x7f..": it compares the buffer after the copies
            if "Invalid value when checking the pattern" in test["message"]:
                ending, detail = Ending.WRONG_DATA, evidence[-1]
            elif ending is Ending.DONE:
                ending, detail = Ending.CRASH, evidence[-1]
        elif not found:
            evidence.append(f"{test['name']}: not known, not used")
        if found:
            figures += _cells(test, *found[0], node, parts)
    if not figures and ending is Ending.DONE:
        ending, detail = Ending.COULD_NOT_RUN, _NOTHING_SAID
    return Trial("nvbandwidth", (node,), ending, tuple(figures), detail, tuple(evidence))


def _cells(
    test: Mapping[str, Any], probe: str, metric: str, node: str, parts: Sequence[str]
) -> Iterable[Figure]:
    in_seconds = {"ns": 1e-9, "us": 1e-6}.get(test["unit"])
    in_bytes = {"GB/s": 1e9, "MB/s": 1e6}.get(test["unit"])

    def part(number: int) -> str:
        return parts[number] if number < len(parts) else f"gpu{number}"

    between = probe == "peer"
    for y, row in zip(test["rows"], test["matrix"], strict=False):
        for x, value in zip(test["columns"], row, strict=False):
            # a GPU with itself is printed as 0.00 or N/A
            if not value or (between and x == y):
                continue
            where = f"{part(y)} to {part(x)}" if between else part(x)
            variant = f"nvbandwidth {test['name']}"
            if in_seconds is not None:
                yield Figure(probe, (node,), metric, value * in_seconds, where, 0, variant, False)
            elif in_bytes is not None:
                yield Figure(probe, (node,), metric, value * in_bytes, where, 0, variant)


def from_ib_write_bw(told: Mapping[str, Any], nodes: Sequence[str]) -> Trial:
    """A test of perftest between two nodes (or a port and itself), from `ib_write_bw.read`.

    The average is used: a peak is one lucky moment, and 0 in a test by duration. Both ways together, as a
    bidirectional test prints them, stand so in the variant.
    """
    figures: list[Figure] = []
    evidence: list[str] = []
    for test in told["tests"]:
        evidence += test["warnings"]
        device = str(test["settings"].get("Device", ""))
        pairs = str(test["settings"].get("Number of qps", ""))
        variant = " ".join(
            filter(None, ("perftest", test["test"].removesuffix(" Test"), pairs and f"{pairs} qps"))
        )
        for row in test["rows"]:
            size = row["size_bytes"]
            if row.get("average_gigabits_per_second"):
                value = row["average_gigabits_per_second"] * 1e9 / 8
                figures.append(
                    Figure(
                        "ib_write_bw",
                        tuple(nodes),
                        "rdma_write_bytes_per_second",
                        value,
                        device,
                        size,
                        variant,
                    )
                )
            for key, metric in _PERFTEST_LATENCIES.items():
                if row.get(key):
                    value = row[key] * 1e-6
                    figures.append(
                        Figure("ib_write_bw", tuple(nodes), metric, value, device, size, variant, False)
                    )
    if not figures:
        return Trial("ib_write_bw", tuple(nodes), Ending.COULD_NOT_RUN, (), _NOTHING_SAID, tuple(evidence))
    return Trial("ib_write_bw", tuple(nodes), Ending.DONE, tuple(figures), "", tuple(evidence))


def from_dcgm_diag(told: Mapping[str, Any], node: str) -> Trial:
    """The verdicts of `dcgmi diag` on one node, from `dcgm_diag.read`; it gives no figures.

    A failed test blames the node, as a CRASH, unless DCGM itself calls it a matter of watching or of
    configuration (persistence mode off is no broken GPU): then, and where nothing but skips came back, it
    could not run.
    """
    broken: list[str] = []
    set_up: list[str] = []
    passed = 0
    for test in told["tests"]:
        for result in test["results"]:
            if result["status"] in ("pass", "warn"):
                passed += 1
            if result["status"] not in ("fail", "warn"):
                continue
            sentence = _told_failure(test, result)
            severities = [message["error_severity"] for message in result["messages"]]
            graded = [severity for severity in severities if severity is not None]
            if result["status"] == "warn" or _is_set_up(test, graded):
                set_up.append(sentence)
            else:
                broken.append(sentence)
    evidence = (*broken, *set_up)
    if broken:
        return Trial("dcgm-diag", (node,), Ending.CRASH, (), broken[0], evidence, (node,))
    if told["error"] or not passed:
        detail = told["error"] or (set_up[0] if set_up else "DCGM skipped every test")
        return Trial("dcgm-diag", (node,), Ending.COULD_NOT_RUN, (), detail, evidence)
    return Trial("dcgm-diag", (node,), Ending.DONE, (), "", evidence)


def _told_failure(test: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    who = f" on {result['entity']} {','.join(map(str, result['ids']))}" if result["ids"] else ""
    said = "; ".join(message["text"] for message in result["messages"] if message["text"])
    return f"{test['name']}: {result['status']}{who}" + (f": {said}" if said else "")


def _is_set_up(test: Mapping[str, Any], severities: Sequence[int]) -> bool:
    """Whether a failure is of the set-up: by DCGM's own word, or for want of one by what it tests."""
    if severities:
        return all(severity in _NO_HARDWARE for severity in severities)
    return str(test["category"]) == "Deployment"
