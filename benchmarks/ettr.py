"""ETTR of a real torch job under faults: `clustertools watch --act` beside --requeue and --max-restarts.

    python benchmarks/ettr.py --seed 1                     ten faults, about ten minutes

Two jobs of the same program (data parallel over gloo, two ranks on a node of a real Slurm of virtual nodes)
run side by side and suffer the same faults at the same moments, drawn by the seed: a rank killed, a rank
stopped (a hang), the newest checkpoint torn and a rank killed, a node lost. One is named in the config of the
watchdog. The other has what people have without one: Slurm's requeue for lost nodes and torchrun's restarts
of workers.

Time is scaled: a fault every --gap seconds stands for hours. The plain job's collectives give up after
--timeout seconds (NCCL: 600 s), the watchdog calls a silence one after half of that (its default is 300 s).
A plain job that has ended is looked at by a person after --person seconds, who writes the newest whole
checkpoint into the tracker and submits it anew. ETTR is step time that was kept, by all time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from clustertools.goodput_measured import KINDS, Goodput, Sign, measure  # noqa: E402

TRAINER = REPOSITORY / "tests" / "lab" / "faulty_trainer.py"
STEP_SECONDS, SAVE_EVERY = 0.2, 25
FAULTS = ("kill", "stop", "torn", "node")

PLAIN = """#!/bin/bash
export OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=lo PYTHONPATH=
exec srun --kill-on-bad-exit=1 --ntasks-per-node=1 {torchrun} --nnodes 1 --max-restarts 30 \\
    --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:0 --local-addr 127.0.0.1 --nproc-per-node 2 {program}
"""


def train(seconds: float, words: list[str]) -> None:
    """The trainer, whose collectives give up after `seconds`."""
    import datetime
    import runpy

    import torch.distributed as dist

    begin = dist.init_process_group

    def patient(*args: object, **more: object) -> None:
        begin(*args, timeout=datetime.timedelta(seconds=seconds), **more)  # type: ignore[arg-type]

    dist.init_process_group = patient  # type: ignore[assignment]
    sys.argv = [str(TRAINER), *words]
    runpy.run_path(str(TRAINER), run_name="__main__")


@dataclass
class Job:
    """One of the two: where it works, and what happens to it."""

    name: str
    folder: Path
    id: str = ""
    faults: list[str] = field(default_factory=list)
    ended_at: float = 0.0
    person: int = 0

    def ranks(self) -> list[int]:
        """The processes of its ranks, not of what launched them; the pids are those of the whole machine."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                if (
                    b"faulty_trainer.py" in line or b"ettr.py\0train" in line
                ) and f"{self.folder}\0".encode() in line:
                    environment = (entry / "environ").read_bytes().split(b"\0")
                    if any(word.startswith(b"LOCAL_RANK=") for word in environment):
                        found.append(int(entry.name))
        return sorted(found)

    def steps(self) -> int:
        return sum(row["what"] == "step" for row in self.trace())

    def trace(self) -> list[dict]:
        path = self.folder / "trace.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def tear(self) -> None:
        """Cut the newest checkpoint, as a full disk or a crash in the middle of a write does."""
        with contextlib.suppress(ValueError, OSError):
            newest = max(self.checkpoints())
            os.truncate(newest, newest.stat().st_size * 2 // 3)

    def checkpoints(self) -> list[Path]:
        return [p for p in (self.folder / "ckpt").glob("step_*.pt") if "clustertools" not in p.name]

    def measured(self, began: float, until: float) -> Goodput:
        signs = []
        for row in self.trace():
            if row["what"] == "resumed":
                signs.append(Sign("resumed", row["step"], row["time"]))
            elif row["what"] == "step" and row["time"] <= until:
                signs.append(Sign("step", row["step"], row["time"]))
        return measure(signs, wall_seconds=until - began)


def suffer(lab: object, job: Job, kind: str, draw: random.Random) -> str:
    """Let one fault happen; in words, what it was."""
    ranks = job.ranks()
    if kind == "node":
        said = lab.slurm.run("squeue", "-h", "-j", job.id, "-o", "%N", check=False).strip()  # type: ignore[attr-defined]
        nodes = lab.slurm.run("scontrol", "show", "hostnames", said).split() if said else []  # type: ignore[attr-defined]
        if not nodes:
            return "node: it has none"
        lab.slurm.kill(nodes[-1])  # type: ignore[attr-defined]
        return f"node {nodes[-1]}"
    if kind == "torn":
        job.tear()
    if not ranks:
        return f"{kind}: no rank runs"
    victim = ranks[draw.randrange(len(ranks))]
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGSTOP if kind == "stop" else signal.SIGKILL)
    return kind


def submit_plain(lab: object, job: Job, timeout: float, words: list[str]) -> None:
    from tests.lab.cluster_watch import BIN

    program = f"{Path(__file__).resolve()} train {timeout:g} {' '.join(words)}"
    (job.folder / "job.sh").write_text(PLAIN.format(torchrun=BIN / "torchrun", program=program))
    told = lab.slurm.run(  # type: ignore[attr-defined]
        "sbatch", "--parsable", "--requeue", "--open-mode=append", "--exclusive", "-Jplain", "-N1",
        f"--chdir={job.folder}", f"--output={job.folder}/log", str(job.folder / "job.sh"),
    )  # fmt: skip
    job.id = told.split(";")[0].strip()


def person_looks(lab: object, job: Job, options: argparse.Namespace, words: list[str]) -> None:
    """After a while somebody sees that the plain job is gone, repairs the tracker and submits it."""
    state = lab.slurm.run(  # type: ignore[attr-defined]
        "squeue", "-h", "-a", "-t", "all", "-j", job.id, "-o", "%T", check=False
    ).strip()
    if state not in ("FAILED", "NODE_FAIL", "CANCELLED", "TIMEOUT", "COMPLETED"):
        job.ended_at = 0.0
        return
    job.ended_at = job.ended_at or time.time()
    if time.time() - job.ended_at < options.person:
        return
    from clustertools.host import LocalHost
    from clustertools.sources.checkpoints import checkpoints, last_good

    good = last_good(checkpoints(LocalHost(), str(job.folder / "ckpt")).reports)
    (job.folder / "ckpt" / "latest").write_text(good.name if good else "")
    if good is None:
        (job.folder / "ckpt" / "latest").unlink()
    job.person, job.ended_at = job.person + 1, 0.0
    submit_plain(lab, job, options.timeout, words)


def main() -> int:
    if sys.argv[1:2] == ["train"]:
        train(float(sys.argv[2]), sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=10)
    parser.add_argument(
        "--gap", type=float, default=50.0, help="seconds between two faults; more than a restart takes here"
    )
    parser.add_argument("--timeout", type=float, default=40.0, help="of the plain job's collectives")
    parser.add_argument("--person", type=float, default=90.0, help="until somebody looks at a job that ended")
    options = parser.parse_args()
    from tests.lab.cluster_watch import ClusterWatch

    draw = random.Random(options.seed)
    kinds = [*FAULTS, *draw.choices(FAULTS, weights=(4, 3, 2, 1), k=max(0, options.faults - len(FAULTS)))]
    draw.shuffle(kinds)
    kinds = kinds[: options.faults]
    words = [
        "--steps", "100000", "--step-seconds", str(STEP_SECONDS), "--save-every", str(SAVE_EVERY), "--plain",
    ]  # fmt: skip
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, seed {options.seed}; "
        f"a fault every {options.gap:g} s, collectives give up after {options.timeout:g} s (plain), "
        f"a silence counts from {options.timeout / 2:g} s on (watched)"
    )
    print("faults:", ", ".join(kinds), flush=True)
    with tempfile.TemporaryDirectory(prefix="ettr-") as top, ClusterWatch(Path(top), nodes=4) as lab:
        hang = {"minimum": f"{options.timeout / 2:g}s", "factor": 3, "startup": "90s"}
        planned = lab.plan("watched", *words, ranks=2, hang=hang)
        jobs = [Job("watched", planned.folder), Job("plain", Path(top) / "jobs" / "plain")]
        jobs[1].folder.mkdir(parents=True)
        plain_words = [str(jobs[1].folder), *words]
        began = time.time()
        lab.begin()
        jobs[0].id = planned.id
        submit_plain(lab, jobs[1], options.timeout, plain_words)
        while not all(job.steps() > 5 for job in jobs):
            assert time.time() - began < 180, lab.story()
            time.sleep(0.5)
        print(f"both train after {time.time() - began:.0f} s", flush=True)
        began, lost = time.time(), {}
        for number, kind in enumerate([*kinds, ""]):
            until = began + (number + 1) * options.gap
            while time.time() < until:
                person_looks(lab, jobs[1], options, plain_words)
                for node, since in list(lost.items()):
                    if time.time() - since > 30:
                        lab.slurm.start(node)
                        del lost[node]
                time.sleep(1.0)
            if kind:
                victims = draw.random()
                for job in jobs:
                    job.faults.append(suffer(lab, job, kind, random.Random(victims)))
                    if job.faults[-1].startswith("node n"):
                        lost[job.faults[-1].split()[1]] = time.time()
                last = [job.faults[-1] for job in jobs]
                print(f"{time.time() - began:5.0f} s  {kind}: {last[0]} | {last[1]}; steps "
                      f"{jobs[0].steps()} | {jobs[1].steps()}", flush=True)  # fmt: skip
        time.sleep(options.gap)
        until = time.time()
        found = [job.measured(began, until) for job in jobs]
        if os.environ.get("ETTR_STORY"):
            print(lab.story())
            print((jobs[1].folder / "log").read_text(errors="replace")[-3000:])
    print(f"\n{until - began:.0f} s{'':24}{'watched':>10}{'plain':>10}")
    for kind in KINDS:
        if any(one.seconds[kind] for one in found):
            print(f"{kind + ', s':<30}" + "".join(f"{one.seconds[kind]:10.1f}" for one in found))
    print(f"{'steps kept':<30}" + "".join(f"{one.kept_steps:10d}" for one in found))
    print(f"{'steps trained twice':<30}" + "".join(f"{one.rolled_back_steps:10d}" for one in found))
    print(f"{'starts':<30}" + "".join(f"{len(one.attempts):10d}" for one in found))
    print(f"{'times that a person came':<30}{0:10d}{jobs[1].person:10d}")
    print(f"{'ETTR':<30}" + "".join(f"{one.ettr or 0.0:10.3f}" for one in found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
