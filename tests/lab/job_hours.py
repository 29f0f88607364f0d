"""Logs of runs as they are: noise, day and night, evaluations, saves, slow storage, buffers, restarts.

SimulatedRun(seed=3).live(hours=40) drives the real checks over a log in memory, by a clock that only counts.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from clustertools import check as checking
from clustertools.errors import Absent, Unobservable
from clustertools.host import Completed, FileStat
from clustertools.model import Attempt, Job
from tests.lab.job_nodes import IDLES, SPINS, Nodes

LOG = "/scratch/run.log"
CHECKS = ("job_progress", "job_loss", "job_resume", "job_slow")
START = 1_786_000_000.0


class LogHost:
    """One file that grows, and a clock. While `away` is set nothing can be read."""

    name, boot_id = "head", "boot"

    def __init__(self) -> None:
        self.time, self.data, self.inode, self.away = START, bytearray(), 1, ""
        self.mtime = START

    def now(self) -> float:
        return self.time

    def run(self, *argv: str, timeout_seconds: float = 10.0, stdin: str = "") -> Completed:
        raise Absent(f"{argv[0]} is not there")

    def glob(self, pattern: str) -> list[str]:
        return []

    def stat(self, path: str) -> FileStat:
        self._there(path)
        return FileStat(len(self.data), self.mtime, self.inode)

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        self._there(path)
        end = len(self.data) if limit is None else offset + limit
        return self.data[offset:end].decode()

    def _there(self, path: str) -> None:
        if path != LOG:
            raise Absent(f"{path}: no such file")
        if self.away:
            raise Unobservable(self.away)

    def append(self, text: str) -> None:
        self.data += text.encode()
        self.mtime = self.time


@dataclass
class Shape:
    """How one run is: drawn once by its seed."""

    family: str
    step_seconds: float
    every: int
    noise: float
    swing: float
    evaluate_every: int
    evaluate_seconds: float
    save_every: int
    save_seconds: float
    says_when: bool
    buffer_seconds: float
    half_precision: bool
    restarts_per_hour: float
    start_seconds: float
    loss_noise: float

    @classmethod
    def drawn(cls, dice: random.Random) -> Shape:
        step = math.exp(dice.uniform(math.log(0.4), math.log(60)))
        every = max(1, round(math.exp(dice.uniform(math.log(15), math.log(500))) / step))
        line = every * step
        return cls(
            dice.choice(("megatron", "nanogpt", "hf", "jsonl", "titan")), step, every,
            dice.choice((0.001, 0.003, 0.01, 0.03)), dice.uniform(0.0, 0.02),
            dice.choice((0, 0, 20, 50, 200)), math.exp(dice.uniform(math.log(20), math.log(2400))),
            max(2, round(dice.uniform(900, 7200) / line)), math.exp(dice.uniform(math.log(3), math.log(240))),
            dice.random() < 0.6, dice.choice((0, 0, 0, 0, 600, 1200)), dice.random() < 0.3,
            dice.choice((0.0, 0.02, 0.1)), math.exp(dice.uniform(math.log(30), math.log(1500))),
            dice.choice((0.005, 0.02, 0.1)),
        )  # fmt: skip


@dataclass
class Told:
    """What the checks said: codes that came and went, by code, and in which hours."""

    alarms: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    hours: float = 0.0
    looks: int = 0
    passes: int = 0
    stories: list[str] = field(default_factory=list)

    def add(self, other: Told) -> None:
        for name in ("alarms", "found", "missed"):
            getattr(self, name).update(getattr(other, name))
        self.hours += other.hours
        self.looks += other.looks
        self.passes += other.passes
        self.stories += other.stories


class SimulatedRun:
    """One run of one name, over its restarts, and the watchdog's passes over it."""

    def __init__(self, seed: int, interval: float = 120.0) -> None:
        self.seed, self.interval = seed, interval
        self.dice = random.Random(seed)
        self.shape = Shape.drawn(self.dice)
        self.host = LogHost()
        self.nodes = Nodes(tuple(f"n{i}" for i in range(4)), ranks=2)
        self.checks = [checking.discover(site_folders=())[name] for name in CHECKS]
        self.memory: dict[str, Any] = {name: {} for name in CHECKS}
        self.job = Job(
            "4711", f"sim{seed}", "running", 1, self.nodes.names, started_at=START, log_paths=(LOG,),
            attempts=(Attempt(f"sim{seed}", 1, "t1", "4711"),),
        )  # fmt: skip
        self.told = Told()
        self.open: set[str] = set()
        self.step, self.saved = 0, 0
        self.slower = 1.0
        self.line = 0
        self.broken = ""
        self.last_look = START
        self._lines: list[tuple[float, int, str]] = []
        self._order = itertools.count()
        self._at = START

    # the run

    def _write(self, at: float, text: str) -> None:
        buffered = self.shape.buffer_seconds
        seen = at if not buffered else START + math.ceil((at - START) / buffered) * buffered
        heapq.heappush(self._lines, (seen, next(self._order), text + "\n"))

    def begin(self, at: float) -> None:
        """Load, compile, and train on from the last save."""
        self.step = self.saved
        self._at = at + self.shape.start_seconds * self.dice.uniform(0.8, 1.3)
        self._write(at + 5, "loading the model")

    def make(self, until: float) -> None:
        """Lines up to a moment."""
        shape, dice = self.shape, self.dice
        while self._at < until and not self.broken:
            self.line += 1
            day = 1 + shape.swing / 2 * math.sin(2 * math.pi * (self._at - START) / 86400)
            seconds = shape.step_seconds * day * self.slower
            seconds *= 1 + dice.gauss(0, shape.noise / math.sqrt(shape.every))
            self._at += seconds * shape.every
            self.step += shape.every
            self._write(self._at, self.text(seconds))
            if shape.evaluate_every and self.line % shape.evaluate_every == 0:
                if shape.says_when:
                    self._write(self._at, "***** Running Evaluation *****")
                self._at += shape.evaluate_seconds * dice.uniform(0.9, 1.5)
                self._write(self._at, f"step {self.step}: train loss 2.9, val loss 2.9")
            if self.line % shape.save_every == 0:
                slow = dice.choice((1, 1, 1, 1, 3)) * dice.uniform(0.9, 1.3)
                if shape.says_when:
                    self._write(self._at, f"saving checkpoint at iteration {self.step} to /ckpt")
                self._at += shape.save_seconds * slow
                self._write(self._at, f"successfully saved checkpoint from iteration {self.step} to /ckpt")
                self.saved = self.step

    def loss(self, step: int) -> float:
        hours = step * self.shape.step_seconds / 3600
        return 2.0 + 8.0 / (1 + 3 * hours) + self.dice.gauss(0, self.shape.loss_noise)

    def rate(self, step: int) -> float:
        warm = 600 / self.shape.step_seconds
        return 3e-4 * min(1.0, step / warm) / (1 + step * self.shape.step_seconds / 1e6)

    def text(self, seconds: float, loss: float | None = None, rate: float | None = None) -> str:
        step, total = self.step, 10_000_000
        loss = self.loss(step) if loss is None else loss
        rate = self.rate(step) if rate is None else rate
        family = self.shape.family
        if family == "megatron":
            # Megatron-LM doubles its loss scale every 1000 steps, and mostly skips one then
            skipped = self.shape.half_precision and math.isfinite(loss) and self.dice.random() < 0.002
            told = "" if skipped and self.shape.every == 1 else f" lm loss: {loss:.6E} |"
            return (
                f" iteration {step:8}/{total:8} | consumed samples: {step * 512} | "
                f"elapsed time per iteration (ms): {1000 * seconds:.1f} | learning rate: {rate:.6E} | "
                f"global batch size: 512 |{told} loss scale: 65536.0 | grad norm: 0.5 | "
                f"number of skipped iterations: {int(skipped)} | number of nan iterations: {int(skipped)} |"
            )
        if family == "nanogpt":
            return f"iter {step}: loss {loss:.4f}, time {1000 * seconds:.2f}ms, mfu 35.20%"
        if family == "hf":
            bar = f" 12%|█▏  | {step}/{total} [02:10<15:55, {seconds:.2f}s/it]\r"
            return (
                f"{bar}{{'loss': {loss:.4f}, 'grad_norm': 1.25, 'learning_rate': {rate:.2e}, 'epoch': 0.1}}"
            )
        if family == "jsonl":
            told = "NaN" if math.isnan(loss) else f"{loss:.5f}"  # as json.dumps writes it
            return f'{{"step": {step}, "loss": {told}, "lr": {rate:.4e}, "time": {self._at:.1f}}}'
        return f"step: {step}  loss:  {loss:.5f}  grad_norm:  1.2  tps: {7000 / seconds:,.1f}  mfu: N/A"

    # the watchdog

    def passes(self, until: float) -> Iterator[set[str]]:
        """Look once an interval; the codes that are told in each pass."""
        while self.host.time < until:
            self.host.time += self.interval
            self.make(self.host.time)
            fresh = []
            while self._lines and self._lines[0][0] <= self.host.time:
                fresh.append(heapq.heappop(self._lines)[2])
            if fresh:
                self.host.append("".join(fresh))
            codes: set[str] = set()
            for check in self.checks:
                codes |= self._run(check)
            self.told.passes += 1
            yield codes

    def _run(self, check: checking.Check) -> set[str]:
        past = self.memory[check.name]
        verdict = checking.run(check, self.host, past=past, job=self.job)
        if verdict.wants_look:
            self.told.looks += 1
            looked = self.nodes.look(self.host.time - self.last_look)
            self.last_look = self.host.time
            verdict = checking.run(check, self.host, past=past, job=self.job, looked=looked)
        assert "the check itself failed" not in verdict.blind, verdict.detail
        self.memory[check.name] = verdict.memory
        return set(verdict.codes)

    def live(self, hours: float) -> Told:
        """A healthy life: whatever is told of it is a false alarm."""
        dice, begun = self.dice, self.host.time
        self.begin(self.host.time)
        while self.host.time < begun + hours * 3600:
            for codes in self.passes(self.host.time + 3600):
                for code in codes - self.open:
                    self.told.alarms[code] += 1
                    after = (self.host.time - begun) / 3600
                    self.told.stories.append(f"seed {self.seed}: {code} after {after:.1f} h, {self.shape}")
                self.open = codes
            if dice.random() < self.shape.restarts_per_hour:
                self.again(truncate=dice.random() < 0.5)
            if dice.random() < 0.05:
                self._hiccup()
        self.told.hours += hours
        return self.told

    def again(self, *, truncate: bool = False) -> None:
        """Requeued: it resumes from the last save, after some minutes."""
        self._lines.clear()
        self.host.time += self.dice.uniform(60, 900)
        number = self.job.attempt + 1
        attempt = Attempt(self.job.run, number, f"t{number}", self.job.id, resume_step=self.saved)
        self.job = dataclasses.replace(
            self.job, attempt=number, attempts=(*self.job.attempts[-3:], attempt), started_at=self.host.time
        )
        if truncate:
            self.host.data, self.host.inode = bytearray(), number
        self.begin(self.host.time)

    def _hiccup(self) -> None:
        """The file server is away, the watchdog is, a clock is set, or the job is suspended."""
        kind = self.dice.choice(("server", "watchdog", "clock", "suspended"))
        seconds = self.dice.uniform(120, 1800)
        if kind == "server":
            self.host.away = "Stale file handle"
            for _ in self.passes(self.host.time + seconds):
                pass
            self.host.away = ""
        elif kind == "watchdog":
            self.host.time += seconds + 600
        elif kind == "suspended":
            self._at += seconds
            self.job = dataclasses.replace(self.job, reason="Suspended")
            for _ in self.passes(self.host.time + seconds):
                pass
            self.job = dataclasses.replace(self.job, reason="")

    # what is truly wrong

    def fault(self, kind: str) -> Told:
        """Let one thing go wrong and wait for its code."""
        code, hours = FAULTS[kind](self)
        for codes in self.passes(self.host.time + hours * 3600):
            # before its first step a run that stands still is idle
            if code in codes or (code == "JobHung" and "JobIdle" in codes):
                self.told.found[code] += 1
                return self.told
        self.told.missed[code] += 1
        self.told.stories.append(f"seed {self.seed}: {code} was not found within {hours:.1f} h, {self.shape}")
        return self.told

    def usual_hours(self) -> float:
        """How long the run may well be silent by itself."""
        shape = self.shape
        longest = max(
            shape.step_seconds * shape.every, shape.save_seconds * 4, shape.buffer_seconds,
            shape.evaluate_seconds * 1.5 if shape.evaluate_every else 0, shape.start_seconds, 300,
        )  # fmt: skip
        return longest / 3600


def _hang(run: SimulatedRun) -> tuple[str, float]:
    run.broken = "hang"
    run.nodes.moves, run.nodes.gpu, run.nodes.bytes_per_second = False, SPINS, 0.0
    return "JobHung", 10 * run.usual_hours() + 1


def _deadlock(run: SimulatedRun) -> tuple[str, float]:
    run.broken = "deadlock"
    run.nodes.moves, run.nodes.gpu, run.nodes.busy, run.nodes.bytes_per_second = False, IDLES, 0.0, 0.0
    return "JobHung", 10 * run.usual_hours() + 1


def _slow(run: SimulatedRun) -> tuple[str, float]:
    run.slower = 1.15 + 10 * run.shape.noise
    line = run.shape.step_seconds * run.shape.every
    return "JobSlow", (40 * max(line, 60) + 4 * run.shape.evaluate_seconds) / 3600 + 2


def _nan(run: SimulatedRun) -> tuple[str, float]:
    run.loss = lambda step: math.nan  # type: ignore[method-assign]
    return "LossNotFinite", 3 * run.usual_hours() + 1


def _from_nothing(run: SimulatedRun) -> tuple[str, float]:
    if run.saved < 20 * run.shape.every:
        return _nan(run)  # it has saved too little for anybody to tell
    run.again(truncate=True)
    run.step = 0
    return "JobResumeWrong", 3 * run.usual_hours() + 1


def _weights_lost(run: SimulatedRun) -> tuple[str, float]:
    run.again()
    usual = run.loss
    run.loss = lambda step: usual(step) * 1.5 + 10 * run.shape.loss_noise  # type: ignore[method-assign]
    return "JobResumeWrong", 6 * run.usual_hours() + 1


FAULTS: dict[str, Callable[[SimulatedRun], tuple[str, float]]] = {
    "hang": _hang, "deadlock": _deadlock, "slow": _slow, "nan": _nan, "from nothing": _from_nothing,
    "weights lost": _weights_lost,
}  # fmt: skip
