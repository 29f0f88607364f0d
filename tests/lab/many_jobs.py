"""A cluster's worth of healthy runs: real logs that grow and real checkpoints, in one folder.

site = ManyJobs(folder, 1000); site.grow(lines=3)
"""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

from tests.checkpoint_builders import hf_checkpoint

STEP_SECONDS = 5.0
_MEGATRON = (
    " [{stamp}] iteration {step:8d}/  500000 | consumed samples: {samples:12d} | elapsed time per iteration "
    "(ms): {ms:.1f} | throughput per GPU (TFLOP/s/GPU): {tflops:.1f} | learning rate: 1.200000E-05 | global "
    "batch size:  1024 | lm loss: {loss:.6E} | loss scale: 1.0 | grad norm: {norm:.3f} | number of skipped "
    "iterations:   0 | number of nan iterations:   0 |\n"
)
_TITAN = (
    "[titan] {stamp},678 - root - INFO - step: {step}  loss: {loss:8.5f}  grad_norm: {norm:7.4f}  memory: "
    "45.67GiB(57.60%)  tps: 7,123  tflops: {tflops:.2f}  mfu: 41.71%\n"
)
_NANO = "iter {step}: loss {loss:.4f}, time {ms:.2f}ms, mfu 35.20%\n"
_JSON = '{{"step": {step}, "loss": {loss:.5f}, "grad_norm": {norm:.4f}, "timestamp": {time:.1f}}}\n'
#: What the jobs of a cluster write, as often as it is met.
FORMATS = (_MEGATRON, _MEGATRON, _TITAN, _NANO, _JSON)


class ManyJobs:
    """`count` runs under `folder`; each has written `lines` lines and two checkpoints, up to `now`."""

    def __init__(self, folder: Path, count: int, *, lines: int = 40, seed: int = 1) -> None:
        self.folder, self.count = folder, count
        self.steps = [1000 + 7 * n for n in range(count)]
        self._random = random.Random(seed)
        self.now = time.time()
        model = folder / "model"
        for step in (500, 1000):
            hf_checkpoint(model, step, age=600)
        for number in range(count):
            run = self.folder_of(number)
            run.mkdir(parents=True)
            # the same files under many names: what is looked at is the same, what is written is little
            shutil.copytree(model, run / "checkpoints", copy_function=os.link)
        shutil.rmtree(model)
        self.grow(lines, self.now - lines * STEP_SECONDS)

    def name(self, number: int) -> str:
        return f"pretrain-{number:04d}"

    def folder_of(self, number: int) -> Path:
        return self.folder / self.name(number)

    def log(self, number: int) -> Path:
        return self.folder_of(number) / "slurm.out"

    def checkpoints(self, number: int) -> Path:
        return self.folder_of(number) / "checkpoints"

    def grow(self, lines: int = 3, now: float = 0.0) -> None:
        """Every run writes so many more lines."""
        at = now or time.time()
        for number in range(self.count):
            shape = FORMATS[number % len(FORMATS)]
            with open(self.log(number), "a", encoding="utf-8") as log:
                log.write("".join(self._line(shape, number, at + i * STEP_SECONDS) for i in range(lines)))

    def _line(self, shape: str, number: int, at: float) -> str:
        self.steps[number] += 1
        step, draw = self.steps[number], self._random.random
        return shape.format(
            stamp=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at)), step=step, samples=1024 * step,
            ms=1000 * STEP_SECONDS * (0.98 + 0.04 * draw()), tflops=400 + 10 * draw(),
            loss=2.5 + 0.05 * draw(), norm=0.2 + 0.05 * draw(), time=at,
        )  # fmt: skip
