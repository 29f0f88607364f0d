"""What a link did between the looks: how often it came back, since when it is down.

    history = advance(ctx.past.get("links", {}).get(name), up=True, downs=3, now=now)
    ctx.remember["links"][name] = history

Pure; the history is plain data that a check remembers.
"""

from __future__ import annotations

from typing import TypedDict

#: More returns than this are not kept: they all say the same.
_KEPT = 50


class History(TypedDict):
    """A link's past. `since`: in the present state; `downs`: the counter of going down, None without one.

    `was_up`: it has been up since we look, so somebody uses it; `returns`: when it came back;
    `recovered_at`: when it came back from a drop, 0 if never.
    """

    up: bool
    since: float
    downs: int | None
    was_up: bool
    returns: list[float]
    dropped: bool
    recovered_at: float


def advance(
    past: History | None,
    *,
    up: bool,
    downs: int | None,
    now: float,
    drop_seconds: float,
    window_seconds: float,
) -> History:
    """The history with one more look at the link.

    `downs` counts how often the link went down; a smaller one was cleared, and counts from 0. What
    happened unseen shows in it: a link that is up before and after, and counted two, came back twice. Without
    the counter only what was seen counts. Dropped is a link that was up and has been down for `drop_seconds`
    without a further try; one that tries again begins anew.
    """
    if past is None:
        return History(up=up, since=now, downs=downs, was_up=up, returns=[], dropped=False, recovered_at=0.0)
    grown = None
    if downs is not None and past["downs"] is not None:
        grown = downs - past["downs"] if downs >= past["downs"] else downs
    went_down, came_up = past["up"] and not up, up and not past["up"]
    # the last time that it went down is not a return while it is down
    back = max(grown if grown is not None else int(went_down), int(went_down)) - went_down + came_up
    returns = [*past["returns"], *([now] * min(back, _KEPT))][-_KEPT:]
    again = went_down or came_up or bool(grown)
    since = now if again else past["since"]
    dropped = not up and past["was_up"] and now - since >= drop_seconds
    return History(
        up=up,
        since=since,
        downs=downs,
        was_up=past["was_up"] or up,
        returns=[time for time in returns if now - time < window_seconds],
        dropped=dropped,
        recovered_at=now if past["dropped"] and up else past["recovered_at"],
    )
