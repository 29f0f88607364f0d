"""Against real sshd's; see tests/lab/sshd.py."""

from __future__ import annotations

from clustertools.fleet import Answer, Fate, Line
from tests.lab.sshd import needs_sshd

pytestmark = needs_sshd


def test_every_node_answers_and_knows_its_name(lab, ssh):
    answers = list(ssh.run(lab.nodes, ("sh", "-c", "echo $CLUSTERTOOLS_NODE; exit 3")))
    assert {a.node: a.completed.stdout for a in answers} == {n: f"{n}\n" for n in lab.nodes}
    assert {a.completed.returncode for a in answers} == {3}


def test_nothing_is_left_on_the_node_after_the_deadline(lab, ssh):
    argv = ("sh", "-c", "echo begun; setsid sleep 4711 & sleep 4711")
    (answer,) = ssh.run(lab.nodes[:1], argv, timeout_seconds=0.7)
    assert answer.fate is Fate.TIMEOUT
    assert answer.said == "begun"
    assert "it was ended" in answer.reason
    assert not lab.running("sleep", "4711")


def test_a_conversation(lab, ssh):
    talk = ssh.talk(lab.nodes, ("cat",))
    talk.send("hello")
    items = [next(talk.receive(10)) for _ in lab.nodes]
    heard = [item for item in items if isinstance(item, Line)]
    assert len(heard) == len(items), items
    assert {(line.node, line.text) for line in heard} == {(n, "hello") for n in lab.nodes}
    talk.close()
    last = list(talk.receive(5))
    assert {a.node for a in last if isinstance(a, Answer) and a.fate is Fate.COMPLETED} == set(lab.nodes)
