"""How far a node's clock is from the head's, from a few exchanges of the time over the conversation. Pure.

The head sends an order of probe `clock` with its own time as `head_time`; the answer carries it back, with
the times by the node's clock at which the order was read and the answer was written. It is answered at once,
also while another order is being carried out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exchange:
    """One order and its answer: when it left and came back by the head's clock, and the node's two times."""

    sent: float
    node_received: float
    node_sent: float
    received: float

    @property
    def round_trip_seconds(self) -> float:
        """On the way both times together, without the node's own time."""
        return (self.received - self.sent) - (self.node_sent - self.node_received)

    @property
    def offset_seconds(self) -> float:
        return ((self.node_received - self.sent) + (self.node_sent - self.received)) / 2


def offset(exchanges: Iterable[Exchange]) -> tuple[float, float]:
    """(seconds that the node's clock is ahead, at most how wrong that is) by the quickest exchange.

    As NTP does (RFC 5905, section 8): the offset is right when both ways took equally long, and wrong by half
    the round trip when one took all of it. Raises ValueError for no exchange that makes sense.
    """
    good = [one for one in exchanges if math.isfinite(one.offset_seconds) and one.round_trip_seconds >= 0]
    if not good:
        raise ValueError("no exchange of times that makes sense")
    best = min(good, key=lambda one: one.round_trip_seconds)
    return best.offset_seconds, best.round_trip_seconds / 2
