"""Many nodes at once: what a transport is, and what comes back from it.

    with SshTransport(...) as transport:
        for answer in transport.run(nodes("gpu[001-128]"), ("uptime",)):
            print(answer.node, answer.completed.stdout if answer.completed else answer.reason)

A transport runs one argv on a set of nodes, or holds a conversation with one program on each. A node that
does not answer is an answer of its own, never an exception: the others go on.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from clustertools.host import Completed

#: Tells a program on a node by which name the head knows that node; Slurm's own SLURMD_NODENAME does too.
NODE_VARIABLE = "CLUSTERTOOLS_NODE"


class Fate(str, enum.Enum):
    """How far one node came. Each is told by itself: they have different causes and different repairs."""

    COMPLETED = "completed"
    #: No connection: refused, no route, silence, a name that does not resolve, slurmd away.
    UNREACHABLE = "unreachable"
    #: The host key is not the one that is known, or none is known.
    HOST_KEY = "host-key"
    #: It answered and did not let us in.
    REFUSED = "refused"
    #: It was connected, and went away before the program ended.
    LOST = "lost"
    #: The program did not end within its deadline; it was ended.
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of one program on one node. `completed` is there exactly when `fate` is COMPLETED.

    With TIMEOUT and LOST, `said` holds what it had printed until then.
    """

    node: str
    fate: Fate
    completed: Completed | None = None
    reason: str = ""
    said: str = ""
    elapsed_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """One line that the program on a node printed, without its end."""

    node: str
    text: str


class Conversation(Protocol):
    """One long-lived program on each node that reads lines and writes lines.

    A line goes to every node that is still there: whom it is for stands in the line (Slurm copies the input
    of a step to all its tasks). `close` ends the input, then, after a moment, the programs; as does the loss
    of the connection, so that nothing is left on a node.
    """

    def send(self, text: str) -> None: ...

    def receive(self, seconds: float) -> Iterator[Line | Answer]:
        """What the nodes say, as it comes, for at most `seconds`; an Answer is a node's last word.

        Ends early when no node is left.
        """
        ...

    def close(self) -> None: ...


class Transport(Protocol):
    """A way to a set of nodes. Use it as a context manager: connections are kept until its end."""

    @property
    def name(self) -> str:
        """`local`, `ssh` or `srun`."""
        ...

    def run(
        self, nodes: Sequence[str], argv: Sequence[str], *, stdin: bytes = b"", timeout_seconds: float = 60.0
    ) -> Iterator[Answer]:
        """Run `argv` on every node, and give one Answer a node as they end, in any order.

        No shell sees the argv: each word arrives as it is. NODE_VARIABLE is set in its environment.
        """
        ...

    def talk(self, nodes: Sequence[str], argv: Sequence[str]) -> Conversation: ...

    def close(self) -> None: ...
