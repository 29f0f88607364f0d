"""What two looks at a job's nodes say together: signs that it is stuck, and signs that it lives. Pure.

before = sample(look)              small and JSON-ready, kept until the next look
found = signs(before, sample(later), seconds=75.0)

Utilisation is no sign of work: it stays at 100 % while a collective spins (BLOOM). Power and memory traffic
are.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from clustertools.sources.job_look import GpuActivity, JobLook, NodeLook
from clustertools.sources.stacks import Stack

#: Nodes of which a sample is kept; of more, those that come first.
NODES_AT_MOST = 512
#: Stopped or hanging processes that are kept of a node.
_ODD_AT_MOST = 16
#: A GPU whose power is above this share of its limit works, and so does one with so much memory traffic. An
#: H100 takes 10-15 % of its limit when idle, 20-40 % when a collective spins on it, 60-100 % when it trains.
WORKING_POWER_RATIO = 0.5
WORKING_MEMORY_RATIO = 0.1
#: Of what this run's GPUs showed while it trained, where that is known.
WORKING_SHARE = 0.7
SPINNING_UTILISATION = 0.9
#: A process that uses less of a core than this is idle: a waiting rank still polls now and then.
IDLE_CPU_SHARE = 0.05
#: Less than this through all ports of a node is keep-alives, more than the other is a run that works.
FLAT_BYTES_PER_SECOND = 64 * 1024
BUSY_BYTES_PER_SECOND = 50 * 1024**2
#: Read or written between two looks: a checkpoint or data, not a log.
MOVED_BYTES = 64 * 1024**2

Sample = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Levels:
    """What this run's GPUs showed while it trained: medians of power by limit, and of memory traffic."""

    power_ratio: float | None = None
    memory_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Signs:
    """`certain` are stopped and hanging processes and spinning GPUs, `stuck` what fits a hang as well,
    `alive` what does not. `cpu_share` is the CPU use of a process on the busiest node, as a share of a core.
    """

    certain: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()
    alive: tuple[str, ...] = ()
    moves: tuple[str, ...] = ()
    cpu_share: float | None = None

    @property
    def is_idle(self) -> bool:
        """Nothing works, as far as could be seen; False when nobody knows."""
        return self.cpu_share is not None and self.cpu_share < IDLE_CPU_SHARE and not self.alive


def sample(look: JobLook, levels: Levels | None = None) -> dict[str, Any]:
    """What of a look is compared with the next one: node -> a few numbers."""
    return {node.node: _of_node(node, levels or Levels()) for node in look.nodes[:NODES_AT_MOST]}


def _of_node(node: NodeLook, levels: Levels) -> dict[str, Any]:
    own = [p for p in node.processes if not p.is_kernel]
    names = {pid: f"rank {rank}" for rank, pid in node.ranks.items()}
    odd = {
        str(p.pid): [p.state, p.start_ticks, names.get(p.pid, p.command)]
        for p in own
        if p.state in ("T", "D")
    }
    kinds = [_kind(gpu, levels) for gpu in node.gpus]
    return {
        "stacks": [len(node.stacks), _digest(node.stacks)],
        "odd": dict(list(odd.items())[:_ODD_AT_MOST]),
        "processes": [len(own), _digest((p.pid, p.start_ticks) for p in own)],
        "cpu": sum(p.cpu_seconds for p in own),
        "io": sum((p.read_bytes or 0) + (p.write_bytes or 0) for p in own),
        "gpus": {kind: kinds.count(kind) for kind in ("working", "idle", "spinning") if kind in kinds},
        "power": _median(_power_ratio(gpu) for gpu in node.gpus),
        "memory": _median(gpu.memory_utilization_ratio for gpu in node.gpus),
        "bytes": sum(node.port_bytes.values()) if node.port_bytes else None,
    }


def _digest(things: Iterable[Any]) -> str:
    told = sorted(
        repr((s.rank, s.pid, s.frames)) if isinstance(s, Stack) else repr(s) for s in things
    )  # fmt: skip
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16] if told else ""


def _median(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return round(statistics.median(known), 4) if known else None


def _power_ratio(gpu: GpuActivity) -> float | None:
    return gpu.power_watts / gpu.power_limit_watts if gpu.power_watts and gpu.power_limit_watts else None


def _kind(gpu: GpuActivity, levels: Levels) -> str:
    """`working`, `spinning`, `idle`, or "" when it tells too little."""
    power, memory, used = _power_ratio(gpu), gpu.memory_utilization_ratio, gpu.utilization_ratio
    if power is None and memory is None:
        return ""
    enough_power, enough_memory = WORKING_POWER_RATIO, WORKING_MEMORY_RATIO
    if levels.power_ratio is not None:
        enough_power = min(enough_power, WORKING_SHARE * levels.power_ratio)
    if levels.memory_ratio:
        enough_memory = WORKING_SHARE * levels.memory_ratio
    if (power is not None and power >= enough_power) or (memory is not None and memory >= enough_memory):
        return "working"
    return "spinning" if used is not None and used >= SPINNING_UTILISATION else "idle"


def levels_of(before: Sample) -> Levels:
    """What the GPUs of a sample showed, when most of them worked in it."""
    gpus = [node["gpus"] for node in before.values()]
    working = sum(g.get("working", 0) for g in gpus)
    if not working or working <= 0.5 * sum(sum(g.values()) for g in gpus):
        return Levels()
    return Levels(_median(n["power"] for n in before.values()), _median(n["memory"] for n in before.values()))


def signs(before: Sample, now: Sample, seconds: float) -> Signs:
    """Compare two samples of the same start of a run, `seconds` apart. Nodes not in both say nothing."""
    both = {name: (before[name], now[name]) for name in now if name in before}
    if not both or seconds <= 0:
        return Signs()
    share = _cpu_share(both, seconds)
    alive, spinning, idle = _gpus(both)
    moves = _moves(both, seconds)
    stuck = [*_stacks(both)]
    if idle and not (share is not None and share >= IDLE_CPU_SHARE):
        stuck.append(idle)
    if (flat := _flat(both, seconds)) and not (
        share is not None and share >= IDLE_CPU_SHARE and not spinning
    ):
        stuck.append(flat)
    certain = [*_odd(both, seconds), *([spinning] if spinning else [])]
    return Signs(tuple(certain), tuple(stuck), tuple(alive), tuple(moves), share)


_Both = Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]


def _cpu_share(both: _Both, seconds: float) -> float | None:
    """CPU use per process, of the busiest node whose processes are still the same."""
    shares = [
        max(0.0, b["cpu"] - a["cpu"]) / seconds / a["processes"][0]
        for a, b in both.values()
        if a["processes"][0] and a["processes"] == b["processes"]
    ]
    return max(shares, default=None)


def _odd(both: _Both, seconds: float) -> list[str]:
    """Processes that were stopped, or hung in the kernel, in both looks. One that moves bytes hangs not."""
    found = []
    for name, (a, b) in sorted(both.items()):
        for pid, (state, ticks, who) in b["odd"].items():
            if a["odd"].get(pid, [])[:2] != [state, ticks]:
                continue
            if state == "T":
                found.append(f"{who} on {name} (pid {pid}) is stopped by a signal, state T")
            elif b["io"] - a["io"] < MOVED_BYTES:
                found.append(f"{who} on {name} (pid {pid}) hangs in the kernel, state D")
    return found


def _stacks(both: _Both) -> list[str]:
    told = [(a["stacks"], b["stacks"]) for a, b in both.values() if a["stacks"][0] and b["stacks"][0]]
    ranks = sum(b[0] for _, b in told)
    if not told or len(told) < 0.5 * len(both) or any(a != b for a, b in told):
        return []
    return [f"all {ranks} ranks stand at the same line as in the sample before"]


def _gpus(both: _Both) -> tuple[list[str], str, str]:
    """Signs of life of the GPUs, that they spin, and that they idle."""
    counts = [{k: sum(n[i]["gpus"].get(k, 0) for n in both.values()) for k in _KINDS} for i in (0, 1)]
    total = sum(counts[1].values())
    if not total:
        return [], "", ""
    working = counts[1]["working"]
    if working > 0.5 * total:
        return [f"{working} of {total} GPUs work, by their power and memory traffic"], "", ""
    if working or counts[0]["working"]:
        return [], "", ""
    if counts[0]["spinning"] and counts[1]["spinning"]:
        told = (
            f"{counts[1]['spinning']} of {total} GPUs spin: fully used, but with no memory traffic or power"
        )
        return [], told + (", the others are idle" if counts[1]["idle"] else ""), ""
    return [], "", f"all {total} GPUs are idle"


_KINDS = ("working", "idle", "spinning")


def _flat(both: _Both, seconds: float) -> str:
    """Nothing goes through the ports of a run of several nodes."""
    rates = _rates(both, seconds)
    if len(both) < 2 or len(rates) < len(both) or max(rates) >= FLAT_BYTES_PER_SECOND:
        return ""
    return f"nothing goes through the network ports of its {len(rates)} nodes"


def _rates(both: _Both, seconds: float) -> list[float]:
    known = [(a["bytes"], b["bytes"]) for a, b in both.values()]
    return [(b - a) / seconds for a, b in known if a is not None and b is not None and b >= a]


def _moves(both: _Both, seconds: float) -> list[str]:
    """Bytes that move without being a sign of steps: data or a checkpoint, perhaps over the network."""
    found = []
    moved = max((b["io"] - a["io"] for a, b in both.values()), default=0)
    if moved >= MOVED_BYTES:
        found.append(f"its processes read or wrote {moved / 1024**2:.0f} MiB between two looks")
    rates = _rates(both, seconds)
    if len(both) > 1 and len(rates) == len(both) and min(rates) >= BUSY_BYTES_PER_SECOND:
        found.append(f"each of its nodes moves {min(rates) / 1024**2:.0f} MiB/s or more through its ports")
    return found
