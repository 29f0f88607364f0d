"""What sacct says of jobs that slurmctld forgot."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.host import Completed, PassingHost, RecordedHost
from clustertools.sources.slurm_accounting import Record, parse_accounting, read_accounting

# sacct --parsable2 --duplicates with these fields; a job whose node failed, that was requeued, then cancelled
TOLD = """4711|NODE_FAIL|0:0|1795289127|1795289200|n[1-2]|n2
4711|REQUEUED|0:0|1795289300|1795289400|n[1,3]|
4711|CANCELLED by 1000|0:15|1795289500|1795289600|n[1,3]|
4712|RUNNING|0:0|1795289300|Unknown|n4|
4713|PENDING|0:0|Unknown|Unknown|None assigned|
"""
OLD = "\n".join(line.rpartition("|")[0] for line in TOLD.splitlines())


class Sacct(PassingHost):
    def __init__(self, *answers: Completed | Exception) -> None:
        super().__init__(RecordedHost.__new__(RecordedHost))
        self.answers = list(answers)
        self.asked: list[tuple[str, ...]] = []

    def run(self, *argv: str, timeout_seconds: float = 1.0, stdin: str = "") -> Completed:
        self.asked.append(argv)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def said(text: str = "", error: str = "") -> Completed:
    return Completed(("sacct",), int(bool(error)), text, error)


def test_each_incarnation_in_its_order() -> None:
    lines = TOLD.splitlines()
    records = parse_accounting("\n".join([lines[2], lines[0], lines[1]]))["4711"]
    assert [r.state for r in records] == ["NODE_FAIL", "REQUEUED", "CANCELLED"]
    assert records[0] == Record("4711", "NODE_FAIL", 0, 1795289127.0, 1795289200.0, "n[1-2]", "n2")
    assert records[2].exit_code == 15
    assert parse_accounting(TOLD)["4713"][0] == Record("4713", "PENDING")


def test_an_old_sacct_does_not_know_of_failed_nodes() -> None:
    host = Sacct(said(error='sacct: fatal: Invalid field requested: "FailedNode"'), said(OLD))
    records = read_accounting(host, ["4711", "4712", "4711"])
    assert [len(found) for found in records.values()] == [3, 1, 1]
    assert records["4711"][0].failed_node == ""
    assert "--jobs=4711,4712" in host.asked[0]
    assert "--duplicates" in host.asked[1]


@pytest.mark.parametrize(
    "error", ["Slurm accounting storage is disabled", "sacct: error: Slurm accounting storage is disabled"]
)
def test_no_accounting_is_known_as_such(error: str) -> None:
    with pytest.raises(Absent):
        read_accounting(Sacct(said(error=error)), ["1"])


@pytest.mark.parametrize(
    "answer",
    [
        said(
            error="sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection"
        ),
        said(error="sacct: error: Problem talking to the database: Connection refused"),
        Unobservable("sacct did not answer within 10 s"),
    ],
)
def test_an_accounting_that_does_not_answer_is_not_an_empty_one(answer: Completed | Exception) -> None:
    with pytest.raises(Unobservable) as raised:
        read_accounting(Sacct(answer), ["1"])
    assert not isinstance(raised.value, Absent)


def test_nothing_is_asked_about_nothing() -> None:
    assert read_accounting(Sacct(), []) == {}


@pytest.mark.parametrize("line", ["4711|NODE_FAIL", "4711.batch|FAILED|1:0|1|2|n1|", "JobID|State|a|b|c|d|e"])
def test_another_form_is_refused(line: str) -> None:
    with pytest.raises(Unparsable):
        parse_accounting(line)


@given(st.text(alphabet="4711|FAILED:0\n n[]-2Unkow"))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(Unparsable):
        parse_accounting(text)
