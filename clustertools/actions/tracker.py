"""Makes a framework resume from the checkpoint that was chosen: repairs its tracker, sets torn ones aside.

Both only rename and add: what was there before can be put back by hand. Both may be asked for again after a
crash and then do nothing. They run where the checkpoint folder is mounted.
"""

from __future__ import annotations

import os

from clustertools.actions.replace import replace_link, replace_text, why_not
from clustertools.errors import ActionFailed
from clustertools.sources.checkpoint_layouts import OURS
from clustertools.sources.checkpoint_tracker import Tracker, read_tracker
from clustertools.sources.checkpoints import CheckpointReport

_REFUSED = OURS[0]
#: What a framework reads when nothing has been saved yet; without it Megatron-LM and DeepSpeed start from the
#: beginning although checkpoints are there.
_DEFAULT_TRACKERS = {
    "megatron": "latest_checkpointed_iteration.txt",
    "megatron-dist": "latest_checkpointed_iteration.txt",
    "deepspeed": "latest",
}


def repair_tracker(folder: str, report: CheckpointReport) -> str:
    """Make the tracker in `folder` name the checkpoint of `report`; in words, what was done.

    The new tracker is written beside the old one and renamed over it, so a reader finds one or the other.
    The old one stays as `NAME.before-clustertools-1` (2, 3 ...). Raises ActionFailed when the report is not
    good, lies elsewhere, or nothing could be written.
    """
    if report.verdict != "good":
        raise ActionFailed(f"{report.path} is {report.verdict}: no tracker is made to name it")
    if os.path.realpath(os.path.dirname(report.path)) != os.path.realpath(folder):
        raise ActionFailed(f"{report.path} does not lie in {folder}")
    try:
        tracker = read_tracker(folder)
        if tracker is None:
            name = _DEFAULT_TRACKERS.get(report.layout)
            if name is None:
                return f"{folder} has no tracker to repair"
            tracker = Tracker(os.path.join(folder, name), "megatron" if "iter" in name else "text", "", False)
        name = os.path.basename(tracker.path)
        if tracker.ok and os.path.realpath(tracker.points_to) == os.path.realpath(report.path):
            return f"{name} already names {report.name}"
        kept = _replace(tracker, report)
    except OSError as exc:
        why = why_not(os.path.join(folder, "tracker"), exc)
        raise ActionFailed(f"could not repair the tracker in {folder}: {why}") from exc
    return f"{name} now names {report.name}" + (f"; the old one is kept as {kept}" if kept else "")


def _content(tracker: Tracker, report: CheckpointReport) -> str:
    """What the framework expects to read. Megatron-LM: an iteration or `release`; others: the name."""
    name = os.path.basename(tracker.path)
    if tracker.kind != "megatron" and name == "latest":
        # DeepSpeed joins it to a path as it is: no line break
        return report.name
    if report.name == "release":
        return "release"
    if report.step is None:
        raise ActionFailed(f"{report.path} tells no step, and {name} needs one")
    return str(report.step)


def _replace(tracker: Tracker, report: CheckpointReport) -> str:
    """Write the new tracker over the old one; the name under which the old one is kept."""
    if tracker.kind == "symlink":
        return replace_link(tracker.path, report.name)
    return replace_text(tracker.path, _content(tracker, report))


def set_aside(path: str) -> str:
    """Rename a refused checkpoint to `NAME.refused-by-clustertools`; in words, what was done.

    Nothing is deleted: renaming it back undoes it. Raises ActionFailed when it cannot be renamed.
    """
    path = path.rstrip("/")
    name = os.path.basename(path)
    if name.endswith(_REFUSED):
        return f"{name} is set aside already"
    target = path + _REFUSED
    if not os.path.lexists(path):
        if os.path.lexists(target):
            return f"{name} is set aside already"
        raise ActionFailed(f"{path} is not there any more")
    number = 1
    while os.path.lexists(target):
        number += 1
        target = f"{path}{_REFUSED}-{number}"
    try:
        os.rename(path, target)
    except OSError as exc:
        raise ActionFailed(f"could not set {path} aside: {why_not(path, exc)}") from exc
    return f"{name} set aside as {os.path.basename(target)}"
