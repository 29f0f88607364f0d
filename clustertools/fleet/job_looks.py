"""Looks at the nodes of jobs in doubt: this machine's, or those of many jobs side by side, by srun and ssh.

    looker = FleetLooker(FleetSettings(deadline_seconds=30))
    looker.look([LookOrder(LookRequest("4711", "pretrain"), ("n1", "n2"))])["pretrain"].nodes

A node runs `python -m clustertools.sources.job_look`, which is shipped to it where it lacks it. What comes
back is data of a stranger: types are checked, its name is the one that we asked, control characters go.
A look never holds its caller longer than its deadline. Conversations are ended in time before it, so that
nothing is left on a node, nor here.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clustertools.errors import ClustertoolsError, ConfigError, Unobservable
from clustertools.fleet import Answer, Conversation, Line, Transport
from clustertools.fleet.shipping import Tool, archive
from clustertools.fleet.srun import SrunSettings, SrunTransport
from clustertools.fleet.transports import open_transport
from clustertools.fleet.typed import typed
from clustertools.host import PYTHON, Host, LocalHost
from clustertools.sources.flight_recorder import MOST_BYTES
from clustertools.sources.job_look import (
    REST_SECONDS,
    Hurried,
    JobLook,
    LookOrder,
    NodeLook,
    look,
    request_text,
)
from clustertools.sources.rank_files import (
    FilesRequest,
    Gathered,
    JobFiles,
    NodeFile,
    files_request_text,
    unpacked,
)
from clustertools.text import plain

#: What the node runs for a look, and for files.
LOOK_WORDS = ("-m", "clustertools.sources.job_look")
FILES_WORDS = ("-m", "clustertools.sources.rank_files")
#: All looks of one pass together.
DEADLINE_SECONDS = 30.0
#: So long before the deadline a look is broken off, so that its programs can be ended within it.
CLOSE_SECONDS = 8.0
#: For starting a step, Python and the archive on a node, of what its look may take.
START_SECONDS = 5.0
#: So long the end of this process waits for looks that are being ended.
LEAVE_SECONDS = 15.0
#: The archive is sent only when there is so much time left for it.
SHIP_SECONDS = 6.0
#: Of any text of a node.
MOST_CHARACTERS = 2000
#: Of what all nodes of a job say for one look or one gathering; of one node at least so much.
MOST_CHARACTERS_OF_ALL, LEAST_BYTES = 96 << 20, 128 << 10
#: A node that does not answer srun is given so long to answer ssh.
SSH_SECONDS = 8.0
#: How long ranks may take over their dumps.
DUMP_SECONDS = 8.0


class LocalLooker:
    """Looks at jobs on this machine. `host` is it, or a recording of one."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def look(self, orders: Sequence[LookOrder]) -> Mapping[str, JobLook]:
        """One after another, in half a minute for all together."""
        until = time.monotonic() + DEADLINE_SECONDS
        found = {}
        for order in orders:
            try:
                seconds = min(order.request.seconds, max(REST_SECONDS, until - time.monotonic()))
                seen = look(self.host, replace(order.request, seconds=seconds))
                found[order.request.run] = JobLook((seen,))
            except ClustertoolsError as exc:
                found[order.request.run] = JobLook(
                    (), dict.fromkeys(order.nodes or (self.host.name,), str(exc))
                )
        return found

    def bring(self, order: LookOrder, *, ask_dumps: bool = True) -> JobFiles:
        """By a child: what the ranks' files lie on may not answer."""
        request = FilesRequest(order.request, ask_dumps, DUMP_SECONDS)
        node = self.host.name
        try:
            done = self.host.run(
                PYTHON, *FILES_WORDS, stdin=files_request_text(request) + "\n",
                timeout_seconds=DUMP_SECONDS + START_SECONDS + 7.0,
            )  # fmt: skip
            return read_files({node: (tuple(done.check().stdout.splitlines()), "")})
        except ClustertoolsError as exc:
            return JobFiles(unseen={node: str(exc)})


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """How the nodes are reached. `at_once`: so many jobs are looked at at the same time.

    `python` and `installed` are the nodes' Python, and their command that is used when it is of our version.
    """

    deadline_seconds: float = DEADLINE_SECONDS
    at_once: int = 16
    ssh_config: Path | None = None
    python: str = "python3"
    installed: str | None = "clustertools"


#: What a worker tells of one node of a run: its lines, and why they are not all or none.
_Told = tuple[str, str, tuple[str, ...], str]


class FleetLooker:
    """Looks at jobs of Slurm. `host` is where Slurm's commands are asked."""

    def __init__(self, settings: FleetSettings | None = None, *, host: Host | None = None) -> None:
        self.settings = settings or FleetSettings()
        self.host: Host = host or LocalHost()

    def look(self, orders: Sequence[LookOrder]) -> Mapping[str, JobLook]:
        by_run = {order.request.run: order for order in orders}
        seen: dict[str, list[NodeLook]] = {run: [] for run in by_run}
        unseen: dict[str, dict[str, str]] = {run: {} for run in by_run}
        for run, node, lines, why in self._ask(orders, LOOK_WORDS, _look_line):
            found = [one for line in lines if (one := read_look(line, node)) is not None]
            if found:
                seen[run].append(found[-1])
            else:
                unseen[run][node] = why or "what it said is no look"
        return {
            run: JobLook(tuple(sorted(seen[run], key=lambda one: one.node)), unseen[run]) for run in by_run
        }

    def bring(self, order: LookOrder, *, ask_dumps: bool = True) -> JobFiles:
        """As BringsFiles. What one node may give is a share of what is kept for one incident."""
        most = max(LEAST_BYTES, MOST_CHARACTERS_OF_ALL // 4 // max(1, len(order.nodes)))

        def line_of(order: LookOrder, left_seconds: float) -> str:
            seconds = min(DUMP_SECONDS, max(0.0, left_seconds - START_SECONDS))
            return files_request_text(FilesRequest(order.request, ask_dumps, seconds, most))

        told = self._ask([order], FILES_WORDS, line_of)
        return read_files({node: (lines, why) for _, node, lines, why in told})

    def _ask(
        self, orders: Sequence[LookOrder], words: Sequence[str], line_of: Callable[[LookOrder, float], str]
    ) -> list[_Told]:
        """Run `words` on all nodes of all orders, and give what each node said, or why it said nothing."""
        until = time.monotonic() + self.settings.deadline_seconds
        waiting: queue.SimpleQueue[LookOrder] = queue.SimpleQueue()
        told: queue.SimpleQueue[_Told] = queue.SimpleQueue()
        for order in orders:
            waiting.put(order)

        def work() -> None:
            with contextlib.suppress(queue.Empty):
                while True:
                    order = waiting.get_nowait()
                    asking = _Asking(self, order, words, line_of, until - CLOSE_SECONDS, told.put)
                    asking.work()

        threads = [_started(work) for _ in range(min(self.settings.at_once, len(orders)))]
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        silent = f"no answer within {self.settings.deadline_seconds:g} s"
        found: dict[tuple[str, str], _Told] = {
            (order.request.run, node): (order.request.run, node, (), silent)
            for order in orders
            for node in order.nodes
        }
        while not told.empty():
            one = told.get()
            found[one[:2]] = one
        return list(found.values())


class _Asking:
    """One order: its nodes asked by srun, by ssh, or by one after the other was not allowed."""

    def __init__(
        self, looker: FleetLooker, order: LookOrder, words: Sequence[str],
        line_of: Callable[[LookOrder, float], str], until: float, tell: Callable[[_Told], None],
    ) -> None:  # fmt: skip
        self.settings, self.order, self.words, self.line_of = looker.settings, order, words, line_of
        self.until, self._tell = until, tell
        self.host = Hurried(looker.host, until)
        #: Whether ssh is tried at the nodes that srun does not reach, and why srun did not.
        self.may_go_on, self.refused = False, dict[str, str]()
        #: Node -> what it said so far.
        self.left: dict[str, list[str]] = {node: [] for node in order.nodes}
        self.room = MOST_CHARACTERS_OF_ALL

    def work(self) -> None:
        """Tell of every node, whatever happens, and leave nothing behind."""
        try:
            why = self._go()
        except ClustertoolsError as exc:
            why = str(exc)
        except Exception as exc:  # noqa: BLE001 - whatever breaks here, the other jobs count
            why = f"the look itself failed: {type(exc).__name__}: {exc}"
        for node in tuple(self.left):
            self._told(node, why or "no answer in time")

    def _go(self) -> str:
        """Why nodes that are still left were not looked at."""
        order = self.order
        if order.how == "none":
            return "the config says that the nodes of this run are not to be looked at (look: none)"
        if not self._has_time():
            return "there was no time left for it: many jobs were to be looked at"
        if order.how == "srun" or (order.how == "auto" and order.request.job_id):
            self.may_go_on = order.how == "auto"
            try:
                with self._srun() as transport:
                    self._ask(transport)
            except (ConfigError, Unobservable) as exc:
                if not self.may_go_on:
                    raise
                self.refused = dict.fromkeys(self.left, str(exc))
        self.may_go_on = False
        if self.left and order.how != "srun" and self._has_time():
            config = self.settings.ssh_config
            with open_transport("ssh", ssh_config=config, connect_timeout_seconds=SSH_SECONDS) as transport:
                self._ask(transport)
        return ""

    def _has_time(self) -> bool:
        return self.until - time.monotonic() >= START_SECONDS

    def _srun(self) -> SrunTransport:
        # a node that does not start the step is given up in time for the others to be asked without it
        settings = SrunSettings(launch_seconds=8.0, silence_seconds=12.0, python=self.settings.python)
        return SrunTransport(settings, job_id=self.order.request.job_id, host=self.host)

    def _ask(self, transport: Transport) -> None:
        lacking = self._converse(transport, self._tool(), tuple(self.left))
        if lacking and self.until - time.monotonic() > SHIP_SECONDS:
            tool = Tool.install(
                _Brief(transport, self.until), lacking, python=self.settings.python,
                installed=self.settings.installed,
            )  # fmt: skip
            for node, answer in tool.missing.items():
                self._told(node, _why(answer))
            lacking = self._converse(transport, tool, tool.nodes)
        for node in lacking:
            self._told(node, "there was no time left to send clustertools to it")

    def _tool(self) -> Tool:
        """The tool as if every node had it: one that does not says so, which takes no step of its own."""
        return Tool(self.settings.python, archive().sha256, self.settings.installed or "", {}, {})

    def _converse(self, transport: Transport, tool: Tool, nodes: Sequence[str]) -> tuple[str, ...]:
        """Ask `nodes`; gives those that lack the tool."""
        if not nodes:
            return ()
        lacking = []
        conversation = transport.talk(nodes, tool.argv(*self.words))
        try:
            left = self.until - time.monotonic()
            conversation.send(self.line_of(self.order, max(1.0, left - START_SECONDS)))
            for said in conversation.receive(left):
                if isinstance(said, Line):
                    self._heard(said)
                elif _lacks_it(said):
                    lacking.append(said.node)
                else:
                    done = said.completed
                    self._told(said.node, _why(said) if done is None or done.returncode else "")
        finally:
            conversation.close()
        return tuple(node for node in lacking if node in self.left)

    def _heard(self, said: Line) -> None:
        # a login script may greet
        if said.text.startswith("{") and said.node in self.left and len(said.text) <= self.room:
            self.room -= len(said.text)
            self.left[said.node].append(said.text)

    def _told(self, node: str, why: str) -> None:
        """That was all of a node; `why` it is not whole, or nothing. Only its first end counts."""
        if node not in self.left:
            return
        if why and self.may_go_on:
            self.refused[node] = why
            self.left[node].clear()
            return
        if why and node in self.refused:
            why += f"; srun: {self.refused[node]}"
        self._tell((self.order.request.run, node, tuple(self.left.pop(node)), plain(why)))


class _Brief:
    """A transport whose programs end before one moment."""

    def __init__(self, transport: Transport, until: float) -> None:
        self.transport, self.until, self.name = transport, until, transport.name

    def run(
        self, nodes: Sequence[str], argv: Sequence[str], *, stdin: bytes = b"", timeout_seconds: float = 60.0
    ) -> Iterator[Answer]:
        left = max(1.0, self.until - time.monotonic())
        return self.transport.run(nodes, argv, stdin=stdin, timeout_seconds=min(timeout_seconds, left))

    def talk(self, nodes: Sequence[str], argv: Sequence[str]) -> Conversation:
        return self.transport.talk(nodes, argv)

    def close(self) -> None:
        self.transport.close()


def _look_line(order: LookOrder, left_seconds: float) -> str:
    return request_text(replace(order.request, seconds=min(order.request.seconds, left_seconds)))


def read_look(line: str, node: str) -> NodeLook | None:
    """What a node printed, as a look at the node that was asked; None when it is none."""
    try:
        data = json.loads(line)
        if not isinstance(data, dict) or data.get("schema") != 1 or data.get("kind") != "look":
            return None
        one = typed(NodeLook, _printable(data))
    except (ValueError, TypeError, RecursionError):
        return None
    ranks = {rank: pid for rank, pid in one.ranks.items() if re.fullmatch("[0-9]{1,9}", rank)}
    return replace(one, node=node, ranks=ranks)


def read_files(said: Mapping[str, tuple[Sequence[str], str]]) -> JobFiles:
    """What nodes printed, node -> (lines, why they are not all), as files; what is none is left out."""
    files: dict[str, tuple[NodeFile, ...]] = {}
    gathered: dict[str, Gathered] = {}
    unseen: dict[str, str] = {}
    for node, (lines, why) in said.items():
        pieces: dict[str, bytearray] = {}
        for line in lines:
            try:
                data = json.loads(line)
                if not isinstance(data, dict) or data.get("schema") != 1:
                    continue
                if data.get("kind") == "files":
                    gathered[node] = typed(Gathered, _printable(data))
                elif data.get("kind") == "file":
                    file = unpacked(data, pieces, MOST_BYTES)
                    files[node] = (
                        *files.get(node, ()),
                        *([replace(file, path=plain(file.path))] if file else ()),
                    )
            except (ValueError, TypeError, RecursionError) as exc:
                unseen[node] = f"what it gave could not be read: {plain(str(exc), 200)}"
        if node not in gathered:
            unseen[node] = why or unseen.get(node) or "it broke off before its end"
    return JobFiles(files, gathered, unseen)


def _printable(data: Any) -> Any:
    """Every text in there as one printable line."""
    if isinstance(data, str):
        return (
            data
            if data.isascii() and data.isprintable() and len(data) < 500
            else plain(data, MOST_CHARACTERS)
        )
    if isinstance(data, dict):
        return {_printable(key): _printable(value) for key, value in data.items()}
    return [_printable(one) for one in data] if isinstance(data, list) else data


def _lacks_it(answer: Answer) -> bool:
    # clustertools: could not run: the tool is not on this node; /root/.cache/clustertools: not there
    done = answer.completed
    return done is not None and done.returncode == 3 and "the tool is not on this node" in done.stderr


def _why(answer: Answer) -> str:
    if answer.completed is None:
        return answer.reason or f"it ended as {answer.fate.value}"
    said = next((line for line in reversed(answer.completed.stderr.splitlines()) if line.strip()), "")
    return f"the look broke off with exit code {answer.completed.returncode}: {said or 'it said nothing'}"


_under_way: set[threading.Thread] = set()


def _started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, name="job-look", daemon=True)
    _under_way.difference_update([one for one in _under_way if not one.is_alive()])
    thread.start()
    _under_way.add(thread)
    return thread


@atexit.register
def _leave() -> None:
    """What still ends its programs on the nodes may do so before this process ends."""
    until = time.monotonic() + LEAVE_SECONDS
    for thread in tuple(_under_way):
        thread.join(max(0.0, until - time.monotonic()))
