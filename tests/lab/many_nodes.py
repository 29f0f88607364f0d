"""The Slurm of a large cluster, recorded by nobody: what squeue and sinfo would say of its jobs and nodes.

    host = BigCluster(ManyJobs(folder, 1000), nodes=10_000)
    SlurmScheduler(host).runs(WANTED, {})

Every question but Slurm's goes to this machine, whose files are real. The answers are drawn once, by a seed:
jobs of 8 nodes and a few of 64, a fifth of them tasks of arrays, node lists with holes, and as many jobs
again that wait, have ended or are nobody's business.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from clustertools.host import Completed, Host, LocalHost, PassingHost
from clustertools.schedulers import RunSpec, Wanted
from tests.lab.many_jobs import ManyJobs

#: The tasks of an array are told apart by their number; all others by their name.
ARRAY = 200


def wanted(site: ManyJobs) -> tuple[Wanted, ...]:
    """What a config would say to have all runs of the site watched, and nothing else."""
    folder = str(site.folder)
    return (
        Wanted("big", name="pretrain-*", template=RunSpec("", checkpoint_dir=f"{folder}/%x/checkpoints")),
        Wanted(
            "sweep", name="sweep",
            template=RunSpec("", checkpoint_dir=f"{folder}/pretrain-%4a/checkpoints"),
        ),
    )  # fmt: skip


class BigCluster(PassingHost):
    """A host on which Slurm's commands know the runs of `site`, and `nodes` nodes."""

    def __init__(
        self, site: ManyJobs, nodes: int = 10_000, *, host: Host | None = None, seed: int = 1
    ) -> None:
        super().__init__(host or LocalHost("head"))
        self.site, self.nodes = site, nodes
        self.asked: list[str] = []
        self._random = random.Random(seed)
        self._free = list(range(nodes))
        self._rows = list(self._jobs())

    def run(self, *argv: str, timeout_seconds: float = 10.0, stdin: str = "") -> Completed:
        words = [word for word in argv if "=" not in word or word.startswith("-")]
        tool = next((word for word in words if word in ("squeue", "sinfo", "sacct", "scontrol")), "")
        if not tool:
            return self.host.run(*argv, timeout_seconds=timeout_seconds, stdin=stdin)
        self.asked.append(tool)
        if tool == "squeue":
            return Completed(argv, 0, self._squeue(argv), "")
        if tool == "sinfo":
            return Completed(argv, 0, self._sinfo(), "")
        return Completed(argv, 1, "", f"{tool}: error: not in this recording\n")

    def _squeue(self, argv: Sequence[str]) -> str:
        (form,) = (word.removeprefix("--Format=") for word in argv if word.startswith("--Format="))
        columns = re.findall(r"(\w+):0((?:<\w+>)+)", form)
        return "".join(
            "".join(f"{row.get(name, 'N/A')}{ends}" for name, ends in columns) + "\n" for row in self._rows
        )

    def _sinfo(self) -> str:
        lines = []
        for node in range(self.nodes):
            state = "drained" if node % 997 == 0 else "allocated" if node % 5 else "mixed"
            reason = "Kill task failed" if state == "drained" else "none"
            # once for each of its two partitions
            lines += [f"n{node:05d}|{state}|{reason}\n"] * 2
        return "".join(lines)

    def _jobs(self) -> Iterator[dict[str, str]]:
        count, began = self.site.count, self.site.now - 3600
        for number in range(count):
            row = self._row(100_000 + number, "RUNNING", began, self._take(64 if number % 50 == 0 else 8))
            row |= {"Name": self.site.name(number), "StdOut": str(self.site.log(number))}
            if number >= count - min(ARRAY, count // 5):
                row |= {"Name": "sweep", "ArrayJobID": "100000", "ArrayTaskID": str(number)}
            yield row
        for number in range(count):
            kind = ("PENDING", "COMPLETED", "RUNNING", "FAILED")[number % 4]
            row = self._row(200_000 + number, kind, began, self._take(1) if kind == "RUNNING" else [])
            yield row | {"Name": ("notebook", "build", "pretrain", "eval")[number % 4]}

    def _take(self, count: int) -> list[int]:
        """Nodes that are mostly neighbours."""
        start = self._random.randrange(max(1, len(self._free) - 2 * count))
        taken = sorted(self._random.sample(self._free[start : start + count + count // 4], count))
        self._free = [node for node in self._free if node not in taken]
        return taken

    def _row(self, job_id: int, state: str, began: float, nodes: list[int]) -> dict[str, str]:
        waits = state == "PENDING"
        return {
            "JobID": str(job_id), "ArrayJobID": str(job_id), "HetJobID": "0", "State": state,
            "Reason": "Priority" if waits else "None", "exit_code": "0" if state != "FAILED" else "256",
            "RestartCnt": "0", "Requeue": "1", "BatchFlag": "1", "PriorityLong": "4294901", "UserID": "1001",
            "UserName": "alice", "Partition": "gpu", "NumNodes": str(len(nodes) or 8),
            "StartTime": "N/A" if waits else str(int(began)),
            "EndTime": "N/A" if waits else str(int(began + (86400 if state == "RUNNING" else 60))),
            "EligibleTime": str(int(began) - 60), "SubmitTime": str(int(began) - 60),
            "NodeList": folded(nodes), "Name": "x", "Comment": "(null)", "admin_comment": "(null)",
            "WorkDir": str(self.site.folder), "StdOut": "/dev/null", "StdErr": "/dev/null",
        }  # fmt: skip


def folded(nodes: Sequence[int]) -> str:
    """Names as Slurm writes them: n[00001-00008,00011]."""
    spans: list[list[int]] = []
    for node in nodes:
        if spans and node == spans[-1][1] + 1:
            spans[-1][1] = node
        else:
            spans.append([node, node])
    inside = ",".join(f"{a:05d}" if a == b else f"{a:05d}-{b:05d}" for a, b in spans)
    return f"n[{inside}]" if len(nodes) > 1 else f"n{inside}"
