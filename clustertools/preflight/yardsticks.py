"""What the figures of one preflight are held against: the hardware, others' figures, and the runs before."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clustertools import baselines, performance
from clustertools.baselines import Baselines, Offence, owner_of
from clustertools.errors import StoreError
from clustertools.fleet.probing import Hello
from clustertools.measurement import Figure
from clustertools.model import Status, gpu_part
from clustertools.performance_bounds import facts_from, measured_elsewhere, upper_bound
from clustertools.preflight_report import BAD, NodeResult, Remark


class Yardsticks:
    """Made once the probers have told what the nodes are. `path` None: nothing is remembered."""

    def __init__(
        self, hellos: Mapping[str, Hello], expects: Mapping[str, Mapping[str, Any]], path: Path | None
    ) -> None:
        facts = {
            node: facts_from(
                {"gpu_count": len(hello.devices), **expects.get(node, {})},
                hello.devices[0].name if hello.devices else "",
            )
            for node, hello in hellos.items()
        }
        self.path = path
        self.stored, self.problem = baselines.load(path) if path else (Baselines(), "")
        self._hellos = hellos
        self._who = owner_of(dict(_identities(hellos)), {n: _kind(hello) for n, hello in hellos.items()})
        self._bounds, self._elsewhere = upper_bound(facts), measured_elsewhere(facts)
        self._accepted: list[Figure] = []

    def assess(self, figures: Iterable[Figure]) -> performance.Assessment:
        """What these figures come to. They are all of one kind of test, of all nodes."""
        return performance.assess(
            figures, bounds=self._bounds, baselines=self.stored.usual(self._who), catalogue=self._elsewhere
        )

    def accept(self, figures: Iterable[Figure]) -> None:
        """Good figures, which are usual from the next preflight on."""
        self._accepted += figures

    def ran(self, probe: str, seconds: float, found_fault: bool) -> None:
        """What a probe cost and found: by this the next budget is spent."""
        self.stored = self.stored.with_run(probe, seconds, found_fault)

    def reputations(self) -> list[Remark]:
        """The GPUs that were bad before, wherever they sat then."""
        told = {
            node: [said for d in hello.devices if d.uuid and (said := self.stored.reputation(d.uuid))]
            for node, hello in self._hellos.items()
        }
        return [Remark(said, Status.OK, (node,)) for node, texts in told.items() for said in texts]

    def keep(self, results: Iterable[NodeResult]) -> str:
        """Write down what this preflight leaves for the next; what went wrong with that, if anything did."""
        if self.path is None:
            return self.problem
        now = time.time()
        self.stored = self.stored.updated(self._accepted, self._who, now)
        for result in results:
            for judged in result.judged if result.grade in BAD else ():
                uuid = self._uuid(result.node, judged.figure.part)
                if uuid and judged.grade in BAD:
                    offence = Offence(now, result.node, judged.grade, performance.name_of(judged.figure))
                    self.stored = self.stored.with_offence(uuid, offence)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            baselines.save(self.path, self.stored)
        except (StoreError, OSError) as exc:
            return f"the figures of this run are not kept for the next: {exc}"
        return self.problem

    def _uuid(self, node: str, part: str) -> str:
        return (
            dict(_identities({node: self._hellos[node]})).get((node, part), "")
            if node in self._hellos
            else ""
        )


def _identities(hellos: Mapping[str, Hello]) -> Iterable[tuple[tuple[str, str], str]]:
    for node, hello in hellos.items():
        for device in hello.devices:
            if device.uuid and device.pci:
                try:
                    yield (node, gpu_part(device.pci)), device.uuid
                except ValueError:
                    continue


def _kind(hello: Hello) -> str:
    gpu = hello.devices[0].name if hello.devices else "cpu"
    return f"{gpu} torch {hello.torch}"
