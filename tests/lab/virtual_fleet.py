"""Hundreds of nodes that are only numbers: a Transport whose nodes answer as real ones do, at once.

    fleet = VirtualFleet(names, slow={"n7": 0.6}, dead={"n3"})
    report = examine(Asked(names), fleet, requests, tell)

What they say are lines of the same form as the bootstrap, `check --request -` and the prober write; the
tests over ssh, srun and this machine see to that. Speeds are a base figure, times what the node's or path's
fault leaves of it, with a little noise.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clustertools.fleet import Answer, Fate, Line
from clustertools.host import Completed
from clustertools.model import Finding, Status, Subject, Verdict
from clustertools.render.json_lines import json_line

BASE = {"gemm": 700e12, "memory": 2.9e12, "host_device": 52e9, "peer": 370e9, "collective": 40e9}


@dataclass
class VirtualFleet:
    """`slow`: node -> what is left of its network; `weak`: node -> what is left of its GPUs; `paths`: pair ->
    what is left between the two; `cut`: collectives with it hang; `cut_paths`: those with both hang; `wrong`:
    its data is wrong; `critical`: its passive checks find this code; `blind`: they cannot look; `away`: node
    -> how it cannot be reached; `dies`: its connection breaks at the first collective; `torchless`: its
    Python has no torch."""

    names: Sequence[str]
    slow: Mapping[str, float] = field(default_factory=dict)
    weak: Mapping[str, float] = field(default_factory=dict)
    paths: Mapping[tuple[str, str], float] = field(default_factory=dict)
    cut: Collection[str] = ()
    cut_paths: Collection[tuple[str, str]] = ()
    wrong: Collection[str] = ()
    critical: Mapping[str, str] = field(default_factory=dict)
    blind: Collection[str] = ()
    away: Mapping[str, Fate] = field(default_factory=dict)
    dies: Collection[str] = ()
    torchless: Collection[str] = ()
    seed: int = 1
    sigma: float = 0.01
    together_fails: bool = False
    tools: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.name = "virtual"
        self.chance = random.Random(self.seed)
        self.orders: list[dict[str, Any]] = []
        self.asked: list[tuple[str, ...]] = []

    def close(self) -> None:
        pass

    def run(
        self, nodes: Sequence[str], argv: Sequence[str], *, stdin: bytes = b"", timeout_seconds: float = 60.0
    ) -> Iterator[Answer]:
        self.asked.append(tuple(argv))
        for node in nodes:
            if node in self.away:
                yield Answer(node, self.away[node], reason=f"made {self.away[node].value}")
            elif "--request" in argv:
                yield self._completed(node, argv, self._checks(node))
            else:
                ready = {
                    "clustertools_bootstrap": 1,
                    "state": "ready",
                    "interpreter": "python3",
                    "path": "/x",
                }
                yield self._completed(node, argv, [ready])

    def _completed(self, node: str, argv: Sequence[str], lines: list[dict[str, Any]]) -> Answer:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        return Answer(node, Fate.COMPLETED, Completed(tuple(argv), 0, text, ""))

    def _checks(self, node: str) -> list[dict[str, Any]]:
        about, code, blind = Subject(node=node), self.critical.get(node), node in self.blind
        part = Subject(node=node, part="gpu@0000:3b:00.0")
        found = (Finding("gpu_count", code, part, Status.CRITICAL, "7 of 8 GPUs"),) if code else ()
        status = Status.CRITICAL if code else Status.UNKNOWN if blind else Status.OK
        verdict = Verdict("gpu_count", about, status, found, blind="permission denied" if blind else "")
        lines: list[tuple[str, Any]] = [
            ("verdict", verdict), ("facts", {"facts": {"kernel": "5.15"}}),
            ("end", {"verdicts": 1, "python": "3.11.7", "version": "0.1.0"}),
        ]  # fmt: skip
        return [json.loads(json_line(kind, data)) for kind, data in lines]

    def talk(self, nodes: Sequence[str], argv: Sequence[str]) -> VirtualConversation:
        return VirtualConversation(self, nodes)


class VirtualConversation:
    """The probers of a virtual fleet."""

    def __init__(self, fleet: VirtualFleet, nodes: Sequence[str]) -> None:
        self.fleet, self.nodes = fleet, list(nodes)
        self.waiting: list[Line | Answer] = []
        for number, node in enumerate(nodes):
            self._say(node, {"hello": self._hello(node, number)})

    def _hello(self, node: str, number: int) -> dict[str, Any]:
        devices = [
            {
                "index": i,
                "name": "NVIDIA H100 80GB HBM3",
                "pci": f"0000:{i + 16:02x}:00.0",
                "uuid": f"GPU-{node}-{i}",
            }
            for i in range(8)
        ]
        torch = None if node in self.fleet.torchless else "2.9.0"
        address = {"ib0": f"10.0.{number // 250}.{number % 250 + 1}"}
        return {
            "node": node,
            "python": "3.11.7",
            "torch": torch,
            "cuda": True,
            "devices": devices,
            "addresses": address,
            "tools": list(self.fleet.tools),
        }

    def _say(self, node: str, data: Mapping[str, Any]) -> None:
        self.waiting.append(Line(node, json.dumps(data)))

    def send(self, text: str) -> None:
        order = json.loads(text)
        self.fleet.orders.append(order)
        if order["probe"] == "clock":
            for node in order["nodes"]:
                times = {"head": order["head_time"], "received": time.time(), "sent": time.time()}
                self._say(node, {"id": order["id"], "node": node, "ending": "done", "clock": times})
        elif "groups" in order:
            for group in order["groups"]:
                self._collective(order, group["nodes"])
        else:
            for node in order["nodes"]:
                left = self.fleet.weak.get(node, 1.0)
                self._answer(order, node, "done", [self._figure(order["probe"], left, node=node)])

    def _collective(self, order: Mapping[str, Any], nodes: Sequence[str]) -> None:
        fleet = self.fleet
        apart = any(a in nodes and b in nodes for a, b in fleet.cut_paths)
        dying = [n for n in nodes if n in fleet.dies] if len(nodes) > 1 else []
        for node in dying:
            self.waiting.append(Answer(node, Fate.LOST, reason="the connection broke"))
        if len(nodes) > 1 and (dying or apart or any(n in fleet.cut for n in nodes)):
            for node in set(nodes) - set(dying):
                self._answer(order, node, "hang", detail="in the collective for 20 s")
            return
        wrong = [n for n in nodes if n in fleet.wrong]
        if wrong:
            for node in nodes:
                self._answer(order, node, "wrong-data", detail="4 elements are wrong", blamed=wrong)
            return
        if fleet.together_fails and len(nodes) == len(fleet.names):
            for node in nodes:
                self._answer(order, node, "crash", detail="ncclSystemError")
            return
        for node in nodes:
            self._answer(order, node, "done", list(self._figures(order, nodes)) if node == nodes[0] else [])

    def _figures(self, order: Mapping[str, Any], nodes: Sequence[str]) -> Iterator[dict[str, Any]]:
        if order["probe"] == "ib_write_bw":
            left = self._between(*nodes)
            yield self._figure("collective", left, size=8 << 20, kind="one way", nodes=list(nodes)) | {
                "metric": "rdma_write_bytes_per_second"
            }
            return
        for size in order.get("sizes_bytes", [1 << 30]):
            if order["collective"] == "pairs":
                for a, b in itertools.combinations(nodes, 2):
                    part = {"nodes": [a, b], "part": f"{a}-{b}"}
                    yield self._figure("collective", self._between(a, b), size=size, kind="pairs", **part)
            else:
                around = zip(nodes, [*nodes[1:], nodes[0]], strict=True)
                left = min((self._between(a, b) for a, b in around if a != b), default=1.0)
                yield self._figure(
                    "collective", left, size=size, kind=f"all_reduce {len(nodes)}", nodes=[nodes[0]]
                )

    def _between(self, a: str, b: str) -> float:
        fleet = self.fleet
        path = fleet.paths.get((a, b), fleet.paths.get((b, a), 1.0))
        return min(fleet.slow.get(a, 1.0), fleet.slow.get(b, 1.0), path)

    def _figure(
        self, probe: str, left: float, *, size: int = 0, kind: str = "", node: str = "", **more: Any
    ) -> dict[str, Any]:
        metric = "flops_per_second" if probe == "gemm" else "busbw_bytes_per_second"
        value = BASE[probe] * left * self.fleet.chance.lognormvariate(0, self.fleet.sigma)
        return {
            "metric": metric,
            "value": value,
            "size_bytes": size,
            "variant": kind or "bfloat16 8192",
            **more,
        }

    def _answer(
        self, order: Mapping[str, Any], node: str, ending: str, figures: Sequence[Any] = (), **more: Any
    ) -> None:
        self._say(node, {"id": order["id"], "node": node, "ending": ending, "figures": figures, **more})

    def receive(self, seconds: float) -> Iterator[Line | Answer]:
        while self.waiting:
            yield self.waiting.pop(0)

    def close(self) -> None:
        pass
