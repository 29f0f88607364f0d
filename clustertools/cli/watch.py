"""`clustertools watch`: passes over the jobs of the config and this machine, once or for ever."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clustertools import policy, systemd
from clustertools.cli.assemble import node_watchdog, site
from clustertools.cli.cluster import cluster_watchdog, wanted_jobs, watches_jobs
from clustertools.cli.config import config_options
from clustertools.cli.frame import Duration, Output, common, examples
from clustertools.errors import ConfigError, StoreError
from clustertools.model import Status
from clustertools.watchdog import Pass, SystemClock, Watchdog, loop
from clustertools.watchdog.loop import BUSY_SECONDS

if TYPE_CHECKING:
    from clustertools.config import Loaded

#: How long `--once` goes on with what is under way, so that the next line of cron finds the lock free.
ONCE_SECONDS = 40.0


@click.command(
    epilog=examples(
        "clustertools watch --once                              a line for cron",
        "clustertools watch --act --interval 1m                 a service",
        "clustertools watch --once -o policy.mode=observe       a try",
    )
)
@click.option("--once", is_flag=True, help="One pass, for cron.")
@click.option("--act", is_flag=True, help="Do what the policy in the config allows; else only tell.")
@click.option("--interval", type=Duration(zero=False), help="Time between two passes [30s].")
@click.option("--state", type=click.Path(path_type=Path), help="Folder for the state.")
@config_options
@common
def watch(
    out: Output,
    load: Callable[[], Loaded],
    once: bool,
    act: bool,
    interval: float | None,
    state: Path | None,
) -> Status:
    """Look at the jobs that the config names and at this machine, keep incidents, tell people, and (with
    --act) follow the playbooks: save evidence, drain, restart from the last good checkpoint.

    SIGTERM ends it between two passes. SIGHUP reads config and playbooks again (not the code of checks); a
    wrong config is told and the old one stays in force. One state folder has one watchdog: a second one says
    so and ends with exit code 3.
    """
    loaded = load()
    jobs = watches_jobs(loaded)
    make = cluster_watchdog if jobs else node_watchdog
    watchdog = make(loaded, state, act=act, once=once, interval=interval, terminal=not out.json)
    _remark(out, loaded, act, jobs)
    if once:
        result = watchdog.once()
        _report(out, result)
        _finish(out, watchdog)
        return result.status

    def reread() -> None:
        fresh = load()
        policy.load_playbooks.cache_clear()
        books = policy.load_playbooks()
        if watches_jobs(fresh) != jobs:
            raise ConfigError("jobs were named, or none are any more: start the watchdog anew for that")
        now, post, checks = site(
            fresh, act=act, once=False, interval=interval, terminal=not out.json, job_checks=jobs
        )
        wanted = wanted_jobs(fresh) if jobs else []
        watchdog.settings, watchdog.mail, watchdog.checks, watchdog.playbooks = now, post, checks, books
        watchdog.wanted = wanted

    _for_ever(out, watchdog, reread)
    return Status.OK


def _finish(out: Output, watchdog: Watchdog) -> None:
    """Go on with what was begun as long as cron's minute allows: a restart is half a dozen steps."""
    until = time.monotonic() + ONCE_SECONDS
    while watchdog.busy() and time.monotonic() < until:
        time.sleep(BUSY_SECONDS)
        for said in watchdog.carry_on():
            out.note(said)


def _remark(out: Output, loaded: Loaded, act: bool, jobs: bool) -> None:
    """What a person might expect of their config and will not get."""
    said = loaded.config.policy
    if act and said.mode == "observe" and not set(said.per_playbook.values()) - {"observe"}:
        out.note("--act changes nothing while policy.mode is observe")
    if loaded.config.jobs and not jobs:
        out.note(
            f"no Slurm here: watch looks at the machine, not at the jobs of the config "
            f"({', '.join(loaded.config.jobs)}); clustertools run watches one"
        )


def _for_ever(out: Output, watchdog: Watchdog, reread: Callable[[], None]) -> None:
    asked: list[int] = []  # what the signals asked for: a handler does no more than note it
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda n, _: asked.append(n))

    def stop() -> bool:
        while signal.SIGHUP in asked:
            asked.remove(signal.SIGHUP)
            _reload(out, reread)
        return bool(asked)

    loop(watchdog, SystemClock(), stop, lambda result: _report(out, result), out.note)


def _reload(out: Output, reread: Callable[[], None]) -> None:
    systemd.reloading()
    try:
        reread()
    except ConfigError as exc:
        out.note("the config is wrong, the old one stays in force:")
        for problem in exc.problems:
            out.note(problem)
    else:
        out.note("config read again")
    systemd.notify("READY=1")


def _report(out: Output, result: Pass | StoreError) -> None:
    """The line of one pass: a log line must not wait in a buffer for the next hundred."""
    if isinstance(result, StoreError):
        out.note(f"nothing was decided or done in this pass: {result}")
        if out.json:
            out.record("pass", {"status": Status.UNKNOWN, "sentence": "", "error": str(result)}, flush=True)
    elif out.json:
        data = {"status": result.status, "sentence": result.sentence, "blind": result.blind}
        out.record("pass", data, flush=True)
    else:
        out.line(result.sentence, flush=True)
