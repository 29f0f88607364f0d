"""What `fi_info -p efa` prints on an EC2 instance with EFA devices."""

from __future__ import annotations

from typing import Any

from tests.lab.parts import Shape

PROVENANCE = "the form of fi_info(1), libfabric 1.22"

SAID = """provider: efa
    fabric: efa
    domain: rdmap79s0-rdm
    version: 122.0
    type: FI_EP_RDM
    protocol: FI_PROTO_EFA
"""


def commands(shape: Shape) -> dict[tuple[str, ...], dict[str, Any]]:
    if shape.vendor != "Amazon EC2":
        return {}
    return {("fi_info", "-p", "efa"): {"stdout": SAID, "returncode": 0, "seconds": 0.2}}
