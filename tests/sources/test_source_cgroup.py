"""A process's job, by its cgroup."""

from __future__ import annotations

import pytest

from clustertools.host import LocalHost
from clustertools.sources.cgroup import job_of, job_owner, slurm_job, systemd_path


@pytest.mark.parametrize(
    ("text", "job"),
    [
        ("0::/system.slice/slurmstepd.scope/job_4812/step_0/user/task_0\n", "4812"),
        ("0::/system.slice/gpu-017_slurmstepd.scope/job_4812/step_batch/user/task_special\n", "4812"),
        ("12:devices:/slurm/uid_1000/job_77/step_0\n11:memory:/slurm/uid_1000/job_77/step_0/task_0\n", "77"),
        ("5:cpuset:/slurm_gpu-017/uid_1000/job_9/step_batch\n", "9"),
        ("0::/slurm/uid_1000/job_77\n", "77"),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", ""),
        ("0::/kubepods.slice/kubepods-pod1234.slice/cri-containerd-ab.scope\n", ""),
        ("0::/my/job_12/thing\n", ""),
        ("0::/slurm/job_\n", ""),
        ("", ""),
        ("\0" * 100, ""),
        ("0::/slurm" + "/x" * 5_000_000, ""),
    ],
)
def test_the_job_in_a_path(text: str, job: str) -> None:
    assert slurm_job(text) == job


@pytest.mark.parametrize(
    ("text", "owner", "path"),
    [
        ("5:memory:/slurm/uid_1000/job_77/step_0\n1:name=systemd:/system.slice/slurmd.service\n0::/\n",
         1000, "/system.slice/slurmd.service"),
        ("5:cpuset:/slurm_gpu-017/uid_1001/job_9/step_batch\n", 1001, ""),
        ("0::/system.slice/slurmstepd.scope/job_4812/step_0/user/task_0\n",
         None, "/system.slice/slurmstepd.scope/job_4812/step_0/user/task_0"),
        ("0::/user.slice/uid_7/job_x\n", None, "/user.slice/uid_7/job_x"),
        ("", None, ""),
        ("\0" * 100000, None, ""),
    ],
)  # fmt: skip
def test_the_owner_and_systemds_place(text: str, owner: int | None, path: str) -> None:
    assert (job_owner(text), systemd_path(text)) == (owner, path)


def test_a_process_that_is_not_there() -> None:
    assert job_of(LocalHost(), 2**22 + 5, "python", 1e12) == ""
