"""NVLink error counters from look to look, their windows, and coded bit error rates."""

from __future__ import annotations

import json

import pytest

from clustertools.host import PYTHON
from clustertools.model import Status
from clustertools.sources.nvidia import nvlink_ber
from tests.lab import profiles
from tests.lab.memory_host import MemoryHost

ASK = (PYTHON, "-m", "clustertools.sources.nvidia", "--json")
PART = "gpu@0000:18:00.0"


class Node(MemoryHost):
    """One GPU with two links whose counters the test moves."""

    def __init__(self, **counters: int) -> None:
        super().__init__()
        self.files["/sys/bus/pci/devices/0000:18:00.0/vendor"] = "0x10de\n"
        self.files["/sys/bus/pci/devices/0000:18:00.0/class"] = "0x030200\n"
        self.counters: dict[str, int | None] = {"replay_errors": 0, "recovery_errors": 0, "crc_errors": 0}
        self.counters.update(counters)
        self.gpu: dict[str, object] = {}
        self.commands[ASK] = self.answer
        self.past: dict[str, object] = {}

    def answer(self) -> str:
        links = [{"link": 0, "active": True, **self.counters}, {"link": 1, "active": True}]
        gpu = {"index": 0, "pci": "0000:18:00.0", "nvlinks": links, **self.gpu}
        return json.dumps({"schema": 1, "gpus": [gpu]})

    def look(self, run, seconds: float = 60.0, **counters: int):
        self.time += seconds
        self.counters.update(counters)
        verdict = run("nvlink_errors", host=self, past=self.past)
        self.past = json.loads(json.dumps(verdict.memory))
        return verdict


def test_totals_are_not_judged_but_growth_is(run):
    node = Node(replay_errors=900, recovery_errors=3)
    assert node.look(run).status is Status.OK
    assert node.look(run).status is Status.OK
    verdict = node.look(run, recovery_errors=4)
    assert [f.code for f in verdict.findings] == ["NvlinkErrors"]
    finding = verdict.findings[0]
    assert (finding.status, finding.subject.part, finding.clears) == (Status.WARNING, PART, 3600.0)
    assert finding.evidence == ("link 0: 1 recoveries (0.0167/s)",)
    assert node.look(run).findings == ()


@pytest.mark.parametrize(
    ("counter", "quiet", "told"),
    [
        ("replay_errors", 4, 5),
        ("crc_errors", 5999, 6000),
        ("receive_errors", 4, 5),
        ("recovery_events", 0, 1),
    ],
)
def test_limits(run, counter, quiet, told):
    for growth, codes in ((quiet, []), (told, ["NvlinkErrors"])):
        node = Node(**{counter: 10})
        node.look(run)
        assert [f.code for f in node.look(run, **{counter: 10 + growth}).findings] == codes


def test_a_recovery_that_failed(run):
    node = Node(recovery_failed_events=0)
    node.look(run)
    finding = node.look(run, recovery_failed_events=1).findings[0]
    assert (finding.code, finding.status, finding.clears) == ("NvlinkUnstable", Status.CRITICAL, 3600.0)


def test_errors_in_more_than_half_of_the_windows(run):
    node = Node()
    node.look(run)
    for n in range(1, 16):
        assert "NvlinkUnstable" not in node.look(run, replay_errors=n).codes
    verdict = node.look(run, replay_errors=16)
    assert verdict.codes == {"NvlinkUnstable"}
    assert verdict.findings[0].evidence[0] == "link 0: errors in 16 of the last looks"
    # 30 quiet looks later nothing is left of it
    for _ in range(15):
        verdict = node.look(run)
    assert verdict.codes == set()
    for _ in range(15):
        node.look(run)
    assert node.past["windows"] == {}


def test_a_reboot_begins_anew(run):
    node = Node(recovery_errors=5)
    node.look(run)
    node.boot_id = "boot-2"
    assert node.look(run, recovery_errors=9).findings == ()


def test_a_driver_that_tells_only_sums(run, nvml):
    past: dict = {}
    for growth, codes in ((0, set()), (1, {"NvlinkErrors"})):
        nvml.set(f"5.field.59={growth}")
        nvml.host.now = lambda growth=growth: 1e9 + 60 * growth
        verdict = run("nvlink_errors", host=nvml.host, past=past)
        past = verdict.memory
        assert verdict.codes == codes
    assert verdict.findings[0].evidence == ("all links: 1 recoveries (0.0167/s)",)


def test_bit_error_rates(run, nvml):
    nvml.use(profiles.profile(profiles.B200_VALUES, profiles.DGX_B200))
    assert run("nvlink_errors", host=nvml.host).status is Status.OK
    # 6e-12 of one link; a mantissa of nothing is a rate of nothing
    nvml.set("3.field.222.4=0x60c", "2.field.220.1=0x00c")
    finding = run("nvlink_errors", host=nvml.host).findings[0]
    assert (finding.code, finding.status) == ("NvlinkBitErrors", Status.WARNING)
    assert finding.evidence == ("link 4: symbol bit error rate 6e-12",)


@pytest.mark.parametrize(
    ("raw", "told"), [(0xFFF, (15, 255)), (0x60C, (6, 12)), (0, (0, 0)), (0x1FEE, (15, 238))]
)
def test_the_code_of_a_bit_error_rate(raw, told):
    assert nvlink_ber(raw) == told


def test_no_nvlink(run, nvml):
    nvml.use(profiles.GEFORCE)
    assert run("nvlink_errors", host=nvml.host).status is Status.SKIPPED


def test_a_lost_gpu_is_blindness(run, nvml):
    nvml.set("5.lost=1")
    verdict = run("nvlink_errors", host=nvml.host)
    assert verdict.status is Status.UNKNOWN
    assert "GPU 5" in verdict.blind
