"""Where messages go: the port that every sink serves, and which sink hears what."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from clustertools.model import Status
from clustertools.sinks.message import KINDS, Message


class Sink(Protocol):
    """A place that messages are sent to.

    `burst` is how many messages one round of delivery may send here; 0 is no limit.
    """

    @property
    def name(self) -> str: ...
    @property
    def burst(self) -> int: ...

    def deliver(self, message: Message, reference: str) -> str:
        """Send, and return the reference to keep: what a later message of the same incident is given.

        `reference` is what the latest delivery for the incident returned, "" before the first. Raises
        DeliveryFailed, `permanent` when trying again cannot help.
        """
        ...


@dataclass(frozen=True, slots=True)
class SinkRule:
    """What one sink wants to hear: of incidents from a status up, of some kinds of news, and of those whose
    key one of the shell patterns `only` matches, or that are on one of `nodes` (neither: of all).

    `remind_seconds`: so often it hears again of what is CRITICAL, open and in nobody's hands; 0 is never.
    """

    minimum: Status = Status.WARNING
    kinds: frozenset[str] = KINDS
    only: tuple[str, ...] = ()
    remind_seconds: float = 0.0
    nodes: frozenset[str] | None = None


def hears(sink_rule: SinkRule, status: Status, keys: Iterable[str]) -> bool:
    """Is this sink meant for an incident of this status with one of these keys?"""
    if status < sink_rule.minimum:
        return False
    only, nodes = sink_rule.only, sink_rule.nodes
    if not only and nodes is None:
        return True
    # "LinkDown:alps/gpu-017/mlx5_3/1": cluster, node and part of the subject
    return any(
        any(fnmatch.fnmatchcase(key, pattern) for pattern in only)
        or (nodes is not None and not nodes.isdisjoint(key.partition(":")[2].split("/")))
        for key in keys
    )


def wants(sink_rule: SinkRule, message: Message, *, told: bool = False) -> bool:
    """Does this sink hear this message?

    `told`: it heard of the incident before. It then hears the rest of the story, whatever the status has
    become: a page whose end is never told is worse than none. An opening begins a new story.
    """
    goes_on = told and message.kind != "opened"
    return message.kind in sink_rule.kinds and (goes_on or hears(sink_rule, message.status, message.keys))
