"""`clustertools watch`: passes over this machine, once or for ever."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import click

from clustertools.cli.frame import Duration, Output, common, examples
from clustertools.errors import ConfigError, StoreError
from clustertools.model import Status
from clustertools.watchdog import Pass, SystemClock, Watchdog, loop


@click.command(epilog=examples("clustertools watch --once", "clustertools watch --act --interval 1m"))
@click.option("--once", is_flag=True, help="One pass, for cron.")
@click.option("--act", is_flag=True, help="Do what the policy in the config allows; else only tell.")
@click.option("--interval", type=Duration(), default=None, help="Time between two passes.")
@click.option("--state", type=click.Path(path_type=Path), help="Folder for the state.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Config file.")
@common
def watch(out: Output, once: bool, **options: Any) -> Status:
    """Look at this machine, keep its incidents, tell people, and (with --act) follow the playbooks.

    SIGHUP reads the config again; a wrong one is told and the old one stays in force.
    """
    from clustertools.cli.assemble import node_watchdog

    options["once"] = once
    watchdog = node_watchdog(options, terminal=not out.json)
    if once:
        result = watchdog.once()
        _report(out, result)
        return result.status
    stopped: list[int] = []
    reload: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: stopped.append(n))
    signal.signal(signal.SIGHUP, lambda n, _: reload.append(n))

    def stop() -> bool:
        if reload:
            reload.clear()
            _reload(watchdog, options, out)
        return bool(stopped)

    loop(watchdog, SystemClock(), stop, lambda result: _report(out, result))
    return Status.OK


def _reload(watchdog: Watchdog, options: dict[str, Any], out: Output) -> None:
    from clustertools.cli.assemble import reloaded

    try:
        watchdog.settings, watchdog.mail, watchdog.checks = reloaded(options, terminal=not out.json)
        out.note("config read again")
    except ConfigError as exc:
        out.note(f"the config is wrong, the old one stays in force: {exc}")


def _report(out: Output, result: Pass | StoreError) -> None:
    if isinstance(result, StoreError):
        out.note(str(result))
    elif out.json:
        out.record("pass", {"sentence": result.sentence, "status": result.status.name})
    else:
        out.line(result.sentence)
