"""This machine as a node."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from clustertools.errors import ConfigError
from clustertools.fleet import Answer, Fate, Line
from clustertools.fleet.local import LocalTransport
from clustertools.fleet.transports import open_transport
from clustertools.host import OUTPUT_CAP_BYTES


def running(*words: str) -> bool:
    """Whether such a process is still there a moment later: to die of a signal takes its time."""
    wanted = "\0".join(words).encode() + b"\0"
    until = time.monotonic() + 5
    while found := any(wanted in _command_line(path) for path in Path("/proc").glob("[0-9]*/cmdline")):
        if time.monotonic() > until:
            break
        time.sleep(0.02)
    return found


def _command_line(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it ended meanwhile


def test_one_machine_under_several_names():
    with LocalTransport("n1", "n2") as transport:
        answers = transport.run(
            ("n1", "n2", "n3"), ("sh", "-c", "echo $CLUSTERTOOLS_NODE; cat; exit 3"), stdin=b"x"
        )
        got = {a.node: a for a in answers}
    assert {n: a.completed.stdout for n, a in got.items() if a.completed} == {"n1": "n1\nx", "n2": "n2\nx"}
    assert got["n1"].completed.returncode == 3
    assert got["n3"].fate is Fate.UNREACHABLE


def test_without_a_name_it_is_the_host_name():
    name = os.uname().nodename.split(".")[0]
    with open_transport("local") as transport:
        (answer,) = transport.run((name,), ("true",))
    assert (transport.name, answer.fate) == ("local", Fate.COMPLETED)


def test_the_deadline_ends_the_whole_group():
    with LocalTransport("n1") as transport:
        (answer,) = transport.run(
            ("n1",), ("sh", "-c", "echo begun; sleep 4731 & sleep 4731"), timeout_seconds=0.4
        )
    assert (answer.fate, answer.said) == (Fate.TIMEOUT, "begun")
    assert "it was killed" in answer.reason
    assert not running("sleep", "4731")


def test_a_program_that_closed_its_output_and_goes_on_has_a_deadline_too():
    with LocalTransport("n1") as transport:
        (answer,) = transport.run(("n1",), ("sh", "-c", "exec >&- 2>&-; sleep 4732"), timeout_seconds=0.4)
    assert answer.fate is Fate.TIMEOUT
    assert not running("sleep", "4732")


def test_nothing_is_left_when_the_caller_stops_to_listen():
    with LocalTransport("n1", "n2") as transport:
        answers = transport.run(("n1", "n2"), ("sh", "-c", "[ $CLUSTERTOOLS_NODE = n1 ] || sleep 4733"))
        assert next(answers).node == "n1"
        answers.close()
    assert not running("sleep", "4733")


def test_what_cannot_be_started_is_told_as_a_shell_would():
    with LocalTransport("n1") as transport:
        (absent,) = transport.run(("n1",), ("no-such-program",))
        (folder,) = transport.run(("n1",), ("/",))
        with pytest.raises(ConfigError):
            list(transport.run(("n1",), ()))
    assert (absent.completed.returncode, folder.completed.returncode) == (127, 126)
    assert "no-such-program" in absent.completed.stderr


def test_any_bytes_and_too_many_of_them():
    with LocalTransport("n1") as transport:
        (odd,) = transport.run(("n1",), ("printf", "a\\377b"))
        (much,) = transport.run(("n1",), ("head", "-c", str(OUTPUT_CAP_BYTES + 1), "/dev/zero"))
    assert odd.completed.stdout == "a\ufffdb"
    assert much.completed.truncated
    assert len(much.completed.stdout) == OUTPUT_CAP_BYTES


def test_a_conversation():
    with LocalTransport("n1", "n2") as transport:
        talk = transport.talk(("n1", "n2"), ("cat",))
        talk.send("hello")
        assert {next(talk.receive(5)) for _ in range(2)} == {Line("n1", "hello"), Line("n2", "hello")}
        talk.close()
        last = list(talk.receive(1))
    assert {(a.node, a.fate) for a in last if isinstance(a, Answer)} == {
        ("n1", Fate.COMPLETED), ("n2", Fate.COMPLETED)}  # fmt: skip


@pytest.mark.slow
def test_a_conversation_that_does_not_end_by_itself_is_ended():
    with LocalTransport("n1") as transport:
        talk = transport.talk(("n1",), ("sh", "-c", "sleep 4734 & exec sleep 4734"))
        began = time.monotonic()
        talk.close()
        assert time.monotonic() - began < 8
        (answer,) = talk.receive(1)
    assert answer.fate is Fate.LOST
    assert not running("sleep", "4734")


def test_a_reader_who_is_slow_holds_the_program_and_loses_nothing():
    count = 60_000
    with LocalTransport("n1") as transport:
        talk = transport.talk(("n1",), ("seq", str(count)))
        time.sleep(0.5)
        heard = [item.text for item in talk.receive(30) if isinstance(item, Line)]
    assert heard == [str(i) for i in range(1, count + 1)]


def test_an_unknown_transport():
    with pytest.raises(ConfigError, match="telnet"):
        open_transport("telnet")
