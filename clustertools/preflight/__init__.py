"""Before a launch: are these nodes good, which are not, what is guilty, and which should the job use.

    report = examine(Asked(nodes=expand("gpu[001-032]")), transport, requests, tell)
    report.verdict.sentence

Stages, each on the nodes that nothing speaks against so far: look at all of them (the passive checks), load
each one by itself (the probes), then let them work together and search for whom a slow or broken collective
is to be blamed on. Spares go through the same. Nothing here starts anything but the probes; what may start
in the end is the verdict's to say.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from clustertools import __version__
from clustertools.fleet import Transport
from clustertools.fleet.looking import Request
from clustertools.fleet.probing import Probers
from clustertools.fleet.shipping import Tool
from clustertools.measurement import Grade
from clustertools.model import Status
from clustertools.preflight import fabric, node, passive
from clustertools.preflight.asked import STAGES, Asked, Budget, Tell
from clustertools.preflight.meeting import meeting_place
from clustertools.preflight.record import NodeRecord, Record
from clustertools.preflight.session import Session, note_the_gone
from clustertools.preflight.yardsticks import Yardsticks
from clustertools.preflight_report import BAD, Remark, Repeat, Report, Stage, Untested, folded

__all__ = ["STAGES", "Asked", "Budget", "Tell", "examine"]

#: A node loads PyTorch before its prober says hello: from a cold network file system that takes its time.
HELLO_SECONDS = 60.0


def examine(
    asked: Asked, transport: Transport, requests: Mapping[str, Request], tell: Tell,
    baselines: Path | None = None,
) -> Report:  # fmt: skip
    """Look at the nodes that are asked for, within the budget, and say what is thought of each.

    `requests` are what the passive checks are asked, node by node; in the file `baselines` the figures of
    this run are kept for the next. Nothing that happens on a node is raised: what went wrong there stands in
    the report. Raises ConfigError for what was asked wrongly.
    """
    began, budget = time.time(), Budget(asked.budget_seconds)
    record = Record({
        name: NodeRecord(name, name not in asked.nodes, next(iter(asked.topology.get(name, ())), ""))
        for name in asked.everyone
    })  # fmt: skip
    to_probe = "node" in asked.stages or "fabric" in asked.stages
    tool = _reach(asked, record, transport, tell, to_probe=to_probe)
    if "passive" in asked.stages:
        passive.look(asked, record, transport, tool, requests, budget, tell)
    searched, versions = fabric.Searched(), {"clustertools": __version__}
    if to_probe and (fit := record.fit(asked.everyone)):
        probers = Probers(transport.talk(fit, tool.argv("probe", "serve", python=asked.python)), fit)
        try:
            _greet(probers, record, budget, tell)
            expects = {name: request.expect for name, request in requests.items()}
            if asked.interface:
                meeting_place(probers.hello, asked.interface)  # a wrong name costs no minutes of loads first
            yardsticks = Yardsticks(probers.hello, expects, baselines)
            searched = _probe(Session(asked, record, probers, yardsticks, budget, tell))
        finally:
            probers.close()
        versions |= _versions(probers)
    left_out = [Untested(f"stage {s}", "not asked for") for s in STAGES if s not in asked.stages]
    results = record.results()
    bad = [result.node for result in results if result.grade in BAD]
    good = [result.node for result in results if result.grade is Grade.GOOD]
    return Report(
        began, time.time(), asked.nodes, results, asked.cluster, transport.name, asked.job,
        asked.budget_seconds, asked.terms, tuple(record.stages), tuple(record.suspects),
        tuple(searched.rounds), (*record.untested, *left_out), tuple(record.remarks), tuple(searched.judged),
        asked.seed, versions, asked.command, tuple(_repeats(bad, good)),
    )  # fmt: skip


def _probe(session: Session) -> fabric.Searched:
    """The stages that load the nodes: each by itself, then all together."""
    record, searched = session.record, fabric.Searched()
    record.remarks += session.yardsticks.reputations()
    if "node" in session.asked.stages:
        node.load(session)
    if "fabric" in session.asked.stages:
        searched = fabric.search(session)
        _confirm(session, searched)
    note_the_gone(record, session.probers)
    if problem := session.yardsticks.keep(record.results()):
        record.remarks.append(Remark(problem, Status.OK))
    return searched


def _confirm(session: Session, searched: fabric.Searched) -> None:
    """Let the nodes that the verdict would launch on work together once, all of them and no other.

    Where that fails although no smaller group did, nobody is to blame, and nothing is launched.
    """
    asked, record = session.asked, session.record
    so_far = Report(0, 0, asked.nodes, record.results(), terms=asked.terms, suspects=tuple(record.suspects))
    nodes = tuple(name for name in so_far.verdict.launch_nodes if name in session.probers.present)
    if len(nodes) < 2:
        return
    what = "all nodes of the launch together"
    if session.budget.left < fabric.LEAST_SECONDS:
        record.untested.append(Untested(what, "the time was over", nodes))
        return
    with record.stage("launch", len(nodes)) as stage:
        session.tell(Stage("launch", len(nodes), 0))
        cases = fabric.together(session, nodes, searched)
        stage.done = len(nodes)
    for name in nodes:
        record[name].cases += cases
    last, tried = cases[-1], {case.name for case in cases}
    if rest := ", ".join(name for name in fabric.COLLECTIVES if name not in tried):
        why = "the time was over" if last.grade is Grade.GOOD else f"no more was tried after {last.name}"
        record.untested.append(Untested(f"{rest} over all nodes of the launch", why))
    if last.grade in (Grade.BAD_HARDWARE, Grade.WRONG_DATA):
        fabric.search_on(session, searched, nodes)
    if last.grade not in (Grade.GOOD, Grade.SLOW):
        why = f"{last.name}: {last.grade.value} when all work together, although no smaller group was so"
        record.untested.append(Untested(what, f"{why}: {last.detail}", nodes, required=True))


def _reach(asked: Asked, record: Record, transport: Transport, tell: Tell, *, to_probe: bool) -> Tool:
    """Bring the tool to every node; who cannot be reached, or cannot run it, has that in its record."""
    with record.stage("reach", len(asked.everyone)) as stage:
        tell(Stage("reach", len(asked.everyone), 0))
        # probes are run by the job's Python, for which the archive has to be there in any case
        installed = None if to_probe else "clustertools"
        tool = Tool.install(transport, asked.everyone, installed=installed)
        stage.done = len(tool.ready)
    for name, answer in tool.missing.items():
        record[name].away(answer)
    return tool


def _greet(probers: Probers, record: Record, budget: Budget, tell: Tell) -> None:
    """Wait for the probers; a node whose prober does not start could not be tested."""
    seconds = min(HELLO_SECONDS, budget.left)
    with record.stage("probers", len(probers.nodes)) as stage:
        tell(Stage("probers", len(probers.nodes), 0))
        probers.greet(seconds)
        stage.done = len(probers.present)
    note_the_gone(record, probers)
    for name in probers.nodes:
        hello = probers.hello.get(name)
        if hello is None and name not in probers.gone:
            record[name].doubts.append(f"its prober did not start within {seconds:.0f} s")
        elif hello is not None and not hello.torch:
            said = f"no PyTorch in its Python {hello.python}: name the job's with --python"
            record[name].doubts.append(said)


def _versions(probers: Probers) -> dict[str, str]:
    """What the probes ran with; several where the nodes differ."""
    told = probers.hello.values()
    seen = {"torch": {hello.torch for hello in told}, "python on the nodes": {hello.python for hello in told}}
    return {name: ", ".join(sorted(filter(None, values))) for name, values in seen.items() if any(values)}


def _repeats(bad: Sequence[str], good: Sequence[str]) -> Iterator[Repeat]:
    """How to look at the bad ones again, with good partners, without all the others."""
    if bad:
        words = ("clustertools", "preflight", "-w", folded([*bad, *good[: max(2, len(bad))]]))
        yield Repeat("the bad nodes once more, with good partners", words)
