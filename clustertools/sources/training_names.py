"""The names that frameworks and loggers give to a run's metrics, and one name for each. Pure.

canonical("optim/total_grad_norm")      "grad_norm"
"""

from __future__ import annotations

import functools
import re

# canonical name: the spellings seen in the frameworks, lower case, spaces and dashes as underscores; where a
# record has several of them, the first in this order counts
_SPELLINGS = {
    "loss": (
        "loss train/loss train_loss training_loss lm_loss train/lm_loss loss/train train/train_loss "
        "lm_loss/train lm_loss_training/lm_loss losses/train/lm_loss loss/train/total learning/loss "
        "loss_metrics/global_avg_loss global_avg_loss train/cross_entropy train/ce_loss "
        "train/crossentropyloss training/loss training/train_loss trainer/loss train.loss loss_train "
        "language_loss train/language_loss train_loss_step train/loss_step train_step_loss "
        "train/step_loss step_loss batch_loss train/batch_loss train_batch_loss reduced_train_loss "
        "losses/loss losses/train optim/loss tr_loss trl train/avg_loss avg_loss average_loss "
        "running_loss"
    ),
    "eval_loss": (
        "eval_loss eval/loss val_loss valid_loss validation_loss val/loss valid/loss validation/loss "
        "dev_loss lm_loss_validation loss/val loss/eval lm_loss_value loss/valid val/lm_loss eval.loss "
        "val.loss loss_val valid_loss_epoch val_loss_epoch loss/eval/total loss/validation eval/avg_loss "
        "eval/val_loss lm_loss_validation/lm_loss_validation validation/lm_loss test_loss test/loss tel"
    ),
    "grad_norm": (
        "grad_norm train/grad_norm gnorm gradient_norm optim/total_grad_norm grad_norm/total train/gnorm "
        "total_norm gradnorm grad_norm/train global_grad_norm train/grad_norm/global optim/grad_norm "
        "l2_norm/grad/global grad_norm/grad_norm learning/grad_norm grad/norm/total grad/norm l2_grads "
        "training/grad_norm train/gradient_norm grad_2.0_norm_total train/total_grad_norm "
        "optim/total_norm actor/grad_norm grad_norm_total total_grad_norm train_grad_norm gradients/norm "
        "norm"
    ),
    "param_norm": (
        "param_norm params_norm parameter_norm weight_norm pnorm train/param_norm params_norm/params_norm "
        "learning/param_norm params/norm/total l2_params train/params_norm weights_norm"
    ),
    "loss_scale": (
        "loss_scale loss_scaling train/loss_scale lossscale loss_scale/loss_scale training/loss_scale "
        "grad_scale grad_scaler_scale scaler_scale amp_scale loss_scaler"
    ),
    "learning_rate": (
        "learning_rate lr train/lr train/learning_rate optim/learning_rate_group0 optim/lr "
        "optim/lr_(group_0) lr_group0 learning_rate/train learning_rate_group_0 optim/learning_rate "
        "learning_rate/learning_rate learning/current_learning_rate training/lr training/learning_rate "
        "train_lr lr_adamw lr_adam lr_sgd lr_adamw/pg1 lr_adam/pg1 optimizer/lr actor/lr lr/group_0 "
        "trainer/lr"
    ),
    "throughput_tokens_per_second": (
        "throughput_tokens_per_second tokens_per_second tokens_per_sec tps wps tok/s toks/s tok/sec "
        "tokens/s tokens/sec tokens/second tokens_per_s throughput/device/tokens_per_second "
        "throughput/device/tps throughput(tps) throughput/tokens_per_second throughput/tokens_per_sec "
        "throughput/device/tokens_per_sec train_tokens_per_second tokens_per_gpu_per_second "
        "train/tokens_per_second train/tokens_per_sec perf/per_device_tokens_per_sec "
        "perf/tokens_per_second tokens/s/device tokens_per_sec_per_gpu tokens_per_second_per_gpu "
        "tokens/gpu/second tok_per_sec tok_per_s token_throughput tgs"
    ),
    "step_seconds": (
        "step_seconds step_time step_time_s step_time_seconds iter_time iteration_time dt time_per_step "
        "sec/step s/step batch_time iter_time_(s) elapsed_time_per_iteration_(s) train_step_timing_in_s "
        "time_per_iteration seconds_per_step iter_seconds step_time_(s) iteration_time_(s) "
        "iteration_time/iteration_time time/step time/iter time_per_iter sec_per_step secs_per_step "
        "s_per_step sec/iter s/iter s/it sec/it seconds/step seconds_per_iteration perf/step_time_seconds "
        "perf/step_time train/step_time timing/seconds timing_s/step iter_time_s step_duration "
        "step_duration_s time/train_step"
    ),
    "step_milliseconds": (
        "step_milliseconds ms/step ms_per_step ms/iter ms/it ms_per_iter step_time_ms step_time_(ms) "
        "iter_time_ms iter_time_(ms) iteration_time_ms iteration_time_(ms) time_per_step_ms "
        "time_per_step_(ms) step_ms dt_ms elapsed_time_per_iteration_(ms) elapsed_time_per_iteration_ms "
        "time_per_iteration_(ms) iter_ms milliseconds_per_step"
    ),
    "steps_per_second": (
        "steps_per_second steps/sec steps/s steps_per_sec it/s it/sec iter/s iters/sec "
        "iterations_per_second timing/steps_per_second iterations/sec train_steps_per_second ups"
    ),
    "skipped_iterations": "number_of_skipped_iterations skipped_iterations",
    "nan_iterations": "number_of_nan_iterations nan_iterations",
    "epoch": "epoch train/epoch current_epoch trainer/epoch epochs",
    "tokens": (
        "tokens total_tokens consumed_tokens num_tokens throughput/total_tokens tokens_seen n_tokens "
        "num_input_tokens_seen train/tokens train/num_tokens total_num_tokens"
    ),
    "samples": "consumed_samples samples num_samples examples_seen num_examples",
    "eval_perplexity": (
        "lm_loss_ppl eval_perplexity eval/perplexity val_ppl valid_ppl val_perplexity val/ppl"
    ),
    "perplexity": "ppl perplexity train/perplexity train_ppl train/ppl train_perplexity",
    "samples_per_second": "samples_per_second samples/sec currsamplespersec train_samples_per_second",
    "tflops_per_gpu": "throughput_per_gpu_(tflop/s/gpu) tflops throughput_per_gpu_(tflops)",
}
_CANONICAL = {
    spelling: (name, rank)
    for name, words in _SPELLINGS.items()
    for rank, spelling in enumerate(words.split())
}
CANONICAL_NAMES = frozenset(_SPELLINGS)
_UNKNOWN = 1000


@functools.lru_cache(maxsize=4096)
def canonical_rank(name: str) -> tuple[str, int]:
    """The canonical name of a metric, and how sure that spelling is: the lowest of a record counts."""
    plain = re.sub(r"[\s-]+", "_", name.strip().lower())
    return _CANONICAL.get(plain) or (re.sub(r"[^a-z0-9]+", "_", plain).strip("_")[:80], _UNKNOWN)


@functools.lru_cache(maxsize=4096)
def canonical(name: str) -> str:
    """The canonical name of a metric, or its own in lower case with everything but letters and digits as `_`.

    Throughput keeps the meaning of its source: torchtitan and OLMo print tokens per second of one device,
    fairseq and LLaMA-Factory of the whole job. Compare it only with the same log's other points.
    """
    return canonical_rank(name)[0]


def with_step_seconds(values: dict[str, float]) -> dict[str, float]:
    """The same with the step time in seconds, where it was told in milliseconds or as steps a second."""
    if "step_milliseconds" in values:
        milliseconds = values.pop("step_milliseconds")
        values.setdefault("step_seconds", milliseconds / 1000)
    elif "step_seconds" not in values and values.get("steps_per_second", 0.0) > 0:
        values["step_seconds"] = 1 / values["steps_per_second"]
    return values
