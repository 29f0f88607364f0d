"""The recorded hosts of tests/hosts: whole, honest about what was not recorded, and nobody's own."""

from __future__ import annotations

import filecmp
import getpass
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clustertools import check as checking
from clustertools.check import Check
from clustertools.cli import main
from clustertools.errors import Absent, ConfigError, Unobservable
from clustertools.host import RecordedHost, dump_yaml, load_yaml
from clustertools.model import Status, Verdict
from clustertools.redact import Redactor
from clustertools.replay.machine import ReplayHost
from clustertools.shared_host import SharedHost
from tests.conftest import HOSTS
from tests.lab.make_hosts import MACHINES, make

FOLDERS = sorted(path.parent for path in HOSTS.glob("*/host.yaml"))
EVERY_FOLDER = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
#: Keys of host.yaml; `checks` narrows a special recording to the checks that it is for.
KEYS = frozenset(
    (
        "name boot_id time what node_class expect expect_codes expect_unknown provenance base without "
        "checks past"
    ).split()
)
#: What a check that is blind on every host lacks.
HINT = (
    "what a check reads of every node goes into tests/lab/whole_node.py; then python -m tests.lab.make_hosts"
)


def passive() -> dict[str, Check]:
    """The checks of a node; those of a run need a job."""
    return {n: c for n, c in checking.discover(site_folders=()).items() if c.stages != {"job"}}


def looked_at(recorded: RecordedHost) -> dict[str, Verdict]:
    """What each check says of it; all share one answer per question, as in a look of the command."""
    named = recorded.about.get("checks")
    expect, past = recorded.about.get("expect"), recorded.about.get("past", {})
    host = SharedHost(recorded)
    return {
        name: checking.run(check, host, expect=expect, past=past.get(name))
        for name, check in passive().items()
        if named is None or name in named
    }


@pytest.mark.slow
@EVERY_FOLDER
def test_a_recorded_host_shows_what_it_says_and_nothing_else(folder: Path) -> None:
    host = RecordedHost(folder)
    verdicts = looked_at(host)
    assert verdicts
    blind = {name: v.blind for name, v in verdicts.items() if v.blind or v.status is Status.UNKNOWN}
    assert set(blind) == set(host.about.get("expect_unknown", ())), f"{blind}; {HINT}"
    assert {code for v in verdicts.values() for code in v.codes} == set(host.about["expect_codes"])
    assert not any("Traceback" in v.detail for v in verdicts.values())


@pytest.mark.slow
@EVERY_FOLDER
def test_a_fault_makes_no_check_look_away(folder: Path) -> None:
    about = load_yaml(folder / "host.yaml")
    if "base" in about:
        skipped = {n for n, v in looked_at(RecordedHost(folder)).items() if v.status is Status.SKIPPED}
        base = looked_at(RecordedHost(folder / about["base"]))
        assert skipped <= {n for n, v in base.items() if v.status is Status.SKIPPED}


@pytest.mark.slow
@EVERY_FOLDER
def test_a_recorded_host_says_what_it_is(folder: Path) -> None:
    own, about = load_yaml(folder / "host.yaml"), RecordedHost(folder).about
    assert set(own) <= KEYS
    # what is wrong and where it comes from is never the base's
    assert all(own.get(key) for key in ("what", "provenance", "name"))
    assert isinstance(own.get("expect_codes"), list)
    assert about["node_class"]
    assert about["time"] > 0
    unknown = {*about.get("checks", ()), *about.get("expect_unknown", ())} - set(passive())
    assert not unknown
    declared = {code for check in passive().values() for code in check.codes}
    assert set(own["expect_codes"]) <= declared


@pytest.mark.slow
def test_no_two_hosts_have_one_name() -> None:
    names = [RecordedHost(folder).name for folder in FOLDERS]
    assert len(set(names)) == len(names)


HEALTHY = [machine.name for machine in MACHINES if not machine.base]


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_node_is_ok_before_a_launch(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--stage", "preflight", "--host", str(HOSTS / name), "--json"]) == 0
    told = {v["check"]: v for v in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(told) == {c.name for c in checking.select((), "preflight", passive())}
    assert {v["status"] for v in told.values()} <= {"OK", "SKIPPED"}
    skipped = {check: v["detail"] for check, v in told.items() if v["status"] == "SKIPPED"}
    assert all(skipped.values()), "who skips says why"
    if name == "h100-healthy":
        assert not [check for check in skipped if check.startswith("gpu_")]
    if name == "cpu-healthy":
        assert {check for check in told if check.startswith("gpu_")} <= skipped.keys()
    assert not any(v["findings"] or v["blind"] for v in told.values())


@pytest.mark.slow
@EVERY_FOLDER
def test_a_recording_names_no_machine_and_no_person(folder: Path) -> None:
    users = [getpass.getuser(), os.environ.get("SUDO_USER", "")]
    host = socket.gethostname()
    redact = Redactor(users=users, hosts=[host, host.split(".")[0]], job_names=True)
    here = [str(HOSTS.parents[1]), sys.prefix, f"{Path.home()}/"]
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        text = f"{path.relative_to(HOSTS)}\n{path.read_text()}"
        assert redact(text) == text, f"{path}: {dict(redact.counts)}"
        assert not [place for place in here if place in text], path


@pytest.mark.slow
def test_the_recordings_are_what_the_script_makes(nvml_library: Path, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    (tmp_path / "lab").mkdir()
    for machine in MACHINES:
        make(machine, nvml_library, tmp_path / "lab", hosts)
    made = {m.name for m in MACHINES}
    for name in made:
        assert differences(filecmp.dircmp(HOSTS / name, hosts / name)) == []


def differences(compared: filecmp.dircmp[str]) -> list[str]:
    found = [*compared.left_only, *compared.right_only, *compared.diff_files, *compared.funny_files]
    return found + [name for below in compared.subdirs.values() for name in differences(below)]


def test_a_live_recording_says_what_it_is_for(tmp_path: Path) -> None:
    assert main(["record", str(tmp_path / "here"), "host_memory", "host_storage"]) == 0
    host = RecordedHost(tmp_path / "here")
    verdicts = looked_at(host)
    assert set(verdicts) == {"host_memory", "host_storage"} == set(host.about["checks"])
    assert {v.check for v in verdicts.values() if v.blind} == set(host.about["expect_unknown"])
    assert {code for v in verdicts.values() for code in v.codes} == set(host.about["expect_codes"])
    assert set(host.about) <= KEYS


# ---- what was not recorded ---------------------------------------------------------------------------------

Build = Callable[..., RecordedHost]


@pytest.fixture
def recording(tmp_path: Path) -> Build:
    """A recording with these files; a path that ends in "/" is an empty folder."""

    def build(*files: str, name: str = "n1", listings: Any = None, **about: Any) -> RecordedHost:
        folder = tmp_path / name
        (folder / "commands").mkdir(parents=True)
        dump_yaml(folder / "host.yaml", {"name": name, "time": 1.0, **about})
        for path in files:
            place = folder / "files" / path.lstrip("/")
            (place if path.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
            if not path.endswith("/"):
                place.write_text(f"{name}\n")
        if listings:
            dump_yaml(folder / "listings.yaml", listings)
        return RecordedHost(folder)

    return build


PCI = "/sys/bus/pci/devices/*/vendor"


def test_an_empty_recording_is_blind_and_not_without_gpus(run: Any, recording: Build) -> None:
    host = recording()
    for name in passive():
        verdict = run(name, host)
        if "in the expectations of this node class" in verdict.detail:
            continue  # with nothing to compare with it need not look
        assert verdict.status is Status.UNKNOWN, name
        assert "is not in the recording n1" in verdict.blind


@pytest.mark.parametrize("pattern", [PCI, "/sys/bus/pci/devices/0000:3b:00.0", "/sys/b*/pci/*"])
def test_what_nobody_listed_is_unobservable(recording: Build, pattern: str) -> None:
    host = recording("/proc/stat", "/sys/bus/usb/" if "b*" not in pattern else "/dev/")
    with pytest.raises(Unobservable, match="is not in the recording n1"):
        host.glob(pattern)


@pytest.mark.parametrize("folder", ["/sys/bus/pci/devices/", "/sys/bus/pci/devices/0000:00:1f.0/class"])
def test_a_recorded_folder_without_a_match_is_an_answer(recording: Build, folder: str) -> None:
    assert recording(folder).glob(PCI) == []


def test_a_listing_is_an_answer_even_an_empty_one(recording: Build) -> None:
    assert recording(listings={"globs": {PCI: []}}).glob(PCI) == []
    listed = ["/sys/bus/pci/devices/0000:3b:00.0/vendor"]
    assert recording(name="n2", listings={"globs": {PCI: listed}}).glob(PCI) == listed


def test_absent_is_only_what_somebody_looked_for(recording: Build) -> None:
    host = recording("/proc/stat", listings={"absent": ["/etc/fstab"], "errors": {"/etc/passwd": "denied"}})
    for look in (host.read, host.stat):
        for path in ("/proc/meminfo", "/etc/fstab"):
            with pytest.raises(Absent):
                look(path)
        with pytest.raises(Unobservable, match="is not in the recording") as unseen:
            look("/run/systemd/x")
        assert not isinstance(unseen.value, Absent)
        with pytest.raises(Unobservable, match="denied"):
            look("/etc/passwd")
    with pytest.raises(Unobservable, match="denied"):
        recording(name="n2", listings={"errors": {"/lustre/*": "denied"}}).glob("/lustre/*")


def test_a_recording_that_names_a_base_says_only_what_differs(recording: Build) -> None:
    base = recording("/a/1", "/a/2", "/b/3", name="base", node_class="cpu", expect={"gpu_count": 2})
    dump_yaml(base.folder / "commands/1.yaml", {"argv": ["uname"], "stdout": "old"})
    dump_yaml(base.folder / "commands/2.yaml", {"argv": ["date"], "stdout": "today"})
    host = recording("/a/2", "/a/4", base="../base", without=["/b"])
    dump_yaml(host.folder / "commands/1.yaml", {"argv": ["uname"], "stdout": "new"})
    host = RecordedHost(host.folder)
    assert (host.name, host.about["node_class"], host.about["expect"]) == ("n1", "cpu", {"gpu_count": 2})
    assert (host.read("/a/1"), host.read("/a/2")) == ("base\n", "n1\n")
    assert host.glob("/a/*") == ["/a/1", "/a/2", "/a/4"]
    assert (host.run("uname").stdout, host.run("date").stdout) == ("new", "today")
    assert host.glob("/b/*") == []
    for look in (host.read, host.stat):
        with pytest.raises(Absent):
            look("/b/3")


def test_what_a_recording_says_itself_counts_before_its_base(recording: Build) -> None:
    listings = {"absent": ["/a/1"], "errors": {"/a/2": "denied"}, "globs": {"/a/*": []}}
    recording("/a/9", name="base", listings=listings)
    host = recording("/a/1", "/a/2", base="../base")
    assert (host.read("/a/1"), host.read("/a/2")) == ("n1\n", "n1\n")
    assert host.glob("/a/*") == ["/a/1", "/a/2", "/a/9"]


def test_a_base_that_is_not_there_is_said(recording: Build, tmp_path: Path) -> None:
    host = recording(name="base")
    recording(base="../base")
    shutil.rmtree(host.folder)
    with pytest.raises(ConfigError, match="a recorded host needs this file"):
        RecordedHost(tmp_path / "n1")


def test_a_replayed_recording_is_as_honest(recording: Build) -> None:
    recording("/a/1", "/a/2", "/b/3", name="base")
    host = ReplayHost(recording("/a/2", base="../base", without=["/b"]).folder)
    assert (host.read("/a/1"), host.read("/a/2")) == ("base\n", "n1\n")
    assert (host.glob("/a/*"), host.glob("/b/*")) == (["/a/1", "/a/2"], [])
    with pytest.raises(Unobservable, match="is not in the recording n1"):
        host.glob(PCI)
    host.append("/data/run/log", "line")
    host.remove("/data/run")
    assert host.glob("/data/run/*") == host.glob("/data/*") == []
