"""What goes wrong in the runs, by cause: how each gets into the training, and what it is in real life."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.lab.loss_runs.tasks import draws
from tests.lab.loss_runs.training import Fault, Run

#: cause -> (flag that is set while it lasts, what it is). The flag's value is the fault's strength.
LASTING: dict[str, tuple[str, str]] = {
    "rate": ("rate", "the learning rate times this: too high, or a bug of the schedule"),
    "rate_creeps": ("wear", "the learning rate grows by this factor every step"),
    "garbage": ("garbage", "tokens drawn at random (share of them), or inputs this many times too large"),
    "labels": ("labels", "this share of the labels belongs to other samples"),
    "shard": ("shard", "this share of the samples is of another distribution: a poisoned shard, another mix"),
    "gradient": ("gradient", "gradients times this: a wrong sum over ranks"),
    "gradient_noise": ("gradient_noise", "noise of this many times the gradient: a rank sends garbage"),
    "louder": ("louder", "gradients grow by this factor every step"),
    "frozen": ("frozen", "this share of the weights, from the output on, gets no gradient"),
    "beta2": ("beta2", "Adam's beta2 is this"),
    "unclipped": ("unclipped", "gradients are not clipped"),
    "decay": ("decay", "weight decay is this: a wrong sign makes weights grow"),
    "log_of_zero": ("log_of_zero", "a loss takes the logarithm of zero (inf; times 0: nan)"),
    "no_loss": ("no_loss", "the loss is left out of the line"),
    "slow": ("slow", "one of eight ranks takes this many times as long"),
    "same_batch": ("repeat_batch", "the loader hands out one batch again and again"),
}


def _weights_lost(run: Run, strength: float) -> None:
    """A resume without the checkpoint's weights: all is as in the beginning, the optimizer too."""
    run.weights.copy_(run.first_weights)
    _optimizer_lost(run, strength)


def _optimizer_lost(run: Run, strength: float) -> None:
    """A resume without the optimizer's moments, the count of updates kept."""
    run.mean.zero_()
    run.square.zero_()


def _old_weights(run: Run, strength: float) -> None:
    """Weights of an early checkpoint, the rest as it is."""
    run.weights.copy_(run.early_weights)


def _weights_part(run: Run, strength: float) -> None:
    """A shard of the checkpoint, this share of the weights, was never written: it is as initialised."""
    start = len(run.weights) // 5
    part = slice(start, start + int(strength * len(run.weights)))
    run.weights[part] = run.first_weights[part]


def _weights_noise(run: Run, strength: float) -> None:
    """Weights damaged everywhere, by this share of their own spread: a wrong cast, a wrong merge of ranks."""
    noise = torch.from_numpy(draws(run.counts["step"], 11).normal(size=len(run.weights))).float()
    run.weights += noise * (strength * run.weights.std())


def _square_scaled(run: Run, strength: float) -> None:
    """Adam's second moment times this: an optimizer state cast or loaded wrongly."""
    run.square *= strength


def _mean_scaled(run: Run, strength: float) -> None:
    """Adam's first moment times this."""
    run.mean *= strength


def _flipped(values: torch.Tensor, count: int, bit: int, seed: int) -> None:
    places = torch.from_numpy(draws(seed, 21).permutation(len(values))[:count])
    bits = values[places].view(torch.int32) ^ (1 << bit)
    values[places] = bits.view(torch.float32)


def _weight_bits(run: Run, strength: float) -> None:
    """Bit 25 of so many weights is flipped: each is 16 times as large, or as small."""
    _flipped(run.weights, int(strength), 25, run.counts["step"])


def _moment_bits(run: Run, strength: float) -> None:
    """Bit 28 of so many second moments is flipped."""
    _flipped(run.square, int(strength), 28, run.counts["step"])


def _data_again(run: Run, strength: float) -> None:
    """The data loader begins anew: the first data come again."""
    run.counts["cursor"] = 0


def _repeats(run: Run, strength: float) -> None:
    """From here on the same few batches come again and again, to the end of `repeats_end`."""
    run.flags["repeat"] = (run.counts["cursor"], int(strength))


def _repeats_end(run: Run, strength: float) -> None:
    """Repeated data run out: new data at last, and the loss is what it should have been."""
    run.flags.pop("repeat", None)


ONCE: dict[str, Callable[[Run, float], None]] = {
    "weights_lost": _weights_lost,
    "optimizer_lost": _optimizer_lost,
    "old_weights": _old_weights,
    "weights_part": _weights_part,
    "weights_noise": _weights_noise,
    "square_scaled": _square_scaled,
    "mean_scaled": _mean_scaled,
    "weight_bits": _weight_bits,
    "moment_bits": _moment_bits,
    "data_again": _data_again,
    "repeats": _repeats,
    "repeats_end": _repeats_end,
}

CAUSES = {*LASTING, *ONCE, "rollback"}


def begin(run: Run, fault: Fault) -> None:
    if fault.cause in ONCE:
        ONCE[fault.cause](run, fault.strength)
    else:
        run.flags[LASTING[fault.cause][0]] = fault.strength


def end(run: Run, fault: Fault) -> None:
    if fault.cause not in LASTING:
        return
    flag = LASTING[fault.cause][0]
    run.flags.pop(flag, None)
    if flag in ("wear", "louder"):
        run.flags.pop("rate" if flag == "wear" else "gradient", None)
