"""One real Slurm for all tests of schedulers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.slurm import Slurm, cluster

# a dead node is seen within ten seconds; a job of `high` takes the nodes of one of `main`
EXTRA = """
JobRequeue=1
SlurmdTimeout=2
MessageTimeout=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=high Nodes=n[1-4] PriorityTier=10 State=UP
"""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with cluster(tmp_path_factory.mktemp("slurm"), nodes=4, extra=EXTRA) as made:
        yield made
