"""A large group is bad and none of its nodes is: which two, or which two sets, do not get on."""

from __future__ import annotations

from clustertools.isolate.evidence import Evidence
from clustertools.isolate.question import Question, Round


def wanted(question: Question, evidence: Evidence, good: tuple[str, ...]) -> Round | None:
    return None
