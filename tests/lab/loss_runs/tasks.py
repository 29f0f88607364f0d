"""Models of a few hundred to some thousand parameters and the data that they learn.

A task gives `batch(index)`, the same batch for the same index whenever it is asked, and `losses(batch)`, one
loss a sample. `shard` 1 is other data: of the same shape, by another rule.
"""

from __future__ import annotations

import math
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

Batch = tuple[torch.Tensor, ...]


def draws(seed: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64([seed, index]))


def markov_text(seed: int, symbols: int, length: int, sharpness: float) -> np.ndarray:
    """A chain over symbols whose frequencies fall like Zipf's; the sharper, the lower its entropy."""
    source = np.random.default_rng(seed)
    scores = source.gumbel(size=(symbols, symbols)) * sharpness - np.log(np.arange(1, symbols + 1))
    chances = np.exp(scores - scores.max(1, keepdims=True))
    edges = np.cumsum(chances / chances.sum(1, keepdims=True), 1)
    lanes = 500
    now = source.integers(symbols, size=lanes)
    text = np.empty((lanes, length // lanes), dtype=np.int64)
    for place in range(text.shape[1]):
        now = np.minimum((edges[now] < source.random((lanes, 1))).sum(1), symbols - 1)
        text[:, place] = now
    return text.reshape(-1)


def grammar_text(seed: int, length: int) -> np.ndarray:
    """Sentences of a small grammar over 40 words, with numbers that agree: long-range order to be learned."""
    source = np.random.default_rng(seed)
    words: list[int] = []
    while len(words) < length:
        plural = int(source.integers(2))
        noun = int(source.zipf(1.6)) % 10 + 10 * plural
        verb = 20 + int(source.zipf(1.8)) % 5 + 5 * plural
        words += [noun, *([30 + int(source.integers(6))] * int(source.integers(3))), verb, 36 + plural, 39]
    return np.array(words[:length], dtype=np.int64)


def library_text(seed: int, length: int) -> np.ndarray:
    """Characters of modules of Python's own standard library, in 48 classes. Another Python, another text."""
    names = (
        "argparse",
        "textwrap",
        "difflib",
        "tarfile",
        "heapq",
        "csv",
        "shutil",
        "ast",
        "zipfile",
        "locale",
    )
    folder = Path(sysconfig.get_paths()["stdlib"])
    order = np.random.default_rng(seed).permutation(len(names))
    text = "".join((folder / f"{names[which]}.py").read_text("utf-8") for which in order)
    kept = " \netaoinsrlhdcumpfgy_.(),:='\"#wbvkxTSE[]-0123NAIF"
    table = {letter: place for place, letter in enumerate(kept[:47])}
    return np.array([table.get(letter, 47) for letter in text[:length]], dtype=np.int64)


TEXTS = {
    "markov": lambda seed: markov_text(seed, 32, 100_000, 2.0),
    "zipf": lambda seed: markov_text(seed, 64, 100_000, 1.0),
    "grammar": lambda seed: grammar_text(seed, 100_000),
    "library": lambda seed: library_text(seed, 250_000),
}


class Task:
    """`samples` bounds the data: then it is gone through in epochs, shuffled anew each time."""

    def __init__(self, seed: int, size: int, samples: int = 0) -> None:
        self.seed, self.size, self.samples = seed, size, samples
        torch.manual_seed(seed)
        self.module: nn.Module = nn.Module()

    def places(self, index: int, wide: int, shard: int) -> np.ndarray:
        """Which `size` of `wide` samples are in the batch."""
        if not self.samples:
            return draws(self.seed + 7919 * shard, index).integers(wide, size=self.size)
        each = self.samples // self.size
        order = draws(self.seed + 7919 * shard, 10**9 + index // each).permutation(self.samples)
        return order[(index % each) * self.size : (index % each + 1) * self.size]

    def batch(self, index: int, shard: int = 0) -> Batch:
        raise NotImplementedError

    def losses(self, batch: Batch, step: int) -> torch.Tensor:
        raise NotImplementedError


class WindowLM(Task):
    """The next token from the few before it: embedding and one hidden layer."""

    def __init__(
        self, seed: int, size: int = 32, text: str = "markov", context: int = 4, hidden: int = 48,
        samples: int = 0, other: str = "", dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(seed, size, samples)
        self.texts = [torch.from_numpy(TEXTS[text](seed)), torch.from_numpy(TEXTS[other or text](seed + 1))]
        self.symbols, self.context, self.dropout = int(max(map(torch.max, self.texts))) + 1, context, dropout
        self.reach = torch.arange(context + 1)
        parts = (
            nn.Embedding(self.symbols, 16),
            nn.Linear(16 * context, hidden),
            nn.Linear(hidden, self.symbols),
        )
        self.module = nn.ModuleList(parts)
        self.embedding, self.inner, self.outer = parts

    def batch(self, index: int, shard: int = 0) -> Batch:
        text = self.texts[shard]
        wide = self.samples or len(text) - self.context - 1
        places = torch.from_numpy(self.places(index, wide, shard))
        if self.samples:
            places = places * (self.context + 1)
        rows = text[places[:, None] + self.reach]
        return rows[:, :-1], rows[:, -1]

    def losses(self, batch: Batch, step: int) -> torch.Tensor:
        hidden = F.gelu(self.inner(self.embedding(batch[0]).flatten(1)))
        if self.dropout:
            hidden = F.dropout(hidden, self.dropout)
        return F.cross_entropy(self.outer(hidden), batch[1], reduction="none")


class Transformer(Task):
    """A causal transformer, pre-norm, with `layers` of width `wide`."""

    def __init__(
        self, seed: int, size: int = 8, text: str = "grammar", length: int = 24, wide: int = 32,
        layers: int = 1, other: str = "", samples: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(seed, size, samples)
        self.texts = [torch.from_numpy(TEXTS[text](seed)), torch.from_numpy(TEXTS[other or text](seed + 1))]
        self.symbols, self.length, self.wide = int(max(map(torch.max, self.texts))) + 1, length, wide
        self.reach = torch.arange(length + 1)
        self.embedding, self.order = nn.Embedding(self.symbols, wide), nn.Embedding(length, wide)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.LayerNorm(wide),
                    nn.Linear(wide, 3 * wide),
                    nn.Linear(wide, wide),
                    nn.LayerNorm(wide),
                    nn.Linear(wide, 2 * wide),
                    nn.Linear(2 * wide, wide),
                ]
            )
            for _ in range(layers)
        )
        self.norm, self.outer = nn.LayerNorm(wide), nn.Linear(wide, self.symbols)
        self.module = nn.ModuleList([self.embedding, self.order, self.layers, self.norm, self.outer])

    def batch(self, index: int, shard: int = 0) -> Batch:
        text = self.texts[shard]
        wide = self.samples or len(text) - self.length - 1
        places = torch.from_numpy(self.places(index, wide, shard))
        if self.samples:
            places = places * (self.length + 1)
        rows = text[places[:, None] + self.reach]
        return rows[:, :-1], rows[:, 1:]

    def losses(self, batch: Batch, step: int) -> torch.Tensor:
        flow = self.embedding(batch[0]) + self.order.weight
        shape = (len(flow), self.length, 3, 2, self.wide // 2)
        for before, mixed, joined, after, up, down in self.layers:  # type: ignore[misc]
            query, key, value = mixed(before(flow)).view(shape).permute(2, 0, 3, 1, 4)
            seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            flow = flow + joined(seen.transpose(1, 2).reshape(flow.shape))
            flow = flow + down(F.gelu(up(after(flow))))
        logits = self.outer(self.norm(flow))
        return F.cross_entropy(logits.transpose(1, 2), batch[1], reduction="none").mean(1)


class Blobs(Task):
    """Points of `classes` clouds that overlap, told apart by a two-layer network. shard 1: other clouds."""

    def __init__(
        self, seed: int, size: int = 32, classes: int = 8, spread: float = 0.8, samples: int = 0
    ) -> None:
        super().__init__(seed, size, samples)
        self.classes, self.spread = classes, spread
        source = torch.Generator().manual_seed(seed)
        self.centres = torch.randn(2, classes, 10, generator=source)
        self.module = nn.Sequential(
            nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, classes)
        )

    def batch(self, index: int, shard: int = 0) -> Batch:
        if self.samples:
            each = [draws(self.seed + 13, int(place)) for place in self.places(index, self.samples, shard)]
            which = np.array([one.integers(self.classes) for one in each])
            noise = np.stack([one.normal(size=10) for one in each])
        else:
            source = draws(self.seed + 7919 * shard, index)
            which, noise = source.integers(self.classes, size=self.size), source.normal(size=(self.size, 10))
        labels = torch.from_numpy(which)
        return self.centres[shard][labels] + self.spread * torch.from_numpy(noise).float(), labels

    def losses(self, batch: Batch, step: int) -> torch.Tensor:
        return F.cross_entropy(self.module(batch[0]), batch[1], reduction="none")


class Shapes(Task):
    """Pictures of 12 x 12 with a bar, a cross, a ring, a dot or a stair, for a convolutional network."""

    def __init__(self, seed: int, size: int = 16, noise: float = 0.6) -> None:
        super().__init__(seed, size)
        self.noise = noise
        drawn = torch.zeros(6, 7, 7)
        drawn[0, 3], drawn[1, :, 3], drawn[2, 3], drawn[2, :, 3] = 1, 1, 1, 1
        drawn[3, 1:6, 1:6] = 1
        drawn[3, 2:5, 2:5] = 0
        drawn[4, 2:5, 2:5] = 1
        drawn[5] = torch.eye(7)
        self.placed = torch.zeros(6, 6, 6, 12, 12)
        for top in range(6):
            for left in range(6):
                self.placed[:, top, left, top : top + 7, left : left + 7] = drawn
        self.module = nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(6, 12, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(108, 6),
        )

    def batch(self, index: int, shard: int = 0) -> Batch:
        source = draws(self.seed + 7919 * shard, index)
        which, corner = source.integers(6, size=self.size), source.integers(6, size=(self.size, 2))
        pictures = torch.from_numpy(source.normal(size=(self.size, 1, 12, 12)) * self.noise).float()
        pictures[:, 0] += self.placed[which, corner[:, 0], corner[:, 1]] * (-1 if shard else 1)
        return pictures, torch.from_numpy(which)

    def losses(self, batch: Batch, step: int) -> torch.Tensor:
        return F.cross_entropy(self.module(batch[0]), batch[1], reduction="none")


class Copying(Task):
    """A recurrent network reads five symbols and writes them again."""

    def __init__(self, seed: int, size: int = 16, symbols: int = 8, length: int = 5, wide: int = 32) -> None:
        super().__init__(seed, size)
        self.symbols, self.length = symbols, length
        self.embedding, self.cells = nn.Embedding(symbols + 1, 12), nn.GRU(12, wide, batch_first=True)
        self.outer = nn.Linear(wide, symbols)
        self.module = nn.ModuleList([self.embedding, self.cells, self.outer])

    def batch(self, index: int, shard: int = 0) -> Batch:
        read = draws(self.seed + 7919 * shard, index).integers(self.symbols, size=(self.size, self.length))
        said = read[:, ::-1].copy() if shard else read
        blank = np.full_like(read, self.symbols)
        return torch.from_numpy(np.concatenate([read, blank], 1)), torch.from_numpy(said)

    def losses(self, batch: Batch, step: int) -> torch.Tensor:
        flow, _ = self.cells(self.embedding(batch[0]))
        logits = self.outer(flow[:, self.length :])
        return F.cross_entropy(logits.transpose(1, 2), batch[1], reduction="none").mean(1)


class Regression(Task):
    """A curved function with noise of Student's t. `loss`: huber, absolute, square or quantile."""

    def __init__(
        self,
        seed: int,
        size: int = 32,
        tail: float = 3.0,
        noise: float = 0.3,
        loss: str = "huber",
        wide: int = 24,
    ) -> None:
        super().__init__(seed, size)
        self.tail, self.noise, self.kind = tail, noise, loss
        source = np.random.default_rng(seed)
        self.waves = source.normal(size=(2, 6, 8)) * 0.8
        self.module = nn.Sequential(nn.Linear(6, wide), nn.Tanh(), nn.Linear(wide, 1))

    def batch(self, index: int, shard: int = 0) -> Batch:
        source = draws(self.seed + 7919 * shard, index)
        read = source.normal(size=(self.size, 6))
        exact = np.sin(read @ self.waves[shard]).sum(1, keepdims=True) * 0.5
        noise = source.standard_t(self.tail, size=(self.size, 1)) * self.noise
        return torch.from_numpy(read).float(), torch.from_numpy(exact + noise).float()

    def losses(self, batch: Batch, step: int) -> torch.Tensor:
        guess = self.module(batch[0])
        if self.kind == "huber":
            return F.smooth_l1_loss(guess, batch[1], reduction="none")[:, 0]
        if self.kind == "absolute":
            return F.l1_loss(guess, batch[1], reduction="none")[:, 0]
        if self.kind == "quantile":
            apart = batch[1] - guess
            return torch.maximum(0.8 * apart, -0.2 * apart)[:, 0]
        return F.mse_loss(guess, batch[1], reduction="none")[:, 0]


class Factors(Task):
    """Twelve numbers to be found: a linear model of some ten parameters. The cheapest of all."""

    def __init__(self, seed: int, size: int = 8, noise: float = 0.5, tail: float = 0.0) -> None:
        super().__init__(seed, size)
        self.noise, self.tail = noise, tail
        self.truth = np.random.default_rng(seed).normal(size=(2, 11, 1))
        self.module = nn.Linear(11, 1)

    def batch(self, index: int, shard: int = 0) -> Batch:
        source = draws(self.seed + 7919 * shard, index)
        read = source.normal(size=(self.size, 11))
        noise = (
            source.standard_t(self.tail, (self.size, 1)) if self.tail else source.normal(size=(self.size, 1))
        )
        return torch.from_numpy(read).float(), torch.from_numpy(
            read @ self.truth[shard] + noise * self.noise
        ).float()

    def losses(self, batch: Batch, step: int) -> torch.Tensor:
        return F.smooth_l1_loss(self.module(batch[0]), batch[1], reduction="none")[:, 0]


class Denoiser(Task):
    """Finds the noise that was put on points of a plane curve, or on 6 x 6 pictures: a diffusion loss."""

    def __init__(self, seed: int, size: int = 32, wide: int = 32, pictures: bool = False) -> None:
        super().__init__(seed, size)
        self.pictures, self.dim = pictures, 36 if pictures else 2
        self.module = nn.Sequential(
            nn.Linear(self.dim + 1, wide),
            nn.SiLU(),
            nn.Linear(wide, wide),
            nn.SiLU(),
            nn.Linear(wide, self.dim),
        )

    def batch(self, index: int, shard: int = 0) -> Batch:
        source = draws(self.seed + 7919 * shard, index)
        turn = source.random((self.size, 1)) * 2 * math.pi
        if self.pictures:
            grid = np.arange(36) % 6 + (shard + 1) * (np.arange(36) // 6)
            clean = np.cos(grid[None] * 0.7 + turn)
        else:
            clean = np.concatenate([np.cos(turn), np.sin((2 + shard) * turn)], 1) * 1.5
        amount = source.random((self.size, 1)) * 1.5
        noise = source.normal(size=clean.shape)
        mixed = clean * np.cos(amount) + noise * np.sin(amount)
        return torch.from_numpy(np.concatenate([mixed, amount], 1)).float(), torch.from_numpy(noise).float()

    def losses(self, batch: Batch, step: int) -> torch.Tensor:
        return ((self.module(batch[0]) - batch[1]) ** 2).mean(1)


class Variational(Task):
    """A variational autoencoder whose KL weight rises over the first `anneal` steps."""

    def __init__(self, seed: int, size: int = 32, anneal: int = 500, most: float = 0.3) -> None:
        super().__init__(seed, size)
        self.anneal, self.most = anneal, most
        self.mixing = np.random.default_rng(seed).normal(size=(2, 3, 16))
        self.read, self.write = nn.Linear(16, 24), nn.Linear(4, 24)
        self.code, self.out = nn.Linear(24, 8), nn.Linear(24, 16)
        self.module = nn.ModuleList([self.read, self.write, self.code, self.out])

    def batch(self, index: int, shard: int = 0) -> Batch:
        source = draws(self.seed + 7919 * shard, index)
        clean = np.tanh(source.normal(size=(self.size, 3)) @ self.mixing[shard])
        seen = torch.from_numpy(clean + 0.2 * source.normal(size=clean.shape)).float()
        return seen, seen, torch.from_numpy(source.normal(size=(self.size, 4))).float()

    def losses(self, batch: Batch, step: int) -> torch.Tensor:
        mean, spread = self.code(F.relu(self.read(batch[0]))).chunk(2, 1)
        code = mean + batch[2] * torch.exp(0.5 * spread)
        again = self.out(F.relu(self.write(code)))
        far = 0.5 * (mean**2 + spread.exp() - spread - 1).sum(1)
        return ((again - batch[1]) ** 2).sum(1) + self.most * min(step / self.anneal, 1.0) * far


class Adversaries(Task):
    """A generator against a judge, trained in one backward pass: the generator's gradient is turned round."""

    def __init__(self, seed: int, size: int = 32) -> None:
        super().__init__(seed, size)
        self.maker = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 2))
        self.judge = nn.Sequential(nn.Linear(2, 24), nn.LeakyReLU(0.2), nn.Linear(24, 1))
        self.module = nn.ModuleList([self.maker, self.judge])

    def batch(self, index: int, shard: int = 0) -> Batch:
        source = draws(self.seed + 7919 * shard, index)
        turn = source.random((self.size, 1)) * 2 * math.pi
        real = np.concatenate([np.cos(turn), np.sin(turn)], 1) * (1 + shard) + 0.1 * source.normal(
            size=(self.size, 2)
        )
        return torch.from_numpy(real).float(), torch.from_numpy(source.normal(size=(self.size, 4))).float()

    def losses(self, batch: Batch, step: int) -> torch.Tensor:
        made = self.maker(batch[1])
        turned = made.detach() * 2 - made
        return F.softplus(-self.judge(batch[0]))[:, 0] + F.softplus(self.judge(turned))[:, 0]


class Policy(Task):
    """Policy gradient with advantages normalised in groups (GRPO-like): the loss is near 0, of both signs.

    The policy of the last step is the old one, so the ratio is 1 and the loss is the mean advantage plus what
    the KL to the first policy costs. shard 1 rewards other answers.
    """

    def __init__(self, seed: int, size: int = 16, actions: int = 8, group: int = 8, kl: float = 0.04) -> None:
        super().__init__(seed, size)
        self.actions, self.group, self.kl = actions, group, kl
        self.reward = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 6, actions))).float()
        self.module = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, actions))

    def batch(self, index: int, shard: int = 0) -> Batch:
        source = draws(self.seed + 7919 * shard, index)
        asked = torch.from_numpy(source.normal(size=(self.size, 6))).float()
        luck = torch.from_numpy(source.gumbel(size=(self.size, self.group, self.actions))).float()
        tokens = torch.from_numpy(source.integers(1, 20, size=(self.size, self.group))).float()
        return asked, asked @ self.reward[shard], luck, tokens

    def losses(self, batch: Batch, step: int) -> torch.Tensor:
        asked, gain, luck, tokens = batch
        chances = F.log_softmax(self.module(asked), 1)
        with torch.no_grad():
            picked = (chances[:, None] + luck).argmax(2)
            rewards = (gain.gather(1, picked) > gain.mean(1, keepdim=True) + 0.5).float()
            better = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        logs = chances.gather(1, picked)
        ratio = torch.exp(logs - logs.detach())
        far = logs + math.log(self.actions)
        # Answers differ in length and the loss is a mean over tokens: that is why it is not exactly 0.
        return ((-better * ratio + self.kl * 0.5 * far**2) * tokens).sum(1) / tokens.sum(1)


TASKS: dict[str, Any] = {
    "window_lm": WindowLM, "transformer": Transformer, "blobs": Blobs, "shapes": Shapes, "copying": Copying,
    "regression": Regression, "factors": Factors, "denoiser": Denoiser, "variational": Variational,
    "adversaries": Adversaries, "policy": Policy,
}  # fmt: skip
