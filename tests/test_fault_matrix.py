"""Every fault of a training cluster, made for real, and the whole answer to it: docs/faults.md as a test."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.lab import fault_table, watch_troubles
from tests.lab.fault_matrix import FaultMatrix, Row
from tests.lab.slurm import needs_slurm
from tests.lab.stuck_files import needs_fuse

real = [pytest.mark.slow, pytest.mark.torch, pytest.mark.root, needs_slurm]


def all_right(rows: Sequence[Row], story: str) -> None:
    for row in rows:
        print(fault_table.line(row))
    wrong = [f"{row.fault.name}: {'; '.join(row.wrong)}" for row in rows if row.wrong]
    assert not wrong, "\n".join([*wrong, story])


@pytest.mark.timeout(600)
class TestReal:
    pytestmark = real

    @pytest.fixture(autouse=True)
    def _torch(self):
        pytest.importorskip("torch")

    def test_each_fault_is_told_the_guilty_is_named_and_the_job_goes_on_where_it_should(self, tmp_path):
        with FaultMatrix(tmp_path) as matrix:
            matrix.play()
            all_right(matrix.rows(), matrix.lab.story())
            assert matrix.starts_on_a_full_disk == 1, "it was started on a full disk"
            assert matrix.drained_reason() == "fan, asks anna", "a person's drain was touched"

    @needs_fuse
    def test_a_watchdog_that_cannot_see_does_nothing_and_goes_on_afterwards(self, tmp_path):
        all_right(watch_troubles.blind(tmp_path), "")

    def test_a_watchdog_killed_at_each_commit_of_a_restart_does_nothing_twice(self, tmp_path):
        all_right(watch_troubles.killed(tmp_path), "")


def test_the_table_in_the_documentation_has_each_fault_that_is_tested():
    written = [
        text.split("|")[1].strip()
        for text in fault_table.PAGE.read_text(encoding="utf-8").splitlines()
        if text.startswith("| ")
    ]
    assert written[2:] == fault_table.NAMES
