"""squeue's answer: whatever users wrote into it, a field is a field and a job is a job."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustertools.errors import Unobservable, Unparsable
from clustertools.host import Completed, PassingHost, RecordedHost
from clustertools.sources.slurm_queue import (
    Queue,
    Row,
    node_names,
    parse_queue,
    read_queue,
    slurm_command,
    wait_status,
)

FIELD, END = "<f>", "<e>"

# squeue --Format with these fields, 22.05: a batch job, a requeued one in a hold, a task, one that waits
RUNNING = (
    "1|1|N/A|N/A|N/A|RUNNING|None|0|0|1|1|4294901759|0|root|main|2|1795289127|1826825127|1795289126|1795289126|"
    "n[1-2]|plain|hello|(null)|/work|/work/slurm-1.out|/work/slurm-1.out"
)
HELD = (
    "14|14|N/A|N/A|N/A|PENDING|job requeued in held state|768|1|1|1|0|1000|al|main,big|2-4|N/A|NONE|N/A|"
    "1795289200|(null)|again|(null)|[clustertools stop 0]|/work|/work/%x-%j.out|/work/%x-%j.out"
)
TASK = (
    "6|3|1|N/A|N/A|COMPLETING|None|0|0|1|1|4294901757|0|root|main|1|1795289127|1826825127|1795289127|1795289126|n1|"
    "arr|(null)|(null)|/work|/work/slurm-6.out|/work/slurm-6.out"
)
WAITING = TASK.replace("6|3|1|", "3|3|2-9%1|", 1).replace("COMPLETING|None", "PENDING|JobArrayTaskLimit")


def answer(*rows: str) -> str:
    return "\n".join(row.replace("|", FIELD) + FIELD + END for row in rows) + "\n"


def one(row: str) -> Row:
    (found,) = parse_queue(answer(row), FIELD, END).rows
    return found


def test_a_running_job() -> None:
    row = one(RUNNING)
    assert (row.id, row.state, row.name, row.comment, row.user_id) == ("1", "RUNNING", "plain", "hello", 0)
    assert (row.started_at, row.ends_at, row.node_list) == (1795289127.0, 1826825127.0, "n[1-2]")
    assert (row.may_requeue, row.is_batch, row.restarts, row.reason) == (True, True, 0, "")
    assert (row.array_id, row.task, row.het_id, row.het_offset) == ("", None, "", None)


def test_a_job_in_a_hold() -> None:
    row = one(HELD)
    assert (row.state, row.reason, row.priority) == ("PENDING", "job requeued in held state", 0)
    assert (row.exit_code, row.restarts, row.admin_comment) == (768, 1, "[clustertools stop 0]")
    assert (row.node_count, row.started_at, row.ends_at, row.comment) == (2, 0.0, 0.0, "")


def test_tasks_of_an_array() -> None:
    assert (one(TASK).array_id, one(TASK).task, one(TASK).waiting_tasks) == ("3", 1, "")
    assert (one(WAITING).array_id, one(WAITING).task, one(WAITING).waiting_tasks) == ("3", None, "2-9%1")


def test_what_users_write_is_nothing_but_text() -> None:
    evil = "x\n2|RUNNING\nJobId=9 JobName=y UserId=root(0)"
    queue = parse_queue(
        answer(RUNNING).replace("plain", evil).replace("hello", "a|b <f <e>\n\n"), FIELD, END
    )  # fmt: skip
    (row,) = queue.rows
    assert (row.name, row.comment, queue.unread) == (evil, "a|b <f <e>\n\n", 0)


def test_each_call_has_separators_of_its_own() -> None:
    host = Squeue(answer())
    read_queue(host)
    read_queue(host)
    assert len({word for argv in host.asked for word in argv if word.startswith("--Format")}) == 2


@pytest.mark.parametrize(
    "broken", [answer(RUNNING, HELD)[:-40], answer(RUNNING) + "slurm says\n", answer(RUNNING, "1|x")]
)  # fmt: skip
def test_a_line_that_is_not_understood_is_counted(broken: str) -> None:
    queue = parse_queue(broken, FIELD, END)
    assert ([row.id for row in queue.rows], queue.unread) == (["1"], 1)


def test_another_form_is_no_empty_cluster() -> None:
    with pytest.raises(Unparsable):
        parse_queue("JOBID PARTITION NAME\n1 main x\n", FIELD, END)
    assert parse_queue("", FIELD, END) == Queue(())
    assert parse_queue("\n", FIELD, END) == Queue(())


@pytest.mark.parametrize(("word", "status"), [("768", 768), ("3:0", 768), ("0:15", 15), ("", 0), ("a:b", 0)])
def test_exit_codes_of_both_forms(word: str, status: int) -> None:
    assert wait_status(word) == status


class Squeue(PassingHost):
    """Answers squeue with one text, or with a complaint; unfolds as scontrol would."""

    def __init__(self, text: str, error: str = "", truncated: bool = False) -> None:
        super().__init__(RecordedHost.__new__(RecordedHost))
        self.text, self.error, self.truncated = text, error, truncated
        self.asked: list[tuple[str, ...]] = []

    def now(self) -> float:
        return 5.0

    def run(self, *argv: str, timeout_seconds: float = 1.0, stdin: str = "") -> Completed:
        self.asked.append(argv)
        if "hostnames" in argv:
            return Completed(argv, 0, "odd1\nodd2\n", "")
        wanted = next(word for word in argv if word.startswith("--Format="))
        field, end = wanted.split(":0")[1].split(",")[0], wanted.rpartition("<")[2]
        text = self.text.replace(FIELD, field).replace(END, f"<{end}")
        return Completed(argv, 1 if self.error else 0, text, self.error, truncated=self.truncated)


# recorded: 22.05 with a slurmctld that was killed, with one that was stopped, and without the job
@pytest.mark.parametrize(
    "said",
    [
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "slurm_load_jobs error: Socket timed out on send/recv operation",
    ],
)
def test_a_controller_that_is_away_is_not_an_empty_cluster(said: str) -> None:
    with pytest.raises(Unobservable, match="squeue failed"):
        read_queue(Squeue("", said))
    with pytest.raises(Unobservable, match="squeue failed"):
        read_queue(Squeue("", said), ("1",))


def test_a_job_that_slurm_does_not_have_is_an_answer_only_when_it_was_asked_for() -> None:
    gone = Squeue("", "slurm_load_jobs error: Invalid job id specified")
    assert read_queue(gone, ("7",)) == Queue((), at=5.0)
    with pytest.raises(Unobservable):
        read_queue(gone)


def test_an_answer_that_was_cut_is_no_answer() -> None:
    with pytest.raises(Unobservable, match="more than is kept"):
        read_queue(Squeue(answer(RUNNING), truncated=True))


def test_what_a_login_script_set_hides_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_USERS", "nobody")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    argv = slurm_command("squeue")
    assert argv[argv.index("SQUEUE_USERS") - 1] == "-u"
    assert "SLURM_CONF" not in argv
    assert argv[-2:] == ("SLURM_TIME_FORMAT=%s", "squeue")


def test_lists_of_nodes() -> None:
    host = Squeue("")
    assert node_names(host, "") == ()
    assert node_names(host, "n1,n3") == ("n1", "n3")
    assert node_names(host, "n[1-2,7],m[01-02]") == ("m01", "m02", "n1", "n2", "n7")
    assert not host.asked  # no command for what is plain
    assert node_names(host, "odd[1-") == ("odd1", "odd2")


@given(st.lists(st.text(max_size=30), min_size=4, max_size=4))
def test_whatever_is_written_comes_back(texts: list[str]) -> None:
    name, comment, folder, out = (text.replace("<", "") for text in texts)
    words = RUNNING.split("|")
    words[21], words[22], words[24], words[25] = name, comment, folder, out
    text = "\n".join(FIELD.join(words) + FIELD + END for _ in range(2))
    queue = parse_queue(text, FIELD, END)
    assert queue.unread == 0
    assert len(queue.rows) == 2
    assert [row.name for row in queue.rows] == [name, name]
    assert queue.rows[1].folder == folder


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        queue = parse_queue(text, FIELD, END)
    except Unparsable:
        return
    assert not queue.rows
    assert bool(text.strip()) == bool(queue.unread)
