"""Whether alarms were right: people say so when they resolve one, and `checks precision` counts.

`checks precision` is reached through `cli/dev.py`.
"""

from __future__ import annotations

import time
from pathlib import Path

import click

from clustertools import precision
from clustertools.cli.frame import Duration, Output, common, examples
from clustertools.cli.oncall import by_option, find, look, mark, note_deed, say, state_option, tell_others
from clustertools.model import Incident, to_data
from clustertools.store import Store
from clustertools.text import plain


@click.command(
    epilog=examples(
        "clustertools resolve NodeNeedsHands:gpu-017 --why 'fan replaced'",
        "clustertools resolve GpuTooHot:gpu-017 --false-alarm 'the sensor of this board is off by 10 C'",
        "clustertools resolve XidGpuLost:gpu-017 --true --why 'board replaced'",
    )
)
@click.argument("key")
@click.option("--why", default="", help="What was done, for those who read on.")
@click.option("--true", "is_true", is_flag=True, help="The alarm was right; counts in `checks precision`.")
@click.option("--false-alarm", metavar="WHY", default="", help="It was not, and why; counts there too.")
@by_option
@state_option
@common
def resolve(
    out: Output, key: str, why: str, is_true: bool, false_alarm: str, by: str, state: Path | None
) -> None:
    """Say that an incident is over. One that its check still reports stays open.

    With --true or --false-alarm also one that is over already can be judged.
    """
    if is_true and false_alarm:
        raise click.UsageError("an alarm is true or false, not both")
    if is_true or false_alarm:
        kind = "true-alarm" if is_true else "false-alarm"
        text = f"{plain(by, 100)} says that it was a {kind.replace('-', ' ')}"
        why = why or false_alarm
        _judge(key, state, out, kind, f"{text}: {plain(false_alarm or why, 300)}" if why else text)
        if find(key, state, out)[1].state != "open":
            say(out, "resolve", text, key=key, by=by, why=why, judged=kind)
            return
    if not (why.strip() or is_true):
        raise click.UsageError("--why is missing: the next person on call will wonder")
    said = f"{plain(by, 100)} says that it is over{f': {plain(why, 300)}' if why else ''}"

    def ask(store: Store, incident: Incident) -> Incident:
        store.put_cursor("resolve", "", {**store.cursor("resolve"), incident.key: said})
        return incident

    incident = mark(key, state, out, "resolve", said, ask)
    text = f"{incident.key}: ends on the watchdog's next pass, unless its check still reports it"
    say(out, "resolve", text, key=incident.key, by=by, why=why)


def _judge(key: str, state: Path | None, out: Output, kind: str, said: str) -> None:
    """Write down whether an alarm was right, be it over or not. Raises ConfigError and StoreError."""
    where, incident = find(key, state, out)
    store = where.writable()
    with store.transaction():
        note_deed(store, kind, incident.finding.subject, incident.key, said, time.time())
        tell_others(store, incident.key, said)


def scores(state: Path | None, out: Output, since: float) -> list[precision.Score]:
    """The score of every code that fired in the last `since` seconds, over all stores that can be read."""
    now = time.time()
    found: list[precision.Firing] = []
    for where in look(state, out)[0]:
        deeds = [(row.action, row.outcome, row.time) for row in where.store.actions()]
        found += precision.firings(where.store.transitions(now - since), deeds)
    return precision.scores(found)


@click.command(
    "precision", epilog=examples("clustertools checks precision", "clustertools checks precision --since 7d")
)
@click.option("--since", type=Duration(), default=90 * 86400.0, help="How far back [90d, all that is kept].")
@state_option
@common
def show_precision(out: Output, since: float, state: Path | None) -> None:
    """How often each code fired, what became of it, and how often people said that it was right.

    The range is where the true share lies with 95 % confidence, from the alarms that were judged.
    """
    every = scores(state, out, since)
    width = max((len(f"{s.check} {s.code}") for s in every), default=0)
    for score in every:
        low, high = score.interval
        if out.json:
            row = {**to_data(score), "precision": score.precision, "low": low, "high": high}
            out.record("precision", row)
            continue
        share = (
            "not judged" if score.precision is None else f"{score.precision:.0%} ({low:.0%} to {high:.0%})"
        )
        counts = [
            f"fired {score.fired}", f"true {score.confirmed}", f"false {score.false}", f"open {score.open}",
            f"by itself {score.by_itself}", f"repaired {score.helped}", f"acknowledged {score.acknowledged}",
        ]  # fmt: skip
        shadow = f", observed {score.observed}" if score.observed else ""
        out.line(f"{f'{score.check} {score.code}':<{width}}  {share:<22}  {', '.join(counts)}{shadow}")
    if not every:
        out.note("nothing fired in that time")
