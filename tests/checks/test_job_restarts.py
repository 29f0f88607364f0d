"""Starts that lead nowhere: what they have in common, and those of which nobody knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from clustertools.host import LocalHost
from clustertools.model import Attempt, Job, Status, Verdict

Run = Callable[..., Verdict]


def start(number: int, last_step: int | None = 100, **more: Any) -> Attempt:
    given: dict[str, Any] = {"resume_step": 100, "end": "exit code 1", "last_step": last_step, **more}
    return Attempt("r", number, f"t{number}", **given)


def look(run: Run, *attempts: Attempt, **limits: int) -> Verdict:
    job = Job("1", "r", "running", attempts=attempts, nodes=("n1",))
    return run("job_restarts", LocalHost("here"), job=job, **limits)


def test_three_in_vain_are_a_crash_loop(run: Run) -> None:
    assert look(run, start(1), start(2)).status is Status.OK
    verdict = look(run, start(1, 200), start(2), start(3), start(4))
    assert verdict.codes == {"JobCrashLoop"}
    (finding,) = verdict.findings
    assert finding.summary == (
        "the last 3 starts of r made no new step (each time exit code 1, from step 100): not started again"
    )
    assert finding.evidence == tuple(f"attempt {n} from step 100: exit code 1" for n in (2, 3, 4))


def test_what_they_have_in_common(run: Run) -> None:
    nodes = (("n1", "n2"), ("n1", "n3"), ("n4", "n1"))
    lost = {"cause": "GpuLost", "blamed": ("n1",)}
    verdict = look(run, *(start(i, nodes=n, end=f"end {i}", **lost) for i, n in enumerate(nodes)))
    assert "(each time GpuLost, from step 100, always with n1)" in verdict.findings[0].summary
    assert verdict.findings[0].evidence[0] == "attempt 0 from step 100: GpuLost; blamed: n1"
    same = look(run, *(start(i, nodes=("n1",), end=f"end {i}") for i in range(3)))
    assert "(from step 100)" in same.findings[0].summary, "a run that always has this node says nothing of it"


def test_unknown_progress_neither_counts_nor_ends_the_row(run: Run) -> None:
    verdict = look(run, start(1), start(2, None), start(3), start(4, None))
    assert verdict.status is Status.OK
    assert "of 2 of the starts nobody knows" in verdict.detail
    verdict = look(run, start(1), start(2), start(3, None), start(4))
    assert [line[:9] for line in verdict.findings[0].evidence] == ["attempt 1", "attempt 2", "attempt 4"]


def test_the_tracker_has_not_moved(run: Run) -> None:
    """Three cycles with the same end from the same checkpoint stop it; those nobody could read do not."""
    assert look(run, *(start(n, 100) for n in range(3))).codes == {"JobCrashLoop"}
    assert look(run, *(start(n, None) for n in range(3))).codes == frozenset()
