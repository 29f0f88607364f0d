"""The world of recordings is closed: what can drain a node is shown by one, at its place, and has a playbook.

`tests/world.yaml` says where each fault must be found. The recordings as such are judged by
test_recorded_hosts.py and test_replay_runs.py; here it is asked whether together they show all.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import yaml

from clustertools import check as checking
from clustertools.check import Check
from clustertools.host import RecordedHost, load_yaml
from clustertools.model import Finding, Status, Verdict
from clustertools.policy import load_playbooks, playbook_for
from clustertools.replay import replay
from docs.make_reference import own_checks, told
from tests.conftest import HOSTS

RUNS = Path(__file__).parent / "runs"
#: The recorded runs that together show every code of a run that can be critical; the others show how it ends.
TELLING_RUNS = (
    "crash-loop", "hang-and-restart", "nan-loss", "never-starts", "resume-wrong", "loss-spike-bloom",
    "loss-diverged-told", "loss-goes-wrong", "loss-scale-collapse",
)  # fmt: skip
PLACES = yaml.safe_load(Path(__file__).with_name("world.yaml").read_text(encoding="utf-8"))
FOLDERS = {path.parent.name: path.parent for path in sorted(HOSTS.glob("*/host.yaml"))}
HEALTHY = [name for name, folder in FOLDERS.items() if "base" not in load_yaml(folder / "host.yaml")]
#: Faults of GPUs of which the bus, the driver or its line does not say which one it is, or that are of all.
NAMELESS_GPUS = frozenset(("GpuMissing", "GpuDriverDown", "GpuNumaWrong", "NvlinkDiscoveryFailed"))


@functools.cache
def node_checks() -> tuple[Check, ...]:
    return tuple(c for c in own_checks() if c.stages != {"job"})


def look(check: Check, host: RecordedHost, expect: bool = True) -> Verdict:
    past = host.about.get("past", {}).get(check.name)
    return checking.run(check, host, expect=host.about.get("expect") if expect else None, past=past)


@functools.cache
def found(name: str) -> tuple[Finding, ...]:
    """What the checks find on a recorded host of which it says that they find something."""
    host = RecordedHost(FOLDERS[name])
    meant = set(host.about["expect_codes"])
    return tuple(f for c in node_checks() if meant & c.codes.keys() for f in look(c, host).findings)


@functools.cache
def critical_in_runs() -> frozenset[str]:
    found = [t.incident.finding for name in TELLING_RUNS for t in replay(RUNS / name).transitions]
    return frozenset(f.code for f in found if f.status is Status.CRITICAL)


def drains(code: str, check: Check) -> bool:
    """Whether the code can be told as critical, by the source of the check and its tables."""
    return Status.CRITICAL in told(check)[code].usual


def test_every_code_that_can_drain_a_node_is_shown_by_a_recording() -> None:
    shown = {f.code for name in FOLDERS for f in found(name) if f.status is Status.CRITICAL}
    shown |= critical_in_runs()
    missing = {
        f"{check.name}: {code}"
        for check in own_checks()
        for code, one in told(check).items()
        if Status.CRITICAL in one.usual and code not in shown
    }
    assert not missing, (
        "add a machine to tests/lab/faults, or a run to tests/runs, that shows them as CRITICAL"
    )


def test_what_is_critical_in_a_recording_is_said_to_be_possible() -> None:
    possible = {
        code for c in own_checks() for code, one in told(c).items() if Status.CRITICAL in one.statuses
    }
    seen = {f.code for name in FOLDERS for f in found(name) if f.status is Status.CRITICAL}
    assert seen | critical_in_runs() <= possible


def test_every_code_has_a_playbook() -> None:
    books = load_playbooks(())
    codes = {code for check in own_checks() for code in check.codes}
    assert [code for code in sorted(codes) if playbook_for(code, books) is None] == []


@pytest.mark.parametrize("name", PLACES)
def test_every_fault_is_found_at_its_place(name: str) -> None:
    places: dict[str, set[str]] = {}
    for finding in found(name):
        places.setdefault(finding.code, set()).add(finding.subject.part)
    said = {code: sorted(parts) if len(parts) > 1 else min(parts) for code, parts in sorted(places.items())}
    assert PLACES.get(name) == said, f"tests/world.yaml has no, or another, {json.dumps({name: said})}"


def test_no_place_is_said_of_what_is_not_there() -> None:
    assert set(PLACES) == {
        name for name, folder in FOLDERS.items() if RecordedHost(folder).about["expect_codes"]
    }


def test_what_is_told_of_gpus_names_one() -> None:
    nameless = {
        f.code
        for name in FOLDERS
        for f in found(name)
        if f.check.startswith("gpu_") and not f.subject.part and f.code not in NAMELESS_GPUS
    }
    assert not nameless


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_node_shows_nothing_and_hides_nothing(name: str) -> None:
    host = RecordedHost(FOLDERS[name])
    for check in node_checks():
        for expect in (True, False):
            verdict = look(check, host, expect)
            told = f"{check.name}, {'with' if expect else 'without'} the expectations of its class"
            assert verdict.findings == (), told
            assert verdict.blind == "", told
            assert verdict.status in (Status.OK, Status.SKIPPED), told
            assert verdict.status is Status.OK or verdict.detail, f"{told}: who skips says why"


@pytest.mark.parametrize(
    "name", [n for n, f in FOLDERS.items() if RecordedHost(f).about.get("expect_unknown")]
)
def test_who_cannot_look_says_so(name: str) -> None:
    host = RecordedHost(FOLDERS[name])
    for check in node_checks():
        if check.name in host.about["expect_unknown"]:
            verdict = look(check, host)
            assert verdict.blind
            assert verdict.status in (Status.UNKNOWN, Status.CRITICAL), check.name
