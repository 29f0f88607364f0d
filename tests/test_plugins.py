"""Real small programs as checks: what they end with, what they print, and how they misbehave."""

from __future__ import annotations

import json
import os
import stat
import typing

import pytest
import yaml

from clustertools import check as checking
from clustertools.cli import main
from clustertools.config import PluginConfig, PluginStage, load
from clustertools.errors import ConfigError
from clustertools.host import LocalHost
from clustertools.model import Status
from clustertools.node_health import Memory, Rules, decide
from clustertools.plugins import all_checks, as_check, code_of
from clustertools.policy import load_playbooks
from tests.test_node_health import List


@pytest.fixture
def plugin(tmp_path):
    """`plugin("exit 2")`: the verdict of a shell script as a plugin."""

    def run(body, *, mode=0o755, timeout=5.0, words=(), first="#!/bin/sh"):
        path = tmp_path / "check_it"
        path.write_text(f"{first}\n{body}\n")
        path.chmod(mode)
        said = PluginConfig(command=(str(path), *words), timeout_seconds=timeout)
        return checking.run(as_check("it", said), LocalHost("n1"))

    return run


@pytest.mark.parametrize(
    ("code", "status"),
    [(0, Status.OK), (1, Status.WARNING), (2, Status.CRITICAL), (3, Status.UNKNOWN), (4, Status.UNKNOWN),
     (126, Status.UNKNOWN), (255, Status.UNKNOWN)],
)  # fmt: skip
def test_the_exit_code_is_the_state(plugin, code, status):
    verdict = plugin(f"echo 'CABLES: 3 of 8 | bad=3;;;0;8'; echo 'port 1'; exit {code}")
    assert verdict.status is status
    if code in (1, 2):
        (finding,) = verdict.findings
        assert (finding.code, finding.check, finding.subject.part) == ("PluginIt", "plugin_it", "")
        assert (finding.summary, finding.evidence) == ("CABLES: 3 of 8", ("port 1",))
    else:
        assert not verdict.findings
        assert "CABLES: 3 of 8" in (verdict.blind if code else verdict.detail)
    assert [(r.name, r.value) for r in verdict.readings] == ([("plugin_it_bad", 3.0)] if code < 3 else [])


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("kill -9 $$", "SIGKILL"),
        ("sleep 60", "did not answer within 0."),
        ("exec sleep 60 >&-", "did not answer within 0."),
        ("trap '' TERM; while :; do sleep 1; done", "did not answer within 0."),
        ("echo 'no such option' >&2; exit 2", "no such option"),
        ("syntax error (", "said nothing on standard output"),
        ("echo '| a=1'; exit 1", "said nothing on standard output"),
        ("exit 3", "could not tell"),
    ],
)
def test_what_breaks_the_contract_is_unknown(plugin, body, told):
    verdict = plugin(body, timeout=0.3)
    assert (verdict.status, verdict.findings) == (Status.UNKNOWN, ())
    assert told in verdict.blind


def test_a_script_with_an_error_is_not_a_warning(plugin):
    verdict = plugin("import nothing_of_this_name", first="#!/usr/bin/env python3")
    assert (verdict.status, "ModuleNotFoundError" in verdict.blind) == (Status.UNKNOWN, True)


def test_not_executable_and_not_there(plugin):
    assert "Permission denied" in plugin("exit 0", mode=0o644).blind
    missing = as_check("it", PluginConfig(command=("/nowhere/check_it",)))
    assert "not installed" in checking.run(missing, LocalHost("n1")).blind
    assert "Exec format" in plugin("\x7f", first="\x00\x01").blind


def test_huge_and_hostile_output(plugin):
    verdict = plugin(
        "printf 'bad \\033[31m\\377\\000$(id) {0}\\n'; yes 'long text' | head -c 40000000; exit 2"
    )
    (finding,) = verdict.findings
    assert finding.summary == "bad �$(id) {0}"
    assert len("".join(finding.evidence)) < 6000


def test_arguments_reach_no_shell(plugin, tmp_path):
    verdict = plugin('echo "$1"', words=(f"$(touch {tmp_path}/made); *",))
    assert "$(touch" in verdict.detail
    assert not (tmp_path / "made").exists()


def test_python_is_the_sites_own(tmp_path, monkeypatch):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho the site\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    verdict = checking.run(as_check("it", PluginConfig(command=("python", "x.py"))), LocalHost("n1"))
    assert (verdict.status, verdict.detail) == (Status.OK, "the site")


def test_names():
    assert code_of("infiniband_cables2") == "PluginInfinibandCables2"
    assert set(typing.get_args(PluginStage)) == checking.STAGES - {"job"}


# config


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Writes the config of a site with one plugin that ends with 2, and more; gives its path."""
    script = tmp_path / "check_cables"
    script.write_text("#!/bin/sh\necho 'two cables are out | out=2'\nexit 2\n")
    script.chmod(0o755)
    monkeypatch.setenv("CLUSTERTOOLS_ETC", str(tmp_path))

    def write(more=None, **plugin):
        told = {"plugins": {"cables": {"command": [str(script)], **plugin}}, **(more or {})}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(told))
        return tmp_path / "config.yaml"

    return write


def test_every_command_knows_it(site, capsys):
    site()
    assert main(["checks", "list"]) == 0
    assert "plugin_cables  [preflight, watch]" in capsys.readouterr().out
    assert main(["check", "plugin_cables", "--json"]) == 2
    (told,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [f["code"] for f in told["findings"]] == ["PluginCables"]
    for asked in ("plugin_cables", "PluginCables"):
        assert main(["explain", asked]) == 0
        out = capsys.readouterr().out
        assert "no playbook names it: people are told" in out
        assert "check_cables" in out
    assert main(["config", "check"]) == 0
    capsys.readouterr()


def test_it_is_tuned_as_any_other_check(site, capsys):
    site({"checks": {"plugin_cables": {"enabled": False, "observe": True, "confirm": 3, "timeout": "3s"}}})
    assert main(["config", "check"]) == 0
    assert main(["check", "--list"]) == 0
    assert "plugin_cables" not in capsys.readouterr().out
    site({"checks": {"plugin_cabels": {"observe": True}}})
    assert main(["config", "check"]) == 3
    assert "did you mean plugin_cables?" in capsys.readouterr().err


def test_stages_and_times(site):
    site(stages=["prolog"], timeout="2s", interval="5m")
    check = all_checks(load().config)["plugin_cables"]
    assert (check.stages, check.timeout_seconds, check.interval_seconds) == ({"prolog"}, 2.0, 300.0)


def test_the_watchdog_runs_it(site, tmp_path, capsys):
    site({"state_dir": str(tmp_path / "state")})
    from clustertools.cli.assemble import site as assembled

    _, _, checks = assembled(load(), act=False, once=True, interval=None, terminal=False)
    (check,) = [c for c in checks if c.name == "plugin_cables"]
    assert checking.run(check, LocalHost("n1")).codes == {"PluginCables"}


def test_slurms_health_check_runs_it_and_drains_nothing(site, tmp_path, monkeypatch, capsys):
    from clustertools.cli import node_memory

    monkeypatch.setattr(node_memory, "folder", lambda: tmp_path / "memory")
    off = {n: {"enabled": False} for n in checking.discover(site_folders=()) if not n.startswith("job_")}
    site({"checks": off, "policy": {"mode": "act"}})
    assert main(["node-health", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(r["check"], r["status"]) for r in rows if r["kind"] == "verdict"} == {
        ("plugin_cables", "CRITICAL")
    }
    (told,) = [r for r in rows if r["kind"] == "node-health"]
    assert not told["refuse"]


def test_only_a_playbook_of_the_site_drains_for_it(plugin, tmp_path):
    verdict = plugin("echo 'two cables are out'; exit 2")
    rules = Rules(mode="act", hold_seconds=60.0, max_fraction=1.0)

    def drained(books):
        nodes = List()
        decide(Memory(), [verdict], lambda: books, rules, 1e9, "n1", nodes)
        return "n1" in nodes.drained

    assert not drained(load_playbooks(()))
    (tmp_path / "cables.yaml").write_text("name: cables\ncodes: [PluginIt]\nrunbook: x\nsteps: [drain]\n")
    assert drained(load_playbooks((str(tmp_path),)))


@pytest.mark.parametrize(
    ("plugin", "problem"),
    [
        ("Cables: {command: [/x]}", "words of small letters"),
        ("a_1: {command: [/x]}", "words of small letters"),
        ("a: {}", "command is missing"),
        ("a: {command: []}", "names no program"),
        ("a: {command: check_load -w 100}", "no shell splits this"),
        ("a: {command: [./check]}", "full path"),
        ('a: {command: [/x, "b\\0"]}', "NUL"),
        ("a: {command: [/x], stages: [job]}", "expected one of"),
        ("a: {command: [/x], stages: []}", "never run"),
        ("a: {command: [/x], timeout: 0s}", "timeout"),
        ("a: {command: [/x], shell: true}", "unknown key"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path, plugin, problem):
    path = tmp_path / "c.yaml"
    path.write_text(f"plugins:\n  {plugin}\n")
    with pytest.raises(ConfigError) as told:
        load([path], etc=tmp_path / "none")
    assert problem in str(told.value)
    assert "c.yaml:" in str(told.value)


def test_a_name_that_is_taken(tmp_path, monkeypatch):
    path = tmp_path / "c.yaml"
    path.write_text("plugins:\n  cables: {command: [/x]}\n")
    ours = checking.discover(site_folders=())
    monkeypatch.setattr("clustertools.plugins.discover", lambda _: {**ours, "plugin_cables": ours["gpu_ecc"]})
    with pytest.raises(ConfigError, match="already"):
        all_checks(load([path], etc=tmp_path / "none").config)
