"""A run whose log a test writes by hand, and one check that follows it over a machine in memory."""

from __future__ import annotations

import dataclasses
from typing import Any

from clustertools import check as checking
from clustertools.model import Attempt, Job, Verdict
from clustertools.sources.job_look import JobLook
from tests.lab.memory_host import MemoryHost

LOG = "/scratch/train.log"


class FollowedRun:
    """`say` lines, `look`, and begin it `again`."""

    def __init__(self, check: str, limits: Any = None, **job: Any) -> None:
        self.check = checking.discover(site_folders=())[check]
        self.limits = limits
        self.host = MemoryHost()
        self.host.files[LOG] = ""
        self.memory: dict[str, Any] = {}
        self.job = Job(
            "4711", "big", "running", 1, ("n1", "n2"), started_at=self.host.time, log_paths=(LOG,),
            attempts=(Attempt("big", 1, "t1", "4711"),),
        )  # fmt: skip
        self.job = dataclasses.replace(self.job, **job)

    def say(self, *lines: str) -> None:
        self.host.files[LOG] = str(self.host.files[LOG]) + "".join(line + "\n" for line in lines)

    def look(self, *lines: str, after: float = 30.0, looked: JobLook | None = None) -> Verdict:
        """The verdict after `lines` were written and `after` seconds went by."""
        self.say(*lines)
        self.host.time += after
        verdict = checking.run(
            self.check, self.host, limits=self.limits, past=self.memory, job=self.job, looked=looked
        )
        assert "the check itself failed" not in verdict.blind, verdict.detail
        if not verdict.wants_look:
            self.memory = dict(verdict.memory)
        return verdict

    def again(self, resume_step: int | None, *, job_id: str = "", truncate: bool = False) -> None:
        """The next start: by us, with the checkpoint that it was given, or as another job."""
        number = self.job.attempt + 1
        attempt = Attempt("big", number, f"t{number}", job_id or self.job.id, resume_step=resume_step)
        self.job = dataclasses.replace(
            self.job, id=attempt.job_id, attempt=number, attempts=(*self.job.attempts, attempt),
            started_at=self.host.time, state="running",
        )  # fmt: skip
        if truncate:
            self.host.files[LOG] = ""
            self.host.inodes[LOG] = number
