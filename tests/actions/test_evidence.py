"""The evidence of a job: what is in its folder, how much, for whose eyes, and for how long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from clustertools.actions import evidence_folder
from clustertools.actions.capture import LOG_TAIL_BYTES, evidence, recorded
from clustertools.actions.evidence_folder import EvidenceFolder, folder_name, read_manifest, tidy
from clustertools.errors import ActionFailed
from clustertools.host import Completed, LocalHost, PassingHost
from clustertools.model import Job, RankState
from clustertools.sources.flight_recorder import Dump
from clustertools.sources.job_look import GpuActivity, JobLook, LookOrder, NodeLook
from clustertools.sources.rank_files import Gathered, JobFiles, NodeFile
from clustertools.sources.stacks import Frame, Stack

BUSY = (Frame("all_reduce", "distributed_c10d.py", 3), Frame("step", "train.py", 7))
LATE = (Frame("read_batch", "data.py", 41), Frame("step", "train.py", 6))


def node(name: str, *ranks: int, odd: int = -1) -> NodeLook:
    return NodeLook(
        name, 9.0, ranks={str(rank): 100 + rank for rank in ranks},
        stacks=tuple(Stack(100 + r, r, "MainThread", LATE if r == odd else BUSY, "S") for r in ranks),
        gpus=(GpuActivity(0, "0000:3b:00.0", power_watts=90.0),),
        kernel=(f"2026-11-21T19:30:12Z NVRM: Xid on {name}",),
    )  # fmt: skip


@dataclass
class Fleet:
    """Two nodes that answer and one that does not, as a looker."""

    seen: JobLook = field(
        default_factory=lambda: JobLook(
            (node("n1", 0, 1), node("n2", 2, 3, odd=2)), {"n3": "no route to host"}
        )
    )
    dumps: tuple[Dump, ...] = (
        Dump(0, "2.10", (RankState(0, "default_pg (0)", 6, 5),)),
        Dump(2, "2.10", (RankState(2, "default_pg (0)", 5, 5),)),
    )
    asked: list[bool] = field(default_factory=list)

    def look(self, orders: Sequence[LookOrder]) -> Mapping[str, JobLook]:
        (order,) = orders
        assert (order.request.job_id, order.nodes, order.how) == ("4711", ("n1", "n2", "n3"), "srun")
        return {order.request.run: self.seen}

    def bring(self, order: LookOrder, *, ask_dumps: bool = True) -> JobFiles:
        self.asked.append(ask_dumps)
        return JobFiles(
            {"n2": (NodeFile("flight-recorder-rank2", "/scratch/trace_2", b"\x80\x02}."),)},
            {"n1": Gathered(), "n2": Gathered(self.dumps, 4, ("rank 3 gave none",))},
            {"n3": "no route to host"},
        )


class Head(PassingHost):
    """This machine, with a scontrol."""

    def run(self, *argv: str, timeout_seconds: float = 1.0, stdin: str = "") -> Completed:
        if argv[0] == "scontrol":
            return Completed(argv, 0, "JobId=4711 JobName=pretrain\n", "")
        return super().run(*argv, timeout_seconds=timeout_seconds, stdin=stdin)


@pytest.fixture
def head() -> Head:
    return Head(LocalHost("head"))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    log = tmp_path / "logs" / "slurm-4711.out"
    log.parent.mkdir()
    log.write_text("begin\n" + "x" * LOG_TAIL_BYTES + "\nstep 99\n")
    error = tmp_path / "logs" / "elastic" / "4711_ab" / "attempt_0" / "2" / "error.json"
    error.parent.mkdir(parents=True)
    error.write_text('{"message": "died"}')
    return Job("4711", "pretrain", "running", nodes=("n1", "n2", "n3"), log_paths=(str(log),), started_at=1.0)


def test_all_that_is_seen_is_in_the_folder_with_where_it_came_from(tmp_path, head, job):
    fleet, folder = Fleet(), tmp_path / "evidence"
    told = evidence(head, job, folder, looker=fleet, how="srun", because="JobHung:run:pretrain")
    text = {path.name: path.read_text(errors="replace") for path in folder.iterdir()}
    assert text["stacks.txt"].startswith("rank 2: read_batch (data.py:41) < step (train.py:6)\nranks 0-1,3: ")
    assert "n1: ranks 0-1\nn2: ranks 2-3\nn3: not seen: no route to host" in text["stacks.txt"]
    assert told["stacks.txt"].startswith("rank 2: ")
    assert json.loads(text["nodes.json"])[0]["gpus"][0]["power_watts"] == 90.0
    assert "n2 2026-11-21T19:30:12Z NVRM: Xid on n2" in text["kernel-nodes.txt"]
    assert text["log-0-slurm-4711.out"].endswith("step 99\n")
    assert len(text["log-0-slurm-4711.out"]) == LOG_TAIL_BYTES
    assert "died" in text["beside-4711_ab-attempt_0-2-error.json"]
    assert "JobName=pretrain" in text["slurm-job.txt"]
    assert text["flight-recorder.txt"].startswith("rank 2 is behind in default_pg (0)")
    assert "no dump of ranks 1,3" in text["flight-recorder.txt"]
    assert (folder / "n2-flight-recorder-rank2").read_bytes() == b"\x80\x02}."
    said = recorded(folder)
    assert (said.states, said.world_size) == (tuple(s for d in fleet.dumps for s in d.states), 4)
    assert set(said.rank_nodes) == {d.rank for d in fleet.dumps}
    assert "look at n3: not seen: no route to host" in text["missing.txt"]
    assert "rank 3 gave none" in text["missing.txt"]
    # the head is not a node of the job: its kernel says nothing of it
    assert "kernel.txt" not in text
    manifest = read_manifest(folder)
    assert manifest["files"]["n2-flight-recorder-rank2"]["source"] == "n2:/scratch/trace_2"
    assert manifest["because"] == "JobHung:run:pretrain"
    assert set(manifest["files"]) == set(text) - {"manifest.json", "missing.txt"}
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {"0o600"}
    assert oct(folder.stat().st_mode & 0o777) == "0o700"
    assert fleet.asked == [True]


def test_a_second_capture_never_replaces_what_is_better(tmp_path, head, job):
    fleet, folder = Fleet(), tmp_path / "evidence"
    evidence(head, job, folder, looker=fleet, how="srun")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    evidence(head, job, folder, looker=fleet, how="srun")
    assert {p.name for p in folder.iterdir()} == set(before)

    # the job was killed and began anew: no ranks, its log cut to nothing, one node more that answers
    log = Path(job.log_paths[0])
    log.write_text("start again\n")
    fleet.seen = JobLook((node("n1"), node("n2", 2), node("n3", 4)), {})
    evidence(head, job, folder, looker=fleet, how="srun")
    for name in ("stacks.txt", "log-0-slurm-4711.out", "nodes.json"):
        assert (folder / name).read_bytes() == before[name]
    assert (folder / "log-0-slurm-4711-2.out").read_text() == "start again\n"
    assert (folder / "stacks-2.txt").read_text().startswith("ranks 2,4: ")
    # a log that went on takes the place of its own beginning
    log.write_text("start again\nstep 1\n")
    evidence(head, job, folder, looker=fleet, how="srun")
    assert (folder / "log-0-slurm-4711-2.out").read_text() == "start again\nstep 1\n"
    assert (folder / "log-0-slurm-4711.out").read_bytes() == before["log-0-slurm-4711.out"]

    # nothing can be seen any more: all that was, stays
    log.unlink()
    fleet.seen, fleet.dumps = JobLook((), dict.fromkeys(job.nodes, "powered off")), ()
    evidence(head, job, folder, looker=fleet, how="srun")
    for name in ("stacks.txt", "log-0-slurm-4711.out", "flight-recorder.txt"):
        assert (folder / name).read_bytes() == before[name]
    assert "log-0" not in (folder / "missing.txt").read_text()


def test_a_look_that_breaks_keeps_nothing_of_the_rest_from_being_saved(tmp_path, head, job):
    class Broken(Fleet):
        def look(self, orders: Sequence[LookOrder]) -> Mapping[str, JobLook]:
            raise ZeroDivisionError("oops")

        def bring(self, order: LookOrder, *, ask_dumps: bool = True) -> JobFiles:
            raise ZeroDivisionError("oops")

    job = replace(job, metrics_path=str(tmp_path / "none.json"))
    told = evidence(head, job, tmp_path / "evidence", looker=Broken(), how="srun")
    assert told["stacks.txt"].startswith("not seen")
    assert told["log-1-none.json"].startswith("not seen")
    missing = (tmp_path / "evidence" / "missing.txt").read_text()
    assert "ZeroDivisionError: oops" in missing
    assert "no such file" in missing.lower()
    assert (tmp_path / "evidence" / "log-0-slurm-4711.out").exists()


@pytest.fixture
def sleeper() -> Iterator[int]:
    words = [
        sys.executable,
        "-c",
        "import time\ndef waits():\n time.sleep(99)\nprint(1, flush=True)\nwaits()",
    ]
    child = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    yield child.pid
    child.kill()
    child.wait()
    child.stdout.close()


def test_without_a_looker_this_machine_is_looked_at(tmp_path, sleeper):
    job = Job("here-1", "demo", "running", pids=(sleeper,))
    told = evidence(LocalHost("here"), job, tmp_path / "evidence")
    seen = json.loads((tmp_path / "evidence" / "processes.json").read_text())
    assert [one["pid"] for one in seen["here"]] == [sleeper]
    assert "slurm-job.txt" not in told
    assert "kernel.txt" in told
    assert evidence(LocalHost("here"), None, tmp_path / "node").keys() == {"kernel.txt"}


def test_one_incident_does_not_fill_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence_folder, "MOST_BYTES", 1000)
    monkeypatch.setattr(evidence_folder, "MOST_FILES", 4)
    with EvidenceFolder(tmp_path / "e", 1.0) as folder:
        assert folder.add("a", b"x" * 600, "here") == "a"
        assert folder.add("b", b"x" * 600, "here") == ""
        assert folder.add("c", b"x" * 400, "here") == "c"
        assert folder.add("a", b"x" * 600, "here") == "a"
        assert folder.add("d", b"", "here") == "d"
        assert folder.add("e", b"", "here") == "e"
        assert folder.add("f", b"", "here") == ""
    missing = (tmp_path / "e" / "missing.txt").read_text()
    assert "b: not kept: one incident keeps 0 MiB" in missing
    assert "f: not kept: one incident keeps 4 files" in missing
    with EvidenceFolder(tmp_path / "e", 2.0) as folder:
        assert folder.add("g", b"x", "here") == ""


def test_a_filling_that_was_killed_is_gone_on_with(tmp_path):
    folder = tmp_path / "e"
    with EvidenceFolder(folder, 1.0) as saved:
        saved.add("stacks.txt", "first", "here")
    (folder / "manifest.json").write_text("{")
    (folder / ".nodes.json.77").write_text("half")
    with EvidenceFolder(folder, 2.0) as saved:
        assert saved.add("stacks.txt", "second", "here") == "stacks-2.txt"
    assert sorted(p.name for p in folder.iterdir()) == [
        "manifest.json", "missing.txt", "stacks-2.txt", "stacks.txt",
    ]  # fmt: skip
    assert (folder / "stacks.txt").read_text() == "first"


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ActionFailed, match="could not save the evidence"):
        evidence(LocalHost("here"), None, tmp_path / "file" / "e")


def test_no_name_from_a_node_leads_out_of_the_folder(tmp_path, head, job):
    class Hostile(Fleet):
        def bring(self, order: LookOrder, *, ask_dumps: bool = True) -> JobFiles:
            names = ("../../up", "/etc/passwd", "a\n\x1b[2J", "manifest.json")
            return JobFiles({"../n1": tuple(NodeFile(name, "/x", b"?") for name in names)})

    evidence(head, job, tmp_path / "evidence", looker=Hostile(), how="srun")
    assert set(os.listdir(tmp_path)) == {"evidence", "logs"}
    assert read_manifest(tmp_path / "evidence")["files"]


def old(root: Path, began: int, because: str, size: int) -> Path:
    folder = root / folder_name(began, because)
    folder.mkdir(parents=True)
    (folder / "log").write_bytes(b"x" * size)
    return folder


def test_the_oldest_of_resolved_incidents_go_first(tmp_path):
    root = tmp_path / "evidence"
    spared = old(root, 100, "JobHung:run:a b", 500)
    first, second, third = (old(root, began, f"JobCrashed:run:{began}", 500) for began in (200, 300, 400))
    (root / "notes").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (root / "150-link").symlink_to(tmp_path / "elsewhere")
    assert tidy(root, ["JobHung:run:a b"], 500, total_bytes=2000) == []
    assert tidy(root, ["JobHung:run:a b"], 500, total_bytes=1100) == [first.name, second.name]
    assert {p.name for p in root.iterdir()} == {spared.name, third.name, "notes", "150-link"}
    assert tidy(root, ["JobHung:run:a b"], 400 + 91 * 86400) == [third.name]
    assert tidy(root, [], 500, total_bytes=0) == [spared.name]
    assert (tmp_path / "elsewhere").is_dir()
    assert tidy(tmp_path / "never", [], 1.0) == []
