"""Passes again and again: the clock, systemd, and what an action under way needs between two passes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from clustertools import systemd
from clustertools.errors import StoreError
from clustertools.text import plain
from clustertools.watchdog.settings import Pass

if TYPE_CHECKING:
    from clustertools.watchdog import Watchdog

#: Between two passes the loop wakes up this often to see whether it was asked to stop or to reload.
SLICE_SECONDS = 0.5
#: While an action is under way it goes one step further this often, whatever the time between two passes: a
#: restart is half a dozen steps, and a thousand GPUs wait for it.
BUSY_SECONDS = 2.0


class Clock(Protocol):
    """Time as the loop feels it; everything else is handed `now`."""

    def monotonic(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


def loop(
    watchdog: Watchdog,
    clock: Clock,
    stop: Callable[[], bool],
    report: Callable[[Pass | StoreError], None],
    tell: Callable[[str], None] = lambda said: None,
) -> None:
    """Passes every `interval_seconds` until `stop()` is true; `report` gets each one.

    What an action that is under way does between two passes goes to `tell`, sentence by sentence.

    A pass that could not write its state is reported and tried again: nothing was done in it. `stop` is asked
    between passes and every SLICE_SECONDS of the time between them. systemd hears that we are alive whatever
    a pass could see: to be started anew would not make the machine any easier to look at.
    """
    systemd.notify("READY=1")
    while not stop():
        began = clock.monotonic()
        try:
            result: Pass | StoreError = watchdog.once()
        except StoreError as exc:
            result = exc
        report(result)
        sentence = result.sentence if isinstance(result, Pass) else str(result)
        systemd.notify(f"STATUS={plain(sentence)}")
        _rest(watchdog, clock, began + watchdog.settings.interval_seconds, stop, tell)
    systemd.notify("STOPPING=1")


def _rest(
    watchdog: Watchdog, clock: Clock, until: float, stop: Callable[[], bool], tell: Callable[[str], None]
) -> None:
    systemd.alive()
    # a moment at least: passes that take longer than their interval must leave room for others
    until = max(until, clock.monotonic() + 0.05)
    rested_since = clock.monotonic()
    while (left := until - clock.monotonic()) > 0 and not stop():
        clock.sleep(min(left, SLICE_SECONDS))
        systemd.alive()
        if clock.monotonic() - rested_since >= BUSY_SECONDS and left > SLICE_SECONDS:
            rested_since = clock.monotonic()
            # a state that cannot be written: the next pass says so
            with contextlib.suppress(StoreError):
                for said in watchdog.carry_on() if watchdog.busy() else ():
                    tell(said)


class SystemClock:
    """The machine's own."""

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
