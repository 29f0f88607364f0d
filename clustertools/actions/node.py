"""What may be done to nodes, through a scheduler that knows nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clustertools.actions import Progress, Scene, StepFunction
from clustertools.errors import ActionFailed
from clustertools.model import Action
from clustertools.schedulers import KnowsNodes, NodeState

#: Notes that begin like this are ours; others are never overwritten.
OURS = "clustertools:"


def drain_reason(options: Mapping[str, Any], because: str) -> str:
    """The note beside a drained node: the playbook's, and always one that says whose it is."""
    reason = str(options.get("reason") or because)
    return reason if reason.startswith(OURS) else f"{OURS} {reason}"


def _nodes(scene: Scene, what: str) -> KnowsNodes:
    if not isinstance(scene.scheduler, KnowsNodes):
        raise ActionFailed(f"the scheduler here ({scene.scheduler.kind}) knows no nodes to {what}")
    return scene.scheduler


def _state(scheduler: KnowsNodes, node: str) -> NodeState:
    state = scheduler.nodes().get(node)
    if state is None:
        raise ActionFailed(f"the scheduler knows no node called {node}")
    return state


def _drain(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    """Somebody else's note stays: the node is out of service as it is."""
    scheduler, node = _nodes(scene, "drain"), action.target.node
    reason = drain_reason(action.options, action.because)
    now = _state(scheduler, node)
    if now.is_drained and now.reason and not now.reason.startswith(OURS):
        return Progress(
            "", detail, f"{node} is drained already by somebody else ({now.reason}); left as it is"
        )
    if now.is_drained and now.reason == reason:
        return Progress("", detail, f"{node} is drained already ({reason})")
    scheduler.drain(node, reason)
    return Progress("", detail, f"drained {node} ({reason})")


def _resume(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    """Only a drain of ours is taken back."""
    scheduler, node = _nodes(scene, "take back into service"), action.target.node
    now = _state(scheduler, node)
    if not now.is_drained:
        return Progress("", detail, f"{node} is not drained ({now.state or 'nothing to take back'})")
    if not now.reason.startswith(OURS):
        whose = now.reason or "without a reason"
        raise ActionFailed(f"{node} was drained by somebody else ({whose}): only they may take that back")
    scheduler.resume(node)
    return Progress("", detail, f"took our drain of {node} back (it said: {now.reason})")


def _exclude(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    """A record only: what leaves nodes out is the restart, by its option `exclude`."""
    where = action.target.node or action.target.run
    return Progress("", detail, f"{where} is to be left out by the next restart; nothing was done now")


STEPS: Mapping[str, StepFunction] = {"drain": _drain}
RESUME_STEPS: Mapping[str, StepFunction] = {"resume": _resume}
EXCLUDE_STEPS: Mapping[str, StepFunction] = {"exclude": _exclude}
