"""What may be done to nodes, through a scheduler that knows nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from clustertools.actions import Progress, Scene, StepFunction
from clustertools.errors import ActionFailed
from clustertools.model import Action

#: Notes that begin like this are ours; others are never overwritten.
OURS = "clustertools:"


@runtime_checkable
class DrainsNodes(Protocol):
    """A scheduler that can take a node out of service."""

    def drain(self, node: str, reason: str) -> None:
        """Let nothing new start on `node`. Idempotent. Raises ActionFailed or Unobservable."""
        ...


def drain_reason(options: Mapping[str, Any], because: str) -> str:
    """The note beside a drained node: the playbook's, and always one that says whose it is."""
    reason = str(options.get("reason") or because)
    return reason if reason.startswith(OURS) else f"{OURS} {reason}"


def _drain(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    if not isinstance(scene.scheduler, DrainsNodes):
        raise ActionFailed(f"the scheduler here ({scene.scheduler.kind}) knows no nodes to drain")
    reason = drain_reason(action.options, action.because)
    scene.scheduler.drain(action.target.node, reason)
    return Progress("", detail, f"drained {action.target.node} ({reason})")


STEPS: Mapping[str, StepFunction] = {"drain": _drain}
