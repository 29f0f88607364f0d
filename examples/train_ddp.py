"""A small real training job: a character model under DistributedDataParallel over gloo, on CPUs.

    torchrun --standalone --nproc-per-node 2 examples/train_ddp.py --steps 200 --checkpoints ckpt

It saves a checkpoint every few steps (written under another name, then renamed), prints one line a step, and
goes on from $CLUSTERTOOLS_RESUME_FROM when that is set. Nothing in it knows of clustertools.
"""

from __future__ import annotations

import argparse
import datetime
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

TEXT = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
CONTEXT, WIDTH = 16, 64


class Model(torch.nn.Module):
    """Predicts the next character from the last few."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(characters, WIDTH)
        self.hidden = torch.nn.Linear(CONTEXT * WIDTH, 4 * WIDTH)
        self.out = torch.nn.Linear(4 * WIDTH, characters)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.hidden(self.embed(tokens).flatten(1))))


def batch(data: torch.Tensor, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random windows of the text and the character after each."""
    start = torch.randint(0, len(data) - CONTEXT - 1, (size,), generator=generator)
    windows = torch.stack([data[i : i + CONTEXT] for i in start.tolist()])
    return windows, data[start + CONTEXT]


def save(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write a checkpoint so that it is either there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, unfinished)
    unfinished.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--save-every", type=int, default=20)
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--step-seconds", type=float, default=0.05, help="sleep, to look like a larger model")
    options = parser.parse_args()

    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(minutes=30))
    rank = dist.get_rank()
    characters = sorted(set(TEXT))
    data = torch.tensor([characters.index(c) for c in TEXT])
    torch.manual_seed(0)
    model = Model(len(characters))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = 0
    resume = os.environ.get("CLUSTERTOOLS_RESUME_FROM")
    if resume:
        state = torch.load(resume, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        if rank == 0:
            print(f"resuming from {resume} at step {first}", flush=True)
    parallel = DistributedDataParallel(model)
    generator = torch.Generator().manual_seed(1000 * rank + first)
    for step in range(first + 1, options.steps + 1):
        began = time.perf_counter()
        windows, targets = batch(data, 64, generator)
        loss = torch.nn.functional.cross_entropy(parallel(windows), targets)
        optimizer.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(parallel.parameters(), 1.0)
        optimizer.step()
        time.sleep(options.step_seconds)
        if rank == 0:
            seconds = time.perf_counter() - began
            print(
                f"step {step}/{options.steps} | loss {loss.item():.4f} | grad_norm {grad_norm.item():.3f} "
                f"| step_time {seconds:.3f}",
                flush=True,
            )
            if step % options.save_every == 0:
                save(options.checkpoints / f"step_{step:06d}.pt", model, optimizer, step)
                print(f"saved checkpoint {options.checkpoints}/step_{step:06d}.pt", flush=True)
    if rank == 0:
        print("training complete", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
