"""Over real sshd's: nodes with nothing but Python, one home that all write to, death in the middle."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clustertools.fleet import Fate
from clustertools.fleet.job_looks import FleetLooker, FleetSettings
from clustertools.fleet.looking import Request, look_all
from clustertools.fleet.shipping import Tool, archive, build_archive
from clustertools.sources.job_look import LookOrder, LookRequest
from tests.lab.sshd import USER_ID, Sshds, needs_sshd

pytestmark = [needs_sshd, pytest.mark.slow, pytest.mark.root]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshds]:
    """Three nodes whose user has one home, which she may write to."""
    with Sshds(tmp_path_factory.mktemp("sshd"), 3) as sshds:
        os.chown(sshds.folder, USER_ID, USER_ID)  # her home on all nodes
        yield sshds


def cached(lab) -> list[Path]:
    return sorted((lab.folder / ".cache/clustertools").glob("*"))


def hanging(lab) -> Request:
    """The second check waits for an answer that never comes."""
    return Request(
        checks=("host_storage", "host_network"),
        expect={"reachable": [f"{lab.black_hole()}:{lab.port}"]},
        limits={"host_network": {"answer_seconds": 30.0}},
        timeouts={"host_network": 40.0},
        timeout_seconds=60.0,
        facts=False,
    )


def when_it_hangs(lab, act, nodes: int = 1) -> threading.Thread:
    """Run `act` as soon as so many nodes ask the endpoint that never answers."""

    def wait() -> None:
        until = time.monotonic() + 30
        while len(lab.running("-m", "clustertools.sources.endpoints")) < nodes and time.monotonic() < until:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_nodes_with_one_home_install_at_once_and_are_looked_at(lab, ssh):
    tool = Tool.install(ssh, lab.nodes, installed=None)
    assert tool.missing == {}
    assert [path.name for path in cached(lab)] == [f"clustertools-{archive().sha256}.pyz"]
    again = Tool.install(ssh, lab.nodes, installed=None)
    assert [ready.was_sent for ready in again.ready.values()] == [False] * len(lab.nodes)
    asked = dict.fromkeys(lab.nodes, Request(checks=("host_storage", "cpu_count"), cluster="lab"))
    looks = {look.node: look for look in look_all(ssh, again, asked, timeout_seconds=60)}
    assert {node: look.why_not for node, look in looks.items()} == dict.fromkeys(lab.nodes, "")
    assert {look.verdicts[0].subject.node for look in looks.values()} == set(lab.nodes)
    assert all(look.facts["kernel"] for look in looks.values())
    # and again for a copy that somebody cut
    cached(lab)[0].write_bytes(b"PK")
    assert Tool.install(ssh, lab.nodes, installed=None).missing == {}
    assert cached(lab)[0].read_bytes() == archive().data


def test_what_a_node_said_before_it_died_or_was_too_late_is_kept(lab, ssh):
    tool = Tool.install(ssh, ("lab1", "lab2"), installed=None)
    assert tool.missing == {}
    request = hanging(lab)
    killer = when_it_hangs(lab, lambda: lab.kill("lab1"), nodes=2)
    asked = dict.fromkeys(tool.nodes, request)
    looks = {look.node: look for look in look_all(ssh, tool, asked, timeout_seconds=15)}
    killer.join()
    lab.start("lab1")
    lab.wait_for("lab1")
    assert looks["lab1"].fate is Fate.LOST
    assert looks["lab2"].fate is Fate.TIMEOUT
    for look in looks.values():
        assert look.why_not
        assert [verdict.check for verdict in look.verdicts] == ["host_storage"]


def test_a_forced_command_can_look_and_nothing_else(lab, ssh, tmp_path):
    pyz, marker = lab.folder / "clustertools.pyz", lab.folder / "marker"
    build_archive(pyz)
    lab.configure(
        "lab3", extra=f"ForceCommand /usr/bin/env python3 -I {lab.home}/{pyz.name} check --request -"
    )
    lab.start("lab3")
    lab.wait_for("lab3")
    (look,) = look_all(
        ssh, Tool.there(["lab3"]), {"lab3": Request(checks=("cpu_count",))}, timeout_seconds=40
    )
    assert look.why_not == ""
    assert look.verdicts[0].check == "cpu_count"
    (answer,) = ssh.run(
        ["lab3"], ("touch", f"{lab.home}/{marker.name}"), stdin=b'{"v": 1, "command": ["touch"]}'
    )
    assert answer.completed.returncode == 3
    assert "unknown key 'command'" in answer.completed.stderr
    assert not marker.exists()
    # the archive cannot be sent to such a node, and that is told with the node's own words
    refused = Tool.install(ssh, ["lab3"], installed=None).missing["lab3"]
    assert "not JSON" in refused.reason


def test_a_job_is_looked_at_where_srun_does_not_reach(lab, ssh):
    """By an ordinary user, on a node with a rank, on one without, and on one that is no more."""
    words = ("env", "SLURM_JOB_ID=77", "RANK=3", "python3", "-c", "print(1, flush=True); input()")
    training = ssh.talk(lab.nodes[:1], words)
    try:
        assert next(training.receive(20)).text == "1"
        settings = FleetSettings(installed=None, ssh_config=lab.ssh_config)
        nodes = (*lab.nodes[:2], "gone")
        order = LookOrder(LookRequest("77", "pretrain"), nodes, "auto")
        looks = FleetLooker(settings).look([order])["pretrain"]
    finally:
        training.close()
    assert [(one.node, set(one.ranks)) for one in looks.nodes] == [(nodes[0], {"3"}), (nodes[1], set())]
    assert set(looks.unseen) == {"gone"}
    assert "srun: " in looks.unseen["gone"]
