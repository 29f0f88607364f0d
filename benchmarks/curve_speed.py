"""The watch over curves: numbers a second, rows a second of whole files, and what 10,000 live runs take.

`python benchmarks/curve_speed.py --watches 1000 --rows 50000` for a shorter one. CPU time, not wall time, the
best of three rounds; where a file is read, the start of the command is in it. Beside each file stands how
long json.loads takes over the same rows as JSON Lines, since that does not depend on the machine.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from clustertools.curves import Options, Row, Story  # noqa: E402
from clustertools.curves.watch import DETECTORS, CurveWatch  # noqa: E402
from clustertools.sources.training_values import Point  # noqa: E402

ROUNDS = 3
TARGET_NUMBERS_A_SECOND, TARGET_WATCHES, TARGET_MB = 200_000, 10_000, 200
#: The four series of a run that most logs have.
FOUR = ("loss", "grad_norm", "learning_rate", "step_seconds")
EIGHT = (*FOUR, "param_norm", "loss_scale", "skipped_iterations", "nan_iterations")


def run_of(rows: int, names: tuple[str, ...], seed: int = 0) -> Iterator[tuple[int, dict[str, float]]]:
    """A run with warm-up, noise of the usual size, a slow save every 200 rows and a spike every 5,000."""
    rnd = random.Random(seed)
    for step in range(1, rows + 1):
        high = 1.0 if step % 5000 > 8 or step < 5000 else 2.0
        values = {
            "loss": high * (2.0 + 6 / (1 + step / 300) + rnd.gauss(0, 0.03)),
            "grad_norm": high**4 * 0.3 * rnd.lognormvariate(0, 0.15),
            "learning_rate": 3e-4 * min(1.0, step / 2000),
            "step_seconds": 5.0 * rnd.lognormvariate(0, 0.01) * (8 if step % 200 == 0 else 1),
            "param_norm": 100 + step / 1000,
            "loss_scale": 65536.0,
            "skipped_iterations": 0.0,
            "nan_iterations": 0.0,
        }
        yield step, {name: values[name] for name in names}


def best(work: Callable[[], object]) -> float:
    """CPU seconds of the quickest of some rounds."""
    taken = []
    for _ in range(ROUNDS):
        gc.collect()
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def numbers(rows: int) -> None:
    print("\n| what is fed | numbers/s | us a row |\n|---|---|---|")
    for names in (FOUR, EIGHT):
        made = list(run_of(rows, names))
        whole = [Row(step, values) for step, values in made]
        points = [Point(step, None, values) for step, values in made]

        def by_row(whole: list[Row] = whole) -> None:
            watch = CurveWatch()
            for row in whole:
                watch.add_row(row)

        def by_point(points: list[Point] = points) -> None:
            watch = CurveWatch()
            for point in points:
                watch.add(point)

        for label, work in (("rows", by_row), ("points", by_point)):
            seconds = best(work)
            rate = len(names) * rows / seconds
            print(f"| {label} of {len(names)} | {rate:,.0f} | {seconds / rows * 1e6:.2f} |")
    for name, make in DETECTORS.items():

        def alone(make: Callable[..., object] = make, whole: list[Row] = whole) -> None:
            detector, story = make(None, Options()), Story()
            for row in whole:
                detector.add(row, story, [])  # type: ignore[attr-defined]

        print(f"| rows of {len(EIGHT)}, only `{name}` | | {best(alone) / rows * 1e6:.2f} |")
    print(f"\ntarget: {TARGET_NUMBERS_A_SECOND:,} numbers a second on one core")


def as_csv(made: list[tuple[int, dict[str, float]]]) -> Iterator[str]:
    yield ",".join(("step", *FOUR))
    for step, values in made:
        yield ",".join((str(step), *(f"{values[name]:.6g}" for name in FOUR)))


def as_json_lines(made: list[tuple[int, dict[str, float]]]) -> Iterator[str]:
    for step, values in made:
        yield json.dumps({"step": step, **{name: round(values[name], 6) for name in FOUR}})


def as_megatron(made: list[tuple[int, dict[str, float]]]) -> Iterator[str]:
    for step, values in made:
        yield (
            f" iteration {step:8d}/ {len(made):8d} | consumed samples: {step * 2048:12d} | "
            f"elapsed time per iteration (ms): {1000 * values['step_seconds']:.1f} | "
            f"learning rate: {values['learning_rate']:.3E} | global batch size:  2048 | "
            f"lm loss: {values['loss']:.6E} | grad norm: {values['grad_norm']:.3f} | "
            "number of skipped iterations:   0 | number of nan iterations:   0 |"
        )


def files(rows: int, folder: Path) -> None:
    made = list(run_of(rows, FOUR))
    lines = list(as_json_lines(made))
    loads = best(lambda: [json.loads(line) for line in lines])
    print(f"\njson.loads of {rows:,} rows of four numbers: {rows / loads:,.0f} rows/s")
    print("\n| `metrics scan` of | rows/s | times json.loads | MB |\n|---|---|---|---|")
    for label, text in (
        ("CSV", as_csv(made)),
        ("JSON Lines", iter(lines)),
        ("Megatron-LM", as_megatron(made)),
    ):
        path = folder / label.split()[0].lower()
        path.write_text("\n".join(text) + "\n")
        argv = [sys.executable, "-m", "clustertools", "metrics", "scan", str(path), "--json"]
        taken = []
        for _ in range(ROUNDS):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(
                argv, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True,
                timeout=600, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if '"kind"' not in done.stdout:
            print(f"| {label} | failed: {done.stderr.strip()[-100:]} | | |")
            continue
        seconds = min(taken)
        size = path.stat().st_size / 1e6
        print(f"| {label} | {rows / seconds:,.0f} | {seconds / loads:.1f} | {size:.0f} |")


def memory(watches: int, rows: int) -> None:
    """Resident memory of this process, with all watches alive; the rows they saw are not kept."""

    def resident_mb() -> float:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1000

    gc.collect()
    before, live, saved = resident_mb(), [], []
    for number in range(watches):
        watch = CurveWatch()
        for step, values in run_of(rows, FOUR, seed=number):
            watch.add_row(Row(step, values))
        live.append(watch)
    gc.collect()
    used = resident_mb() - before
    saved = [len(json.dumps(watch.state())) for watch in live]
    print(
        f"\n{watches:,} live watches of {len(FOUR)} series after {rows:,} rows each: {used:.0f} MB, "
        f"{used * 1000 / watches:.1f} kB each (target {TARGET_MB} MB for {TARGET_WATCHES:,})\n"
        f"their saved states: {sum(saved) / 1e6:.0f} MB, median {statistics.median(saved) / 1000:.1f} kB, "
        f"largest {max(saved) / 1000:.1f} kB"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--watches", type=int, default=TARGET_WATCHES)
    parser.add_argument("--watch-rows", type=int, default=2000)
    options = parser.parse_args(arguments or [])
    # first, while nothing else has been in this process's memory
    memory(options.watches, options.watch_rows)
    numbers(options.rows)
    with tempfile.TemporaryDirectory(prefix="curve-speed-") as folder:
        files(options.rows, Path(folder))


if __name__ == "__main__":
    from run import machine

    print(f"machine: {machine()}; load average {os.getloadavg()[0]:.1f}", flush=True)
    main(sys.argv[1:])
