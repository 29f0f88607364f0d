"""The runs that detectors are tuned on: other models, data, faults and seeds than the scored ones."""

from __future__ import annotations

from typing import Any

from tests.lab.loss_runs.training import Fault, Recipe


def tune(name: str, about: str, task: str, seed: int, rows: int, lr: float, **more: Any) -> Recipe:
    return Recipe(name, "tune", about, task, seed, rows, lr, **more)


ZIPF = {"text": "zipf", "size": 384}

LOSSES = (
    tune(
        "markov-batches", "window LM on Markov text, garbage batches and label noise", "window_lm", 101,
        2400, 3e-3,
        faults=(
            Fault("garbage", 400, 3, 0.9), Fault("labels", 700, 12, 0.5), Fault("garbage", 1000, 1, 0.8),
            Fault("labels", 1300, 120, 0.4), Fault("garbage", 1900, 25, 0.5), Fault("labels", 2200, 5, 0.2),
        ), schedule="cosine", every=4,
    ),
    tune(
        "markov-rate", "window LM, a few steps of far too high a learning rate now and then", "window_lm",
        102, 2400,
        2e-3, faults=(
            Fault("rate", 500, 2, 150), Fault("rate", 900, 3, 90), Fault("rate", 1300, 8, 50),
            Fault("rate", 1700, 1, 100), Fault("rate", 2150, 250, 30),
        ), shape={"size": 256},
    ),
    tune(
        "zipf-small", "window LM in large batches: small disturbances", "window_lm", 113, 2400, 2e-3,
        faults=(
            Fault("labels", 300, 3, 0.08), Fault("weights_noise", 550, 0, 0.3), Fault("garbage", 800, 1,
            0.2),
            Fault("shard", 1050, 10, 0.1), Fault("weights_part", 1300, 0, 0.2), Fault("labels", 1600, 90,
            0.06),
            Fault("rate", 1900, 1, 50), Fault("shard", 2150, 0, 0.1, 250),
        ), shape={"text": "markov", "other": "zipf", "size": 768}, schedule="linear",
    ),
    tune(
        "zipf-lost", "window LM: resumes without optimizer, with early weights, with none", "window_lm",
        114, 2400, 2e-3,
        faults=(
            Fault("optimizer_lost", 300), Fault("old_weights", 600), Fault("weights_lost", 1000),
            Fault("data_again", 1500), Fault("weights_lost", 1900),
        ), shape=ZIPF, columns=("loss", "grad_norm", "learning_rate"), schedule="wsd",
    ),
    tune(
        "zipf-bf16", "window LM, bf16 losses, mean of five steps", "window_lm", 115, 1400, 2e-3, faults=(
            Fault("weights_noise", 300, 0, 0.6), Fault("labels", 520, 2, 0.4), Fault("rate", 760, 2, 40),
            Fault("weights_part", 1000, 0, 0.5), Fault("weights_noise", 1200, 0, 0.35),
        ), shape={"text": "markov", "size": 96}, every=5, rounding={"loss": "bf16", "grad_norm": "d2"},
    ),
    tune(
        "blobs-optimizer", "classifier, damaged optimizer states", "blobs", 103, 2600, 3e-3, faults=(
            Fault("optimizer_lost", 500), Fault("square_scaled", 900, 0, 1e-4), Fault("moment_bits", 1300,
            0, 300),
            Fault("mean_scaled", 1700, 0, 15), Fault("square_scaled", 2100, 0, 1e-6),
        ), shape={"size": 256, "spread": 1.2},
    ),
    tune(
        "blobs-shards", "classifier: poisoned shards and wrong labels, mean of ten, no grad norm", "blobs",
        116, 900,
        2e-3, faults=(
            Fault("shard", 150, 3, 0.3), Fault("labels", 280, 60, 0.15), Fault("weights_noise", 450, 0,
            0.5),
            Fault("weights_lost", 600), Fault("shard", 760, 0, 0.2, 140),
        ), shape={"size": 64, "spread": 1.2}, every=((0, 10), (400, 5)), columns=("loss",),
    ),
    tune(
        "blobs-repeats", "a few batches come again and again, then new data at last", "blobs", 117, 1600,
        3e-3, faults=(
            Fault("repeats", 400, 0, 3, 400), Fault("repeats_end", 800, 0, 1, 300), Fault("garbage", 1300,
            2, 2.0),
        ), shape={"size": 96, "spread": 1.5},
    ),
    tune(
        "grammar-weights", "transformer on a grammar, damaged weights and a lost checkpoint",
        "transformer", 104, 1600,
        3e-3, faults=(
            Fault("weight_bits", 300, 0, 400), Fault("weights_noise", 600, 0, 0.3), Fault("weights_part",
            900, 0, 0.5),
            Fault("weights_lost", 1250),
        ), schedule="cosine",
    ),
    tune(
        "waves-faults", "regression: huge inputs, wrong labels, damaged weights", "regression", 118, 2600,
        2e-3, faults=(
            Fault("garbage", 400, 1, 4.0), Fault("labels", 700, 12, 0.6), Fault("weights_noise", 1000, 0,
            0.3),
            Fault("garbage", 1350, 30, 1.6), Fault("weights_noise", 1700, 0, 0.8), Fault("shard", 2100, 0,
            0.3, 500),
        ), shape={"size": 384, "tail": 6.0},
    ),
    tune(
        "plane-small", "denoiser of points in large batches", "denoiser", 119, 2600, 1e-3, faults=(
            Fault("weights_noise", 500, 0, 0.15), Fault("labels", 750, 2, 0.15), Fault("rate", 1000, 2, 30),
            Fault("garbage", 1300, 1, 1.5), Fault("weights_part", 1600, 0, 0.15), Fault("labels", 1900, 70,
            0.08),
            Fault("weights_noise", 2250, 0, 0.3),
        ), shape={"size": 768},
    ),
    tune(
        "plane-creeps", "denoiser: the learning rate creeps up, comes down, creeps up for good",
        "denoiser", 120, 2000,
        1e-3, faults=(
            Fault("rate_creeps", 400, 50, 1.12), Fault("rate_creeps", 900, 70, 1.08), Fault("rate", 1500,
            0, 100, 500),
        ), shape={"size": 256}, columns=("loss", "grad_norm", "learning_rate"),
    ),
    tune(
        "waves-rollback", "regression that spikes, is rolled back and goes on", "regression", 121, 1200,
        2e-3, faults=(
            Fault("weights_noise", 450, 0, 0.8), Fault("rollback", 540), Fault("labels", 850, 5, 1.0),
        ), shape={"size": 256, "tail": 6.0},
    ),
    tune(
        "policy-strange", "GRPO-like: strange prompts, then steps far too large", "policy", 122, 2000, 1e-3,
        faults=(
            Fault("garbage", 600, 2, 12.0), Fault("rate", 1200, 2, 200),
        ), rounding={"loss": "d4"}, shape={"kl": 0.02, "size": 32},
    ),
)  # fmt: skip

OTHERS = (
    tune(
        "markov-bursts", "window LM, gradients wrong for a moment and clipped: the loss does not move",
        "window_lm", 109,
        3000, 1e-3, faults=tuple(Fault("gradient", 300 + 250 * at, 1, 8 * 1.35**at) for at in range(10)),
        shape={"size": 64},
    ),
    tune(
        "blobs-bursts", "noise of many times the gradient, clipped", "blobs", 123, 1800, 2e-3,
        faults=tuple(Fault("gradient_noise", 400 + 230 * at, 1 + at % 2, 7 * 1.5**at,
        100) for at in range(6)),
        shape={"size": 64, "spread": 1.5}, rounding={"grad_norm": "d2"}, clip=0.5,
    ),
    tune(
        "fp16-overflow", "denoiser in fp16 with a loss scaler: growing gradients overflow", "denoiser",
        110, 2000, 1e-3,
        faults=(Fault("louder", 700, 260, 1.06), Fault("gradient", 1400, 6, 3e4)), fp16=True,
        columns=("loss", "grad_norm", "loss_scale", "skipped_iterations"), schedule="linear",
    ),
    tune(
        "fp16-skips", "window LM in fp16: overflows in a row, then a slow collapse", "window_lm", 124,
        1800, 2e-3,
        faults=(Fault("gradient", 400, 4, 1e8), Fault("louder", 900, 120, 1.12, 500)), fp16=True,
        growth=150,
        columns=("loss", "grad_norm", "loss_scale", "skipped_iterations"), shape={"text": "markov"},
    ),
    tune(
        "regression-nan", "regression, the logarithm of zero, and a loss left out of the line",
        "regression", 111, 2300,
        2e-3, faults=(Fault("no_loss", 500, 2), Fault("log_of_zero", 2200, 3)),
    ),
    tune(
        "blobs-nan", "inputs so large that all is nan", "blobs", 125, 900, 2e-3,
        faults=(Fault("no_loss", 300, 1), Fault("garbage", 850, 1, 1e38)), columns=("loss",),
    ),
    tune(
        "markov-nan", "a loss of infinity, mean of five steps", "window_lm", 126, 500, 2e-3,
        faults=(Fault("no_loss", 250, 5), Fault("log_of_zero", 450, 1)), every=5,
    ),
    *(
        tune(
            name, "a slow rank, and pauses for checkpoints", task, seed, 1700, 1e-3, clock=clock,
            wait_ms=wait,
            faults=tuple(Fault("slow", at, rows, by, rows + 20) for at, rows, by in slow),
            pause_every=pause,
            columns=("loss", "step_seconds"),
        )
        for name, task, seed, clock, wait, pause, slow in (
            ("waits-wall", "factors", 112, "wall", 15.0, 100, ((400, 250, 1.3), (1100, 400, 1.25))),
            ("waits-cpu", "factors", 127, "wall", 12.0, 125, ((400, 300, 1.15), (1000, 400, 1.3))),
            ("waits-short", "factors", 128, "cpu", 1.5, 200, ((400, 50, 2.0), (900, 30, 1.5), (1300, 300,
            1.18))),
            ("waits-more", "regression", 129, "wall", 12.0, 0, ((350, 20, 5.0), (700, 800, 1.16))),
        )
    ),
    tune(
        "zipf-stall", "all layers are frozen by mistake", "window_lm", 130, 2000, 7e-4,
        faults=(Fault("frozen", 250, 0, 1.0, 1750),), shape={"text": "markov", "size": 256},
    ),
    tune(
        "blobs-stall", "all layers but the first are frozen", "blobs", 131, 1500, 5e-4,
        faults=(Fault("frozen", 200, 0, 0.9, 1300),), shape={"size": 256},
    ),
    tune(
        "waves-decay", "weight decay of the wrong sign: the weights grow", "regression", 132, 1600, 1e-3,
        faults=(Fault("decay", 700, 0, -1.6, 900),), shape={"size": 96},
        columns=("loss", "grad_norm", "param_norm"),
    ),
    tune(
        "blobs-grad-rise", "gradients grow for long while nothing improves", "blobs", 133, 2000, 1e-3,
        faults=(Fault("louder", 600, 0, 1.003, 1400),), shape={"size": 96, "spread": 1.5}, clip=None,
    ),
)  # fmt: skip

CLEAN = (
    tune(
        "policy-clean", "GRPO-like, four decimals: a loss near 0 of both signs", "policy", 105, 8000, 1e-3,
        rounding={"loss": "d4"}, shape={"kl": 0.002},
    ),
    tune(
        "policy-flat-clean", "GRPO-like, three decimals: mostly 0", "policy", 141, 6000, 5e-4,
        rounding={"loss": "d3", "grad_norm": "d2"}, shape={"kl": 0.0, "group": 16, "actions": 4},
        logged="last",
    ),
    tune(
        "factors-clean", "ten numbers by Huber's loss, one sample's loss logged, heavy tails", "factors",
        106, 10000,
        1e-3, shape={"tail": 2.5}, logged="micro", micro=1,
    ),
    tune("factors-tails-clean", "ten numbers, heavy tails", "factors", 142, 15000, 5e-4,
    shape={"tail": 1.6}),
    tune(
        "markov-bf16-clean", "window LM, bf16 loss, grad norm of two decimals", "window_lm", 107, 6000,
        2e-3,
        rounding={"loss": "bf16", "grad_norm": "d2"}, schedule="wsd",
    ),
    tune(
        "markov-micro-clean", "window LM, the loss of one micro-batch", "window_lm", 143, 8000, 2e-3,
        logged="micro",
        micro=8, shape=ZIPF, schedule="cosine",
    ),
    tune(
        "markov-intervals-clean", "window LM, a row a step, then every ten, then every four", "window_lm",
        144, 2000,
        2e-3, every=((0, 1), (1200, 10), (1600, 4)), columns=("loss", "grad_norm", "learning_rate"),
    ),
    tune(
        "sft-clean", "window LM on 960 samples in epochs: the loss steps down at each end", "window_lm",
        108, 1500, 4e-3,
        shape={"samples": 960, "size": 16, "hidden": 96},
    ),
    tune(
        "sft-long-clean", "classifier on 640 samples in epochs, to the end of what can be learned",
        "blobs", 145, 3000,
        3e-3, shape={"samples": 640, "size": 64, "spread": 1.5}, schedule="linear",
    ),
    tune(
        "mix-clean", "window LM whose mix of data changes a little, up and down", "window_lm", 146, 4000,
        2e-3,
        shape={"text": "markov", "other": "zipf", "size": 128},
        mix=((900, 0.03), (1700, 0.06), (2500, 0.02), (3300, 0.0)),
    ),
    tune(
        "waves-tails-clean", "regression with heavy tails, no grad norm", "regression", 147, 9000, 1e-3,
        shape={"tail": 2.0}, columns=("loss",), schedule="cycles",
    ),
    tune(
        "waves-square-clean", "regression by squares, evaluated now and then", "regression", 148, 8000,
        1e-3,
        shape={"loss": "square", "tail": 8.0, "size": 64}, columns=("loss", "grad_norm", "eval_loss"),
        eval_every=100,
    ),
    tune("plane-clean", "denoiser of points, in cycles", "denoiser", 149, 8000, 2e-3, schedule="cycles"),
    tune(
        "fp16-clean", "denoiser in fp16: the scale goes up and down as it should", "denoiser", 150, 5000,
        1e-3,
        fp16=True, growth=100, columns=("loss", "grad_norm", "loss_scale", "skipped_iterations"),
    ),
    tune(
        "blobs-clean", "classifier, long warm-up, decay", "blobs", 151, 6000, 1e-3, warm_up=600, decay=0.02,
        shape={"spread": 1.2}, columns=("loss", "grad_norm", "param_norm"), schedule="wsd",
    ),
    tune(
        "waits-clean", "pauses for checkpoints and evaluations, nobody slow", "factors", 152, 2500, 1e-3,
        clock="cpu",
        wait_ms=1.2, pause_every=150, columns=("loss", "step_seconds"), eval_every=75,
    ),
    tune("judges-clean", "generator and judge, narrower", "adversaries", 153, 6000, 7e-4, shape={"size": 40}),
    tune(
        "judges-fast", "generator and judge at a high rate", "adversaries", 154, 4000, 3e-3,
        shape={"size": 24},
    ),
    tune("latent-clean", "KL weight rises, other data", "variational", 155, 4000, 2e-3, shape={"size": 24}),
)  # fmt: skip

TUNE: tuple[Recipe, ...] = (*LOSSES, *OTHERS, *CLEAN)
