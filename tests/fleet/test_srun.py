"""SrunTransport over a real Slurm of eight nodes, in jobs and outside of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clustertools.errors import ConfigError, Unobservable
from clustertools.fleet import Answer, Fate, Line
from clustertools.fleet.srun import SrunSettings, SrunTransport
from clustertools.host import Completed, LocalHost
from clustertools.sources.slurm_jobs import idle_nodes, job_nodes, topology
from tests.lab.slurm import Slurm, cluster, needs_slurm

REPOSITORY = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.root, needs_slurm, pytest.mark.timeout(180)]

NODES = tuple(f"n{i}" for i in range(1, 9))
#: Words that a shell, srun's own multi-prog files or a careless join would spoil.
HOSTILE = """$(touch /tmp/x)|a b||'|"|\\|;|%t|*|-l|--jobid=1|é\n\tü|`id`|${HOME}|\x1b[31m""".split("|")
TREE = "SwitchName=leaf1 Nodes=n[1-4]\nSwitchName=leaf2 Nodes=n[5-8]\nSwitchName=spine Switches=leaf[1-2]\n"
#: A node that hangs for a moment must not be taken for dead, and its jobs with it.
CONF = "TopologyPlugin=topology/tree\nSlurmdTimeout=120"


@pytest.fixture(scope="module")
def module_lab() -> Iterator[Slurm]:
    # not below pytest's own folder: that is closed to the other user of a test here
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "etc" / "slurm").mkdir(parents=True)
        (folder / "etc" / "slurm" / "topology.conf").write_text(TREE)
        with cluster(folder, nodes=8, gpus=4, extra=CONF) as slurm:
            yield slurm


@pytest.fixture
def lab(module_lab: Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    monkeypatch.setenv("SLURM_CONF", str(module_lab.conf))
    yield module_lab
    module_lab.run("scancel", "--user=root", "--full")
    # the first node of a step that lost another one waits for its word for a minute: spare us that
    busy = set(NODES)
    until = time.monotonic() + 3
    while busy and time.monotonic() < until:
        busy = {n for n, state in module_lab.states().items() if state != "idle"}
    for node in busy:
        module_lab.kill(node)
        module_lab.run("scontrol", "update", f"nodename={node}", "state=down", "reason=mended")
        module_lab.start(node)
        module_lab.run("scontrol", "update", f"nodename={node}", "state=resume")
    module_lab.wait(lambda: set(module_lab.states().values()) == {"idle"}, "all nodes idle again")


def job(lab: Slurm, *options: str) -> str:
    """A job that does nothing for long; its number once it runs."""
    number = lab.run("sbatch", "--parsable", "--output=/dev/null", *options, "--wrap", "sleep 600").strip()
    lab.wait(lambda: "RUNNING" in lab.run("squeue", "-h", "-j", number, "-o", "%T"), "the job runs")
    return number


def done(answers: Iterator[Answer]) -> dict[str, Completed]:
    """Node -> what completed there; all must have."""
    found = {}
    for answer in answers:
        assert answer.completed is not None, answer
        assert answer.node not in found
        found[answer.node] = answer.completed
    return found


def running(mark: str) -> list[str]:
    """The processes of this machine, nodes included, that have a word of their argv in common."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if mark.encode() in words and b"srun" not in words[0]:
            found.append(path.parent.name)
    return found


# each node prints other text: an odd letter, a line of a megabyte, no end of the last line
SPEAK = """
import os, sys
node = os.environ["CLUSTERTOOLS_NODE"]; number = int(node[1:])
sys.stdout.write(f"I am {node} \\u00e9\\U0001f600 {os.environ['CUDA_VISIBLE_DEVICES']} {sys.argv[1:]!r}\\n")
sys.stdout.write(node * 350_000 + "\\n" + sys.stdin.read() + " end")
sys.stdout.flush()
os.write(2, b"\\xff complaint of " + node.encode())
sys.exit(number)
"""


@pytest.mark.parametrize("inside", [False, True])
def test_each_node_speaks_for_itself(lab, inside):
    with SrunTransport(job_id=job(lab, "--nodes=8", "--exclusive") if inside else "") as srun:
        found = done(srun.run(NODES, ["python3", "-c", SPEAK, *HOSTILE], stdin="ünput\n".encode()))
    assert set(found) == set(NODES)
    for node, completed in found.items():
        first, second, third = completed.stdout.split("\n")[:3]
        rest = repr(HOSTILE)
        assert f"{first}\n{second}\n{third}".startswith(f"I am {node} é😀 0,1,2,3 {rest}")
        assert node * 350_000 in completed.stdout
        assert completed.stdout.endswith("ünput\n end")
        assert completed.stderr.endswith(f"complaint of {node}")
        assert completed.returncode == int(node[1:])
        assert not completed.truncated


def test_much_output_from_all_nodes_at_once(lab):
    with SrunTransport() as srun:
        program = ["sh", "-c", "seq 1 500000; seq 1 100000 >&2"]
        found = done(srun.run(NODES, program))
    numbers = "".join(f"{n}\n" for n in range(1, 500_001))
    assert set(found) == {*NODES}
    assert all(c.stdout == numbers and len(c.stderr) == 588_895 for c in found.values())


def test_a_job_that_asked_for_some_gpus_shows_these(lab):
    with SrunTransport(job_id=job(lab, "--nodes=2", "--gres=gpu:2", "--nodelist=n1,n2")) as srun:
        found = done(srun.run(["n2", "n1"], ["sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]))
    assert {node: c.stdout for node, c in found.items()} == {"n1": "0,1\n", "n2": "0,1\n"}


# what a job script, its #SBATCH lines and a careless user leave in the environment
NESTED = """#!/bin/sh
export SLURM_MEM_PER_NODE=10 SLURM_MEM_PER_CPU=10 SLURM_NTASKS=1 SLURM_CPU_BIND=quiet,mask_cpu:0x8
export SLURM_EXACT=1 SLURM_STEP_GRES=none SLURM_LABELIO=0 SLURM_KILL_BAD_EXIT=1 SLURM_DISTRIBUTION=plane=3
export SLURM_STDINMODE=none SLURM_STDOUTMODE=none SLURM_HINT=nomultithread SQUEUE_FORMAT=%j
exec {python} -c '
import json, os
from clustertools.fleet.srun import SrunTransport
with SrunTransport(job_id=os.environ["SLURM_JOB_ID"]) as srun:
    for a in srun.run(["n1", "n2", "n3"], ["sh", "-c", "echo $CLUSTERTOOLS_NODE; exit 3"]):
        c = a.completed
        print(json.dumps([a.node, a.fate.value, a.reason, c and [c.stdout, c.returncode]]))
'
"""


def test_in_a_job_script_whose_variables_say_otherwise(lab):
    script = NESTED.format(python=sys.executable)
    said = lab.batch(script, "--nodes=3", "--nodelist=n[1-3]", "--exclusive", f"--chdir={REPOSITORY}")
    answers = sorted(json.loads(line) for line in said.splitlines())
    assert answers == [[n, "completed", "", [f"{n}\n", 3]] for n in ("n1", "n2", "n3")]


def test_what_ends_badly_is_told_as_it_ended(lab):
    number = job(lab, "--nodes=1")
    with SrunTransport(job_id=number) as srun:
        node = job_nodes(LocalHost(), number).nodes
        missing = done(srun.run(node, ["no-such-program"]))[node[0]]
        killed = done(srun.run(node, ["sh", "-c", "echo before; kill -9 $$"]))[node[0]]
    assert missing.returncode == 127
    assert "no-such-program: No such file" in missing.stderr
    assert (killed.returncode, killed.stdout) == (-9, "before\n")


def test_a_node_without_python_says_so(lab):
    with SrunTransport(SrunSettings(python="no-such-python")) as srun:
        answers = {a.node: a for a in srun.run(["n1", "n2"], ["true"])}
    assert {a.fate for a in answers.values()} == {Fate.REFUSED}
    assert "no-such-python" in answers["n2"].reason


def test_a_slurmd_that_hangs_costs_only_its_own_node(lab, tmp_path):
    number = job(lab, "--nodes=8")
    lab.freeze("n5")
    try:
        with SrunTransport(job_id=number) as srun:
            program = f"echo ran >> {tmp_path}/$CLUSTERTOOLS_NODE; echo $CLUSTERTOOLS_NODE"
            answers = {a.node: a for a in srun.run(NODES, ["sh", "-c", program])}
    finally:
        lab.freeze("n5", signal.SIGCONT)
    assert answers["n5"].fate is Fate.UNREACHABLE
    assert "slurmd did not start" in answers["n5"].reason
    assert {n for n, a in answers.items() if a.completed and a.completed.stdout == f"{n}\n"} == {*NODES} - {
        "n5"
    }
    # the first try was given up before a program began
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {n: "ran\n" for n in NODES if n != "n5"}


def test_a_node_that_dies_is_lost_and_the_others_go_on(lab):
    with SrunTransport(SrunSettings(silence_seconds=8)) as srun:
        talk = srun.talk(NODES, ["sh", "-c", "echo up; read line; echo $line; sleep 12; echo late"])
        seen: list[Line | Answer] = []
        while sum(isinstance(s, Line) for s in seen) < 8:
            seen += talk.receive(1)
        try:
            lab.kill("n4")
            talk.send("now")
            for _ in range(60):
                seen += talk.receive(1)
                if sum(isinstance(s, Answer) for s in seen) == 8:
                    break
        finally:
            talk.close()
            lab.start("n4")
    answers = {s.node: s for s in seen if isinstance(s, Answer)}
    assert answers["n4"].fate is Fate.LOST
    assert {n for n, a in answers.items() if a.fate is Fate.COMPLETED} == {*NODES} - {"n4"}
    assert {s.node for s in seen if isinstance(s, Line) and s.text == "late"} == {*NODES} - {"n4"}


def test_after_the_deadline_nothing_is_left(lab):
    mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    # a child in the background, one in a session of its own, and none of them minds SIGTERM
    program = 'trap "" TERM; sleep 600 & setsid sh -c "sleep 600; :" "$0" & echo said; wait'
    with SrunTransport() as srun:
        answers = list(srun.run(NODES, ["sh", "-c", program, mark], timeout_seconds=3))
    assert {a.node for a in answers} == {*NODES}
    assert {a.fate for a in answers} == {Fate.TIMEOUT}
    assert {a.said for a in answers} == {"said\n"}
    lab.wait(lambda: not running(mark), "no process left on a node", 15)
    lab.wait(lambda: not lab.run("squeue", "-h"), "the allocation given back", 15)


def test_a_conversation_with_eight_nodes(lab):
    mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    program = "import sys\nfor line in sys.stdin: print(line.strip() * 2, flush=True)\nprint('bye', end='')"
    with SrunTransport() as srun:
        talk = srun.talk(NODES, ["python3", "-u", "-c", program, mark])
        for word in ("älpha", "x" * 100_000, "c"):
            talk.send(word)
            heard: list[Line | Answer] = []
            while len(heard) < 8:
                heard += talk.receive(0.2)
            assert {(s.node, s.text) for s in heard if isinstance(s, Line)} == {(n, word * 2) for n in NODES}
        assert len(set(running(mark))) >= 8
        talk.close()
        last = list(talk.receive(5))
        assert {(s.node, s.text) for s in last if isinstance(s, Line)} == {(n, "bye") for n in NODES}
        assert {s.fate for s in last if isinstance(s, Answer)} == {Fate.COMPLETED}
    assert running(mark) == []


def test_when_the_head_is_killed_nothing_is_left(lab):
    mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    program = (
        "import sys; from clustertools.fleet.srun import SrunTransport\n"
        "words = ['sh', '-c', 'trap \"\" TERM; echo up; sleep 600', sys.argv[1]]\n"
        "talk = SrunTransport().talk(('n1', 'n2'), words)\n"
        "while True:\n    for said in talk.receive(1): print(said.text, flush=True)\n"
    )
    head = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", program, mark], stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )  # fmt: skip
    assert head.stdout is not None
    with head.stdout:
        assert [head.stdout.readline() for _ in range(2)] == [b"up\n"] * 2
        head.kill()
        head.wait()
    lab.wait(lambda: not running(mark), "no process left on a node", 20)
    lab.wait(lambda: not lab.run("squeue", "-h"), "the allocation given back", 20)


def test_busy_drained_and_unknown_nodes_are_answers(lab):
    job(lab, "--nodes=1", "--nodelist=n1")
    lab.run("scontrol", "update", "nodename=n2", "state=drain", "reason=bad memory")
    try:
        with SrunTransport() as srun:
            answers = {a.node: a for a in srun.run(["n1", "n2", "n3", "n99"], ["hostname"])}
    finally:
        lab.run("scontrol", "update", "nodename=n2", "state=resume")
    assert answers["n3"].completed is not None
    assert {answers[n].fate for n in ("n1", "n2", "n99")} == {Fate.UNREACHABLE}
    assert "MIXED" in answers["n1"].reason
    assert "bad memory" in answers["n2"].reason
    assert "no node n99" in answers["n99"].reason


def test_jobs_in_which_nothing_can_be_started(lab):
    number = job(lab, "--nodes=1", "--nodelist=n1")
    with SrunTransport(job_id=number) as srun, pytest.raises(ConfigError, match="does not hold n2"):
        list(srun.run(["n1", "n2"], ["true"]))
    lab.run("scancel", "--full", number)
    lab.wait(lambda: "CANCELLED" in lab.run("squeue", "-h", "-t", "all", "-j", number, "-o", "%T"), "it ends")
    with SrunTransport(job_id=number) as srun, pytest.raises(ConfigError, match="is CANCELLED"):
        list(srun.run(["n1"], ["true"]))
    with pytest.raises(ConfigError, match="no such job"):
        list(SrunTransport(job_id="99999").run(["n1"], ["true"]))


def test_the_job_of_somebody_else(lab):
    number = job(lab, "--nodes=1", "--nodelist=n1")
    program = (
        "import os, sys; from clustertools.errors import ConfigError\n"
        "from clustertools.fleet.srun import SrunTransport\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: list(SrunTransport(job_id=sys.argv[1]).run(['n1'], ['true']))\n"
        "except ConfigError as exc: print(exc)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, number], capture_output=True, text=True, cwd=REPOSITORY, timeout=60,
        check=False,
    )  # fmt: skip
    assert "belongs to root" in said.stdout, said.stderr


def test_an_allocation_that_slurm_does_not_give(lab):
    with (
        SrunTransport(SrunSettings(partition="nowhere")) as srun,
        pytest.raises(Unobservable, match="nowhere"),
    ):
        list(srun.run(["n1"], ["true"]))


def test_idle_nodes_and_switches(lab):
    number = job(lab, "--nodes=2", "--nodelist=n1,n8")
    assert idle_nodes(LocalHost()) == ("n2", "n3", "n4", "n5", "n6", "n7")
    assert topology(LocalHost())["n5"] == ("leaf2", "spine")
    assert job_nodes(LocalHost(), number).nodes == ("n1", "n8")
    with pytest.raises(ConfigError):
        idle_nodes(LocalHost(), "nowhere")
