"""Three hundred job-hours of healthy runs without one false alarm, and true faults that are all found.

CLUSTERTOOLS_JOB_HOURS=10000 simulates more; the same seeds give the same lives.
"""

from __future__ import annotations

import os

import pytest

from clustertools.check import discover
from tests.lab.job_hours import FAULTS, SimulatedRun, Told

HOURS = float(os.environ.get("CLUSTERTOOLS_JOB_HOURS", "300"))
HOURS_A_RUN = 25.0
#: What wakes people, or restarts a run. JobSilent does neither, and is counted beside them.
ALARMS = {"JobHung", "JobIdle", "JobResumeWrong", "JobSlow"} | set(discover(())["job_loss"].codes)


@pytest.mark.slow
def test_healthy_runs_raise_no_alarm_and_faults_are_found() -> None:
    told = Told()
    faults = sorted(FAULTS)
    for seed in range(max(1, round(HOURS / HOURS_A_RUN))):
        run = SimulatedRun(seed)
        run.live(HOURS_A_RUN)
        run.fault(faults[seed % len(faults)])
        told.add(run.told)
    print(
        f"{told.hours:.0f} job-hours, {told.passes} passes, {told.looks} looks; false alarms: "
        f"{dict(told.alarms)}; found: {dict(told.found)}; missed: {dict(told.missed)}"
    )
    assert {code: n for code, n in told.alarms.items() if code in ALARMS} == {}, "\n".join(told.stories)
    assert told.missed == {}, "\n".join(told.stories)
    assert told.alarms["JobSilent"] <= max(1, told.hours / 1000)
