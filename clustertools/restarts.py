"""Whether a run is started again, where, and from when: by published evidence. Pure.

    decide(attempts, job, diagnosis, codes=frozenset({"JobCrashed"}), now=now)
        Decision("restart", "nothing explains it: started again on the same nodes at once")

The rules are those of the watchdog reference, section 6.1; each names its evidence where it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from clustertools.catalog.failures import Advice, Signature, signature
from clustertools.diagnose import Diagnosis
from clustertools.model import Attempt, Job, starts_without_progress


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about a run that ended or hangs.

    `restart`: begin it anew, without `exclude`; from a checkpoint before `before_step`, when that is set,
    and, with `skip_data`, without the data around that step.
    `hold`: not now, but ask again (a resource is away). `stop`: not without a person. `leave`: nothing is to
    be done (it ended well, a person ended it, the scheduler begins it anew by itself).
    `counts`: it spends the run's budget. `why` is a sentence for people.
    """

    kind: Literal["restart", "hold", "stop", "leave"]
    why: str
    exclude: tuple[str, ...] = ()
    before_step: int | None = None
    counts: bool = True
    skip_data: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """How far restarts go.

    `launch_retries`: how often a run that never made a step is tried again
    (Aegis: 73 % of failures come within 10 min of the launch). `early_seconds` and `early_steps` are what
    counts as early. What happened longer ago than `window_seconds` is forgotten: blame and exclusions.
    At most `exclude_share` of the job's nodes are left out, one at least, two of four or more, and never more
    than there are spares (5 to 10 % of spare nodes are advised, ml-engineering). `backoff_seconds` doubles
    with each failure of a service or storage in a row, up to `backoff_at_most_seconds`.
    """

    launch_retries: int = 1
    early_seconds: float = 600.0
    early_steps: int = 100
    window_seconds: float = 86400.0
    exclude_share: float = 0.1
    exclude_at_most: int = 16
    backoff_seconds: float = 60.0
    backoff_at_most_seconds: float = 1800.0


@dataclass(frozen=True, slots=True)
class _Around:
    """What is true now beside the run itself: the keywords of `decide`."""

    now: float
    codes: frozenset[str]
    without_progress: int
    on_time_limit: Literal["leave", "restart"]
    first_bad_step: int | None
    kill_switch: bool
    storage_works: bool | None
    spares: int | None
    newest_checkpoint: int | None
    diverged_step: int | None
    rollback: bool


_NOT_FINITE = "LossNotFinite"
#: The one trouble of a run that goes on training; see `_diverged`.
DIVERGED = "LossDiverged"
#: What a run must be started again for, whatever its loss does.
_STOPPED = frozenset({"JobHung", "JobCrashed", "JobIdle", _NOT_FINITE})
#: Causes that are no fault of what the run does: they neither spend its budget nor make it suspect.
_FREE = frozenset({"time-limit", "preempted", "requeued", "person"})


def decide(
    attempts: Sequence[Attempt],
    job: Job,
    diagnosis: Diagnosis,
    *,
    codes: frozenset[str],
    now: float,
    without_progress: int = 3,
    on_time_limit: Literal["leave", "restart"] = "leave",
    first_bad_step: int | None = None,
    kill_switch: bool = False,
    storage_works: bool | None = None,
    spares: int | None = None,
    newest_checkpoint: int | None = None,
    diverged_step: int | None = None,
    rollback: bool = False,
    limits: Limits | None = None,
) -> Decision:
    """What to do about `job`, the newest of `attempts` (oldest first), which ended or has findings `codes`.

    Its attempt need not have an end yet; how it ended is taken from `job` and `diagnosis`.
    `without_progress` starts in a row that are known to have made no step end it (NVRx: 3 cycles; a crash
    loop of 35 requeues cost Meta's RSC 548 preemptions). `first_bad_step`: whose loss was no number.
    `kill_switch`: its kill-switch file is there. `storage_works`: what a probe of the checkpoint storage says
    (None: nobody asked). `spares`: good nodes that the run does not hold (None: not known).
    `newest_checkpoint`: its step. `diverged_step`: the first bad step of a divergence that has not come back;
    only with `rollback`, which its owner has to ask for, the run goes back before it.
    """
    limits = limits or Limits()
    around = _Around(
        now, codes, without_progress, on_time_limit, first_bad_step, kill_switch, storage_works, spares,
        newest_checkpoint, diverged_step, rollback,
    )  # fmt: skip
    case = _Case.of(attempts, job, diagnosis, around, limits)
    told = _by_the_end(case)
    for rule in (
        _diverged,
        _numeric,
        _user,
        _resource,
        _checkpoint,
        _same_step,
        _no_advance,
        _hardware,
        _launch,
        _again,
    ):
        told = told or rule(case)
    assert told is not None, "the last rule always answers"
    told = (_budget(case) or told) if told.kind == "restart" else told
    return _before_divergence(told, around) if told.kind == "restart" else told


def _before_divergence(told: Decision, around: _Around) -> Decision:
    """The same start, whatever it is for, from before a divergence that the owner wants undone."""
    if not around.rollback or around.diverged_step is None:
        return told
    steps = [s for s in (told.before_step, around.diverged_step) if s is not None]
    return dataclasses.replace(told, before_step=min(steps))


def _by_the_end(case: _Case) -> Decision | None:
    """What follows from how the job ended, whatever the logs say."""
    job, around = case.job, case.around

    def leave(why: str) -> Decision:
        return Decision("leave", why, counts=False)

    if around.kill_switch:
        return leave("its kill-switch file is there: not started until somebody removes it")
    if job.ended_by == "person":
        return leave("a person cancelled it: never started again by itself")
    if job.held:
        return leave(f"the scheduler holds it ({job.reason or 'no reason given'}): only a person releases it")
    if job.state == "pending" or job.ended_by in ("requeued", "preempted"):
        return leave("the scheduler begins it anew by itself")
    if job.state == "unknown":
        return leave("nobody knows whether it still runs: a second copy must not be started")
    if job.ended_by == "us":
        return leave("we stopped it; what comes next is decided already")
    if job.state == "ended" and job.exit_reason.startswith("clustertools:"):
        return leave(f"we stopped it ({job.exit_reason})")
    if job.state == "ended" and job.exit_code == 0 and job.ended_by in ("", "itself"):
        return leave("it ended well")
    if job.ended_by == "time-limit":
        if around.on_time_limit == "restart":
            return case.restart("it reached its time limit, which is no failure", counts=False)
        return leave("it reached its time limit, and its config says to leave it then")
    ended_unseen = job.state == "ended" and job.exit_code is None and not job.exit_reason
    if (job.ended_by == "lost" or (ended_unseen and job.ended_by == "")) and not case.diagnosis.cause:
        return leave("nobody knows how it ended: it may have ended well, so it is not started again")
    if job.state in ("running", "completing") and not around.codes:
        return leave("it runs")
    return None


@dataclass(frozen=True, slots=True)
class _Case:
    """A failure and what came before it, as the rules need them. `last` has its end filled in."""

    last: Attempt
    before: tuple[Attempt, ...]
    job: Job
    diagnosis: Diagnosis
    around: _Around
    limits: Limits
    row: Signature | None

    @classmethod
    def of(
        cls,
        attempts: Sequence[Attempt],
        job: Job,
        diagnosis: Diagnosis,
        around: _Around,
        limits: Limits,
    ) -> _Case:
        last = attempts[-1] if attempts else Attempt(job.run, job.attempt or 1, "", job.id)
        last = dataclasses.replace(
            last, end=last.end or "failed", ended_at=last.ended_at or job.ended_at or around.now,
            started_at=last.started_at or job.started_at, nodes=last.nodes or job.nodes,
            cause=diagnosis.cause or last.cause, blamed=diagnosis.blamed or last.blamed,
        )  # fmt: skip
        row = signature(diagnosis.cause) if diagnosis.cause else None
        return cls(last, tuple(attempts[:-1]), job, diagnosis, around, limits, row)

    @property
    def failed_before(self) -> tuple[Attempt, ...]:
        """The failures in a row before this one, newest first; ends that were nobody's fault are passed over.

        Progress ends the row: what was tried before it is forgiven.
        """
        found = []
        for attempt in reversed(self.before):
            if attempt.ended_by in _FREE:
                continue
            if _went_further(self.last, attempt):
                break
            found.append(attempt)
        return tuple(found)

    @property
    def is_early(self) -> bool:
        """Whether it failed before or within its first steps; not known counts as no."""
        new = self.last.new_steps
        if new is None:
            return False
        first = self.last.resume_step is None and not any(a.new_steps for a in self.before)
        return new < self.limits.early_steps and (first or new == 0)

    @property
    def never_trained(self) -> bool:
        """Whether no attempt is known to have made a step, and of none it is unknown."""
        return all(a.new_steps == 0 and not a.resume_step for a in (*self.before, self.last))

    @property
    def advice(self) -> Advice:
        if self.row is None:
            return self.diagnosis.advice
        same, other = self.repeats
        advice = self.row.advice_for(early=self.is_early, same_node=same, other_node=other)
        # a diagnosis may know more than the line: a node with a broken GPU makes a crash the node's
        if self.diagnosis.advice == "exclude" and advice in ("same", "none"):
            return "exclude"
        return "same" if advice == "exclude" and not self.guilty else advice

    @property
    def guilty(self) -> tuple[str, ...]:
        """The nodes that this failure is blamed on; the one that is named, when it failed so before."""
        same, _ = self.repeats
        return self.diagnosis.blamed or (self.suspected if same else ())

    @property
    def suspected(self) -> tuple[str, ...]:
        """The blamed nodes, else the first one that is named."""
        named = tuple(s.node for s in self.diagnosis.suspects if s.node)
        return self.diagnosis.blamed or named[:1] or (self.last.nodes if len(self.last.nodes) == 1 else ())

    @property
    def repeats(self) -> tuple[int, int]:
        """How many failures in a row before had the same cause, on the same node and on others."""
        same = other = 0
        for attempt in self.failed_before:
            if not self.row or attempt.cause != self.row.name:
                break
            here = set(attempt.blamed or attempt.nodes)
            mine = set(self.suspected or self.last.nodes)
            if here & mine:
                same += 1
            else:
                other += 1
        return same, other

    def blamed_before(self, node: str) -> int:
        """How often the node was blamed within the window, before this failure."""
        since = self.around.now - self.limits.window_seconds
        return sum(node in a.blamed and a.ended_at >= since for a in self.before)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Nodes that the run is started without since less than the window, newest first."""
        since = self.around.now - self.limits.window_seconds
        begun: dict[str, float] = {}
        for attempt in (*self.before, self.last):
            begun = {n: begun.get(n, attempt.started_at) for n in attempt.excluded}
        for attempt in (*self.before, self.last):
            for node in attempt.blamed:
                if node in begun:
                    begun[node] = max(begun[node], attempt.ended_at)
        fresh = [n for n, at in begun.items() if at >= since]
        return tuple(sorted(fresh, key=lambda n: (-begun[n], n)))

    def restart(
        self, why: str, new: Iterable[str] = (), *, before_step: int | None = None, counts: bool = True
    ) -> Decision:
        """Start again without the nodes left out before and `new` ones, as far as limits and spares allow."""
        wanted = tuple(dict.fromkeys(new))
        allowed = self.room
        # a node left out before is away already: only new ones need a spare
        kept = self.left_out[: max(0, self.most - len(wanted[:allowed]))]
        refused = wanted[allowed:]
        if refused:
            why += f"; {_listed(refused)} cannot be left out as well ({self.room_why})"
        exclude = tuple(dict.fromkeys((*wanted[:allowed], *kept)))
        return Decision("restart", why, exclude, before_step, counts)

    @property
    def most(self) -> int:
        """How many nodes may be left out at all."""
        size = len(self.last.nodes or self.job.nodes)
        share = math.ceil(self.limits.exclude_share * size)
        return min(max(1 if size < 4 else 2, share), self.limits.exclude_at_most)

    @property
    def room(self) -> int:
        """How many more nodes may be left out now."""
        return self.most if self.around.spares is None else max(0, min(self.most, self.around.spares))

    @property
    def room_why(self) -> str:
        if self.around.spares is not None and self.around.spares < self.most:
            return f"{self.around.spares} spare nodes"
        return f"at most {self.most} of its {len(self.last.nodes or self.job.nodes)} nodes"


def _diverged(case: _Case) -> Decision | None:
    """A loss that left its level and did not come back: told, and undone only where the owner asked for it.

    A second time at a step that it was rolled back from is a person's: the data, the learning rate, the code.
    BLOOM's first spike, and most others, came back by themselves; a spike is no reason to stop a run.
    """
    around = case.around
    if DIVERGED not in around.codes or around.codes & _STOPPED or case.job.state == "ended":
        return None
    step = around.diverged_step
    if not around.rollback:
        why = "its config does not ask for a rollback (loss: {rollback: on-divergence})"
        return Decision("leave", f"the loss diverged, and {why}", counts=False)
    if step is None:
        return Decision("hold", "the loss diverged: undone when it is not back after 50 rows", counts=False)
    if any(a.cause == DIVERGED and (a.last_step or 0) >= step for a in case.before):
        return Decision(
            "stop", f"the loss diverged again, at step {step}, after it was rolled back from there"
        )
    told = case.restart(
        f"the loss diverged and did not come back: from a checkpoint before step {step}", before_step=step
    )
    return dataclasses.replace(told, skip_data=True)


def _numeric(case: _Case) -> Decision | None:
    """A loss that is no number: from before it; the second time on other nodes; the third time a person.

    Three of four such cases of ByteRobust's large jobs were of the infrastructure.
    """
    if _NOT_FINITE not in case.around.codes and case.diagnosis.cause != _NOT_FINITE:
        return None
    before_step = case.around.first_bad_step
    # an attempt that got as far as this bad step and died of it before
    reached = [a for a in case.before if a.cause == _NOT_FINITE and a.last_step is not None]
    earlier = [a for a in reached if before_step is None or (a.last_step or 0) >= before_step]
    if len(earlier) >= 2:
        return Decision("stop", "the loss became no number for the third time: the data or the code")
    why = "the loss is no number: from a checkpoint before it"
    guilty = case.guilty if case.advice == "exclude" else ()
    if earlier or guilty:
        swap = guilty or case.suspected
        where = f", without {_listed(swap)}" if swap else "; nobody knows which node to change"
        again = ", for the second time" if earlier else ""
        return case.restart(f"{why}{again}{where}", swap, before_step=before_step)
    return case.restart(why, before_step=before_step)


def _user(case: _Case) -> Decision | None:
    """Errors of code, arguments, configuration or environment: starting again fails again."""
    if case.advice == "stop" and case.row is not None:
        times = sum(case.repeats)
        again = f", for the {_ordinal(times + 1)} time" if times else ""
        return Decision("stop", f"{case.row.meaning}{again}: starting it again would fail again")
    if case.diagnosis.advice == "stop" and case.row is None:
        return Decision("stop", case.diagnosis.summary or "its failure needs a person")
    return None


def _resource(case: _Case) -> Decision | None:
    """Storage or a service that is away: when it is back, by a probe or after a while."""
    if case.row is None or case.advice != "wait":
        return None
    full = case.row.kind == "storage-full"
    storage = full or case.row.kind == "storage"
    if storage and case.around.storage_works is False:
        return Decision("hold", f"{case.row.meaning}: started again when a probe of it passes", counts=False)
    # a run that hangs has waited long enough by itself
    if case.job.state == "ended" and not (storage and case.around.storage_works):
        times = 1 + sum(case.repeats)
        wait = min(case.limits.backoff_seconds * 2 ** (times - 1), case.limits.backoff_at_most_seconds)
        left = case.last.ended_at + wait - case.around.now
        if left > 0:
            return Decision("hold", f"{case.row.meaning}: tried again in {math.ceil(left)} s", counts=False)
    suspects = case.guilty if not full else ()
    # what was being written when the storage ran full is torn, however new it looks
    step = case.around.newest_checkpoint if case.around.newest_checkpoint is not None else case.last.last_step
    return case.restart(
        f"{case.row.meaning}, and it is time to try again", suspects, before_step=step if full else None,
    )  # fmt: skip


def _checkpoint(case: _Case) -> Decision | None:
    """What it was begun from could not be loaded: the program is a better judge of that than we are."""
    if case.row is None or case.row.kind != "checkpoint" or case.last.new_steps or not case.last.resume_step:
        return None
    step = case.last.resume_step
    return case.restart(f"the checkpoint of step {step} could not be loaded: an older one", before_step=step)


def _same_step(case: _Case) -> Decision | None:
    """The same step twice: on different nodes it is the data or the code, on the same perhaps the node.

    ByteRobust rolls back the code then; NVRx leaves node and rank out of its fingerprint for this.
    """
    if case.last.last_step is None or not case.last.new_steps or _is_explained(case):
        return None
    there = [a for a in case.failed_before if _same_place(a, case.last)]
    if not there:
        return None
    step = case.last.last_step
    if len(there) >= 2:
        return Decision("stop", f"it failed at step {step} for the third time: the data or the code")
    before, mine = set(there[0].blamed or there[0].nodes), set(case.suspected or case.last.nodes)
    if before and mine and not before & mine:
        return Decision("stop", f"it failed at step {step} twice, on different nodes: the data or the code")
    swap = case.suspected
    where = f"without {_listed(swap)} this time" if swap else "nobody knows which node to change"
    return case.restart(f"it failed at step {step} twice on the same nodes: {where}", swap)


def _start(attempt: Attempt) -> int | None:
    """Where it began, by its log or by the checkpoint that it was given; None: nobody knows."""
    return attempt.first_step if attempt.first_step is not None else attempt.resume_step


def _went_further(later: Attempt, earlier: Attempt) -> bool:
    """Whether the run made progress between the two ends.

    Not when both began at the same place: no checkpoint was saved in between. Else when the later one passed
    the step at which the earlier failed; where that is not known, when it made any step.
    """
    if later.new_steps == 0 or (_start(later) is not None and _start(later) == _start(earlier)):
        return False
    if later.last_step is not None and earlier.last_step is not None:
        return later.last_step > earlier.last_step
    return bool(later.new_steps)


def _is_explained(case: _Case) -> bool:
    return case.diagnosis.advice == "exclude" and bool(case.diagnosis.blamed)


def _same_place(one: Attempt, other: Attempt) -> bool:
    """Whether both made steps and failed at the same one."""
    return bool(one.new_steps) and one.last_step is not None and one.last_step == other.last_step


def _hardware(case: _Case) -> Decision | None:
    """A node with hardware evidence is left out at once; one that is blamed twice as well.

    ByteRobust resolves 32.5 % by eviction; a node that was only present is left out the third time
    (nvrx-watch: three short cycles).
    """
    if case.advice == "exclude" and case.guilty:
        return case.restart(f"{case.diagnosis.summary}: started without {_listed(case.guilty)}", case.guilty)
    again = tuple(n for n in case.guilty if case.blamed_before(n))
    if again:
        return case.restart(f"{_listed(again)} blamed for the second time: started without it", again)
    present = _only_present(case)
    if present:
        return case.restart(
            f"{_listed(present)} was in each of the last 3 failed starts, the other nodes changed: left out",
            present,
        )  # fmt: skip
    return None


def _only_present(case: _Case) -> tuple[str, ...]:
    """The one node that was in this failure and in the two before it, where the others changed."""
    since = case.around.now - case.limits.window_seconds
    failed = [a for a in case.before if a.ended_by not in _FREE and a.ended_at >= since][-2:]
    sets = [set(a.nodes) for a in (*failed, case.last)]
    mine = case.row is not None and case.row.kind in ("user", "environment")
    if len(sets) < 3 or not all(sets) or mine:
        return ()
    common = set.intersection(*sets)
    return tuple(common) if len(common) == 1 and all(len(s) > 1 for s in sets) else ()


def _budget(case: _Case) -> Decision | None:
    """So many starts in a row without a step (where progress is known) need a person."""
    limited = case.job.ended_by == "time-limit"
    mine = [a for a in (*case.before, case.last) if limited or a.ended_by not in _FREE]
    lost = starts_without_progress(mine)
    if lost < case.around.without_progress:
        return None
    causes = {a.cause for a in mine[-lost:] if a.cause}
    same = f", each by {case.row.meaning}" if case.row and causes == {case.row.name} else ""
    return Decision("stop", f"{lost} starts in a row made no new step{same}: a person must look")


def _no_advance(case: _Case) -> Decision | None:
    """So many failures of one signature that all began from one checkpoint, wherever each of them ended.

    That the newest saved none is not known yet; that those before it did not is, as it began where they did.
    """
    start = _start(case.last)
    if start is None or _is_explained(case):
        return None
    failed = [a for a in case.before if a.ended_by not in _FREE]
    same = 0
    for attempt in reversed(failed):
        if _start(attempt) != start or attempt.cause != case.last.cause or attempt.last_step is None:
            break
        same += 1
    newest = case.around.newest_checkpoint
    same += newest is not None and newest <= start
    if same < case.around.without_progress:
        return None
    return Decision("stop", f"{same} starts in a row failed in the same way and saved no checkpoint")


def _launch(case: _Case) -> Decision | None:
    """A run that never made a step is tried once more, not for ever."""
    if not case.never_trained or case.last.ended_at - case.last.started_at > case.limits.early_seconds:
        return None
    tries = 1 + sum(a.ended_by not in _FREE for a in case.before)
    if tries > case.limits.launch_retries:
        return Decision("stop", f"it failed {tries} times at its launch and never made a step")
    return None


def _again(case: _Case) -> Decision | None:
    """What nothing else answers: 73 % are transient (Unicron), 75 % end with a process restart (DLRover)."""
    named = case.row.meaning if case.row else "nothing explains it"
    return case.restart(f"{named}: started again on the same nodes at once")


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
