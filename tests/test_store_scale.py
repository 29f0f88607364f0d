"""The store under a thousand runs: what is written twice, and what is forgotten."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from clustertools.model import Attempt, Finding, Reading, Status, Subject, Verdict
from clustertools.store import READING_SECONDS, Store

RUN = Subject(run="r")
DAY = 86400.0


@pytest.fixture
def store(tmp_path: Path):
    store = Store(tmp_path / "state.db")
    yield store
    store.close()


def verdict(time: float, **changed) -> Verdict:
    known = Verdict("job_progress", RUN, Status.OK, time=time, memory={"step": 1}, elapsed_seconds=time / 1e9)
    return dataclasses.replace(known, **changed)


def writes(store: Store) -> list[str]:
    """The statements that change rows, as SQLite runs them from now on."""
    seen: list[str] = []
    store._db.set_trace_callback(lambda sql: None if sql.startswith("SELECT") else seen.append(sql))
    return seen


def test_of_what_says_the_same_only_the_time_is_written(store):
    store.save_verdict(verdict(1000.0))
    seen = writes(store)
    store.save_verdict(verdict(1030.0))
    assert [sql.split()[0] for sql in seen] == ["UPDATE"]
    assert store.verdicts() == [verdict(1030.0, memory={}, elapsed_seconds=0.0)]
    store.save_verdict(verdict(1060.0, detail="another word", memory={"step": 2}))
    assert [sql.split()[0] for sql in seen] == ["UPDATE", "REPLACE", "REPLACE"]
    assert store.verdicts()[0].detail == "another word"
    assert store.memory("job_progress", RUN) == {"step": 2}


def test_a_finding_that_came_or_went_is_written(store):
    found = Finding("job_progress", "JobHung", RUN, Status.CRITICAL, "silent")
    store.save_verdict(verdict(1000.0))
    store.save_verdict(verdict(1001.0, findings=(found,), status=Status.CRITICAL))
    assert store.verdicts()[0].findings == (found,)
    store.save_verdict(verdict(1002.0))
    assert store.verdicts()[0].findings == ()


def test_readings_of_every_pass_are_kept_once_in_five_minutes(store):
    for second in range(0, 3600, 30):
        at = 1_000_000.0 + second
        store.save_verdict(verdict(at, readings=(Reading(RUN, "job_last_step", second, at),)))
    history = store.history(str(RUN), "job_last_step")
    assert 3600 / READING_SECONDS <= len(history) <= 3600 / READING_SECONDS + 1
    # a check that runs more seldom loses none
    for n in range(10):
        at = 2_000_000.0 + n * READING_SECONDS
        store.save_verdict(verdict(at, check="slow", readings=(Reading(RUN, "age", n, at),)))
    assert len(store.history(str(RUN), "age")) == 10


def test_a_clock_that_was_set_back_keeps_readings(store):
    for at in (5000.0, 1000.0):
        store.save_verdict(verdict(at, readings=(Reading(RUN, "x", at, at),)))
    assert [value for _, value in store.history(str(RUN), "x")] == [1000.0, 5000.0]


def test_runs_that_are_gone_are_forgotten(store):
    now = 100 * DAY
    for n in range(20):
        subject = Subject(run=f"old{n}")
        store.save_verdict(verdict(now - 8 * DAY, subject=subject))
        store.put_cursor("ran:job_progress", str(subject), {"at": now - 8 * DAY})
        ended = Attempt(
            f"old{n}", 1, "t", started_at=DAY, ended_at=now - (31 if n else 29) * DAY, end="exit 0"
        )
        store.put_attempt(ended)
    store.save_verdict(verdict(now - DAY))
    store.put_cursor("ran:job_progress", str(RUN), {"at": now})
    store.put_cursor("heartbeat", "", {"at": now})
    store.put_attempt(Attempt("r", 1, "t", started_at=DAY))
    store.thin(now)
    assert [v.subject for v in store.verdicts()] == [RUN]
    assert store.memory("job_progress", RUN)
    assert store.cursor("ran:job_progress", str(RUN))
    assert store.cursor("heartbeat")
    assert store._db.execute("SELECT count(*) FROM cursor").fetchone() == (3,)
    assert set(store.all_attempts()) == {"r", "old0"}, "one that never ended is kept, and one of last month"


def test_attempts_of_all_runs_at_once(store):
    store.put_attempt(Attempt("b", 2, "t2"))
    store.put_attempt(Attempt("b", 1, "t1"))
    store.put_attempt(Attempt("a", 1, "t1"))
    found = store.all_attempts()
    assert {run: [a.number for a in attempts] for run, attempts in found.items()} == {"a": [1], "b": [1, 2]}
    assert found["b"] == store.attempts("b")
