"""How each training framework writes a step into its log: one matcher per family.

A matcher takes a `Line` and the `Memory` of the lines before, and gives the records that the line holds, or
None when the line is not of its family. The shapes were read in the frameworks' sources, which are named
at each matcher.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from clustertools.sources.training_names import canonical_rank, with_step_seconds
from clustertools.sources.training_values import (
    NUMBER,
    Event,
    Line,
    Point,
    canonical,
    integer,
    number,
)

Records = list[Point | Event]
#: A record of numbers is never longer; a longer line is searched up to here (JSON is read whole).
TEXT_CAP = 16_384


@dataclass(slots=True)
class Memory:
    """What the matchers remember between lines. All of it is JSON-ready.

    `seen`: the names that a Megatron line had, so that one left out is noticed. `bar_total`: the length of
    the progress bar that counts training steps, `bar_sure` once a loss was printed beside it, `bar_step` its
    last position; `bar_last` position and length of whichever bar moved last. `bar_rounds`: for each
    description position, length and how often such a bar was run through, for a loop over the data shows a
    new one every epoch. `columns`: the header of a CSV file, whose cells `separator` parts; `series`: the
    name of a series that its file does not name. `step_key`: the key under which records with a loss tell
    their step. `clock`: the last value of a column that may be a clock, and how often it rose. `unread`:
    lines that look like records and could not be read.
    """

    seen: list[str] = field(default_factory=list)
    bar_total: int = 0
    bar_sure: bool = False
    bar_last: list[int] = field(default_factory=list)
    bar_step: int | None = None
    bar_rounds: dict[str, list[int]] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    separator: str = ","
    series: str = ""
    step_key: str = ""
    clock: list[float] = field(default_factory=list)
    unread: int = 0


def point_at(line: Line, step: int | None, values: Mapping[str, float], **more: Any) -> Point:
    time = more.pop("time", None)
    return Point(
        step,
        time if time is not None else line.time,
        values,
        line.rank,
        offset_bytes=line.offset_bytes,
        **more,
    )


def _whole(text: str | None) -> int | None:
    digits = (text or "").replace(",", "")
    return int(digits) if digits.isdigit() and len(digits) < 16 else None


def named(pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Canonical names and numbers; what is not a number is left out, of a name the surest spelling counts."""
    values: dict[str, float] = {}
    ranks: dict[str, int] = {}
    for name, text in pairs:
        try:
            value = float(text)
        except ValueError:
            if (odd := number(text)) is None:
                continue
            value = odd
        key, rank = canonical_rank(name)
        if key and rank < ranks.get(key, 10**6):
            values[key], ranks[key] = value, rank
    return with_step_seconds(values)


# [2026-01-02 03:04:05.678901] iteration     100/  500000 | consumed samples:       102400 | ... |
_MEGATRON = re.compile(r"\biteration\s{1,12}(\d{1,15})/\s{0,12}(\d{1,15}) \|")
# validation loss at iteration 1000 | lm loss value: 2.1E+00 | lm loss PPL: 8.2E+00 |
_MEGATRON_EVAL = re.compile(
    r"\b(?:validation|test) loss at (?:iteration\s{1,12}(\d{1,15})|the end of training)([^|]*)\|"
)


def megatron(line: Line, memory: Memory) -> Records | None:
    """Megatron-LM (megatron/training/training.py, training_log) and Megatron-DeepSpeed (BLOOM).

    The loss is printed only when its mean is a number, so a line without it tells of a nan. Records of
    several ranks may share one line; one that was torn off before its counters is no evidence of that.
    """
    if "iteration" not in line.text and "loss at" not in line.text:
        return None
    if match := _MEGATRON_EVAL.search(line.text):
        # only the first set of data that the line names
        pairs = _pairs(line.text[match.end() :], "|")
        values = named((name.replace(" value", " validation"), text) for name, text in pairs)
        values.setdefault("eval_loss", next((v for k, v in values.items() if "loss" in k), float("nan")))
        return [point_at(line, _whole(match[1]), values)]
    starts = list(_MEGATRON.finditer(line.text))
    if not starts:
        return None
    ends = [m.start() for m in starts[1:]] + [len(line.text)]
    return [
        _megatron_record(line, m, line.text[m.end() : end], memory)
        for m, end in zip(starts, ends, strict=True)
    ]


def _megatron_record(line: Line, match: re.Match[str], rest: str, memory: Memory) -> Point:
    values = named(_pairs(rest, "|"))
    if "loss" not in values:
        # "loss", "mtp_1 loss", "sop loss": other models than language models name it otherwise
        other = next((v for k, v in values.items() if k.endswith("_loss")), None)
        if other is not None:
            values["loss"] = other
    whole = "skipped_iterations" in values or "nan_iterations" in values
    missing = tuple(n for n in memory.seen if n not in values) if whole else ()
    memory.seen = [n for n in ("loss", "grad_norm") if n in values or n in memory.seen]
    # NeMo counts iterations within an epoch beside the steps of all
    step = integer(values.pop("global_step", None))
    return point_at(
        line, int(match[1]) if step is None else step, values, total_steps=int(match[2]), missing=missing
    )


def _pairs(text: str, separator: str) -> Iterable[tuple[str, str]]:
    for piece in text.split(separator):
        name, colon, value = piece.rpartition(":")
        if colon:
            yield name, value


# [Rank 0] step=10, skipped=0, lr=[1e-05], mom=[[0.9, 0.95]]
_DS_STEP = re.compile(r"\bstep=(\d{1,15}), skipped=(\d{1,15}), lr=\[([^\],]{0,40})")
# epoch=0/micro_step=10/global_step=10, RunningAvgSamplesPerSec=19.4, CurrSamplesPerSec=19.6, MemAllocated=...
_DS_SPEED = re.compile(
    r"global_step=(\d{1,15}), RunningAvgSamplesPerSec=[^,]{1,40}, CurrSamplesPerSec=([^,]{1,40})"
)
# steps: 10 loss: 7.1234 iter time (s): 1.234 samples/sec: 12.345
_DS_PIPE = re.compile(
    rf"\bsteps: (\d{{1,15}}) loss: ({NUMBER}) iter time \(s\): ({NUMBER}) samples/sec: ({NUMBER})"
)
# [deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 65536, reducing to 32768
_DS_OVERFLOW = re.compile(
    rf"OVERFLOW!.{{0,40}}Skipping step\. Attempted loss scale: {NUMBER}, reducing to ({NUMBER})"
)


def deepspeed(line: Line, memory: Memory) -> Records | None:
    """DeepSpeed (runtime/engine.py, utils/timer.py, runtime/pipe/engine.py, runtime/fp16 loss scalers).

    `skipped` counts since the start, unlike Megatron's, so it has its own name here.
    """
    text = line.text
    if "step" not in text:
        return None
    if "step=" in text and (match := _DS_STEP.search(text)):
        pairs = [("skipped_steps_total", match[2]), ("learning_rate", match[3])]
        return [point_at(line, int(match[1]), named(pairs))]
    if "global_step=" in text and (match := _DS_SPEED.search(text)):
        return [point_at(line, int(match[1]), named([("samples_per_second", match[2])]))]
    if "steps: " in text and (match := _DS_PIPE.search(text)):
        names = ("loss", "step_seconds", "samples_per_second")
        return [point_at(line, int(match[1]), named(zip(names, match.groups()[1:], strict=True)))]
    if "OVERFLOW!" in text and (match := _DS_OVERFLOW.search(text)):
        return [point_at(line, None, named([("loss_scale", match[1]), ("skipped_iterations", "1")]))]
    return None


# {'loss': 2.3451, 'grad_norm': 1.25, 'learning_rate': 4.9e-05, 'epoch': 0.12}      (5.x quotes the values)
_HF_PAIR = re.compile(rf"'([\w/@.() -]{{1,80}})': ?'?({NUMBER})'?(?=[,}}])")


def hf_trainer(line: Line, memory: Memory) -> Records | None:
    """Hugging Face Trainer (transformers/trainer_callback.py): Python dicts without a step.

    The step is the progress bar's last position before it; without bars only the epoch tells of progress.
    """
    start = line.text.find("{'")
    if start < 0:
        return None
    values = named(_HF_PAIR.findall(line.text, start))
    if not values.keys() & {"loss", "eval_loss", "train_runtime", "eval_runtime", "epoch"}:
        return None
    if "train_runtime" in values:
        text = line.text[start : start + 200]
        return [Event("finished", memory.bar_step, text, "", line.time, line.rank, line.offset_bytes)]
    if "eval_runtime" in values or "eval_loss" in values:
        values.setdefault("eval_loss", float("nan"))
    elif memory.bar_last:
        # the bar that moved last before a training loss is the one that counts training steps
        if memory.bar_last[1] != memory.bar_total:
            memory.bar_step, memory.bar_total = memory.bar_last
        memory.bar_sure = True
    return [point_at(line, memory.bar_step, values, total_steps=memory.bar_total or None)]


#  12%|█▏        | 120/1000 [02:10<15:55,  1.09s/it]
#  Epoch 0:  12%|█▏ | 12/100 [00:10<01:20, 1.10it/s, v_num=0, train_loss=2.34]
_BAR = re.compile(
    r"(?P<what>[^|%]{0,120}?)\s{0,4}\d{1,3}%\|[^|]{0,400}\| *(?P<n>\d{1,15})/(?P<total>\d{1,15}) "
    r"\[[\d:?]{1,12}<[^,\]]{1,24}, *(?P<rate>[\d.?]{1,20}) ?(?P<unit>s/it|it/s)(?P<more>[^\]]{0,2000})"
)
_EPOCH = re.compile(r"^Epoch:? ?\[?(\d{1,9})(?:/\d{1,9})?\]?:?$")
# the end of a bar that stands before this one on the same line
_BAR_END = re.compile(r"(?:s/it|it/s)[^\]]{0,200}\]")
_EVALUATION_BAR = re.compile(r"^\s*(?:Validation|Validating|Evaluating|Sanity Checking|Testing)\b")
# "  Total optimization steps = 1,000"
_HF_TOTAL = re.compile(r"Total optimization steps = ([\d,]{1,20})\s*$")
_POSTFIX = re.compile(rf"([A-Za-z][\w/.-]{{0,60}})=({NUMBER})(?=[,\s\]]|$)")


#: Descriptions of bars that are told apart.
_BARS_AT_MOST = 32


def progress_bar(line: Line, memory: Memory) -> Records | None:
    """tqdm bars: the Trainer's (no description), Lightning's (`Epoch 0:`), others when they tell a loss.

    Lightning counts batches within an epoch: the step given is `epoch * batches + batch`.
    """
    if "Total opt" in line.text and (match := _HF_TOTAL.search(line.text)):
        memory.bar_total, memory.bar_sure = _whole(match[1]) or 0, True
        return []
    middle = line.text.find("%|")
    bar = _BAR.search(line.text[max(0, middle - 160) : middle + 2600]) if middle >= 0 else None
    if bar is None:
        return None
    what = _BAR_END.split(bar["what"])[-1].strip()
    step, total = int(bar["n"]), int(bar["total"])
    values = named(_POSTFIX.findall(bar["more"]))
    values.pop("v_num", None)
    if (rate := number(bar["rate"])) and rate > 0:
        values.setdefault("step_seconds", rate if bar["unit"] == "s/it" else 1 / rate)
    if _EVALUATION_BAR.match(what):
        return [Event("evaluation", None, what, "", line.time, line.rank, line.offset_bytes)]
    if epoch := _EPOCH.match(what):
        values.setdefault("epoch", float(epoch[1]))
        return [point_at(line, int(epoch[1]) * total + step, values)]
    if what and "loss" not in values:
        return []  # loading, tokenizing: progress of something else
    if not what and not _is_training_bar(memory, step, total):
        return []
    step += _rounds(memory, what, step, total) * total
    if not what:
        memory.bar_step = step
    return [point_at(line, step, values, total_steps=total if memory.bar_sure else None)]


def _is_training_bar(memory: Memory, step: int, total: int) -> bool:
    """The evaluation's bar has no description either; it is shorter, and no training loss follows it."""
    memory.bar_last = [step, total]
    if total != memory.bar_total:
        if memory.bar_sure or total < memory.bar_total:
            return False
        memory.bar_total = total
    return True


def _rounds(memory: Memory, what: str, step: int, total: int) -> int:
    """How often a bar like this was run through before: its end and then a new beginning is an epoch."""
    seen = memory.bar_rounds.get(what)
    if seen is None or seen[1] != total:
        if len(memory.bar_rounds) >= _BARS_AT_MOST:
            memory.bar_rounds.clear()
        memory.bar_rounds[what] = [step, total, 0]
        return 0
    seen[2] += seen[0] == total and step < total
    seen[0] = step
    return seen[2]


# step: 10  loss:  7.12345  grad_norm:  1.2345  memory: 45.67GiB(57.60%)  tps: 7,123  tflops: 412.50  mfu: N/A
_TITAN = re.compile(
    r"\b(validate )?step:\s{1,8}([\d,]{1,20})(?:/([\d,]{1,20}) = [\d.]{1,12}%)?\s{2,8}(?=loss:)"
)
_TITAN_PAIR = re.compile(r"([A-Za-z_][\w/]{0,60}):\s{1,8}([^\s(]{1,40})")


def torchtitan(line: Line, memory: Memory) -> Records | None:
    """torchtitan (torchtitan/components/metrics.py). Two spaces part the fields; `mfu` may be N/A."""
    match = _TITAN.search(line.text) if "step:" in line.text else None
    if match is None:
        return None
    fields = [(n, t.rstrip("%")) for n, t in _TITAN_PAIR.findall(line.text, match.end())]
    if match[1]:
        fields = [("eval_" + n if n == "loss" else n, t) for n, t in fields]
    fields = [("memory_gib", t[:-3]) if t.endswith("GiB") else (n, t) for n, t in fields]
    return [point_at(line, _whole(match[2]), named(fields), total_steps=_whole(match[3]))]


# iter 100: loss 3.1234, time 250.11ms, mfu 35.20%
_NANO_ITER = re.compile(rf"\biter (\d{{1,15}}): loss ({NUMBER}), time ({NUMBER})ms(?:, mfu ({NUMBER})%)?")
# step 2000: train loss 2.9012, val loss 2.9345
_NANO_EVAL = re.compile(rf"\bstep (\d{{1,15}}): train loss ({NUMBER}), val loss ({NUMBER})")


def nanogpt(line: Line, memory: Memory) -> Records | None:
    """nanoGPT (train.py). The mfu is -100 % until it is known."""
    if "loss " not in line.text:
        return None
    if match := _NANO_ITER.search(line.text):
        values = named([("loss", match[2]), ("step_milliseconds", match[3]), ("mfu", match[4] or "")])
        if values.get("mfu", 0.0) < 0:
            del values["mfu"]
        return [point_at(line, int(match[1]), values)]
    if match := _NANO_EVAL.search(line.text):
        return [
            point_at(line, int(match[1]), named([("eval_train_loss", match[2]), ("eval_loss", match[3])]))
        ]
    return None


# s:100 trl:3.1234 lr:0.000600 norm:1.02       s:100 tel:3.2        s:250 eval:0.2450
_LLM_C = re.compile(rf"s:(\d{{1,15}}) (trl|tel|eval):({NUMBER})(?: lr:({NUMBER}))?(?: norm:({NUMBER}))?\s*$")


def llm_c(line: Line, memory: Memory) -> Records | None:
    """The main.log of llm.c (llmc/logger.h): training loss, test loss, HellaSwag accuracy, a line each."""
    match = _LLM_C.match(line.text) if line.text.startswith("s:") else None
    if match is None:
        return None
    name = {"trl": "loss", "tel": "eval_loss", "eval": "eval_accuracy"}[match[2]]
    names = (name, "learning_rate", "grad_norm")
    return [
        point_at(
            line, int(match[1]), named((n, t) for n, t in zip(names, match.groups()[2:], strict=True) if t)
        )
    ]


# 100 train 3.123456      250 val 3.2512      250 hella 0.2463
_NUMBERED = re.compile(rf"(\d{{1,15}}) (train|val|hella) ({NUMBER})\s*$")


def build_nanogpt(line: Line, memory: Memory) -> Records | None:
    """The log.txt of build-nanogpt (train_gpt2.py): a step, what it is, a number."""
    match = _NUMBERED.match(line.text) if line.text[:1].isdigit() else None
    if match is None:
        return None
    name = {"train": "loss", "val": "eval_loss", "hella": "eval_accuracy"}[match[2]]
    return [point_at(line, int(match[1]), named([(name, match[3])]))]


# [step=100/500000,epoch=0]        [step=100/???,epoch=1,eta=3 days, 1:02:03]
# [epoch=1][batch=10/4800]:
OLMO_HEADER = re.compile(
    r"\[(?:step|batch)=([\d,]{1,20})/([\d,]{1,20}|\?{3})(?:,epoch=(\d{1,9}))?[^\]]{0,120}\]:?\s{0,20}$"
)
#     optim/total grad norm=0.21
# 	 Train loss/train/total: 11.9
OLMO_FIELD = re.compile(r"\s{2,20}(?:(?:Train|Eval) )?([A-Za-z][^=:]{0,160})(?:=|: )(\S{1,60})\s{0,20}$")


def olmo(lines: list[str], line: Line) -> Point:
    """A record of OLMo (olmo/train.py) or OLMo-core (ConsoleLoggerCallback), and of Composer
    (loggers/console_logger.py): a header and indented fields."""
    match = OLMO_HEADER.search(lines[0])
    assert match is not None
    fields = [m.groups() for m in map(OLMO_FIELD.match, lines[1:]) if m]
    values = named((str(name), str(text)) for name, text in fields)
    if match[3]:
        values.setdefault("epoch", float(match[3]))
    return point_at(line, _whole(match[1]), values, total_steps=_whole(match[2]))


# epoch 001:    100 / 1000 loss=9.1, nll_loss=8.9, ppl=480.1, ..., num_updates=100, lr=0.0001, gnorm=1.2
_FAIRSEQ_SIMPLE = re.compile(r"\bepoch (\d{1,9}):\s{1,12}\d{1,12} / \d{1,12} (?=[a-z_]{1,40}=)")
# epoch 001 | valid on 'valid' subset | loss 5.1 | ppl 34.2 | ... | num_updates 1000
_FAIRSEQ_TABLE = re.compile(r"\bepoch (\d{1,9}) \| (?=(?:valid on|loss ))")


def fairseq(line: Line, memory: Memory) -> Records | None:
    """fairseq (logging/progress_bar.py, simple and none). `100 / 1000` counts batches of one epoch."""
    if "num_updates" not in line.text:
        return None
    if match := _FAIRSEQ_SIMPLE.search(line.text):
        pairs = [_two(p.partition("=")) for p in line.text[match.end() :].split(", ")]
        return _updates(line, named(pairs), float(match[1]))
    if match := _FAIRSEQ_TABLE.search(line.text):
        rest = line.text[match.end() :]
        kind = "eval_loss" if rest.startswith("valid") else "epoch_mean_loss"
        pairs = [_two(p.strip().rpartition(" ")) for p in rest.split("|")]
        return _updates(line, named((kind if n == "loss" else n, t) for n, t in pairs), float(match[1]))
    return None


def _two(parts: tuple[str, str, str]) -> tuple[str, str]:
    return parts[0], parts[2]


def _updates(line: Line, values: dict[str, float], epoch: float | None) -> Records | None:
    step = integer(values.pop("num_updates", None))
    if step is None:
        return None
    if epoch is not None:
        values.setdefault("epoch", epoch)
    return [point_at(line, step, values)]


# 2021-11-05 00:07:31 | INFO | train_inner | {"epoch": 1, "loss": "5.123", "num_updates": "3000", ...}
_METASEQ = re.compile(r"\| (train_inner|train|valid[\w/-]{0,40}) \| (?=\{)")


def metaseq(line: Line, memory: Memory) -> Records | None:
    """metaseq and fairseq JSON (logging/progress_bar/json_progress_bar.py): numbers as strings, with a tag.

    `train` is the mean of an epoch, so its loss is no step's loss.
    """
    match = _METASEQ.search(line.text[:400]) if "| {" in line.text else None
    data = json_object(line.text[match.end() :]) if match else None
    if match is None or data is None:
        return None
    tag = "valid" if match[1].startswith("valid") else match[1]
    losses = {"train_inner": "loss", "train": "epoch_mean_loss", "valid": "eval_loss"}
    pairs = ((k.removeprefix(tag + "_"), str(v)) for k, v in data.items())
    return _updates(line, named((losses[tag] if n == "loss" else n, t) for n, t in pairs), None)


def json_object(text: str) -> dict[str, Any] | None:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


# step=12 loss=3.4      step 12 | loss 3.4 | lr 1e-4      Step 12/1000 - loss: 3.4      [iter 12] loss: 3.4
_STEP = re.compile(
    r"(?:step|iteration|iter|update)\s{0,4}[:=#]?\s{0,6}"
    r"(\d[\d,]{0,18})(?:\s{0,6}/\s{0,6}(\d[\d,]{0,18}))?(?!\.?\w)"
)
_STEP_WORDS = ("step", "iter", "update")
# what may stand before the word: nothing, or global_step, train_step
_BEFORE_STEP = re.compile(r"(?:^|[^\w/.-])(?:global[_ ]?|train(?:ing)?[_ ])?$")
_KEY_VALUE = re.compile(
    r"(?<![\w/.-])((?:[A-Za-z][\w/.-]{0,40} ){0,2}[A-Za-z][\w/.-]{0,40}?)(\s{0,4}[:=]\s{0,8}|\s{1,8})"
    rf"\$?(?:tensor\()?({NUMBER})(\s?ms\b|s\b|%|[KMBG]\b)?(?![\w]|\.\d)"
)
# | 2543.10 ms |      | 206166 tok/s
_BARE_MS = re.compile(rf"\| *({NUMBER}) ?ms\b")
_BARE_TOKENS = re.compile(rf"({NUMBER}) tok(?:en)?s?/s")
_GENERIC_CAP = 4096


def generic(line: Line, memory: Memory) -> Records | None:
    """Lines of home-made loops, llm.c and nanochat: a step and names with numbers.

    A bare step is believed when it has a total (`step 12/1000`) or begins the line.
    """
    text = line.text[:_GENERIC_CAP]
    match = _find_step(text.lower())
    if match is None:
        return None
    values: dict[str, float] = {}
    rest = text[: match.start()] + "|" + text[match.end() :]
    for words, separator, digits, unit in _KEY_VALUE.findall(rest):
        _generic_pair(values, words, separator, digits, unit)
    if (bare := _BARE_MS.search(rest)) and (value := number(bare[1])) is not None:
        values.setdefault("step_seconds", value / 1000)
    if (bare := _BARE_TOKENS.search(rest)) and (value := number(bare[1])) is not None:
        values.setdefault("throughput_tokens_per_second", value)
    values = with_step_seconds(values)
    if "seconds" in values and "completed step" in text:
        values.setdefault("step_seconds", values.pop("seconds"))  # MaxText
    told = values.keys() & {"loss", "eval_loss", "grad_norm", "learning_rate", "step_seconds"}
    if not told and not match[2] and match.start() > 1:
        return None
    return [
        point_at(line, _whole(match[1].rstrip(",")), values, total_steps=_whole((match[2] or "").rstrip(",")))
    ]


def _find_step(text: str) -> re.Match[str] | None:
    """The first step in `text`, in lower case. Searching for the words is what most lines cost."""
    found = None
    for word in _STEP_WORDS:
        place = text.find(word)
        while place >= 0 and (found is None or place < found.start()):
            match = _STEP.match(text, place)
            if match and _BEFORE_STEP.search(text[max(0, place - 12) : place]):
                found = match
                break
            place = text.find(word, place + 1)
    return found


def _generic_pair(values: dict[str, float], words: str, separator: str, digits: str, unit: str) -> None:
    value = number(digits)
    if value is None:
        return
    unit = unit.strip()
    value *= _SIZES.get(unit, 1)
    parts = words.split()
    # "train loss", "learning rate": the longest ending of the words that is a known name
    for begin in range(len(parts)):
        name = canonical(" ".join(parts[begin:]))
        if name in _GENERIC_NAMES or (name == "time" and unit):
            name = "step_seconds" if name == "time" else name
            values.setdefault(name, value / 1000 if unit == "ms" and name == "step_seconds" else value)
            return
    if (
        separator.strip()
        and (name := canonical(parts[-1]))
        and name not in ("step", "iter", "iteration", "update")
    ):
        values.setdefault(name, value)


#: nanotron (logging.py, human_format) writes 1.31M for a number of tokens.
_SIZES = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9}
_GENERIC_NAMES = frozenset(
    (
        "loss eval_loss grad_norm param_norm loss_scale learning_rate throughput_tokens_per_second "
        "step_seconds step_milliseconds epoch tokens perplexity"
    ).split()
)

Matcher = Callable[[Line, Memory], Records | None]
#: Families whose record is one line, most particular first; `generic` only while none of these was seen.
FAMILIES: Mapping[str, Matcher] = {
    "megatron": megatron,
    "torchtitan": torchtitan,
    "fairseq": fairseq,
    "metaseq": metaseq,
    "hf_trainer": hf_trainer,
    "progress_bar": progress_bar,
    "nanogpt": nanogpt,
    "deepspeed": deepspeed,
    "llm_c": llm_c,
    "build_nanogpt": build_nanogpt,
}
