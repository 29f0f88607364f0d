"""The runs that detectors are scored on. Nobody tunes on them: other models, data, faults and seeds."""

from __future__ import annotations

from typing import Any

from tests.lab.loss_runs.training import Fault, Recipe


def score(name: str, about: str, task: str, seed: int, rows: int, lr: float, **more: Any) -> Recipe:
    return Recipe(name, "score", about, task, seed, rows, lr, **more)


LIBRARY = {"text": "library", "size": 24, "length": 24}
WINDOW = {"text": "library", "size": 192, "context": 6, "hidden": 64}

LOSSES = (
    score(
        "library-transformer",
        "transformer on library sources: damaged weights, a bad batch, a poisoned shard",
        "transformer", 201, 1500, 3e-3, faults=(
            Fault("weights_noise", 250, 0, 0.8), Fault("garbage", 450, 1, 1.0),
            Fault("square_scaled", 650, 0, 1e-4), Fault("shard", 900, 20, 1.0), Fault("optimizer_lost",
            1100),
            Fault("rate", 1300, 3, 150),
        ), shape={**LIBRARY, "other": "grammar"}, schedule="cosine",
    ),
    score(
        "library-window", "window LM on library sources: noise in labels, damaged weights and moments",
        "window_lm",
        202, 2600, 3e-3, faults=(
            Fault("labels", 300, 8, 0.3), Fault("weights_noise", 550, 0, 0.5), Fault("moment_bits", 850, 0,
            400),
            Fault("labels", 1200, 150, 0.12), Fault("garbage", 1550, 2, 0.3), Fault("weight_bits", 1800, 0,
            150),
            Fault("weights_part", 2050, 0, 0.6), Fault("weights_lost", 2350),
        ), shape={**WINDOW, "size": 512}, schedule="wsd", ),
    score(
        "library-bf16", "window LM, losses in bf16, mean of four steps, every interval another fault",
        "window_lm",
        203, 1800, 2e-3, faults=(
            Fault("weights_noise", 300, 0, 0.5), Fault("garbage", 600, 1, 0.5), Fault("rate", 850, 2, 100),
            Fault("labels", 1150, 30, 0.2), Fault("weights_noise", 1450, 0, 0.8),
        ), shape={**WINDOW, "size": 64}, every=4, rounding={"loss": "bf16", "grad_norm": "d2"},
        schedule="cosine",
    ),
    score(
        "shapes-shards", "convolutional network: a poisoned shard, label noise, inputs far too large",
        "shapes", 204,
        2200, 2e-3, faults=(
            Fault("repeats", 350, 0, 8, 300), Fault("repeats_end", 700, 0, 1, 200), Fault("garbage", 950,
            1, 2.5), Fault("labels", 1100, 60, 0.3),
            Fault("shard", 1250, 300, 0.3), Fault("weights_noise", 1800, 0, 0.7),
        ), shape={"size": 48}, schedule="linear", every=3,
    ),
    score(
        "shapes-every-10", "the same, logged every ten steps, then every five, without grad norms",
        "shapes", 205,
        900, 2e-3, faults=(
            Fault("weights_noise", 150, 0, 1.5, 150), Fault("labels", 330, 4, 0.6), Fault("weights_lost",
            480),
            Fault("shard", 700, 12, 0.8),
        ), shape={"size": 24}, every=((0, 10), (420, 5)), columns=("loss",),
    ),
    score(
        "copying-optimizer", "recurrent network copies: optimizer states scaled, lost, flipped", "copying",
        206, 2400,
        4e-3, faults=(
            Fault("square_scaled", 700, 0, 1e-3), Fault("weights_noise", 1000, 0, 0.12),
            Fault("mean_scaled", 1300, 0, 4), Fault("weights_part", 1600, 0, 0.01), Fault("rate", 1950, 2,
            5),
        ), shape={"size": 64},
    ),
    score(
        "variational-mixed", "variational autoencoder: inputs, weights, another mix of data to stay",
        "variational",
        207, 2400, 2e-3, faults=(
            Fault("garbage", 700, 1, 2.0), Fault("weights_noise", 950, 0, 0.25), Fault("garbage", 1200, 5,
            1.6),
            Fault("weights_noise", 1450, 0, 0.4), Fault("shard", 1800, 0, 0.1, 600),
        ), shape={"size": 128},
    ),
    score(
        "adversaries-shards", "generator and judge: other data for a while, a lost generator",
        "adversaries", 208, 2400,
        1e-3, faults=(
            Fault("shard", 600, 40, 0.8), Fault("weights_part", 1100, 0, 0.3), Fault("weights_noise", 1700,
            0, 0.8),
        ), shape={"size": 128},
    ),
    score(
        "quantiles-faults", "quantile regression: huge inputs, wrong labels, repeated data that run out",
        "regression",
        209, 2600, 2e-3, faults=(
            Fault("garbage", 400, 1, 8.0), Fault("labels", 700, 1, 1.0), Fault("repeats", 1000, 0, 1, 500),
            Fault("repeats_end", 1500, 0, 1, 400), Fault("weights_noise", 2000, 0, 0.3),
            Fault("garbage", 2350, 20, 2.5),
        ), shape={"loss": "quantile", "tail": 6.0, "size": 96, "noise": 0.15},
    ),
    score(
        "pictures-rate", "denoiser of pictures: the learning rate creeps up until all is lost", "denoiser",
        210, 1500,
        2e-3, faults=(
            Fault("rate", 400, 4, 12), Fault("weights_noise", 700, 0, 0.15), Fault("rate_creeps", 950, 160,
            1.035),
            Fault("rate", 1300, 0, 400, 200),
        ), shape={"pictures": True, "size": 96}, columns=("loss", "grad_norm", "learning_rate"),
    ),
    score(
        "pictures-old-weights",
        "denoiser: a resume from an early checkpoint, then from none, then all is lost",
        "denoiser", 211, 1700, 1e-3, faults=(
            Fault("old_weights", 500), Fault("weights_lost", 900), Fault("weights_lost", 1400),
        ), shape={"pictures": True, "size": 64}, schedule="cosine", logged="last", every=3,
    ),
    score(
        "library-lost", "window LM resumed without weights; before it a resume without the optimizer",
        "window_lm", 212,
        1500, 1e-3, faults=(Fault("optimizer_lost", 400), Fault("weights_lost", 800), Fault("data_again",
        1300)),
        shape=WINDOW, columns=("loss",), every=2,
    ),
    score(
        "variational-small", "the same in large batches: small disturbances", "variational", 216, 2600,
        1e-3,
        faults=(
            Fault("weights_noise", 600, 0, 0.15), Fault("garbage", 850, 1, 1.4), Fault("labels", 1100, 6,
            0.06),
            Fault("shard", 1350, 12, 0.05), Fault("weights_part", 1600, 0, 0.1), Fault("weight_bits", 1850,
            0, 6),
            Fault("labels", 2100, 1, 0.3), Fault("weights_noise", 2350, 0, 0.2),
        ), shape={"size": 512},
    ),
    score(
        "variational-smaller", "large batches again: disturbances of a tenth, many of one row",
        "variational", 219,
        3000, 1e-3, faults=(
            Fault("labels", 500, 5, 0.02), Fault("garbage", 700, 1, 1.5), Fault("shard", 900, 10, 0.03),
            Fault("labels", 1100, 1, 0.1), Fault("weights_part", 1300, 0, 0.06), Fault("garbage", 1550, 1,
            1.3),
            Fault("labels", 1750, 2, 0.03), Fault("weight_bits", 1950, 0, 2), Fault("garbage", 2150, 1,
            1.9),
            Fault("labels", 2350, 30, 0.015), Fault("shard", 2600, 0, 0.035, 400),
        ), shape={"size": 640}, schedule="cosine",
    ),
    score( "pictures-small", "denoiser in large batches: small disturbances", "denoiser", 217, 2600, 1e-3,
        faults=(
            Fault("weights_noise", 500, 0, 0.07), Fault("labels", 750, 1, 0.15), Fault("rate", 1000, 2, 20),
            Fault("garbage", 1250, 1, 2.0), Fault("weights_part", 1500, 0, 0.08), Fault("labels", 1750,
            80, 0.06),
            Fault("square_scaled", 2050, 0, 1e-3), Fault("weights_noise", 2350, 0, 0.1),
        ), shape={"pictures": True, "size": 512}, schedule="linear",
    ),
    score(
        "library-quiet", "window LM, each row the mean of three large batches: small disturbances",
        "window_lm", 218,
        1400, 2e-3, faults=(
            Fault("labels", 300, 4, 0.06), Fault("weights_noise", 480, 0, 0.3), Fault("garbage", 650, 2,
            0.06),
            Fault("rate", 820, 1, 60), Fault("labels", 1000, 70, 0.05), Fault("shard", 1200, 0, 0.05, 200),
        ), shape={**WINDOW, "size": 512, "other": "zipf"}, every=3, schedule="cosine",
    ),
    score(
        "absolute-rollback", "regression by absolute errors: it spikes, is rolled back, and goes on",
        "regression", 213,
        1300, 2e-3, faults=(
            Fault("weights_noise", 500, 0, 0.9), Fault("rollback", 620), Fault("weights_noise", 900, 0,
            0.5),
        ), shape={"loss": "absolute", "tail": 5.0, "size": 96},
    ),
    score(
        "shapes-divergence",
        "convolutional network without clipping: far too high a learning rate, to stay", "shapes",
        214, 1100, 2e-3, faults=(Fault("rate", 700, 0, 300),), shape={"size": 32}, clip=None,
    ),
    score(
        "policy-faults", "GRPO-like: rewards of another task, a damaged policy", "policy", 215, 2000, 1e-3,
        faults=(
            Fault("garbage", 700, 3, 10.0), Fault("rate", 1300, 2, 300),
        ), shape={"actions": 12, "size": 32, "kl": 0.02}, rounding={"loss": "d4"},
    ),
)  # fmt: skip

OTHERS = (
    score(
        "shapes-bursts", "one rank's gradient is wrong for a row or two; clipping saves the loss",
        "shapes", 221, 2800,
        1e-3, faults=tuple(Fault("gradient", 300 + 260 * at, 1 + at % 2, 9 * 1.35**at,
        100) for at in range(9)),
        shape={"size": 64}, schedule="linear",
    ),
    score(
        "copying-bursts", "noise of many times the gradient, clipped", "copying", 222, 1900, 2e-3,
        faults=tuple(Fault("gradient_noise", 500 + 230 * at, 1, 8 * 1.5**at, 100) for at in range(6)),
        shape={"size": 64}, rounding={"grad_norm": "d2"}, clip=0.5,
    ),
    score(
        "library-nan", "window LM: a loss of infinity, then of nan in all weights", "window_lm", 223, 900,
        2e-3,
        faults=(Fault("no_loss", 350, 1), Fault("no_loss", 550, 6), Fault("log_of_zero", 860, 1)),
        shape={**WINDOW, "size": 64},
    ),
    score(
        "variational-nan", "variational autoencoder: inputs so large that the loss is infinite",
        "variational", 224,
        1000, 2e-3, faults=(Fault("garbage", 940, 2, 1e30),), shape={"size": 64}, columns=("loss",),
    ),
    score(
        "copying-nan", "logarithm of zero, mean of five steps", "copying", 225, 500, 2e-3,
        faults=(Fault("no_loss", 220, 2), Fault("log_of_zero", 470, 1, 0.0)), shape={"size": 16}, every=5,
    ),
    score(
        "pictures-fp16", "denoiser in fp16: growing gradients, the loss scale falls and falls", "denoiser",
        226, 2200,
        1e-3, faults=(
            Fault("gradient", 600, 5, 1e7), Fault("louder", 1000, 200, 1.08, 500), Fault("gradient", 1800,
            4, 3e4),
        ), shape={"pictures": True}, fp16=True, columns=("loss", "grad_norm", "loss_scale",
        "skipped_iterations"),
    ),
    score(
        "library-fp16", "window LM in fp16, the optimizer's state is lost in a cast, and the scale falls",
        "window_lm",
        227, 1800, 2e-3, faults=(Fault("louder", 600, 150, 1.1, 400), Fault("weights_noise", 1300, 0, 0.7)),
        shape={**WINDOW, "size": 64}, fp16=True, columns=("loss", "grad_norm", "loss_scale"), growth=150,
    ),
    *(
        score(
            f"slow-{clock}-{seed}", f"a slow rank, by the {word}; pauses for checkpoints and evaluation",
            task, seed,
            1700, 1e-3, faults=tuple(Fault("slow", at, rows, by, rows + 20) for at, rows, by in slow),
            clock=clock,
            wait_ms=wait, pause_every=pause, columns=("loss", "step_seconds"),
        )
        for seed, clock, word, task, wait, pause, slow in (
            (231, "wall", "wall clock", "factors", 12.0, 150, ((400, 200, 1.18), (1000, 300, 1.25))),
            (232, "wall", "wall clock", "regression", 15.0, 100, ((500, 600, 1.14),)),
            (233, "cpu", "processor's clock", "factors", 1.5, 250, ((350, 60, 2.5), (800, 40, 1.5), (1200,
            450, 1.2))),
            (234, "wall", "wall clock", "factors", 20.0, 125, ((400, 250, 1.4), (1100, 400, 1.25))),
            (235, "wall", "wall clock", "denoiser", 15.0, 0, ((600, 25, 4.0), (1000, 500, 1.12))),
        )
    ),
    score(
        "shapes-stall", "all layers but the first are frozen by mistake", "shapes", 241, 1800, 5e-4,
        faults=(Fault("frozen", 350, 0, 0.999, 1450),), shape={"size": 48},
    ),
    score(
        "copying-stall", "the loader gives one batch again and again, with tiny steps after", "copying",
        242, 2200,
        2e-3, faults=(Fault("frozen", 300, 0, 1.0, 1900),), shape={"size": 32}, every=2,
    ),
    score(
        "quantiles-decay", "weight decay of the wrong sign: the weights grow", "regression", 243, 1600,
        1e-3,
        faults=(Fault("decay", 600, 0, -1.5, 1000),), shape={"loss": "quantile", "size": 64},
        columns=("loss", "grad_norm", "param_norm"),
    ),
    score(
        "shapes-grad-rise", "label noise and no decay: the gradient grows for long while nothing improves",
        "shapes",
        244, 2000, 1e-3, faults=(Fault("louder", 700, 0, 1.0025, 1300),), shape={"size": 48}, clip=None,
    ),
    score(
        "pictures-bump", "the learning rate creeps up and comes down: slow bumps", "denoiser", 245, 2000,
        1e-3,
        faults=(Fault("rate_creeps", 500, 45, 1.13), Fault("rate_creeps", 1200, 60, 1.09)),
        shape={"pictures": True, "size": 128},
    ),
)  # fmt: skip

CLEAN = (
    score("clean-library", "window LM, cosine", "window_lm", 251, 5000, 2e-3, shape=WINDOW,
    schedule="cosine"),
    score(
        "clean-library-micro", "window LM, the loss of one micro-batch", "window_lm", 252, 5000, 2e-3,
        shape={**WINDOW, "size": 64}, logged="micro", micro=8, schedule="wsd",
    ),
    score(
        "clean-library-bf16", "window LM, bf16 losses, grad norms of two decimals, a long warm-up",
        "window_lm", 253, 4000, 2e-3, shape={**WINDOW, "size": 128}, rounding={"loss": "bf16",
        "grad_norm": "d2"},
        warm_up=400,
    ),
    score(
        "clean-transformer", "transformer, logged every step, then every ten", "transformer", 254, 1000,
        2e-3,
        shape=LIBRARY, every=((0, 1), (800, 10)), columns=("loss", "grad_norm", "learning_rate"),
        schedule="cosine",
    ),
    score(
        "clean-finetune", "transformer on 512 samples in epochs: stairs", "transformer", 255, 900, 2e-3,
        shape={**LIBRARY, "samples": 512}, schedule="linear",
    ),
    score(
        "clean-finetune-window", "window LM on 1920 samples in epochs", "window_lm", 256, 3000, 3e-3,
        shape={**WINDOW, "size": 32, "samples": 1920}, columns=("loss", "grad_norm", "eval_loss"),
        eval_every=60,
    ),
    score(
        "clean-policy", "GRPO-like, four decimals, both signs", "policy", 257, 5000, 1e-3,
        shape={"actions": 12, "group": 4, "kl": 0.002}, rounding={"loss": "d4"},
    ),
    score(
        "clean-policy-flat", "GRPO-like, three decimals: mostly 0", "policy", 258, 4000, 5e-4,
        shape={"actions": 5, "group": 16, "kl": 0.0}, rounding={"loss": "d3", "grad_norm": "d2"},
        logged="last",
    ),
    score("clean-adversaries", "generator and judge", "adversaries", 259, 3500, 1e-3, shape={"size": 64}),
    score(
        "clean-variational", "KL weight rises over 2000 steps", "variational", 260, 4000, 1e-3,
        shape={"anneal": 2000, "size": 64}, schedule="cosine", columns=("loss", "grad_norm", "param_norm"),
    ),
    score(
        "clean-quantiles", "quantile regression with heavy tails", "regression", 261, 6000, 1e-3,
        shape={"loss": "quantile", "tail": 2.2}, columns=("loss",),
    ),
    score(
        "clean-absolute-single", "absolute errors of one sample", "regression", 262, 5000, 1e-3,
        shape={"loss": "absolute", "tail": 3.0}, logged="micro", micro=1,
    ),
    score(
        "clean-pictures", "denoiser, learning rate in cycles", "denoiser", 263, 6000, 2e-3,
        shape={"pictures": True, "size": 32}, schedule="cycles",
    ),
    score(
        "clean-pictures-fp16", "denoiser in fp16, the scale goes up and down as it should", "denoiser",
        264, 4000, 1e-3,
        shape={"pictures": True}, fp16=True, growth=120,
        columns=("loss", "grad_norm", "loss_scale", "skipped_iterations"),
    ),
    score("clean-copying", "recurrent network: a plateau, then it understands", "copying", 265, 3000, 3e-3),
    score(
        "clean-mix", "window LM whose mix of data changes a little, up and down", "window_lm", 266, 4000,
        2e-3,
        shape={**WINDOW, "other": "zipf"}, mix=((1000, 0.02), (1800, 0.05), (2600, 0.0), (3300, 0.03)),
    ),
    score(
        "clean-shapes", "convolutional network, mean of four steps, warm-up and decay", "shapes", 267,
        2000, 2e-3,
        every=4, schedule="wsd", warm_up=200, columns=("loss", "grad_norm", "param_norm"), decay=0.01,
    ),
    score(
        "clean-slow", "pauses for checkpoints and evaluations, nobody slow", "factors", 268, 2500, 1e-3,
        clock="cpu",
        wait_ms=1.5, pause_every=120, columns=("loss", "step_seconds"), eval_every=60,
    ),
    score(
        "clean-steps-cpu", "a clean pace by the processor's clock, pauses for checkpoints", "factors", 270,
        16000, 1e-3, clock="cpu", wait_ms=0.6, pause_every=400, columns=("step_seconds",),
    ),
    score(
        "clean-steps-wall", "a clean pace by the wall clock, pauses for checkpoints", "regression", 271,
        16000, 1e-3, clock="wall", wait_ms=1.5, pause_every=500, columns=("step_seconds",),
    ),
)  # fmt: skip

SCORE: tuple[Recipe, ...] = (*LOSSES, *OTHERS, *CLEAN)
