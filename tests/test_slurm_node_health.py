"""bin/ct-healthcheck, ct-prolog and ct-epilog as a real slurmd calls them, on nodes of a real Slurm.

What is wrong with a node is a recorded host that its scripts are pointed at, or a site's own check.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clustertools.check import discover
from tests.lab.slurm import Slurm, cluster, needs_slurm
from tests.lab.stuck_files import needs_fuse, stuck

REPOSITORY = Path(__file__).parent.parent
HOSTS = Path(__file__).parent / "hosts"
pytestmark = [pytest.mark.slow, pytest.mark.root, needs_slurm, pytest.mark.timeout(180)]

# the site's own check: the node is as sick as a file says
CHECK = '''
import os, time
from clustertools.check import check

@check(stages={"watch", "prolog", "epilog"}, codes={"SiteSick": "sick", "SiteQuiet": "no drain"})
def site_sick(ctx):
    """Reads /etc/clustertools/sick."""
    word = open("/etc/clustertools/sick").read().strip() if os.path.exists("/etc/clustertools/sick") else ""
    if word == "blind":
        ctx.unseen("cannot see")
    elif word == "spin":
        while True:
            pass
    elif word.startswith("/"):
        os.stat(word)
    elif word == "quiet":
        yield ctx.critical("SiteQuiet", "part", "it is quiet")
    elif word:
        yield ctx.critical("SiteSick", "part", f"it is {word}")
'''
BOOK = "name: site-sick\ncodes: [SiteSick]\nsteps: [drain]\nrunbook: Give it a rest.\n"
QUIET = "name: site-quiet\ncodes: [SiteQuiet]\nrunbook: Have a look.\n"


class Lab:
    """A cluster whose nodes run our scripts; config and sickness are files of each node."""

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm, self.folder = slurm, folder
        for node in slurm.nodes:
            etc = slurm.node_folder(node)
            (etc / "checks.d").mkdir(parents=True)
            (etc / "playbooks.d").mkdir()
            (etc / "checks.d" / "site_sick.py").write_text(CHECK)
            (etc / "playbooks.d" / "sick.yaml").write_text(BOOK)
            (etc / "playbooks.d" / "quiet.yaml").write_text(QUIET)

    def config(self, text: str, *nodes: str) -> None:
        for node in nodes or self.slurm.nodes:
            folder = self.slurm.node_folder(node)
            (folder / "config.new").write_text(text)
            (folder / "config.new").rename(folder / "config.yaml")

    def sick(self, node: str, word: str) -> None:
        folder = self.slurm.node_folder(node)
        (folder / "sick.new").write_text(word)
        (folder / "sick.new").rename(folder / "sick")

    def said(self, node: str) -> str:
        path = self.folder / f"said-{node}"
        return path.read_text() if path.exists() else ""

    def look(self, node: str, script: str = "watch", **environment: str) -> str:
        """One look as slurmd calls it, now; what it said. It must end with 0 within Slurm's 60 s."""
        begun = len(self.said(node))
        child = self.slurm.enter(
            node, str(self.folder / f"{script}.sh"), SLURMD_NODENAME=node, **environment
        )  # fmt: skip
        assert child.wait(60) == 0, self.said(node)[begun:]
        return self.said(node)[begun:]

    def read(self, node: str, path: str) -> Any:
        return json.loads(self.slurm.enter(node, "/bin/cat", path).communicate(timeout=10)[0])

    def wait_said(self, node: str, text: str) -> None:
        self.slurm.wait(lambda: text in self.said(node), f"{node} says {text!r}: {self.said(node)[-2000:]}")

    def reason(self, node: str) -> str:
        return self.slurm.reasons().get(node, "")

    def wait_reason(self, node: str, text: str) -> str:
        def has() -> str:
            reason = self.reason(node)
            return reason if text in reason else ""

        return str(self.slurm.wait(has, f"{node} carries {text!r}; it said {self.said(node)[-2000:]}"))


SCRIPT = """#!/bin/sh
# slurmd gives nearly nothing: say so, and hand it on as it is
{{ echo "== {stage} $SLURMD_NODENAME got $(tr "\\0" " " </proc/$$/environ)"
  {repository}/bin/{name} {words}
  code=$?; echo "-- $code"; }} >>{folder}/said-$SLURMD_NODENAME 2>&1
exit $code
"""


def scripts(folder: Path, words: str = "") -> dict[str, Path]:
    found = {}
    for key, stage, name in (
        ("health", "watch", "ct-healthcheck"), ("prolog", "prolog", "ct-prolog"),
        ("epilog", "epilog", "ct-epilog"),
    ):  # fmt: skip
        found[key] = folder / f"{stage}.sh"
        text = SCRIPT.format(stage=stage, name=name, words=words, folder=folder, repository=REPOSITORY)
        found[key].write_text(text)
        found[key].chmod(0o755)
    return found


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Any]:
    """`lab(nodes=2)`: a Lab in which all is well; `by_slurm`: slurmd itself calls the health check."""
    with contextlib.ExitStack() as stack:

        def make(nodes: int = 2, words: str = "", config: str = "", by_slurm: bool = False) -> Lab:
            made = Lab(Slurm(tmp_path / "slurm", nodes), tmp_path)
            made.config(config or only_site())
            written = scripts(tmp_path, words)
            if not by_slurm:
                del written["health"]
            made.slurm = stack.enter_context(cluster(tmp_path / "slurm", nodes=nodes, **written))
            return made

        yield make


ACT = """
policy: {mode: act}
node_health: {hold: 1s, max_nodes: 8, max_fraction: 1}
"""


def only_site(config: str = ACT, **more: str) -> str:
    """Config with our own checks off: they would look at whatever runs beside the test."""
    off = {name: "{enabled: false}" for name in discover(site_folders=()) if not name.startswith("job_")}
    rows = "".join(f"  {name}: {value}\n" for name, value in {**off, **more}.items())
    return f"{config}\nchecks:\n{rows}"


REASON = "clustertools: SiteSick part it is on fire (node-health)"


def test_the_life_of_a_fault_as_slurmd_sees_it(lab: Any):
    lab = lab(by_slurm=True)
    lab.wait_said("n1", "OK: n1: 1 ok")
    # what slurmd gives, and what a healthy node does: nothing
    given = set(re.findall(r"== watch n1 got (.*)", lab.said("n1")))
    assert {word.split("=")[0] for line in given for word in line.split()} <= {"PWD", "SLURMD_NODENAME"}
    assert lab.slurm.reasons() == {}

    lab.sick("n1", "on fire")
    assert lab.wait_reason("n1", "clustertools:") == REASON
    assert lab.slurm.states()["n2"] == "idle"

    lab.sick("n1", "blind")  # blind is not well: nothing is resumed
    lab.wait_said("n1", "not resumed: could not look with site_sick")
    assert lab.reason("n1") == REASON

    lab.sick("n1", "")
    lab.wait_said("n1", "resumed n1: well for")
    lab.slurm.wait(lambda: lab.slurm.states()["n1"] == "idle", "n1 idle")
    assert lab.slurm.reasons() == {}
    assert set(re.findall(r"-- (\d+)", lab.said("n1"))) == {"0"}
    assert lab.said("n1").count("drained n1:") == 1


def test_at_the_start_of_slurmd_before_it_is_registered(lab: Any):
    lab = lab(by_slurm=True)
    lab.slurm.kill("n1")
    lab.slurm.kill("slurmctld")
    lab.sick("n1", "on fire")
    begun = len(lab.said("n1"))
    lab.slurm.start("n1")
    # slurmd waits for this first look, so it may not take long, and nothing may come of it
    lab.slurm.wait(lambda: "-- 0" in lab.said("n1")[begun:], "n1 looks without slurmctld")
    assert "would drain for SiteSick part (it is on fire): scontrol" in lab.said("n1")
    lab.slurm.start("slurmctld")
    assert lab.wait_reason("n1", "clustertools: SiteSick") == REASON


def test_observe_only_says_what_it_would_do(lab: Any):
    lab = lab(config=only_site("node_health: {hold: 1s}"))
    lab.sick("n1", "on fire")
    assert "would drain for SiteSick part (it is on fire): observe mode" in lab.look("n1")
    # a check that is only observed, in a cluster that acts
    lab.config(only_site(ACT, site_sick="{observe: true}"))
    assert "SiteSick part: its check is only observed here" in lab.look("n1")
    # a pause
    lab.config(only_site(ACT.replace("act}", "act, pause_file: /etc/clustertools/config.yaml}")))
    assert "paused: /etc/clustertools/config.yaml exists" in lab.look("n1")
    # and a code whose playbook does not drain
    lab.config(only_site())
    lab.sick("n1", "quiet")
    assert "SiteQuiet" in lab.look("n1")
    assert lab.slurm.reasons() == {}


def test_our_own_checks_on_a_recorded_machine(lab: Any):
    lab = lab(words=f"--host {HOSTS}/h100-dbe-gpu3 --config /etc/clustertools/config.yaml", config=ACT)
    assert "drained n1: " in lab.look("n1")
    assert lab.reason("n1").startswith("clustertools: EccUncorrected gpu@0000:5d:00.0 ")
    assert lab.reason("n1").endswith(" (node-health)")


def test_the_notes_of_others_are_left_alone(lab: Any):
    lab = lab(nodes=3)
    update = ("scontrol", "update")
    lab.slurm.run(*update, "nodename=n1", "state=drain", "reason=disk swap, Tuesday")
    lab.slurm.run(*update, "nodename=n2", "state=fail", "reason=asked the vendor")  # not drained
    for node, reason in (("n1", "disk swap, Tuesday"), ("n2", "asked the vendor")):
        lab.sick(node, "on fire")
        assert f"{node} was drained by somebody else: {reason}" in lab.look(node)
        lab.sick(node, "")
        lab.look(node)
        time.sleep(1.1)
        assert "resumed" not in lab.look(node)
    assert lab.slurm.reasons() == {"n1": "disk swap, Tuesday", "n2": "asked the vendor"}
    # what we drained and a person took over is theirs, even with our name on it
    lab.sick("n3", "on fire")
    lab.look("n3")
    assert lab.reason("n3") == REASON
    lab.slurm.run(*update, "nodename=n3", "state=drain", "reason=clustertools: SiteSick, Bob looks at it")
    lab.sick("n3", "")
    lab.look("n3")
    time.sleep(1.1)
    lab.look("n3")
    assert lab.reason("n3") == "clustertools: SiteSick, Bob looks at it"


def test_a_person_who_resumes_in_spite_of_the_fault_is_not_contradicted(lab: Any):
    lab = lab()
    lab.sick("n1", "on fire")
    lab.look("n1")
    assert lab.reason("n1") == REASON
    lab.slurm.run("scontrol", "update", "nodename=n1", "state=resume")
    for _ in range(3):
        lab.look("n1")
    assert lab.slurm.reasons() == {}
    assert "-- 0" in lab.look("n1", "prolog", SLURM_JOB_ID="7")


@pytest.mark.parametrize("limit", ["max_nodes: 2", "max_fraction: 0.34"])
def test_a_bad_roll_out_drains_no_cluster(lab: Any, limit: str):
    """All nodes at the same moment: each looks at Slurm's list before and after."""
    lab = lab(nodes=6, config=only_site(f"policy: {{mode: act}}\nnode_health: {{max_fraction: 1, {limit}}}"))
    if "fraction" in limit:
        lab.config(only_site(f"policy: {{mode: act}}\nnode_health: {{{limit}}}"))
    for node in lab.slurm.nodes:
        lab.sick(node, "on fire")
    script = str(lab.folder / "watch.sh")
    looks = [lab.slurm.enter(node, script, SLURMD_NODENAME=node) for node in lab.slurm.nodes]
    assert [look.wait(60) for look in looks] == [0] * 6
    assert len(lab.slurm.reasons()) <= 2
    one_by_one = [lab.look(node) for node in lab.slurm.nodes]
    assert len(lab.slurm.reasons()) <= 2
    assert sum("circuit breaker" in said for said in one_by_one) >= 4


@pytest.mark.parametrize("how", ["mute", "away"])
def test_slurmctld_mute_or_away_neither_hangs_nor_harms(lab: Any, how: str):
    lab = lab()
    lab.look("n1")
    lab.slurm.freeze("slurmctld") if how == "mute" else lab.slurm.kill("slurmctld")
    lab.sick("n1", "on fire")
    begun = time.monotonic()
    assert "would drain for SiteSick part (it is on fire): scontrol" in lab.look("n1")
    assert "-- 0" in lab.look("n1", "prolog", SLURM_JOB_ID="7")
    assert time.monotonic() - begun < 30
    lab.slurm.freeze("slurmctld", signal.SIGCONT) if how == "mute" else lab.slurm.start("slurmctld")
    lab.slurm.wait(lambda: "drained n1" in lab.look("n1"), "n1 drained")
    assert lab.reason("n1") == REASON


def test_a_check_that_hangs_is_named_and_does_not_resume(lab: Any):
    lab = lab(config=only_site(ACT, site_sick="{timeout: 1s}"))
    lab.sick("n1", "on fire")
    lab.look("n1")
    lab.sick("n1", "spin")
    assert "UNKNOWN   site_sick  could not look: did not end within 1.9 s" in lab.look("n1")
    assert lab.reason("n1") == REASON


@needs_fuse
def test_a_look_that_hangs_in_the_kernel_is_named_and_keeps_slurm_waiting_no_longer(lab: Any, tmp_path: Path):
    with stuck(tmp_path) as folder:
        lab = lab(config=only_site(ACT, site_sick="{timeout: 1s}"), by_slurm=True)
        lab.sick("n1", str(folder / "file"))
        lab.wait_said("n1", "cannot be killed (state D")
        begun = lab.said("n1").count("did not end within")
        # one that is left behind holds neither slurmd's pipe nor our lock: the next looks come as ever
        lab.slurm.wait(lambda: lab.said("n1").count("did not end within") > begun, "another look")
        lab.sick("n1", "")
        begun = lab.said("n1").count("OK: n1")
        lab.slurm.wait(lambda: lab.said("n1").count("OK: n1") > begun, "a look that is well")
        assert lab.slurm.reasons() == {}


def test_the_drain_outlives_a_reboot_and_ends_with_the_fault(lab: Any):
    lab = lab()
    lab.sick("n1", "on fire")
    lab.look("n1")
    lab.slurm.kill("n1")  # its /run goes with it
    lab.sick("n1", "")
    lab.slurm.start("n1")
    lab.slurm.wait(lambda: lab.slurm.states()["n1"] == "drained", "n1 registered again")
    assert "well again; resumes in 1 s" in lab.look("n1")
    time.sleep(1.1)
    assert "resumed n1: well for" in lab.look("n1")


def test_the_prolog_refuses_the_job_and_the_node_keeps_our_reason(lab: Any):
    lab = lab()
    lab.slurm.run("srun", "-w", "n1", "true")
    assert "SLURM_JOB_ID=1" in lab.said("n1")
    verdict = lab.read("n1", "/run/clustertools/verdict-prolog.json")
    assert (verdict["status"], verdict["job"], verdict["refuse"]) == ("OK", "1", False)
    lab.slurm.wait(lambda: lab.said("n1").count("-- 0") == 2, "the epilog's end")

    lab.sick("n1", "on fire")
    lab.slurm.run("sbatch", "-w", "n1", "-o", "/dev/null", "--wrap", "true")
    assert lab.wait_reason("n1", "clustertools:") == REASON
    held = lab.slurm.wait(
        lambda: [row for row in lab.slurm.run("squeue", "-h", "-o", "%i %r").splitlines() if "held" in row],
        "the job is held",
    )
    assert held == ["2 launch failed requeued held"]
    assert lab.reason("n1") == REASON  # not "Prolog error", which nobody could tell from any other
    verdict = lab.read("n1", "/run/clustertools/verdict-prolog.json")
    assert (verdict["status"], verdict["job"], verdict["refuse"]) == ("CRITICAL", "2", True)

    # a repair, the hold time, and the node takes work again
    lab.sick("n1", "")
    lab.look("n1")
    time.sleep(1.1)
    assert "resumed n1" in lab.look("n1")


def test_in_observe_mode_the_prolog_lets_every_job_pass(lab: Any):
    lab = lab(config=only_site(""))
    lab.sick("n1", "on fire")
    lab.slurm.run("srun", "-w", "n1", "true")
    assert "would drain for SiteSick part (it is on fire): observe mode" in lab.said("n1")
    assert lab.slurm.reasons() == {}


def test_the_epilog_drains_and_says_0(lab: Any):
    lab = lab()
    lab.slurm.run("srun", "-w", "n1", "sh", "-c", f"echo on fire >{lab.slurm.node_folder('n1')}/sick")
    assert lab.wait_reason("n1", "clustertools:") == REASON
    lab.slurm.wait(lambda: "== epilog" in lab.said("n1") and lab.said("n1").endswith("-- 0\n"), "its end")
