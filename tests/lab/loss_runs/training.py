"""The training loop of a recipe: forward, backward, loss scale, clipping, Adam, schedule, and what is logged.

All that a run is can be put aside and taken up again (`kept`, `take_up`): a twin is the same run, from the
same state, without the fault.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from tests.lab.loss_runs.tasks import TASKS, Batch, draws

Line = dict[str, float]


@dataclass(frozen=True)
class Fault:
    """`cause` (a name in faults.CAUSES) at row `at`, for `rows` rows; 0: it happens once, or stays.

    `watch`: so many rows after it belong to it, when the next fault is further away.
    """

    cause: str
    at: int
    rows: int = 0
    strength: float = 1.0
    watch: int = 400


@dataclass(frozen=True)
class Recipe:
    """One run. `every`: steps a row, also as ((from row, steps), ...). `logged`: the loss is the mean of the
    row's steps, the last one, or that of one micro-batch of the last (`micro` samples)."""

    name: str
    set: str
    about: str
    task: str
    seed: int
    rows: int
    lr: float
    faults: tuple[Fault, ...] = ()
    shape: Mapping[str, Any] = field(default_factory=dict)
    every: int | tuple[tuple[int, int], ...] = 1
    schedule: str = "constant"
    warm_up: int = 20
    clip: float | None = 1.0
    beta2: float = 0.99
    decay: float = 0.0
    fp16: bool = False
    scale: float = 65536.0
    growth: int = 300
    logged: str = "mean"
    micro: int = 2
    columns: tuple[str, ...] = ("loss", "grad_norm")
    rounding: Mapping[str, str] = field(default_factory=dict)
    eval_every: int = 0
    pause_every: int = 0
    clock: str = ""
    wait_ms: float = 0.0
    mix: tuple[tuple[int, float], ...] = ()

    def steps_at(self, row: int) -> int:
        """The number of steps done when `row` rows are whole."""
        if isinstance(self.every, int):
            return row * self.every
        done, kinds = 0, [*self.every, (1 << 60, 1)]
        for (start, steps), (end, _) in pairwise(kinds):
            done += max(0, min(row, end) - start) * steps
        return done

    def is_row(self, step: int) -> bool:
        if isinstance(self.every, int):
            return step % self.every == 0
        for start, steps in reversed(self.every):
            done = self.steps_at(start)
            if step > done:
                return (step - done) % steps == 0
        return False


def rate(recipe: Recipe, step: int) -> float:
    """The learning rate of a step, as a share of the recipe's."""
    if step <= recipe.warm_up:
        return step / recipe.warm_up
    last = recipe.steps_at(recipe.rows)
    done = min(1.0, (step - recipe.warm_up) / max(1, last - recipe.warm_up))
    if recipe.schedule == "cosine":
        return 0.1 + 0.45 * (1 + math.cos(math.pi * done))
    if recipe.schedule == "linear":
        return 1 - 0.95 * done
    if recipe.schedule == "wsd":
        return 1.0 if done < 0.75 else 1 - 0.95 * (done - 0.75) / 0.25
    if recipe.schedule == "cycles":
        return 0.05 + 0.475 * (1 + math.cos(math.pi * ((4 * done) % 1.0)))
    return 1.0


class Run:
    """A recipe in training. `flags`: the faults that are at work now, by cause."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.task = TASKS[recipe.task](recipe.seed, **recipe.shape)
        parameters = list(self.task.module.parameters())
        self.weights = torch.cat([part.detach().reshape(-1) for part in parameters])
        self.grads = torch.zeros_like(self.weights)
        at = 0
        for part in parameters:
            part.data = self.weights[at : at + part.numel()].view(part.shape)
            part.grad = self.grads[at : at + part.numel()].view(part.shape)
            at += part.numel()
        self.first_weights = self.weights.clone()
        self.early_weights = self.weights.clone()
        self.mean, self.square = torch.zeros_like(self.weights), torch.zeros_like(self.weights)
        self.counts: dict[str, Any] = {
            "step": 0, "cursor": 0, "updates": 0, "good": 0, "order": 0, "scale": recipe.scale,
        }  # fmt: skip
        self.flags: dict[str, Any] = {}
        self.gathered: list[Line] = []
        self.pauses = 0.0

    def kept(self) -> dict[str, Any]:
        tensors = {
            name: getattr(self, name).clone() for name in ("weights", "mean", "square", "early_weights")
        }
        return {
            "tensors": tensors, "counts": dict(self.counts), "flags": dict(self.flags),
            "gathered": [*self.gathered],
        }  # fmt: skip

    def take_up(self, kept: Mapping[str, Any]) -> None:
        for name, tensor in kept["tensors"].items():
            getattr(self, name).copy_(tensor)
        self.counts, self.flags = dict(kept["counts"]), dict(kept["flags"])
        self.gathered = [*kept["gathered"]]

    def train(self, rows: int) -> list[Line]:
        """The next `rows` rows."""
        lines: list[Line] = []
        while len(lines) < rows:
            self.gathered.append(self._step())
            if self.recipe.is_row(self.counts["step"]):
                lines.append(self._line())
                self.gathered = []
        return lines

    def _batch(self) -> Batch:
        counts, flags = self.counts, self.flags
        index = counts["cursor"]
        if "repeat" in flags:
            start, wide = flags["repeat"]
            index = start + (index - start) % wide
        index += counts["order"] * 10_000_000
        batch = self.task.batch(index)
        share = 0.0
        for row, mixed in self.recipe.mix:
            if counts["step"] > self.recipe.steps_at(row):
                share = mixed
        share = max(share, flags.get("shard", 0.0))
        if share:
            other, which = self.task.batch(index, 1), draws(index, 5).random(len(batch[0])) < share
            picked = torch.from_numpy(which)
            batch = tuple(
                torch.where(picked.view(-1, *[1] * (one.dim() - 1)), two, one)
                for one, two in zip(batch, other, strict=True)
            )
        return batch

    def _spoiled(self, batch: Batch) -> Batch:
        """Garbage in the inputs (random tokens; numbers far too large) and labels that are not theirs."""
        flags = self.flags
        read, *others = batch
        source = draws(self.counts["cursor"], 77)
        if "garbage" in flags:
            if read.dtype == torch.int64:
                hit = torch.from_numpy(source.random(tuple(read.shape)) < flags["garbage"])
                most = int(read.max()) + 1
                read = torch.where(hit, torch.from_numpy(source.integers(most, size=tuple(read.shape))), read)
            else:
                read = read * flags["garbage"]
        if "labels" in flags and others:
            order = torch.from_numpy(source.permutation(len(read)))
            hit = torch.from_numpy(source.random(len(read)) < flags["labels"])
            label = others[0]
            others[0] = torch.where(hit.view(-1, *[1] * (label.dim() - 1)), label[order], label)
        return (read, *others)

    def _step(self) -> Line:
        recipe, counts, flags = self.recipe, self.counts, self.flags
        began = self._clock()
        counts["step"] += 1
        batch = self._spoiled(self._batch())
        counts["cursor"] += 1
        if "repeat_batch" in flags:
            counts["cursor"] -= 1
        losses = self.task.losses(batch, counts["step"])
        if "log_of_zero" in flags:
            losses = losses + torch.log(losses[:1].detach() * 0) * flags["log_of_zero"]
        loss = losses.mean()
        self.grads.zero_()
        loss.backward()  # type: ignore[no-untyped-call]
        rate_now = recipe.lr * rate(recipe, counts["step"]) * flags.get("rate", 1.0)
        norm, skipped = self._update(rate_now)
        if "wear" in flags:
            flags["rate"] = flags.get("rate", 1.0) * flags["wear"]
        if "louder" in flags:
            flags["gradient"] = flags.get("gradient", 1.0) * flags["louder"]
        line: Line = {
            "loss": loss.item(),
            "grad_norm": norm,
            "learning_rate": rate_now,
            "loss_scale": counts["scale"],
        }
        if recipe.logged == "micro":
            line["loss"] = losses[: recipe.micro].mean().item()
        if recipe.fp16:
            line["skipped_iterations"] = float(skipped)
        if recipe.eval_every and counts["step"] % recipe.eval_every == 0:
            line["eval_loss"] = self._evaluation()
        self._wait()
        line["step_seconds"] = self._clock() - began
        return line

    def _update(self, rate_now: float) -> tuple[float, bool]:
        """Adam on clipped gradients. The norm is that before clipping."""
        recipe, counts, flags, grads = self.recipe, self.counts, self.flags, self.grads
        if "gradient" in flags:
            grads *= flags["gradient"]
        if "frozen" in flags:
            grads[int(len(grads) * (1 - flags["frozen"])) :] = 0
        if "gradient_noise" in flags:
            noise = torch.from_numpy(draws(counts["step"], 3).normal(size=len(grads))).float()
            grads += noise * (flags["gradient_noise"] * grads.norm() / noise.norm())
        if recipe.fp16:
            half = (grads * counts["scale"]).half()
            if not bool(torch.isfinite(half).all()):
                counts["scale"], counts["good"] = max(counts["scale"] / 2, 1.0), 0
                return math.inf, True
            grads.copy_(half.float() / counts["scale"])
            counts["good"] += 1
            if counts["good"] % recipe.growth == 0:
                counts["scale"] *= 2
        norm = float(grads.norm())
        if recipe.clip is not None and "unclipped" not in flags and norm > recipe.clip:
            grads *= recipe.clip / norm
        counts["updates"] += 1
        beta2 = flags.get("beta2", recipe.beta2)
        self.mean.lerp_(grads, 0.1)
        self.square.mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
        right1, right2 = 1 - 0.9 ** counts["updates"], 1 - recipe.beta2 ** counts["updates"]
        under = (self.square / right2).sqrt_().add_(1e-8)
        decay = flags.get("decay", recipe.decay)
        if decay:
            self.weights.mul_(1 - rate_now * decay)
        self.weights.addcdiv_(self.mean, under, value=-rate_now / right1)
        return norm, False

    def _clock(self) -> float:
        """What this thread computed, or the wall clock: the machine may be shared."""
        if not self.recipe.clock:
            return 0.0
        return time.thread_time() if self.recipe.clock == "cpu" else time.perf_counter()

    def _wait(self) -> None:
        """What the step waits for its slowest rank, and pauses for checkpoints. Really waited or computed."""
        recipe, step = self.recipe, self.counts["step"]
        if not recipe.wait_ms:
            return
        ranks = recipe.wait_ms * (1 + 0.02 * draws(step, 9).gamma(2.0, size=8))
        ranks[3] *= self.flags.get("slow", 1.0)
        wait = float(ranks.max()) / 1000
        if recipe.pause_every and step % recipe.pause_every == 0:
            wait *= 4
        if recipe.clock == "wall":
            time.sleep(wait)
            return
        end = time.thread_time() + wait
        while time.thread_time() < end:
            self.first_weights.sum()

    def _evaluation(self) -> float:
        with torch.no_grad():
            every = [
                self.task.losses(self.task.batch(90_000_000 + at), 10**9).mean().item() for at in range(8)
            ]
        return sum(every) / len(every)

    def _line(self) -> Line:
        """The row of the steps gathered: loss and time are means, the rest is the last step's."""
        last, count = dict(self.gathered[-1]), len(self.gathered)
        if self.recipe.logged == "mean":
            last["loss"] = sum(one["loss"] for one in self.gathered) / count
        last["step_seconds"] = sum(one["step_seconds"] for one in self.gathered) / count
        if self.recipe.fp16:
            last["skipped_iterations"] = sum(one["skipped_iterations"] for one in self.gathered)
        last["param_norm"] = float(self.weights.norm())
        last["step"] = self.counts["step"]
        if "no_loss" in self.flags:
            del last["loss"]
        wanted = ("step", *self.recipe.columns)
        return {name: value for name, value in last.items() if name in wanted}
