"""The lines by which failures show in logs: what each means, root or cascade, and what it advises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: What a failure means for the next start (watchdog reference, section 5). `same`: start again where it was;
#: `exclude`: without the guilty node; `stop`: a person must mend something first; `wait`: when the resource
#: is back; `none`: says nothing by itself.
Advice = Literal["same", "exclude", "stop", "wait", "none"]
Role = Literal["root", "cascade", "confirmation"]


@dataclass(frozen=True, slots=True)
class FailureLine:
    """One line of a log that a signature of the catalogue matches.

    `time` is seconds since 1970 as the line says it (None: it does not), `rank` and `node` whom it is from
    when the line or its file says so, `about` the node that the line itself names as guilty. `order` is its
    place in its file.
    """

    signature: str
    role: Role
    advice: Advice
    text: str
    path: str = ""
    order: int = 0
    time: float | None = None
    rank: int | None = None
    node: str = ""
    about: str = ""
