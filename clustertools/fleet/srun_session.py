"""One program on many nodes in a few steps of srun: starts them, hears them, tells how each node ended."""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib.resources
import os
import pwd
import queue
import re
import secrets
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ClusterShell.NodeSet import NodeSet, NodeSetException

from clustertools.errors import Absent, ConfigError, Unobservable
from clustertools.fleet import Answer, Fate, Line
from clustertools.host import DEFAULT_PATH, Completed, Host
from clustertools.text import plain

#: Of Slurm's own variables srun gets only those that say which cluster this is, and who we are. All others
#: are options to it (SLURM_NTASKS, SLURM_CPU_BIND, SLURM_MEM_PER_CPU, SLURM_EXACT, SLURM_STEP_GRES,
#: SLURM_DISTRIBUTION ...; srun(1), INPUT ENVIRONMENT VARIABLES): in a job they describe the job's own step
#: and contradict ours ("SLURM_MEM_PER_CPU, SLURM_MEM_PER_GPU, and SLURM_MEM_PER_NODE are mutually
#: exclusive").
KEPT_VARIABLES = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_WORKING_CLUSTER", "SLURM_JWT")
#: Whose variables are left out: PMI's and PMIx's belong to the step that we may be running in.
_DROPPED = re.compile(r"(SLURM_|SLURMD_|SRUN_|SALLOC_|SBATCH_|PMI_|PMIX_).*")
#: A node beyond its deadline by this much, and not yet told of by its agent, is not waited for any more.
GRACE_SECONDS = 10.0
#: How long steps get to end by themselves before they are ended, and what ends them to do so.
MOMENT_SECONDS = 3.0
#: How long a step that was given up may take to be gone, after all that.
LEAVE_SECONDS = 30.0
#: Kept of what a program says besides its lines in a conversation.
TAIL_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Launch:
    """One step to start: srun's words, its nodes, its job, and how often these were tried already."""

    words: tuple[str, ...]
    nodes: tuple[str, ...]
    job_id: str
    tries: int = 0


@dataclass(slots=True)
class _Node:
    """What one node said so far."""

    out: bytearray = field(default_factory=bytearray)
    err: bytearray = field(default_factory=bytearray)
    heard: float = 0.0
    began: float = 0.0


@dataclass(eq=False, slots=True)
class _Step:
    """One srun. `went`: its agents were told to start the program, so it must not be tried again."""

    launch: Launch
    mark: str
    pipes: _Pipes
    started: float
    went: float = 0.0
    number: str = ""
    tasks: dict[int, str] = field(default_factory=dict)
    #: What srun said of a node.
    said: dict[str, str] = field(default_factory=dict)
    last: deque[str] = field(default_factory=lambda: deque(maxlen=5))
    is_over: bool = False
    #: A node of it is gone, so srun will not end by itself.
    is_broken: bool = False


def slurm_environment() -> dict[str, str]:
    """Our environment as Slurm's commands are to see it, and as they hand it on."""
    environment = {k: v for k, v in os.environ.items() if k in KEPT_VARIABLES or not _DROPPED.fullmatch(k)}
    environment["LC_ALL"] = "C"
    return environment


@dataclass(frozen=True, slots=True)
class Owner:
    """The user of a job, as whom root starts steps in it: Slurm refuses those of anybody else."""

    name: str
    user_id: int
    group_id: int
    groups: tuple[int, ...] = ()

    @classmethod
    def of(cls, user_id: int) -> Owner:
        """Raises ConfigError for a number that this machine does not know."""
        try:
            entry = pwd.getpwuid(user_id)
        except KeyError as exc:
            raise ConfigError(f"user {user_id} is not known here: nothing can be started as they") from exc
        groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
        return cls(entry.pw_name, user_id, entry.pw_gid, tuple(groups))

    def environment(self) -> dict[str, str]:
        """Nothing of ours, which may hold what only root should know; srun hands it on to the nodes.

        Without a home the archive is kept below /var/tmp: it is no file of theirs.
        """
        kept = {name: os.environ[name] for name in ("SLURM_CONF", "SLURM_CLUSTERS") if name in os.environ}
        return {
            **kept,
            "PATH": DEFAULT_PATH,
            "HOME": "/",
            "USER": self.name,
            "LOGNAME": self.name,
            "LC_ALL": "C",
        }


class Session:
    """A Conversation with a program on the nodes of `launches`; also one that only runs to its end.

    `away` are nodes that are answered for at once. Not for several threads.
    """

    def __init__(
        self, launches: Sequence[Launch], away: Mapping[str, str], argv: tuple[str, ...], *,
        timeout_seconds: float, cap_bytes: int, host: Host, python: str, launch_seconds: float,
        silence_seconds: float, owner: Owner | None = None,
    ) -> None:  # fmt: skip
        self.owner = owner
        self.argv, self.host, self.python = argv, host, python
        self.timeout_seconds, self.cap_bytes = timeout_seconds, cap_bytes
        self.launch_seconds, self.silence_seconds = launch_seconds, silence_seconds
        self.nodes = {n: _Node() for n in (*away, *(n for launch in launches for n in launch.nodes))}
        self.waited_for = set(self.nodes)
        self._ready: deque[Line | Answer] = deque()
        self._input: list[bytes] = []
        self._steps: list[_Step] = []
        self._events: queue.SimpleQueue[tuple[_Step, str, bytes]] = queue.SimpleQueue()
        for node, why in away.items():
            self._answer(node, Fate.UNREACHABLE, why)
        for launch in launches:
            self._start(launch)

    @property
    def is_over(self) -> bool:
        return not self.waited_for and not self._ready

    # -- the conversation

    def send(self, text: str) -> None:
        self.send_bytes(text.rstrip("\n").encode() + b"\n")

    def send_bytes(self, data: bytes) -> None:
        for i in range(0, len(data), 6000):
            self._tell(b"d " + base64.b64encode(data[i : i + 6000]) + b"\n")

    def end_input(self) -> None:
        self._tell(b"e\n")

    def receive(self, seconds: float) -> Iterator[Line | Answer]:
        until = time.monotonic() + seconds
        while True:
            while self._ready:
                yield self._ready.popleft()
            left = until - time.monotonic()
            if not self.waited_for or left <= 0:
                return
            self._turn(min(left, 0.5))

    def close(self) -> None:
        """End the input, then a moment later the programs; then see to it that the steps are gone."""
        if self.waited_for:
            self.end_input()
            until = time.monotonic() + MOMENT_SECONDS
            while self.waited_for and time.monotonic() < until:
                self._turn(0.1)
        self._end_all_input()
        if not all(step.is_broken for step in self._open_steps()):
            self._wait_for_ends(MOMENT_SECONDS)
        for step in self._open_steps():
            _signal(step.pipes.process, signal.SIGTERM)
        self._wait_for_ends(1.0)
        for step in self._open_steps():
            _signal(step.pipes.process, signal.SIGKILL)
            self._cancel(step)
        self._wait_for_ends(MOMENT_SECONDS)
        given_up = [step.pipes.process for step in self._steps if step.pipes.process.poll() is None]
        if given_up:
            threading.Thread(target=_see_off, args=(given_up,), daemon=True).start()

    def _end_all_input(self) -> None:
        for step in self._steps:
            step.pipes.end_input()

    def _open_steps(self) -> list[_Step]:
        return [step for step in self._steps if not step.is_over]

    def _wait_for_ends(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._open_steps() and (left := until - time.monotonic()) > 0:
            self._take(min(left, 0.5))

    def _cancel(self, step: _Step) -> None:
        """srun was killed before it could end its step; slurmctld is asked to."""
        if step.number:
            # the step, or the job that it was, may be over: that is what is wanted
            with contextlib.suppress(Unobservable):
                self.host.run("scancel", f"{step.launch.job_id}.{step.number}")

    # -- steps

    def _start(self, launch: Launch) -> None:
        mark = secrets.token_hex(6)
        nodes, count = ",".join(launch.nodes), len(launch.nodes)
        argv = [
            *launch.words, f"--nodelist={nodes}", f"--nodes={count}", f"--ntasks={count}",
            # srun replaces a program's name by the path that it has here; that of env is the same everywhere
            "/usr/bin/env", self.python, "-I", "-S", "-c", _agent(), mark, f"{self.timeout_seconds:g}",
            str(self.cap_bytes), *self.argv,
        ]  # fmt: skip
        # With this srun goes on when the connection to one slurmstepd breaks, instead of ending the step on
        # all nodes; it is how srun --pty says so (step_launch_notify_io_failure in src/api/step_launch.c).
        owner = self.owner
        environment = {**(owner.environment() if owner else slurm_environment()), "SLURM_PTY_PORT": "0"}
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
                start_new_session=True, cwd="/", user=owner.user_id if owner else None,
                group=owner.group_id if owner else None, extra_groups=owner.groups if owner else None,
            )  # fmt: skip
        except OSError as exc:
            raise Absent(f"srun: {exc.strerror}: Slurm's tools are not here") from exc
        step = _Step(launch, mark, _Pipes(process), time.monotonic())
        for node in launch.nodes:
            self.nodes[node].began = self.nodes[node].began or step.started
        self._steps.append(step)
        step.pipes.serve(step, self._events)

    def _tell(self, data: bytes) -> None:
        self._input.append(data)
        for step in self._open_steps():
            if step.went:
                step.pipes.write(data)

    def _go(self, step: _Step) -> None:
        step.went = time.monotonic()
        for node in step.launch.nodes:
            self.nodes[node].heard = step.went
        step.pipes.write(b"".join([b"go\n", *self._input]))

    def _give_up(self, step: _Step, away: Mapping[str, str]) -> None:
        """The step did not come about, and no program ran: `away` is answered for, the others tried again.

        First together, then each alone; nobody a third time.
        """
        step.is_over = True
        step.pipes.end_input()
        _signal(step.pipes.process, signal.SIGTERM)
        launch = step.launch
        for node, why in away.items():
            self._answer(node, Fate.UNREACHABLE, why)
        rest = tuple(n for n in launch.nodes if n in self.waited_for)
        if launch.tries >= 2 or (len(launch.nodes) == 1 and not away):
            for node in rest:
                self._answer(node, Fate.UNREACHABLE, _why(step, node, "the step could not be started"))
        elif rest:
            groups = [rest] if away and launch.tries == 0 else [(n,) for n in rest]
            for group in groups:
                self._start(Launch(launch.words, group, launch.job_id, launch.tries + 1))

    # -- what comes

    def _turn(self, seconds: float) -> None:
        """Take what comes, and look whose time is over when nothing did."""
        if not self._take(seconds):
            self._look_at_the_clock()

    def _take(self, seconds: float) -> bool:
        try:
            step, stream, line = self._events.get(timeout=seconds)
        except queue.Empty:
            return False
        if stream == "end":
            self._on_end(step)
        elif stream == "out":
            self._on_word(step, line)
        else:
            self._on_complaint(step, line.decode("utf-8", "replace"))
        return True

    def _on_word(self, step: _Step, line: bytes) -> None:
        # " 3: 5f0c9a81be22 o aGVsbG8K": the task's number by srun --label, then what the agent said
        match = re.fullmatch(rb"\s*(\d+): %b (\w) ?(.*)" % step.mark.encode(), line)
        if not match:  # a prolog of the site's speaks, or a module of the cluster's Python
            return
        task, kind, rest = int(match[1]), match[2].decode(), match[3]
        if kind == "h":
            node, _, step.number = rest.decode().partition(" ")
            step.tasks[task] = node
            if not step.is_over and not step.went and set(step.tasks.values()) >= set(step.launch.nodes):
                self._go(step)
            return
        node = step.tasks.get(task, "")
        if node not in self.waited_for:
            return
        self.nodes[node].heard = time.monotonic()
        try:
            self._on_news(node, kind, rest)
        except ValueError:  # no base64, no three words
            said = plain(rest.decode("ascii", "replace"), 80)
            self._answer(node, Fate.LOST, f"what came from it was cut short: {said}")

    def _on_news(self, node: str, kind: str, rest: bytes) -> None:
        seen = self.nodes[node]
        if kind == "o":
            self._on_output(node, base64.b64decode(rest))
        elif kind == "e":
            seen.err += base64.b64decode(rest)
            if not self.cap_bytes:
                del seen.err[:-TAIL_BYTES]
        elif kind == "t":
            self._answer(
                node, Fate.TIMEOUT, f"no end within {self.timeout_seconds:g} s; {plain(rest.decode())}"
            )
        elif kind == "x":
            code, cut, seconds = rest.split()
            done = Completed(
                self.argv, int(code), _text(seen.out), _text(seen.err), float(seconds), cut == b"1"
            )
            self._answer(node, Fate.COMPLETED, "", done)

    def _on_output(self, node: str, data: bytes) -> None:
        seen = self.nodes[node]
        seen.out += data
        if not self.cap_bytes:
            *lines, rest = bytes(seen.out).split(b"\n")
            seen.out[:] = rest
            self._ready.extend(Line(node, _text(line)) for line in lines)

    def _on_complaint(self, step: _Step, line: str) -> None:
        # "3: slurmstepd: error: execve(): ..." what the task numbered 3 said, or was said of it
        labelled = re.fullmatch(r"\s*(\d+): (.*)", line)
        text = plain(labelled[2] if labelled else line)
        if not text:
            return
        # "srun: cluster configuration lacks support for cpu binding" is no reason for anything
        if labelled or re.search(r"\b(error|fatal): ", text):
            step.last.append(text)
        if labelled and int(labelled[1]) in step.tasks:
            step.said[step.tasks[int(labelled[1])]] = text
        # srun: error: Task launch for StepId=5.0 failed on node n8: Socket timed out on send/recv operation
        failed = re.fullmatch(r"srun: error: Task launch for \S+ failed on node (\S+): (.*)", text)
        if failed and not step.went and not step.is_over and failed[1] in step.launch.nodes:
            self._give_up(step, {failed[1]: f"its slurmd did not start the step: {failed[2]}"})
        # srun: error: n[3-4]: tasks 2-3: Killed           srun: error: Node failure on n3
        ended = re.fullmatch(r"srun: error: (?:Node failure on )?(\S+?)(?:: tasks? \S+: (.*))?", text)
        for node in _unfold(ended[1]) & set(step.launch.nodes) if ended else ():
            if ended and ended[2] is None and step.went:
                self._answer(node, Fate.LOST, "Slurm says that the node failed")
            step.said[node] = text.removeprefix("srun: error: ")

    def _on_end(self, step: _Step) -> None:
        was_given_up, step.is_over = step.is_over, True
        mine = [n for n in step.launch.nodes if n in self.waited_for]
        if step.went:
            for node in mine:
                self._answer(node, Fate.LOST, _why(step, node, "the step ended without a word from it"))
        elif mine and not was_given_up:
            # n3: task 2: Exited with exit code 127: it was reached, and has no Python
            refused = [n for n in mine if n in step.said and n not in step.tasks.values()]
            for node in refused:
                self._answer(
                    node, Fate.REFUSED, _why(step, node, f"{self.python} could not be started there")
                )
            self._give_up(step, {})

    def _look_at_the_clock(self) -> None:
        now = time.monotonic()
        for step in self._open_steps():
            if not step.went:
                if now > step.started + self.launch_seconds:
                    silent = set(step.launch.nodes) - set(step.tasks.values())
                    why = f"no sign of it within {self.launch_seconds:g} s of the launch"
                    self._give_up(step, {n: _why(step, n, why) for n in step.launch.nodes if n in silent})
                continue
            for node in [n for n in step.launch.nodes if n in self.waited_for]:
                silence = now - self.nodes[node].heard
                if silence > self.silence_seconds:
                    self._answer(node, Fate.LOST, _why(step, node, f"no sign of life for {silence:.0f} s"))
                elif self.timeout_seconds and now > step.went + self.timeout_seconds + GRACE_SECONDS:
                    why = f"no end within {self.timeout_seconds:g} s, nor word of one"
                    self._answer(node, Fate.TIMEOUT, _why(step, node, why))

    def _answer(self, node: str, fate: Fate, reason: str, done: Completed | None = None) -> None:
        if node not in self.waited_for:
            return
        self.waited_for.discard(node)
        if not self.waited_for:
            self._end_all_input()  # the agents wait for that
        for step in self._open_steps() if fate is not Fate.COMPLETED else ():
            step.is_broken |= node in step.launch.nodes
        seen = self.nodes[node]
        rest = _text(seen.out)
        if rest and not self.cap_bytes:  # a last line without an end
            self._ready.append(Line(node, rest))
            rest = ""
        if done is not None and not self.cap_bytes:
            done = Completed(done.argv, done.returncode, "", done.stderr, done.elapsed_seconds)
        elapsed = time.monotonic() - seen.began if seen.began else 0.0
        self._ready.append(Answer(node, fate, done, reason, "" if done else rest, elapsed))


class _Pipes:
    """The pipes of one srun, each served by a thread; `events` gets (step, out | err | end, line)."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._input: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def serve(self, step: _Step, events: queue.SimpleQueue[tuple[_Step, str, bytes]]) -> None:
        """Start the threads; they end with srun."""
        complaints = threading.Thread(target=self._read, args=(step, "err", events), daemon=True)
        complaints.start()

        def read_to_the_end() -> None:
            self._read(step, "out", events)
            complaints.join()
            self.process.wait()
            self._input.put(None)
            events.put((step, "end", b""))

        threading.Thread(target=read_to_the_end, daemon=True).start()
        threading.Thread(target=self._write, daemon=True).start()

    def write(self, data: bytes) -> None:
        """Does not wait for srun to take it."""
        self._input.put(data)

    def end_input(self) -> None:
        self._input.put(None)

    def _read(self, step: _Step, kind: str, events: queue.SimpleQueue[tuple[_Step, str, bytes]]) -> None:
        stream = self.process.stdout if kind == "out" else self.process.stderr
        assert stream is not None
        with stream:
            while line := stream.readline(1 << 16):
                events.put((step, kind, line.rstrip(b"\n")))

    def _write(self) -> None:
        stream = self.process.stdin
        assert stream is not None
        with contextlib.suppress(BrokenPipeError), stream:
            while (data := self._input.get()) is not None:
                stream.write(data)
                stream.flush()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _see_off(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for those that were asked to end; then end them.

    One whose nodes do not answer takes its time to take its step back, and slurmctld keeps a step that nobody
    took back until the end of the job.
    """
    until = time.monotonic() + LEAVE_SECONDS
    while any(process.poll() is None for process in processes) and time.monotonic() < until:
        time.sleep(0.2)
    for process in processes:
        _signal(process, signal.SIGKILL)


def _why(step: _Step, node: str, what: str) -> str:
    """`what`, with srun's own words of the node, else its last ones."""
    said = step.said.get(node) or (step.last[-1] if step.last else "")
    return f"{what}; {said}" if said else what


def _unfold(names: str) -> set[str]:
    with contextlib.suppress(NodeSetException):
        return set(NodeSet(names))
    return set()


def _text(data: bytes | bytearray) -> str:
    return data.decode("utf-8", "replace")


@functools.cache
def _agent() -> str:
    """The text of `srun_agent.py`, also out of an archive."""
    return importlib.resources.files("clustertools.fleet").joinpath("srun_agent.py").read_text("utf-8")
