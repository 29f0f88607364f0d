"""How starts ended that the queue no longer shows, what begins them anew, and which nodes are good."""

from __future__ import annotations

import dataclasses

import pytest

from clustertools.errors import Absent, ActionFailed, Unobservable, Unparsable
from clustertools.host import Completed, PassingHost, RecordedHost
from clustertools.model import Attempt
from clustertools.schedulers import RunSpec
from clustertools.schedulers.slurm_ends import Ends
from clustertools.schedulers.slurm_nodes import SlurmNodes, is_down, parse_states
from clustertools.schedulers.slurm_submit import sbatch_words
from clustertools.sources.slurm_queue import Row

RAN = Attempt("pre", 3, "7.2", "7", started_at=1000.0, requeues=2, nodes=("n1", "n2"))
NODES = "n1|mixed|none\nn2|down*|Not responding\nn3|down*|Not responding\n"


class Answers(PassingHost):
    """sacct and sinfo answer with a text, or fail with one that begins with `!`."""

    def __init__(self, sacct: str = "", sinfo: str = NODES) -> None:
        super().__init__(RecordedHost.__new__(RecordedHost))
        self.texts = {"sacct": sacct, "sinfo": sinfo}
        self.asked: list[str] = []

    def run(self, *argv: str, timeout_seconds: float = 1.0, stdin: str = "") -> Completed:
        command = next(word for word in argv if word in self.texts)
        self.asked.append(command)
        text = self.texts[command]
        failed = text.startswith("!")
        return Completed(argv, int(failed), "" if failed else text, text[1:] if failed else "")


def ends(host: Answers) -> Ends:
    made = Ends(host, SlurmNodes(host))
    made.ask(["7"])
    return made


NONE = "!Slurm accounting storage is disabled"


def test_without_accounting_a_forgotten_end_is_lost() -> None:
    host = Answers(NONE)
    found = ends(host)
    assert found.gone(RAN).by == "lost"
    assert not found.keeps_accounting
    again = Ends(host, SlurmNodes(host), keeps_accounting=found.keeps_accounting)
    again.ask(["7"])
    assert host.asked == ["sacct"]


def test_an_accounting_that_is_away_makes_nothing_lost() -> None:
    with pytest.raises(Unobservable, match="Connection refused"):
        ends(Answers("!sacct: error: Problem talking to the database: Connection refused")).gone(RAN)


@pytest.mark.parametrize(
    ("line", "by", "code"),
    [
        ("7|COMPLETED|0:0|1001|2000|n[1-2]|", "itself", 0),
        ("7|FAILED|3:0|1001|2000|n[1-2]|", "itself", 3),
        ("7|CANCELLED by 1000|0:15|1001|2000|n[1-2]|", "person", -15),
        ("7|TIMEOUT|0:0|1001|2000|n[1-2]|", "time-limit", None),
        ("7|OUT_OF_MEMORY|0:125|1001|2000|n[1-2]|", "out-of-memory", None),
        # of another start, and of one that is not over
        ("7|FAILED|3:0|500|900|n[1-2]|", "lost", None),
        ("7|RUNNING|0:0|1001|Unknown|n[1-2]|", "lost", None),
    ],
)
def test_what_the_accounting_says_of_a_forgotten_job(line: str, by: str, code: int | None) -> None:
    end = ends(Answers(line)).gone(RAN)
    assert (end.by, end.exit_code) == (by, code)


def test_a_failed_node_is_the_one_that_slurm_names() -> None:
    told = ends(Answers("7|NODE_FAIL|0:0|1001|2000|n[1-2]|n1\n")).requeued(RAN)
    assert (told.by, told.failed_nodes, told.at) == ("node-failed", ("n1",), 2000.0)
    seen = ends(Answers("7|NODE_FAIL|0:0|1001|2000|n[1-2]|\n")).requeued(RAN)
    assert (seen.by, seen.failed_nodes) == ("node-failed", ("n2",))


def test_a_requeue_without_accounting_is_told_by_the_nodes() -> None:
    seen = ends(Answers(NONE)).requeued(RAN)
    assert (seen.by, seen.failed_nodes) == ("node-failed", ("n2",))
    unhurt = dataclasses.replace(RAN, nodes=("n1",))
    assert ends(Answers(NONE)).requeued(unhurt).by == "requeued"
    assert ends(Answers("7|REQUEUED|0:0|1001|2000|n1|\n")).requeued(unhurt).by == "requeued"
    assert ends(Answers("7|PREEMPTED|0:0|1001|2000|n1|\n")).requeued(unhurt).by == "preempted"
    # nobody can say which nodes are down: then nobody says so
    assert (
        ends(Answers(NONE, "!sinfo: error: Unable to contact slurm controller")).requeued(RAN).by
        == "requeued"
    )


# nodes

# sinfo -N -o %N|%T|%E: 22.05, and states of newer versions
STATES = {
    "idle": True, "mixed": True, "allocated": True, "completing": True, "planned": True, "mixed-": True,
    "idle~": True, "reserved": True, "idle#": True, "blocked": True, "idle*": False, "allocated*": False,
    "drained": False, "draining": False, "drained*": False, "down": False, "down*": False, "maint": False,
    "idle$": False, "fail": False, "failing": False, "reboot^": False, "powering_down": False, "idle!": False,
    "idle%": False, "inval": False, "unknown": False, "future": False, "no_respond": False,
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_where_jobs_may_begin(state: str) -> None:
    node = parse_states(f"n1|{state}|none\n")["n1"]
    assert (node.is_good, node.reason, node.state) == (STATES[state], "", state)
    assert node.is_drained == state.startswith("drain")


def test_a_reason_may_hold_anything_but_a_line() -> None:
    nodes = parse_states("n1|drained|bad | fan [root@x]\nn1|drained|bad | fan [root@x]\nn2|idle|none\n")
    assert nodes["n1"].reason == "bad | fan [root@x]"
    assert [is_down(node) for node in parse_states(NODES).values()] == [False, True, True]
    for text in ("n1 idle none\n", "n1|idle\n", "|idle|none\n", "n1|IDLE WEIRD|none\n"):
        with pytest.raises(Unparsable):
            parse_states(text)
    with pytest.raises(Unobservable):
        parse_states("")


def test_without_slurm_there_is_nothing_to_ask() -> None:
    class Bare(Answers):
        def run(self, *argv: str, timeout_seconds: float = 1.0, stdin: str = "") -> Completed:
            raise Absent("env is not installed")

    with pytest.raises(Absent):
        SlurmNodes(Bare()).states()


# the command that submits a run anew

NEXT = Attempt("pre", 4, "tok", resume_path="/c/50", resume_step=50, excluded=("n2",))
SPEC = RunSpec("pre", ("sbatch", "-N", "4", "--parsable", "--hold", "train.sh", "--exclude=mine", "-x", "1"))


def words(*command: str, before: Row | None = None, kept: tuple[str, ...] = ()) -> list[str]:
    return sbatch_words(dataclasses.replace(SPEC, command=command), NEXT, before, kept)


def test_ours_stand_before_the_script_and_its_words_are_its_own() -> None:
    assert sbatch_words(SPEC, NEXT, None, ()) == [
        "sbatch", "--parsable", "--comment=[clustertools start 0 tok]", "--exclude=n2", "-N", "4", "--hold",
        "train.sh", "--exclude=mine", "-x", "1",
    ]  # fmt: skip


@pytest.mark.parametrize("option", [("--exclude=n3",), ("--exclude", "n3"), ("-x", "n3"), ("-xn3",)])
def test_exclusions_of_the_command_are_kept(option: tuple[str, ...]) -> None:
    told = words("/usr/bin/sbatch", *option, "-W", "a.sh", kept=("n4", "n2"))
    assert told[3:] == ["--exclude=n3,n4,n2", "a.sh"]


def test_the_comment_of_a_person_is_kept() -> None:
    assert words("sbatch", "--comment", "mine", "a.sh")[2] == "--comment=mine [clustertools start 0 tok]"
    before = Row("7", "FAILED", comment="exp 5 [clustertools start 0 old]")
    assert (
        words("sbatch", "--comment=x", "a.sh", before=before)[2]
        == "--comment=exp 5 [clustertools start 0 tok]"
    )


def test_placeholders_are_filled_in() -> None:
    spec = dataclasses.replace(
        SPEC, command=("sbatch", "a.sh", "{checkpoint}", "{step}"), resume="placeholder"
    )
    assert sbatch_words(spec, NEXT, None, ())[-2:] == ["/c/50", "50"]


def test_another_command_than_sbatch_is_refused() -> None:
    with pytest.raises(ActionFailed, match="has to be sbatch itself, not submit"):
        words("submit.sh", "a.sh")
