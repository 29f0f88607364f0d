"""`perfquery` of infiniband-diags: the counters of one port, or summed over a switch's ports (-a).

Format: name, dots, value, as libibmad's mad_dump_perfcounters* write it. Names before 1.6 become today's.
"""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable
from clustertools.sources.tools.iblinkinfo import is_complaint
from clustertools.sources.tools.ibqueryerrors import OLD_NAMES

KIND = "perfquery"

FIELDS = {
    "ports[].lid": "local identifier; 0 where it was addressed by a path",
    "ports[].port": "number; 255: all ports together",
    "ports[].counters.*": "by the names of infiniband-diags 1.6 and later; data are words of 4 bytes",
    "complaints[]": "lines of standard error that were among the output",
}  # fmt: skip


def recognise(text: str) -> bool:
    """By its heading and the field that comes first."""
    return bool(re.search(r"^# Port[\w ]* counters: .*\n?PortSelect:\.+", text[:4000], re.M))


def read(text: str) -> dict[str, Any]:
    """`ports`: of each block `lid`, `port` (255: all together) and `counters`; data are words of 4 bytes.

    Raises Unparsable for a line of another form.
    """
    ports: list[dict[str, Any]] = []
    complaints = []
    for line in text.splitlines():
        if not line.strip():
            continue
        if is_complaint(line):
            complaints.append(line[:200])
            continue
        # # Port extended counters: Lid 1 port 1 (CapMask: 0x1200 CapMask2: 0x0000000)
        head = re.match(r"# Port[\w ]*: (?:Lid (\d{1,6})|DR path .{1,200}?) port (\d{1,3})", line)
        # SymbolErrorCounter:..............4321        CounterSelect2:..................0x00
        field = re.fullmatch(r"(\w{1,64}):\.+(0x[0-9a-fA-F]{1,16}|\d{1,20})\s*", line)
        if head:
            lid = int(head[1]) if head[1] else 0
            ports.append({"lid": lid, "port": int(head[2]), "counters": {}})
        elif field and ports:
            if not field[1].endswith(("Select", "Select2")):
                ports[-1]["counters"][OLD_NAMES.get(field[1], field[1])] = int(field[2], 0)
        else:
            raise Unparsable("perfquery printed a line of an unknown form", line)
    if not ports:
        raise Unparsable("perfquery printed no counters", text)
    return {"ports": ports, "complaints": complaints}
