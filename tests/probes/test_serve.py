"""The conversation itself: bad lines, ends of every kind, and what is left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
import zipfile

import pytest

from clustertools.probes import serve
from tests.probes.probing import REPOSITORY, Prober, collective, probers

pytestmark = [pytest.mark.slow]


@pytest.fixture
def prober():
    for (one,) in probers("n1", options=["--without-torch"]):
        yield one


def test_the_greeting_says_what_the_node_is():
    one = Prober("node with blanks", "--without-torch")
    try:
        hello = one.hear()["hello"]
        assert hello["node"] == "node with blanks"
        assert set(hello) >= {"python", "torch", "cuda", "devices", "addresses", "time", "tools"}
        assert hello["torch"] is None
        assert abs(hello["time"] - time.time()) < 60
    finally:
        one.close()


@pytest.mark.parametrize(
    "line", ["nonsense", "{", '{"id": 3}', "[[[", '{"id": 1, "probe": "x", "nodes": []}']
)
def test_a_bad_line_is_told_and_the_next_is_heard(prober, line):
    assert "error" in prober.ask(line)
    assert prober.ask({"id": 4, "probe": "nothing", "nodes": ["n1"]})["ending"] == "could-not-run"


def test_a_line_without_end_does_not_fill_the_memory(prober):
    prober.say("x" * (serve.LINE_CAP_BYTES + (1 << 20)))
    assert "skipped" in prober.hear()["error"]
    assert prober.ask({"id": 4, "probe": "nothing", "nodes": ["n1"]})["id"] == 4


def test_orders_for_others_are_not_answered(prober):
    prober.say({"id": 1, "probe": "nothing", "nodes": ["n2"]})
    assert prober.ask({"id": 2, "probe": "nothing", "nodes": ["n1"]})["id"] == 2


@pytest.mark.parametrize("end", ["eof", "end", signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_it_ends_and_leaves_nothing(prober, end):
    if end == "eof":
        prober.process.stdin.close()
    elif end == "end":
        prober.say({"end": True})
    else:
        prober.process.send_signal(end)
    assert prober.gone()
    assert prober.process.returncode == 0


def test_it_ends_when_nobody_reads_any_more(prober):
    prober.process.stdout.close()
    prober.say({"id": 1, "probe": "nothing", "nodes": ["n1"]})
    assert prober.gone()


def test_wrong_words_are_refused(capsys):
    assert serve.main(["--wiht-torch"]) == 3
    assert serve.main(["serve"]) == 3
    assert "usage" in capsys.readouterr().err


def test_it_runs_out_of_an_archive(tmp_path):
    """As it is sent to the nodes: one file, and nothing else of ours."""
    archive = tmp_path / "clustertools.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((REPOSITORY / "clustertools").rglob("*.py")):
            file.write(path, path.relative_to(REPOSITORY))
    program = (
        f"import sys; sys.path.insert(0, {str(archive)!r}); from clustertools.probes.serve import main; "
    )
    program += "import clustertools; assert '.zip' in clustertools.__file__; "
    program += "sys.exit(main(['--without-torch']))"
    one = Prober("n1", python=(sys.executable, "-I"), program=("-c", program))
    try:
        assert one.hear()["hello"]["node"] == "n1"
        order = {"id": 1, "probe": "storage", "nodes": ["n1"], "checkpoint": [str(tmp_path)], "files": 2}
        assert one.ask({**order, "size_bytes": 4 << 20})["ending"] == "done"
    finally:
        one.close()


@pytest.mark.torch
@pytest.mark.parametrize("end", ["eof", "end", signal.SIGTERM, signal.SIGHUP])
def test_in_the_middle_of_an_order_it_ends_as_well(end):
    pytest.importorskip("torch", reason="needs PyTorch (torch)")
    for (one,) in probers("n1"):
        one.say(collective(1, ["n1", "n9"], timeout_seconds=60, ranks_per_node=2))
        until = time.monotonic() + 10
        while len(one.others()) < 3 and time.monotonic() < until:
            time.sleep(0.02)
        assert len(one.others()) >= 3
        if end == "eof":
            one.process.stdin.close()
        elif end == "end":
            one.say({"end": True})
        else:
            os.kill(one.process.pid, end)
        assert one.gone()
