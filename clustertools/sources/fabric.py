"""The InfiniBand fabric as one value: switches, adapters, and the link between each two ports.

    fabric = parse(host.run("iblinkinfo", "-l").stdout)
    fabric.peer((guid, 1))            the port at the other end of the cable
    changes(golden, fabric)           what is missing, down or cabled otherwise

It is built from what `iblinkinfo -l` or `ibnetdiscover` (either form) says; all give the same graph.
"""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from clustertools.errors import Absent, Unparsable
from clustertools.host import Host
from clustertools.sources.tools import iblinkinfo, ibnetdiscover

#: GUID (a switch has one for all its ports, an adapter one for each) and number of a port.
PortId = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Port:
    """One port. `width` and `lane_gbps` are None when it is down; `could_*` is what both ends are able to."""

    guid: int
    number: int
    node: str
    kind: str
    lid: int = 0
    state: str = ""
    physical_state: str = ""
    width: int | None = None
    lane_gbps: float | None = None
    could_width: int | None = None
    could_lane_gbps: float | None = None
    peer: PortId | None = None

    @property
    def id(self) -> PortId:
        return self.guid, self.number

    @property
    def host(self) -> str:
        """The machine of an adapter, by its NodeDescription ("node0007 mlx5_0"); empty: not told."""
        words = self.node.split()
        if self.kind != "ca" or not words or "Mellanox Technologies" in self.node:
            return ""
        return words[0][:64]


@dataclass(frozen=True)
class Fabric:
    """All ports by their id, and what the tools complained of while they looked.

    `unlisted` are the ports that were only named as somebody's peer: none in a whole sweep.
    """

    ports: Mapping[PortId, Port]
    complaints: tuple[str, ...] = ()
    unlisted: tuple[PortId, ...] = ()

    @functools.cached_property
    def switches(self) -> dict[int, str]:
        """GUID -> name of each switch; the name is its GUID where it has none of its own."""
        names = {p.guid: short_name(p.node) for p in self.ports.values() if p.kind == "switch"}
        often = Counter(names.values())
        return {g: n if n and often[n] == 1 else f"0x{g:016x}" for g, n in names.items()}

    @functools.cached_property
    def by_name(self) -> dict[tuple[str, int], PortId]:
        """(node's name, number) -> port, where no two nodes have the name."""
        owners: dict[tuple[str, int], set[int]] = defaultdict(set)
        for port in self.ports.values():
            owners[port.node, port.number].add(port.guid)
        return {key: (next(iter(guids)), key[1]) for key, guids in owners.items() if len(guids) == 1}

    def peer(self, port: PortId) -> Port | None:
        """The port at the other end of the cable."""
        here = self.ports.get(port)
        return self.ports.get(here.peer) if here and here.peer else None

    def links(self) -> list[tuple[Port, Port]]:
        """Every link once: the switch before the adapter, else the smaller GUID first."""
        found = []
        for port in self.ports.values():
            other = self.peer(port.id)
            if other and _first(port) < _first(other):
                found.append((port, other))
        return found

    def label(self, port: Port) -> str:
        """Where a person goes: "leaf003/12", or "node0007 mlx5_0" for an adapter's port."""
        if port.kind == "switch":
            return f"{self.switches[port.guid]}/{port.number}"
        return port.node[:80]

    def place(self, port: Port) -> str:
        """The switch port that leads to an adapter, else the port itself: the part of a finding."""
        other = self.peer(port.id)
        return self.label(other if other and port.kind != "switch" and other.kind == "switch" else port)

    def hosts(self) -> dict[str, list[Port]]:
        """The adapters' ports of each machine."""
        found: dict[str, list[Port]] = defaultdict(list)
        for port in self.ports.values():
            if port.host:
                found[port.host].append(port)
        return dict(found)

    def hosts_behind(self, switch: int) -> dict[int, Port]:
        """Number of the switch's port -> the adapter's port there."""
        here = (p for p in self.ports.values() if p.guid == switch)
        there = ((p.number, self.peer(p.id)) for p in here)
        return {number: other for number, other in there if other and other.kind == "ca"}


def _first(port: Port) -> tuple[bool, int, int]:
    return port.kind != "switch", port.guid, port.number


def short_name(node: str) -> str:
    """The name that a person gave a switch: sw01 of "MF0;sw01:MQM8700/U1"; empty for the maker's text."""
    if "Mellanox Technologies" in node or not node.strip():
        return ""
    # MF0;sw01:MQM9700/U2: the second of the two switches in one housing
    managed = re.fullmatch(r"[\w-]{1,8};(.{1,64}?):([^:/]{1,32})/U(\d{1,2})", node)
    name = node if managed is None else managed[1] + (f":U{managed[3]}" if managed[3] != "1" else "")
    return re.sub(r"[^\w.:-]+", "_", name.strip())[:64]


def parse(text: str) -> Fabric:
    """A fabric out of `iblinkinfo -l`, `ibnetdiscover` or `ibnetdiscover -p`.

    Raises Unparsable when it is none of them or has lines of an unknown form, or names no port.
    """
    if ibnetdiscover.recognise(text):
        told = ibnetdiscover.read(text)
    elif iblinkinfo.recognise(text):
        told = iblinkinfo.read(text)
        if any(row["guid"] is None or (row["peer"] and row["peer"]["guid"] is None) for row in told["ports"]):
            raise Unparsable("iblinkinfo without -l does not tell the GUIDs of the other ends")
    else:
        raise Unparsable("neither iblinkinfo nor ibnetdiscover printed this", text)
    if not told["ports"]:
        raise Unparsable("the fabric has no port", text)
    return build(told["ports"], told["complaints"])


def build(rows: Iterable[Mapping[str, Any]], complaints: Iterable[str] = ()) -> Fabric:
    """A fabric from the rows of the readers. A port that is only named as a peer is in it too."""
    found: dict[PortId, dict[str, Any]] = {}
    listed: set[PortId] = set()
    numbers: dict[int, set[int]] = defaultdict(set)
    for row in rows:
        peer = row["peer"]
        ends = [(row, peer)] + ([({**row, **peer, "could_be": row["could_be"]}, row)] if peer else [])
        listed.add((row["guid"], row["port"]))
        for own, (here, there) in enumerate(ends):
            numbers[here["guid"]].add(here["port"])
            if own and (here["guid"], here["port"]) in found:
                continue
            found[here["guid"], here["port"]] = {
                "node": here["name"], "kind": here.get("kind", "") if not own else peer.get("kind", ""),
                "lid": here["lid"], "state": here["state"], "physical_state": here["physical_state"],
                "width": here["width"], "lane_gbps": here["lane_gbps"],
                "could_width": here["could_be"].get("width"),
                "could_lane_gbps": here["could_be"].get("lane_gbps"),
                "peer": (there["guid"], there["port"]) if there else None,
            }  # fmt: skip
    ports = {}
    for (guid, number), told in found.items():
        # iblinkinfo -l does not say what a node is: only a switch has one GUID for several ports
        told["kind"] = told["kind"] or ("switch" if len(numbers[guid]) > 1 else "ca")
        if told["kind"] == "ca" and "Aggregation Node" in told["node"]:
            told["kind"] = "aggregation"  # a switch's own processor (SHARP), listed as an adapter
        ports[guid, number] = Port(guid, number, **told)
    return Fabric(ports, tuple(complaints), tuple(sorted(ports.keys() - listed)))


# ------------------------------------------------------------------ two fabrics


@dataclass(frozen=True)
class Changes:
    """How a fabric differs from the golden one. Ports are the golden fabric's, unless said otherwise."""

    switches_missing: dict[int, str]
    adapters_missing: list[Port]
    links_down: list[tuple[Port, Port]]
    #: golden port, golden peer, and the port that is there now
    moved: list[tuple[Port, Port, Port]]
    #: as they are now, and what the golden fabric had
    slower: list[tuple[Port, Port]]
    new_nodes: list[str]


def changes(golden: Fabric, now: Fabric) -> Changes:
    """Compare link by link. A node is known by its GUID, or by its name when its hardware was replaced."""
    same = {port: _counterpart(port, now) for port in golden.ports.values()}
    gone = {
        guid: name
        for guid, name in golden.switches.items()
        if not any(same[p] for p in golden.ports.values() if p.guid == guid)
    }
    lost = [port for port, here in same.items() if here is None and port.kind == "ca"]
    down, moved, slower = [], [], []
    for here, there in golden.links():
        near, far = same[here], same[there]
        if near is None or far is None:
            continue
        if near.peer == far.id:
            if (near.width or 0) * (near.lane_gbps or 0) < (here.width or 0) * (here.lane_gbps or 0):
                slower.append((near, here))
            continue
        at_near, at_far = now.peer(near.id), now.peer(far.id)
        if at_near is None and at_far is None:
            down.append((here, there))
        elif there.kind == "ca":
            # said of the adapter: the switch's port may have got another one
            if at_far is not None:
                moved.append((there, here, at_far))
            else:
                down.append((here, there))
        elif at_near is not None:
            moved.append((here, there, at_near))
        elif at_far is not None:
            moved.append((there, here, at_far))
    known = {p.guid for p in same.values() if p}
    new = sorted({p.node for p in now.ports.values() if p.guid not in known and p.kind in ("ca", "switch")})
    return Changes(gone, lost, down, moved, slower, new)


def _counterpart(port: Port, now: Fabric) -> Port | None:
    if port.id in now.ports:
        return now.ports[port.id]
    if port.host or short_name(port.node):
        return now.ports.get(now.by_name.get((port.node, port.number), (0, 0)))
    return None


# ------------------------------------------------------------------ counters

#: Counter -> the limit that it is judged by. PortXmitWait (congestion) and PortRcvSwitchRelayErrors
#: (multicast that comes back) are not here: they grow on healthy fabrics.
COUNTERS = {
    "SymbolErrorCounter": "symbol_errors_per_hour",
    "PortRcvErrors": "receive_errors_per_hour",
    "LinkErrorRecoveryCounter": "link_recoveries_per_hour",
    "LinkDownedCounter": "link_downs",
    "LocalLinkIntegrityErrors": "integrity_errors",
    "ExcessiveBufferOverrunErrors": "integrity_errors",
    "PortXmitDiscards": "discards_per_second",
}


def too_fast(
    limits: object, grown: Mapping[str, tuple[float, float]], *, host_link: bool = True
) -> list[str]:
    """In words, which of a port's counters grew faster than `limits` allow; those without a limit are let be.

    `grown` is (how much, how much a second) by counter. A host's reboot takes its link down, so ports that
    lead to one may have a limit of their own, `host_link_downs`.
    """
    found = []
    for counter, (delta, per_second) in grown.items():
        key = COUNTERS[counter]
        key = "host_link_downs" if key == "link_downs" and host_link else key
        limit = getattr(limits, key, None)
        rate, unit = delta, "since the last look"
        if key.endswith("_per_hour"):
            rate, unit = per_second * 3600, "an hour"
        elif key.endswith("_per_second"):
            rate, unit = per_second, "a second"
        # of two looks that were close together a rate is believed when there was more than a small burst
        if limit is not None and rate > limit and (delta > 10 or unit == "since the last look"):
            found.append(f"{counter} {rate:.0f} {unit} (limit {limit:g})")
    return found


# ------------------------------------------------------------------ this machine's ports


@dataclass(frozen=True, slots=True)
class LocalPort:
    """A port of this machine that management datagrams can be sent through. `name` is "mlx5_0/1"."""

    device: str
    number: int
    state: str
    physical_state: str

    @property
    def name(self) -> str:
        return f"{self.device}/{self.number}"

    @property
    def has_link(self) -> bool:
        return self.physical_state == "LinkUp"

    @property
    def argv(self) -> tuple[str, ...]:
        """What tells a tool of infiniband-diags to use this port."""
        return "-C", self.device, "-P", str(self.number)


#: PCI device ids of NVIDIA's virtual functions, ConnectX-4 to the common one of ConnectX-6 Dx and later (the
#: PCI ID repository). Their host does not let them send management datagrams to the fabric.
_VIRTUAL_FUNCTIONS = frozenset(("0x1014", "0x1016", "0x1018", "0x101a", "0x101c", "0x101e"))


def _is_virtual(host: Host, device: str) -> bool:
    try:
        return host.read(f"/sys/class/infiniband/{device}/device/device").strip() in _VIRTUAL_FUNCTIONS
    except Absent:
        return False


def local_ports(host: Host) -> list[LocalPort]:
    """The InfiniBand ports with a umad device in /dev, by name; none where there is no InfiniBand.

    /sys/class/infiniband_mad/umad*/{ibdev,port} and /sys/class/infiniband/DEV/ports/N/{link_layer,state,
    phys_state} (kernel, Documentation/ABI/stable/sysfs-class-infiniband).
    """
    found = []
    known = host.glob("/sys/class/infiniband_mad/umad[0-9]*/ibdev")
    # in a container sysfs shows the machine's ports, and /dev only those that it was given
    usable = {path.rsplit("/", 1)[1] for path in host.glob("/dev/infiniband/umad[0-9]*")} if known else set()
    for path in known:
        if path.split("/")[4] not in usable:
            continue
        try:
            device = host.read(path).strip()
            number = host.read(path.replace("/ibdev", "/port")).strip()
            if not re.fullmatch(r"[\w.-]{1,64}", device) or not re.fullmatch(r"\d{1,3}", number):
                raise Unparsable(f"{path} names no port", f"{device}/{number}")
            folder = f"/sys/class/infiniband/{device}/ports/{number}"
            if host.read(f"{folder}/link_layer").strip() != "InfiniBand" or _is_virtual(host, device):
                continue
            # 4: ACTIVE        5: LinkUp
            words = [host.read(f"{folder}/{name}").strip() for name in ("state", "phys_state")]
        except Absent:
            continue  # taken out between the list and the look; how many there should be is another check's
        states = [re.fullmatch(r"\d{1,2}: ?(.{0,40})", word) for word in words]
        if states[0] is None or states[1] is None:
            raise Unparsable(f"{folder} has a state of an unknown form", " ".join(words))
        found.append(LocalPort(device, int(number), states[0][1].upper(), states[1][1]))
    return sorted(found, key=lambda port: port.name)


def neighbour(host: Host, port: LocalPort) -> tuple[Port, Port | None]:
    """The port as the fabric knows it, and the one at the other end of its cable. Asks only these two.

    Raises Unobservable when the tool cannot, Unparsable when it does not list the port.
    """
    done = host.run("iblinkinfo", "-l", *port.argv, "-D", "0", timeout_seconds=15).check()
    # of an adapter with two ports both are listed, and nothing else
    rows = [row for row in iblinkinfo.read(done.stdout)["ports"] if row["port"] == port.number]
    if not rows or rows[0]["guid"] is None:
        raise Unparsable(f"iblinkinfo does not list {port.name}", done.stdout)
    fabric = build(rows[:1])
    here = fabric.ports[rows[0]["guid"], port.number]
    return here, fabric.peer(here.id)
