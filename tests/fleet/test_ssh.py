"""Commands and conversations over real sshd's that are well; see tests/lab/sshd.py."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time

import pytest

from clustertools.errors import ConfigError
from clustertools.fleet import Answer, Fate, Line
from clustertools.fleet.ssh import SshSettings, SshTransport
from clustertools.host import OUTPUT_CAP_BYTES
from tests.lab.sshd import Sshds, needs_sshd

pytestmark = needs_sshd

#: Words that a shell, a format or a terminal would make something else of.
HOSTILE = (
    "", " ", "a b", "$(touch /tmp/owned)", "`id`", "$HOME", "'", '"', "\\", "\\\\", "\\'", "!", "!!", "a!b",
    "*", "~", "-n", "--", ";", "&", "|", ">x", "#", "%s", "{}", "[a]", "a\nb", "\n", "\t", "\r", "\x1b[31m",
    "ü€😀", "\udcff", "a=b", "\\0101", "\\n",
)  # fmt: skip
#: Those of them that this machine has are tried; they were all tried when this was written.
OTHER_SHELLS = ("/bin/bash", "/bin/dash", "/bin/tcsh", "/usr/bin/fish", "/bin/zsh")
ECHO = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(os.fsencode(a) for a in sys.argv[1:]))"


def one(ssh: SshTransport, *argv: str, **options: object) -> Answer:
    (answer,) = ssh.run(("lab1",), argv, **options)  # type: ignore[arg-type]
    return answer


def test_every_node_answers_and_knows_its_name(lab, ssh):
    answers = list(ssh.run(lab.nodes, ("sh", "-c", "echo $CLUSTERTOOLS_NODE; echo no >&2; exit 3")))
    assert {a.node: a.completed.stdout for a in answers} == {n: f"{n}\n" for n in lab.nodes}
    assert {(a.completed.returncode, a.completed.stderr) for a in answers} == {(3, "no\n")}


def test_a_node_named_twice_is_asked_once(ssh):
    assert len(list(ssh.run(("lab1", "lab2", "lab1"), ("true",)))) == 2


def test_connections_are_kept(lab, ssh):
    list(ssh.run(lab.nodes[:2], ("true",)))
    before = {name: lab.sessions(name) for name in lab.nodes[:2]}
    list(ssh.run(lab.nodes[:2], ("true",)))
    assert before == {name: lab.sessions(name) for name in lab.nodes[:2]}
    ssh.close()
    until = time.monotonic() + 5
    while any(lab.sessions(name) for name in lab.nodes[:2]):
        assert time.monotonic() < until, "a closed transport leaves its connections behind"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["/bin/sh", *(s for s in OTHER_SHELLS if shutil.which(s))])
def test_every_word_arrives_as_it_is_whatever_the_login_shell(tmp_path, shell):
    with (
        Sshds(tmp_path / "lab", 1, shell=shell) as lab,
        SshTransport(SshSettings(config=lab.ssh_config)) as ssh,
    ):
        for words in (HOSTILE, *((word,) for word in HOSTILE)):
            answer = one(ssh, "/usr/bin/env", "python3", "-c", ECHO, *words)
            assert answer.completed is not None, answer
            wanted = "\0".join(words).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            assert answer.completed.stdout == wanted, (words, answer.completed.stderr)


@pytest.mark.parametrize("argv", [(), ("",), ("-x",), ("echo", "a\0b")])
def test_what_no_program_can_be_given_is_refused(ssh, argv):
    with pytest.raises(ConfigError):
        list(ssh.run(("lab1",), argv))


def test_a_program_whose_name_looks_like_a_setting(ssh):
    answer = one(ssh, "a=b")
    assert answer.completed.returncode == 127
    assert "a=b" in answer.completed.stderr


def test_a_program_that_is_not_there_and_one_that_is_killed(ssh):
    assert one(ssh, "no-such-program").completed.returncode == 127
    assert one(ssh, "sh", "-c", "kill -9 $$").completed.returncode in (-9, 137)


def test_input_and_output_of_any_bytes(ssh):
    data = bytes(range(256)) * 20_000
    answer = one(ssh, "sh", "-c", "wc -c; printf 'a\\377b\\n'; printf 'ü€' >&2", stdin=data)
    assert answer.completed.stdout == f"{len(data)}\na\ufffdb\n"
    assert answer.completed.stderr == "ü€"


def test_a_program_that_does_not_read_its_input(ssh):
    assert one(ssh, "true", stdin=b"x" * (8 << 20)).completed.returncode == 0


@pytest.mark.slow
def test_endless_output_is_cut_and_the_program_still_ends(ssh):
    answer = one(ssh, "sh", "-c", "head -c 50000000 /dev/zero; echo end >&2; exit 5")
    assert answer.completed.truncated
    assert len(answer.completed.stdout) == OUTPUT_CAP_BYTES
    assert (answer.completed.stderr, answer.completed.returncode) == ("end\n", 5)


def test_nothing_is_left_on_the_node_after_the_deadline(lab, ssh):
    argv = ("sh", "-c", "trap '' HUP TERM; echo begun; setsid sleep 4711 & sleep 4711")
    answer = one(ssh, *argv, timeout_seconds=0.7)
    assert answer.fate is Fate.TIMEOUT
    assert answer.said == "begun"
    assert "it was ended" in answer.reason
    assert not lab.running("sleep", "4711")
    assert one(ssh, "true").fate is Fate.COMPLETED


def test_nothing_is_left_when_the_caller_stops_to_listen(lab, ssh):
    answers = ssh.run(lab.nodes[:2], ("sh", "-c", "[ $CLUSTERTOOLS_NODE = lab1 ] || sleep 4712"))
    assert next(answers).node == "lab1"
    until = time.monotonic() + 5
    while not lab.running("sleep", "4712"):
        assert time.monotonic() < until
        time.sleep(0.02)
    answers.close()
    while lab.running("sleep", "4712"):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_conversation(lab, ssh):
    talk = ssh.talk(lab.nodes, ("cat",))
    talk.send("hello")
    talk.send("ü\x85\u2028end")
    items = [next(talk.receive(10)) for _ in range(2 * len(lab.nodes))]
    assert all(isinstance(item, Line) for item in items), items
    for node in lab.nodes:
        assert [i.text for i in items if i.node == node] == ["hello", "ü\x85\u2028end"]
    talk.close()
    last = list(talk.receive(5))
    assert {a.node for a in last if isinstance(a, Answer) and a.fate is Fate.COMPLETED} == set(lab.nodes)


def test_the_last_words_of_a_program_that_fails(ssh):
    talk = ssh.talk(("lab1",), ("sh", "-c", "printf half; echo oh no >&2; exit 9"))
    line, answer = talk.receive(10)
    assert line == Line("lab1", "half")
    assert (answer.completed.returncode, answer.completed.stderr) == (9, "oh no\n")
    talk.close()


@pytest.mark.slow
def test_a_conversation_that_does_not_end_by_itself_is_ended(lab, ssh):
    talk = ssh.talk(lab.nodes[:3], ("sh", "-c", "sleep 4713 & exec sleep 4713"))
    assert list(talk.receive(0.5)) == []
    assert lab.running("sleep", "4713")
    talk.close()
    assert {a.fate for a in talk.receive(0.1)} == {Fate.LOST}
    assert not lab.running("sleep", "4713")


@pytest.mark.slow
def test_a_reader_who_is_slow_holds_the_programs_and_loses_nothing(lab, ssh):
    count = 150_000
    talk = ssh.talk(lab.nodes[:2], ("seq", str(count)))
    time.sleep(1.5)
    heard: dict[str, list[str]] = {name: [] for name in lab.nodes[:2]}
    for item in talk.receive(60):
        if isinstance(item, Line):
            heard[item.node].append(item.text)
        else:
            assert item.fate is Fate.COMPLETED
    assert heard == {name: [str(i) for i in range(1, count + 1)] for name in lab.nodes[:2]}


@pytest.mark.slow
def test_a_program_that_does_not_listen_does_not_hold_the_others(lab, ssh):
    script = "[ $CLUSTERTOOLS_NODE = lab1 ] && exec sleep 4714; wc -c"
    talk = ssh.talk(lab.nodes[:2], ("sh", "-c", script))
    for _ in range(100):
        talk.send("x" * 99_999)
    began = time.monotonic()
    talk.close()
    assert time.monotonic() - began < 8
    items = list(talk.receive(1))
    assert Line("lab2", "10000000") in items
    assert not lab.running("sleep", "4714")


def test_a_line_without_end_is_cut(ssh):
    talk = ssh.talk(("lab1",), ("sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x; echo; echo short"))
    cut, short, answer = talk.receive(20)
    assert cut.text.startswith("x" * 1000)
    assert cut.text.endswith("(cut: a line of more than 1 MiB)")
    assert short == Line("lab1", "short")
    assert answer.fate is Fate.COMPLETED


def test_nothing_is_printed_by_the_threads(lab, tmp_path):
    program = (
        "import sys; from pathlib import Path; from clustertools.fleet.ssh import *\n"
        "with SshTransport(SshSettings(config=Path(sys.argv[1]), connect_timeout_seconds=2)) as t:\n"
        "    print([a.fate.value for a in t.run(('lab1', '127.0.1.253'), ('sh', '-c', 'kill -9 $PPID'))])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(lab.ssh_config)], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("unreachable") == 1
    assert done.stderr == ""
