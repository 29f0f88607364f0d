"""A real training job (DDP over gloo, started by torchrun) that misbehaves when told to.

    torchrun --nnodes 2 ... tests/lab/faulty_trainer.py DIR --steps 60 --do stop@12//1 --do kill@20/1

DIR gets ckpt/, trace.jsonl (what happened when, by the trainer's own clock) and nothing else. An order is
KIND[:VALUE]@STEP[/ATTEMPTS[/RANKS]]: it is obeyed after that step, or at `start`. ATTEMPTS are numbers of
SLURM_RESTART_COUNT, 0 unless told, `*` for all; RANKS likewise. Kinds that end or stop a rank:

    stop         SIGSTOP to itself, again after every SIGCONT
    mismatch     wait in a collective that the other ranks never enter
    loader       the data loader opens a named pipe that nobody ever writes to
    kill         SIGKILL to itself
    oom          more memory than its cgroup allows: the kernel kills it
    memory       more address space than it may have: Python's MemoryError
    crash        a RuntimeError
    import       a ModuleNotFoundError, before anything else
    full         no room is left on the device of the checkpoints, and then it saves

Kinds that a healthy run shows too; VALUE is a number of seconds:

    evaluate     an evaluation that takes so long, said in the log before and after
    save         a checkpoint that is written so slowly
    pause        a pause of which nothing is said
    buffer       print no line before the buffer is full, from here on

Kinds that spoil what was saved: the newest checkpoint or the tracker, as it lies there.

    truncate hole shard tracker
    nan          the loss is not a number, from here on

Nothing in it knows of clustertools.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import signal
import sys
import time
import zlib
from pathlib import Path
from typing import Any

ATTEMPT = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
RANK = int(os.environ.get("RANK", "0"))
MEGATRON_TRACKER = "latest_checkpointed_iteration.txt"


class Order:
    """One misbehaviour: when, on which attempts, by which ranks."""

    def __init__(self, text: str) -> None:
        what, attempts, ranks = ([*text.split("/"), "", ""])[:3]
        kind, _, self.step = what.partition("@")
        self.kind, _, value = kind.partition(":")
        self.value = float(value or 0)
        self.attempts, self.ranks = attempts or "0", ranks or "0"

    def is_due(self, step: object) -> bool:
        return (
            self.step == str(step)
            and (self.attempts == "*" or str(ATTEMPT) in self.attempts.split(","))
            and (self.ranks == "*" or str(RANK) in self.ranks.split(","))
        )


class Trace:
    """What happened when. One line at a time, whole, whoever else writes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = os.open(folder / "trace.jsonl", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)

    def tell(self, what: str, step: int = 0, **more: Any) -> None:
        where = {"attempt": ATTEMPT, "rank": RANK, "node": os.uname().nodename}
        said = {"time": time.time(), "what": what, "step": step, **where, **more}
        os.write(self.file, json.dumps(said).encode() + b"\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--step-seconds", type=float, default=0.1)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--layout", choices=("file", "megatron", "dcp"), default="file")
    parser.add_argument("--resume", choices=("tracker", "newest", "file", "none"), default="tracker")
    # DistributedDataParallel imports PyTorch's compiler, another second of every start; without it the
    # gradients are averaged by the program itself
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--do", action="append", default=[], type=Order)
    return parser.parse_args()


OPTIONS = arguments()
TRACE = Trace(OPTIONS.folder)
if RANK == 0:
    TRACE.tell("began")
for _order in OPTIONS.do:
    if _order.kind == "import" and _order.is_due("start"):
        TRACE.tell("fault", kind="import")
        import a_module_that_nobody_installed  # type: ignore[import-not-found] # noqa: F401

import torch  # noqa: E402 - seconds, and not before what is to fail without it
import torch.distributed as dist  # noqa: E402

CONTEXT, WIDTH, CHARACTERS = 8, 48, 96
TEXT = Path(__file__).read_text(encoding="ascii")


class Model(torch.nn.Module):
    """Predicts the next character from the last few."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(CHARACTERS, WIDTH)
        self.hidden = torch.nn.Linear(CONTEXT * WIDTH, 2 * WIDTH)
        self.out = torch.nn.Linear(2 * WIDTH, CHARACTERS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.hidden(self.embed(tokens).flatten(1))))


class Momentum:
    """Gradient descent with momentum. torch.optim would cost every start a second for its compiler."""

    def __init__(self, parameters: Any) -> None:
        self.parameters = list(parameters)
        self.velocity = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, rate: float) -> float:
        """Take a step; the norm of the gradient."""
        norm = sum(float(p.grad.pow(2).sum()) for p in self.parameters) ** 0.5
        for p, v in zip(self.parameters, self.velocity, strict=True):
            v.mul_(0.9).add_(p.grad)
            p.sub_(v, alpha=rate)
            p.grad = None
        return norm


class Trainer:
    """One rank of one start of the program."""

    def __init__(self) -> None:
        self.checkpoints = OPTIONS.folder / "ckpt"
        self.checkpoints.mkdir(exist_ok=True)
        self.model, self.poisoned, self.slow_save = Model(), False, 0.0
        self.optimizer = Momentum(self.model.parameters())
        self.flush = True

    def run(self) -> None:
        begin = self.resume()
        parallel = self.model
        if OPTIONS.plain:
            for parameter in self.model.parameters():
                dist.broadcast(parameter.data, 0)
        else:
            parallel = torch.nn.parallel.DistributedDataParallel(self.model)
        side = dist.new_group()
        for step in range(begin + 1, OPTIONS.steps + 1):
            self.step(parallel, step)
            self.obey(step, side)
            if step % OPTIONS.save_every == 0:
                self.save(step)
        if RANK == 0:
            TRACE.tell("done", OPTIONS.steps)
            print("training complete", flush=True)
        dist.barrier()
        dist.destroy_process_group()

    def step(self, parallel: torch.nn.Module, step: int) -> None:
        began = time.perf_counter()
        rate = 0.02 * min(1.0, step / 20)
        tokens, targets = self.next_batch(step)
        loss = torch.nn.functional.cross_entropy(parallel(tokens), targets)
        if self.poisoned:
            loss = loss * float("nan")
        loss.backward()
        if OPTIONS.plain:
            for parameter in self.model.parameters():
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
        norm = self.optimizer.step(rate)
        time.sleep(OPTIONS.step_seconds)
        if RANK == 0:
            seconds = time.perf_counter() - began
            print(
                f"step {step}/{OPTIONS.steps} | loss {loss.item():.4f} | grad_norm {norm:.3f} "
                f"| lr {rate:.4e} | step_time {seconds:.3f}",
                flush=self.flush,
            )
            TRACE.tell("step", step)

    def next_batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Windows of the text and the character after each: the same for the same step and rank."""
        if any(order.kind == "loader" and order.is_due(step) for order in OPTIONS.do):
            pipe = OPTIONS.folder / f"shard-{RANK}"
            with contextlib.suppress(FileExistsError):
                os.mkfifo(pipe)
            TRACE.tell("fault", step, kind="loader")
            pipe.read_bytes()
        generator = torch.Generator().manual_seed(1000 * RANK + step)
        data = torch.tensor([max(0, ord(c) - 32) for c in TEXT])
        start = torch.randint(0, len(data) - CONTEXT - 1, (32,), generator=generator)
        return torch.stack([data[i : i + CONTEXT] for i in start.tolist()]), data[start + CONTEXT]

    # checkpoints

    def state(self, step: int) -> dict[str, Any]:
        named = {f"velocity.{i}": v for i, v in enumerate(self.optimizer.velocity)}
        return {"model": dict(self.model.state_dict()), "momentum": named, "iteration": torch.tensor(step)}

    def take(self, state: dict[str, Any]) -> int:
        self.model.load_state_dict(state["model"])
        for i, v in enumerate(self.optimizer.velocity):
            v.copy_(state["momentum"][f"velocity.{i}"])
        return int(state["iteration"])

    def resume(self) -> int:
        path = self.newest()
        if path is None:
            if RANK == 0:
                TRACE.tell("resumed", 0, path="")
            return 0
        if OPTIONS.layout == "dcp":
            import torch.distributed.checkpoint as dcp

            state = self.state(0)
            dcp.load(state, checkpoint_id=path)
        else:
            file = path / f"mp_rank_{RANK:02d}" / "model_optim_rng.pt" if path.is_dir() else path
            state = torch.load(file, weights_only=True)
        step = self.take(state)
        if RANK == 0:
            print(f"resuming from {path} at step {step}", flush=True)
            TRACE.tell("resumed", step, path=str(path))
        return step

    def newest(self) -> Path | None:
        """The checkpoint to go on from, as the command line says; it is not looked at, only loaded."""
        if OPTIONS.resume == "none":
            return None
        if OPTIONS.resume == "file":
            named = os.environ.get("CLUSTERTOOLS_RESUME_FROM", "")
            return Path(named) if named else None
        tracker = self.checkpoints / (MEGATRON_TRACKER if OPTIONS.layout == "megatron" else "latest")
        if OPTIONS.resume == "tracker":
            if not tracker.exists():
                return None
            text = tracker.read_text()
            return self.checkpoints / (f"iter_{int(text):07d}" if OPTIONS.layout == "megatron" else text)
        pattern = {"file": "step_*.pt", "megatron": "iter_*", "dcp": "step-*"}[OPTIONS.layout]
        found = [p for p in self.checkpoints.glob(pattern) if "clustertools" not in p.name]
        return max(found, default=None)

    def save(self, step: int) -> None:
        began = time.time()
        save = {"file": self.save_file, "megatron": self.save_megatron, "dcp": self.save_dcp}
        try:
            name = save[OPTIONS.layout](step)
        except (OSError, RuntimeError):
            TRACE.tell("save failed", step)
            raise
        if RANK == 0:
            if OPTIONS.resume == "tracker":
                megatron = OPTIONS.layout == "megatron"
                (self.checkpoints / (MEGATRON_TRACKER if megatron else "latest")).write_text(
                    str(step) if megatron else name
                )
            print(f"saved checkpoint {self.checkpoints}/{name}", flush=True)
            TRACE.tell("saved", step, seconds=time.time() - began)

    def save_file(self, step: int) -> str:
        path = self.checkpoints / f"step_{step:06d}.pt"
        if RANK == 0:
            unfinished = path.with_suffix(".tmp")
            torch.save(self.state(step), unfinished)
            if self.slow_save:
                _write_slowly(unfinished, self.slow_save)
                self.slow_save = 0.0
            unfinished.replace(path)
        return path.name

    def save_megatron(self, step: int) -> str:
        path = self.checkpoints / f"iter_{step:07d}"
        own = path / f"mp_rank_{RANK:02d}"
        own.mkdir(parents=True, exist_ok=True)
        torch.save(self.state(step), own / "model_optim_rng.pt")
        dist.barrier()
        return path.name

    def save_dcp(self, step: int) -> str:
        import torch.distributed.checkpoint as dcp

        path = self.checkpoints / f"step-{step:06d}"
        # a replicated state would be saved by rank 0 alone; what differs between the ranks makes two shards
        own = {f"rank{RANK}.noise": torch.rand(4096)}
        dcp.save({**self.state(step), **own}, checkpoint_id=path)
        return path.name

    # misbehaviour

    def obey(self, step: int, side: Any) -> None:
        for order in OPTIONS.do:
            if order.kind != "loader" and order.is_due(step):
                TRACE.tell("fault", step, kind=order.kind)
                if order.kind == "mismatch":
                    dist.all_reduce(torch.zeros(1), group=side)
                else:
                    getattr(self, "do_" + order.kind)(order.value, step)

    def do_stop(self, value: float, step: int) -> None:
        while True:
            os.kill(os.getpid(), signal.SIGSTOP)

    def do_kill(self, value: float, step: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def do_crash(self, value: float, step: int) -> None:
        raise RuntimeError(f"index 50304 is out of range in sample {step}")

    def do_oom(self, value: float, step: int) -> None:
        """Enter a cgroup of its own that allows a little more than what is used, and use much more."""
        first = Path("/sys/fs/cgroup/memory")
        root, limit = (first, "memory.limit_in_bytes") if first.is_dir() else (first.parent, "memory.max")
        group = root / f"clustertools-lab-{zlib.crc32(str(OPTIONS.folder).encode()):08x}-{ATTEMPT}"
        try:
            group.mkdir(exist_ok=True)
            (group / limit).write_text(str(64 << 20))
            (group / "cgroup.procs").write_text("0")
        except OSError:  # a container whose cgroups are not its own to change
            self.do_memory(value, step)
        hog = [bytearray(b"x" * (16 << 20)) for _ in range(64)]
        raise SystemExit(f"the kernel allowed {len(hog)} times 16 MiB")

    def do_memory(self, value: float, step: int) -> None:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
        hog = [bytearray(16 << 20) for _ in range(64)]
        raise SystemExit(f"the limit allowed {len(hog)} times 16 MiB")

    def do_full(self, value: float, step: int) -> None:
        """Whatever else lies on the file system of the checkpoints grows until nothing is left."""
        ballast = open(self.checkpoints / "core.dump", "ab", buffering=0)  # noqa: SIM115 - until it ends
        with contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(4096))
        assert os.statvfs(self.checkpoints).f_bavail == 0, errno.errorcode[errno.ENOSPC]

    def do_evaluate(self, value: float, step: int) -> None:
        if RANK:
            return  # it waits in the next collective
        print(f"evaluating at step {step}", flush=True)
        until, losses = time.monotonic() + value, []
        with torch.no_grad():
            while time.monotonic() < until:
                tokens, targets = self.next_batch(100_000 + len(losses))
                losses.append(torch.nn.functional.cross_entropy(self.model(tokens), targets).item())
        print(f"eval_loss {sum(losses) / len(losses):.4f} at step {step}", flush=True)

    def do_save(self, value: float, step: int) -> None:
        self.slow_save = value

    def do_pause(self, value: float, step: int) -> None:
        time.sleep(value)

    def do_buffer(self, value: float, step: int) -> None:
        self.flush = False

    def do_nan(self, value: float, step: int) -> None:
        self.poisoned = True

    def do_truncate(self, value: float, step: int) -> None:
        file = self.newest_file()
        os.truncate(file, file.stat().st_size * 2 // 3)

    def do_hole(self, value: float, step: int) -> None:
        """A hole as a file system leaves it that lost what was not yet written out."""
        file = self.newest_file()
        size = file.stat().st_size
        with open(file, "r+b") as out:
            out.seek(size // 3)
            out.write(bytes(size // 4))

    def do_shard(self, value: float, step: int) -> None:
        self.newest_file().unlink()

    def do_tracker(self, value: float, step: int) -> None:
        for name in (MEGATRON_TRACKER, "latest"):
            if (self.checkpoints / name).exists():
                (self.checkpoints / name).write_text("")

    def newest_file(self) -> Path:
        """The largest file of the newest checkpoint; of several shards the last one."""
        pattern = {"file": "step_*.pt", "megatron": "iter_*/*/*.pt", "dcp": "step-*/*.distcp"}[OPTIONS.layout]
        return max(self.checkpoints.glob(pattern))


def _write_slowly(path: Path, seconds: float) -> None:
    """What is written already, again and piece by piece, as storage does that is busy."""
    data, pieces = path.read_bytes(), max(1, int(10 * seconds))
    size = len(data) // pieces + 1
    with open(path, "wb", buffering=0) as out:
        for begin in range(0, len(data), size):
            out.write(data[begin : begin + size])
            time.sleep(seconds / pieces)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    try:
        Trainer().run()
    except BaseException as exc:
        TRACE.tell("failed", why=f"{type(exc).__name__}: {exc}"[:200])
        raise


if __name__ == "__main__":
    sys.exit(main())
