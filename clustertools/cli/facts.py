"""`clustertools facts` and `clustertools drift`: what a node is, and which nodes differ from the others."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

import click

from clustertools.cli.frame import Output, common, examples
from clustertools.drift import OWN, Drift, folded
from clustertools.drift import drift as compared
from clustertools.errors import ConfigError
from clustertools.host import LocalHost
from clustertools.model import Status
from clustertools.sources import facts as facts_source
from clustertools.text import plain


@click.command(
    epilog=examples(
        "clustertools facts                              what this node is",
        "srun -N16 clustertools facts --json | clustertools drift -",
        "clustertools facts --python /shared/env/bin/python   with its torch and NCCL",
    )
)
@click.option("--python", "pythons", multiple=True, metavar="PATH", help="An environment that jobs use.")
@common
def facts(pythons: tuple[str, ...], out: Output) -> None:
    """Kernel, drivers, firmware, settings: what the nodes of a cluster should have in common."""
    host = LocalHost()
    found = facts_source.facts(host, pythons, os.environ)
    if out.json:
        out.record("facts", {"node": host.name, "facts": found})
        return
    for name, value in found.items():
        out.line(f"{name:<42} {plain(value)}")


@click.command(
    epilog=examples(
        "srun -N16 clustertools facts --json | clustertools drift -",
        "clustertools drift --ignore 'env.*' today.jsonl",
    )
)
@click.argument("files", nargs=-1, type=click.File("r", encoding="utf-8", errors="replace"))
@click.option("--ignore", multiple=True, metavar="PATTERN", help="Facts that may differ; besides names.")
@click.option("--only", multiple=True, metavar="PATTERN", help="Only these facts.")
@common
def drift(files: Sequence[TextIO], ignore: tuple[str, ...], only: tuple[str, ...], out: Output) -> Status:
    """Name the nodes that differ from the others, fact by fact; reads what `facts --json` printed.

    Exits 0 when all nodes agree, 1 when some differ, 3 when there was nothing to compare or a line was not
    understood.
    """
    nodes, wrong = _read(files or [sys.stdin])
    for line in wrong[:5]:
        out.note(f"not a line of facts: {plain(line, 120)}")
    if len(nodes) < 2:
        raise ConfigError(f"facts of {len(nodes)} nodes: nothing to compare; pipe `facts --json` of several")
    found = compared(nodes, ignore=(*OWN, *ignore), only=only or ("*",))
    for one in found:
        if out.json:
            out.record("drift", one)
        else:
            _tell(one, out)
    if not out.json and not found:
        out.line(f"{len(nodes)} nodes agree on {len({name for f in nodes.values() for name in f})} facts")
    if wrong:
        return Status.UNKNOWN
    return Status.WARNING if found else Status.OK


def _read(files: Iterable[TextIO]) -> tuple[dict[str, dict[str, str]], list[str]]:
    nodes: dict[str, dict[str, str]] = {}
    wrong = []
    for file in files:
        for line in file:
            if not line.strip():
                continue
            try:
                # {"schema": 1, "kind": "facts", "node": "gpu-001", "facts": {"kernel": "..."}}
                data: Any = json.loads(line)
                node, told = data["node"], data["facts"]
                if not isinstance(node, str) or not node or not isinstance(told, dict):
                    raise TypeError(line)
            except (ValueError, KeyError, TypeError, RecursionError):
                wrong.append(line)
                continue
            nodes[node] = {str(k): v for k, v in told.items() if isinstance(v, str) and v}
    return nodes, wrong


def _tell(one: Drift, out: Output) -> None:
    if one.common is None:
        out.line(f"{one.fact}: no value is the common one")
    else:
        out.line(f"{one.fact}: {plain(one.common, 200)} on {one.common_nodes} nodes")
    for value, who in one.others.items():
        out.line(f"    {plain(value, 200)} on {plain(folded(who), 200)}")
    if one.unknown:
        out.line(f"    unknown on {plain(folded(one.unknown), 200)}")
