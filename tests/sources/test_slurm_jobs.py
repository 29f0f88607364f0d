"""What Slurm says of jobs, idle nodes and switches: as 22.05 says it, and as newer ones would."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustertools.errors import ConfigError, Unparsable
from clustertools.host import Completed, PassingHost, RecordedHost
from clustertools.sources.slurm_jobs import (
    idle_nodes,
    job_nodes,
    parse_idle,
    parse_job,
    parse_shares,
    parse_topology,
    topology,
)

# scontrol --details --oneliner show job, 22.05
DETAILS = (
    "JobId=4 JobName=sl UserId=root(0) GroupId=root(0) JobState=RUNNING Reason=None NodeList=n[1-3] "
    "CoreSpec=* JOB_GRES=gpu:8   Nodes=n[1-2] CPU_IDs=0-3,6 Mem=0 GRES=gpu:h100:2(IDX:0-1),nic:1   "
    "Nodes=n3 CPU_IDs=7 Mem=0 GRES=gpu:a100:1(IDX:3),gpu:h100:3(IDX:0-2) MinCPUsNode=1 Features=(null)"
)
TREE = """SwitchName=leaf1 Level=0 LinkSpeed=1 Nodes=n[1-2]
SwitchName=leaf2 Level=0 LinkSpeed=1 Nodes=n[3-4]
SwitchName=spine Level=1 LinkSpeed=1 Nodes=n[1-4] Switches=leaf[1-2]
SwitchName=lonely Level=0 LinkSpeed=1 Nodes=n9
SwitchName=above Level=1 LinkSpeed=1 Nodes=n9 Switches=lonely
"""
# 24.05 on: _print_topo_record in src/plugins/topology/block/topology_block.c
BLOCKS = """BlockName=b1 BlockIndex=0 Nodes=n[1-2] BlockSize=2
BlockName=b2 BlockIndex=1 Nodes=n[3-4] BlockSize=2
AggregatedBlock=b[1-2] BlockIndex=2 Nodes=n[1-4] BlockSize=4
"""


def unfold(folded: str) -> tuple[str, ...]:
    lists = {"n[1-2]": "n1 n2", "n[3-4]": "n3 n4", "n[1-4]": "n1 n2 n3 n4", "n[1-3]": "n1 n2 n3"}
    return tuple(lists.get(folded, folded).split())


class SlurmHost(PassingHost):
    """Answers by the first two words."""

    def __init__(self, **answers: str) -> None:
        super().__init__(RecordedHost.__new__(RecordedHost))
        self.answers = answers

    def run(self, *argv: str, timeout_seconds: float = 1.0, stdin: str = "") -> Completed:
        if argv[:3] == ("scontrol", "show", "hostnames"):
            return Completed(argv, 0, "\n".join(unfold(argv[3])), "")
        text = self.answers["job" if "job" in argv else argv[0]]
        error = "error" in text
        return Completed(argv, int(error), "" if error else text, text if error else "")


def test_a_jobs_share_of_each_node():
    job = job_nodes(SlurmHost(squeue="4|RUNNING|1000|alice|gpu|n[1-3]\n", job=DETAILS), "4")
    assert (job.state, job.user, job.user_id, job.partition) == ("RUNNING", "alice", 1000, "gpu")
    assert job.nodes == ("n1", "n2", "n3")
    assert job.gpus == {"n1": 2, "n2": 2, "n3": 4}
    assert job.cpus == {"n1": 5, "n2": 5, "n3": 1}


def test_a_job_that_waits_holds_nothing():
    job = job_nodes(SlurmHost(squeue="5|PENDING|0|root|gpu|\n", job="JobId=5 NodeList=(null)"), "5")
    assert (job.state, job.nodes) == ("PENDING", ())


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ("slurm_load_jobs error: Invalid job id specified\n", "knows no such job"),
        ("", "knows no such job"),
        ("7|RUNNING|0|root|gpu|n1\n8|RUNNING|0|root|gpu|n3\n", "2 parts"),
    ],
)
def test_a_job_that_cannot_be_named(said, complaint):
    with pytest.raises(ConfigError, match=complaint):
        job_nodes(SlurmHost(squeue=said), "7")


@pytest.mark.parametrize("job_id", ["", "n1", "7;id", "--help", "7 8", "7\n"])
def test_what_is_no_jobs_number_is_not_asked_for(job_id):
    with pytest.raises(ConfigError, match="expected a job's number"):
        job_nodes(SlurmHost(), job_id)


def test_another_form_is_not_guessed_at():
    with pytest.raises(Unparsable):
        parse_job("JOBID PARTITION NAME\n", "7")
    with pytest.raises(Unparsable):
        parse_idle("NODELIST STATE\n", set())
    with pytest.raises(Unparsable):
        parse_topology("Switch leaf1: n[1-2]\n", unfold)


def test_nodes_that_would_take_a_job_now():
    said = "n1|idle|main*|h100,ib\nn1|idle|debug|h100,ib\nn2|idle*|main*|h100\nn3|mixed|main*|h100\n"
    said += "n4|idle~|main*|h100\nn5|idle|main*|a100\nn6|planned|main*|h100\nn7|drained|main*|(null)\n"
    assert idle_nodes(SlurmHost(sinfo=said)) == ("n1", "n5")
    assert idle_nodes(SlurmHost(sinfo=said), features="ib, h100") == ("n1",)


def test_a_partition_that_is_none():
    assert idle_nodes(SlurmHost(sinfo="")) == ()
    with pytest.raises(ConfigError, match="partition 'gpuu'"):
        idle_nodes(SlurmHost(sinfo=""), "gpuu")


def test_switches_nearest_first():
    above = topology(SlurmHost(scontrol=TREE))
    assert above["n2"] == ("leaf1", "spine")
    assert above["n3"] == ("leaf2", "spine")
    assert above["n9"] == ("lonely", "above")


def test_blocks_nearest_first():
    assert parse_topology(BLOCKS, unfold)["n3"] == ("b2", "b[1-2]")


def test_rings_and_what_has_no_switch():
    text = "RingName=r1 Nodes=n[1-2] RingSize=2\nTorusName=t Dims=1x2x1 Nodes=n[3-4]\n"
    assert parse_topology(text, unfold) == {"n1": ("r1",), "n2": ("r1",)}


def test_no_topology_is_no_knowledge():
    assert topology(SlurmHost(scontrol="scontrol: error: No topology information available")) == {}


@given(st.text(max_size=200))
def test_no_text_breaks_the_parsers(text):
    list(parse_shares(" Nodes=n1 CPU_IDs=0 Mem=0 GRES=" + text))
    for parse in (lambda: parse_topology(text, unfold), lambda: parse_idle(text, set())):
        try:
            parse()
        except Unparsable:
            continue
