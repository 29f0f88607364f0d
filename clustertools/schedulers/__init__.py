"""What the machine needs of a scheduler, and what a run is made of. One file per scheduler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from clustertools.model import Attempt, Job, Subject

#: How a command learns where to go on: an environment variable, words in its command line, the framework's
#: own tracker file, a small file that the job script reads, by itself (refused newer checkpoints are set
#: aside), or not at all. Slurm cannot change the environment or the command of a job that it begins anew.
ResumeKind = Literal["env", "placeholder", "tracker", "file", "newest", "none"]
RESUME_KINDS: tuple[ResumeKind, ...] = ("env", "placeholder", "tracker", "file", "newest", "none")

#: How a job of Slurm is begun anew: `requeue` keeps its number, options and script; `submit` runs the
#: command that the config names; `auto` requeues where Slurm allows it, else submits where there is one.
AgainKind = Literal["auto", "requeue", "submit"]


@dataclass(frozen=True, slots=True)
class RunSpec:
    """A run as a person described it: what to start, where it writes, how it resumes.

    In `command` the words `{checkpoint}` and `{step}` stand for the checkpoint to resume from. The
    environment variables are always set; `log_paths` and `checkpoint_dir` may be empty. With Slurm `command`
    is what submits the run (`sbatch --parsable train.sh`), empty where it is only requeued.
    `rollback`: a loss that diverged is undone, from a checkpoint before it.
    `limits` are this run's own limits, by check and field; they go before those of the config.
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
    resume_file: str = ""
    first_command: tuple[str, ...] = ()
    deep_verify: bool = True
    grace_seconds: float = 15.0
    again: AgainKind = "auto"
    without_progress: int = 3
    on_time_limit: Literal["leave", "restart"] = "leave"
    look: Literal["auto", "ssh", "srun", "none"] = "auto"
    preflight: bool = False
    kill_switch: str = ""
    rollback: bool = False
    limits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which jobs of a scheduler are a run of ours. Patterns are the shell's (`pretrain-*`); "" is any.

    `key` is the entry of the config and the first word of the run's name. `template` is the run without what
    only the job knows: its name, log, working directory. In its paths `%j`, `%x`, `%u`, `%A` and `%a` stand
    for what they mean to sbatch. `array`: the tasks of an array are runs of their own (`tasks`), or the
    successive starts of one run (`chain`, as with --array=1-10%1).
    """

    key: str
    name: str = ""
    user: str = ""
    partition: str = ""
    comment: str = ""
    job_id: str = ""
    array: Literal["tasks", "chain"] = "tasks"
    template: RunSpec = field(default_factory=lambda: RunSpec(""))


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node as its scheduler has it. `reason` is the note beside one that is drained, down or failing.

    `is_good`: jobs may begin there (idle, mixed, allocated; not drained, down, failing or reserved for
    maintenance).
    """

    name: str
    is_good: bool
    is_drained: bool
    reason: str = ""
    state: str = ""


def resume_words(spec: RunSpec, attempt: Attempt) -> dict[str, str]:
    """What an attempt is told about where it goes on, by variable; "" where there is nothing to say.

    CLUSTERTOOLS_BEFORE_STEP: its checkpoint had to be older than this step. CLUSTERTOOLS_SKIP_STEPS: the
    steps whose data is to be left out, `FIRST-LAST`, both included, as the log counts them.
    """
    return {
        spec.resume_variable: attempt.resume_path,
        "CLUSTERTOOLS_RESUME_STEP": "" if attempt.resume_step is None else str(attempt.resume_step),
        "CLUSTERTOOLS_BEFORE_STEP": "" if attempt.before_step is None else str(attempt.before_step),
        "CLUSTERTOOLS_SKIP_STEPS": attempt.skip_steps,
    }


class Scheduler(Protocol):
    """A place where runs live. Whatever it cannot tell raises Unobservable; silence is never "gone"."""

    @property
    def kind(self) -> str: ...
    @property
    def supported(self) -> frozenset[str]:
        """The playbook steps that can be carried out here."""
        ...

    def job(self, spec: RunSpec, attempts: tuple[Attempt, ...]) -> Job:
        """The newest incarnation of a run.

        Its `attempts` may have one more than those that are known: the scheduler, or a person, began it anew.
        """
        ...

    def submit(self, spec: RunSpec, attempt: Attempt) -> str:
        """Start an attempt, without the nodes in `attempt.excluded`, and give its job id.

        Idempotent: the same `attempt.token` never starts twice.
        """
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


@runtime_checkable
class FindsRuns(Protocol):
    """A scheduler whose jobs were begun by others: it tells which of them are runs of ours."""

    def runs(
        self, wanted: Sequence[Wanted], attempts: Mapping[str, tuple[Attempt, ...]]
    ) -> Sequence[RunSpec]:
        """Look once at all jobs, and give the runs that are there or that `attempts` knows as not over.

        `job` answers from this look until the next one. Raises Unobservable when the scheduler does not
        answer: then nothing is known of any run.
        """
        ...


@runtime_checkable
class KnowsNodes(Protocol):
    """A scheduler that has nodes, and can take them out of service and back."""

    def nodes(self) -> Mapping[str, NodeState]:
        """Every node by name. Raises Unobservable."""
        ...

    def drain(self, node: str, reason: str) -> None:
        """Let nothing new start on `node`. Idempotent. Raises ActionFailed or Unobservable."""
        ...

    def resume(self, node: str) -> None:
        """Take our own drain back; never another's. Idempotent. Raises ActionFailed or Unobservable."""
        ...
