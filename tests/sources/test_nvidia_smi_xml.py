"""`nvidia-smi -q -x` of drivers 418 to 595, and what is made of hostile or broken ones."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.host import PYTHON, Completed
from clustertools.sources import nvidia
from clustertools.sources.tools import nvidia_smi_xml, readers

FOLDER = Path(__file__).parents[1] / "tools" / "nvidia-smi-xml"
SAMPLES = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.xml"))}
H100 = SAMPLES["h100-580"]


@pytest.mark.parametrize("name", SAMPLES)
def test_real_outputs_are_read(name):
    text = SAMPLES[name]
    assert nvidia_smi_xml.recognise(text)
    answer = nvidia_smi_xml.nvml_of(text)
    assert answer.driver.startswith(name.rsplit("-", 1)[1])
    for gpu in answer.gpus:
        assert all((gpu.pci, gpu.name, gpu.vbios, gpu.uuid))
        assert (gpu.temperature_celsius is not None) == (gpu.error is None)
        assert gpu.throttle_reasons is not None
    plain = readers()["nvidia-smi-xml"].read(text)
    assert [g["name"] for g in plain["gpus"]] == [g.name for g in answer.gpus]
    assert not any(value is None for gpu in plain["gpus"] for value in gpu.values())


def test_an_h100_in_full():
    gpu = nvidia_smi_xml.nvml_of(H100).gpus[1]
    assert (gpu.index, gpu.pci, gpu.name, gpu.minor) == (1, "0000:64:00.0", "NVIDIA H100 80GB HBM3", 1)
    assert (gpu.vbios, gpu.inforom, gpu.gsp_firmware) == ("96.00.99.00.01", "G520.0200.00.05", "580.105.08")
    assert (gpu.pci_subsystem, gpu.virtualization) == (0x16C110DE, "passthrough")
    assert (gpu.power_limit_watts, gpu.power_default_limit_watts, gpu.sm_clock_max_mhz) == (700, 700, 1980)
    assert (gpu.margin_celsius is not None, gpu.shutdown_margin_celsius) == (True, -8)
    assert (gpu.memory_total_bytes, gpu.memory_reserved_bytes) == (81559 << 20, 480 << 20)
    assert (gpu.ecc_enabled, gpu.ecc_pending, gpu.ecc_sram_threshold_exceeded) == (True, True, False)
    assert [getattr(gpu, f"ecc_{kind}corrected_volatile") for kind in ("", "un", "dram_", "sram_un")] == [
        0
    ] * 4
    assert gpu.remap_histogram == nvidia.RowHistogram(2560, 0, 0, 0, 0)
    assert (gpu.remap_pending, gpu.remap_failed, gpu.remapped_uncorrectable) == (False, False, 0)
    assert (gpu.persistence, gpu.compute_mode, gpu.mig_enabled, gpu.mig_pending) == (
        True,
        "default",
        False,
        False,
    )
    assert (gpu.recovery_action, gpu.fabric_state, gpu.fabric_status) == ("none", "completed", 0)
    assert (gpu.pcie_generation, gpu.pcie_width, gpu.pcie_width_max, gpu.pcie_replays) == (5, 16, 16, 144)
    assert (gpu.throttle_reasons, gpu.throttle_reasons_raw, gpu.processes) == (("gpu_idle",), 1, ())
    assert gpu.error is None


def test_what_this_form_does_not_tell_is_not_seen():
    gpu = nvidia_smi_xml.nvml_of(H100).gpus[0]
    assert "NOT_TOLD_HERE" in gpu.blind("nvlinks")
    assert gpu.blind("ecc_uncorrected_volatile", "recovery_action", "memory_unrepairable") == ""


def test_older_cards_and_forms():
    old = nvidia_smi_xml.nvml_of(SAMPLES["quadro-p400-418"]).gpus[0]
    assert (old.ecc_enabled, old.remap_pending, old.recovery_action) == (None, None, None)
    mig = nvidia_smi_xml.nvml_of(SAMPLES["a100-mig-535"]).gpus[0]
    assert (mig.mig_enabled, mig.gpu_utilisation_percent, mig.ecc_sram_uncorrected_aggregate) == (
        True,
        None,
        0,
    )
    card = nvidia_smi_xml.nvml_of(SAMPLES["rtx-3080-536"]).gpus[0]
    assert card.ecc_enabled is None


def test_a_lost_gpu():
    first, lost = nvidia_smi_xml.nvml_of(SAMPLES["gb200-lost-580"]).gpus
    assert first.error is None
    assert (lost.error.code, lost.error.name, lost.pci) == (15, "GPU_IS_LOST", "0000:0b:00.0")
    assert "GPU_IS_LOST" in lost.blind("temperature_celsius")


def changed(old: str, new: str) -> str:
    assert old in H100
    return H100.replace(old, new, 1)


def test_faults_come_through():
    def first(old, new):
        return nvidia_smi_xml.nvml_of(changed(old, new)).gpus[0]

    assert first("<remapped_row_pending>No<", "<remapped_row_pending>Yes<").remap_pending
    assert first("<gpu_recovery_action>None<", "<gpu_recovery_action>Drain and Reset<").recovery_action == (
        "drain_and_reset"
    )
    assert first("<gpu_recovery_action>None<", "<gpu_recovery_action>Reset<").recovery_action == "gpu_reset"
    assert first("<gpu_temp>", "<gpu_temp>GPU requires reset</gpu_temp><gpu_temp>").error.name == (
        "RESET_REQUIRED"
    )
    slow = first("hw_thermal_slowdown>Not Active<", "hw_thermal_slowdown>Active<")
    assert (slow.throttle_reasons_raw, slow.throttle_reasons) == (0x41, ("gpu_idle", "hw_thermal_slowdown"))
    gpu = first("<sram_uncorrectable_parity>0<", "<sram_uncorrectable_parity>2<")
    assert (gpu.ecc_sram_uncorrected_volatile, gpu.ecc_uncorrected_volatile) == (2, 2)
    gpu = first("<dram_uncorrectable>0<", "<dram_uncorrectable>Unknown Error<")
    assert gpu.error is None
    assert "UNKNOWN" in gpu.blind("ecc_dram_uncorrected_volatile")
    gpu = first("<processes>", "<processes>" + PROCESS.format("C", "70 MiB") + PROCESS.format("G", "5 MiB"))
    assert gpu.processes == (nvidia.GpuProcess(4711, 70 << 20),)
    assert first("<processes>", "<processes>" + PROCESS.format("M+C", "N/A")).processes == (
        nvidia.GpuProcess(4711, None),
    )


PROCESS = (
    "<process_info><pid>4711</pid><type>{}</type><process_name>python &amp;\x1b[0m</process_name>"
    "<used_memory>{}</used_memory></process_info>"
)
BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]><a>&c;</a>'
OUTSIDE = (
    '<!DOCTYPE nvidia_smi_log [<!ENTITY x SYSTEM "file:///etc/passwd">]><nvidia_smi_log>&x;</nvidia_smi_log>'
)


@pytest.mark.parametrize(
    "text",
    [
        "", "nonsense", "<a/>", BOMB, OUTSIDE, H100[:3000], H100 + "<x/>", "<a>" * 5000,
        "<nvidia_smi_log>" + "<gpu>" * 30, changed("<gpu_temp>", "<gpu_temp>hot "),
        "<nvidia_smi_log><gpu/></nvidia_smi_log>", changed("MiB", "GiB"),
        changed("<persistence_mode>", "<persistence_mode>Perhaps "),
        changed("<processes>", "<processes><process_info><pid>x</pid></process_info>"),
        "<!DOCTYPE nvidia_smi_log SYSTEM 'x.dtd'><nvidia_smi_log>&undeclared;</nvidia_smi_log>",
        "x" * (nvidia_smi_xml.MOST_CHARACTERS + 1),
    ],
)  # fmt: skip
def test_anything_else_is_unparsable(text):
    with pytest.raises(Unparsable):
        nvidia_smi_xml.nvml_of(text)


def test_an_error_message_is_the_librarys_refusal():
    said = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 570.133\n"
    error = nvidia_smi_xml.nvml_of(said, 18).error
    assert (error.name, error.text) == ("LIB_RM_VERSION_MISMATCH", said.splitlines()[0])
    assert nvidia_smi_xml.nvml_of("No devices were found\n", 6).error.name == "NOT_FOUND"
    assert nvidia_smi_xml.nvml_of("", 255).error.name == "UNKNOWN"
    # an infoROM is corrupt; it told all the same
    said = H100 + "WARNING: infoROM is corrupted at gpu 0000:64:00.0\n"
    assert [g.inforom_valid for g in nvidia_smi_xml.nvml_of(said, 14).gpus] == [None, False]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(H100)), st.text(max_size=20), st.integers(0, 200))
def test_any_damage_is_read_or_unparsable(at, text, skipped):
    with contextlib.suppress(Unparsable):
        nvidia_smi_xml.nvml_of(H100[:at] + text + H100[at + skipped :])


# ---- instead of NVML ---------------------------------------------------------------------------------------


class NoBinding:
    """A host whose child has no pynvml, or dies; `smi` is what nvidia-smi prints, None that there is none."""

    name = boot_id = "node1"

    def __init__(self, smi: str | None, returncode: int = 0, child: int = 0) -> None:
        self.smi, self.returncode, self.child = smi, returncode, child

    def run(self, *argv, timeout_seconds=10.0, stdin=""):
        if argv[0] == PYTHON:
            said = '{"schema":1,"error":{"code":-1,"name":"PYNVML_NOT_INSTALLED","call":"import pynvml"}}'
            return Completed(argv, self.child, "" if self.child else said, "Segmentation fault")
        if self.smi is None:
            raise Absent("nvidia-smi is not installed")
        return Completed(argv, self.returncode, self.smi, "")


@pytest.mark.parametrize("child", [0, -11])
def test_nvidia_smi_is_asked_where_the_binding_is_missing_or_dies(child):
    answer = nvidia.nvml(NoBinding(H100, child=child))
    assert (answer.error, len(answer.gpus), answer.driver) == (None, 2, "580.105.08")
    assert nvidia.nvml(NoBinding("NVIDIA-SMI has failed ...", 9, child)).error.name == "DRIVER_NOT_LOADED"


def test_without_both_the_first_answer_stands():
    assert nvidia.nvml(NoBinding(None)).error.name == "PYNVML_NOT_INSTALLED"
    with pytest.raises(Unobservable, match="exit code -11"):
        nvidia.nvml(NoBinding(None, child=-11))
    with pytest.raises(Unobservable, match="exit code -11"):
        nvidia.nvml(NoBinding("", 255, child=-11))
