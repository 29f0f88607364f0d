"""Faults that a test asks for, so that every ending of a probe can be seen without broken hardware.

CLUSTERTOOLS_TEST_FAULT is `wrong@N`, `die@N`, `hang@N` or `slow@N`, N being a rank of a group or a device of
a node. It is for tests only, and every answer that was given under it says so.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VARIABLE = "CLUSTERTOOLS_TEST_FAULT"
_SLOW_SECONDS = 0.05
_FORM = re.compile(r"(wrong|die|hang|slow)@(\d{1,6})")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is to go wrong in this process; empty when nothing is."""

    kind: str = ""

    def spoil(self, tensor: Any) -> None:
        """Make one element another one."""
        if self.kind == "wrong":
            tensor.view(-1)[tensor.numel() // 2] += 1

    def strike(self) -> None:
        """Die, or never come back."""
        if self.kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        while self.kind == "hang":
            time.sleep(60)

    def delay(self) -> None:
        if self.kind == "slow":
            time.sleep(_SLOW_SECONDS)


def fault_of(number: int, environ: Mapping[str, str] = os.environ) -> Fault:
    """The fault that is asked for rank or device `number`; none for a word of another form."""
    match = _FORM.fullmatch(environ.get(VARIABLE, ""))
    return Fault(match[1] if match and int(match[2]) == number else "")


def notes(environ: Mapping[str, str] = os.environ) -> list[str]:
    """What every answer must say while the variable is set."""
    asked = environ.get(VARIABLE, "")
    return [f"{VARIABLE}={asked} is set: a fault is simulated, as in a test"] if asked else []
