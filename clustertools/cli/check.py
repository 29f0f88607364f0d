"""`clustertools check`: look at one machine once, and say how it is in the form that the caller reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import click

from clustertools import bounded
from clustertools import check as checking
from clustertools.check import Check
from clustertools.cli import node_memory
from clustertools.cli.frame import Output, common, examples
from clustertools.cli.site import adjusted, is_configured
from clustertools.errors import ConfigError, Unobservable
from clustertools.host import Host, LocalHost, RecordedHost
from clustertools.model import Verdict
from clustertools.render import formats
from clustertools.render.json_lines import json_line
from clustertools.render.prometheus import write_textfile
from clustertools.sources import hardware


@dataclass(frozen=True, slots=True)
class Orders:
    """The checks there are, and what config says about them on this node; without config, nothing."""

    checks: Mapping[str, Check]
    limits: Mapping[str, Any] = field(default_factory=dict)
    expect: Mapping[str, Any] = field(default_factory=dict)
    disabled: frozenset[str] = frozenset()
    cluster: str = ""


@click.command(
    epilog=examples(
        "clustertools check                              the checks of a watched node",
        "clustertools check --stage preflight            all that should hold before a launch",
        "clustertools check gpu_ecc --format nagios      one check, as a monitoring plugin",
        "clustertools check --host tests/hosts/NAME      the same on a recorded machine",
        "clustertools check --textfile /var/lib/node_exporter/ct.prom --format prometheus",
        "clustertools check --remember --timeout 45      with memory for rates and the kernel log",
    )
)
@click.argument("names", nargs=-1)
@click.option(
    "--stage",
    type=click.Choice(sorted(checking.STAGES)),
    default="watch",
    show_default=True,
    help="Which checks to run when none is named.",
)
@click.option(
    "--host",
    "recording",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Look at a recorded host, not at this one.",
)
@click.option("--format", "format_name", type=click.Choice(list(formats.FORMATS)), default="text")
@click.option(
    "--textfile",
    type=click.Path(path_type=Path),
    metavar="FILE.prom",
    help="Also write Prometheus' format there, at once and whole, for node_exporter.",
)
@click.option(
    "--timeout", "seconds", type=float, metavar="SECONDS", help="All together; what did not start is UNKNOWN."
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A config file, besides those in /etc/clustertools.",
)
@click.option("--remember", is_flag=True, help="Keep cursors and previous readings for the next look.")
@click.option(
    "--request",
    "request_file",
    type=click.File("rb"),
    metavar="FILE",
    help="Look as a head asks, in JSON; - is standard input. No config is read, and nothing else counts.",
)
@click.option("--list", "list_only", is_flag=True, help="Say which checks would run.")
@common
def check(
    names: tuple[str, ...],
    stage: str,
    recording: Path | None,
    format_name: str,
    textfile: Path | None,
    seconds: float | None,
    config_path: Path | None,
    remember: bool,
    request_file: BinaryIO | None,
    list_only: bool,
    out: Output,
) -> int:
    """Look at this machine once.

    Changes nothing. Exits 0 when all is well, 1 on a warning, 2 when something is critical, 3 when
    something could not be looked at. `--format npd` and `nhc` follow node-problem-detector and NHC: 1 is a
    problem.
    """
    format_name = "json" if out.json else format_name
    host: Host = RecordedHost(recording) if recording else LocalHost()
    if request_file is not None:
        from clustertools.cli.request import answer

        return answer(request_file, host)
    about_runs = stage == "job" or any(name.startswith(checking.JOB_PREFIX) for name in names)
    orders = orders_for(host, config_path, job_checks=about_runs)
    chosen = [
        c for c in checking.select(names, stage, orders.checks) if names or c.name not in orders.disabled
    ]
    if not chosen:
        raise ConfigError(f"there is no check to run for the stage {stage}: nothing was looked at")
    if list_only:
        for each in chosen:
            out.line(each.name)
        return 0
    memory, path = _recall(out) if remember else ({}, None)
    if isinstance(host, RecordedHost):
        memory = {**host.about.get("past", {}), **memory}
    verdicts: list[Verdict] = []
    for verdict in look(chosen, host, orders, memory, seconds):
        verdicts.append(verdict)
        if format_name == "json":
            # as they come: a caller that kills us at its own deadline has what was known by then
            print(json_line("verdict", verdict), flush=True)
    if path:
        _keep(path, memory, verdicts, out)
    if textfile:
        write_textfile(textfile, verdicts)
    if format_name == "text":
        out.line(formats.text(verdicts, color=out.color, quiet=out.quiet, verbose=out.verbose))
    elif format_name != "json" and (said := formats.FORMATS[format_name](verdicts)):
        out.line(said)
    return formats.exit_code(format_name, verdicts)


def look(
    chosen: Sequence[Check],
    host: Host,
    orders: Orders,
    memory: Mapping[str, Mapping[str, Any]],
    seconds: float | None = None,
) -> Iterator[Verdict]:
    """Run the checks one after the other, all on one answer per question, within `seconds` together."""

    def ask(each: Check, shared: Host) -> Verdict:
        return checking.run(
            each, shared, limits=orders.limits.get(each.name), expect=orders.expect,
            past=memory.get(each.name), cluster=orders.cluster,
        )  # fmt: skip

    return bounded.look(chosen, ask, host, seconds=seconds, cluster=orders.cluster)


def orders_for(host: Host, config_path: Path | None, *, job_checks: bool = True) -> Orders:
    """The checks with their limits and expectations for this host; all of them where config may name any.

    Config is read when there is any (a recording: only the one that is named), and imported only then. A
    recording may say itself what is expected of it: `expect:` in its host.yaml.
    """
    recorded = host.about if isinstance(host, RecordedHost) else None
    expect = dict(recorded.get("expect") or {}) if recorded else {}
    if config_path is None and (recorded is not None or not is_configured()):
        return Orders(checking.discover(job_checks=job_checks), expect=hardware.expectations(host, expect))
    from clustertools import config as configuration
    from clustertools.cli.assemble import expectations
    from clustertools.plugins import all_checks

    loaded = configuration.load([config_path] if config_path else None)
    config = loaded.config
    found = all_checks(config)
    checks = {name: adjusted(each, config.check(name)) for name, each in found.items()}
    named = config.node_classes.get(str(recorded.get("node_class"))) if recorded else None
    said = {**(named.expectations() if named else expectations(config, host.name)), **expect}
    return Orders(
        checks,
        configuration.validate_limits(loaded, found),
        hardware.expectations(host, said),
        frozenset(name for name in checks if not config.check(name).enabled),
        config.cluster,
    )


def _recall(out: Output) -> tuple[dict[str, dict[str, Any]], Path | None]:
    try:
        path = node_memory.folder() / node_memory.NAME
    except Unobservable as exc:
        out.note(f"{exc}; looking without memory")
        return {}, None
    try:
        return node_memory.load(path), path
    except Unobservable as exc:
        out.note(f"{exc}; beginning with an empty memory")
        return {}, path


def _keep(path: Path, memory: Mapping[str, Any], verdicts: Sequence[Verdict], out: Output) -> None:
    kept = {**memory, **{v.check: dict(v.memory) for v in verdicts if v.memory}}
    try:
        node_memory.save(path, kept)
    except Unobservable as exc:
        out.note(str(exc))
