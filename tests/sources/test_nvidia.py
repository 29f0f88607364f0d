"""NVML through its child: the real pynvml over the stand-in library, and the reading of what it prints."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import NotApplicable, Unobservable, Unparsable
from clustertools.host import PYTHON, Completed
from clustertools.sources import nvidia
from tests.lab import profiles


def test_a_healthy_h100(nvml):
    answer = nvidia.nvml(nvml.host)
    assert (answer.driver, answer.nvml, answer.cuda) == ("570.133.20", "12.570.133.20", "12.8")
    assert [g.pci for g in answer.gpus] == list(profiles.DGX_H100)
    gpu = answer.gpus[3]
    assert gpu.part == "gpu@0000:5d:00.0"
    assert gpu.name == "NVIDIA H100 80GB HBM3"
    assert (gpu.temperature_celsius, gpu.memory_temperature_celsius, gpu.margin_celsius) == (31, 41, 56)
    assert (gpu.slowdown_margin_celsius, gpu.max_operating_margin_celsius) == (-2, 0)
    assert (gpu.power_watts, gpu.power_limit_watts, gpu.energy_joules) == (72.3, 700.0, 81234.567)
    assert (gpu.sm_clock_mhz, gpu.sm_clock_max_mhz) == (345, 1980)
    assert (gpu.throttle_reasons, gpu.throttle_reasons_raw) == (("gpu_idle",), 1)
    assert (gpu.memory_total_bytes, gpu.memory_reserved_bytes) == (85520809984, 543817728)
    assert (gpu.ecc_enabled, gpu.ecc_uncorrected_volatile, gpu.ecc_sram_threshold_exceeded) == (
        True,
        0,
        False,
    )
    assert gpu.remap_histogram == nvidia.RowHistogram(2560, 0, 0, 0, 0)
    assert (gpu.persistence, gpu.compute_mode, gpu.mig_enabled) == (True, "default", False)
    assert gpu.recovery_action == "none"
    assert [link.active for link in gpu.nvlinks] == [True] * 18
    assert gpu.nvlinks[0].bytes_per_second == 26.562e9
    assert gpu.fabric_state == "completed"
    assert gpu.processes == ()
    assert (gpu.error, gpu.failures) == (None, ())


def test_values_and_faults_come_through(nvml):
    nvml.set(
        "3.ecc.uncorrected.volatile=1", "3.ecc.uncorrected.volatile.dram=1", "3.throttle=0x1048",
        "3.nvlink.7=0", "3.processes=4711:1048576,4712:5", "3.field.230=9", "3.field.82=0", "3.margin=-3",
    )  # fmt: skip
    gpu = nvidia.nvml(nvml.host).gpus[3]
    assert (gpu.ecc_uncorrected_volatile, gpu.ecc_dram_uncorrected_volatile) == (1, 1)
    assert gpu.throttle_reasons == ("hw_slowdown", "hw_thermal_slowdown", "0x1000")
    assert [link.link for link in gpu.nvlinks if not link.active] == [7]
    assert gpu.processes == (nvidia.GpuProcess(4711, 1048576), nvidia.GpuProcess(4712, 5))
    assert gpu.recovery_action == "9"
    assert gpu.memory_temperature_celsius is None  # a card without the sensor says 0
    assert gpu.margin_celsius == -3


@pytest.mark.parametrize("profile", [profiles.A100, profiles.V100, profiles.GEFORCE])
def test_what_a_card_lacks_is_none_and_no_blindness(nvml, profile):
    nvml.use(profile)
    for gpu in nvidia.gpus(nvml.host):
        assert gpu.recovery_action is None
        assert (gpu.error, gpu.failures) == (None, ())
        assert gpu.blind("recovery_action", "margin_celsius") == ""


def test_a_lost_gpu_leaves_the_others(nvml):
    nvml.set("5.lost=1")
    gpus = nvidia.gpus(nvml.host)
    assert [g.index for g in gpus if g.error] == [5]
    assert gpus[5].error.name == "GPU_IS_LOST"
    assert gpus[5].error.call == "nvmlDeviceGetHandleByIndex"
    # it cannot tell its address any more; the bus knows which one is left over
    assert gpus[5].part == "gpu@0000:ab:00.0"
    assert "GPU_IS_LOST" in gpus[5].blind("temperature_celsius")
    assert gpus[6].temperature_celsius == 31


def test_a_gpu_lost_between_two_calls(nvml):
    nvml.set("5.err.nvmlDeviceGetPowerUsage=15")
    gpu = nvidia.nvml(nvml.host).gpus[5]
    assert (gpu.error.name, gpu.error.call) == ("GPU_IS_LOST", "nvmlDeviceGetPowerUsage")
    assert (gpu.temperature_celsius, gpu.power_watts, gpu.sm_clock_mhz) == (31, None, None)
    assert gpu.blind("temperature_celsius") == ""
    assert gpu.blind("sm_clock_mhz")


def test_a_gpu_that_wants_a_reset_is_still_asked(nvml):
    nvml.set("2.err.nvmlDeviceGetUtilizationRates=16")
    gpu = nvidia.nvml(nvml.host).gpus[2]
    assert gpu.error.name == "RESET_REQUIRED"
    assert gpu.ecc_uncorrected_volatile == 0
    assert gpu.blind("ecc_uncorrected_volatile", "retired_pages_pending") == ""
    assert "RESET_REQUIRED" in gpu.blind("gpu_utilisation_percent")
    nvml.set("2.err.nvmlDeviceGetHandleByIndex_v2=16")
    assert nvidia.nvml(nvml.host).gpus[2].blind("temperature_celsius")


def test_one_failing_call_is_told_apart_from_not_supported(nvml):
    nvml.set("1.err.nvmlDeviceGetTemperature=999", "1.err.nvmlDeviceGetFieldValues=4")
    nvml.set("1.err.nvmlDeviceGetNvLinkState=10")
    gpu = nvidia.nvml(nvml.host).gpus[1]
    assert gpu.error is None
    assert [(f.name, f.call) for f in gpu.failures][:2] == [
        ("UNKNOWN", "nvmlDeviceGetTemperature"),
        ("NO_PERMISSION", "nvmlDeviceGetFieldValues"),
    ]
    assert (
        gpu.blind("temperature_celsius") == "GPU 1 (gpu@0000:2a:00.0): UNKNOWN from nvmlDeviceGetTemperature"
    )
    assert "NO_PERMISSION" in gpu.blind("recovery_action")
    assert "TIMEOUT" in gpu.blind("nvlinks")
    assert gpu.blind("power_watts") == ""


def test_an_older_driver_has_only_the_older_call(nvml):
    nvml.set("err.nvmlDeviceGetCurrentClocksEventReasons=13")
    assert nvidia.nvml(nvml.host).gpus[0].throttle_reasons == ("gpu_idle",)


@pytest.mark.parametrize(
    ("code", "name"), [(9, "DRIVER_NOT_LOADED"), (18, "LIB_RM_VERSION_MISMATCH"), (77, "CODE_77")]
)
def test_a_driver_that_does_not_start(nvml, code, name):
    nvml.set(f"init={code}")
    answer = nvidia.nvml(nvml.host)
    assert (answer.error.code, answer.error.name, answer.gpus) == (code, name, ())
    with pytest.raises(Unobservable, match=name):
        nvidia.gpus(nvml.host)


def test_no_library(nvml, monkeypatch, tmp_path):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert nvidia.nvml(nvml.host).error.name == "LIBRARY_NOT_FOUND"


def test_no_device_on_the_bus_needs_no_child(nvml):
    nvml.bus([])
    nvml.set("hang.nvmlInitWithFlags=30")
    with pytest.raises(NotApplicable, match="no NVIDIA device"):
        nvidia.gpus(nvml.host)


def test_a_hang_ends_at_the_deadline(nvml, monkeypatch):
    nvml.set("3.hang.nvmlDeviceGetTemperature=30")
    monkeypatch.setattr(nvidia, "TIMEOUT_SECONDS", 0.4)
    began = time.monotonic()
    with pytest.raises(Unobservable, match=r"did not answer within 0\.4 s"):
        nvidia.gpus(nvml.host)
    assert time.monotonic() - began < 2


def test_two_lost_gpus_get_the_two_addresses_left_over():
    gpus = [nvidia.Gpu(0, "0000:18:00.0"), nvidia.Gpu(1), nvidia.Gpu(2)]
    bus = ["0000:18:00.0", "0000:2a:00.0", "0000:3a:00.0"]
    assert [g.pci for g in nvidia.located(gpus, bus)] == bus
    # three devices for two GPUs: which are they? nobody knows
    assert [g.part for g in nvidia.located(gpus, [*bus, "0000:5d:00.0"])] == [
        "gpu@0000:18:00.0",
        "gpu1",
        "gpu2",
    ]


class Says:
    """A host whose child prints this."""

    name = boot_id = "node1"

    def __init__(self, stdout: str, returncode: int = 0, stderr: str = "") -> None:
        self.done = Completed((PYTHON,), returncode, stdout, stderr)

    def run(self, *argv, timeout_seconds=10.0, stdin=""):
        return self.done


def test_a_child_that_dies_is_no_answer():
    with pytest.raises(Unobservable, match="exit code -11"):
        nvidia.nvml(Says("", -11))


@pytest.mark.parametrize(
    "text",
    [
        "", "nonsense", "[]", "{}", '{"schema":2,"gpus":[]}', "[" * 100_000,
        '{"schema":1,"gpus":{}}', '{"schema":1,"gpus":[{}]}', '{"schema":1,"error":{"code":"x"}}',
        *(f'{{"schema":1,"gpus":[{{{fields}}}]}}' for fields in (
            '"index":"0"', '"index":true', '"index":0,"power_watts":NaN', '"index":0,"power_watts":1e999',
            '"index":0,"throttle_reasons":"idle"', '"index":0,"pci":null', '"index":0,"pci":"nowhere"',
            '"index":0,"remap_pending":1', '"index":0,"power_watts":1' + "0" * 400,
        )),
    ],
)  # fmt: skip
def test_babble_is_unparsable(text):
    with pytest.raises(Unparsable):
        nvidia.nvml(Says(text))


def test_an_older_recording_lacks_newer_fields():
    answer = nvidia.parse('{"schema":1,"driver":"1","gpus":[{"index":0,"power_watts":70,"of_tomorrow":1}]}')
    assert answer.gpus[0].power_watts == 70.0
    assert answer.gpus[0].temperature_celsius is None


WORDS = st.sampled_from(
    ["schema", "gpus", "error", "index", "pci", "nvlinks", "processes", "code", "name", "call"]
)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(st.text() | TREES.map(json.dumps) | TREES.map(lambda t: json.dumps({"schema": 1, "gpus": [t]})))
def test_any_text_is_an_answer_or_unparsable(text):
    with contextlib.suppress(Unparsable):
        nvidia.parse(text)


def test_a_cut_answer_is_unparsable(nvml):
    text = nvml.host.run(PYTHON, "-m", "clustertools.sources.nvidia", "--json").stdout.strip()
    assert nvidia.parse(text).gpus
    for end in range(0, len(text), 997):
        with pytest.raises(Unparsable):
            nvidia.parse(text[:end])
