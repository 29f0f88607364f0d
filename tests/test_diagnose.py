"""Who is guilty, out of literal evidence."""

from __future__ import annotations

from clustertools.catalog.failures import FailureLine, match
from clustertools.diagnose import CERTAIN, Evidence, diagnose
from clustertools.model import Finding, Incident, Job, RankState, Status, Subject

NODES = ("n1", "n2", "n3", "n4")
RANKS = {rank: NODES[rank // 2] for rank in range(8)}
ECC = "RuntimeError: CUDA error: uncorrectable ECC error encountered"
TIMEOUT = (
    "[Rank {}] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=BROADCAST, "
    "Timeout(ms)=600000) ran for 600081 milliseconds before timing out."
)


def line(text, *, rank=None, time=None, order=0, path="log", about="", node=""):
    row = match(text)
    assert row is not None, text
    return FailureLine(row.name, row.role, row.advice, text, path, order, time, rank, node, about)


def evidence(*lines, job=None, **more):
    more.setdefault("rank_nodes", RANKS)
    more.setdefault("world_size", 8)
    return Evidence(job or Job("1", "big", "ended", nodes=NODES, ended_at=5000.0, exit_code=1), lines, **more)


def incident(node, code="XidEccUncorrectable", at=4990.0, status=Status.CRITICAL):
    finding = Finding("gpu_xid", code, Subject(node=node, part="gpu@0"), status, "Xid 48", time=at)
    return Incident(finding, "open", at, at, opened_at=at)


def test_nothing_seen_is_nothing_known():
    told = diagnose(evidence())
    assert (told.cause, told.suspects, told.blamed, told.advice) == ("", (), (), "none")
    assert told.summary == "Nothing in the logs says why"


def test_the_earliest_root_over_all_ranks_is_the_cause():
    told = diagnose(
        evidence(
            line(TIMEOUT.format(0), rank=0, time=700.0, order=1),
            line(ECC, rank=5, time=100.0, order=9),
            line("RuntimeError: CUDA error: unspecified launch failure", rank=1, time=101.0, order=2),
        )
    )
    assert (told.cause, told.advice, told.blamed) == ("GpuMemoryUncorrectable", "exclude", ("n3",))
    assert told.suspects[0].rank == 5
    assert told.lines[0] == f"rank 5: {ECC}"
    assert "n3 is to blame" in told.summary


def test_timeouts_alone_blame_nobody():
    all_wait = [line(TIMEOUT.format(r), rank=r, time=700.0 + r) for r in range(8)]
    told = diagnose(evidence(*all_wait))
    assert (told.cause, told.suspects) == ("", ())
    assert "only symptoms" in told.summary
    quiet = diagnose(evidence(*[x for x in all_wait if x.rank not in (4, 5)]))
    assert [s.node for s in quiet.suspects] == ["n3"]
    assert quiet.blamed == ()


def test_the_rank_that_enqueued_least_by_its_own_line_is_named_and_not_blamed():
    told = diagnose(
        evidence(
            *(
                line(f"[PG ID 1 PG GUID 1 Rank {r}] failure detected by watchdog at work sequence id: 1 PG "
                     f"status: last enqueued work: {546 if r == 6 else 547}, last completed work: 9", rank=r)
                for r in range(8)
            )
        )
    )  # fmt: skip
    assert [(s.node, s.rank) for s in told.suspects] == [("n4", 6)]
    assert told.suspects[0].confidence < CERTAIN


def test_two_ranks_and_one_is_a_collective_behind():
    told = diagnose(
        Evidence(
            Job("1", "big", "running", nodes=("n1", "n2")), rank_nodes={0: "n1", 1: "n2"}, world_size=2,
            recorded=[RankState(0, "0", 2, 1), RankState(1, "0", 1, 1)],
        )
    )  # fmt: skip
    assert (told.suspects[0].rank, told.suspects[0].node, told.advice) == (1, "n2", "same")


def test_a_rank_without_a_dump_is_named():
    told = diagnose(evidence(recorded=[RankState(r, "0", 9, 8) for r in range(8) if r != 3]))
    assert [(s.node, s.rank) for s in told.suspects] == [("n2", 3)]


def test_equal_everywhere_names_nobody():
    assert diagnose(evidence(recorded=[RankState(r, "0", 9, 8) for r in range(8)])).suspects == ()


def test_stacks_and_recorder_agree_and_contradict():
    behind = [RankState(r, "0", 8 if r == 6 else 9, 8) for r in range(8)]
    agree = diagnose(evidence(odd_ranks={6: "_try_get_data (dataloader.py:1)"}, recorded=behind))
    assert (agree.blamed, agree.advice) == (("n4",), "same")
    differ = diagnose(evidence(odd_ranks={0: "_try_get_data (dataloader.py:1)"}, recorded=behind))
    assert differ.blamed == ()
    assert {s.node for s in differ.suspects} == {"n1", "n4"}


def test_who_lags_behind_is_explained_by_broken_hardware_elsewhere():
    behind = [RankState(r, "0", 8 if r == 6 else 9, 8) for r in range(8)]
    told = diagnose(evidence(recorded=behind, incidents=[incident("n1")]))
    assert told.blamed == ("n1",)
    assert [(s.node, s.confidence) for s in told.suspects][1] == ("n4", 0.35)


def test_kernel_lines_count_when_they_are_of_the_time_of_the_failure():
    gone = "NVRM: Xid (PCI:0000:3b:00): 119, pid=1, Timeout after 6s"
    told = diagnose(evidence(line(gone, node="n2", path="kernel log of n2", time=4900.0)))
    assert (told.cause, told.blamed) == ("XidHardware", ("n2",))
    assert diagnose(evidence(line(gone, node="n2", path="kernel log of n2", time=1000.0))).cause == ""


def test_an_incident_of_the_node_in_time_explains_a_crash_without_words():
    told = diagnose(evidence(incidents=[incident("n2")]))
    assert (told.blamed, told.advice) == (("n2",), "exclude")
    assert diagnose(evidence(incidents=[incident("n2", at=4000.0)])).suspects == ()
    assert diagnose(evidence(incidents=[incident("elsewhere")])).suspects == ()
    shared = diagnose(evidence(incidents=[incident(n, "NfsNotResponding") for n in NODES]))
    assert shared.blamed == ()


def test_memory_that_ran_out_is_the_cause_and_the_node_may_stay():
    told = diagnose(
        evidence(line("  exitcode  : -9 (pid: 4242)", rank=2), incidents=[incident("n2", "HostOomKill")])
    )
    assert (told.cause, told.advice, told.blamed) == ("HostOutOfMemory", "same", ())
    assert told.suspects[0].node == "n2"


def test_memory_that_ran_out_before_the_run_began_is_none_of_its_affairs():
    job = Job("1", "big", "running", nodes=NODES, started_at=4995.0)
    told = diagnose(evidence(job=job, incidents=[incident("n2", "HostOomKill")]))
    assert (told.cause, told.suspects) == ("", ())
    later = diagnose(evidence(job=job, incidents=[incident("n2", "HostOomKill", at=5001.0)]))
    assert later.cause == "HostOutOfMemory"


def test_torchruns_list_tells_where_a_rank_lives():
    told = diagnose(
        evidence(
            line(ECC, rank=5), line("  exitcode  : 1 (pid: 42)", rank=5, node="n4", order=9), rank_nodes={}
        )
    )
    assert told.blamed == ("n4",)


def test_storage_that_fails_on_one_node_names_it_and_on_many_none():
    stale = "OSError: [Errno 116] Stale file handle: '/data/x.bin'"
    one = diagnose(evidence(line(stale, rank=2)))
    assert [(s.node, s.confidence) for s in one.suspects] == [("n2", 0.35)]
    many = diagnose(evidence(*(line(stale, rank=r, order=r) for r in (0, 2, 4, 6))))
    assert many.suspects[0].confidence < 0.15


def test_what_the_scheduler_says_of_a_node():
    told = diagnose(
        evidence(job=Job("1", "big", "ended", nodes=NODES, failed_nodes=("n4",), ended_by="node-failed"))
    )
    assert (told.cause, told.blamed, told.advice) == ("SlurmNodeFailure", ("n4",), "exclude")


def test_errors_of_the_user_blame_no_node_whatever_else_is_seen():
    told = diagnose(
        evidence(
            line("KeyError: 'loss'", rank=2, time=4999.0), incidents=[incident("n2")], odd_ranks={2: "x"}
        )
    )
    assert (told.cause, told.advice, told.suspects) == ("CodeError", "stop", ())
    assert "no node is to blame" in told.summary


def test_an_exception_of_a_rank_that_still_runs_was_handled():
    hung = Job("1", "big", "running", nodes=NODES)
    told = diagnose(evidence(line("KeyError: 'x'", rank=2), job=hung, odd_ranks={5: "state T"}))
    assert (told.cause, [s.node for s in told.suspects]) == ("", ["n3"])
    gone = {rank: node for rank, node in RANKS.items() if rank != 2}
    assert diagnose(evidence(line("KeyError: 'x'", rank=2), job=hung, rank_nodes=gone)).cause == "CodeError"


def test_who_ends_by_a_signal_did_not_end_by_an_exception():
    handled = line("requests.exceptions.HTTPError: 503 Server Error: Service Unavailable", rank=0)
    killed = line("  exitcode  : -9 (pid: 4242)", rank=3, order=9)
    assert diagnose(evidence(handled, killed)).cause == "ProcessKilled"
    failed = line("  exitcode  : 1 (pid: 4242)", rank=0, order=8)
    assert diagnose(evidence(handled, failed, killed)).cause == "ServiceAway"


def test_a_node_that_does_not_answer_while_the_others_do():
    job = Job("1", "big", "running", nodes=NODES)
    told = diagnose(evidence(job=job, unseen_nodes={"n3": "no route to host"}))
    assert [s.node for s in told.suspects] == ["n3"]
    assert diagnose(evidence(job=job, unseen_nodes=dict.fromkeys(NODES[:3], "timeout"))).suspects == ()
