"""Which node, path or boundary is guilty: the next groups to test, until the answer is sure enough.

    step = next_step(question, history)
    while isinstance(step, Round):
        history.append((step, run(step)))
        step = next_step(question, history)

Pure: no clock, no randomness but the question's seed. docs/isolation.md explains the method and holds its
comparison with others.
"""

from clustertools.isolate.question import (
    ALL_REDUCE,
    PAIRS,
    Conclusion,
    GroupResult,
    History,
    Noise,
    Question,
    Round,
)
from clustertools.isolate.search import next_step, so_far

__all__ = [
    "ALL_REDUCE",
    "PAIRS",
    "Conclusion",
    "GroupResult",
    "History",
    "Noise",
    "Question",
    "Round",
    "next_step",
    "so_far",
]
