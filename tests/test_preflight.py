"""A preflight of this machine under several names, through the real archive, checks and answers."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from clustertools.cli import cli, main

pytestmark = pytest.mark.slow

#: What this very machine shows is not what is tested: its kernel log may hold anything, and other tests hang
#: its mounts and fill its memory and disks at the same time.
QUIET = tuple(
    word
    for name in (
        "gpu_xid",
        "host_kernel",
        "host_clock",
        "fs_fuse",
        "host_processes",
        "host_storage",
        "host_memory",
    )
    for word in ("--without", name)
)


def preflight(*words: str) -> tuple[int, list[dict]]:
    done = CliRunner().invoke(cli, ["preflight", *QUIET, *words, "--json"], standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.return_value, [json.loads(line) for line in done.stdout.splitlines()]


def test_passive_checks_of_all_nodes(tmp_path):
    good = tmp_path / "good"
    code, (report,) = preflight(
        "-w", "a[1-2]", "--transport", "local", "--stages", "passive", "--good-nodes", str(good)
    )
    assert code in (0, 1), report["verdict"]["sentence"]
    assert report["verdict"]["good_nodes"] == ["a1", "a2"]
    assert good.read_text() == "a1\na2\n"
    assert [s["name"] for s in report["stages"]] == ["reach", "passive"]
    left_out = {f"check {name}" for name in QUIET[1::2]}
    assert {u["what"] for u in report["untested"]} == {"stage node", "stage fabric", *left_out}


def test_a_node_that_cannot_be_reached_stands_beside_the_others():
    code, (report,) = preflight(
        "-w", "127.0.0.1,no-such-host.invalid", "--transport", "ssh", "--stages", "passive"
    )
    fates = {n["node"]: n["fate"] for n in report["nodes"]}
    assert code == 3
    assert report["verdict"]["decision"] == "no-go"
    assert fates["no-such-host.invalid"] == "unreachable"


def test_a_page_that_cannot_be_written_loses_no_answer(tmp_path, capsys):
    words = ["preflight", *QUIET, "-w", "a1", "--transport", "local", "--stages", "passive", "--json"]
    code = main([*words, "--html", str(tmp_path / "no" / "such" / "page.html")])
    told = capsys.readouterr()
    assert code == 3
    assert json.loads(told.out)["verdict"]["good_nodes"] == ["a1"]
    assert "cannot write" in told.err
