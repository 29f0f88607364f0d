"""Where the ranks of a collective meet: which address of which interface, and on which port. Pure."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterator, Mapping, Sequence

from clustertools.errors import ConfigError
from clustertools.fleet.probing import Hello

#: Interfaces that never lead to another node.
_LOCAL = ("lo", "docker", "virbr", "veth", "br-", "cni", "flannel", "cali", "podman", "tun", "tap", "usb")
#: Names in the order in which they are tried: the fastest networks first.
_FAST = ("ib", "bond", "hsn", "rdma", "en", "eth")
#: Below the range that Linux hands out for outgoing connections (32768 to 60999 by default), above what
#: services are registered at.
PORTS = range(20000, 32000)
#: Node -> the address at which the others can meet it.
MeetingPlace = Mapping[str, str]


def meeting_place(hellos: Mapping[str, Hello], interface: str = "") -> MeetingPlace:
    """The addresses at which these nodes can meet; who has none that leads to another node is left out.

    With `interface` it is that of this name; otherwise one that all have by the same name, fast names first,
    or else each node's first. Raises ConfigError when no node has an address on `interface`.
    """
    usable = {node: has for node, hello in hellos.items() if (has := dict(_usable(hello)))}
    if interface and not any(interface in has for has in usable.values()):
        seen = ", ".join(sorted({name for has in usable.values() for name in has})) or "none"
        raise ConfigError(f"no node has an address on {interface}; there are: {seen}")
    shared = set.intersection(*(set(has) for has in usable.values())) if usable else set()
    chosen = interface or min(shared, key=_order, default="")
    if chosen:
        return {node: has[chosen] for node, has in usable.items() if chosen in has}
    return {node: has[min(has, key=_order)] for node, has in usable.items()}


def _usable(hello: Hello) -> Iterator[tuple[str, str]]:
    for name, address in hello.addresses.items():
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            continue
        if not (name.startswith(_LOCAL) or parsed.is_loopback or parsed.is_link_local):
            yield name, address


def _order(name: str) -> tuple[int, str]:
    return next((i for i, start in enumerate(_FAST) if name.startswith(start)), len(_FAST)), name


def ports(seed: int) -> Iterator[int]:
    """Ports to meet at, each once, in order by chance: a late rank of one round meets nobody of the next."""
    while True:
        yield from random.Random(seed).sample(PORTS, len(PORTS))


def group_order(
    probe: str,
    groups: Sequence[Sequence[str]],
    place: MeetingPlace,
    port: Iterator[int],
    **parameters: object,
) -> dict[str, object]:
    """The order for one round: the first node of each group is where it meets."""
    meeting = [{"nodes": list(g), "address": place[g[0]], "port": next(port)} for g in groups]
    return {"probe": probe, "groups": meeting, **parameters}
