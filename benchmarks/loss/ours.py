"""Our own watch over a run, as `clustertools metrics scan` has it: the lines through reader and watch."""

from __future__ import annotations

from benchmarks.loss.runs import Run
from benchmarks.loss.score import Alarm
from clustertools.curves import News
from clustertools.curves.watch import CurveWatch
from clustertools.sources.training_log import LogReader

NAME = "ours"


def alarms(run: Run) -> list[Alarm]:
    """What is told of the run, one alarm an event, in the order in which it was told."""
    reader, watch = LogReader("csv"), CurveWatch()
    told: dict[int, Alarm] = {}
    lines = run.text.splitlines(keepends=True)
    for row, line in enumerate(lines, start=-1):
        for item in reader.feed(line):
            for news in watch.add(item):
                _take(run, news, row, told)
    last = len(run) - 1
    for item in reader.close():
        for news in watch.add(item):
            _take(run, news, last, told)
    for news in watch.finish():
        _take(run, news, last, told)
    return list(told.values())


def _take(run: Run, news: News, row: int, told: dict[int, Alarm]) -> None:
    event = news.event
    known = told.get(event.number)
    if known is None:
        at = run.row_of(event.alarm_step, row)
        known = told[event.number] = Alarm(at, run.row_of(event.step, at), event.kind)
    # a story is told again when it changes: its kind and sentence are the last, its rows the first
    known.kind, known.message, known.severity = event.kind, event.message, event.severity
