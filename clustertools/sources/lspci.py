"""What `lspci -vvv` says of Access Control Services (ACS) of the PCIe bridges; only root is told.

ACS sends transfers between two devices below a switch up to the root and back, so that the IOMMU sees them.
"""

from __future__ import annotations

import re

from clustertools.errors import Unparsable
from clustertools.model import pci_address


def acs(text: str) -> tuple[dict[str, list[str] | None], list[str]]:
    """Of each bridge by address what of ACS is on (`ReqRedir` ...), None without ACS; and those whose
    capabilities we were not told. Raises Unparsable.
    """
    bridges: dict[str, list[str] | None] = {}
    denied: list[str] = []
    address = ""
    for line in text.splitlines():
        line = line[:500]
        # 0000:17:00.0 PCI bridge: Broadcom / LSI PEX890xx PCIe Gen 5 Switch (rev b0) (prog-if 00 ...)
        head = re.match(r"((?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]) (PCI bridge)?", line)
        if head:
            address = pci_address(head[1]) if head[2] else ""
            if address:
                bridges[address] = None
        elif address and "Capabilities: <access denied>" in line:
            denied.append(address)
        #         ACSCtl: SrcValid- TransBlk- ReqRedir- CmpltRedir- UpstreamFwd- EgressCtrl- DirectTrans-
        elif address and (control := re.match(r"\s+ACSCtl:\s*(.*)", line)):
            words = control[1].split()
            if not words or not all(re.fullmatch(r"[A-Za-z]{1,20}[+-]", word) for word in words):
                raise Unparsable("lspci: the ACS controls have an unknown form", line)
            bridges[address] = [word[:-1] for word in words if word.endswith("+")]
    if not bridges:
        raise Unparsable("lspci: no PCI bridge", text)
    return bridges, denied
