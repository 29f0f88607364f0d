"""How logs of loops over epochs write a step: the batch within its epoch, with the number of batches.

The step that is given is `epoch * batches + batch`, so it goes on over the epochs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from clustertools.sources.training_formats import Matcher, Memory, Records, named, point_at
from clustertools.sources.training_values import NUMBER, Line

# Iter(train) [ 10/720]  lr: 9.0e-05  eta: 0:31:46  time: 2.6851  data_time: 0.0077  loss: 2.69
# Epoch(train)  [1][ 50/6250]  lr: 9.0e-05  eta: ...
_MMENGINE = re.compile(
    r"\b(?:Iter|Epoch)\(train\)\s{1,4}(?:\[(\d{1,9})\])?\[\s{0,12}(\d{1,12})/(\d{1,12})\]\s{1,4}"
)
_PAIR = re.compile(rf"([A-Za-z_][\w./]{{0,60}}): ({NUMBER})(?=\s|$)")


def mmengine(line: Line, memory: Memory) -> Records | None:
    """MMEngine and what is built on it, such as XTuner (mmengine/runner/log_processor.py)."""
    match = _MMENGINE.search(line.text) if "(train)" in line.text else None
    if match is None:
        return None
    epoch, step, total = match[1], int(match[2]), int(match[3])
    pairs = [("step_seconds" if n == "time" else n, t) for n, t in _PAIR.findall(line.text, match.end())]
    values = named(pairs)
    if epoch is None:
        return [point_at(line, step, values, total_steps=total)]
    values.setdefault("epoch", float(epoch))
    return [point_at(line, (int(epoch) - 1) * total + step, values)]


# Train Epoch: 0 [ 262144/1000000 (26%)] Loss: 10.9 Data (t): 0.1 Batch (t): 1.2, 1000/s LR: 0.0001
# Train Epoch: 1 [640/60000 (1%)]	Loss: 2.135927
_TRAIN_EPOCH = re.compile(
    r"\bTrain Epoch: (\d{1,9}) \[\s{0,12}([\d,]{1,20})/([\d,]{1,20}) "
    r"\(\s{0,3}\d{1,3}(?:\.\d{1,3})?%\)\]\s{1,8}"
)
# Epoch: [0][  10/5005]	Time  0.361 ( 1.2)	Data  0.001 ( 0.5)	Loss 6.9e+00 (7.0e+00)
_EPOCH_BATCH = re.compile(r"\bEpoch: ?\[(\d{1,9})\] ?\[\s{0,12}(\d{1,12})/(\d{1,12})\]\s{1,8}")
_WORD_NUMBER = re.compile(
    rf"\b(Loss|LR|lr|Time|Batch \(t\)|loss|grad_norm|Grad Norm):?\s{{1,8}}({NUMBER})(?=[\s,;(]|$)"
)
_MEANING = {"Time": "step_seconds", "Batch (t)": "step_seconds"}


def epoch_batches(line: Line, memory: Memory) -> Records | None:
    """open_clip and open_lm (training/train.py), PyTorch's examples (mnist, imagenet): samples or batches."""
    if "poch: " not in line.text:
        return None
    match = _TRAIN_EPOCH.search(line.text) or _EPOCH_BATCH.search(line.text)
    if match is None:
        return None
    pairs = [(_MEANING.get(n, n), t) for n, t in _WORD_NUMBER.findall(line.text, match.end())]
    values = named(pairs[::-1])
    total = int(match[3].replace(",", ""))
    step = int(match[1]) * total + int(match[2].replace(",", ""))
    return [point_at(line, step, {**values, "epoch": float(match[1])})] if values else None


FAMILIES: Mapping[str, Matcher] = {"mmengine": mmengine, "epoch_batches": epoch_batches}
