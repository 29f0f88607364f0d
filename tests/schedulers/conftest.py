"""One real Slurm for all tests of schedulers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

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
def slurm() -> Iterator[Slurm]:
    # not below pytest's own folder: another pytest closes that to other users
    with (
        tempfile.TemporaryDirectory(prefix="ct-slurm-", ignore_cleanup_errors=True) as folder,
        cluster(Path(folder), nodes=4, extra=EXTRA) as made,
    ):
        yield made
