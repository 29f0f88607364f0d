"""What a person on call asks: what is wrong, since when, what was done, where is it stuck.

These commands read the state of this machine's watchdog and of every `clustertools run` on it, while those go
on. Those that change something change only marks that people own: acknowledgements, silences, pauses,
approvals, "it is over". The watchdog acts on them on its next pass; each leaves a row in the audit trail.
"""

from __future__ import annotations

import dataclasses
import getpass
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from clustertools import notices, policy
from clustertools.cli.assemble import load_config, open_store, run_folder, state_folder, store_folders
from clustertools.cli.frame import Duration, Output, common, examples
from clustertools.cli.run import manual_restart
from clustertools.errors import ConfigError, StoreError
from clustertools.model import Action, Attempt, Incident, Outcome, Status, Subject, to_data, worst
from clustertools.render import story
from clustertools.store import ActionRow, Store
from clustertools.text import plain

#: Where a watchdog that runs as a service keeps its state; whoever is on call may be another user.
SYSTEM_STATE = Path("/var/lib/clustertools")

state_option = click.option(
    "--state", type=click.Path(path_type=Path), help="Folder of the state; also CLUSTERTOOLS_STATE."
)


@dataclass(frozen=True)
class Found:
    """One store that can be read: the run's name ("" for the machine's watchdog), its folder, the store."""

    name: str
    folder: Path
    store: Store

    def writable(self) -> Store:
        return open_store(self.folder)


def _folders(state: Path | None) -> list[Path]:
    """The state folders to look into: the one that is named, else one's own and the system's."""
    if state is not None or os.environ.get("CLUSTERTOOLS_STATE"):
        return [state_folder(state, None)]
    try:
        loaded = load_config(None)
    except ConfigError as exc:
        raise ConfigError(
            *exc.problems, "the config says where the state is, and is wrong; --state names the folder"
        ) from exc
    return list(dict.fromkeys((state_folder(None, loaded.config if loaded else None), SYSTEM_STATE)))


def look(state: Path | None, out: Output) -> tuple[list[Found], list[str]]:
    """Every store there is, and in words those that cannot be read. Raises ConfigError when there is none."""
    found, unread, folders = [], [], _folders(state)
    for folder in folders:
        try:
            for name, place in store_folders(folder):
                try:
                    found.append(Found(name, place, open_store(place, read_only=True)))
                except StoreError as exc:
                    unread.append(str(exc))
        except OSError as exc:
            unread.append(f"{folder} cannot be read: {exc.strerror}")
    for why in unread:
        out.note(why)
    if not found and not unread:
        raise ConfigError(
            f"no watchdog has kept state in {' or '.join(map(str, folders))}: start `clustertools watch` or "
            "`clustertools run`; --state or CLUSTERTOOLS_STATE names another folder"
        )
    if not found:
        raise StoreError("no state can be read here; ask as the user that the watchdog runs as")
    return found, unread


def find(key: str, state: Path | None, out: Output) -> tuple[Found, Incident]:
    """The incident with this key, or the only one that begins with it. Raises ConfigError."""
    every = [(where, i) for where in look(state, out)[0] for i in where.store.incidents().values()]
    exact = [x for x in every if x[1].key == key]
    some = exact or [x for x in every if x[1].key.startswith(key)]
    if len(some) > 1:  # an old one that is over is rarely meant
        some = [x for x in some if x[1].state == "open"] or some
    if len(some) == 1:
        return some[0]
    if not some:
        raise ConfigError(f"there is no incident {key!r}; `clustertools status --all` lists them")
    names = ", ".join(plain(i.key, 200) for _, i in some[:8])
    raise ConfigError(f"{key!r} is not one incident: {names}{' and more' if len(some) > 8 else ''}")


def _width() -> int | None:
    """Columns to write in; None when nobody's terminal is at the other end."""
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS"):
        return None
    return shutil.get_terminal_size().columns


def say(out: Output, kind: str, text: str, **data: Any) -> None:
    if out.json:
        out.record(kind, {"said": text, **data})
    else:
        out.line(plain(text))


# looking


@click.command(epilog=examples("clustertools status", "clustertools status --all"))
@click.option("--all", "everything", is_flag=True, help="Resolved incidents too.")
@state_option
@common
def status(out: Output, everything: bool, state: Path | None) -> Status:
    """What is wrong now, the worst first; and what the tool could not see.

    The exit code is that of the worst open incident that nobody silenced. What could not be looked at, or not
    for a long time, is UNKNOWN (3).
    """
    now = time.time()
    found, unread = look(state, out)
    answers = [Status.UNKNOWN] if unread else []
    for where in found:
        seen = _watched(where, everything, now)
        answers.append(seen.status(now))
        if out.json:
            _status_records(out, seen, answers[-1], now)
            continue
        for line in story.status_lines(seen, now, out.color, _width()):
            out.line(line)
    return worst(answers)


def _watched(where: Found, everything: bool, now: float) -> story.Watched:
    store = where.store
    shown = [i for i in store.incidents().values() if i.state == "open" or everything]
    silences = store.silences(now)
    patterns = [s.pattern for s in silences]
    pause = store.cursor("pause")
    until = float(pause.get("until", 0.0))
    beat = store.cursor("heartbeat")
    paused = str(pause.get("why") or "by a person") if until > now else str(beat.get("paused", ""))
    attempts = store.attempts(where.name) if where.name else []
    return story.Watched(
        where.name, shown,
        frozenset(i.key for i in shown if notices.is_silenced(i.key, patterns) or i.silenced_until > now),
        beat, paused, until if until > now else 0.0, silences,
        due=not (attempts and attempts[-1].end),
    )  # fmt: skip


def _status_records(out: Output, seen: story.Watched, answer: Status, now: float) -> None:
    out.record(
        "watched",
        {
            "run": seen.name, "status": answer, "last_pass_at": seen.beat.get("at"),
            "saw_everything_at": seen.beat.get("seen"), "blind": seen.blind, "stale": seen.stale(now),
            "paused": seen.paused, "paused_until": seen.paused_until, "silences": seen.silences,
        },
    )  # fmt: skip
    for incident in seen.incidents:
        out.record("incident", _plain_data(incident, seen.name, incident.key in seen.silenced))


def _plain_data(incident: Incident, run: str, silenced: bool) -> dict[str, Any]:
    return {"key": incident.key, "watched_run": run, "silenced": silenced, **to_data(incident)}


@click.command(epilog=examples("clustertools show JobHung:run:demo", "clustertools show XidGpu"))
@click.argument("key")
@state_option
@common
def show(out: Output, key: str, state: Path | None) -> Status:
    """Everything known about one incident: evidence, what was done, who has it, the runbook.

    KEY may be the beginning of a key, as long as only one incident begins so.
    """
    now = time.time()
    where, incident = find(key, state, out)
    store = where.store
    rows = [r for r in store.actions() if r.action.because == incident.key]
    book = policy.playbook_for(incident.finding.code, policy.load_playbooks())
    if out.json:
        silenced = notices.is_silenced(incident.key, [s.pattern for s in store.silences(now)])
        runbook = {"playbook": book.name, "runbook": book.runbook} if book else {}
        out.record("incident", {**_plain_data(incident, where.name, silenced), **runbook})
        for row in rows:
            out.record("action", row)
    else:
        for line in story.incident_lines(incident, rows, book, now, out.color, _width()):
            out.line(line)
    return incident.finding.status if incident.state == "open" else Status.OK


@click.command(epilog=examples("clustertools timeline demo", "clustertools timeline gpu-017 --since 2h"))
@click.argument("subject", required=False, default="", metavar="[RUN|NODE]")
@click.option("--since", type=Duration(), default=7 * 86400.0, help="How far back [7d].")
@state_option
@common
def timeline(out: Output, subject: str, since: float, state: Path | None) -> None:
    """What happened to a run or a node, in order: starts, incidents, actions and their steps, people."""
    now = time.time()
    subject = subject.removeprefix("run:")
    known: set[str] = set()
    events: list[story.Event] = []
    for where in look(state, out)[0]:
        store = where.store
        mine = story.events(store.transitions(), store.actions(), _attempts(store), 0.0)
        known |= {where.name, *(v.subject.node for v in store.verdicts())}
        known |= {name for event in mine for name in event.subjects}
        # what concerns the run's store as a whole (a pause) concerns its run
        events += [e for e in mine if not subject or subject in (where.name, *e.subjects)]
    if subject and subject not in known:
        names = ", ".join(plain(name, 64) for name in sorted(known - {""})[:20])
        raise ConfigError(f"there is no run or node {subject!r}; there is {names or 'none yet'}")
    recent = sorted((e for e in events if e.time >= now - since), key=lambda e: e.time)
    width = _width()
    for event in recent:
        if out.json:
            out.record("event", {**to_data(event), "kind": "event", "event": event.kind})
        for line in event.lines(now, out.color, width) if not out.json else ():
            out.line(line)
    if not recent:
        out.note(f"nothing happened to {subject or 'anything'} in that time")


def _attempts(store: Store) -> list[Attempt]:
    return [attempt for run in store.runs() for attempt in store.attempts(run)]


# marks of people


def _me() -> str:
    """Who asks: the person behind sudo, the user, or a number where it has no name."""
    if os.environ.get("SUDO_USER"):
        return os.environ["SUDO_USER"]
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def note_deed(store: Store, kind: str, target: Subject, because: str, said: str, now: float) -> None:
    """The row of the audit trail for what a person did. Part of the caller's transaction."""
    id_ = f"person@{now:.6f}/{kind}:{because or target}"
    action = Action(id_, kind, target, because, "", said, planned_at=now)
    store.put_action(action, "done", now)
    store.advance_action(action.id, "done", "", {"history": [[now, said]]}, now)
    store.finish_action(Outcome(action.id, True, said, 0.0, now), now)


def tell_others(store: Store, key: str, text: str) -> None:
    """Have the watchdog say it where the incident was told. Part of the caller's transaction."""
    notes = store.cursor("said").get("notes", [])
    store.put_cursor("said", "", {"notes": [*notes, [key, text]][-200:]})


def mark(
    key: str,
    state: Path | None,
    out: Output,
    kind: str,
    said: str,
    change: Callable[[Store, Incident], Incident],
) -> Incident:
    """Put a person's mark on one open incident. Raises ConfigError and StoreError."""
    where, incident = find(key, state, out)
    store = where.writable()
    with store.transaction():
        before = store.incidents()
        known = before.get(incident.key)
        if known is None or known.state != "open":
            raise ConfigError(f"{plain(incident.key)} is {known.state if known else 'gone'}, not open")
        changed = change(store, known)
        store.save_incidents(before, {**before, changed.key: changed})
        note_deed(store, kind, incident.finding.subject, incident.key, said, time.time())
        tell_others(store, incident.key, said)
    return changed


by_option = click.option("--by", default=_me, help="Who; you, unless told otherwise.")


@click.command(epilog=examples("clustertools ack JobHung:run:demo --for 2h"))
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@click.option("--for", "seconds", type=Duration(), default=8 * 3600.0, help="How long [8h].")
@by_option
@state_option
@common
def ack(out: Output, keys: tuple[str, ...], seconds: float, by: str, state: Path | None) -> None:
    """Say that you have it: no more notices, and nothing is done about it, until it is over or you are late.

    When the time is over and the incident is not, it is told again. `--for 0s` gives it back at once.
    """
    until = time.time() + seconds
    said = (
        f"{plain(by, 100)} has it until {story.clock(until)}"
        if seconds
        else f"{plain(by, 100)} gives it back"
    )
    for key in keys:
        incident = mark(
            key, state, out, "ack", said,
            lambda _, i: dataclasses.replace(i, acknowledged_by=plain(by, 100), acknowledged_until=until),
        )  # fmt: skip
        say(out, "ack", f"{incident.key}: {said}", key=incident.key, by=by, until=until)


@click.command(epilog=examples("clustertools silence 'Ib*:gpu-017*' --for 4h --why 'cable on order'"))
@click.argument("pattern")
@click.option("--for", "seconds", type=Duration(zero=False), default=4 * 3600.0, help="How long [4h].")
@click.option("--why", default="", help="The reason, for those who wonder.")
@click.option("--end", is_flag=True, help="End the silence of this pattern.")
@by_option
@state_option
@common
def silence(
    out: Output, pattern: str, seconds: float, why: str, end: bool, by: str, state: Path | None
) -> None:
    """Tell nobody of incidents whose key matches PATTERN (shell style). They are still seen and kept.

    What opened in the meantime and is still open is told when the silence ends.
    """
    if not end and not why.strip():
        raise click.UsageError("--why is missing: the next person on call will wonder")
    now = time.time()
    until, ended, hit = now + seconds, 0, 0
    said = f"{plain(by, 100)} silenced {plain(pattern)} until {story.clock(until)}: {plain(why, 300)}"
    for where, store in _each_writable(state, out):
        with store.transaction():
            if end:
                ended += store.end_silences(pattern, now)
                said = f"{plain(by, 100)} ended the silence about {plain(pattern)}"
            else:
                store.add_silence(pattern, until, by, why)
            note_deed(store, "silence", Subject(run=where.name), "", said, now)
            open_now = [i for i in store.incidents().values() if i.state == "open"]
            hit += sum(notices.is_silenced(i.key, [pattern]) for i in open_now)
    if end and not ended:
        raise ConfigError(f"nothing is silent about {pattern!r}; `clustertools status` shows the silences")
    text = f"{said} ({hit} open now)"
    say(out, "silence", text, pattern=pattern, until=now if end else until, by=by, why=why, open=hit)


def _each_writable(state: Path | None, out: Output) -> Iterator[tuple[Found, Store]]:
    """Every store, to be written. Those that cannot be are an error after the others, naming each."""
    failed = []
    for where in look(state, out)[0]:
        try:
            store = where.writable()
        except StoreError as exc:
            failed.append(str(exc))
            continue
        yield where, store
    if failed:
        raise StoreError("\n".join(failed))


@click.command(epilog=examples("clustertools pause 2h --why 'driver roll-out'"))
@click.argument("seconds", metavar="[DURATION]", type=Duration(zero=False), default=2 * 3600.0)
@click.option("--why", default="asked by a person", help="The reason, for those who wonder.")
@by_option
@state_option
@common
def pause(out: Output, seconds: float, why: str, by: str, state: Path | None) -> None:
    """Go on observing and telling, but begin no action for a while [2h].

    What is under way is finished: a run that is left stopped is worse than one that is restarted. The file
    that the config calls policy.pause_file does the same for as long as it exists.
    """
    now = time.time()
    until = now + seconds
    said = f"no action until {story.clock(until)}: {plain(why, 300)} ({plain(by, 100)})"
    for where, store in _each_writable(state, out):
        with store.transaction():
            store.put_cursor("pause", "", {"until": until, "why": f"{plain(why, 300)} ({plain(by, 100)})"})
            note_deed(store, "pause", Subject(run=where.name), "", said, now)
    say(out, "pause", said, until=until, by=by, why=why)


@click.command()
@by_option
@state_option
@common
def resume(out: Output, by: str, state: Path | None) -> None:
    """End a pause. One by the config's policy.pause_file ends when that file is removed."""
    now = time.time()
    said = f"{plain(by, 100)} ended the pause"
    for where, store in _each_writable(state, out):
        with store.transaction():
            held = str(store.cursor("heartbeat").get("paused", ""))
            mine = float(store.cursor("pause").get("until", 0.0)) > now
            store.put_cursor("pause", "", {})
            if mine:
                note_deed(store, "unpause", Subject(run=where.name), "", said, now)
        if held and not mine:
            out.note(f"{where.name or 'this machine'} was paused on its last pass: {plain(held)}")
    say(out, "resume", "acting again, as far as the policy allows", by=by)


@click.command(epilog=examples("clustertools approve JobHung:run:demo"))
@click.argument("action", metavar="ACTION|KEY")
@by_option
@state_option
@common
def approve(out: Output, action: str, by: str, state: Path | None) -> None:
    """Let an action that waits for approval (policy.mode ask) happen on the next pass.

    Named by its id, as the message about it says, by the beginning of that, or by its incident's key.
    An approval counts for an hour.
    """
    now = time.time()
    rows = [(where, row) for where in look(state, out)[0] for row in where.store.actions()]
    where, row = _one_action(action, [x for x in rows if x[1].state == "blocked"])
    why = _not_to_be_approved(where.store, row, now)
    if why:
        raise ConfigError(f"{plain(row.action.id)} cannot be approved: {why}")
    store = where.writable()
    said = f"{plain(by, 100)} approved: {row.action.kind} {plain(str(row.action.target))}"
    with store.transaction():
        if not store.approve(row.action.id, by, now):
            raise ConfigError(f"{plain(row.action.id)} no longer waits for approval")
        note_deed(store, "approve", row.action.target, row.action.because, said, now)
        tell_others(store, row.action.because, said)
    if _watched(where, False, now).stale(now):
        out.note("nobody watches now: it is done on the next pass, if that comes within the hour")
    say(out, "approve", f"{said}, on the next pass", action=row.action.id, by=by)


def _not_to_be_approved(store: Store, row: ActionRow, now: float) -> str:
    """Why this action cannot be approved, in words; empty when it can."""
    action = row.action
    incident = store.incidents().get(action.because)
    if incident is None or incident.state != "open":
        return f"{plain(action.because)} is over; nothing is done about it any more"
    if not policy.asks(action):
        return plain(action.blocked)
    if policy.is_approved(row.approved_by, row.approved_at, now):
        return f"{plain(row.approved_by)} did so at {story.clock(row.approved_at)}"
    # "...restart:run:demo#3": it is about that start of the run, and another may have begun since
    attempt = action.id.rpartition("#")[2] if action.target.run else ""
    starts = store.attempts(action.target.run) if attempt.isdigit() else []
    if starts and starts[-1].number != int(attempt):
        return f"it is about start {attempt} of the run, and start {starts[-1].number} has begun since"
    return ""


def _one_action(word: str, rows: Iterable[tuple[Found, ActionRow]]) -> tuple[Found, ActionRow]:
    """The action that a person means. Raises ConfigError."""
    every = list(rows)
    waiting = [x for x in every if policy.asks(x[1].action)]
    some = [x for x in every if x[1].action.id == word]
    some = some or [x for x in waiting if word in (x[1].action.because, x[1].action.kind)]
    some = some or [x for x in waiting if x[1].action.id.startswith(word)]
    if len(some) == 1:
        return some[0]
    names = ", ".join(repr(plain(row.action.id, 200)) for _, row in (some or waiting)[:8])
    if some:
        raise ConfigError(f"{word!r} is not one action: {names}")
    raise ConfigError(f"no action {word!r} waits for approval; there is {names or 'none'}")


@click.command(
    epilog=examples("clustertools restart demo", "clustertools restart pretrain --exclude gpu-[017,031]")
)
@click.argument("run_name", metavar="RUN")
@click.option("--exclude", default="", metavar="NODES", help="Begin it without these nodes (with Slurm).")
@by_option
@state_option
@common
def restart(out: Output, run_name: str, exclude: str, by: str, state: Path | None) -> None:
    """Restart a run from its last verified checkpoint: done on its watchdog's next pass, paused or not."""
    from clustertools.fleet.nodesets import expand

    without = expand(exclude) if exclude else ()
    now = time.time()
    found = look(state, out)[0]
    here = [x for x in found if run_name == x.name] or [x for x in found if run_name in x.store.runs()]
    if not here:
        names = sorted({x.name for x in found if x.name} | {r for x in found for r in x.store.runs()})
        raise ConfigError(f"there is no run {run_name!r}; there is {', '.join(names) or 'none'}")
    seen = _watched(here[0], False, now)
    store = here[0].writable()
    with store.transaction():
        mine = [r for r in store.actions(since=now) if r.action.target.run == run_name]
        busy = [r for r in mine if r.action.kind == "restart" and r.state != "blocked"]
        if any(r.state in ("planned", "running") and r.step != "wait_step" for r in busy):
            raise ConfigError(
                f"a restart of {run_name} is already under way: clustertools timeline {run_name}"
            )
        attempts = store.attempts(run_name)
        action = dataclasses.replace(
            manual_restart(run_name, attempts[-1].number if attempts else 0, now),
            because=f"asked by a person ({plain(by, 100)})",
            options={"exclude": list(without)} if without else {},
        )
        store.put_action(action, "planned", now)
    if not seen.due or seen.stale(now):
        out.note(f"nobody watches {run_name} now; `clustertools run --name {run_name} -- ...` takes it up")
    say(out, "restart", f"{run_name} will be restarted on its watchdog's next pass", run=run_name, by=by)


# looking at files and processes


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
            out.record("checkpoint", {**to_data(report), "last_good": report == good})
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
def stacks(out: Output, targets: tuple[str, ...], native: bool, state: Path | None) -> Status:
    """Where every rank is: identical stacks folded by rank set, the odd one first.

    Exit code 3 when a rank could not be looked at.
    """
    from clustertools.host import LocalHost
    from clustertools.sources import processes
    from clustertools.sources import stacks as source

    host = LocalHost()
    roots = [pid for target in targets for pid in _pids(target, state, out)]
    by_rank = processes.ranks(host, roots) or dict(enumerate(roots))
    report = source.stacks(host, by_rank, native=native)
    groups = source.fold(report.stacks)
    if out.json:
        for group in groups:
            out.record("stack", group)
        for rank, why in sorted(report.unseen.items()):
            out.record("unseen", {"rank": rank, "why": why})
    else:
        for line in source.render(groups, report.unseen).splitlines():
            out.line(plain(line, 4000))
    return Status.UNKNOWN if report.unseen else Status.OK


def _pids(target: str, state: Path | None, out: Output) -> list[int]:
    """The root processes of a run, or the pid itself. Raises ConfigError."""
    if target.isdigit():
        return [int(target)]
    from clustertools.schedulers import RunSpec
    from clustertools.schedulers.local import LocalScheduler

    folders = [run_folder(folder, target) for folder in _folders(state)]
    folder = next((f for f in folders if os.path.exists(f / "state.db")), None)
    if folder is None:
        raise ConfigError(f"{target!r} is neither a process id nor a run in {folders[0].parent}")
    attempts = tuple(open_store(folder, read_only=True).attempts(target))
    job = LocalScheduler(folder / "attempts", "").job(RunSpec(target), attempts)
    if not job.pids:
        raise ConfigError(f"run {target} is {job.state}: it has no processes")
    return list(job.pids)
