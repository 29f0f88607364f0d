"""nccl-tests and rccl-tests: the bandwidth of a collective by message size, and whether the data were right.

The columns are those of nccl-tests `src/common.cu`; what they mean is in its doc/PERFORMANCE.md. The output
stands between other lines of a job's log, behind the marks of mpirun and srun: only a line that begins as a
row of the table and is none is not understood.
"""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "nccl-tests"

FIELDS = {
    "runs[].test": "the program, all_reduce_perf, where it says so (2.17 and later)",
    "runs[].version": "of nccl-tests",
    "runs[].nccl_library": "version of the NCCL in use, as a number: 22907 is 2.29.7",
    "runs[].min_bytes": "smallest message asked for",
    "runs[].max_bytes": "largest message asked for",
    "runs[].warmup_iterations": "runs before the measured ones",
    "runs[].iterations": "measured runs",
    "runs[].validated": "whether the data were compared with what they should be",
    "runs[].devices[]": "each rank's rank, pid, host, device (its number there), pci_bus and name",
    "runs[].rows[].size_bytes": "message size as the tool defines it for its collective",
    "runs[].rows[].elements": "elements in it",
    "runs[].rows[].type": "of an element: float, bfloat16 ...",
    "runs[].rows[].operation": "of the reduction; null where there is none",
    "runs[].rows[].root": "rank of the root; -1 where there is none; null in old versions",
    "runs[].rows[].out_of_place": "time_microseconds, algbw_gb_per_second, busbw_gb_per_second (GB = 10^9 "
    "bytes) and wrong, the number of wrong elements (null: not compared)",
    "runs[].rows[].in_place": "the same with the result over the input; null where it was not run",
    "runs[].out_of_bounds": "wrong results of the whole run; null when the trailer is missing",
    "runs[].ok": "false when results were wrong, null when the run did not come to its end",
    "runs[].average_busbw_gb_per_second": "mean over all sizes and both placements: no bandwidth when small "
    "messages are among them",
    "runs[].peak_busbw_gb_per_second": "the largest busbw of any row",
    "runs[].failures[]": "lines that tell of a failure",
}  # fmt: skip

#: `[1,0]<stdout>:` of mpirun, `0: ` of srun -l, a time in brackets or of ISO form, blanks.
_MARK = re.compile(r"(?:\[\d+,\d+\]<std(?:out|err)>:|\d+: (?=[ #])|\d{4}-\d\d-\d\dT[\d:.+Z-]+ )?\s*")
# #       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw ...
_HEADER = re.compile(r"#?\s*size\s+count\s+type\b")
# # nThread 1 nGpus 8 minBytes 8 maxBytes 134217728 step: 2(factor) warmup iters: 5 iters: 20 ...
_SETTINGS = re.compile(r"#\s*nThread \d+ ")
# #  Rank  0 Group  0 Pid  12345 on   host device  0 [0x07] NVIDIA A100-SXM4-80GB
_DEVICE = re.compile(
    r"#\s*Rank\s+(\d+) (?:Group\s+\d+ )?Pid\s+(\d+) on\s+(\S+) device\s+(\d+) \[([0-9a-fA-Fx:.]+)\] ?(.*)"
)
# # nccl-tests version 2.17.6 nccl-headers=22809 nccl-library=22809
_VERSION = re.compile(r"# (?:nccl|rccl)-tests(?: version)?:? (\S+)(?:.* [nr]ccl-library=(\d+))?")
# # Out of bounds values : 0 OK
_BOUNDS = re.compile(r"# Out of bounds values : (\d+) (OK|FAILED)")
# # Avg bus bandwidth    : 448.212
_AVERAGE = re.compile(r"# Avg bus bandwidth\s*: ([\d.eE+-]+|-?nan|-?inf)")
# # Collective test starting: all_reduce_perf
_TEST = re.compile(r"# Collective test (starting|concluded): (\S+)")
# node1: Test NCCL failure common.cu:1005 'unhandled system error'     host pid 12: Test failure common.cu:401
_FAILURE = re.compile(r"Test (?:[A-Z]+ )?failure ")
_FAILURES = 100


def recognise(text: str) -> bool:
    """Whether the heading of its table, or its first or last lines, are there."""
    return bool(
        re.search(r"size\s+count(?: \(?elem\w*\)?)?\s+type\s.*\bbusbw\b", text)
        or "# Collective test starting:" in text
        or "# Avg bus bandwidth" in text
    )


def read(text: str) -> dict[str, Any]:
    """The runs in the text, in order. Raises Unparsable where there is none, or for a row of another form."""
    runs: list[dict[str, Any]] = []
    has_root = True
    for line in text.splitlines():
        bare = line[m.end() :].rstrip() if (m := _MARK.match(line)) else line
        if _HEADER.match(bare):
            has_root = " root" in bare
            _table(runs)
        elif bare[:1].isdigit() and runs and runs[-1]["heading"]:
            if (row := _row(bare.split(), has_root)) is not None:
                runs[-1]["rows"].append(row)
            elif len(bare.split()) >= 7:
                raise Unparsable("nccl-tests: a row of an unknown form", line)
        elif bare.startswith("#"):
            _remark(runs, bare)
        elif _FAILURE.search(bare):
            run = runs[-1] if runs else _begin(runs)
            if len(run["failures"]) < _FAILURES:
                run["failures"].append(bare[:300])
    if not runs:
        raise Unparsable("nccl-tests: no table, and none of its remarks", text)
    for run in runs:
        del run["heading"], run["over"]
        run["peak_busbw_gb_per_second"] = max(
            (
                way["busbw_gb_per_second"]
                for row in run["rows"]
                for way in (row["out_of_place"], row["in_place"])
                if way and way["busbw_gb_per_second"] is not None
            ),
            default=None,
        )
    return {"runs": runs}


def _begin(runs: list[dict[str, Any]]) -> dict[str, Any]:
    run: dict[str, Any] = dict.fromkeys(
        ("test", "version", "nccl_library", "min_bytes", "max_bytes", "warmup_iterations", "iterations",
         "validated", "out_of_bounds", "ok", "average_busbw_gb_per_second")
    )  # fmt: skip
    runs.append({**run, "devices": [], "rows": [], "failures": [], "heading": False, "over": False})
    return runs[-1]


def _table(runs: list[dict[str, Any]]) -> None:
    # every size has a heading in no version: a second heading is a second run
    if not runs or runs[-1]["rows"] or runs[-1]["over"]:
        _begin(runs)
    runs[-1]["heading"] = True


def _remark(runs: list[dict[str, Any]], bare: str) -> None:
    """A line that begins with "#"."""
    starts = (match := _TEST.match(bare)) is not None and match[1] == "starting"
    starts = starts or _VERSION.match(bare) is not None or _SETTINGS.match(bare) is not None
    run = runs[-1] if runs and not (starts and (runs[-1]["rows"] or runs[-1]["over"])) else None
    if match := _VERSION.match(bare):
        run = run or _begin(runs)
        run["version"], run["nccl_library"] = match[1], int(match[2]) if match[2] else None
    elif match := _TEST.match(bare):
        run = run or _begin(runs)
        run["test"], run["over"] = match[2], run["over"] or match[1] == "concluded"
    elif _SETTINGS.match(bare):
        run = run or _begin(runs)
        for name, key in (
            ("minBytes", "min_bytes"), ("maxBytes", "max_bytes"), ("warmup iters:", "warmup_iterations"),
            (r"(?<!p )(?<!agg )iters:", "iterations"), ("validation:", "validated"),
        ):  # fmt: skip
            if found := re.search(rf"{name} (\d+)", bare):
                run[key] = bool(int(found[1])) if key == "validated" else int(found[1])
    elif match := _DEVICE.match(bare):
        run = run or _begin(runs)
        rank, pid, host, device, bus, name = match.groups()
        run["devices"].append(
            {"rank": int(rank), "pid": int(pid), "host": host, "device": int(device), "pci_bus": bus,
             "name": name.strip()}
        )  # fmt: skip
    elif run is not None and (match := _BOUNDS.match(bare)):
        run["out_of_bounds"], run["ok"], run["over"] = int(match[1]), match[2] == "OK", True
    elif run is not None and (match := _AVERAGE.match(bare)):
        run["average_busbw_gb_per_second"], run["over"] = _number(match[1]), True


def _row(words: list[str], has_root: bool) -> dict[str, Any] | None:
    """A row of the table, or None where it is another line that begins with a number."""
    # 1073741824     268435456     float     sum      -1    22661   47.38   47.38      0    22658   47.39 ...
    if len(words) < 7 or not (words[0].isdigit() and words[1].isdigit() and words[2][:1].isalpha()):
        return None
    rest = words[3:]
    operation = rest.pop(0) if rest[0][:1].isalpha() and rest[0] != "N/A" else None
    root: int | None = None
    if has_root and len(rest) % 4 == 1:
        if not re.fullmatch(r"-?\d+", rest[0]):
            return None
        root = int(rest.pop(0))
    if len(rest) not in (4, 8):
        return None
    try:
        ways = [_way(rest[n : n + 4]) for n in range(0, len(rest), 4)]
    except ValueError:
        return None
    return {
        "size_bytes": int(words[0]), "elements": int(words[1]), "type": words[2],
        "operation": None if operation == "none" else operation, "root": root,
        "out_of_place": ways[0], "in_place": ways[1] if len(ways) > 1 else None,
    }  # fmt: skip


def _way(words: list[str]) -> dict[str, Any] | None:
    """The four figures of one placement; None when it was not run."""
    time, algbw, busbw, wrong = (None if word == "N/A" else float(word) for word in words)
    if time is None:
        return None
    return {
        "time_microseconds": time, "algbw_gb_per_second": algbw, "busbw_gb_per_second": busbw,
        # old versions print the largest error there, 0e+00
        "wrong": int(wrong) if wrong is not None and wrong == int(wrong) else wrong,
    }  # fmt: skip


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if value == value and abs(value) != float("inf") else None
