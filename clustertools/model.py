"""The values that travel between the rooms. Frozen, without behaviour beyond small properties.

`to_data` and `from_data` turn any of them into JSON-ready data and back: the one codec that the store,
the fleet protocol and `--json` share.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

T = TypeVar("T")


class Status(enum.IntEnum):
    """Outcome of looking, in order of how much it matters to a person on call."""

    OK = 0
    SKIPPED = 1
    WARNING = 2
    UNKNOWN = 3
    CRITICAL = 4

    @property
    def exit_code(self) -> int:
        """The process exit code that Nagios users expect: OK 0, WARNING 1, CRITICAL 2, UNKNOWN 3."""
        return {Status.WARNING: 1, Status.UNKNOWN: 3, Status.CRITICAL: 2}.get(self, 0)


def worst(statuses: Iterable[Status]) -> Status:
    """The most serious status; OK when there is none."""
    return max(statuses, default=Status.OK)


class Remedy(str, enum.Enum):
    """Advice, never an order. `catalog/remedies.yaml` maps NVML's, DCGM's and NVIDIA's words to these."""

    NONE = "none"
    RESTART_APP = "restart-app"
    RESET_GPU = "reset-gpu"
    DRAIN_AND_RESET = "drain-and-reset"
    REBOOT_NODE = "reboot-node"
    INSPECT = "inspect"
    REPLACE = "replace"


@dataclass(frozen=True, slots=True, order=True)
class Subject:
    """What something is about: a node, a part of it (`gpu@0000:3b:00.0`, `mlx5_3/1`), a job's run."""

    cluster: str = ""
    node: str = ""
    part: str = ""
    job: str = ""
    run: str = ""

    def __str__(self) -> str:
        place = "/".join(x for x in (self.cluster, self.node, self.part) if x)
        who = f"run:{self.run}" if self.run else f"job:{self.job}" if self.job else ""
        return "/".join(x for x in (who, place) if x) or "cluster"

    @property
    def scope(self) -> Subject:
        """The whole that was looked at: this subject without its part."""
        return dataclasses.replace(self, part="")


#: How an incident ends: the check no longer reports it; the node was rebooted; a person says so;
#: or (a number) it was not repeated for that many seconds.
Clears = Literal["recovery", "reboot", "manual"] | float


@dataclass(frozen=True, slots=True)
class Reading:
    """One number, with its unit in the name (`temperature_celsius`)."""

    subject: Subject
    name: str
    value: float
    time: float


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong. `code` is stable for ever; `nodes` are those that a job's finding concerns.

    `time` is when it was seen or, for an event, when it happened; `since` is when the attempt of a run began
    that the finding is about: what happened before cannot explain it. `cause` and `blamed` are what a
    diagnosis made of it: the name of a failure signature, and the nodes that are guilty ("" and none: nobody
    knows). `edition` grows when what was told of it should be read again; who can edit messages edits them.
    `daily`: it can wait for the summary of the day.
    """

    check: str
    code: str
    subject: Subject
    status: Status
    summary: str
    evidence: tuple[str, ...] = ()
    remedy: Remedy = Remedy.NONE
    clears: Clears = "recovery"
    time: float = 0.0
    nodes: tuple[str, ...] = ()
    since: float = 0.0
    cause: str = ""
    blamed: tuple[str, ...] = ()
    edition: int = 0
    daily: bool = False

    @property
    def key(self) -> str:
        """Identity of the incident that this finding belongs to."""
        return f"{self.code}:{self.subject}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One check's answer about one node or run.

    `blind` says what could not be seen (empty: everything was); while it is set nothing resolves.
    `memory` is handed back to the check the next time. `wants_look`: it has to see the job's nodes first.
    `ends`: key of a finding that is no longer reported -> how it ended; that ends it, however it clears.
    """

    check: str
    subject: Subject
    status: Status
    findings: tuple[Finding, ...] = ()
    readings: tuple[Reading, ...] = ()
    detail: str = ""
    blind: str = ""
    elapsed_seconds: float = 0.0
    boot_id: str = ""
    time: float = 0.0
    memory: Mapping[str, Any] = field(default_factory=dict)
    wants_look: bool = False
    ends: Mapping[str, str] = field(default_factory=dict)

    @property
    def codes(self) -> frozenset[str]:
        return frozenset(f.code for f in self.findings)


State = Literal["none", "pending", "open", "resolved"]


@dataclass(frozen=True, slots=True)
class Incident:
    """A finding with a life. Acknowledged and silenced are marks on it, not states.

    `observed`: its check only observes here, so people hear of it and nothing is done.
    """

    finding: Finding
    state: State
    first_seen: float
    last_seen: float
    opened_at: float = 0.0
    resolved_at: float = 0.0
    count: int = 1
    boot_id: str = ""
    acknowledged_by: str = ""
    acknowledged_until: float = 0.0
    silenced_until: float = 0.0
    explained_by: str = ""
    observed: bool = False

    @property
    def key(self) -> str:
        return self.finding.key


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of an incident that people may want to hear of."""

    incident: Incident
    was: State
    now: State
    time: float
    worse: bool = False
    changed: bool = False

    @property
    def kind(self) -> str:
        """`opened`, `reopened`, `worsened`, `changed` (it says something new) or `resolved`."""
        if self.now == "resolved":
            return "resolved"
        if self.worse:
            return "worsened"
        if self.changed:
            return "changed"
        return "reopened" if self.was == "resolved" else "opened"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a playbook: a kind from the closed set and its options."""

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Playbook:
    """The response to some codes: ordered steps and the text that a person reads at 3 a.m."""

    name: str
    codes: tuple[str, ...]
    runbook: str
    after_seconds: float = 0.0
    steps: tuple[Step, ...] = ()
    explains: tuple[str, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Action:
    """One planned step. `preview` is what would be run; `blocked` says why it will not be."""

    id: str
    kind: str
    target: Subject
    because: str
    playbook: str
    preview: str
    options: Mapping[str, Any] = field(default_factory=dict)
    blocked: str = ""
    planned_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an action."""

    action_id: str
    ok: bool
    detail: str
    elapsed_seconds: float = 0.0
    time: float = 0.0


#: Who or what ended a job. "": nobody knows. `person`: somebody cancelled it, so it is never started again.
#: `us`: we stopped it. `requeued`: the scheduler begins it anew by itself. `lost`: its scheduler forgot it.
EndedBy = Literal[
    "",
    "itself",
    "person",
    "us",
    "time-limit",
    "preempted",
    "node-failed",
    "out-of-memory",
    "requeued",
    "lost",
]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a run. `first_step` to `last_step` is what it trained; None is "not known".

    `requeues` counts how often the scheduler had begun this very job before (Slurm's Restarts): with `job_id`
    it names one incarnation. `ended_by`, `cause` and `blamed` say how it ended, for the decision on the next.
    `excluded` are nodes that it was started without. `before_step`: it had to begin before that step;
    `skip_steps`: the steps whose data it is asked to leave out, as `FIRST-LAST`.
    """

    run: str
    number: int
    token: str
    job_id: str = ""
    started_at: float = 0.0
    ended_at: float = 0.0
    resume_step: int | None = None
    resume_path: str = ""
    first_step: int | None = None
    last_step: int | None = None
    end: str = ""
    requeues: int = 0
    nodes: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    ended_by: EndedBy = ""
    cause: str = ""
    blamed: tuple[str, ...] = ()
    before_step: int | None = None
    skip_steps: str = ""

    @property
    def new_steps(self) -> int | None:
        """Steps beyond the checkpoint that it began from; None when progress could not be read."""
        if self.last_step is None:
            return None
        return max(0, self.last_step - (self.resume_step or 0))


def starts_without_progress(attempts: Sequence[Attempt]) -> int:
    """Ended attempts in a row, newest first, that are known to have made no new step.

    One whose progress is unknown neither counts nor ends the row: scoring it as zero would stop a healthy
    run, scoring it as progress would let a crash loop go on.
    """
    lost = 0
    for attempt in reversed(attempts):
        if attempt.new_steps:
            break
        # one that still runs has not failed to advance; one whose progress is unknown says nothing
        if attempt.end and attempt.new_steps == 0:
            lost += 1
    return lost


@dataclass(frozen=True, slots=True)
class RankState:
    """What a flight recorder's dump says of one rank in one process group; -1: none yet."""

    rank: int
    group: str
    last_enqueued: int
    last_completed: int


JobState = Literal["pending", "running", "completing", "ended", "unknown"]


@dataclass(frozen=True, slots=True)
class Job:
    """One incarnation of a run, as its scheduler tells it.

    `exit_code` is None while it runs or when nobody knows; a negative one is the signal's number.
    `run` stays the same over restarts and requeues, `id` need not. `reason` is the scheduler's own word for
    why it waits or ended (`Priority`, `JobHeldAdmin`, `NodeFail`); `held` says that only a person lets it
    begin. `failed_nodes` are those that the scheduler itself names. `ends_at` is when its time limit ends it;
    0.0: none is known.
    """

    id: str
    run: str
    state: JobState
    attempt: int = 0
    nodes: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    started_at: float = 0.0
    ended_at: float = 0.0
    exit_code: int | None = None
    exit_reason: str = ""
    log_paths: tuple[str, ...] = ()
    metrics_path: str = ""
    checkpoint_dir: str = ""
    total_steps: int = 0
    attempts: tuple[Attempt, ...] = ()
    user: str = ""
    reason: str = ""
    ended_by: EndedBy = ""
    failed_nodes: tuple[str, ...] = ()
    ends_at: float = 0.0
    held: bool = False


def to_data(value: Any) -> Any:
    """Any value of this module as plain dicts, lists, strings and numbers (JSON-ready)."""
    kind: Any = type(value)
    if kind in _PLAIN:
        return value
    names = _field_names(kind)
    if names is not None:
        return {name: to_data(getattr(value, name)) for name in names}
    if isinstance(value, enum.Enum):
        return value.name if isinstance(value, Status) else value.value
    if isinstance(value, Mapping):
        return {str(k): to_data(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_data(v) for v in value]
    return value


_PLAIN = frozenset({str, int, float, bool, type(None)})


@functools.cache
def _field_names(kind: type) -> tuple[str, ...] | None:
    """The fields of a dataclass, asked for a thousand times a pass; None for anything else."""
    return tuple(f.name for f in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None


def from_data(kind: type[T], data: Any) -> T:
    """The inverse of `to_data`. Raises ValueError or TypeError on data of another shape."""
    return typing.cast(T, _decode(kind, data))


@functools.cache
def _field_types(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _decode(kind: Any, data: Any) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(data, Mapping):
            raise TypeError(f"expected an object for {kind.__name__}, got {type(data).__name__}")
        hints = _field_types(kind)
        known = {f.name for f in dataclasses.fields(kind)}
        return kind(**{k: _decode(hints[k], v) for k, v in data.items() if k in known})
    if isinstance(kind, type) and issubclass(kind, Status):
        return Status[data]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(data)
    if origin is tuple:
        return tuple(_decode(typing.get_args(kind)[0], v) for v in data)
    if origin in (typing.Union, types.UnionType):
        choices = [a for a in typing.get_args(kind) if a is not type(None)]
        return data if data is None or len(choices) != 1 else _decode(choices[0], data)
    return data


# "0000:3b:00.0", "00000000:3B:00.0", "0000:3b:00", "3b:00.0": three tools, three spellings
_PCI = re.compile(
    r"(?:(?P<domain>[0-9a-f]{4,8}):)?(?P<bus>[0-9a-f]{2}):(?P<device>[0-9a-f]{2})(?:\.(?P<function>[0-7]))?",
    re.IGNORECASE,
)


def pci_address(text: str) -> str:
    """One spelling, `dddd:bb:dd.f` in lower case, for a PCI address as the kernel, NVML or lspci write it.

    The kernel's `0000:3b:00` and NVML's `00000000:3B:00.0` are the same GPU; keyed apart, one fault would
    be two incidents. Raises ValueError when `text` holds no address.
    """
    match = _PCI.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not a PCI address: {text!r}")
    domain = int(match["domain"] or "0", 16)
    return f"{domain:04x}:{match['bus']}:{match['device']}.{match['function'] or '0'}".lower()


def gpu_part(address: str) -> str:
    """The part name of a GPU, `gpu@0000:3b:00.0`, from any spelling of its PCI address."""
    return f"gpu@{pci_address(address)}"
