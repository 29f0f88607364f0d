"""Where messages go: the port that every sink serves, and which sink hears what."""

from __future__ import annotations

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
    """What one sink wants to hear."""

    minimum: Status = Status.WARNING
    kinds: frozenset[str] = KINDS


def wants(sink_rule: SinkRule, message: Message, *, told: bool = False) -> bool:
    """Does this sink hear this message?

    `told`: it heard of the incident before. It then hears the rest of the story, whatever the status has
    become: a page whose end is never told is worse than none. An opening begins a new story.
    """
    goes_on = told and message.kind != "opened"
    return message.kind in sink_rule.kinds and (goes_on or message.status >= sink_rule.minimum)
