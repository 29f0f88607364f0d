"""`ibqueryerrors` of infiniband-diags: the error counters of all ports that have errors, node by node.

Format as infiniband-diags/ibqueryerrors.c (rdma-core) writes it, with --details, --data, --counters and -r.
Versions before 1.6 named the counters otherwise; they come out under the names of today.
"""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable
from clustertools.sources.tools.iblinkinfo import is_complaint, read_line

KIND = "ibqueryerrors"

FIELDS = {
    "nodes[].guid": "of the node, in hexadecimal; null where it is not printed",
    "nodes[].name": "its description",
    "nodes[].ports.*": "by the port's number: guid, and counters by the names of infiniband-diags 1.6 "
    "and later; data are words of 4 bytes",
    "nodes_checked": "nodes that were asked",
    "bad_nodes": "nodes with errors beyond the thresholds",
    "ports_checked": "ports that were asked",
    "bad_ports": "ports with errors beyond the thresholds",
    "query_failures": "ports that did not answer",
    "thresholds[]": "as the tool was told: SymbolErrorCounter=10",
    "suppressed[]": "counters that were left out",
    "complaints[]": "lines of standard error that were among the output",
}  # fmt: skip

#: The names of infiniband-diags 1.5 (libibmad/src/fields.c of that time) -> those since 1.6.
OLD_NAMES = {
    "SymbolErrors": "SymbolErrorCounter", "LinkRecovers": "LinkErrorRecoveryCounter",
    "LinkDowned": "LinkDownedCounter", "RcvErrors": "PortRcvErrors",
    "RcvRemotePhysErrors": "PortRcvRemotePhysicalErrors", "RcvSwRelayErrors": "PortRcvSwitchRelayErrors",
    "XmtDiscards": "PortXmitDiscards", "XmtConstraintErrors": "PortXmitConstraintErrors",
    "RcvConstraintErrors": "PortRcvConstraintErrors", "LinkIntegrityErrors": "LocalLinkIntegrityErrors",
    "ExcBufOverrunErrors": "ExcessiveBufferOverrunErrors", "XmtData": "PortXmitData",
    "RcvData": "PortRcvData", "XmtPkts": "PortXmitPkts", "RcvPkts": "PortRcvPkts", "XmtWait": "PortXmitWait",
}  # fmt: skip
#: Data counters count words of four octets (IBTA, PortCounters).
LINE_LIMIT = 4096


def recognise(text: str) -> bool:
    """By the heading of a node or the summary."""
    return bool(
        re.search(r'^(Errors|Data Counters) for (0x[0-9a-f]+ )?"|^## Summary: \d+ nodes', text[:20000], re.M)
    )


def read(text: str) -> dict[str, Any]:
    """`nodes` (guid or None, name, ports: number -> counters), `nodes_checked`, `ports_checked`, `bad_ports`,
    `query_failures`. A switch's sum over its ports is left out: its fields are cut to 8 and 16 bits.

    Raises Unparsable for a line of another form, and when the summary is missing: it was cut short.
    """
    nodes: list[dict[str, Any]] = []
    told: dict[str, Any] = {"nodes": nodes, "complaints": []}
    counting_only = False
    for line in text.splitlines():
        if not line.strip():
            continue
        if is_complaint(line):
            told["complaints"].append(line[:200])
            continue
        if len(line) > LINE_LIMIT:
            raise Unparsable("ibqueryerrors printed a line that is too long", line)
        # Errors for 0xe41d2d0300000000 "leaf000"        Errors for "c015 HCA-1"
        node = re.fullmatch(r'(Errors|Data Counters) for (?:0x([0-9a-f]{1,16}) )?"(.*)"\s*', line)
        if node:
            counting_only = node[1] != "Errors"
            nodes.append(
                {"guid": int(node[2], 16) if node[2] else None, "name": node[3].strip(), "ports": {}}
            )
        elif nodes and (port := re.match(r"\s+GUID 0x([0-9a-f]{1,16}) port (ALL|\d{1,3}):", line)):
            if port[2] != "ALL":
                found = nodes[-1]["ports"].setdefault(port[2], {"guid": int(port[1], 16), "counters": {}})
                found["counters"] |= _counters(line, port.end())
        elif nodes and line.strip().startswith("Link info:"):
            #   Link info:   2   3[  ] ==( 4X  53.125 Gbps Active/  LinkUp)==>  0x0002c9..  5 1[  ] "n" ( )
            if read_line(line.split("Link info:", 1)[1]) is None:
                raise Unparsable("ibqueryerrors printed a link of an unknown form", line)
        elif line.startswith("##"):
            told |= _summary(line)
        else:
            raise Unparsable("ibqueryerrors printed a line of an unknown form", line)
    if "nodes_checked" not in told and not counting_only:
        raise Unparsable("ibqueryerrors printed no summary", text[-200:])
    return told


def _counters(line: str, start: int) -> dict[str, int]:
    # [SymbolErrorCounter == 4321] [PortXmitData == 3456 (13.500KB)] [PortRcvData == 15567487854894 (  infPB)]
    found = {}
    for match in re.finditer(r"\[(\w{1,64}) == (\d{1,20})(?: \([^)\]]{0,32}\))?\]|(\S)", line[start:]):
        if match[3]:
            raise Unparsable("ibqueryerrors printed a counter of an unknown form", line)
        found[OLD_NAMES.get(match[1], match[1])] = int(match[2])
    return found


def _summary(line: str) -> dict[str, Any]:
    # ## Summary: 11 nodes checked, 1 bad nodes found
    if match := re.match(r"## Summary: (\d{1,9}) nodes checked, (\d{1,9}) bad nodes found", line):
        return {"nodes_checked": int(match[1]), "bad_nodes": int(match[2])}
    # ##          24 ports checked, 2 ports have errors beyond threshold
    if match := re.match(r"##\s+(\d{1,9}) ports checked, (\d{1,9}) ports have errors beyond threshold", line):
        return {"ports_checked": int(match[1]), "bad_ports": int(match[2])}
    # ##          2 PMA query failures
    if match := re.match(r"##\s+(\d{1,9}) PMA query failures", line):
        return {"query_failures": int(match[1])}
    # ## Thresholds: SymbolErrorCounter=10    ## Suppressed: PortXmitWait
    if match := re.match(r"## (Thresholds|Suppressed):(.*)", line):
        return {match[1].lower(): match[2].split()}
    raise Unparsable("ibqueryerrors printed a summary of an unknown form", line)
