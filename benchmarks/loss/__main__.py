"""python -m benchmarks.loss: see benchmarks.loss."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.loss import __doc__ as about
from benchmarks.loss import ours, report
from benchmarks.loss.peers import PEERS, Peer
from benchmarks.loss.runs import LabelError, Run, load
from benchmarks.loss.score import FAMILIES, Alarm, Score, add

REPOSITORY = Path(__file__).resolve().parents[2]
CORPUS = REPOSITORY / "tests" / "runs" / "loss"
PAGE = REPOSITORY / "docs" / "loss-scores.md"


def detectors(wanted: Sequence[str]) -> list[tuple[str, tuple[str, ...], Callable[[Run], list[Alarm]]]]:
    """Name, families, and what gives the alarms of a run. All of them when none is wanted by name."""
    known: list[tuple[str, tuple[str, ...], Callable[[Run], list[Alarm]]]] = [
        (ours.NAME, tuple(FAMILIES), ours.alarms)
    ]
    known += [(peer.name, (peer.family,), partial(_rows, peer)) for peer in PEERS.values()]
    unknown = set(wanted) - {name for name, _, _ in known}
    if unknown:
        raise LabelError(
            f"no detector {', '.join(sorted(unknown))}; choose from {', '.join(n for n, _, _ in known)}"
        )
    return [entry for entry in known if not wanted or entry[0] in wanted]


def _rows(peer: Peer, run: Run) -> list[Alarm]:
    return [Alarm(row, row) for row in peer.fires(run)]


def score_all(runs: Sequence[Run], wanted: Sequence[str] = ()) -> list[Score]:
    """The scores of the detectors over the runs, ours first."""
    scores: list[Score] = []
    for name, families, alarms_of in detectors(wanted):
        mine = [Score(name, family) for family in families]
        for run in runs:
            alarms = alarms_of(run)
            for score in mine:
                add(score, run, alarms)
        scores += mine
    return scores


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loss",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", nargs="?", type=Path, default=CORPUS, help="labelled runs")
    parser.add_argument("--set", default="score", help="tune, score, or all (default: score)")
    parser.add_argument("--detector", action="append", default=[], help="only this one; may be repeated")
    parser.add_argument("--run", action="append", default=[], help="only this run; may be repeated")
    parser.add_argument("--json", action="store_true", help="one JSON object a detector and family")
    parser.add_argument("--failures", action="store_true", help="each miss and false alarm with its rows")
    parser.add_argument("--family", choices=sorted(FAMILIES), default="all", help="of --failures")
    parser.add_argument("--write", action="store_true", help="write docs/loss-scores.md")
    options = parser.parse_args(arguments)
    if options.write and (options.run or options.detector or options.folder.resolve() != CORPUS):
        parser.error("--write makes the page of the whole kept corpus with all detectors")
    began = time.monotonic()
    try:
        runs, absent = load(options.folder, None if options.set == "all" else options.set)
        runs = [run for run in runs if not options.run or run.name in options.run]
        scores = score_all(runs, options.detector)
    except LabelError as error:
        print(f"benchmarks.loss: {error}", file=sys.stderr)
        return 2
    if absent:
        print(f"not made yet, so not counted: {', '.join(absent)}", file=sys.stderr)
    if not runs:
        print(f"benchmarks.loss: no runs of the set {options.set} in {options.folder}", file=sys.stderr)
        return 2
    if options.json:
        for score in scores:
            print(json.dumps(score.json()))
    elif options.failures:
        for score in scores:
            if score.family == options.family:
                print(f"== {score.detector}, {score.family}")
                print("\n".join(report.failures(score)))
    else:
        print("\n".join(report.by_family(scores)))
    print(f"{len(runs)} runs, {time.monotonic() - began:.1f} s", file=sys.stderr)
    if options.write:
        PAGE.write_text(page(runs, scores, options.set), encoding="utf-8")
    return 0


def page(runs: Sequence[Run], scores: Sequence[Score], part: str) -> str:
    """docs/loss-scores.md."""
    rows = sum(len(run) for run in runs)
    wanted = report.wanted({(score.detector, score.family): score for score in scores})
    lines = [
        "# How well events of training curves are found",
        "",
        "Made by `python -m benchmarks.loss --write`. `python -m benchmarks.loss --help` says what is meant.",
        f"Corpus: tests/runs/loss, its set `{part}`: {len(runs)} runs, {rows:,} rows.",
        f"Machine: {report.machine()}.",
        "The rules of public tools run with their defaults; where each comes from: benchmarks/loss/peers.py.",
        "",
        *report.by_family(scores),
        "### What has to be reached",
        "",
        *(f"- {'reached' if good else 'NOT reached'}: {text}" for text, good in wanted),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
