"""What a person on call asks: what is wrong, since when, what was done, where is it stuck.

These commands read the state of the cluster's watchdog and of every `clustertools run` on this machine. Those
that change something change only marks that people own: acknowledgements, silences, pauses, approvals.
"""

from __future__ import annotations

import dataclasses
import getpass
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from clustertools import incidents, policy
from clustertools.cli.assemble import load_config, open_store, run_folder, state_folder, stores
from clustertools.cli.frame import Duration, Output, common, examples
from clustertools.cli.run import manual_restart
from clustertools.errors import ConfigError
from clustertools.model import Incident, Status, worst
from clustertools.render import story
from clustertools.store import Store

state_option = click.option("--state", type=click.Path(path_type=Path), help="Folder of the state.")


def _stores(state: Path | None) -> list[tuple[str, Store]]:
    """Every store there is. Raises ConfigError when there is none, saying where it was looked for."""
    loaded = load_config(None)
    folder = state_folder(state, loaded.config if loaded else None)
    found = stores(folder)
    if not found:
        raise ConfigError(
            f"no watchdog has kept state in {folder}; --state or CLUSTERTOOLS_STATE names another"
        )
    return found


def _writable(name: str, state: Path | None) -> Store:
    loaded = load_config(None)
    folder = state_folder(state, loaded.config if loaded else None)
    return open_store(run_folder(folder, name) if name else folder)


def _find(key: str, state: Path | None) -> tuple[str, Incident]:
    """The incident with this key, or the only one that begins with it. Raises ConfigError."""
    found = [(name, i) for name, store in _stores(state) for i in store.incidents().values()]
    exact = [x for x in found if x[1].key == key]
    some = exact or [x for x in found if x[1].key.startswith(key)]
    if len(some) == 1:
        return some[0]
    if not some:
        raise ConfigError(f"there is no incident {key!r}; `clustertools status --all` lists them")
    raise ConfigError(f"{key!r} is not one incident: {', '.join(i.key for _, i in some[:8])}")


@click.command(epilog=examples("clustertools status", "clustertools status --all"))
@click.option("--all", "everything", is_flag=True, help="Resolved incidents too.")
@state_option
@common
def status(out: Output, everything: bool, state: Path | None) -> Status:
    """What is wrong now, the worst first; and what the tool could not see."""
    now = time.time()
    found: list[Incident] = []
    for name, store in _stores(state):
        shown = [i for i in store.incidents().values() if i.state == "open" or everything]
        found += shown
        if out.json:
            for incident in shown:
                out.record("incident", incident)
            continue
        beat = store.cursor("heartbeat")
        pause = store.cursor("pause")
        for line in story.status_lines(name, shown, store.verdicts(), beat, pause, now, out.color):
            out.line(line)
    return worst(i.finding.status for i in found if i.state == "open" and not incidents.is_quiet(i, now))


@click.command(epilog=examples("clustertools show JobHung:run:demo"))
@click.argument("key")
@state_option
@common
def show(out: Output, key: str, state: Path | None) -> Status:
    """Everything known about one incident: evidence, what was done, the runbook."""
    name, incident = _find(key, state)
    store = dict(_stores(state))[name]
    rows = [r for r in store.actions() if r.action.because == incident.key]
    if out.json:
        out.record("incident", incident)
        for row in rows:
            out.record("action", row)
        return incident.finding.status
    book = policy.playbook_for(incident.finding.code, policy.load_playbooks())
    for line in story.incident_lines(incident, rows, book, time.time(), out.color):
        out.line(line)
    return incident.finding.status


@click.command(epilog=examples("clustertools timeline demo", "clustertools timeline"))
@click.argument("subject", required=False, default="")
@click.option("--since", type=Duration(), default=7 * 86400.0, help="How far back [7d].")
@state_option
@common
def timeline(out: Output, subject: str, since: float, state: Path | None) -> None:
    """What happened to a run or node, in order: starts, incidents, actions and their steps."""
    now = time.time()
    events = []
    for name, store in _stores(state):
        mine = story.events(store.transitions(), store.actions(), _attempts(store), now - since)
        events += [e for e in mine if not subject or subject in (name, *e.subjects)]
    for event in sorted(events, key=lambda e: e.time):
        if out.json:
            out.record("event", event)
        else:
            out.line(event.line(out.color))
    if not events:
        out.note(f"nothing happened to {subject or 'anything'} in that time")


def _attempts(store: Store) -> list[Any]:
    return [attempt for run in store.runs() for attempt in store.attempts(run)]


def _mark(key: str, state: Path | None, change: Callable[[Incident], Incident]) -> Incident:
    name, incident = _find(key, state)
    store = _writable(name, state)
    with store.transaction():
        before = store.incidents()
        changed = change(before.get(incident.key, incident))
        store.save_incidents(before, {**before, incident.key: changed})
    return changed


@click.command(epilog=examples("clustertools ack JobHung:run:demo --for 2h"))
@click.argument("key")
@click.option("--for", "seconds", type=Duration(), default=8 * 3600.0, help="How long [8h].")
@click.option("--by", default=getpass.getuser, help="Who; you, unless told otherwise.")
@state_option
@common
def ack(out: Output, key: str, seconds: float, by: str, state: Path | None) -> None:
    """Say that you have it: no more notices, and nothing is done about it, until you are done or late."""
    until = time.time() + seconds
    incident = _mark(
        key, state, lambda i: dataclasses.replace(i, acknowledged_by=by, acknowledged_until=until)
    )
    out.line(f"{incident.key}: {by} has it until {story.clock(until)}")


@click.command(epilog=examples("clustertools silence 'Ib*:gpu-017*' --for 4h --why 'cable on order'"))
@click.argument("pattern")
@click.option("--for", "seconds", type=Duration(), default=4 * 3600.0, help="How long [4h].")
@click.option("--why", required=True, help="The reason, for those who wonder.")
@click.option("--by", default=getpass.getuser)
@state_option
@common
def silence(out: Output, pattern: str, seconds: float, why: str, by: str, state: Path | None) -> None:
    """Tell nobody of incidents whose key matches PATTERN (shell style). They are still seen and kept."""
    until = time.time() + seconds
    for name in _names(state):
        _writable(name, state).add_silence(pattern, until, by, why)
    out.line(f"silent about {pattern} until {story.clock(until)}: {why}")


def _names(state: Path | None) -> Iterable[str]:
    return [name for name, _ in _stores(state)]


@click.command(epilog=examples("clustertools pause 2h --why 'driver roll-out'"))
@click.argument("seconds", metavar="DURATION", type=Duration(), default=2 * 3600.0)
@click.option("--why", default="asked by a person")
@state_option
@common
def pause(out: Output, seconds: float, why: str, state: Path | None) -> None:
    """Go on observing and telling, but start no action for a while."""
    until = time.time() + seconds
    for name in _names(state):
        store = _writable(name, state)
        with store.transaction():
            store.put_cursor("pause", "", {"until": until, "why": f"{why} ({getpass.getuser()})"})
    out.line(f"no action until {story.clock(until)}: {why}")


@click.command()
@state_option
@common
def resume(out: Output, state: Path | None) -> None:
    """End a pause."""
    for name in _names(state):
        store = _writable(name, state)
        with store.transaction():
            store.put_cursor("pause", "", {})
    out.line("acting again, as far as the policy allows")


@click.command()
@click.argument("action_id")
@click.option("--by", default=getpass.getuser)
@state_option
@common
def approve(out: Output, action_id: str, by: str, state: Path | None) -> Status:
    """Let a blocked action that waits for approval happen on the next pass."""
    for name in _names(state):
        if _writable(name, state).approve(action_id, by):
            out.line(f"approved by {by}: {action_id}")
            return Status.OK
    raise ConfigError(f"no action {action_id!r} waits for approval")


@click.command(epilog=examples("clustertools restart demo"))
@click.argument("run_name", metavar="RUN")
@state_option
@common
def restart(out: Output, run_name: str, state: Path | None) -> None:
    """Restart a run from its last verified checkpoint: done by the watchdog on its next pass."""
    names = dict(_stores(state))
    if run_name not in names and not any(run_name in s.runs() for s in names.values()):
        raise ConfigError(
            f"there is no run {run_name!r}; there is {', '.join(n for n in names if n) or 'none'}"
        )
    store = _writable(run_name if run_name in names else "", state)
    attempts = store.attempts(run_name)
    action = manual_restart(run_name, attempts[-1].number if attempts else 0, time.time())
    with store.transaction():
        store.put_action(action, "planned", action.planned_at)
    out.line(f"{run_name} will be restarted on the watchdog's next pass")


@click.command(epilog=examples("clustertools checkpoints ckpt --deep"))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Read every byte and check the CRCs.")
@common
def checkpoints(out: Output, folder: Path, deep: bool) -> Status:
    """Every checkpoint with its verdict and reason, newest first; the last good one is marked."""
    from clustertools.host import LocalHost
    from clustertools.sources.checkpoints import checkpoints as look
    from clustertools.sources.checkpoints import last_good

    listing = look(LocalHost(), str(folder.absolute()), deep=deep, timeout_seconds=600.0, newest=100)
    good = last_good(listing.reports)
    for report in listing.reports:
        if out.json:
            out.record("checkpoint", report)
        else:
            out.line(story.checkpoint_line(report, report == good, out.color))
    if not listing.reports:
        out.note(f"there is no checkpoint in {folder}")
        return Status.UNKNOWN
    return Status.OK if good == listing.reports[0] else Status.WARNING if good else Status.CRITICAL


@click.command(epilog=examples("clustertools stacks demo", "clustertools stacks 4711 4712 --native"))
@click.argument("targets", nargs=-1, required=True, metavar="RUN|PID...")
@click.option("--native", is_flag=True, help="C and C++ frames too (slower).")
@state_option
@common
def stacks(out: Output, targets: tuple[str, ...], native: bool, state: Path | None) -> None:
    """Where every rank is: identical stacks folded by rank set, the odd one first."""
    from clustertools.host import LocalHost
    from clustertools.sources import processes
    from clustertools.sources import stacks as source

    host = LocalHost()
    roots = [pid for target in targets for pid in _pids(target, state)]
    by_rank = processes.ranks(host, roots) or dict(enumerate(roots))
    report = source.stacks(host, by_rank, native=native)
    groups = source.fold(report.stacks)
    if out.json:
        for group in groups:
            out.record("stack", group)
        for rank, why in sorted(report.unseen.items()):
            out.record("unseen", {"rank": rank, "why": why})
    else:
        out.line(source.render(groups, report.unseen))


def _pids(target: str, state: Path | None) -> list[int]:
    """The root processes of a run, or the pid itself. Raises ConfigError."""
    if target.isdigit():
        return [int(target)]
    from clustertools.schedulers import RunSpec
    from clustertools.schedulers.local import LocalScheduler

    loaded = load_config(None)
    folder = run_folder(state_folder(state, loaded.config if loaded else None), target)
    if not (folder / "state.db").exists():
        raise ConfigError(f"{target!r} is neither a process id nor a run in {folder.parent}")
    attempts = tuple(open_store(folder, read_only=True).attempts(target))
    job = LocalScheduler(folder / "attempts", "").job(RunSpec(target), attempts)
    if not job.pids:
        raise ConfigError(f"run {target} is {job.state}: it has no processes")
    return list(job.pids)
