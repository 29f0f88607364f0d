"""One run of `clustertools preflight` in a NetLab, and a launch that leaves behind on which nodes it ran."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.netlab import NetLab

#: Small messages, since every byte costs a core that all nodes share; a good link takes 45 ms for one.
OPTIONS = ("--json", "--python", sys.executable, "--interface", "eth1", "--sizes", "1MiB")
SECONDS = 240.0
#: Where the faults lie is drawn anew each time. The variable draws it again.
SEED = int(os.environ.get("CLUSTERTOOLS_SEED", "") or random.SystemRandom().randrange(10**6))
#: A launcher over ssh: a file for each node that it was given, made on that node.
BY_SSH = 'for node in $(echo "$2" | tr , " "); do ssh "$node" touch "$1/\\$(hostname)"; done'
BY_SRUN = 'touch "$1/$(hostname)"'


def drawn(test: str) -> random.Random:
    """The chance of one test; what drew it is shown when it fails."""
    print(f"CLUSTERTOOLS_SEED={SEED}")
    return random.Random(f"{SEED} {test}")


@dataclass(frozen=True)
class Preflight:
    """How it ended: exit code, the report as JSON, and the nodes on which the launch ran."""

    code: int
    report: Mapping[str, Any]
    started: frozenset[str]
    said: str

    @property
    def verdict(self) -> dict[str, Any]:
        return dict(self.report["verdict"])

    def grades(self) -> dict[str, str]:
        """Of the nodes that are not good."""
        return {n["node"]: n["grade"] for n in self.report["nodes"] if n["grade"] != "good"}

    def fates(self) -> dict[str, str]:
        """Of the nodes that are not there."""
        return {n["node"]: n["fate"] for n in self.report["nodes"] if n["fate"] != "completed"}

    def __repr__(self) -> str:
        lines = [f"exit code {self.code}", self.verdict["sentence"], f"started on {sorted(self.started)}"]
        lines += [f"suspect {s['kind']} {s['names']}: {s['because']}" for s in self.report["suspects"]]
        lines += [f"{n['node']}: {n['reasons']}" for n in self.report["nodes"] if n["grade"] != "good"]
        for told in self.report["rounds"]:
            groups = [(" ".join(g["nodes"]), g["grade"], g["ratio"]) for g in told["groups"]]
            lines.append(f"{told['elapsed_seconds']:.1f} s, {told['why']}: {groups}")
        return "\n".join([*lines, self.said])

    @classmethod
    def of(cls, code: int, said: str, started: Path) -> Preflight:
        """From what the command printed. The report is one line of JSON; the launcher may say more."""
        reports = [line for line in said.splitlines() if line.startswith('{"schema"')]
        assert len(reports) == 1, said
        names = frozenset(path.name for path in started.iterdir())
        return cls(code, json.loads(reports[0]), names, said.replace(reports[0], ""))


def over_ssh(
    lab: NetLab, started: Path, *words: str, stages: str = "fabric",
    meanwhile: Callable[[], object] = lambda: None,
) -> Preflight:  # fmt: skip
    """Run it on the head; `meanwhile` is called once it runs. `started` is a new folder for the launch."""
    started.mkdir()
    launch = ("sh", "-c", BY_SSH, "launch", str(started), "{good_nodes_comma}")
    argv = ("clustertools", "preflight", *OPTIONS, "--stages", stages, "--connect-timeout", "3s", *words)
    with lab.popen("head", *argv, "--", *launch, stderr=subprocess.STDOUT) as child:
        try:
            meanwhile()
            said, _ = child.communicate(timeout=SECONDS)
        except BaseException:
            child.kill()
            raise
    return Preflight.of(child.returncode, said, started)


def under_slurm(started: Path, *words: str) -> tuple[str, ...]:
    """The command line with an srun as its launch, for the head or for a job script."""
    started.mkdir()
    return (
        "env", f"CLUSTERTOOLS_STATE={started.parent}/state",
        str(Path(sys.executable).parent / "clustertools"), "preflight", *OPTIONS, *words,
        "--stages", "fabric",
        "--", "srun", "sh", "-c", BY_SRUN, "launch", str(started),
    )  # fmt: skip
