"""perftest: ib_write_bw, ib_read_bw, ib_send_bw and their latency twins, as text or by --out_json.

Columns and headings as perftest's `perftest_parameters.h` has them. MB there is 2^20 bytes.
"""

from __future__ import annotations

import json
import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "ib-write-bw"

FIELDS = {
    "tests[].test": "the heading: RDMA_Write BW Test, Send Bidirectional BW Test ...",
    "tests[].settings.*": "device, mtu, link type, queue pairs and so on, as the tool names and prints them",
    "tests[].rows[].size_bytes": "message size",
    "tests[].rows[].iterations": "messages sent",
    "tests[].rows[].peak_gigabits_per_second": "of a bandwidth test; 0 by duration (-D), which has no peak",
    "tests[].rows[].average_gigabits_per_second": "of a bandwidth test",
    "tests[].rows[].message_rate_millions_per_second": "of a bandwidth test",
    "tests[].rows[].min_microseconds": "of a latency test, as are those that follow",
    "tests[].rows[].max_microseconds": "the slowest message",
    "tests[].rows[].typical_microseconds": "the median",
    "tests[].rows[].average_microseconds": "the mean",
    "tests[].rows[].stdev_microseconds": "standard deviation",
    "tests[].rows[].p99_microseconds": "99 of 100 were faster",
    "tests[].rows[].p999_microseconds": "999 of 1000 were faster",
    "tests[].rows[].transactions_per_second": "of a latency test by duration",
    "tests[].warnings[]": "what it says of the machine, such as a CPU that does not run at its clock",
}  # fmt: skip

_MIB_TO_GIGABITS = 8 * 2**20 / 1e9
_GIB_TO_GIGABITS = 8 * 2**30 / 1e9
#: Beginnings of the columns' headings to our name, and the factor by their unit.
_COLUMNS = {
    "#bytes": "size_bytes", "#iterations": "iterations", "BW peak": "peak_gigabits_per_second",
    "BW average": "average_gigabits_per_second", "MsgRate": "message_rate_millions_per_second",
    "t_min": "min_microseconds", "t_max": "max_microseconds", "t_typical": "typical_microseconds",
    "t_avg": "average_microseconds", "t_stdev": "stdev_microseconds", "99% percentile": "p99_microseconds",
    "99.9% percentile": "p999_microseconds", "tps average": "transactions_per_second",
}  # fmt: skip
_UNITS = {"Gb/sec": 1.0, "MB/sec": _MIB_TO_GIGABITS, "MiB/sec": _MIB_TO_GIGABITS, "GB/sec": _GIB_TO_GIGABITS}
#: The same of --out_json.
_JSON_COLUMNS = {
    "MsgSize": "size_bytes", "n_iterations": "iterations", "BW_peak": "peak_gigabits_per_second",
    "BW_average": "average_gigabits_per_second", "MsgRate": "message_rate_millions_per_second",
    "t_min": "min_microseconds", "t_max": "max_microseconds", "t_typical": "typical_microseconds",
    "t_avg": "average_microseconds", "t_stdev": "stdev_microseconds", "percentile_99": "p99_microseconds",
    "percentile_99_9": "p999_microseconds",
}  # fmt: skip
#                     RDMA_Write Bidirectional BW Test
_TITLE = re.compile(r"\s*(\S.{0,60}(?:BW|Bandwidth|Latency|Lat) Test)(?: .*)?\s*")
#  #bytes     #iterations    BW peak[Gb/sec]    BW average[Gb/sec]   MsgRate[Mpps]
_HEADING = re.compile(r"\s*#bytes\s+#iterations")
_COLUMN = re.compile(
    r"(#bytes|#iterations|[A-Za-z0-9_.%]+(?: (?:peak|average|percentile))?)(?:\[([^\]]+)\])?"
)
#  Number of qps   : 1            Transport type : IB
_SETTING = re.compile(r"([A-Za-z][A-Za-z0-9 *.+_/()-]*?)\s*: ?(\S(?:.*?\S)??)(?=\s{2,}|\s*$)")
#  local address: LID 0000 QPN 0x008a PSN 0xfffb6d RKey 0x238f86 VAddr 0x007dd5a3cfd000
_PEER = re.compile(r"\s*(local|remote) address:|\s*GID: |\s*-{5,}|\s*\*|\s*=*\s*$|\s*(Port|Starting) ")


def recognise(text: str) -> bool:
    """Whether the heading of its table is there, or its JSON."""
    if text.lstrip()[:1] == "{":
        return '"test_info"' in text[:4000] and '"results"' in text
    return re.search(r"#bytes\s+#iterations\s+(BW peak|t_min|t_avg)", text) is not None


def read(text: str) -> dict[str, Any]:
    """The tests in the text. Raises Unparsable where there is none, or for a row of another form."""
    if text.lstrip()[:1] == "{":
        return {"tests": [_from_json(text)]}
    tests: list[dict[str, Any]] = []
    columns: list[tuple[str, float]] = []
    for line in text.splitlines():
        if _HEADING.match(line):
            columns = _columns(line)
            if not tests or tests[-1]["rows"]:
                tests.append(_empty(""))
        elif columns and line.strip()[:1].isdigit():
            tests[-1]["rows"].append(_row(line, columns))
        elif match := _TITLE.fullmatch(line):
            tests.append(_empty(match[1]))
            columns = []
        elif _PEER.match(line):
            continue
        elif not columns and tests and (found := _SETTING.findall(line)):
            tests[-1]["settings"] |= {name.strip(): value for name, value in found}
        elif columns and line.strip():
            # Conflicting CPU frequency values detected: 1500.000000 != 3300.016000. CPU Frequency is not max.
            tests[-1]["warnings"].append(line.strip()[:300])
    tests = [test for test in tests if test["rows"] or test["settings"]]
    if not tests:
        raise Unparsable("perftest: neither a heading nor a table", text)
    return {"tests": tests}


def _empty(title: str) -> dict[str, Any]:
    return {"test": title, "settings": {}, "rows": [], "warnings": []}


def _columns(line: str) -> list[tuple[str, float]]:
    found = []
    for name, unit in _COLUMN.findall(line):
        if name not in _COLUMNS:
            raise Unparsable("perftest: a column of an unknown name", line)
        found.append((_COLUMNS[name], _UNITS.get(unit, 1.0) if name.startswith("BW") else 1.0))
    return found


def _row(line: str, columns: list[tuple[str, float]]) -> dict[str, Any]:
    words = line.split()
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise Unparsable("perftest: a row of an unknown form", line) from None
    # some builds print a message rate under no heading, and none when it is nothing
    columns = [*columns, ("message_rate_millions_per_second", 1.0)][: max(len(columns), len(values))]
    if not 2 < len(values) <= len(columns):
        raise Unparsable("perftest: a row with another number of columns than its heading", line)
    row: dict[str, Any] = {}
    for (name, factor), value in zip(columns, values, strict=False):
        row[name] = int(value) if name in ("size_bytes", "iterations") else value * factor
    return row


def _from_json(text: str) -> dict[str, Any]:
    # some versions leave a comma before the closing brace
    try:
        data = json.loads(re.sub(r",(\s*[}\]])", r"\1", text))
        results, info = data["results"], data["test_info"]
        listed = results if isinstance(results, list) else [results]
        rows = [
            {ours: entry[theirs] for theirs, ours in _JSON_COLUMNS.items() if theirs in entry}
            for entry in listed
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise Unparsable("perftest: JSON of an unknown form", text) from exc
    if not isinstance(info, dict) or not all(rows):
        raise Unparsable("perftest: JSON without results", text)
    for row in rows:
        if not all(isinstance(value, (int, float)) for value in row.values()):
            raise Unparsable("perftest: JSON with a result that is no number", text)
    factor = (
        1.0 if str(info.get("Report-fmt", info.get("BW_unit", "Gb"))).startswith("Gb") else _MIB_TO_GIGABITS
    )
    for row in rows:
        for name in ("peak_gigabits_per_second", "average_gigabits_per_second"):
            if name in row:
                row[name] *= factor
    settings = {str(key): str(value) for key, value in info.items() if key != "test"}
    return {"test": str(info.get("test", "")), "settings": settings, "rows": rows, "warnings": []}
