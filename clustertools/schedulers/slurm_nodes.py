"""What Slurm says of its nodes, and the two things that may be done to one: drain it, and take that back.

Commands only, each with a short deadline: slurmctld may be away, or not know the node yet, when a health
check runs. What could not be asked raises Unobservable.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from clustertools.errors import ActionFailed, Unobservable, Unparsable
from clustertools.host import Host
from clustertools.schedulers import NodeState
from clustertools.sources.slurm_queue import answer

#: sinfo and scontrol answer within milliseconds or wait for MessageTimeout (10 s by default, slurm.conf(5)).
COMMAND_SECONDS = 5.0

#: A list of ten thousand nodes takes sinfo a while.
LIST_SECONDS = 15.0

#: Jobs may begin there, now or when those that run have ended; a reservation that is not for maintenance is
#: somebody's who runs jobs in it. With `*` a node does not answer, with `!` or `%` it is being powered off;
#: `$`: a maintenance reservation holds it.
_GOOD = frozenset("idle mixed allocated completing planned reserved blocked".split())

# NodeName=n1 Arch=x86_64 ... State=MIXED+DRAIN ThreadsPerCore=1 ... Reason=bad fan [al@2026-11-21T13:47:45]
_STATE = re.compile(r"(?:^|\s)State=(\S+)")
_REASON = re.compile(r"(?:^|\s)Reason=(.*?) \[[^\s\[\]]+@[0-9T:-]+\](?:\s|$)")


@dataclass(frozen=True, slots=True)
class SlurmNode:
    """One node as Slurm has it: whether nothing new starts there, and the note beside it ("" for none)."""

    name: str
    is_drained: bool
    reason: str


def parse_states(text: str) -> dict[str, NodeState]:
    """The nodes of sinfo's `%N|%T|%E`, one line for each node and partition. Raises Unparsable."""
    found: dict[str, NodeState] = {}
    for line in text.splitlines():
        # n1|drained*|clustertools: GpuMissing the node: 7 of 8 GPUs     n2|mixed-|none
        name, _, rest = line.partition("|")
        state, bar, reason = rest.partition("|")
        word = re.fullmatch(r"([a-z_]+)([*~#!%$@^+-]*)", state)
        if not name or not bar or word is None:
            raise Unparsable("sinfo printed a line of an unknown form", line)
        is_good = word[1] in _GOOD and not set(word[2]) & set("*!%$")
        said = "" if reason.strip() == "none" else reason.strip()
        found[name] = NodeState(name, is_good, word[1].startswith("drain"), said, state)
    if not found:
        raise Unobservable("sinfo lists no node")
    return found


def is_down(node: NodeState) -> bool:
    """Slurm lost the node, or it failed: what ran on it is gone."""
    return node.state.startswith(("down", "fail", "error")) or "*" in node.state


class SlurmNodes:
    """Slurm's own list of nodes, through its commands on `host`."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def node(self, name: str) -> SlurmNode:
        """Raises Unobservable when Slurm does not answer or knows no such node."""
        done = self._host.run("scontrol", "-o", "show", "node", name, timeout_seconds=COMMAND_SECONDS)
        text = done.check().stdout
        state, reason = _STATE.search(text), _REASON.search(text)
        if state is None:
            raise Unparsable(f"scontrol show node {name} gave no state", text)
        # a node that is down or failing carries a note as well
        return SlurmNode(name, "DRAIN" in state[1].upper(), reason[1] if reason else "")

    def reasons(self) -> dict[str, str]:
        """Every node, with the reason of those that are drained, down or failing ("" for the others)."""
        done = self._host.run("sinfo", "-h", "-a", "-N", "-o", "%N|%E", timeout_seconds=COMMAND_SECONDS)
        found = {}
        for line in done.check().stdout.splitlines():
            # n1|clustertools: GpuMissing the node: 7 of 8 GPUs (node-health)
            name, bar, reason = line.partition("|")
            if not bar or not name.strip():
                raise Unparsable("sinfo printed a line of an unknown form", line)
            found[name.strip()] = "" if reason.strip() == "none" else reason.strip()
        if not found:
            raise Unobservable("sinfo lists no node")
        return found

    def states(self) -> dict[str, NodeState]:
        """Every node of the cluster, hidden partitions' too. Raises Unobservable, Unparsable."""
        options = ("--noheader", "--all", "--local", "--Node", "--format=%N|%T|%E")
        return parse_states(answer(self._host, "sinfo", *options, timeout_seconds=LIST_SECONDS).stdout)

    def drain(self, name: str, reason: str) -> None:
        """Let nothing new start on the node. Raises ActionFailed, and Unobservable when nobody answered."""
        self._update(name, "drain", f"reason={reason}")

    def undrain(self, name: str) -> None:
        """Take a drain back. One that is down for another cause stays down. Raises as `drain`."""
        self._update(name, "undrain")

    def _update(self, name: str, state: str, *more: str) -> None:
        argv = ("scontrol", "update", f"nodename={name}", f"state={state}", *more)
        done = self._host.run(*argv, timeout_seconds=COMMAND_SECONDS)
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
            raise ActionFailed(f"scontrol could not set {name} to {state}: {said[:200]}")
