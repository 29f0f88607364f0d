"""The last stage: the nodes work together, and who is guilty when that is slow, wrong or stands still.

`isolate` says which groups to run, this runs them and grades what came of it, until `isolate` is sure, the
rounds are used up, or the time is.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from clustertools import isolate, performance
from clustertools.fleet.probing import as_group
from clustertools.measurement import Ending, Figure, Grade, Judged, Trial
from clustertools.preflight.meeting import MeetingPlace, group_order, meeting_place, ports
from clustertools.preflight.record import StageCount
from clustertools.preflight.session import Session, note_the_gone
from clustertools.preflight_report import Case, GroupResult, Round, Stage, Untested

NAME = "fabric"
COLLECTIVE, RDMA = "collective", "ib_write_bw"
#: What is compared; algbw and the times tell the same once more.
METRICS = ("busbw_bytes_per_second", "rdma_write_bytes_per_second")
#: What a launch set is tried with in the end: what data, tensor, sequence and expert parallel jobs use.
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
MIB = 1 << 20
#: Message sizes. The large one is near the asymptote of the bus bandwidth (128 MiB gives half of it on eight
#: B200 in four nodes, 1 GiB most), the small one shows latency. Over TCP on CPUs a tenth of that is plenty.
GPU_SIZES = (8 * MIB, 1024 * MIB)
CPU_SIZES = (64 << 10, 4 * MIB)
#: nccl-tests takes 20 iterations after 1 to 5 warm-ups by default; a round of many groups repeats anyway.
WARMUP, ITERATIONS = 2, 5
#: A group that is not done by then hangs: setting up NCCL over a thousand ranks takes tens of seconds.
GPU_ROUND_SECONDS, CPU_ROUND_SECONDS = 60.0, 20.0
#: Or when it takes so many times longer than the slowest good group of that size.
PATIENCE = 10.0
#: Fewer figures of a kind than this say nothing of what is usual.
ENOUGH_TO_COMPARE = 3
#: No round is begun with less time than this.
LEAST_SECONDS = 5.0


@dataclass
class Searched:
    """Every round of the search, what was measured in it, and what of it counts as evidence."""

    rounds: list[Round] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    history: list[tuple[isolate.Round, Sequence[isolate.GroupResult]]] = field(default_factory=list)


def search(session: Session) -> Searched:
    """Find who is guilty of what the nodes cannot do together, and write it down at each node."""
    asked, record, searched = session.asked, session.record, Searched()
    place = meeting_place(session.hello(session.fit()), asked.interface)
    for node in session.fit():
        if node not in place:
            which = f" on {asked.interface}" if asked.interface else " but its own"
            record[node].doubts.append(f"{NAME}: it has no address{which}")
    nodes = session.fit()
    if len(nodes) < 2:
        few = f"{len(nodes)} nodes are left that could work together"
        record.untested.append(Untested("the nodes together", few, required=len(asked.nodes) > 1))
        return searched
    runner = _Runner(session, place)
    with record.stage(NAME, len(nodes)) as stage:
        if all(RDMA in session.probers.hello[node].tools for node in nodes):
            searched.history.append(runner.tell(_neighbours(nodes), searched, RDMA))
        found = _rounds(session, nodes, runner, searched, stage)
        told = (r for _, results in searched.history for r in results if r.grade is not Grade.COULD_NOT_RUN)
        stage.done = len({node for result in told for node in result.nodes})
    record.suspects = found.suspects
    for node in found.cleared:
        record[node].tried(Trial(COLLECTIVE, (node,), Ending.DONE), NAME)
    for node in found.undecided:
        record[node].doubts.append(f"the fabric test did not clear it: {found.sentence}")
    return searched


def search_on(session: Session, searched: Searched, nodes: Sequence[str]) -> None:
    """Go on from a large group of cleared nodes that failed, the last of the history: which of them do not
    get on with each other? What is found is added to the suspects; the nodes stay cleared."""
    runner = _Runner(session, meeting_place(session.hello(nodes), session.asked.interface))
    with session.record.stage("fabric again", len(nodes)) as stage:
        found = _rounds(session, nodes, runner, searched, stage)
        stage.done = len(nodes)
    known = {(suspect.kind, suspect.names) for suspect in session.record.suspects}
    new = [suspect for suspect in found.suspects if (suspect.kind, suspect.names) not in known]
    session.record.suspects = (*session.record.suspects, *new)


def _rounds(
    session: Session, nodes: Sequence[str], runner: _Runner, searched: Searched, stage: StageCount
) -> isolate.Conclusion:
    """Run what `isolate` asks for until it is sure, or the rounds or the time are used up."""
    history, asked = searched.history, session.asked
    question = isolate.Question(tuple(nodes), asked.topology, seed=asked.seed)
    # halving a large group takes up to four rounds a level, with what is repeated to be sure
    rounds = max(question.budget_rounds, 4 * len(nodes).bit_length())
    question = replace(question, budget_rounds=len(history) + rounds)
    step = isolate.next_step(question, history)
    while isinstance(step, isolate.Round):
        if session.budget.left < LEAST_SECONDS:
            stage.note = f"the time was over after {len(history)} rounds"
            return isolate.so_far(question, history)
        told = f"round {len(history) + 1}: {step.why}"
        session.tell(Stage(NAME, question.budget_rounds, len(history), stage.elapsed_seconds, told))
        history.append(runner.tell(step, searched))
        # who went away takes part no more: a partner that waits for it could not be cleared
        there = tuple(node for node in question.nodes if node not in session.probers.gone)
        question = replace(question, nodes=there)
        step = isolate.next_step(question, history)
    return step


def together(session: Session, nodes: Sequence[str], searched: Searched) -> list[Case]:
    """The collectives over exactly the nodes that the job would run on: what no smaller group has shown.

    Ends with the first that fails, or when the time is over; the first is always tried. One that fails is
    evidence for `search_on`.
    """
    runner = _Runner(session, meeting_place(session.hello(nodes), session.asked.interface))
    cases: list[Case] = []
    for collective in COLLECTIVES:
        if cases and (cases[-1].grade is not Grade.GOOD or session.budget.left < LEAST_SECONDS):
            break
        group = isolate.Round((tuple(nodes),), collective, f"{collective} over all nodes of the launch")
        began = time.monotonic()
        results = runner.run(group, searched.judged)
        cases.append(
            Case("launch", collective, results[0].grade, results[0].detail, time.monotonic() - began)
        )
        if results[0].grade in (Grade.BAD_HARDWARE, Grade.WRONG_DATA):
            # every two of them may use a path here, as they do in pairs traffic
            searched.history.append((replace(group, traffic=isolate.PAIRS), results))
    return cases


def _neighbours(nodes: Sequence[str]) -> isolate.Round:
    """Every node with the next one; of an odd number the last is left for the rounds that follow."""
    pairs = tuple(zip(nodes[::2], nodes[1::2], strict=False))
    return isolate.Round(pairs, isolate.ALL_REDUCE, "RDMA writes between neighbours")


class _Runner:
    """Runs the groups of a round, and grades each by what the others of its kind reach."""

    def __init__(self, session: Session, place: MeetingPlace) -> None:
        self.session, self.place = session, place
        probers, asked = session.probers, session.asked
        self.seen: dict[tuple[object, ...], list[float]] = {}
        self.is_gpu = all(probers.hello[n].devices for n in probers.present)
        self.sizes = asked.sizes_bytes or (GPU_SIZES if self.is_gpu else CPU_SIZES)
        self.longest_seconds = GPU_ROUND_SECONDS if self.is_gpu else CPU_ROUND_SECONDS
        self.ports = ports(asked.seed)
        self.took: list[tuple[int, float]] = []

    def tell(
        self, step: isolate.Round, searched: Searched, probe: str = COLLECTIVE
    ) -> tuple[isolate.Round, list[isolate.GroupResult]]:
        """Run one round and write it into the story of the search."""
        began = time.monotonic()
        results = self.run(step, searched.judged, probe)
        told = tuple(GroupResult(r.nodes, r.grade, r.ratio) for r in results)
        searched.rounds.append(Round(step.why, told, time.monotonic() - began))
        return step, results

    def run(
        self, step: isolate.Round, judged: list[Judged], probe: str = COLLECTIVE
    ) -> list[isolate.GroupResult]:
        """One round: what every group showed. `judged` gets the figures of all of them."""
        parameters: dict[str, object] = {} if probe == RDMA else {
            "collective": step.traffic, "sizes_bytes": list(self.sizes), "warmup": WARMUP,
            "iterations": ITERATIONS, "environment": dict(self.session.asked.environment),
        }  # fmt: skip
        order = group_order(probe, step.groups, self.place, self.ports, **parameters)
        members = list(itertools.chain.from_iterable(step.groups))
        seconds = max(1.0, min(self._patience(step), self.session.budget.left))
        answers = self.session.probers.ask(order, members, timeout_seconds=seconds)
        trials = [as_group(probe, group, answers) for group in step.groups]
        note_the_gone(self.session.record, self.session.probers)
        self.took += [(len(t.nodes), t.elapsed_seconds) for t in trials if t.ending is Ending.DONE]
        graded = self._graded([f for trial in trials for f in trial.figures if f.metric in METRICS])
        judged += graded
        by_nodes: dict[frozenset[str], list[Judged]] = {}
        of_node = {node: group for group in step.groups for node in group}
        for one in graded:
            by_nodes.setdefault(frozenset(of_node[one.figure.nodes[0]]), []).append(one)
        return [self._result(trial, by_nodes.get(frozenset(trial.nodes), [])) for trial in trials]

    def _patience(self, step: isolate.Round) -> float:
        """How long before a group hangs: learned from what groups of that size took, where any was good."""
        size = max(len(group) for group in step.groups)
        took = [seconds for nodes, seconds in self.took if nodes >= size]
        return (
            min(self.longest_seconds, max(LEAST_SECONDS, PATIENCE * max(took)))
            if took
            else self.longest_seconds
        )

    def _graded(self, figures: Sequence[Figure]) -> list[Judged]:
        """Each figure against all of its kind in this search; where it is the only one, as others judge it.

        Not against those that are alike: half of the groups may hold the one slow node, and would pass for a
        population of their own. What is usual among them, `isolate` says.
        """
        for figure in figures:
            self.seen.setdefault(figure.comparable, []).append(figure.value)
        graded = []
        for one in self.session.yardsticks.assess(figures).judged:
            seen = self.seen[one.figure.comparable]
            if len(seen) < ENOUGH_TO_COMPARE or one.grade is Grade.COULD_NOT_RUN:
                graded.append(one)
                continue
            middle = statistics.median(seen)
            ratio = one.figure.value / middle
            grade = Grade.SLOW if ratio < isolate.Noise().slow_at else Grade.GOOD
            against = f"{performance.told(middle, one.figure)}, the median of {len(seen)} in this search"
            graded.append(Judged(one.figure, grade, "peers", ratio, against))
        return graded

    def _result(self, trial: Trial, own: Sequence[Judged]) -> isolate.GroupResult:
        """A group whose member went away tells nothing of the others; of that one its record tells."""
        if any(node in self.session.probers.gone for node in trial.nodes):
            return isolate.GroupResult(trial.nodes, Grade.COULD_NOT_RUN, detail="a member went away")
        if trial.ending is not Ending.DONE:
            grade = {
                Ending.WRONG_DATA: Grade.WRONG_DATA, Ending.COULD_NOT_RUN: Grade.COULD_NOT_RUN,
            }.get(trial.ending, Grade.BAD_HARDWARE)  # fmt: skip
            return isolate.GroupResult(trial.nodes, grade, blamed=trial.blamed, detail=trial.detail)
        largest = max((j.figure.size_bytes for j in own), default=0)
        own = [j for j in own if j.figure.size_bytes == largest]
        if any(j.grade is Grade.COULD_NOT_RUN for j in own):
            return isolate.GroupResult(trial.nodes, Grade.COULD_NOT_RUN, detail=own[0].against)
        told = [j for j in own if j.grade is not Grade.UNTESTED]
        whole = [j.ratio for j in told if set(j.figure.nodes) == set(trial.nodes)]
        pairs = {(j.figure.nodes[0], j.figure.nodes[1]): j.ratio for j in told if len(j.figure.nodes) == 2}
        return isolate.GroupResult(
            trial.nodes, Grade.SLOW if any(j.grade is Grade.SLOW for j in told) else Grade.GOOD,
            min(whole, default=None), pairs if len(trial.nodes) > 2 else {},
        )  # fmt: skip
