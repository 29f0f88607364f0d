"""Nodes of a job in doubt as a look shows them, written by hand: what hangs, spins, idles or works."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from clustertools.sources.job_look import GpuActivity, JobLook, NodeLook
from clustertools.sources.processes import Process
from clustertools.sources.stacks import Frame, Stack

#: power of 700 W, utilisation, memory traffic
WORKS, SPINS, IDLES = (560.0, 1.0, 0.45), (180.0, 1.0, 0.0), (80.0, 0.0, 0.0)


@dataclass
class Nodes:
    """`ranks` on each of `names`. Change a field and `look` again; `step` is what each look is further."""

    names: tuple[str, ...] = ("n1", "n2")
    ranks: int = 2
    gpu: tuple[float, float, float] | None = WORKS
    busy: float = 1.0
    moves: bool = True
    bytes_per_second: float | None = 1e9
    io_per_second: float = 0.0
    states: dict[int, str] = field(default_factory=dict)
    unseen: dict[str, str] = field(default_factory=dict)
    odd_gpus: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    time: float = 0.0
    looks: int = 0

    def look(self, seconds: float) -> JobLook:
        self.time += seconds
        self.looks += 1
        seen = [self._node(n, name) for n, name in enumerate(self.names) if name not in self.unseen]
        return JobLook(tuple(seen), dict(self.unseen))

    def _node(self, number: int, name: str) -> NodeLook:
        ranks = range(number * self.ranks, (number + 1) * self.ranks)
        line = self.looks if self.moves else 7
        frames = (Frame("all_reduce", "distributed_c10d.py", 2810), Frame("main", "train.py", line))
        moved = None if self.bytes_per_second is None else int(self.time * self.bytes_per_second)
        return NodeLook(
            name, self.time, "boot", {str(r): 100 + r for r in ranks},
            tuple(self._process(r) for r in ranks),
            tuple(Stack(100 + r, r, "MainThread", frames, "S") for r in ranks),
            tuple(self._gpu(name, index) for index in range(self.ranks)) if self.gpu else (),
            {} if moved is None else {"mlx5_0/1 in": moved, "mlx5_0/1 out": moved},
        )  # fmt: skip

    def _process(self, rank: int) -> Process:
        return Process(
            100 + rank, 1, 1, 1, self.states.get(rank, "S"), 5000 + rank, 0.0, self.time * self.busy, 1, None,
            "python", ("python", "train.py"), None, int(self.time * self.io_per_second), 0,
        )  # fmt: skip

    def _gpu(self, name: str, index: int) -> GpuActivity:
        assert self.gpu is not None
        power, used, memory = self.gpu
        gpu = GpuActivity(index, f"0000:{index:02x}:00.0", power, 700.0, 1700.0, 55.0, used, memory)
        return dataclasses.replace(gpu, **self.odd_gpus.get((name, index), {}))
