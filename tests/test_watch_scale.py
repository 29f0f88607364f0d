"""The cluster's watchdog over a thousand runs on ten thousand nodes: what it costs, and what it keeps."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from clustertools.check import Deadlined, discover
from clustertools.host import LocalHost, PassingHost
from clustertools.model import Status
from clustertools.schedulers.slurm import SlurmScheduler
from clustertools.sources.training_log import follow
from clustertools.store import Store
from clustertools.watchdog import Settings, Watchdog
from tests.lab.many_jobs import ManyJobs
from tests.lab.many_nodes import BigCluster, folded, wanted


def watchdog(site: ManyJobs, host: PassingHost, state: Path, *, without: set[str] = frozenset()) -> Watchdog:
    checks = [c for c in discover(site_folders=()).values() if "job" in c.stages and c.name not in without]
    return Watchdog(
        Store(state), host, SlurmScheduler(host), checks, wanted=wanted(site), settings=Settings()
    )  # fmt: skip


def cpu_seconds() -> float:
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])


@pytest.mark.slow
def test_a_thousand_runs(tmp_path):
    site = ManyJobs(tmp_path / "runs", 1000, lines=10)
    cluster = BigCluster(site, 10_000)
    # a thousand listings of checkpoints are the benchmark's (benchmarks/watch_scale.py)
    dog = watchdog(site, cluster, tmp_path / "state.db", without={"job_checkpoint"})
    dog.once()
    site.grow()
    began = cpu_seconds()
    seen = dog.once()
    spent = cpu_seconds() - began
    progress = {v.subject.run: v for v in seen.verdicts if v.check == "job_progress"}
    assert len(progress) == len(seen.jobs) == 1000
    assert {v.status for v in progress.values()} == {Status.OK}
    assert all(any(r.name == "job_last_step" for r in v.readings) for v in progress.values())
    assert not [f for v in seen.verdicts for f in v.findings]
    assert not seen.blind
    assert cluster.asked == ["squeue", "squeue"], "one question a pass, whatever there is to watch"
    assert spent < 20, "2 s on an idle machine; a slow and busy one is granted ten times that"
    dog.store.close()


def test_only_the_runs_that_the_config_names(tmp_path):
    site = ManyJobs(tmp_path / "runs", 10, lines=2)
    dog = watchdog(site, BigCluster(site, 200), tmp_path / "state.db", without={"job_checkpoint"})
    names = {job.run for job in dog.once().jobs}
    assert names == {f"big-pretrain-{n:04d}" for n in range(8)} | {"sweep_8", "sweep_9"}
    assert sum(len(job.nodes) for job in dog.once().jobs) == 64 + 9 * 8
    dog.store.close()


def test_names_are_folded_as_slurm_folds_them():
    assert folded([1, 2, 3, 7]) == "n[00001-00003,00007]"
    assert folded([5]) == "n00005"


class Later(PassingHost):
    """A host whose clock the test moves."""

    time = 0.0

    def now(self) -> float:
        return self.time


@pytest.mark.slow
def test_the_state_does_not_grow(tmp_path):
    """A thousand passes, an hour apart: six weeks."""
    site = ManyJobs(tmp_path / "runs", 1, lines=2)
    host = Later(BigCluster(site, 100))
    host.time = site.now
    dog = watchdog(site, host, tmp_path / "state.db", without={"job_checkpoint"})
    dog.store._db.execute("PRAGMA synchronous = OFF")
    rows = []
    for number in range(1000):
        host.time += 3600.0
        site.grow(1, host.time)
        dog.once()
        if number % 25 == 24:
            tables = ("verdict", "cursor", "reading", "attempt", "incident", "transition", "delivery")
            rows.append(sum(dog.store._db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in tables))
    assert rows[-1] <= 1.02 * max(rows[-10:-5]), f"it grows still: {rows[-10:]}"
    memory = max(len(row[0]) for row in dog.store._db.execute("SELECT data FROM cursor"))
    assert memory < 20_000, "what a check remembers of a run is bounded"
    dog.store.close()


class Counting(PassingHost):
    """A host that counts what is read."""

    reads = 0

    def read(self, path, offset=0, limit=None):
        self.reads += 1
        return self.host.read(path, offset, limit)


def test_checks_of_one_run_share_what_one_of_them_read(tmp_path):
    log = tmp_path / "log"
    log.write_text("".join(f"iter {n}: loss 3.1, time 500.00ms, mfu 35.20%\n" for n in range(9)))
    host = LocalHost()
    first, second = Counting(host), Counting(Deadlined(host, 60))
    one = follow(first, str(log), {})
    assert (first.reads > 0, len(one.points)) == (True, 9)
    assert follow(second, str(log), {}) == one
    assert second.reads == 0
    with open(log, "a") as more:
        more.write("iter 9: loss 3.1, time 500.00ms, mfu 35.20%\n")
    # as they come back from the store
    kept = [json.loads(json.dumps(one.memory)) for _ in range(2)]
    two = follow(first, str(log), kept[0])
    assert [p.step for p in two.points] == [9]
    assert follow(second, str(log), kept[1]) == two
    assert second.reads == 0
    assert len(follow(Counting(LocalHost()), str(log), {}).points) == 10, "another machine's log is another"
    assert len(follow(second, str(log), {}).points) == 10, "who remembers something else reads for himself"
    assert second.reads > 0
