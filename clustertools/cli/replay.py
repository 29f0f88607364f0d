"""`replay`: what the watchdog would say and do about a recorded run, told in a second instead of an hour."""

from __future__ import annotations

import datetime
from pathlib import Path

import click

from clustertools.cli.frame import Duration, Output, common, examples
from clustertools.model import Action
from clustertools.render import story
from clustertools.text import BLOCK_CHARACTERS, plain


@click.command(
    epilog=examples(
        "clustertools replay tests/runs/xid79-during-run",
        "clustertools replay tests/runs/xid79-during-run --observe",
    )
)
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--act", "mode", flag_value="act", help="As if acting were allowed, whatever the recording says."
)
@click.option("--observe", "mode", flag_value="observe", help="As if nothing may be done.")
@click.option("--every", type=Duration(), help="Time between two passes; the recording's own otherwise.")
@common
def replay(out: Output, folder: Path, mode: str | None, every: float | None) -> int:
    """Drive the real watchdog through the recorded run in DIR, with a clock that is only counted.

    Nothing is looked at, started or sent outside the recording, in either mode. Exit code 0 when everything
    came out as the recording says, 2 when it did not, 3 when the recording cannot be read.
    """
    from clustertools import policy
    from clustertools.check import discover
    from clustertools.replay import replay as drive

    books = policy.load_playbooks()
    told = drive(folder, mode=mode, interval_seconds=every, checks=discover(), playbooks=books)
    if out.json:
        for event in told.events:
            out.record("event", {"after_seconds": event.time - told.start, **_plain(event)})
        for action in told.actions:
            out.record("action", action)
        for call in told.calls:
            out.record("call", call)
        kept = {"mode": told.mode, "passes": told.passes, "expected": told.expected}
        out.record("replayed", {"what": told.what, **kept, "problems": told.problems, "blind": told.blind})
        return 2 if told.problems else 0
    # a recording comes from somewhere else: nothing in it may steer this terminal
    out.line(plain(told.what, BLOCK_CHARACTERS))
    began = datetime.datetime.fromtimestamp(told.start, datetime.timezone.utc)
    out.line(
        f"{told.passes} passes in {told.mode} mode; times are counted from {began:%Y-%m-%d %H:%M:%S} UTC\n"
    )
    for event in told.events:
        text = story.paint(plain(event.text), event.status, out.color)
        out.line(f"{story.since_start(event.time - told.start):>9}  {event.kind:<9} {text}")
    if told.actions:
        out.line("\nplan")
    for action in told.actions:
        for line in _planned(action, told.start):
            out.line(line)
    for why in told.blind:
        out.line(f"at the end nobody could look: {plain(why)}")
    out.line()
    for problem in told.problems:
        out.line(story.paint(plain(problem), "CRITICAL", out.color))
    if not told.problems:
        out.line(
            story.paint("everything came out as the recording says", "OK", out.color)
            if told.expected
            else f"the recording does not say what must come out in {told.mode} mode"
        )
    return 2 if told.problems else 0


def _plain(event: story.Event) -> dict[str, object]:
    return {"time": event.time, "event": event.kind, "text": event.text, "status": event.status}


def _planned(action: Action, start: float) -> list[str]:
    """One step of the plan: what, why, by which runbook, and what would be run."""
    when = story.since_start(action.planned_at - start)
    verb = "would " if action.blocked else ""
    why = f": {action.blocked}" if action.blocked else ""
    first = f"{verb}{action.kind} {action.target}{why}"
    runbook = f"runbook {action.playbook}, because of {action.because}"
    rest = (f"{'':11}{plain(text)}" for text in (f"$ {action.preview}", runbook))
    return [f"{when:>9}  {plain(first)}", *rest]
