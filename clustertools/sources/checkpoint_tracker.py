"""The small file or link by which a framework remembers which checkpoint to resume from.

    tracker = read_tracker("/data/run7/checkpoints")
    tracker.points_to, tracker.ok, tracker.reason

Megatron-LM and verl keep an iteration in `latest_checkpointed_iteration.txt`, DeepSpeed a folder's name in
`latest`, nanotron a step in `latest.txt`, OLMo and Lightning a link. None of them writes it by rename, so an
empty one is met after a crash.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from clustertools.sources.checkpoint_layouts import OURS

#: In the order in which they are looked for.
TRACKER_NAMES = {
    "latest_checkpointed_iteration.txt": "megatron",
    "latest": "latest",
    "latest.txt": "latest",
    "dlrover_latest.txt": "latest",
    "latest_universal": "latest",
    "last": "latest",
    "last.ckpt": "latest",
}
_CAP_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Tracker:
    """A tracker and what it says. `kind` is megatron, text or symlink.

    `points_to` is the full path of the checkpoint that it names, empty when it names none. `ok` is false
    when it is empty, garbage, or names something that is not there or was refused; `reason` says which.
    """

    path: str
    kind: str
    points_to: str = ""
    ok: bool = True
    reason: str = ""


def read_tracker(folder: str) -> Tracker | None:
    """The folder's tracker, or None. Raises OSError when it cannot be read."""
    for name, kind in TRACKER_NAMES.items():
        path = os.path.join(folder, name)
        if os.path.islink(path):
            return _read_link(folder, path)
        if os.path.isfile(path) and not name.endswith(".ckpt"):
            return _read_text(folder, path, "megatron" if kind == "megatron" else "text")
    return None


def _read_link(folder: str, path: str) -> Tracker | None:
    target = os.readlink(path)
    real = os.path.realpath(path)
    if os.path.dirname(real) != os.path.realpath(folder):
        # a link to somewhere else is a checkpoint that lies elsewhere, or not ours to judge
        return None
    place = os.path.join(folder, os.path.basename(real))
    if not os.path.exists(path):
        return Tracker(path, "symlink", place, False, f"{_base(path)} points to {target!r:.80}, not there")
    return Tracker(path, "symlink", place)


def _read_text(folder: str, path: str, kind: str) -> Tracker:
    with open(path, "rb") as file:
        data = file.read(_CAP_BYTES)
    text = data.decode("utf-8", "replace").strip()
    name = _base(path)
    if not text:
        how = "is empty" if not data else "holds only blanks"
        return Tracker(path, kind, "", False, f"{name} {how}: the framework would refuse it or start over")
    if "\n" in text or len(text) > 255 or not text.isprintable():
        return Tracker(path, kind, "", False, f"{name} holds garbage: {text[:60]!r}")
    if kind == "megatron" and not (text.isdigit() or text == "release"):
        return Tracker(path, kind, "", False, f"{name} holds {text[:60]!r} instead of an iteration")
    places = _places(folder, text)
    if not places:
        return Tracker(path, kind, "", False, f"{name} names {text[:60]!r}, which is not in this folder")
    there = next((p for p in places if os.path.exists(p)), "")
    if not there:
        return Tracker(path, kind, places[0], False, f"{name} names {text[:60]!r}, which is not there")
    return Tracker(path, kind, there)


def _places(folder: str, text: str) -> list[str]:
    """Where the checkpoint may lie that a tracker names, likeliest first."""
    if re.fullmatch(r"\d{1,12}", text, re.ASCII):
        number = int(text)
        # iter_0001000 Megatron-LM, global_step_1000 verl, 1000 nanotron
        names = [
            f"iter_{number:07d}",
            f"global_step_{number}",
            f"global_step{number}",
            text,
            f"step-{number}",
        ]
    else:
        names = [text]
    if os.path.isabs(text):
        inside = os.path.dirname(os.path.realpath(text)) == os.path.realpath(folder)
        names = [os.path.basename(text.rstrip("/"))] if inside else []
    return [os.path.join(folder, n) for n in names if n not in (".", "..") and "/" not in n]


def _base(path: str) -> str:
    return os.path.basename(path)


def is_ours(name: str) -> bool:
    """Whether a name was given by our own actions."""
    return any(mark in name for mark in OURS)
