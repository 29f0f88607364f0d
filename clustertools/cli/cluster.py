"""The watchdog of a cluster's jobs, put together from the config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clustertools.cli import assemble
from clustertools.errors import Absent, ConfigError, Unobservable
from clustertools.host import LocalHost
from clustertools.schedulers import RunSpec, Wanted
from clustertools.sources.slurm import controllers
from clustertools.watchdog import Watchdog

if TYPE_CHECKING:
    from clustertools.config import JobConfig, Loaded

#: All passive checks of a node take about a second; a node that hangs in one of them is given this long.
NODE_CHECK_SECONDS = 30.0


def watches_jobs(loaded: Loaded) -> bool:
    """Whether the config names jobs of a scheduler that is here. Raises ConfigError for one that is not."""
    config = loaded.config
    if not config.jobs or config.scheduler == "none":
        return False
    try:
        controllers(LocalHost())
    except Absent as exc:
        if config.scheduler == "slurm":
            raise ConfigError(f"scheduler: slurm, but {exc}: watch the jobs where Slurm is") from exc
        return False
    except Unobservable:
        return True  # it is away, and its jobs may well go on
    return True


def wanted_jobs(loaded: Loaded) -> list[Wanted]:
    """What the config's `jobs` say, as the scheduler needs it. Raises ConfigError with every problem."""
    problems: list[str] = []
    found = []
    for key, job in loaded.config.jobs.items():
        origin = loaded.origins.get(f"jobs.{key}.resume.kind", "")
        if job.resume.kind == "file" and not job.resume.name:
            problems.append(
                f"{origin}: jobs.{key}.resume: kind file needs `name`, the file".removeprefix(": ")
            )
        if job.resume.kind in ("env", "placeholder") and not job.command:
            problems.append(
                f"{origin}: jobs.{key}.resume: a job that Slurm requeues keeps its environment and its "
                f"command; use tracker, file or newest, or name `command`".removeprefix(": ")
            )
        found.append(
            Wanted(
                key, name=job.name or ("" if job.job else key), user=job.user, partition=job.partition,
                comment=job.comment, job_id=job.job, array=job.array, template=run_spec(key, job),
            )
        )  # fmt: skip
    if problems:
        raise ConfigError(*problems)
    return found


def run_spec(name: str, job: JobConfig) -> RunSpec:
    """A run as the config describes it, under `name`."""
    kind = job.resume.kind
    # only what was said goes before the checks' own limits
    said = {
        "minimum_silence_seconds": job.hang.minimum_seconds,
        "factor": job.hang.factor,
        "startup_seconds": job.hang.startup_seconds,
    }
    limits: Mapping[str, Mapping[str, Any]] = {
        "job_progress": said,
        "job_restarts": {"without_progress": job.max_restarts_without_progress},
        "job_loss": {"extra": job.loss.extra, "kinds_off": job.loss.kinds_off},
    }
    command = job.command
    if kind == "placeholder" and job.resume.name:
        command = tuple(word.replace(job.resume.name, "{checkpoint}") for word in command)
    return RunSpec(
        name, command, log_paths=job.log, metrics_path=job.metrics, checkpoint_dir=job.checkpoints,
        total_steps=job.total_steps or 0, resume=kind,
        resume_variable=(job.resume.name if kind == "env" else "") or "CLUSTERTOOLS_RESUME_FROM",
        resume_file=job.resume.name if kind == "file" else "", deep_verify=job.deep_verify,
        grace_seconds=job.grace_seconds, again=job.again,
        without_progress=job.max_restarts_without_progress, on_time_limit=job.on_time_limit, look=job.look,
        preflight=job.preflight, kill_switch=job.kill_switch, limits=limits,
        rollback=job.loss.rollback == "on-divergence",
    )  # fmt: skip


def cluster_watchdog(
    loaded: Loaded, state: Path | None, *, act: bool, once: bool, interval: float | None, terminal: bool
) -> Watchdog:
    """The watchdog of the config's jobs, and of this machine. Raises ConfigError and StoreError."""
    from clustertools.fleet.job_looks import FleetLooker
    from clustertools.schedulers.slurm import SlurmScheduler

    wanted = wanted_jobs(loaded)
    watchdog = assemble.node_watchdog(
        loaded, state, act=act, once=once, interval=interval, terminal=terminal, job_checks=True
    )
    host = LocalHost()
    return dataclasses.replace(
        watchdog,
        scheduler=SlurmScheduler(host),
        wanted=wanted,
        looker=FleetLooker(host=host),
        node_check=node_check(loaded),
    )


def node_check(loaded: Loaded) -> Callable[[Sequence[str]], Mapping[str, str]]:
    """The light preflight: all passive checks of some nodes at once; node -> what is wrong there.

    A node that cannot be reached, or whose look does not end, is wrong as well: nothing is started on it
    unseen. Raises Unobservable when no node answers: that is the way to them, not the nodes.
    """
    from clustertools.cli.node_requests import requests_for
    from clustertools.fleet.looking import look_all
    from clustertools.fleet.shipping import Tool
    from clustertools.fleet.srun import SrunSettings
    from clustertools.fleet.transports import open_transport
    from clustertools.model import Status

    said = loaded.config.preflight
    way = "srun" if said.transport == "auto" else said.transport
    slurm = SrunSettings(said.partition, said.account, said.qos, said.reservation)

    def look(nodes: Sequence[str]) -> dict[str, str]:
        requests, _ = requests_for(nodes, loaded, without=said.without, facts=False)
        wrong: dict[str, str] = {}
        with open_transport(way, slurm=slurm, nodes=tuple(nodes)) as transport:
            tool = Tool.install(transport, nodes)
            wrong |= {node: answer.reason for node, answer in tool.missing.items()}
            wanted = {node: requests[node] for node in tool.nodes}
            for told in look_all(transport, tool, wanted, timeout_seconds=NODE_CHECK_SECONDS):
                findings = [f for v in told.verdicts for f in v.findings if f.status is Status.CRITICAL]
                if findings:
                    wrong[told.node] = f"{findings[0].code}: {findings[0].summary}"
                elif told.why_not:
                    wrong[told.node] = told.why_not
        if len(tool.missing) == len(nodes):
            raise Unobservable(f"no node answers over {way}: {next(iter(wrong.values()), '')}")
        return wrong

    return look
