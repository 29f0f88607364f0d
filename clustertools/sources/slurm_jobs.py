"""What Slurm says of one job's nodes, of idle nodes and of the switches above them; Slurm 20.11 to 26.05.

    job = job_nodes(host, "4711")
    job.nodes, job.gpus             ("n1", "n2"), {"n1": 8, "n2": 8}
    idle_nodes(host, "batch")       ("n3", "n4")
    topology(host)["n1"]            ("leaf1", "spine")

Forms: `squeue` and `sinfo` with a format of our own; the job's share of each node in `scontrol --details
--oneliner show job` (src/scontrol/info_job.c); `scontrol show topology` (in src/plugins/topology).
Lists of names are unfolded by `scontrol show hostnames`: a name means here what it means to Slurm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from clustertools.errors import ConfigError, Unobservable, Unparsable
from clustertools.host import Host
from clustertools.sources.slurm import DEADLINE_SECONDS, SlurmNode, gres_counts, parse_nodes, scontrol

#: Gives the names that a folded list stands for.
Unfold = Callable[[str], tuple[str, ...]]

#: 4711, one task of an array 4711_3, one part of a heterogeneous job 4711+1
_JOB_ID = re.compile(r"\d{1,10}(?:[_+]\d{1,10})?")
#: No name, no state and no number of Slurm's holds a bar; what a user writes is not asked for.
_JOB_FORMAT = "%A|%T|%U|%u|%P|%N"
_IDLE_FORMAT = "%N|%T|%P|%b"

#: What a line of the topology may be about, that nodes lie under.
_HOLDERS = ("SwitchName", "BlockName", "AggregatedBlock", "RingName")


@dataclass(frozen=True, slots=True)
class JobAllocation:
    """The nodes that a job holds, in Slurm's order. `gpus`, `cpus`: how many of each node are the job's."""

    job_id: str
    state: str
    user: str
    user_id: int
    partition: str
    nodes: tuple[str, ...] = ()
    gpus: Mapping[str, int] = field(default_factory=dict)
    cpus: Mapping[str, int] = field(default_factory=dict)


def job_nodes(host: Host, job_id: str) -> JobAllocation:
    """What the job holds. Raises ConfigError when there is no such job, Unobservable, Unparsable."""
    if not _JOB_ID.fullmatch(job_id):
        raise ConfigError(f"job {job_id!r}: expected a job's number, as squeue shows it")
    try:
        said = _ask(
            host, "squeue", "--noheader", "--states=all", f"--jobs={job_id}", f"--format={_JOB_FORMAT}"
        )
    except Unobservable as exc:
        # slurm_load_jobs error: Invalid job id specified
        if "Invalid job id" in str(exc):
            raise ConfigError(f"job {job_id}: Slurm knows no such job (any more)") from exc
        raise
    words = parse_job(said, job_id)
    nodes = hostnames(host, words.pop())
    details = scontrol(host, "--details", "--oneliner", "show", "job", words[0])
    gpus = dict.fromkeys(nodes, 0)
    cpus = dict.fromkeys(nodes, 0)
    for folded, cores, gpu_count in parse_shares(details):
        for node in set(hostnames(host, folded)) & set(nodes):
            cpus[node], gpus[node] = cpus[node] + cores, gpus[node] + gpu_count
    return JobAllocation(words[0], words[1], words[3], int(words[2]), words[4], nodes, gpus, cpus)


def parse_job(text: str, job_id: str) -> list[str]:
    """The six words of the one job in squeue's answer. Raises ConfigError for many, Unparsable."""
    # 4711|RUNNING|1000|alice|batch|n[1-4]
    rows = [line.split("|") for line in text.splitlines() if line.strip()]
    if not rows:
        raise ConfigError(f"job {job_id}: Slurm knows no such job (any more)")
    if any(len(row) != 6 or not row[0].isdigit() or not row[2].isdigit() for row in rows):
        raise Unparsable("squeue did not answer in the format that it was asked for", text)
    if len(rows) > 1:
        raise ConfigError(f"job {job_id} has {len(rows)} parts: name one, as {job_id}_1 or {job_id}+0")
    return rows[0]


def parse_shares(text: str) -> Iterator[tuple[str, int, int]]:
    """(folded nodes, cores, GPUs) of a job, for each group of nodes that it has alike."""
    # Nodes=n[1-4] CPU_IDs=0-3,8 Mem=0 GRES=gpu:h100:2(IDX:0-1),nic:1 MinCPUsNode=1
    # Nodes=n5 CPU_IDs=0 Mem=0 GRES= MinCPUsNode=1
    for names, cores, gres in re.findall(r" Nodes=(\S+) CPU_IDs=([\d,-]*) Mem=\d* GRES=(\S*)", text):
        gpus = sum(n for kind, n in gres_counts(gres) if kind == "gpu" or kind.startswith("gpu:"))
        spans = (piece.partition("-") for piece in cores.split(",") if piece)
        yield names, sum(int(last or first) - int(first) + 1 for first, _, last in spans), gpus


def hostnames(host: Host, folded: str) -> tuple[str, ...]:
    """The names that a folded list stands for, in its order: `n[1-3]` -> n1, n2, n3."""
    if folded in ("", "(null)", "None assigned"):
        return ()
    if "[" not in folded:
        return tuple(folded.split(","))
    names = tuple(scontrol(host, "show", "hostnames", folded).split())
    if not names:
        raise Unparsable("scontrol could not unfold a list of nodes", folded)
    return names


def node_records(host: Host, nodes: Sequence[str]) -> dict[str, SlurmNode]:
    """How the controller sees each of these nodes; a name that it does not know is not in the answer."""
    if not nodes:
        return {}
    known = {node.name: node for node in parse_nodes(scontrol(host, "--oneliner", "show", "node"))}
    return {name: known[name] for name in nodes if name in known}


def idle_nodes(host: Host, partition: str = "", features: str = "") -> tuple[str, ...]:
    """Nodes on which nothing runs and that would take a job now, in Slurm's order.

    `features` are names, all of which a node must have, separated by commas. Nodes that sleep, do not
    answer, are planned for a waiting job or are drained do not count. Raises ConfigError for a partition
    that is none.
    """
    options = (f"--partition={partition}",) if partition else ()
    said = _ask(host, "sinfo", "--noheader", "--Node", "--exact", f"--format={_IDLE_FORMAT}", *options)
    if partition and not said.strip():
        raise ConfigError(f"partition {partition!r}: Slurm knows no such partition, or it has no nodes")
    wanted = {name.strip() for name in features.split(",")} - {""}
    return tuple(parse_idle(said, wanted))


def parse_idle(text: str, features: set[str]) -> dict[str, None]:
    """The idle nodes of sinfo's answer that have all the features. Raises Unparsable."""
    found: dict[str, None] = {}
    for line in text.splitlines():
        # n1|idle|main*|h100,ib       idle*: does not answer, idle~: powered off, and others
        words = line.strip().split("|")
        if len(words) != 4:
            raise Unparsable("sinfo did not answer in the format that it was asked for", line)
        # feature(2) is a feature's count
        has = {name.partition("(")[0] for name in words[3].split(",")}
        if words[1] == "idle" and features <= has:
            found[words[0]] = None  # a node stands there once for each of its partitions
    return found


def topology(host: Host) -> dict[str, tuple[str, ...]]:
    """Node -> the switches (or blocks) that it lies under, the nearest first; {} when Slurm has none."""
    done = host.run("scontrol", "show", "topology", timeout_seconds=DEADLINE_SECONDS)
    # scontrol: error: No topology information available
    if "No topology information" in done.stderr + done.stdout:
        return {}
    return parse_topology(done.check().stdout, lambda folded: hostnames(host, folded))


def parse_topology(text: str, unfold: Unfold) -> dict[str, tuple[str, ...]]:
    """Of all that holds a node, what holds the fewest nodes is nearest. Raises Unparsable."""
    above: dict[str, list[tuple[int, int, str]]] = {}
    for line in text.splitlines():
        # SwitchName=leaf1 Level=0 LinkSpeed=1 Nodes=n[1-2]
        # SwitchName=spine Level=1 LinkSpeed=1 Nodes=n[1-4] Switches=leaf[1-2]
        # BlockName=b1 BlockIndex=0 Nodes=n[1-2] BlockSize=2          (24.05 on)
        # AggregatedBlock=b1,b2 BlockIndex=0 Nodes=n[1-4] BlockSize=4
        # RingName=r1 Nodes=n[1-8] RingSize=8                         (26.05 on)
        words = dict(word.partition("=")[::2] for word in line.split())
        kind = next((kind for kind in _HOLDERS if kind in words), "")
        if kind and words.get("Level", "0").isdecimal():
            nodes = unfold(words.get("Nodes", ""))
            for node in nodes:
                above.setdefault(node, []).append((len(nodes), int(words.get("Level", 0)), words[kind]))
        # TorusName=t Dims=4x4x4 Nodes=n[1-64]: neighbours, and no switch
        elif words and line.split("=")[0] != "TorusName":
            raise Unparsable("scontrol show topology has an unknown line", line)
    return {node: tuple(name for *_, name in sorted(found)) for node, found in above.items()}


def _ask(host: Host, *argv: str) -> str:
    return host.run(*argv, timeout_seconds=DEADLINE_SECONDS).check().stdout
