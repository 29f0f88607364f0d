"""The whole way on virtual nodes over ssh: what is wrong with a node or a path is told, and nothing else."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.lab.netlab import LINK_BITS_PER_SECOND, NetLab, needs_netlab
from tests.lab.preflights import Preflight, over_ssh

pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.torch, pytest.mark.timeout(300), needs_netlab]

#: Where the faults lie is drawn anew each time, and shown when a test fails. The variable draws it again.
SEED = int(os.environ.get("CLUSTERTOOLS_SEED", "") or random.SystemRandom().randrange(10**6))


Run = Callable[..., Preflight]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetLab]:
    with NetLab(tmp_path_factory.mktemp("netlab")) as made:
        yield made


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    print(f"CLUSTERTOOLS_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


REACH = """
import json, sys
from clustertools.fleet.transports import open_transport
with open_transport("ssh", connect_timeout_seconds=3) as transport:
    for answer in transport.run(sys.argv[1:], ("hostname",)):
        said = answer.completed.stdout if answer.completed else answer.reason
        print(json.dumps([answer.node, answer.fate.value, said]))
"""


def test_each_broken_node_has_its_own_outcome_and_the_others_go_on(lab: NetLab, chance: random.Random):
    hung, refusing, changed, cut, frozen = chance.sample(lab.nodes, 5)
    with ExitStack() as faults:
        faults.enter_context(lab.hang_sshd(hung))
        faults.enter_context(lab.refuse_key(refusing))
        faults.enter_context(lab.change_host_key(changed))
        faults.enter_context(lab.cut(cut, "eth0"))
        faults.enter_context(lab.freeze(frozen))
        told = lab.head(sys.executable, "-c", REACH, *lab.nodes)
    answers = {node: (fate, said) for node, fate, said in map(json.loads, told.stdout.splitlines())}
    broken = {
        hung: ("unreachable", "banner"), refusing: ("refused", "publickey"), changed: ("host-key", "changed"),
        cut: ("unreachable", "connecting"), frozen: ("unreachable", "banner"),
    }  # fmt: skip
    assert {node: answers[node][0] for node in broken} == {node: fate for node, (fate, _) in broken.items()}
    assert {node: word in answers[node][1] for node, (_, word) in broken.items()} == dict.fromkeys(
        broken, True
    )
    good = [node for node in lab.nodes if node not in broken]
    assert {node: answers[node] for node in good} == {node: ("completed", f"{node}\n") for node in good}


@pytest.fixture
def preflight(lab: NetLab, tmp_path: Path, chance: random.Random) -> Run:
    """One run of the command on the lab's head: nodes, options of the command, options of `over_ssh`."""

    def run(nodes: Sequence[str], *options: str, **more: Any) -> Preflight:
        started = tmp_path / f"started{len(list(tmp_path.iterdir()))}"
        seed = str(chance.randrange(10**6))
        return over_ssh(lab, started, "-w", ",".join(nodes), "--seed", seed, *options, **more)

    return run


def test_good_nodes_start(preflight: Run, chance: random.Random, lab: NetLab):
    nodes = sorted(chance.sample(lab.nodes, 6))
    done = preflight(nodes)
    assert done.verdict["decision"] == "go", done
    assert done.grades() == {}, done
    assert done.started == set(nodes), done
    assert done.code == 0


def test_a_slow_node_is_named_and_a_spare_takes_its_place(preflight: Run, chance: random.Random, lab: NetLab):
    *nodes, spare = chance.sample(lab.nodes, 7)
    guilty = chance.choice(nodes)
    with lab.slow(guilty, LINK_BITS_PER_SECOND / 5, chance.choice(("both", "send", "receive"))):
        done = preflight(nodes, "--spares", spare)
    assert done.grades() == {guilty: "slow"}, done
    assert done.verdict["swaps"] == [{"out": guilty, "into": spare}], done
    assert done.started == {*nodes, spare} - {guilty}, done


def test_a_node_cut_from_the_data_network_is_named(preflight: Run, chance: random.Random, lab: NetLab):
    """ssh goes on over the management network: it is told from a node that is away."""
    nodes = chance.sample(lab.nodes, 6)
    guilty = chance.choice(nodes)
    with chance.choice((lab.cut, lab.mute))(guilty):
        done = preflight(nodes, "--at-least", "5")
    assert done.grades() == {guilty: "bad-hardware"}, done
    assert done.fates() == {}, done
    assert done.started == set(nodes) - {guilty}, done


def test_a_slow_path_is_named_and_its_ends_are_not(preflight: Run, chance: random.Random, lab: NetLab):
    nodes = chance.sample(lab.nodes, 6)
    ends = chance.sample(nodes, 2)
    with lab.slow_path(*ends, LINK_BITS_PER_SECOND / 5):
        done = preflight(nodes)
    assert [(s["kind"], set(s["names"])) for s in done.report["suspects"]] == [("path", set(ends))], done
    assert done.grades() == {}, done
    assert (done.code, done.started) == (2, set()), done


def test_nothing_starts_on_nodes_that_cannot_be_reached_or_tested(
    preflight: Run, chance: random.Random, lab: NetLab
):
    hung, refusing, changed, bare, *good = chance.sample(lab.nodes, 6)
    with ExitStack() as faults:
        faults.enter_context(lab.hang_sshd(hung))
        faults.enter_context(lab.refuse_key(refusing))
        faults.enter_context(lab.change_host_key(changed))
        faults.enter_context(lab.without_torch(bare))
        done = preflight([hung, refusing, changed, bare, *good], "--need", "2")
    assert done.fates() == {hung: "unreachable", refusing: "refused", changed: "host-key"}, done
    assert set(done.grades()) == {hung, refusing, changed, bare}, done
    assert set(done.grades().values()) <= {"untested", "could-not-run"}, done
    assert "PyTorch" in next(str(n["reasons"]) for n in done.report["nodes"] if n["node"] == bare), done
    assert done.started == set(good), done


def test_a_full_and_a_read_only_disk_are_told_where_checkpoints_go(
    preflight: Run, chance: random.Random, lab: NetLab
):
    full, read_only, *good = chance.sample(lab.nodes, 4)
    # the loads of all nodes fall on the same cores: their speeds say nothing here
    options = ("--without", "gemm", "--without", "memory", "--checkpoints", str(lab.scratch), "--need", "2")
    with lab.full_disk(full), lab.read_only_disk(read_only):
        done = preflight([full, read_only, *good], *options, stages="node")
    reasons = {n["node"]: str(n["reasons"]) for n in done.report["nodes"]}
    assert "No space left" in reasons[full], done
    assert "Read-only" in reasons[read_only], done
    assert done.grades() == dict.fromkeys((full, read_only), "could-not-run"), done
    assert done.started == set(good), done


def test_a_node_that_dies_in_the_middle_is_lost_and_the_others_start(
    preflight: Run, chance: random.Random, lab: NetLab
):
    """Last in this file: the node does not come back."""
    nodes = chance.sample(lab.nodes, 5)
    dying = chance.choice(nodes)

    def dies() -> None:
        # as soon as a rank of it is connected to another node
        connected = ("ss", "-Htn", "state", "established", "src", lab.address(dying, "eth1"))
        lab.wait(lambda: lab.run(dying, *connected).stdout, "a rank that is connected", 90)
        lab.kill(dying)

    done = preflight(nodes, "--at-least", "4", meanwhile=dies)
    assert done.fates() == {dying: "lost"}, done
    assert done.grades() == {dying: "untested"}, done
    assert done.started == set(nodes) - {dying}, done
