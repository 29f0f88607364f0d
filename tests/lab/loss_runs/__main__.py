"""python -m tests.lab.loss_runs make --set tune|score --into DIR [--only NAME ...] [--missing]"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from tests.lab.loss_runs import corpus
from tests.lab.loss_runs.recipes import RECIPES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.loss_runs")
    actions = parser.add_subparsers(dest="action", required=True)
    make = actions.add_parser("make", help="train runs and their twins, write CSVs and labels.yaml")
    make.add_argument("--set", choices=("tune", "score"), required=True)
    make.add_argument("--into", type=Path, required=True)
    make.add_argument("--only", nargs="*", default=[], metavar="NAME")
    make.add_argument("--missing", action="store_true", help="leave alone what is there")
    options = parser.parse_args()
    options.into.mkdir(parents=True, exist_ok=True)
    chosen = [
        one for one in RECIPES if one.set == options.set and (not options.only or one.name in options.only)
    ]
    unknown = set(options.only) - {one.name for one in chosen}
    if unknown:
        parser.error(f"no run of the set {options.set} is called {', '.join(sorted(unknown))}")
    for recipe in chosen:
        known = corpus.read_labels(options.into)
        if options.missing and recipe.name in known:
            continue
        began = time.monotonic()
        lines, found = corpus.make_run(recipe)
        corpus.write_csv(options.into / f"{recipe.name}.csv", recipe, lines)
        corpus.write_labels(options.into, {**known, recipe.name: corpus.entry(recipe, found)})
        kinds = ", ".join(
            f"{count} {kind}" for kind, count in Counter(e["kind"] for e in found.events).items()
        )
        print(
            f"{recipe.name}: {len(lines)} rows in {time.monotonic() - began:.0f} s; {kinds or 'no events'};"
            f" {len(found.isolated)} isolated; no mark left by: {', '.join(found.unmarked) or 'none'}",
            flush=True,
        )
    total(options.into)
    return 0


def total(folder: Path) -> None:
    runs = corpus.read_labels(folder)
    kinds = Counter(event["kind"] for run in runs.values() for event in run["events"])
    unmarked = Counter(cause for run in runs.values() for cause in run["left_no_mark"])
    print(f"{len(runs)} runs; events: {dict(kinds)}")
    print(f"{sum(unmarked.values())} faults left no mark: {dict(unmarked)}")


if __name__ == "__main__":
    sys.exit(main())
