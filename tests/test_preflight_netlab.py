"""The whole way on virtual nodes over ssh: what is wrong with a node or a path is told, and nothing else."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.lab.netlab import NetLab, needs_netlab

pytestmark = [pytest.mark.slow, pytest.mark.root, needs_netlab]

#: Where the faults lie is drawn anew each time, and shown when a test fails. The variable draws it again.
SEED = int(os.environ.get("CLUSTERTOOLS_SEED", "") or random.SystemRandom().randrange(10**6))


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
