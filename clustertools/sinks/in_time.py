"""A call that talks to somebody far away, and a limit on how long anybody waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_time(call: Callable[[], T], seconds: float, name: str) -> T:
    """What `call` gives or raises, or TimeoutError after `seconds`.

    The timeout of a socket is for each read and leaves out the resolver, so an answer that drips in would
    hold the watchdog for ever. A thread cannot be stopped; one that is late is left behind.
    """
    given: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            given.append(call())
        except BaseException as exc:  # noqa: BLE001 - raised again by the thread that waits
            raised.append(exc)

    thread = threading.Thread(target=run, name=f"{name} delivery", daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not given:
        raise TimeoutError
    return given[0]
