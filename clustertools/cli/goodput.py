"""`clustertools goodput`: what share of a run's time was training that was kept, and where the rest went."""

from __future__ import annotations

import difflib
import gzip
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import click

from clustertools.cli.frame import Duration, Output, common, examples
from clustertools.cli.oncall import look, state_option
from clustertools.errors import ConfigError
from clustertools.goodput_measured import KINDS, Goodput, Sign, SignKind, measure
from clustertools.model import Attempt, to_data
from clustertools.sources.training_log import FORMATS, READ_CAP_BYTES, LogReader
from clustertools.sources.training_values import Event, Point
from clustertools.store import Store
from clustertools.text import plain

_GZIP = b"\x1f\x8b"
_KINDS: dict[str, SignKind] = {
    "checkpoint_started": "saving", "checkpoint_saved": "saved", "evaluation": "evaluating",
    "resumed": "resumed", "restart_marker": "restarted", "finished": "finished",
}  # fmt: skip
_WORDS = {
    "kept": "training, kept",
    "rolled back": "training, lost and done again",
    "starting": "starting",
    "saving": "saving checkpoints",
    "evaluating": "evaluating",
    "between": "between steps",
    "silent": "silent or hung",
    "down": "down, between two attempts",
    "stopped": "silent or down: a log cannot tell which",
    "unknown": "not known",
}
#: Two files that share more of their time than this tell of the same steps.
_SAME = 0.5

log_format = click.option("--format", "format_", type=click.Choice(sorted(FORMATS)), help="Of the logs.")
run_option = click.option("--run", "run", metavar="NAME", help="A run that a watchdog here looks after.")


@click.command(
    epilog=examples(
        "clustertools goodput slurm-4711.out slurm-4712.out",
        "clustertools goodput --run pretrain-70b",
        "clustertools goodput train.log --wall 26h",
    )
)
@click.argument("logs", nargs=-1, metavar="[LOG]...", type=click.Path(path_type=Path))
@run_option
@click.option("--wall", type=Duration(zero=False), help="All the time there was, where the logs do not say.")
@log_format
@state_option
@common
def goodput(
    out: Output,
    logs: tuple[Path, ...],
    run: str | None,
    wall: float | None,
    format_: str | None,
    state: Path | None,
) -> None:
    """Say what share of a run's time was training that was kept (ETTR), and where the rest went.

    From logs of any format that the watchdog reads, from what it wrote down of a run, or both. A step that
    was trained again after a restart counts once. What nobody can tell is shown as not known.
    """
    found = measured(out, logs, run, state, wall=wall, format_=format_)
    if out.json:
        out.record("goodput", {"ettr": found.ettr, **to_data(found)})
        return
    for line in _text(found):
        out.line(line)


def measured(
    out: Output,
    logs: Sequence[Path],
    run: str | None,
    state: Path | None,
    *,
    wall: float | None = None,
    format_: str | None = None,
) -> Goodput:
    """A run's time taken apart. Raises ConfigError when there is nothing to take apart."""
    if not logs and run is None:
        raise click.UsageError("say which: log files, --run NAME, or both")
    attempts: Sequence[Attempt] = ()
    step_seconds = None
    if run is not None:
        attempts, known, step_seconds = _history(run, state, out)
        logs = logs or [path for path in known if path.is_file()]
    signs = _joined([_signs(path, format_) for path in logs], logs, out)
    if logs and not any(sign.kind == "step" for sign in signs):
        out.note(f"no step is recognised in {', '.join(map(str, logs))}")
        if run is None:
            raise ConfigError(
                "there is nothing to measure: `clustertools read` may know what these files are"
            )
    signs = aligned(signs, attempts)
    return measure(signs, attempts, wall_seconds=wall, step_seconds=step_seconds, until=time.time())


def _history(run: str, state: Path | None, out: Output) -> tuple[list[Attempt], list[Path], float | None]:
    """What a watchdog wrote down of a run: its attempts, its logs, its usual step time."""
    found = look(state, out)[0]
    known = sorted({name for where in found for name in where.store.runs()})
    for where in found:
        attempts = where.store.attempts(run)
        if attempts:
            return attempts, *_seen(where.store, run)
    near = difflib.get_close_matches(run, known, 1)
    hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known[:10])}" if known else ""
    raise ConfigError(f"no attempt of a run {plain(run, 100)!r} is written down here{plain(hint, 400)}")


def _seen(store: Store, run: str) -> tuple[list[Path], float | None]:
    for verdict in store.verdicts():
        if verdict.check == "job_progress" and verdict.subject.run == run:
            files = store.memory("job_progress", verdict.subject).get("files", {})
            paces = [value for _, value in store.history(str(verdict.subject), "job_step_seconds")]
            return [Path(path) for path in files], statistics.median(paces) if paces else None
    return [], None


def _signs(path: Path, format_: str | None) -> list[Sign]:
    """What one file tells. Raises ConfigError when it cannot be read."""
    reader = LogReader(format_)
    signs: list[Sign] = []
    try:
        with open(path, "rb") as plain_file:
            packed = plain_file.peek(2)[:2] == _GZIP
            with gzip.open(plain_file) if packed else plain_file as file:
                while data := file.read(READ_CAP_BYTES):
                    _add(signs, reader.feed(data))
        _add(signs, reader.close())
    except (OSError, EOFError) as exc:
        raise ConfigError(f"{path}: {getattr(exc, 'strerror', None) or exc}") from exc
    return signs


def _add(signs: list[Sign], items: Iterable[Point | Event]) -> None:
    for item in items:
        last = signs[-1] if signs else None
        if isinstance(item, Event):
            signs.append(Sign(_KINDS[item.kind], item.step, item.time))
        elif item.evaluation:
            signs.append(Sign("evaluated", item.step, item.time))
        elif item.step is not None and not (last and last.kind == "step" and last.step == item.step):
            # every rank may tell the same step: a log of a thousand ranks must not fill the memory
            signs.append(Sign("step", item.step, item.time, item.values.get("step_seconds")))


def _joined(each: Sequence[list[Sign]], logs: Sequence[Path], out: Output) -> list[Sign]:
    """The signs of all files one after the other; of those that tell of the same time the fullest."""
    kept: list[tuple[Path, list[Sign]]] = []
    fullest = sorted(zip(logs, each, strict=True), key=lambda x: -sum(s.kind == "step" for s in x[1]))
    for path, signs in fullest:
        same = next((other for other, theirs in kept if _overlap(signs, theirs) > _SAME), None)
        if same is None:
            kept.append((path, signs))
        else:
            out.note(f"{path} tells of the same time as {same}, which tells more of it: left out")
    order = {path: number for number, path in enumerate(logs)}
    kept.sort(key=lambda x: (min(_times(x[1]), default=0.0), order[x[0]]))
    joined: list[Sign] = []
    for _, signs in kept:
        last = max((s.step for s in joined if s.kind == "step" and s.step is not None), default=None)
        first = next((s.step for s in signs if s.kind == "step"), None)
        if last is not None and first is not None and first <= last:
            joined.append(Sign("restarted", first))
        joined += signs
    return joined


def _times(signs: Iterable[Sign]) -> list[float]:
    return [s.time for s in signs if s.time is not None]


def _overlap(one: Iterable[Sign], other: Iterable[Sign]) -> float:
    """The share of the shorter one's time in which both told something."""
    mine, theirs = _times(one), _times(other)
    if not mine or not theirs:
        return 0.0
    shared = min(max(mine), max(theirs)) - max(min(mine), min(theirs))
    return shared / max(1e-9, min(max(mine) - min(mine), max(theirs) - min(theirs)))


def aligned(signs: list[Sign], attempts: Sequence[Attempt]) -> list[Sign]:
    """The signs by the clock of the attempts: a log's stamps are mostly local time, and were read as UTC.

    The whole quarter of an hour (as zones differ) that puts the most signs into attempts is taken; none
    where all fit as they are.
    """
    spans = [(a.started_at - 60, (a.ended_at or time.time()) + 60) for a in attempts if a.started_at]
    times = _times(signs)
    if not spans or not times:
        return signs
    sample = times[:: max(1, len(times) // 200)]

    def fitting(shift: float) -> int:
        return sum(any(a <= t + shift <= b for a, b in spans) for t in sample)

    shifts = sorted((quarter * 900.0 for quarter in range(-56, 57)), key=abs)
    best = max(shifts, key=fitting)
    return [replace(s, time=s.time + best) if s.time is not None else s for s in signs] if best else signs


def _text(found: Goodput) -> list[str]:
    lines = []
    if found.ettr is None:
        trained = found.seconds["kept"] + found.seconds["rolled back"]
        lost = f"; {found.seconds['rolled back'] / trained:.1%} of the training was lost" if trained else ""
        steps = f"{found.kept_steps} steps kept, {found.rolled_back_steps} lost and done again"
        lines.append(f"ETTR: not known; {steps}{lost}")
    else:
        kept, wall = found.seconds["kept"], found.wall_seconds or 0.0
        lines.append(
            f"ETTR {found.ettr:.3f}: {in_units(kept)} of training that was kept, in {in_units(wall)}"
        )
    counts = {"kept": found.kept_steps, "rolled back": found.rolled_back_steps}
    whole = found.wall_seconds or sum(found.seconds.values())
    rows = [
        [_WORDS[kind], in_units(found.seconds[kind]), f"{found.seconds[kind] / whole:.1%}",
         f"{counts[kind]} steps" if counts.get(kind) else ""]
        for kind in KINDS
        if found.seconds[kind] >= 0.0005 * whole and found.seconds[kind] > 0
    ]  # fmt: skip
    lines += ["", *table(["where the time went", "", "", ""], rows)] if rows else []
    lines += [
        "",
        *table(["attempt", "steps", "kept", "lost", "time", "ETTR", "silent", "ended"], _rows(found)),
    ]
    usual = [
        f"{what} {in_units(value)}"
        for what, value in (
            ("a step takes", found.step_seconds), ("a save", found.save_seconds),
            ("from save to save", found.interval_seconds), ("a restart", found.restart_seconds),
        )
        if value
    ]  # fmt: skip
    lines += ["", f"Usually: {', '.join(usual)}."] if usual else []
    return [*lines, *(f"Note: {note}" for note in found.notes)]


def _rows(found: Goodput) -> list[list[str]]:
    rows = []
    for one in found.attempts:
        silent = sum(one.seconds.get(kind, 0.0) for kind in ("silent", "stopped"))
        span = f"{one.first_step}-{one.last_step}" if one.last_step is not None else "none"
        ratio = f"{one.seconds.get('kept', 0.0) / one.wall_seconds:.3f}" if one.wall_seconds else ""
        rows.append([
            str(one.number), span, str(one.kept_steps), str(one.rolled_back_steps or ""),
            in_units(one.wall_seconds) if one.wall_seconds is not None else "",
            ratio, in_units(silent) if silent else "", plain(one.end, 60),
        ])  # fmt: skip
    return rows


def in_units(seconds: float) -> str:
    """A time as the papers print it: `45 s`, `38.4 min`, `3.09 h`, `2.5 d`."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    for size, unit in ((60.0, "min"), (3600.0, "h")):
        if seconds < size * 180:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:.3g} d"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table; the first column to the left, numbers to the right, empty columns left out."""
    kept = [i for i in range(len(head)) if i == 0 or any(row[i] for row in rows)]
    every = [[row[i] for i in kept] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in every) for i in range(len(kept))]
    lines = []
    for row in every:
        cells = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
