"""What hardware a machine shows: its SMBIOS names and its GPUs on the PCI bus; no driver, no root."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from clustertools.catalog.hardware import Recognised, Seen, recognise
from clustertools.errors import Absent, Unobservable
from clustertools.host import Host
from clustertools.sources.pci import amd_devices, hexadecimal, nvidia_devices


def seen(host: Host) -> Seen:
    """What `catalog.hardware` recognises a machine by. Raises Unobservable when the bus cannot be read."""
    found = []
    for address in (*nvidia_devices(host), *amd_devices(host)):
        folder = f"/sys/bus/pci/devices/{address}"
        with contextlib.suppress(Absent):  # it was removed between the listing and the look
            vendor, device = (hexadecimal(host.read(f"{folder}/{name}")) for name in ("vendor", "device"))
            found.append(f"{vendor:04x}:{device:04x}")
    return Seen(_smbios(host, "sys_vendor"), _smbios(host, "product_name"), tuple(found))


def expectations(host: Host, said: Mapping[str, Any]) -> dict[str, Any]:
    """What is expected of this machine: what the catalogue knows of it, and over that what a site `said`.

    `said["hardware"]` names a row of the catalogue; "none" leaves the catalogue out.
    """
    return {**expected(host, said.get("hardware", "")).expect, **said}


def expected(host: Host, named: str = "") -> Recognised:
    """What the catalogue expects of this machine; nothing where the machine does not show what it is.

    Raises ConfigError when the catalogue has nothing of this name.
    """
    if named == "none":
        return Recognised()
    try:
        return recognise(seen(host), named)
    except Unobservable:
        return recognise(Seen(), named)


def _smbios(host: Host, name: str) -> str:
    try:
        return host.read(f"/sys/class/dmi/id/{name}").strip()
    except Unobservable:
        return ""  # an Arm machine with a device tree, a container
