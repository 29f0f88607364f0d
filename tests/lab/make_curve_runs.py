"""The recorded runs whose curves do something: `python -m tests.lab.make_curve_runs` writes them anew.

What is literal and what is made up stands in each run.yaml. The noise has a seed, so the same files come out.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

RUNS = Path(__file__).parents[1] / "runs"
START = "1786017600.0"

#: BLOOM-176B, first spike, iterations 31214 to 31222, and 31250 (bigscience, tr11-176B-ml/chronicles.md).
BLOOM_LOSS = (2.198845, 2.220424, 2.595213, 2.241558, 2.345279, 5.098124, 3.492029, 3.213059, 2.804948)
BLOOM_NORM = (0.242, 0.947, 2.390, 15.886, 145.119, 960.351, 353.2, 379.3, 650.2)
BLOOM_LAST = (31250, 2.215699, 0.267)


def megatron(step: int, loss: float, norm: float, scale: float = 1.0) -> str:
    """A line of Megatron-DeepSpeed, as BLOOM's main log has it."""
    return (
        f" iteration {step:8}/  115311 | consumed samples: {step * 2048:12} |"
        f" elapsed time per iteration (s): 105.20 | learning rate: 5.9E-05 | global batch size:  2048 |"
        f" lm loss: {loss:.6E} | grad norm: {norm:.3f} |"
        f" loss scale: {scale:.1f} | number of skipped iterations:   0 | number of nan iterations:   0 |"
    )  # fmt: skip


def jsonl(step: int, loss: float, norm: float, scale: float = 0.0) -> str:
    values = {"step": step, "loss": round(loss, 4), "grad_norm": round(norm, 4), "lr": 0.0003}
    return json.dumps({**values, "loss_scale": scale} if scale else values)


def bloom() -> tuple[list[str], list[str]]:
    dice = random.Random(31214)
    before = [
        megatron(step, 2.2 + dice.gauss(0, 0.025), 0.242 * (1 + dice.gauss(0, 0.05)))
        for step in range(31214 - 260, 31214)
    ]
    rows = [
        (31214 + i, loss, norm) for i, (loss, norm) in enumerate(zip(BLOOM_LOSS, BLOOM_NORM, strict=True))
    ]
    for step in range(31223, 31250):
        left = (31250 - step) / 28
        rows.append((step, 2.21 + 0.5 * left**3 + dice.gauss(0, 0.02), 0.267 + 200 * left**6))
    rows += [BLOOM_LAST, *((step, 2.2 + dice.gauss(0, 0.02), 0.25) for step in range(31251, 31262))]
    return before, [megatron(*row) for row in rows]


def diverging(last: int) -> tuple[list[str], list[str]]:
    """Level 2.9 until step 300, then up within ten steps and flat at 6.9, until somebody ends it."""
    dice = random.Random(7)
    before = [
        jsonl(step, 2.9 + dice.gauss(0, 0.03), 0.5 * (1 + dice.gauss(0, 0.05))) for step in range(1, 281)
    ]
    after = []
    for step in range(281, last + 1):
        high = min(1.0, max(0.0, (step - 300) / 10))
        after.append(
            jsonl(
                step,
                2.9 + 4.0 * high + dice.gauss(0, 0.03),
                0.5 * (1 + 12 * high) * (1 + dice.gauss(0, 0.05)),
            )
        )
    return before, after


def collapsing() -> tuple[list[str], list[str]]:
    """fp16: the loss scale is halved from step 300 on, the loss follows thirty steps later (as GLM-130B)."""
    dice = random.Random(130)

    def row(step: int, loss: float, norm: float, scale: float) -> str:
        return jsonl(step, loss + dice.gauss(0, 0.03), norm * (1 + dice.gauss(0, 0.05)), scale)

    before = [row(step, 2.9, 0.5, 65536.0) for step in range(1, 281)]
    after = []
    for step in range(281, 371):
        scale = 65536.0 / 2 ** min(12, max(0, (step - 300) // 3)) if step < 345 else 16.0
        loss = 4.5 if 333 <= step < 342 else 2.9
        after.append(row(step, loss, 6.0 if 333 <= step < 342 else 0.5, scale))
    return before, after


def going_wrong() -> tuple[list[str], list[str]]:
    """Learned to 2.9 by step 280; from 301 on the level is 4.2, from 401 on six steps have no gradients, and
    from 441 on the loss is that of the first steps again."""
    dice = random.Random(6)

    def learning(step: int) -> float:
        return 2.9 + 6.0 * 2 ** (-step / 25)

    def row(step: int, loss: float, norm: float = 0.5) -> str:
        return jsonl(step, loss + dice.gauss(0, 0.03), norm * (1 + dice.gauss(0, 0.05)))

    before = [row(step, learning(step)) for step in range(1, 281)]
    after = [row(step, 2.9 if step < 301 else 4.2) for step in range(281, 401)]
    after += [row(step, 4.2, math.nan) for step in range(401, 407)]
    after += [row(step, 4.2) for step in range(407, 441)]
    after += [row(step, learning(step - 440)) for step in range(441, 471)]
    return before, after


def timeline(lines: list[str], first: float, every: float, path: str) -> str:
    """Appends, several lines to a record: the watchdog looks every half minute."""
    said, at = [], first
    for line in lines:
        said.append(f"- {{at: {at:g}s, append: {{{path}: {json.dumps(line)}}}}}")
        at += every
    return "\n".join(said) + "\n"


def write(name: str, head: str, lines: tuple[list[str], list[str]], every: float, expect: str) -> None:
    folder, path = RUNS / name, f"/data/{name}/train.log"
    log = folder / "files" / path.lstrip("/")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("\n".join(lines[0]) + "\n", encoding="utf-8")
    (folder / "files" / "proc").mkdir(exist_ok=True)
    kept = (RUNS / "nan-loss" / "files" / "proc" / "stat").read_text(encoding="utf-8")
    (folder / "files" / "proc" / "stat").write_text(kept, encoding="utf-8")
    (folder / "host.yaml").write_text(
        (RUNS / "nan-loss" / "host.yaml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    body = f"{head}{timeline(lines[1], 5.0, every, path)}{expect}"
    (folder / "run.yaml").write_text(body, encoding="utf-8")


#: Whether the skipped steps of a search for a loss scale are told as well is not what most are about.
NO_STEPS = "  limits: {job_loss: {kinds_off: [nan]}}\n"
HEAD = """what: >
  {what}
provenance: >
  {provenance}; written by tests/lab/make_curve_runs.py
node_class: h100-8
settings:
  mode: act
  interval: {interval}
  checks: [job_progress, job_exit, job_restarts, job_checkpoint, job_loss, job_resume]
{limits}run:
  name: {name}
  log: /data/{name}/train.log
  checkpoints: /data/{name}/ckpt
  rollback: {rollback}
  attempts:
  - {{number: 1, started: -8h}}
until: {until}
timeline:
- at: 0s
  job: {{state: running, pids: [4700]}}
  processes:
    1: {{command: systemd, argv: [/sbin/init], parent: 0}}
    4700: {{command: torchrun, argv: [torchrun, train.py]}}
    4711: {{parent: 4700, rank: 0, world: 2, stack: "forward (model.py:88) < main (train.py:41)"}}
  checkpoints:
    /data/{name}/ckpt: {checkpoints}
"""

# row 31217 comes after 320 s, row 31250 after 3785 s
SPIKE = """expect:
- {at: 4m, kind: opened, code: LossSpike, status: WARNING}
- {at: 9m, kind: worsened, code: LossSpike, status: CRITICAL}
- {at: 36m, kind: resolved, code: LossSpike}
"""
# when exactly, is for the detectors' own tests
TOLD = """expect:
- {kind: opened, code: LossSpike, status: WARNING}
- {kind: worsened, code: LossSpike, status: CRITICAL}
- {kind: opened, code: LossDiverged, status: CRITICAL}
- {action: restart, blocked: its config does not ask for a rollback}
"""
UNDONE = """- after: cancel
  at: 2s
  job: {state: ended, exit_code: -15, exit_reason: "clustertools: LossDiverged"}
  processes: {4700: gone, 4711: gone}
- after: submit
  at: 5s
  job: {state: running, pids: [5000]}
  processes: {5000: {command: torchrun, argv: [torchrun, train.py]}}
- after: submit
  at: 60s
  every: 10s
  until: 8m
  count: {from: 281}
  append:
    /data/loss-diverged-rollback/train.log: '{"step": {count}, "loss": 2.91, "grad_norm": 0.5, "lr": 0.0003}'
expect:
- {kind: opened, code: LossSpike, status: WARNING}
- {kind: worsened, code: LossSpike, status: CRITICAL}
- {kind: opened, code: LossDiverged, status: CRITICAL}
- {action: restart, blocked: undone when it is not back after 50 rows}
- {at: 12m, action: restart}
- {call: cancel}
- {call: submit, what: ckpt/step-280}
- {kind: resolved, code: LossDiverged}
- {kind: resolved, code: LossSpike}
- {done: restart}
"""
COLLAPSED = """expect:
- {kind: opened, code: LossScaleCollapse, status: WARNING}
- {kind: worsened, code: LossScaleCollapse}
- {kind: opened, code: LossSpike}
- {kind: resolved, code: LossSpike}
"""
WRONG = """expect:
- {kind: opened, code: LossSpike, status: WARNING}
- {kind: worsened, code: LossSpike, status: CRITICAL}
- {kind: opened, code: LossLevelShift, status: CRITICAL}
- {kind: resolved, code: LossSpike}
- {kind: opened, code: StepsNotFinite, status: CRITICAL}
- {kind: resolved, code: StepsNotFinite}
- {kind: reopened, code: LossSpike, status: WARNING}
- {kind: worsened, code: LossSpike, status: CRITICAL}
- {kind: opened, code: LossRestarted, status: CRITICAL}
"""


def main() -> None:
    write(
        "loss-spike-bloom",
        HEAD.format(
            what=(
                "BLOOM-176B's first spike: told by iteration 31217, over by 31250, and the run is left\n"
                "  alone although its owner asked for rollbacks."
            ),
            provenance=(
                "losses and gradient norms of iterations 31214 to 31222 and of 31250 are those of\n"
                "  BigScience's chronicles, in the form of its log; the 260 rows before, those between\n"
                "  31223 and 31249 and those after 31250 are made up at that level"
            ),
            limits=NO_STEPS, name="loss-spike-bloom", rollback="true", until="75m", interval="60s",
            checkpoints="[{step: 31200, age_seconds: 1500}]",
        ),
        bloom(), 105.0, SPIKE,
    )  # fmt: skip
    for name, rollback, last, expect in (
        ("loss-diverged-rollback", "true", 353, UNDONE),
        ("loss-diverged-told", "false", 400, TOLD),
    ):
        write(
            name,
            HEAD.format(
                what="The loss leaves its level at step 301 and does not come back.", provenance="made up",
                limits=NO_STEPS, name=name, rollback=rollback, until="20m", interval="30s",
                checkpoints="[{step: 280, age_seconds: 60}]",
            ),
            diverging(last), 10.0, expect,
        )  # fmt: skip
    write(
        "loss-scale-collapse",
        HEAD.format(
            what="fp16: the loss scale falls thirty steps before the loss; both are one story.",
            provenance="made up after GLM-130B's log of its own spikes", limits=NO_STEPS,
            name="loss-scale-collapse", rollback="true", until="20m", interval="30s",
            checkpoints="[{step: 280, age_seconds: 60}]",
        ),
        collapsing(), 10.0, COLLAPSED,
    )  # fmt: skip
    write(
        "loss-goes-wrong",
        HEAD.format(
            what="Another level that holds, steps without gradients, and the loss of the first steps again.",
            provenance="made up", limits="", name="loss-goes-wrong", rollback="false", until="34m",
            interval="30s", checkpoints="[{step: 280, age_seconds: 60}]",
        ),
        going_wrong(), 10.0, WRONG,
    )  # fmt: skip


if __name__ == "__main__":
    main()
