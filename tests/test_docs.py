"""The generated reference is that of the checks and playbooks as they are; `make docs` writes it anew."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys

import pytest

from clustertools.check import Check, NoLimits
from clustertools.model import Status
from clustertools.policy import load_playbooks
from clustertools.probes.serve import PROBES
from docs.make_reference import FOLDER, PAGES, coverage, limits, own_checks, told


@pytest.mark.parametrize("name", PAGES)
def test_the_committed_page_is_what_the_generator_writes(name):
    written = (FOLDER / name).read_text(encoding="utf-8")
    assert written == PAGES[name](), f"docs/{name} is out of date: `make docs`"


@pytest.mark.slow
def test_the_generator_runs_as_make_runs_it(tmp_path):
    copy = tmp_path / "make_reference.py"
    copy.write_text((FOLDER / "make_reference.py").read_text(encoding="utf-8"), encoding="utf-8")
    shutil.copy(FOLDER / "coverage.yaml", tmp_path)
    subprocess.run([sys.executable, str(copy)], check=True, timeout=60)
    for name, page in PAGES.items():
        assert (tmp_path / name).read_text(encoding="utf-8") == page()


def test_every_check_code_limit_and_playbook_has_its_place():
    checks, codes = PAGES["checks.md"](), PAGES["codes.md"]()
    for one in own_checks():
        assert f"\n## {one.name}\n" in checks
        for name, default, _ in limits(one):
            assert f"| `{name}` | `{default}` |" in checks
        for code in one.codes:
            assert f"\n## {code}\n" in codes
            assert f"[{code}](codes.md#{code.lower()})" in checks
    assert "\n## Blind\n" in codes
    for book in load_playbooks(()):
        assert f"\n| {book.name} | " in codes


def test_what_the_coverage_names_is_there():
    rows = coverage()
    assert len(rows) == 188
    checks = {one.name: one for one in own_checks()}
    wrong = [f"{row.name}: no check {name}" for row in rows for name in row.checks if name not in checks]
    for row in rows:
        declared = {code for name in row.checks if name in checks for code in checks[name].codes}
        wrong += [f"{row.name}: no code {code} in {row.checks}" for code in row.codes if code not in declared]
        if row.probe and row.probe not in PROBES:
            wrong.append(f"{row.name}: no probe {row.probe}")
        if row.left_out and (row.probe or row.checks or row.codes or row.readings):
            wrong.append(f"{row.name}: left out and covered")
    assert not wrong
    assert not [row.name for row in rows if row.is_open], "every row has a check, or a reason"


def test_a_limit_is_told_with_its_source():
    (ecc,) = (c for c in own_checks() if c.name == "gpu_ecc")
    told_limits = {name: (default, source) for name, default, source in limits(ecc)}
    assert told_limits["uncorrected_volatile"][0] == "0"
    assert told_limits["uncorrected_volatile"][1].startswith("Any is one too many")
    (memory,) = (c for c in own_checks() if c.name == "host_memory")
    assert ("available_critical_bytes", "512 MiB") in [(name, default) for name, default, _ in limits(memory)]


def test_how_a_code_clears_is_told():
    clears = {code: one.clears for c in own_checks() for code, one in told(c).items()}
    assert clears["EccUncorrected"] == {"no longer seen"}
    assert clears["XidGpuLost"] == {"after a reboot"}
    assert clears["XidMmuFault"] == {"not repeated for 1 h"}
    assert clears["HostKernelOops"] == {"after a reboot"}
    assert clears["KernelLogGap"] == {"not repeated for 1 h"}


SOURCE = """
LONG = 7200.0

def look(ctx):
    yield ctx.critical("Plain", "", "", clears="manual")
    yield ctx.warning("Warned", "", "", clears=90.0)
    yield ctx.warning("Named", "", "", clears=LONG)
    tell = ctx.critical if ctx.past else ctx.warning
    yield tell("Either", "", "")
    yield from passed(ctx, "Passed")
    for code in ctx.past:
        yield ctx.critical(code, "", "")

def passed(ctx, code):
    yield ctx.critical(code, "", "")
"""


def test_statuses_are_read_in_all_the_ways_that_a_check_may_tell(tmp_path, monkeypatch):
    path = tmp_path / "some_check.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("some_check", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "some_check", module)
    spec.loader.exec_module(module)
    codes = dict.fromkeys(("Plain", "Warned", "Named", "Either", "Passed", "Dynamic"), "text")
    known = told(Check("some_check", module.look, "doc", NoLimits, frozenset({"watch"}), codes))
    warned, critical = {Status.WARNING}, {Status.CRITICAL}
    assert {code: one.statuses for code, one in known.items()} == {
        "Plain": critical, "Warned": warned, "Named": warned, "Either": warned | critical,
        "Passed": critical, "Dynamic": critical,
    }  # fmt: skip
    assert known["Plain"].clears == {"a person says so"}
    assert known["Warned"].clears == {"not repeated for 90 s"}
    assert known["Named"].clears == {"not repeated for 2 h"}
