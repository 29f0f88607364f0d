"""`checks list`, `explain` and `record`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clustertools.check import discover
from clustertools.cli import main
from clustertools.host import RecordedHost
from clustertools.policy import load_playbooks


def test_list_has_every_check_and_code(capsys):
    assert main(["checks", "list"]) == 0
    out = capsys.readouterr().out
    for check in discover(site_folders=()).values():
        assert f"{check.name}  [" in out
        assert all(code in out for code in check.codes)


def test_list_as_json(capsys):
    assert main(["checks", "list", "--json", "--stage", "job"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows
    assert all(row["kind"] == "check" and row["schema"] == 1 and "job" in row["stages"] for row in rows)
    assert all(isinstance(row["codes"], dict) for row in rows)


@pytest.mark.slow
def test_list_with_cost_measures_each(capsys):
    assert main(["checks", "list", "--json", "--cost"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    # one of runs has no run to look at here
    assert all(row["cost_seconds"] > 0 for row in rows if row["stages"] != ["job"])


def test_explain_a_code_in_any_case(capsys):
    assert main(["explain", "eccuncorrected"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("EccUncorrected: ")
    assert "check gpu_ecc [" in out


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("RemapPending", "gpu-reset"),
        ("JobHung", "job-restart"),
        ("blind", "blind"),
        ("xid 79", "node-reboot"),
    ],
)
def test_explain_prints_the_whole_runbook(asked, name, capsys):
    book = next(b for b in load_playbooks(()) if b.name == name)
    assert main(["explain", asked]) == 0
    out = capsys.readouterr().out
    assert f"playbook {name}: " in out
    assert [line for line in book.runbook.splitlines() if line not in out] == []
    assert main(["explain", asked, "--json"]) == 0
    (row,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert row["playbook"]["runbook"] == book.runbook


def test_explain_a_code_of_no_playbook(capsys, monkeypatch):
    monkeypatch.setattr("clustertools.policy.load_playbooks", lambda: ())
    assert main(["explain", "RemapPending"]) == 0
    assert "no playbook names it" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["xid 79"], ["xid", "79"], ["Xid79"], ["XID: 79"]])
def test_explain_an_xid(words, capsys):
    assert main(["explain", *words]) == 0
    assert "fell off" in capsys.readouterr().out


def test_explain_an_unknown_xid_says_so(capsys):
    code = main(["explain", "xid", "99999"])
    captured = capsys.readouterr()
    assert code in (0, 3)
    assert "99999" in captured.out + captured.err
    assert "fault in clustertools itself" not in captured.err


def test_explain_a_check(capsys):
    assert main(["explain", "gpu_ecc"]) == 0
    out = capsys.readouterr().out
    assert "check gpu_ecc" in out
    assert "EccUncorrected: " in out


def test_explain_as_json(capsys):
    for asked in ("EccUncorrected", "xid 79", "gpu_ecc"):
        assert main(["explain", asked, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["code"] == "EccUncorrected"
    assert rows[1]["xid"] == 79
    assert len(rows) > 3


def test_explain_nonsense_suggests(capsys):
    assert main(["explain", "EccUncorected"]) == 3
    assert "did you mean EccUncorrected" in capsys.readouterr().err


def test_record_writes_a_host_that_answers_alike(tmp_path: Path, capsys):
    folder = tmp_path / "rec"
    assert main(["record", str(folder), "host_memory", "--what", "nothing is wrong"]) == 0
    out = capsys.readouterr().out
    assert str(folder / "host.yaml") in out
    assert "redacted: " in out
    assert "Review every file" in out
    assert "answers differently" not in out
    about = RecordedHost(folder).about
    assert about["what"] == "nothing is wrong"
    assert "recorded live" in about["provenance"]
    assert main(["check", "host_memory", "--host", str(folder)]) in (0, 1, 2)


def test_record_as_json(tmp_path: Path, capsys):
    assert main(["record", str(tmp_path / "r"), "host_memory", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["kind"] == "recording"
    assert row["changed"] == {}
    assert all(Path(name).exists() for name in row["files"])


def test_record_does_not_overwrite(tmp_path: Path, capsys):
    (tmp_path / "mine").write_text("mine")
    assert main(["record", str(tmp_path), "host_memory"]) == 3
    assert "not an empty folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
