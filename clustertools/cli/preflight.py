"""`clustertools preflight`: are these nodes good, which are not, and the launch on those that are."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from clustertools import handover
from clustertools.check import discover
from clustertools.cli.assemble import load_config
from clustertools.cli.frame import Duration, Output, common, examples
from clustertools.cli.node_requests import requests_for
from clustertools.config import PreflightConfig
from clustertools.errors import ConfigError, Unobservable
from clustertools.fleet.nodesets import expand
from clustertools.fleet.srun import SrunSettings
from clustertools.fleet.transports import open_transport
from clustertools.host import Host, LocalHost
from clustertools.preflight import STAGES, Asked, examine
from clustertools.preflight_report import Report, Stage, Terms, Untested, folded
from clustertools.render.preflight_text import progress, text
from clustertools.sources import slurm_jobs
from clustertools.store import default_state_dir


def _file(help_text: str) -> dict[str, object]:
    return {"type": click.Path(path_type=Path, dir_okay=False), "metavar": "FILE", "help": help_text}


@click.command(
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
    epilog=examples(
        "clustertools preflight -w gpu[001-032]                   over ssh: which of these are good?",
        "clustertools preflight --job $SLURM_JOB_ID -- srun train.sh      in a job script",
        "clustertools preflight --idle --partition large          all idle nodes, from a login node",
        "clustertools preflight -w gpu[001-033] --need 32 -- torchrun ... {good_nodes_comma}",
        "clustertools preflight -w gpu[001-032] --spares gpu[033-034] --good-nodes good.txt",
        "clustertools preflight                                   this job's nodes, or this machine",
    ),
)
@click.option("-w", "--nodes", "nodes", metavar="NODES", help="These nodes, as a node set: gpu[001-032].")
@click.option("--job", metavar="ID", help="The nodes of this Slurm job.")
@click.option("--idle", is_flag=True, help="The idle nodes of Slurm.")
@click.option("--partition", metavar="NAME", help="With --idle: of this partition only.")
@click.option("--spares", metavar="NODES", help="Tested as well, and used for those that are bad.")
@click.option("--need", type=click.IntRange(1), metavar="N", help="Nodes that the launch needs [all].")
@click.option("--at-least", type=click.IntRange(1), metavar="N", help="So many will do [as --need].")
@click.option("--allow-unknown", is_flag=True, help="Use nodes that could not be tested, too.")
@click.option("--allow-slow-paths", is_flag=True, help="Let the job cross a slow path between nodes.")
@click.option("--budget", type=Duration(zero=False), help="Time for all of it [5m].")
@click.option("--stages", metavar="LIST", help="Which of passive,node,fabric [all].")
@click.option("--without", multiple=True, metavar="NAME", help="A check or probe that is not to count.")
@click.option("--unprivileged", is_flag=True, help="Leave out the checks that need root on the nodes.")
@click.option("--transport", type=click.Choice(["auto", "ssh", "srun", "local"]), help="[auto]")
@click.option("-F", "--ssh-config", **_file("As ssh -F."))  # type: ignore[arg-type]
@click.option("--connect-timeout", type=Duration(zero=False), help="For one ssh connection [10s].")
@click.option("--python", metavar="PATH", help="On the nodes: the job's own, with PyTorch [python3].")
@click.option("--interface", metavar="NAME", help="Where the ranks meet [what all nodes share].")
@click.option("--sizes", metavar="LIST", help="Message sizes of the collectives: 1MiB,128MiB.")
@click.option("--data", multiple=True, metavar="DIR", help="Training data: read from all nodes at once.")
@click.option("--checkpoints", multiple=True, metavar="DIR", help="Written to from all nodes at once.")
@click.option("--env", "variables", multiple=True, metavar="NAME=VALUE", help="For the probes.")
@click.option("--seed", type=int, help="For the shuffling of groups [by chance].")
@click.option("--good-nodes", **_file("Write the nodes to launch on there, one a line."))  # type: ignore[arg-type]
@click.option("--exclude-out", **_file("Write the nodes not to use, in Slurm's form."))  # type: ignore[arg-type]
@click.option("--hostfile", **_file("Write a hostfile for mpirun, DeepSpeed and others."))  # type: ignore[arg-type]
@click.option("--slots", type=click.IntRange(1), help="Ranks a node, in the hostfile.")
@click.option("--html", **_file("Write the report as one page."))  # type: ignore[arg-type]
@click.option("--junit", **_file("Write the report for a CI system."))  # type: ignore[arg-type]
@click.option("--config", "config_path", **_file("A config file, besides /etc/clustertools."))  # type: ignore[arg-type]
@click.argument("launch", nargs=-1, type=click.UNPROCESSED)
@common
def preflight(out: Output, launch: tuple[str, ...], **options: Any) -> int | None:
    """Test nodes before a launch, and start LAUNCH on the good ones, if the verdict allows.

    First the passive checks of all nodes, then each node under load, then all of them together, within the
    budget. Exits 0 when every node is good, 1 when it may start with fewer or other nodes, 2 when too many
    are bad, 3 when too much is unknown; with LAUNCH, as that does.
    """
    config = load_config(options["config_path"])
    settings = config.config.preflight if config else PreflightConfig()
    if launch and (problem := handover.command_problem(launch)):
        raise ConfigError(problem)
    host = LocalHost()
    where = _where(options, settings, host)
    asked = _asked(options, settings, where, config.config.cluster if config else "")
    rooted = {name for name, each in discover().items() if "root" in each.needs}
    without = asked.without | (rooted if options["unprivileged"] else frozenset())
    requests, left_out = requests_for(asked.everyone, config, without=without)
    with open_transport(
        where.transport, ssh_config=options["ssh_config"], job_id=where.job, nodes=asked.everyone,
        connect_timeout_seconds=options["connect_timeout"], slurm=_slurm(settings, options["partition"]),
    ) as transport:  # fmt: skip
        report = examine(
            asked, transport, requests, _teller(out, asked), default_state_dir() / "preflight.json"
        )
    if _shows_progress(out):
        sys.stderr.write(_CLEAR)
        sys.stderr.flush()
    report = replace(report, untested=(*report.untested, *_left_out(without, left_out, asked)))
    if out.json:
        out.record("preflight", report.to_data(), flush=True)
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 100
        out.line(text(report, color=out.color, width=width, verbose=out.verbose), flush=True)
    _write(report, options)  # after the answer: a full disk must not lose what took minutes to learn
    if not launch:
        return report.verdict.exit_code
    plan = handover.launch(report, launch, environ=os.environ, hostfile=str(options["hostfile"] or ""))
    if isinstance(plan, handover.Refused):
        out.note(f"not started: {plan.reason}")
        return plan.status.exit_code
    for warning in plan.warnings:
        out.note(warning)
    out.note(f"starting on {folded(plan.nodes)}")
    return handover.start(plan)


@dataclass(frozen=True, slots=True)
class _Where:
    """The nodes, how they are reached, and the job whose they are."""

    nodes: tuple[str, ...]
    transport: str
    job: str = ""
    topology: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _where(options: Mapping[str, Any], settings: PreflightConfig, host: Host) -> _Where:
    """Which nodes, from what was said, or from where we are. Raises ConfigError and Unobservable."""
    nodes, job, idle = options["nodes"], options["job"], options["idle"]
    if sum(map(bool, (nodes, job, idle))) > 1:
        raise ConfigError("name the nodes in one way only: --nodes, --job or --idle")
    if options["partition"] and not idle:
        raise ConfigError("--partition goes with --idle")
    chosen = options["transport"] or settings.transport
    if not (nodes or idle):
        job = job or os.environ.get("SLURM_JOB_ID", "")
    if nodes:
        named = expand(nodes)
        usual = "local" if named == (host.name,) else "ssh"
        return _Where(
            named, usual if chosen == "auto" else chosen, "", _topology(settings, host, slurm=False)
        )
    if job:
        allocation = slurm_jobs.job_nodes(host, job)
        found, usual = allocation.nodes, "srun"
    elif idle:
        found, usual = slurm_jobs.idle_nodes(host, options["partition"] or ""), "srun"
        if not found:
            raise ConfigError(
                "Slurm has no idle node" + (f" in {options['partition']}" if options["partition"] else "")
            )
    else:
        return _Where((host.name,), "local")
    return _Where(found, usual if chosen == "auto" else chosen, job, _topology(settings, host, slurm=True))


def _slurm(settings: PreflightConfig, partition: str | None) -> SrunSettings:
    """What an allocation of our own is asked for with."""
    return SrunSettings(partition or settings.partition, settings.account, settings.qos, settings.reservation)


def _topology(settings: PreflightConfig, host: Host, *, slurm: bool) -> Mapping[str, tuple[str, ...]]:
    """Node -> its switches, nearest first: as configured, or as Slurm says. Not knowing it is no error."""
    if settings.topology:
        leaves = {leaf: expand(nodes) for leaf, nodes in settings.topology.items()}
        return {node: (leaf,) for leaf, nodes in leaves.items() for node in nodes}
    try:
        return slurm_jobs.topology(host) if slurm else {}
    except Unobservable:
        return {}


def _asked(options: Mapping[str, Any], settings: PreflightConfig, where: _Where, cluster: str) -> Asked:
    stages = tuple((options["stages"] or ",".join(STAGES)).split(","))
    if set(stages) - set(STAGES):
        raise ConfigError(
            f"--stages: choose from {','.join(STAGES)}, not {','.join(sorted(set(stages) - set(STAGES)))}"
        )
    spares = expand(options["spares"]) if options["spares"] else ()
    both = sorted(set(spares) & set(where.nodes))
    if both:
        raise ConfigError(f"a spare is a node that the launch was not to use: {folded(both)} are both")
    terms = Terms(
        options["need"] or 0, options["at_least"] or 0, options["allow_unknown"], options["allow_slow_paths"]
    )
    seed = options["seed"] if options["seed"] is not None else secrets.randbelow(1 << 31)
    return Asked(
        where.nodes, spares, terms, stages, options["budget"] or settings.budget_seconds,
        options["python"] or settings.python, frozenset((*settings.without, *options["without"])),
        options["data"] or settings.data, options["checkpoints"] or settings.checkpoints,
        options["interface"] or settings.interface, _sizes(options["sizes"]),
        _environment(options["variables"]),
        where.topology, cluster, where.job, seed, tuple(sys.argv),
    )  # fmt: skip


def _left_out(without: Iterable[str], only_here: Iterable[str], asked: Asked) -> Iterator[Untested]:
    """What the passive checks did not look at, since somebody said so or since no node could be asked."""
    if "passive" in asked.stages:
        yield from (Untested(f"check {name}", "left out, as was asked") for name in sorted(without))
        yield from (Untested(f"check {name}", "it is of this machine only") for name in only_here)


def _sizes(words: str | None) -> tuple[int, ...]:
    from clustertools.config_units import parse_size

    try:
        return tuple(int(parse_size(word)) for word in (words or "").split(",") if word)
    except ValueError as exc:
        raise ConfigError(f"--sizes: {exc}") from exc


def _environment(words: Sequence[str]) -> dict[str, str]:
    """What the probes are given: the libraries' settings of ours, and those that are named."""
    wrong = [word for word in words if "=" not in word]
    if wrong:
        raise ConfigError(f"--env: {wrong[0]!r} is not NAME=VALUE")
    inherited = {
        name: value for name, value in os.environ.items() if name.startswith(("NCCL_", "GLOO_", "UCX_"))
    }
    return {**inherited, **dict(word.split("=", 1) for word in words)}


#: Back to the beginning of the line, and wipe it.
_CLEAR = "\r\x1b[K"


def _shows_progress(out: Output) -> bool:
    return sys.stderr.isatty() and not (out.quiet or out.json)


def _teller(out: Output, asked: Asked) -> Callable[[Stage], None]:
    """Progress on a terminal's standard error, one line that is written over."""
    names = ("reach", *(["passive"] if "passive" in asked.stages else []), "probers", *asked.stages[-2:])
    if not _shows_progress(out):
        return lambda stage: None

    def tell(stage: Stage) -> None:
        place = names.index(stage.name) + 1 if stage.name in names else len(names)
        sys.stderr.write(f"{_CLEAR}{progress(stage, place, len(names))}")
        sys.stderr.flush()

    return tell


def _write(report: Report, options: Mapping[str, Any]) -> None:
    """The files that were asked for. Raises ConfigError for one that cannot be written."""
    verdict = report.verdict
    if path := options["good_nodes"]:
        handover.write_good_nodes(path, verdict)
    if path := options["exclude_out"]:
        handover.write_excluded(path, verdict)
    if path := options["hostfile"]:
        handover.write_hostfile(path, verdict, slots=options["slots"] or 0)
    if path := options["html"]:
        from clustertools.render.preflight_page import page

        handover.write_whole(path, page(report))
    if path := options["junit"]:
        from clustertools.render.preflight_junit import junit

        handover.write_whole(path, junit(report))
