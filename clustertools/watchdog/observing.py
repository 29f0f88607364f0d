"""What one pass sees: this machine, the runs of the scheduler, the nodes of those in doubt, and why.

Logs and checkpoints are read here, where the shared file system is mounted; the nodes of a job are looked at
only when one of its checks asks for that, those of all such jobs side by side.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clustertools import check as checking
from clustertools import systemd
from clustertools.actions.restart import how_it_ended
from clustertools.catalog.failures import FailureLine
from clustertools.check import Check
from clustertools.diagnose import Diagnosis, Evidence, diagnose
from clustertools.errors import Unobservable
from clustertools.host import Host
from clustertools.model import Attempt, Finding, Incident, Job, Status, Subject, Verdict, from_data
from clustertools.policy import STARTS
from clustertools.schedulers import FindsRuns, KnowsNodes, RunSpec, Scheduler, Wanted
from clustertools.shared_host import SharedHost
from clustertools.sources.failures import kernel_failures
from clustertools.sources.job_look import JobLook, Looker, LookOrder, LookRequest
from clustertools.sources.stacks import odd_ranks
from clustertools.store import Store
from clustertools.text import plain
from clustertools.watchdog.settings import Settings

#: Findings of these codes are worth a diagnosis: the run stands still, or ended in a way that nobody wanted.
DIAGNOSED = frozenset({"JobHung", "JobCrashed", "JobIdle", "LossNotFinite"})
#: A summary is one line of a message; the whole diagnosis stands in the evidence.
SUMMARY_CHARACTERS = 160
#: Kernel lines this long before the trouble may explain it (Meta RSC: a check up to 10 min before counts).
KERNEL_SECONDS = 3600.0
#: What is open about a run that ended and is in no queue any more is over after so long.
FORGET_SECONDS = 86400.0


@dataclass
class Seen:
    """What one pass saw. `away` says why the scheduler could not be asked; then nothing is known of runs.

    `news` are attempts of a run as its scheduler tells them and nobody had written them down.
    `attempts`: run -> those of its attempts of which more is known now than is written down.
    `first_bad_steps`: run -> the step from which on its checkpoints are worth nothing; `diverged_steps`:
    run -> the same of a loss that diverged, about which one may be of another opinion.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    specs: dict[str, RunSpec] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    looks: dict[str, JobLook] = field(default_factory=dict)
    evidence: dict[str, Evidence] = field(default_factory=dict)
    diagnoses: dict[str, Diagnosis] = field(default_factory=dict)
    news: dict[str, list[Attempt]] = field(default_factory=dict)
    first_bad_steps: dict[str, int] = field(default_factory=dict)
    diverged_steps: dict[str, int] = field(default_factory=dict)
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    away: str = ""


@dataclass
class Observer:
    """The parts that a look needs."""

    store: Store
    host: Host
    scheduler: Scheduler
    checks: Sequence[Check]
    specs: Sequence[RunSpec]
    wanted: Sequence[Wanted]
    looker: Looker | None
    settings: Settings

    def look(self, now: float) -> Seen:
        """Run every check that is due, and find out why runs are in trouble."""
        seen = Seen()
        host = SharedHost(self.host)
        for check in self.checks:
            subject = Subject(cluster=self.settings.cluster, node=host.name)
            if "job" not in check.stages and self._is_due(check, subject, now):
                seen.verdicts.append(self._run(check, host, None))
        self.find_runs(seen, now)
        job_checks = [check for check in self.checks if "job" in check.stages]
        for spec in seen.specs.values():
            self._look_at_run(seen, spec, job_checks, host, now)
            systemd.alive()
        self._look_at_nodes(seen, job_checks, host, now)
        self._keep_open(seen, now)
        incidents = [i for i in self.store.incidents().values() if i.state == "open"]
        self._explain(seen, incidents, now)
        self._forget(seen, incidents, now)
        by_run = _by_run(seen.verdicts)
        for run, job in seen.jobs.items():
            news = seen.news.get(run, [])
            if fresh := attempts_seen(job, by_run.get(run, ()), news, now):
                seen.attempts[run] = fresh
        return seen

    def _keep_open(self, seen: Seen, now: float) -> None:
        """A run that we stop shows no trouble any more, but is not well before it is started again."""
        stopped = {
            row.action.target.run
            for row in self.store.actions(since=now)
            if row.action.kind in STARTS and row.state == "running" and row.step != "wait_step"
        }
        for number, verdict in enumerate(seen.verdicts):
            if (
                verdict.subject.run in stopped
                and verdict.status is Status.OK
                and verdict.check != "job_state"
            ):
                seen.verdicts[number] = dataclasses.replace(
                    verdict, status=Status.SKIPPED, detail="the run is being restarted"
                )

    def _forget(self, seen: Seen, incidents: Iterable[Incident], now: float) -> None:
        """End what is open about runs that nobody runs any more: their owner has had a day to hear of it."""
        if seen.away or not isinstance(self.scheduler, FindsRuns):
            return
        for run in sorted({i.finding.subject.run for i in incidents} - seen.specs.keys() - {""}):
            last = next(reversed(self.store.attempts(run)), None)
            if last is None or not last.end or now - last.ended_at < FORGET_SECONDS:
                continue
            subject = Subject(cluster=self.settings.cluster, run=run)
            for check in sorted({i.finding.check for i in incidents if i.finding.subject.run == run}):
                over = Verdict(check, subject, Status.OK, detail="the run ended a day ago", time=now)
                seen.verdicts.append(over)

    def find_runs(self, seen: Seen, now: float) -> None:
        """The runs there are, and the newest job of each as its scheduler tells it."""
        attempts = {run: tuple(known) for run, known in self.store.all_attempts().items()}
        try:
            found = self._runs(attempts)
        except Unobservable as exc:
            seen.away = str(exc)
            whole = Subject(cluster=self.settings.cluster)
            seen.verdicts.append(Verdict("job_list", whole, Status.UNKNOWN, blind=str(exc), time=now))
            return
        if isinstance(self.scheduler, FindsRuns):
            whole = Subject(cluster=self.settings.cluster)
            seen.verdicts.append(Verdict("job_list", whole, Status.OK, detail=f"{len(found)} runs", time=now))
        for spec in found:
            subject = Subject(cluster=self.settings.cluster, run=spec.name)
            seen.specs[spec.name] = spec
            try:
                job = self.scheduler.job(spec, attempts.get(spec.name, ()))
            except Unobservable as exc:
                blind = Verdict("job_state", subject, Status.UNKNOWN, blind=str(exc), time=now)
                seen.verdicts.append(blind)
                continue
            seen.jobs[spec.name] = job
            known = attempts.get(spec.name, ())
            if job.attempts != known:
                seen.news[spec.name] = [a for a in job.attempts if a not in known]
            state = f"{job.state} ({job.reason})" if job.reason else job.state
            seen.verdicts.append(Verdict("job_state", subject, Status.OK, detail=state, time=now))

    def _runs(self, attempts: Mapping[str, tuple[Attempt, ...]]) -> Sequence[RunSpec]:
        if isinstance(self.scheduler, FindsRuns) and self.wanted:
            return [*self.specs, *self.scheduler.runs(self.wanted, attempts)]
        return self.specs

    def _look_at_run(
        self, seen: Seen, spec: RunSpec, checks: Iterable[Check], host: Host, now: float
    ) -> None:
        job = seen.jobs.get(spec.name)
        if job is None:
            return
        subject = Subject(cluster=self.settings.cluster, run=spec.name)
        for check in checks:
            if self._is_due(check, subject, now):
                seen.verdicts.append(self._run(check, host, job, spec))

    def _is_due(self, check: Check, subject: Subject, now: float) -> bool:
        interval = self.settings.spacing(check)
        if not interval:
            return True
        last = self.store.cursor("ran:" + check.name, str(subject)).get("at", 0.0)
        # a clock that was set back must not silence a check
        return not 0 <= now - last < interval - 0.5 * self.settings.interval_seconds

    def _run(
        self, check: Check, host: Host, job: Job | None, spec: RunSpec | None = None, looked: Any = None
    ) -> Verdict:
        cluster = self.settings.cluster
        subject = Subject(cluster=cluster, run=job.run) if job else Subject(cluster=cluster, node=host.name)
        verdict = checking.run(
            check, host, limits=self._limits(check, spec), expect=self.settings.expect,
            past=self.store.memory(check.name, subject), job=job, cluster=cluster, looked=looked,
        )  # fmt: skip
        if job is None:
            systemd.alive()  # each check has its own deadline: a pass may be long without being stuck
        return verdict

    def _limits(self, check: Check, spec: RunSpec | None) -> Any:
        """The check's limits here; those of the run go before those of the config."""
        limits = self.settings.limits.get(check.name)
        own = spec.limits.get(check.name) if spec else None
        if not own:
            return limits
        return dataclasses.replace(limits if limits is not None else check.limits(), **own)

    # the nodes of jobs in doubt

    def _look_at_nodes(self, seen: Seen, checks: Sequence[Check], host: Host, now: float) -> None:
        """Look at the nodes that checks asked for, all at once, and run those checks again."""
        doubted = {v.subject.run for v in seen.verdicts if v.wants_look}
        if not doubted:
            return
        seen.looks |= self.looks([(seen.specs[run], seen.jobs[run]) for run in sorted(doubted)], now)
        systemd.alive()
        by_name = {check.name: check for check in checks}
        for number, verdict in enumerate(seen.verdicts):
            if verdict.wants_look:
                run = verdict.subject.run
                check, looked = by_name[verdict.check], seen.looks.get(run, JobLook())
                seen.verdicts[number] = self._run(check, host, seen.jobs[run], seen.specs[run], looked)

    def looks(self, jobs: Sequence[tuple[RunSpec, Job]], now: float) -> dict[str, JobLook]:
        """What the nodes of these jobs show."""
        if self.looker is None:
            why = "there is no way to the nodes here"
            return {job.run: JobLook((), dict.fromkeys(job.nodes, why)) for _, job in jobs}
        return dict(self.looker.look([look_order(spec, job, now) for spec, job in jobs]))

    # why

    def _told_by_nodes(self, now: float) -> list[Incident]:
        """What nodes found out about themselves: one that drains itself writes the code into its reason.

        A run can only have begun there before, so what stands there came while it ran.
        """
        if not isinstance(self.scheduler, KnowsNodes):
            return []
        try:
            nodes = self.scheduler.nodes()
        except Unobservable:
            return []  # the diagnosis does without
        found = []
        for node in nodes.values():
            # clustertools: XidGpuLost gpu@0000:5d:00.0: the GPU fell off the bus (node-health)
            told = re.match(r"clustertools: ([A-Z][A-Za-z0-9]{2,60})\b", node.reason)
            if told and node.is_drained:
                about = Subject(cluster=self.settings.cluster, node=node.name)
                finding = Finding(
                    "slurm_node", told[1], about, Status.CRITICAL, plain(node.reason, 200), time=now
                )
                found.append(Incident(finding, "open", now, now, now))
        return found

    def _explain(self, seen: Seen, incidents: Sequence[Incident], now: float) -> None:
        """Say of each run in trouble what it was and who is guilty, as far as the evidence goes."""
        for verdict in seen.verdicts:
            if verdict.check != "job_loss":
                continue
            for name, steps in (
                ("first_bad_step", seen.first_bad_steps),
                ("diverged_step", seen.diverged_steps),
            ):
                if isinstance(step := verdict.memory.get(name), int):
                    steps[verdict.subject.run] = step
        troubled = {f.subject.run for v in seen.verdicts for f in v.findings if f.code in DIAGNOSED}
        if not troubled:
            return
        by_run = _by_run(seen.verdicts)
        incidents = [*incidents, *self._told_by_nodes(now)]
        for run in sorted(troubled & seen.jobs.keys()):
            seen.evidence[run] = evidence(seen.jobs[run], by_run[run], seen.looks.get(run), incidents)
            seen.diagnoses[run] = diagnose(seen.evidence[run])
        known = {run: d for run, d in seen.diagnoses.items() if d.cause or d.suspects}
        seen.verdicts[:] = [
            _told(v, known[v.subject.run]) if v.subject.run in known else v for v in seen.verdicts
        ]


def look_order(spec: RunSpec, job: Job, now: float) -> LookOrder:
    """A look at the nodes of a job."""
    since = max(job.started_at, now - KERNEL_SECONDS)
    # processes of this machine are known by number; those of a scheduler's job by the job's
    request = LookRequest("" if job.pids else job.id, job.run, job.pids, kernel_since=since)
    return LookOrder(request, job.nodes, spec.look)


def evidence(
    job: Job, verdicts: Iterable[Verdict], look: JobLook | None, incidents: Iterable[Incident]
) -> Evidence:
    """What was seen of a run's trouble, as `diagnose` takes it."""
    lines = [
        from_data(FailureLine, item)
        for verdict in verdicts
        for item in verdict.memory.get("failures", ())
        if verdict.check in ("job_exit", "job_progress")
    ]
    nodes = look.nodes if look else ()
    lines += [line for node in nodes for line in kernel_failures(node.node, node.kernel)]
    rank_nodes = {int(rank): node.node for node in nodes for rank in node.ranks}
    odd = odd_ranks(stack for node in nodes for stack in node.stacks)
    return Evidence(
        job, lines, rank_nodes, odd, world_size=len(rank_nodes),
        incidents=[i for i in incidents if i.finding.subject.node in job.nodes],
        unseen_nodes=dict(look.unseen) if look else {},
    )  # fmt: skip


def _by_run(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    found: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        found.setdefault(verdict.subject.run, []).append(verdict)
    return found


def attempts_seen(
    job: Job, verdicts: Sequence[Verdict], news: Sequence[Attempt], now: float
) -> list[Attempt]:
    """The attempts of a job that this pass knows more of than is written down; one may be new altogether.

    `verdicts` are those about its run, `news` what its scheduler told that nobody had written down.
    """
    if not job.attempts:
        return []
    attempt = job.attempts[-1]
    steps: dict[str, int] = {}
    cause, blamed = attempt.cause, attempt.blamed
    for verdict in verdicts:
        if verdict.check == "job_progress":
            steps |= {r.name: int(r.value) for r in verdict.readings}
            if verdict.status is Status.OK and job.state == "running":
                cause, blamed = "", ()  # what was wrong with it went by: nobody is to blame for its end yet
    codes = {f.code for v in verdicts for f in v.findings}
    if "LossDiverged" in codes:
        cause = "LossDiverged"  # where it ended by our hand for that, the next decision has to know
    for finding in (f for v in verdicts for f in v.findings if f.code in DIAGNOSED):
        cause, blamed = finding.cause or cause, finding.blamed or blamed
    new = dataclasses.replace(
        attempt,
        job_id=job.id,
        first_step=steps.get("job_first_step", attempt.first_step),
        last_step=steps.get("job_last_step", attempt.last_step),
        nodes=job.nodes or attempt.nodes,
        cause=cause,
        blamed=blamed,
    )
    if job.state == "ended" and not new.end:
        new = dataclasses.replace(
            new, ended_at=job.ended_at or now, end=job.exit_reason or how_it_ended(job), ended_by=job.ended_by
        )
    # all but the newest are told by the scheduler alone
    return [*news, *([new] if new != attempt or news else [])]


def _told(verdict: Verdict, diagnosis: Diagnosis) -> Verdict:
    """The verdict, with what the diagnosis says in those of its findings that it is about."""
    told = plain(diagnosis.summary, SUMMARY_CHARACTERS)
    return dataclasses.replace(
        verdict,
        findings=tuple(
            dataclasses.replace(
                f, cause=diagnosis.cause, blamed=diagnosis.blamed,
                summary=f"{f.summary}; {told}" if told else f.summary,
                evidence=tuple(dict.fromkeys((diagnosis.summary, *diagnosis.lines, *f.evidence))),
            )
            if f.code in DIAGNOSED
            else f
            for f in verdict.findings
        ),
    )  # fmt: skip
