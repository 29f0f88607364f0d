"""What Slurm says of its nodes and of itself, through `scontrol`; Slurm 20.11 to 25.05.

    node = node_record(host, host.name)
    node.flags                 {"IDLE", "DRAIN"}

Form: `scontrol --oneliner show node`, one line a node of `Key=value` (slurm_sprint_node_table in Slurm's
src/api/node_info.c). Values may hold blanks and equal signs (OS, Reason, Comment, Extra), so only the keys
that Slurm itself writes begin a new value. What the environment says of output formats does not count: the
host port drops it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.host import Host

#: A controller that fails over answers within its MessageTimeout, by default 10 s.
DEADLINE_SECONDS = 8.0
#: Every key of that line, of all versions.
_KEYS = frozenset(
    (
        "NodeName Arch CoresPerSocket CPUAlloc CPUEfctv CPUTot CPULoad AvailableFeatures ActiveFeatures "
        "Gres GresDrain GresUsed NodeAddr NodeHostName Port Version OS RealMemory AllocMem FreeMem Sockets "
        "Boards CoreSpecCount CPUSpecList MemSpecLimit State ThreadsPerCore TmpDisk Weight Owner MCS_label "
        "Partitions NextState BootTime SlurmdStartTime LastBusyTime ResumeAfterTime CfgTRES AllocTRES "
        "CapWatts CurrentWatts AveWatts LowestJoules ConsumedJoules ExtSensorsJoules ExtSensorsWatts "
        "ExtSensorsTemp Reason Comment Extra InstanceId InstanceType ReservationName Topology CertFlags "
        "Parameters GPUSpec"
    ).split()
)
#: The states that a node is in one of (slurm.h, NODE_STATE_BASE); all else are flags beside it.
BASE_STATES = frozenset("UNKNOWN DOWN IDLE ALLOCATED ERROR MIXED FUTURE INVAL".split())


@dataclass(frozen=True, slots=True)
class SlurmNode:
    """One node. `flags` holds its base state too; `*` after the state is the flag NOT_RESPONDING.

    `gres` is what is configured: ("gpu:h100", 8). `reason` is without the "[who@when]" that ends it.
    """

    name: str
    host_name: str
    flags: frozenset[str]
    reason: str = ""
    reason_by: str = ""
    gres: tuple[tuple[str, int], ...] = ()
    version: str = ""

    @property
    def gpus(self) -> int:
        """GPUs that jobs can ask for by the name gpu."""
        return sum(count for name, count in self.gres if name == "gpu" or name.startswith("gpu:"))

    @property
    def is_bad(self) -> bool:
        """It takes no jobs, and nobody planned that: power saving and future nodes are planned."""
        planned = {"FUTURE", "POWERED_DOWN", "POWERING_DOWN", "POWERING_UP", "POWER_DOWN", "MAINTENANCE"}
        bad = {"DOWN", "DRAIN", "FAIL", "ERROR", "NOT_RESPONDING", "INVALID_REG", "INVAL", "UNKNOWN"}
        return bool(self.flags & bad) and not self.flags & planned


@dataclass(frozen=True, slots=True)
class Controller:
    """One slurmctld. `role` is "primary", "backup" or "backup2"."""

    role: str
    host: str
    is_up: bool


def scontrol(host: Host, *words: str) -> str:
    """What scontrol prints. Raises Absent without Slurm here, Unobservable when it does not answer."""
    done = host.run("scontrol", *words, timeout_seconds=DEADLINE_SECONDS)
    said = f"{done.stdout}\n{done.stderr}"
    # scontrol: fatal: Could not establish a configuration source
    if done.returncode and re.search(r"Could not establish a config|Unable to process configuration", said):
        raise Absent("the Slurm tools are installed, but this machine is in no Slurm cluster")
    if done.returncode and not done.stdout.strip():
        done.check()
    return done.stdout


def node_record(host: Host, name: str) -> SlurmNode | None:
    """How the controller sees the node `name`; None when it knows no such node.

    One request to slurmctld: a check that asks it runs every ten minutes, not each minute.
    """
    text = scontrol(host, "--oneliner", "show", "node", name)
    # Node gpu-999 not found
    if re.fullmatch(r"Node \S+ not found", text.strip()):
        return None
    found = list(parse_nodes(text))
    if len(found) != 1:
        raise Unparsable(f"scontrol told of {len(found)} nodes, not of one", text)
    return found[0]


def all_nodes(host: Host) -> list[SlurmNode]:
    """Every node of the cluster. Raises Unobservable when the controller does not answer."""
    return list(parse_nodes(scontrol(host, "--oneliner", "show", "node")))


def controllers(host: Host) -> list[Controller]:
    """What `scontrol ping` says of each slurmctld. Exit code 1 comes with those that are down."""
    return parse_ping(scontrol(host, "ping"))


def parse_ping(text: str) -> list[Controller]:
    """Raises Unparsable when no line is a controller's."""
    found = []
    for line in text.splitlines():
        # Slurmctld(primary) at head1 is UP
        # Slurmctld(primary/backup) at head1/head2 are UP/DOWN                (before 18.08)
        match = re.fullmatch(r"Slurmctld\(([\w/]+)\) at (\S+) (?:is|are) ([A-Z/]+)", line.strip())
        if match:
            parts = [word.split("/") for word in match.groups()]
            if len({len(part) for part in parts}) != 1:
                raise Unparsable("scontrol ping has an unknown form", line)
            found += [Controller(r, at, state == "UP") for r, at, state in zip(*parts, strict=True)]
        elif line.strip() and not line.strip().startswith("*"):
            raise Unparsable("scontrol ping has an unknown line", line)
    if not found:
        raise Unparsable("scontrol ping named no controller", text)
    return found


def parse_nodes(text: str) -> Iterator[SlurmNode]:
    """The nodes of `scontrol --oneliner show node`, which may be none. Raises Unparsable."""
    for line in text.splitlines():
        if not line.strip() or line.startswith("No nodes in the system"):
            continue
        if not line.startswith("NodeName="):
            raise Unparsable("scontrol show node has an unknown line", line)
        yield _node(_fields(line))


def _fields(line: str) -> dict[str, str]:
    # NodeName=gpu-001 Arch=x86_64 ... OS=Linux 5.15.0 #1 SMP ... State=IDLE+DRAIN ... Reason=a b [root@...]
    pieces = re.split(r"(?:^|(?<=\s))(\w{1,40})=", line)
    found: dict[str, list[str]] = {}
    value: list[str] = []
    for word, text in zip(pieces[1::2], pieces[2::2], strict=True):
        if word in _KEYS and word not in found:  # a reason may quote a key: the first is Slurm's own
            value = found[word] = [text]
        else:
            value += (word, "=", text)
    return {key: "".join(parts).strip() for key, parts in found.items()}


def _node(fields: dict[str, str]) -> SlurmNode:
    # a key that is new to us may follow
    state = fields.get("State", "").partition(" ")[0]
    # IDLE, MIXED+PLANNED, DOWN*+DRAIN, IDLE+CLOUD+POWERED_DOWN, ALLOCATED@ in old versions
    if not re.fullmatch(r"[A-Z_]+[*~#!%$@^-]*(\+[A-Z_0-9]+[*~#!%$@^-]*)*", state):
        raise Unparsable("scontrol show node has an unknown state", state)
    flags = {re.sub(r"[^A-Z_0-9]", "", word) for word in state.split("+")}
    if "*" in state:
        flags.add("NOT_RESPONDING")
    if "DRAINED" in flags or "DRAINING" in flags:
        flags.add("DRAIN")
    # gres/gpu count reported lower than configured (1 < 2) [root@2026-11-21T13:36:44]
    reason = re.fullmatch(r"(.*?)(?:\s*\[([^\[\]@]*)@[^\[\]]*\])?", fields.get("Reason", ""), re.DOTALL)
    assert reason is not None
    return SlurmNode(
        fields["NodeName"], fields.get("NodeHostName", ""), frozenset(flags), reason[1], reason[2] or "",
        tuple(gres_counts(fields.get("Gres", ""))), fields.get("Version", ""),
    )  # fmt: skip


def gres_counts(text: str) -> Iterator[tuple[str, int]]:
    """The kinds and counts of generic resources in Slurm's short form: ("gpu:h100", 8)."""
    # gpu:h100:8(S:0-1),nic:4     or (null); 2K, 3M for large counts
    for item in re.sub(r"\([^()]*\)", "", text).split(","):
        match = re.fullmatch(r"([^\s:]+(?::[^\s:]+)*?)(?::(\d{1,9})([KMG]?))?", item.strip())
        if match and item.strip() not in ("", "N/A"):
            size = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[match[3] or ""]
            yield match[1], int(match[2] or 1) * size


def step_pids(host: Host) -> set[int]:
    """The pids that belong to steps of jobs on this node, as its slurmd knows. Raises Unobservable."""
    done = host.run("scontrol", "listpids", timeout_seconds=DEADLINE_SECONDS)
    if "No job steps exist" in done.stderr + done.stdout:
        return set()
    found = set()
    for line in done.stdout.splitlines():
        # 4711     1042     batch    0       0
        words = line.split()
        if words and re.fullmatch(r"-?\d{1,9}", words[0]):
            found.add(int(words[0]))
        elif words and words[0] != "PID":
            raise Unparsable("scontrol listpids has an unknown line", line)
    if not found:
        done.check()
        raise Unobservable("scontrol listpids named no process")
    return found
