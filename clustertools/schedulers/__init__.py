"""What the machine needs of a scheduler, and what a run is made of. One file per scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from clustertools.model import Attempt, Job, Subject

#: How a command learns where to go on: an environment variable, words in its command line, the framework's
#: own tracker file, by itself (refused newer checkpoints are set aside), or not at all.
ResumeKind = Literal["env", "placeholder", "tracker", "newest", "none"]
RESUME_KINDS: tuple[ResumeKind, ...] = ("env", "placeholder", "tracker", "newest", "none")


@dataclass(frozen=True, slots=True)
class RunSpec:
    """A run as a person described it: what to start, where it writes, how it resumes.

    In `command` the words `{checkpoint}` and `{step}` stand for the checkpoint to resume from. The
    environment variables are always set; `log_paths` and `checkpoint_dir` may be empty.
    """

    name: str
    command: tuple[str, ...] = ()
    cwd: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    log_paths: tuple[str, ...] = ()
    metrics_path: str = ""
    checkpoint_dir: str = ""
    total_steps: int = 0
    resume: ResumeKind = "env"
    resume_variable: str = "CLUSTERTOOLS_RESUME_FROM"
    first_command: tuple[str, ...] = ()
    deep_verify: bool = True
    grace_seconds: float = 15.0


class Scheduler(Protocol):
    """A place where runs live. Whatever it cannot tell raises Unobservable; silence is never "gone"."""

    @property
    def kind(self) -> str: ...
    @property
    def supported(self) -> frozenset[str]:
        """The playbook steps that can be carried out here."""
        ...

    def job(self, spec: RunSpec, attempts: tuple[Attempt, ...]) -> Job:
        """The newest incarnation of a run."""
        ...

    def submit(self, spec: RunSpec, attempt: Attempt) -> str:
        """Start an attempt and give its job id. Idempotent: the same `attempt.token` never starts twice."""
        ...

    def cancel(self, spec: RunSpec, job: Job, why: str, *, force: bool) -> None:
        """Ask a job to end, or (`force`) end it. Idempotent."""
        ...

    def leftovers(self, spec: RunSpec, job: Job) -> list[int]:
        """Processes of a job that are still there, here and now."""
        ...

    def preview(self, kind: str, target: Subject, options: Mapping[str, Any]) -> str:
        """What would be run for a step, as a person would type it."""
        ...
