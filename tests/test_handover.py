"""What the launcher is given after a preflight: only good nodes, and never in silence."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clustertools import handover
from clustertools.errors import ConfigError
from clustertools.handover import Launch, Refused
from clustertools.measurement import Grade, Suspect
from clustertools.model import Status
from clustertools.preflight_report import NodeResult, Report, Terms, Untested
from tests.lab.slurm import Slurm, needs_slurm

EIGHT = tuple(f"gpu{n}" for n in range(1, 9))


def report(asked=EIGHT, spares=(), fates=None, terms=None, **grades: Grade) -> Report:
    nodes = tuple(
        NodeResult(n, grades.get(n, Grade.GOOD), spare=n in spares, fate=(fates or {}).get(n, "completed"))
        for n in (*asked, *spares)
    )
    return Report(1.0, 2.0, tuple(asked), nodes, terms=terms or Terms())


SEVEN = report(gpu7=Grade.SLOW, terms=Terms(need=7))


def plan(full: Report, *argv: str, environ=None, hostfile="") -> Launch:
    made = handover.launch(full, argv, environ=environ or {}, hostfile=hostfile)
    assert isinstance(made, Launch), made
    return made


def refusal(full: Report, *argv: str, environ=None) -> Refused:
    made = handover.launch(full, argv, environ=environ or {})
    assert isinstance(made, Refused), made
    return made


def test_a_launch_on_all_good_nodes_is_left_as_it_is():
    made = plan(report(), "torchrun", "--nnodes=8", "train.py")
    assert made.argv == ("torchrun", "--nnodes=8", "train.py")
    assert made.nodes == EIGHT
    assert made.environment == {
        "CLUSTERTOOLS_GOOD_NODES": "gpu[1-8]",
        "CLUSTERTOOLS_EXCLUDE": "",
        "CLUSTERTOOLS_NNODES": "8",
    }
    inside = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "gpu[1-8]", "SLURM_NTASKS": "64"}
    assert plan(report(), "srun", "train.py", environ=inside).argv == ("srun", "train.py")


def test_outside_of_an_allocation_slurm_is_bound_to_the_nodes_that_were_tested():
    words = ("--nodes=8", "--nodelist=gpu[1-8]")
    assert plan(report(), "/usr/bin/sbatch", "job.sh").argv == ("/usr/bin/sbatch", *words, "job.sh")


INSIDE = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "gpu[1-8]",
    "SLURM_NNODES": "8",
    "SLURM_JOB_NUM_NODES": "8",
    "SLURM_NTASKS": "64",
    "SLURM_NPROCS": "64",
}


def test_seven_of_eight_inside_an_allocation():
    assert refusal(report(gpu7=Grade.SLOW), "srun", "train", environ=INSIDE).status is Status.CRITICAL
    made = plan(SEVEN, "srun", "--label", "train", environ=INSIDE)
    assert made.argv == (
        "srun", "--nodes=7", "--nodelist=gpu[1-6,8]", "--exclude=gpu7", "--label", "train",
    )  # fmt: skip
    assert made.environment["SLURM_NTASKS"] == made.environment["SLURM_NPROCS"] == "56"
    assert made.environment["SLURM_NNODES"] == made.environment["SLURM_JOB_NUM_NODES"] == "7"
    assert "slow: gpu7" in made.sentence


def test_a_good_node_that_is_left_over_is_kept_out_too():
    """srun adds nodes of the allocation to --nodelist when a larger --nodes follows."""
    made = plan(report(terms=Terms(need=7)), "srun", "train", environ=INSIDE)
    assert "--exclude=gpu8" in made.argv


def test_a_job_that_is_submitted_from_a_job_is_not_bound_to_its_allocation():
    full = report(gpu7=Grade.SLOW, spares=("s1",))
    made = plan(full, "sbatch", "job.sh", environ=INSIDE)
    assert made.argv[1:4] == ("--nodes=8", "--nodelist=gpu[1-6,8],s1", "--exclude=gpu7")
    assert "SLURM_NTASKS" not in made.environment


def test_tasks_that_do_not_divide_are_left_and_told():
    made = plan(SEVEN, "srun", "train", environ={**INSIDE, "SLURM_NTASKS": "63"})
    assert "SLURM_NTASKS" not in made.environment
    assert made.warnings[-1] == "SLURM_NTASKS=63 does not divide by 8 nodes: say -n yourself"


def test_a_spare_outside_of_the_allocation_is_refused():
    full = report(gpu7=Grade.SLOW, spares=("s1",))
    assert "not in the allocation of job 7: s1" in refusal(full, "srun", "train", environ=INSIDE).reason


@pytest.mark.parametrize(
    ("fate", "grade", "status"),
    [
        ("unreachable", Grade.UNTESTED, Status.UNKNOWN),
        ("host-key", Grade.UNTESTED, Status.UNKNOWN),
        ("refused", Grade.UNTESTED, Status.UNKNOWN),
        ("lost", Grade.COULD_NOT_RUN, Status.UNKNOWN),
        ("lost", Grade.GOOD, Status.UNKNOWN),
        ("timeout", Grade.UNTESTED, Status.UNKNOWN),
        ("completed", Grade.UNTESTED, Status.UNKNOWN),
        ("completed", Grade.COULD_NOT_RUN, Status.UNKNOWN),
        ("completed", Grade.SLOW, Status.CRITICAL),
        ("completed", Grade.WRONG_DATA, Status.CRITICAL),
        ("completed", Grade.BAD_HARDWARE, Status.CRITICAL),
    ],
)
def test_no_launch_on_a_node_that_is_not_good(fate, grade, status):
    for argv in (("srun", "x"), ("mpirun", "--host", "{good_nodes_comma}", "x")):
        refused = refusal(report(gpu3=grade, fates={"gpu3": fate}), *argv)
        assert refused.status is status
        assert "gpu3" in refused.reason


def test_no_launch_without_a_required_test_or_over_a_broken_path():
    full = report()
    untested = Report(1.0, 2.0, EIGHT, full.nodes, untested=(Untested("all-reduce", "no time", (), True),))
    assert "all-reduce was not tested: no time" in refusal(untested, "srun", "x").reason
    path = Suspect("path", ("gpu1", "gpu2"), Grade.BAD_HARDWARE, 0.9, "")
    assert (
        "gpu1 and gpu2" in refusal(Report(1.0, 2.0, EIGHT, full.nodes, suspects=(path,)), "srun", "x").reason
    )


def test_a_command_that_cannot_know_the_nodes_is_refused():
    """A script's own srun would start on the bad node: it does not choose by its environment (tried)."""
    for argv in (("bash", "run.sh"), ("torchrun", "--nnodes={count}", "train.py")):
        refused = refusal(SEVEN, *argv, environ=INSIDE)
        assert "{good_nodes}" in refused.reason
        assert "left out: gpu7" in refused.reason
    assert plan(SEVEN, "env", "NODES={good_nodes}", "bash", "run.sh").argv[1] == "NODES=gpu[1-6,8]"


def test_placeholders_are_replaced_and_other_braces_survive():
    made = plan(
        SEVEN,
        "run",
        "--nodes={count}:{good_nodes}",
        "{good_nodes_comma}",
        "--x={exclude}",
        "{hostfile}",
        '{"count": 3, "a": {"hostfile": 1}}',
        "${count}",
        "{{count}}",
        "{unknown} {} {0} %s $(reboot) `id` ; {count",
        hostfile="/tmp/{count} $HOME",
    )
    assert made.argv == (
        "run",
        "--nodes=7:gpu[1-6,8]",
        "gpu1,gpu2,gpu3,gpu4,gpu5,gpu6,gpu8",
        "--x=gpu7",
        "/tmp/{count} $HOME",
        '{"count": 3, "a": {"hostfile": 1}}',
        "${count}",
        "{{count}}",
        "{unknown} {} {0} %s $(reboot) `id` ; {count",
    )


def test_a_command_that_cannot_be_meant():
    for argv in ((), ("",)):
        with pytest.raises(ConfigError, match="no command"):
            handover.launch(report(), argv, environ={})
        assert handover.command_problem(argv)
    with pytest.raises(ConfigError, match="--hostfile"):
        handover.launch(report(), ("mpirun", "--hostfile", "{hostfile}"), environ={})
    assert handover.command_problem(("true",)) == ""
    assert "not found" in handover.command_problem(("/no/such\x1b[31m",))


HOSTILE = ("-w evil", "a b", "x;reboot", "$(id)", "@all", "n[1-9]", "n1,n2", "n1\nn2", "\x1b[31mred", "é")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_is_no_host_name_reaches_no_launcher_and_no_file(name, tmp_path):
    assert "not names of hosts" in refusal(report(asked=("n1", name)), "srun", "x").reason
    bad = report(asked=("n1", name), terms=Terms(need=1), **{name: Grade.SLOW})
    assert "not names of hosts" in refusal(bad, "srun", "x").reason
    with pytest.raises(ConfigError, match="not names of hosts"):
        handover.write_excluded(tmp_path / "out", bad.verdict)
    for write in (handover.write_good_nodes, handover.write_hostfile):
        with pytest.raises(ConfigError, match="not names of hosts"):
            write(tmp_path / "out", report(asked=("n1", name)).verdict)
    assert list(tmp_path.iterdir()) == []


# files


def test_the_files_of_a_launch(tmp_path):
    verdict = report(gpu2=Grade.SLOW, gpu3=Grade.SLOW, spares=("s1", "s2"), terms=Terms(at_least=1)).verdict
    handover.write_good_nodes(tmp_path / "good", verdict)
    assert (tmp_path / "good").read_text() == "gpu1\ns1\ns2\ngpu4\ngpu5\ngpu6\ngpu7\ngpu8\n"
    handover.write_excluded(tmp_path / "bad", verdict)
    assert (tmp_path / "bad").read_text() == "gpu[2-3]\n"
    handover.write_hostfile(tmp_path / "hosts", verdict, slots=8)
    assert (tmp_path / "hosts").read_text().splitlines()[:2] == ["gpu1 slots=8", "s1 slots=8"]
    handover.write_hostfile(tmp_path / "hosts", verdict)
    assert (tmp_path / "hosts").read_text().splitlines()[:2] == ["gpu1", "s1"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad", "good", "hosts"]


def test_after_a_no_go_the_good_are_listed_and_no_old_hostfile_is_left(tmp_path):
    verdict = report(gpu2=Grade.SLOW).verdict
    handover.write_good_nodes(tmp_path / "good", verdict)
    assert "gpu2" not in (tmp_path / "good").read_text().split()
    assert len((tmp_path / "good").read_text().split()) == 7
    (tmp_path / "hosts").write_text("gpu2 slots=8\n")
    for _ in range(2):
        handover.write_hostfile(tmp_path / "hosts", verdict)
        assert not (tmp_path / "hosts").exists()


def test_none_and_many_nodes(tmp_path):
    nobody = Report(1.0, 2.0, ()).verdict
    handover.write_good_nodes(tmp_path / "good", nobody)
    handover.write_excluded(tmp_path / "bad", nobody)
    assert ((tmp_path / "good").read_text(), (tmp_path / "bad").read_text()) == ("", "\n")
    many = tuple(f"gpu{n:04d}" for n in range(1, 1025))
    full = report(asked=many, terms=Terms(at_least=1000), gpu0512=Grade.SLOW)
    made = plan(full, "srun", "x")
    assert made.argv[1:4] == ("--nodes=1023", "--nodelist=gpu[0001-0511,0513-1024]", "--exclude=gpu0512")


def test_a_file_is_replaced_whole_with_its_permissions(tmp_path):
    path = tmp_path / "good"
    path.write_text("old")
    path.chmod(0o640)
    before = path.stat().st_ino
    handover.write_whole(path, "new\n")
    assert path.read_text() == "new\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.stat().st_ino != before  # never written in place: a reader of the old one keeps it whole


def test_only_a_regular_file_is_replaced(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "link").symlink_to(victim)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "dangling", "folder", "pipe"):
        with pytest.raises(ConfigError, match="not a regular file"):
            handover.write_whole(tmp_path / name, "x")
        with pytest.raises(ConfigError, match="not a regular file"):
            handover.write_hostfile(tmp_path / name, report(gpu1=Grade.SLOW).verdict)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(ConfigError, match="No such file"):
        handover.write_whole(tmp_path / "no" / "folder", "x")


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "good").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        handover.write_whole(tmp_path / "good", "\udc80")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("good", "old")]


# the launch itself

_START = """
import sys
from clustertools import handover
from clustertools.handover import Launch
print("before")
handover.start(Launch(tuple(sys.argv[1:]), {"CLUSTERTOOLS_NNODES": "7"}, (), ""))
"""


def started(*argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        (sys.executable, "-c", _START, *argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_the_launcher_takes_our_place():
    """Same process, its exit code, no shell, the signals that Python ignores as they were."""
    script = (
        "import os, sys; print(os.getpid(), os.environ['CLUSTERTOOLS_NNODES'], sys.argv[1:]); sys.exit(41)"
    )
    with started(sys.executable, "-c", script, "a b", "$(id)", "") as child:
        out, _ = child.communicate(timeout=30)
        assert child.returncode == 41
        assert out.splitlines()[0] == "before"
        assert out.splitlines()[1] == f"{child.pid} 7 ['a b', '$(id)', '']"
    with started("/bin/sh", "-c", "grep SigIgn /proc/$$/status") as child:
        out, _ = child.communicate(timeout=30)
        assert int(out.split()[-1], 16) & (1 << (signal.SIGPIPE - 1)) == 0, out


def test_a_signal_reaches_the_launcher():
    with started("/bin/sh", "-c", "echo up; exec sleep 60") as child:
        assert child.stdout is not None
        assert [child.stdout.readline(), child.stdout.readline()] == ["before\n", "up\n"]
        child.terminate()
        assert child.wait(30) == -signal.SIGTERM


def test_a_launcher_that_is_not_there_is_said():
    with started("/no/such/launcher") as child:
        _, errors = child.communicate(timeout=30)
    assert "ConfigError: cannot launch /no/such/launcher: No such file or directory" in errors


_NODE = st.sampled_from([f"n{k}" for k in range(9)])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(_NODE, max_size=9),
    st.lists(
        st.builds(
            NodeResult,
            _NODE,
            st.sampled_from(Grade),
            spare=st.booleans(),
            fate=st.sampled_from(["completed", "unreachable", "timeout"]),
        ),
        max_size=12,
    ),
    st.builds(Terms, st.integers(0, 6), st.integers(0, 6)),
)
def test_a_launch_is_only_ever_on_good_nodes(asked, nodes, terms):
    full = Report(1.0, 2.0, tuple(asked), tuple(nodes), terms=terms)
    made = handover.launch(full, ("srun", "x"), environ={})
    if isinstance(made, Refused):
        assert made.status.exit_code in (2, 3)
        assert made.reason
        return
    assert made.nodes
    assert set(made.nodes) <= set(full.verdict.good_nodes)
    assert f"--nodes={len(made.nodes)}" in made.argv


# with a real Slurm

_JOB = """#!{python}
import os, sys
sys.path.insert(0, {repository!r})
from clustertools import handover
from clustertools.preflight_report import Report
import json
report = Report.from_data(json.load(open({report!r})))
plan = handover.launch(report, {argv!r}, environ=os.environ)
if isinstance(plan, handover.Refused):
    print("REFUSED", plan.reason)
    sys.exit(plan.status.exit_code)
handover.start(plan)
"""


@needs_slurm
@pytest.mark.slow
@pytest.mark.root
def test_a_step_of_a_real_slurm_runs_on_the_good_nodes_only(tmp_path):
    full = report(asked=("n1", "n2", "n3", "n4"), n2=Grade.SLOW, terms=Terms(need=3))
    (tmp_path / "report.json").write_text(json.dumps(full.to_data()))
    with Slurm(tmp_path / "slurm", nodes=4) as slurm:

        def job(*argv: str) -> list[str]:
            script, out = tmp_path / "job", tmp_path / "out"
            repository = str(Path(__file__).parent.parent)
            script.write_text(
                _JOB.format(
                    python=sys.executable,
                    repository=repository,
                    report=str(tmp_path / "report.json"),
                    argv=argv,
                )
            )
            slurm.run("sbatch", "-W", "-N4", "--ntasks-per-node=2", "-o", str(out), str(script), check=False)
            return sorted(out.read_text().splitlines())

        assert job("srun", "hostname") == ["n1", "n1", "n3", "n3", "n4", "n4"]
        assert job("bash", "-c", "srun --nodelist={good_nodes} --exclude={exclude} hostname") == [
            "n1", "n1", "n3", "n3", "n4", "n4",
        ]  # fmt: skip
        # the user's own words against ours: no step at all, rather than one with the slow node
        for own in (("-N", "4"), ("-N4", "-n8"), ("-w", "n[1-3]"), ("-n", "8")):
            said = job("srun", *own, "hostname")
            assert not {"n1", "n2", "n3", "n4"} & set(said), said
            assert any("error" in line for line in said)
        assert job("bash", "-c", "srun hostname")[0].startswith("REFUSED the launch would be on n[1,3-4]")
