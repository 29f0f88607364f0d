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
from collections.abc import Mapping, Sequence

from clustertools.fleet import Transport
from clustertools.fleet.looking import Request
from clustertools.fleet.probing import Probers
from clustertools.fleet.shipping import Tool
from clustertools.preflight import fabric, node, passive
from clustertools.preflight.asked import STAGES, Asked, Budget, Progress, Tell
from clustertools.preflight.record import NodeRecord, Record
from clustertools.preflight_report import Report, Untested

__all__ = ["STAGES", "Asked", "Budget", "Progress", "Tell", "examine"]

#: A node loads PyTorch before its prober says hello: from a cold network file system that takes its time.
HELLO_SECONDS = 60.0


def examine(asked: Asked, transport: Transport, requests: Mapping[str, Request], tell: Tell) -> Report:
    """Look at the nodes that are asked for, within the budget, and say what is thought of each.

    `requests` are what the passive checks are asked, node by node. Nothing that happens on a node is raised;
    what went wrong there stands in the report. Raises ConfigError for what was asked wrongly.
    """
    began, budget = time.time(), Budget(asked.budget_seconds)
    record = Record({
        name: NodeRecord(name, name not in asked.nodes, next(iter(asked.topology.get(name, ())), ""))
        for name in asked.everyone
    })  # fmt: skip
    searched = fabric.Searched()
    tool = Tool.install(transport, asked.everyone, python=asked.python)
    for name, answer in tool.missing.items():
        record[name].away(answer)
    if "passive" in asked.stages:
        passive.look(asked, record, transport, tool, requests, budget, tell)
    probes = [s for s in ("node", "fabric") if s in asked.stages]
    fit = record.fit(asked.everyone)
    if probes and fit:
        probers = Probers(transport.talk(fit, tool.argv("probe", "serve", python=asked.python)), fit)
        try:
            _greet(probers, record, budget, tell)
            if "node" in probes:
                node.load(asked, record, probers, budget, tell)
            if "fabric" in probes:
                searched = fabric.search(asked, record, probers, budget, tell)
        finally:
            probers.close()
    left_out = [Untested(f"stage {s}", "not asked for") for s in STAGES if s not in asked.stages]
    return Report(
        began, time.time(), asked.nodes, tuple(n.result() for n in record.nodes.values()), asked.cluster,
        transport.name, asked.job, asked.budget_seconds, asked.terms, tuple(record.stages),
        searched.suspects, tuple(searched.rounds), (*record.untested, *left_out), tuple(record.remarks),
        tuple(searched.judged), asked.seed, _versions(record), asked.command,
    )  # fmt: skip
