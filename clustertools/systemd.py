"""How a service tells systemd that it is ready, alive, reloading and going: sd_notify(3), one datagram each.

Outside a service of Type=notify nothing of this does anything.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time


def notify(*assignments: str) -> None:
    """Send assignments such as `READY=1`, when systemd asked for them.

    Nobody waits for an answer: news that systemd does not hear must not end the service.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        # systemd may be slow, and a full queue must not hold us
        sock.setblocking(False)
        sock.sendto("\n".join(assignments).encode("utf-8", "replace"), address)


def watchdog_seconds() -> float | None:
    """After how long a silence systemd kills this process (WatchdogSec=); None when it does not."""
    # sd_watchdog_enabled(3): the variables may have been inherited from a service that is not us
    meant_for = os.environ.get("WATCHDOG_PID", "")
    if meant_for and meant_for != str(os.getpid()):
        return None
    limit = os.environ.get("WATCHDOG_USEC", "")
    return int(limit) / 1e6 if limit.isascii() and limit.isdigit() and int(limit) else None


def alive() -> None:
    """Say that this process is not stuck. It says nothing about whether its passes could see anything."""
    if watchdog_seconds() is not None:
        notify("WATCHDOG=1")


def reloading() -> None:
    """Say that the config is read again; `notify("READY=1")` ends it. Type=notify-reload needs the time."""
    notify("RELOADING=1", f"MONOTONIC_USEC={int(time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6)}")
