"""What nodes are asked and what is made of their answers; `check --request -` from the inside and outside."""

from __future__ import annotations

import contextlib
import io
import json
import re
import threading
from pathlib import Path

import pytest

from clustertools.check import discover
from clustertools.cli import main
from clustertools.cli.request import answer as answer_request
from clustertools.cli.request import choose
from clustertools.errors import ConfigError
from clustertools.fleet import Answer, Fate
from clustertools.fleet.looking import NodeLook, Request, look_all, read_answer
from clustertools.fleet.shipping import Tool
from clustertools.fleet.typed import typed
from clustertools.host import Completed, RecordedHost
from clustertools.model import Status, Verdict, from_data, to_data
from tests.fleet.pretended_nodes import PretendedNodes, pretended_node, program

HOSTS = Path(__file__).parent.parent / "hosts"
FAULTY = HOSTS / "h100-dbe-gpu3"
#: Standard output is one for all threads.
PRINTING = threading.Lock()


def look(request: Request, host: Path = FAULTY) -> list[dict]:
    """What a node with this recording prints, line by line."""
    return [json.loads(line) for line in printed(request.text(), host).splitlines()]


def printed(text: str, host: Path = FAULTY) -> str:
    out = io.StringIO()
    with PRINTING, contextlib.redirect_stdout(out):
        assert answer_request(io.BytesIO(text.encode()), RecordedHost(host)) == 0
    return out.getvalue()


def ended(stdout: str, *, code: int = 0, stderr: str = "", node: str = "n1") -> Answer:
    return Answer(node, Fate.COMPLETED, Completed(("x",), code, stdout, stderr), elapsed_seconds=1.0)


# the node's side


def test_a_request_gives_verdicts_facts_and_an_end():
    *verdicts, facts, end = look(Request(checks=("gpu_ecc", "host_clock"), cluster="c1"))
    assert [(v["kind"], v["check"]) for v in verdicts] == [("verdict", "gpu_ecc"), ("verdict", "host_clock")]
    assert verdicts[0]["status"] == "CRITICAL"
    assert verdicts[0]["subject"]["cluster"] == "c1"
    assert facts["facts"]["driver.nvidia"].startswith("570.")
    assert end["verdicts"] == 2
    assert end["python"].count(".") == 2


def test_without_checks_it_is_all_of_the_stage_but_those_that_are_disabled():
    lines = look(Request(stage="prolog", disabled=("gpu_ecc",), facts=False))
    names = {line["check"] for line in lines if line["kind"] == "verdict"}
    stage = {name for name, check in discover(site_folders=()).items() if "prolog" in check.stages}
    assert names == stage - {"gpu_ecc"}
    assert lines[-1]["kind"] == "end"
    assert all(line["kind"] != "facts" for line in lines)


def test_limits_expectations_memory_and_deadlines_reach_the_check():
    told = look(Request(checks=("gpu_count",), expect={"gpu_count": 9}, facts=False))
    assert told[0]["status"] == "CRITICAL"
    assert "9" in json.dumps(told[0]["findings"])
    lenient = {"gpu_ecc": {"uncorrected_volatile": 10**6}}
    assert look(Request(checks=("gpu_ecc",), limits=lenient, facts=False))[0]["status"] == "OK"
    now = RecordedHost(FAULTY).now()
    past = {"host_uptime": {"boots": [[f"boot {n}", now - 60 * n] for n in range(5)]}}
    told = look(Request(checks=("host_uptime",), past=past, facts=False))
    assert told[0]["findings"][0]["code"] == "RebootLoop"


def test_the_request_of_the_manual_is_one():
    manual = (Path(__file__).parent.parent.parent / "docs/fleet-nodes.md").read_text()
    example = re.search(r"```json\n(.*?)```", manual, re.DOTALL)[1]
    chosen = choose(request := Request.read(example), discover(site_folders=()))
    assert len(chosen) > 40
    assert set(json.loads(request.text())) == set(json.loads(example))


def test_a_deadline_of_the_request_reaches_the_check():
    request = Request(checks=("gpu_ecc", "host_clock"), timeouts={"gpu_ecc": 3})
    chosen = choose(request, discover(site_folders=()))
    assert [(c.name, c.timeout_seconds) for c in chosen] == [("gpu_ecc", 3.0), ("host_clock", 20.0)]


@pytest.mark.parametrize(
    ("request_text", "said"),
    [
        ("", "not JSON"),
        ("[]", "one JSON object"),
        ("[" * 100_000, "not JSON"),
        ("{}", "version None"),
        ('{"v": 2}', "version 2"),
        ('{"v": 1, "command": ["id"]}', "unknown key 'command'"),
        ('{"v": 1, "pythons": ["/tmp/x"]}', "unknown key 'pythons'"),
        ('{"v": 1, "plugins": {"x": {"command": ["id"]}}}', "unknown key 'plugins'"),
        ('{"v": 1, "site_checks": ["/tmp"]}', "unknown key 'site_checks'"),
        ('{"v": 1, "checks": "gpu_ecc"}', "checks in the request has the wrong type"),
        ('{"v": 1, "checks": []}', "names no check"),
        ('{"v": 1, "checks": ["../../tmp/x"]}', "there is no check named '../../tmp/x'"),
        ('{"v": 1, "checks": ["job_progress"]}', "there is no check named"),
        ('{"v": 1, "stage": "job"}', "of which no node is asked"),
        ('{"v": 1, "stage": "no"}', "of which no node is asked"),
        ('{"v": 1, "timeout_seconds": -1}', "must be up to"),
        ('{"v": 1, "timeout_seconds": NaN}', "NaN is no number"),
        ('{"v": 1, "timeout_seconds": 1e999}', "wrong type"),
        ('{"v": 1, "facts": 1}', "facts in the request has the wrong type"),
        ('{"v": 1, "limits": {"no_check": {}}}', "no check here"),
        ('{"v": 1, "limits": {"gpu_ecc": {"no_limit": 1}}}', "has no 'no_limit'"),
        ('{"v": 1, "limits": {"host_services": {"most_units": "many"}}}', "of this kind"),
        ('{"v": 1, "timeouts": {"gpu_ecc": 0}}', "above 0"),
        ('{"v": 1, "disabled": ["gpu_ecc"], "checks": ["gpu_ecc"]}', "disabled: nothing was looked at"),
        ('{"v": 1, "expect": {"packages": {"--eval=%(id >/tmp/x)": "*"}}}', "begins like an option"),
        ('{"v": 1, "expect": {"services": ["ok", "-Hroot@elsewhere"]}}', "begins like an option"),
        ('{"v": 1, "limits": {"host_services": {"ignored": ["-x"]}}}', "begins like an option"),
    ],
)
def test_what_is_no_request_is_refused_before_anything_is_looked_at(request_text, said, monkeypatch, capsys):
    class Untouched:
        def __getattr__(self, name):
            raise AssertionError(f"the machine was asked for {name}")

    with pytest.raises(ConfigError, match=re.escape(said)):
        answer_request(io.BytesIO(request_text.encode()), Untouched())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(request_text.encode())))
    assert main(["check", "--request", "-"]) == 3
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("clustertools: ")


def test_a_number_that_json_has_not_is_refused_before_it_is_sent():
    with pytest.raises(ConfigError, match="cannot be sent"):
        Request(expect={"gpu_memory_bytes": float("inf")}).text()


def test_a_request_that_never_ends_is_cut():
    class Endless(io.RawIOBase):
        def read(self, count=-1):
            assert count > 0
            return b" " * count

    with pytest.raises(ConfigError, match="longer than"):
        answer_request(Endless(), RecordedHost(FAULTY))


def test_every_command_a_request_leads_to_is_one_of_the_checks_own(tmp_path):
    """Whatever stands in expectations is an argument of a looking command, never the program."""
    marker = tmp_path / "marker"
    hostile = f"$(touch {marker});`touch {marker}`|touch {marker}"
    expect = {
        "services": [hostile], "modules": [hostile], "packages": {hostile: hostile},
        "mounts": [f"/{hostile}"], "files": [{"path": f"/{hostile}"}], "sysctls": {hostile: "1"},
        "interfaces": [hostile],
        "reachable": [f"{hostile}:1"], "ib_fabric_golden": f"/{hostile}", "facts": {hostile: hostile},
    }  # fmt: skip
    argvs = []

    class Noting(RecordedHost):
        def run(self, *argv, timeout_seconds=10.0, stdin=""):
            argvs.append(argv)
            return super().run(*argv, timeout_seconds=timeout_seconds, stdin=stdin)

    from clustertools import check as checking

    for each in discover(site_folders=(), job_checks=False).values():
        if not each.name.startswith("job_"):
            checking.run(each, Noting(FAULTY), expect=expect)
    assert len(argvs) > 20
    assert not [argv for argv in argvs if argv[0] in ("sh", "bash", "env") or hostile in argv[0]]
    assert not marker.exists()


# the head's side


def test_an_answer_is_read_and_is_about_the_node_that_was_asked():
    text = printed(Request(checks=("gpu_ecc",), cluster="c1").text())
    told = read_answer(ended("Welcome to n1!\n" + text), "c1")
    assert told.why_not == ""
    assert told.strange == 1
    assert told.verdicts[0].status is Status.CRITICAL
    assert {f.subject.node for f in told.verdicts[0].findings} == {"n1"}
    assert {r.subject.node for r in told.verdicts[0].readings} <= {"n1"}
    assert told.verdicts[0].subject.node == "n1"
    assert told.facts["driver.nvidia"]
    assert told.version


def test_every_verdict_of_a_node_is_read_as_it_was_written():
    told = [line for line in look(Request(facts=False)) if line["kind"] == "verdict"]
    assert len(told) > 40
    for line in told:
        assert typed(Verdict, line) == from_data(Verdict, line)
        assert json.loads(json.dumps(to_data(typed(Verdict, line)))).items() <= line.items()


def test_what_came_before_the_end_is_kept():
    text = printed(Request(checks=("gpu_ecc", "host_clock")).text())
    half = text[: text.index('"kind": "facts"')]
    late = read_answer(Answer("n1", Fate.TIMEOUT, reason="no end within 5 s", said=half))
    assert [v.check for v in late.verdicts] == ["gpu_ecc", "host_clock"]
    assert late.why_not == "no end within 5 s"
    lost = read_answer(Answer("n1", Fate.LOST, reason="the connection was closed", said=half[:-400]))
    assert lost.fate is Fate.LOST
    assert len(lost.verdicts) == 1
    died = read_answer(ended(half, code=-9))
    assert died.why_not == "the look broke off with signal 9: it said nothing"
    cut = Answer("n1", Fate.COMPLETED, Completed(("x",), 0, half, "", truncated=True))
    assert read_answer(cut).why_not == "it said more than is kept"
    refused = read_answer(ended("", code=3, stderr="clustertools: could not run: \x1b[31mno\n"))
    assert refused.why_not == "the look broke off with exit code 3: clustertools: could not run: no"


@pytest.mark.parametrize(
    "change",
    [
        {"status": "FINE"}, {"status": 0}, {"check": 7}, {"findings": "x"}, {"findings": [{"check": "x"}]},
        {"subject": "n9"}, {"subject": {"node": ["n9"]}}, {"elapsed_seconds": "soon"}, {"detail": None},
        {"readings": [{"subject": {}, "name": "x", "value": True, "time": 1.0}]}, {"memory": []},
        {"time": 1e999}, {"schema": 2},
    ],
)  # fmt: skip
def test_a_verdict_of_another_shape_is_counted_and_the_look_is_not_whole(change):
    first, *rest = printed(Request(checks=("gpu_ecc", "host_clock")).text()).splitlines()
    told = read_answer(ended("\n".join([json.dumps({**json.loads(first), **change}), *rest])))
    assert [v.check for v in told.verdicts] == ["host_clock"]
    assert told.strange == 1
    assert told.why_not == "of 2 verdicts only 1 could be read"


def test_a_reading_that_is_no_number_costs_only_itself():
    first, *rest = printed(Request(checks=("gpu_ecc",)).text()).splitlines()
    data = json.loads(first)
    count = len(data["readings"])
    data["readings"][0]["value"] = None
    told = read_answer(ended("\n".join([json.dumps(data), *rest])))
    assert told.why_not == ""
    assert len(told.verdicts[0].readings) == count - 1


class Canned:
    """A transport that answers each run from what stdin asks; runs block until all are under way."""

    name = "canned"

    def __init__(self, groups: int = 1) -> None:
        self.runs: list[tuple[tuple[str, ...], Request]] = []
        self.together = threading.Barrier(groups, timeout=20)

    def run(self, nodes, argv, *, stdin=b"", timeout_seconds=60.0):
        request = Request.read(stdin)
        self.runs.append((tuple(nodes), request))
        self.together.wait()
        for node in nodes:
            if node != "silent":
                yield ended(printed(stdin.decode()), node=node)

    def close(self) -> None: ...


def test_nodes_are_grouped_by_what_they_are_asked_and_asked_side_by_side():
    eight, nine = (Request(checks=("gpu_count",), expect={"gpu_count": n}, facts=False) for n in (8, 9))
    transport = Canned(groups=2)
    tool = Tool.there(["a", "b", "c"])
    asked = {"a": eight, "b": nine, "c": eight}
    found = {look.node: look for look in look_all(transport, tool, asked, timeout_seconds=40)}
    assert sorted(nodes for nodes, _ in transport.runs) == [("a", "c"), ("b",)]
    assert {request.timeout_seconds for _, request in transport.runs} == {30.0}
    assert found["b"].verdicts[0].status is Status.CRITICAL
    assert found["a"].verdicts[0].status is Status.OK
    assert found["c"].why_not == ""


def test_a_node_without_the_tool_and_one_of_which_nothing_is_heard_are_told():
    away = Answer("gone", Fate.UNREACHABLE, reason="no route to host")
    tool = Tool("python3", "0" * 64, "", {}, {"gone": away})
    asked = dict.fromkeys(("a", "gone", "silent"), Request(checks=("gpu_ecc",), facts=False))
    found = {look.node: look for look in look_all(Canned(), tool, asked, timeout_seconds=40)}
    assert found["gone"] == NodeLook("gone", fate=Fate.UNREACHABLE, why_not="no route to host")
    assert found["silent"].fate is Fate.LOST
    assert found["a"].why_not == ""


def test_what_a_transport_raises_reaches_the_caller():
    class Broken(Canned):
        def run(self, nodes, argv, **options):
            raise ConfigError("no such user")

    with pytest.raises(ConfigError, match="no such user"):
        list(look_all(Broken(), Tool.there(["a"]), {"a": Request()}, timeout_seconds=10))


@pytest.mark.slow
def test_a_bare_node_is_looked_at_from_the_archive(tmp_path):
    nodes = PretendedNodes({"n1": pretended_node(tmp_path / "n1"), "n2": pretended_node(tmp_path / "n2")})
    # a node whose login scripts talk, and which dies in the middle
    text = (
        '#!/bin/sh\necho Welcome\ncase "$*" in *--request*) exec {} "$@" | head -n 3;; esac\nexec {} "$@"\n'
    )
    shell = Path(nodes.nodes["n2"]["PATH"]) / "python3"
    real = shell.read_text().split()[2]
    program(shell, text.format(real, real))
    nodes.nodes["n2"]["PATH"] += ":/usr/bin:/bin"
    tool = Tool.install(nodes, ["n1", "n2"])
    asked = dict.fromkeys(tool.nodes, Request(checks=("host_storage", "cpu_count", "host_kernel")))
    found = {look.node: look for look in look_all(nodes, tool, asked, timeout_seconds=60)}
    assert found["n1"].why_not == ""
    assert [v.check for v in found["n1"].verdicts] == ["host_storage", "cpu_count", "host_kernel"]
    assert found["n1"].facts["kernel"]
    assert "broke off" in found["n2"].why_not
    assert 1 <= len(found["n2"].verdicts) <= 3
