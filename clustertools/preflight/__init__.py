"""Before a launch: are these nodes good, which are not, what is guilty, and which should the job use.

    report = examine(Asked(nodes=expand("gpu[001-032]")), transport, tool, tell=print_progress)
    report.verdict.sentence

Stages, each on the nodes that nothing speaks against so far: look at all of them (the passive checks), load
each one by itself (the probes), then let them work together and search for whom a slow or broken collective
is to be blamed on. Spares go through the same. Nothing here starts anything but the probes; what may start
in the end is the verdict's to say.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from clustertools import __version__
from clustertools.fleet import Answer, Transport
from clustertools.fleet.looking import Request
from clustertools.fleet.probing import Probers
from clustertools.fleet.shipping import Tool
from clustertools.measurement import Grade
from clustertools.model import Status
from clustertools.preflight import fabric, node, passive
from clustertools.preflight.asked import STAGES, Asked, Budget, Tell
from clustertools.preflight.record import NodeRecord, Record
from clustertools.preflight.yardsticks import Yardsticks
from clustertools.preflight_report import Remark, Report, Stage, Untested
from clustertools.text import plain

__all__ = ["STAGES", "Asked", "Budget", "Tell", "examine"]

#: A node loads PyTorch before its prober says hello: from a cold network file system that takes its time.
HELLO_SECONDS = 60.0


def examine(
    asked: Asked, transport: Transport, requests: Mapping[str, Request], tell: Tell,
    baselines: Path | None = None,
) -> Report:  # fmt: skip
    """Look at the nodes that are asked for, within the budget, and say what is thought of each.

    `requests` are what the passive checks are asked, node by node; in the file `baselines` the figures of
    this run are kept for the next. Nothing that happens on a node is raised;
    what went wrong there stands in the report. Raises ConfigError for what was asked wrongly.
    """
    began, budget = time.time(), Budget(asked.budget_seconds)
    record = Record({
        name: NodeRecord(name, name not in asked.nodes, next(iter(asked.topology.get(name, ())), ""))
        for name in asked.everyone
    })  # fmt: skip
    searched = fabric.Searched()
    probing = [s for s in ("node", "fabric") if s in asked.stages]
    tool = _reach(asked, record, transport, tell, to_probe=bool(probing))
    if "passive" in asked.stages:
        passive.look(asked, record, transport, tool, requests, budget, tell)
    fit = record.fit(asked.everyone)
    if probing and fit:
        probers = Probers(transport.talk(fit, tool.argv("probe", "serve", python=asked.python)), fit)
        try:
            _greet(probers, record, budget, tell)
            expects = {name: request.expect for name, request in requests.items()}
            yardsticks = Yardsticks(probers.hello, expects, baselines)
            record.remarks += yardsticks.reputations()
            if "node" in probing:
                node.load(asked, record, probers, yardsticks, budget, tell)
            if "fabric" in probing:
                searched = fabric.search(asked, record, probers, yardsticks, budget, tell)
                _confirm(asked, record, probers, yardsticks, budget, tell, searched)
            if problem := yardsticks.keep(record.results()):
                record.remarks.append(Remark(problem, Status.OK))
        finally:
            probers.close()
        for name in fit:
            if answer := probers.gone.get(name):
                _note_the_end(record[name], answer)
    left_out = [Untested(f"stage {s}", "not asked for") for s in STAGES if s not in asked.stages]
    return Report(
        began, time.time(), asked.nodes, record.results(), asked.cluster,
        transport.name, asked.job, asked.budget_seconds, asked.terms, tuple(record.stages),
        tuple(record.suspects), tuple(searched.rounds), (*record.untested, *left_out), tuple(record.remarks),
        tuple(searched.judged), asked.seed, {"clustertools": __version__}, asked.command,
    )  # fmt: skip


def _confirm(
    asked: Asked, record: Record, probers: Probers, yardsticks: Yardsticks, budget: Budget, tell: Tell,
    searched: fabric.Searched,
) -> None:  # fmt: skip
    """Let the nodes that the verdict would launch on work together once, all of them and no other.

    Where that fails although no smaller group did, nobody is to blame, and nothing is launched.
    """
    so_far = Report(0, 0, asked.nodes, record.results(), terms=asked.terms, suspects=tuple(record.suspects))
    nodes = [name for name in so_far.verdict.launch_nodes if name in probers.present]
    if len(nodes) < 2:
        return
    if budget.left < fabric.LEAST_SECONDS:
        record.untested.append(
            Untested("all nodes of the launch together", "the time was over", tuple(nodes))
        )
        return
    with record.stage("launch", len(nodes)) as stage:
        tell(Stage("launch", len(nodes), 0))
        cases = fabric.together(asked, record, probers, yardsticks, budget, nodes, searched)
        stage.done = len(nodes)
    for name in nodes:
        record[name].cases += cases
    last, tried = cases[-1], {case.name for case in cases}
    if rest := ", ".join(name for name in fabric.COLLECTIVES if name not in tried):
        why = "the time was over" if last.grade is Grade.GOOD else f"no more was tried after {last.name}"
        record.untested.append(Untested(f"{rest} over all nodes of the launch", why))
    if last.grade not in (Grade.GOOD, Grade.SLOW):
        why = f"{last.name}: {last.grade.value} when all work together, although no smaller group was so"
        what = "all nodes of the launch together"
        record.untested.append(Untested(what, f"{why}: {last.detail}", tuple(nodes), required=True))


def _reach(asked: Asked, record: Record, transport: Transport, tell: Tell, *, to_probe: bool) -> Tool:
    """Bring the tool to every node; who cannot be reached, or cannot run it, has that in its record."""
    with record.stage("reach", len(asked.everyone)) as stage:
        tell(Stage("reach", len(asked.everyone), 0))
        # probes are run by the job's Python, for which the archive has to be there in any case
        installed = None if to_probe else "clustertools"
        tool = Tool.install(transport, asked.everyone, python="python3", installed=installed)
        stage.done = len(tool.ready)
    for name, answer in tool.missing.items():
        record[name].away(answer)
    return tool


def _greet(probers: Probers, record: Record, budget: Budget, tell: Tell) -> None:
    """Wait for the probers; a node whose prober does not start could not be tested."""
    with record.stage("probers", len(probers.nodes)) as stage:
        tell(Stage("probers", len(probers.nodes), 0))
        probers.greet(min(HELLO_SECONDS, budget.left))
        stage.done = len(probers.present)
    for name in probers.nodes:
        if answer := probers.gone.get(name):
            _note_the_end(record[name], answer)
        elif name not in probers.hello:
            reason = f"its prober did not start within {min(HELLO_SECONDS, budget.seconds):g} s"
            record[name].doubts.append(reason)
        elif not probers.hello[name].torch:
            said = f"no PyTorch in {probers.hello[name].python or 'its Python'}: name the job's with --python"
            record[name].doubts.append(said)


def _note_the_end(record: NodeRecord, answer: Answer) -> None:
    if answer.completed is None:
        record.away(answer)
        return
    done = answer.completed
    said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
    record.doubts.append(f"its prober ended with exit code {done.returncode}: {plain(said[-1], 300)}")
