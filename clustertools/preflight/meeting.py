"""Where the ranks of a collective meet: which address of which interface, and on which port. Pure."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from clustertools.errors import ConfigError
from clustertools.fleet.probing import Hello

#: Interfaces that never lead to another node.
_LOCAL = ("lo", "docker", "virbr", "veth", "br-", "cni", "flannel", "cali", "podman", "tun", "tap", "usb")
#: Names in the order in which they are tried: the fastest networks first.
_FAST = ("ib", "bond", "hsn", "rdma", "en", "eth")
#: Below the range that Linux hands out for outgoing connections (32768 to 60999 by default), above what
#: services are registered at.
PORTS = range(20000, 32000)


@dataclass(frozen=True, slots=True)
class MeetingPlace:
    """Each node's address, and the interface when all have it by the same name."""

    addresses: Mapping[str, str]
    interface: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """What tells gloo its interface. NCCL finds the fabric by itself and is only told what a person said."""
        return {"GLOO_SOCKET_IFNAME": self.interface} if self.interface else {}


def meeting_place(hellos: Mapping[str, Hello], interface: str = "") -> MeetingPlace:
    """The addresses at which these nodes can meet; the interface is `interface`, or is chosen.

    Chosen is one that all have by the same name, fast names first; else each node's first address that is
    not of itself alone. Raises ConfigError when a node has no such interface, with what it has.
    """
    usable = {node: dict(_usable(hello)) for node, hello in hellos.items()}
    if interface:
        lacking = sorted(node for node, has in usable.items() if interface not in has)
        if lacking:
            has = ", ".join(usable[lacking[0]]) or "none"
            raise ConfigError(
                f"{len(lacking)} of {len(usable)} nodes have no address on {interface}: {lacking[0]} has {has}"
            )
        return MeetingPlace({node: has[interface] for node, has in usable.items()}, interface)
    shared = set.intersection(*(set(has) for has in usable.values())) if usable else set()
    if shared:
        chosen = min(shared, key=_order)
        return MeetingPlace({node: has[chosen] for node, has in usable.items()}, chosen)
    alone = sorted(node for node, has in usable.items() if not has)
    if alone:
        raise ConfigError(f"{alone[0]} told no address at which another node could meet it")
    return MeetingPlace({node: has[min(has, key=_order)] for node, has in usable.items()})


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
    """Ports to meet at, each once, in an order of chance: a late rank of one round finds nobody of the next."""
    while True:
        yield from random.Random(seed).sample(PORTS, len(PORTS))


def collective_order(
    groups: Sequence[Sequence[str]], place: MeetingPlace, port: Iterator[int], **parameters: object
) -> dict[str, object]:
    """The order for one round: the first node of each group is where it meets."""
    meeting = [{"nodes": list(g), "address": place.addresses[g[0]], "port": next(port)} for g in groups]
    return {"probe": "collective", "groups": meeting, **parameters}
