"""The lines by which training frameworks say that they save, evaluate, resume or end."""

from __future__ import annotations

import re

from clustertools.sources.training_values import Event, EventKind, Line

_CAP = 2048
# the number in checkpoint-500, iter_0000500, global_step500, step-500, step_500
_STEP_IN_PATH = re.compile(r"(?:checkpoint-|iter_|global_step|step[-_]?)(\d{1,15})\b")


def _patterns(
    kind: EventKind, *needles_and_texts: tuple[str, str]
) -> list[tuple[EventKind, str, re.Pattern[str]]]:
    return [(kind, needle, re.compile(text, re.IGNORECASE)) for needle, text in needles_and_texts]


_STEP = r"(?P<step>\d{1,15})"
_PATH = r"(?P<path>[^\s'\"]{1,400})"
#: What each line must have in lower case, and what it looks like. The first match counts.
_PATTERNS = [
    *_patterns(
        "checkpoint_saved",
        # Megatron-LM: "successfully saved checkpoint from iteration     500 to /ckpt [ t 1/8, p 1/4 ]"
        (
            "successfully saved",
            rf"successfully saved checkpoint (?:from|at) iteration\s+{_STEP}(?:\s+to\s+{_PATH})?",
        ),
        # torchtitan: "Finished saving the checkpoint in 0.60 seconds."
        # metaseq: "Finished saving checkpoint to X"
        ("finished saving", rf"finished saving (?:the )?checkpoint(?: to {_PATH})?"),
        # torchtitan: "Last step checkpoint completed in 0.12s"
        ("last step checkpoint", r"last step checkpoint completed"),
        # OLMo-core: "Checkpoint for step 100 saved successfully"
        ("checkpoint for step", rf"checkpoint for step {_STEP} saved"),
        # fairseq: "Saved checkpoint /c/checkpoint_1_100.pt (epoch 1 @ 100 updates, ...) ..."
        ("saved checkpoint", rf"saved checkpoint {_PATH} \(epoch \d+ @ {_STEP} updates"),
        # DeepSpeed: "[Torch] Checkpoint global_step10 is ready now!"
        ("is ready now", rf"checkpoint {_PATH} is ready now"),
        # OLMo: "Checkpoint saved to /ckpt/step1000"
        (
            "checkpoint s",
            rf"checkpoint (?:successfully )?saved (?:to|in|as|at) (?:(?:step|iteration) {_STEP}|{_PATH})",
        ),
        # home-made loops: "Saved checkpoint at step 500", "saved checkpoint to out/ckpt.pt"
        (
            "saved",
            r"\bsaved (?:\w+ ){0,2}checkpoint "
            rf"(?:(?:at|for) (?:step|iteration)[ =:]*{_STEP}|(?:to|as|in) {_PATH})",
        ),
    ),
    *_patterns(
        "checkpoint_started",
        # Megatron-LM: "saving checkpoint at iteration     500 to /ckpt in torch_dist format"
        ("saving checkpoint at", rf"\bsaving checkpoint at iteration\s+{_STEP}(?:\s+to\s+{_PATH})?"),
        # Megatron-LM: "scheduled an async checkpoint save at iteration     500 to /ckpt"
        (
            "scheduled an async",
            rf"scheduled an async checkpoint save at iteration\s+{_STEP}(?:\s+to\s+{_PATH})?",
        ),
        # fairseq: "Preparing to save checkpoint for epoch 1 @ 100 updates"
        ("preparing to save", rf"preparing to save checkpoint for epoch \S+ @ {_STEP} updates"),
        # DeepSpeed: "[Torch] Checkpoint global_step10 is about to be saved!"
        ("about to be saved", rf"checkpoint {_PATH} is about to be saved"),
        # HF: "Saving model checkpoint to out/checkpoint-500"   nanoGPT: "saving checkpoint to out"
        # OLMo-core: "Saving checkpoint for step 100 to '/ckpt/step100'..."
        (
            "saving",
            rf"\bsaving (?:the |a )?(?:full |model |model only |state |training )?checkpoint"
            rf"(?: (?:for|at) (?:step|iteration)[ =:]*{_STEP})?(?: (?:to|in) '?{_PATH}|\b)",
        ),
    ),
    *_patterns(
        "resumed",
        # Megatron-LM: "successfully loaded checkpoint from /ckpt [ t 1/8, p 1/4 ] at iteration 500"
        ("checkpoint from", rf"load(?:ed|ing) checkpoint from {_PATH}.{{0,60}} at iteration\s+{_STEP}"),
        # fairseq: "Loaded checkpoint /c/checkpoint_last.pt (epoch 1 @ 100 updates)"
        ("loaded checkpoint", rf"loaded checkpoint {_PATH} \(epoch \d+ @ {_STEP} updates\)"),
        # HF: "  Continuing training from global step 500"
        ("continuing training", rf"continuing training from global step {_STEP}"),
        # home-made loops: "Resuming from step 500", "resumed at iteration 500", "start step=500"
        ("resum", rf"\bresum(?:e|ed|ing)\b.{{0,80}}?\b(?:step|iteration|iter)[ =:]+{_STEP}\b"),
        ("start", rf"\bstart(?:ing)?[_ ](?:at[_ ])?(?:step|iteration)s?\s?[=:]?\s?{_STEP}\b"),
        # nanoGPT: "Resuming training from out"   HF: "Resuming from checkpoint out/checkpoint-500"
        ("resuming", rf"\bresuming (?:training )?from (?:checkpoint:? )?{_PATH}"),
        # torchtitan: "Loading the checkpoint from /ckpt/step-500."
        # OLMo: "Loading checkpoint from '/ckpt/step1000'"
        ("loading", rf"\bloading (?:the )?checkpoint from '?{_PATH}"),
    ),
    *_patterns(
        "finished",
        # Megatron-LM: "[after training is done] datetime: ...", "exiting program at iteration 500"
        ("after training is done", r"\[after training is done\]"),
        ("exiting program", rf"exiting program at iteration\s+{_STEP}"),
        # fairseq: "done training in 123.4 seconds"
        ("done training in", r"\bdone training in\b"),
        # HF: "Training completed. Do not forget to share your model"   OLMo: "... INFO Training complete"
        ("training", r"(?:^|[\]|>-]|\bINFO)\W*training (?:is |has )?(?:complete|completed|finished|done)\b"),
        # Lightning: "`Trainer.fit` stopped: `max_steps=1000` reached."
        ("trainer.fit", r"`trainer\.fit` stopped: "),
    ),
    *_patterns(
        "evaluation",
        # HF: "***** Running Evaluation *****"
        ("running", r"\*{3,} running (?:evaluation|prediction)"),
        # fairseq: 'begin validation on "valid" subset'   others: "Running validation", "Starting evaluation"
        ("ation", r"\b(?:begin|beginning|start|starting|running) (?:validation|evaluation)\b"),
        # Megatron-LM: "Evaluating on 1024 samples"   OLMo: "Running evaluation for 'v3'..."
        ("evaluating", r"^\W*evaluating (?:on|iter|model|at)\b"),
    ),
]
# torchtitan: "Training starts at step 501", one more than the checkpoint's; a fresh run says 1
_TITAN_START = re.compile(r"\btraining starts at step (\d{1,15})", re.IGNORECASE)
#: One of these is in every line that a pattern can match: asked first, since most lines have none.
_MARKS = ("heckpoint", "esum", "raining", "start", "Start", "`Trainer.fit`", "valuat", "alidation", "exiting")


def event_of(line: Line) -> Event | None:
    """The event that a line tells of, or None."""
    text = line.text[:_CAP]
    if not any(mark in text for mark in _MARKS):
        return None
    if match := _TITAN_START.search(text):
        step = int(match[1]) - 1
        if step < 1:
            return None
        return Event("resumed", step, text.strip()[:200], "", line.time, line.rank, line.offset_bytes)
    low = text.lower()
    for kind, needle, pattern in _PATTERNS:
        match = pattern.search(text) if needle in low else None
        if match is None:
            continue
        groups = match.groupdict()
        path = (groups.get("path") or "").rstrip(".,;:!…")
        step_text = groups.get("step")
        if step_text is None and (inside := _STEP_IN_PATH.search(path)):
            step_text = inside[1]
        step = int(step_text) if step_text else None  # type: ignore[assignment]
        return Event(kind, step, text.strip()[:200], path, line.time, line.rank, line.offset_bytes)
    return None
