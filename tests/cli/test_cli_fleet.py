"""`clustertools on`, on this machine under several names and over real sshd's."""

from __future__ import annotations

import json

from clustertools.cli import main
from tests.lab.sshd import Sshds, needs_sshd

LOCAL = ("on", "--transport", "local", "-w", "n[1-4]")


def test_the_same_answer_is_told_once(capsys):
    assert main([*LOCAL, "--", "echo", "hello", "-w"]) == 0
    out, err = capsys.readouterr()
    assert out == "n[1-4] (4): hello -w\n"
    assert "4 nodes: 4 fine" in err


def test_one_that_fails_and_one_that_does_not_end(capsys):
    script = "case $CLUSTERTOOLS_NODE in n2) echo bad >&2; exit 7;; esac"
    assert main([*LOCAL, "--", "sh", "-c", script]) == 1
    assert "n2 (1) exit code 7: bad" in capsys.readouterr().out
    script = "case $CLUSTERTOOLS_NODE in n2) exit 7;; n3) sleep 60;; esac"
    assert main([*LOCAL, "--timeout", "1s", "--", "sh", "-c", script]) == 3
    assert "n3 (1) timeout: it did not end within 1 s" in capsys.readouterr().out


def test_json(capsys):
    assert main([*LOCAL, "--json", "--", "sh", "-c", "echo a"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {r["node"] for r in records} == {"n1", "n2", "n3", "n4"}
    assert {(r["kind"], r["fate"], r["returncode"], r["stdout"]) for r in records} == {
        ("answer", "completed", 0, "a\n")}  # fmt: skip


def test_nobody_selected_is_wrong_usage(capsys):
    assert main(["on", "-w", "", "--", "true"]) == 3
    assert "selects no node" in capsys.readouterr().err


@needs_sshd
def test_over_ssh(tmp_path, capsys):
    with Sshds(tmp_path / "lab", 3) as lab:
        argv = ["on", "-F", str(lab.ssh_config), "--connect-timeout", "3s", "-w", "lab[1-3],127.0.1.250"]
        assert main([*argv, "--", "echo", "a  b"]) == 3
    out = capsys.readouterr().out
    assert "lab[1-3] (3): a  b\n" in out
    assert "127.0.1.250 (1) unreachable: Connection refused" in out
