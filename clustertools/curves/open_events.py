"""What is open of a run's curve events, for whoever looks again and again and tells people. Pure.

events = OpenEvents(state)
events.take(news)                     what CurveWatch told since the last look
for told in events.told(): ...        open now, and what came and went between two looks, once
events.over                           how those ended that are not open any more
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from clustertools.curves import CurveEvent, Kind, News

#: Of events that are over so many are kept, the newest: the sentence of its end is told by the next look.
OVER_AT_MOST = 8
#: Kinds that do not pass by themselves: a loss that stays high is no recovery.
LASTING: frozenset[Kind] = frozenset({"divergence", "restart", "level_shift"})
#: More open events than this are not kept apart: a run in such a state is told by the first ones.
OPEN_AT_MOST = 8


@dataclass(slots=True)
class Told:
    """One event as people hear of it. `kinds`: what it was called so far, the newest last. `edition` grows
    with what people should read again. `seen`: a look has told it, `renamed`: but not by its newest kind.
    `ended`: how, where nothing more is told of it; `lasts`: but it is not over."""

    event: CurveEvent
    kinds: list[Kind]
    edition: int = 0
    seen: bool = False
    renamed: bool = False
    ended: str = ""
    lasts: bool = False


class OpenEvents:
    """Takes news in; constant memory."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        saved: Mapping[str, Any] = state or {}
        self._open = {told.event.number: told for told in map(_told, saved.get("open", ()))}
        #: Kind -> the sentence that says how the newest of it ended; none for what lasts.
        self.over: dict[str, str] = dict(saved.get("over", {}))

    def take(self, news: News, *, went_back: bool = False, history: bool = False) -> None:
        """`went_back`: the run went back to before the event. `history`: the log is read for the first
        time, and what is over in it already is nobody's news."""
        event = news.event
        told = self._open.get(event.number)
        if told is None:
            if news.change not in ("began", "grew") or len(self._open) >= OPEN_AT_MOST:
                return
            told = self._open[event.number] = Told(event, [event.kind])
        told.event = event
        told.edition += news.change == "grew"
        if event.kind not in told.kinds:
            # what nobody heard of under its earlier name needs no name but the last
            told.kinds = [*(told.kinds if told.seen else ()), event.kind]
            told.renamed = True
        if news.change in ("recovered", "ended"):
            told.ended = how_it_ended(event, went_back=went_back)
            told.lasts = not went_back and event.recovered_step is None and event.kind in LASTING
            if told.seen and not told.renamed:
                self._close(told)
            elif history and not told.seen:
                del self._open[event.number]

    def told(self) -> Iterator[Told]:
        """What is to be told by this look. Each of what came and went since the last one is told once."""
        for told in list(self._open.values()):
            if told.seen and told.ended and not told.renamed:
                self._close(told)
                continue
            told.seen, told.renamed = True, False
            for kind in told.kinds:
                self.over.pop(kind, None)
            yield told

    def is_empty(self) -> bool:
        return not self._open

    def _close(self, told: Told) -> None:
        del self._open[told.event.number]
        for kind in told.kinds:
            self.over.pop(kind, None)
            if not told.lasts:
                self.over[kind] = told.ended
        for old in list(self.over)[:-OVER_AT_MOST]:
            del self.over[old]

    def state(self) -> dict[str, Any]:
        """JSON-ready; `OpenEvents(state)` goes on from it."""
        return {"open": [asdict(told) for told in self._open.values()], "over": dict(self.over)}


def _told(saved: Mapping[str, Any]) -> Told:
    return Told(**{**saved, "event": CurveEvent(**saved["event"])})


def how_it_ended(event: CurveEvent, *, went_back: bool = False) -> str:
    """The end of an event in a sentence."""
    what = in_words(event.metric)
    worst = f"{event.value:.4g}, its level {event.baseline:.4g}, the first bad step {event.step}"
    if event.recovered_step is not None:
        return f"{what} recovered at step {event.recovered_step}: the worst was {worst}"
    if went_back:
        return f"the run went back to before it: the worst of {what} was {worst}"
    return f"{what} did not come back, and this is its level now: the worst was {worst}"


_WORDS = {
    "loss": "the loss", "grad_norm": "the grad norm", "param_norm": "the parameter norm",
    "loss_scale": "the loss scale", "eval_loss": "the evaluation loss", "step_seconds": "the step time",
}  # fmt: skip


def in_words(metric: str) -> str:
    """A metric in a sentence. A name that a site gave is said as it is."""
    return _WORDS.get(metric, metric)
