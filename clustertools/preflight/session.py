"""What the stages of one preflight share while its probers run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from clustertools.fleet import Answer
from clustertools.fleet.probing import Hello, Probers
from clustertools.preflight.asked import Asked, Budget, Tell
from clustertools.preflight.record import Record
from clustertools.preflight.yardsticks import Yardsticks
from clustertools.text import plain


@dataclass(frozen=True, slots=True)
class Session:
    """What was asked, what is known, who is there, what figures are held against, and the time left."""

    asked: Asked
    record: Record
    probers: Probers
    yardsticks: Yardsticks
    budget: Budget
    tell: Tell

    def fit(self) -> tuple[str, ...]:
        """The nodes that are there and that nothing speaks against so far."""
        return self.record.fit(self.probers.present)

    def hello(self, nodes: Iterable[str]) -> dict[str, Hello]:
        return {node: self.probers.hello[node] for node in nodes}


def note_the_gone(record: Record, probers: Probers) -> None:
    """Write down, once for each, whose prober is there no more."""
    for name, answer in probers.gone.items():
        if answer.completed is None:
            record[name].away(answer)
        else:
            _note_the_exit(record, name, answer)


def _note_the_exit(record: Record, name: str, answer: Answer) -> None:
    done = answer.completed
    assert done is not None
    said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
    doubt = f"its prober ended with exit code {done.returncode}: {plain(said, 300)}"
    if doubt not in record[name].doubts:
        record[name].doubts.append(doubt)
