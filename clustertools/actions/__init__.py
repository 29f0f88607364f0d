"""What may be done to jobs and nodes.

An action is a sequence of steps. Each pass of the watchdog takes it at most one step further: the step is
written down, then carried out, then its result is written down. A step may therefore be carried out twice
(after a crash in between), so every one is idempotent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clustertools.host import Host
from clustertools.model import Action, Attempt, Job
from clustertools.schedulers import RunSpec, Scheduler
from clustertools.sources.job_look import Looker


@dataclass(frozen=True, slots=True)
class Scene:
    """What a step has to work with. `attempts` and `job` are those of the action's run, if it has one.

    `looker` is the way to the job's nodes; None: everything is on this machine. `node_check` looks at nodes
    by the passive checks: node -> what is wrong there; it raises Unobservable when nobody could look.
    `accuse` judges once more with what the ranks' flight recorders said when they were asked before the end:
    the nodes to leave out as well, and that in words.
    `checkpoint_cache` is the folder that remembers what was read of checkpoints; "": beside the evidence.
    """

    host: Host
    scheduler: Scheduler
    evidence_folder: Path
    now: float
    spec: RunSpec | None = None
    job: Job | None = None
    attempts: tuple[Attempt, ...] = ()
    looker: Looker | None = None
    node_check: Callable[[Sequence[str]], Mapping[str, str]] | None = None
    checkpoint_cache: str = ""
    accuse: Callable[[], tuple[tuple[str, ...], str]] | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an action is.

    `step` is the one to take next; empty when the action is over. `ok` counts only then. `said` is a
    sentence for the timeline. `attempt` is written down together with this progress.
    """

    step: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    said: str = ""
    ok: bool = True
    attempt: Attempt | None = None


StepFunction = Callable[[Action, Mapping[str, Any], Scene], Progress]


def sequence(kind: str) -> Mapping[str, StepFunction]:
    """The steps of a kind of action by name, first one first. Raises KeyError for a kind that has none."""
    from clustertools.actions import capture, node, restart

    return {
        "capture": capture.STEPS,
        "drain": node.STEPS,
        "resume": node.RESUME_STEPS,
        "exclude": node.EXCLUDE_STEPS,
        "restart": restart.STEPS,
        "requeue": restart.STEPS,
        "cancel": restart.CANCEL_STEPS,
    }[kind]


def advance(action: Action, step: str, detail: Mapping[str, Any], scene: Scene) -> Progress:
    """Carry out one step (the first when `step` is empty). Raises ActionFailed when it did not succeed."""
    steps = sequence(action.kind)
    return steps[step or next(iter(steps))](action, detail, scene)
