"""What NVIDIA's driver says about its GPUs, by NVML.

    gpus(host)   # every GPU with its figures; those that a card does not have are None
    nvml(host)   # the same with the driver's version, or the error with which the library refused

An NVML call can hang in the driver for ever when a GPU is lost, and a thread stuck in the kernel cannot be
cancelled. So a child process asks (`python -m clustertools.sources.nvidia --json`, which runs
`nvml_questions`) and prints one JSON object; here it is only read.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clustertools.errors import Absent, NotApplicable, Unobservable, Unparsable
from clustertools.host import PYTHON, Host
from clustertools.model import gpu_part, pci_address
from clustertools.sources.pci import nvidia_devices

#: Of the child's JSON; another number is another meaning of its fields.
SCHEMA = 1
#: With persistence mode off the driver first initialises every GPU, seconds each; with it on the child needs
#: well under a second.
TIMEOUT_SECONDS = 25.0


@dataclass(frozen=True, slots=True)
class NvmlError:
    """An NVML call that failed: nvmlReturn_t as number and name (`GPU_IS_LOST`), and what was asked.

    `fields` are the names of the figures that are unknown for that reason; empty: all of the GPU's.
    """

    code: int
    name: str
    call: str
    text: str = ""
    fields: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} from {self.call}"


@dataclass(frozen=True, slots=True)
class RowHistogram:
    """Memory banks by how many spare rows they have left (nvmlDeviceGetRowRemapperHistogram)."""

    max: int
    high: int
    partial: int
    low: int
    none: int


@dataclass(frozen=True, slots=True)
class NvLink:
    """One NVLink port. `active` is None where the card has no such link.

    Replay, recovery and CRC errors are counted before Blackwell; receive errors, recovery events and the bit
    error rates from it on. The rates are coded, `nvlink_ber` decodes them.
    """

    link: int
    active: bool | None = None
    bytes_per_second: float | None = None
    replay_errors: int | None = None
    recovery_errors: int | None = None
    crc_errors: int | None = None
    receive_errors: int | None = None
    recovery_events: int | None = None
    recovery_failed_events: int | None = None
    effective_ber_raw: int | None = None
    symbol_ber_raw: int | None = None


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process with a compute context on the GPU."""

    pid: int
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. None means that the card, its mode or its driver does not have the figure.

    `error` is set when the device as a whole does not answer (lost, needs a reset): what is None then is
    unknown. `failures` are single calls that failed in another way. `blind` tells these from "does not have".
    """

    index: int
    pci: str = ""
    uuid: str | None = None
    serial: str | None = None
    name: str | None = None
    minor: int | None = None
    vbios: str | None = None
    inforom: str | None = None
    inforom_valid: bool | None = None
    gsp_firmware: str | None = None
    #: PCI subsystem id, device and vendor: 0x16c110de; the maker of the board is its last four digits.
    pci_subsystem: int | None = None
    #: "none" on bare metal, "passthrough", "vgpu" in a virtual machine; "host_vgpu", "host_vsga" on its host.
    virtualization: str | None = None

    temperature_celsius: int | None = None
    memory_temperature_celsius: int | None = None
    shutdown_celsius: int | None = None
    slowdown_celsius: int | None = None
    max_operating_celsius: int | None = None
    memory_max_operating_celsius: int | None = None
    #: Degrees left to the max operating temperature (T.Limit), and the margins at which the board acts;
    #: Hopper and later tell these.
    margin_celsius: int | None = None
    shutdown_margin_celsius: int | None = None
    slowdown_margin_celsius: int | None = None
    max_operating_margin_celsius: int | None = None

    power_watts: float | None = None
    power_limit_watts: float | None = None
    power_default_limit_watts: float | None = None
    power_max_limit_watts: float | None = None
    energy_joules: float | None = None

    sm_clock_mhz: int | None = None
    sm_clock_max_mhz: int | None = None
    memory_clock_mhz: int | None = None
    memory_clock_max_mhz: int | None = None
    application_sm_clock_mhz: int | None = None
    application_sm_clock_default_mhz: int | None = None
    throttle_reasons_raw: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    #: Time since driver load for which each held the clocks down.
    power_violation_seconds: float | None = None
    thermal_violation_seconds: float | None = None
    board_limit_violation_seconds: float | None = None
    reliability_violation_seconds: float | None = None

    gpu_utilisation_percent: int | None = None
    memory_utilisation_percent: int | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    #: What the driver keeps for itself; `memory_used_bytes` may hold it, `memory_allocated_bytes` does not.
    memory_reserved_bytes: int | None = None
    memory_allocated_bytes: int | None = None

    ecc_enabled: bool | None = None
    ecc_pending: bool | None = None
    ecc_default: bool | None = None
    ecc_corrected_volatile: int | None = None
    ecc_uncorrected_volatile: int | None = None
    ecc_corrected_aggregate: int | None = None
    ecc_uncorrected_aggregate: int | None = None
    ecc_dram_corrected_volatile: int | None = None
    ecc_dram_uncorrected_volatile: int | None = None
    ecc_dram_corrected_aggregate: int | None = None
    ecc_dram_uncorrected_aggregate: int | None = None
    ecc_sram_corrected_volatile: int | None = None
    ecc_sram_uncorrected_volatile: int | None = None
    ecc_sram_corrected_aggregate: int | None = None
    ecc_sram_uncorrected_aggregate: int | None = None
    ecc_sram_threshold_exceeded: bool | None = None

    remapped_correctable: int | None = None
    remapped_uncorrectable: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    remap_histogram: RowHistogram | None = None
    retired_pages_corrected: int | None = None
    retired_pages_uncorrected: int | None = None
    retired_pages_pending: bool | None = None
    memory_unrepairable: bool | None = None
    channel_repair_pending: bool | None = None
    tpc_repair_pending: bool | None = None

    persistence: bool | None = None
    #: A display server uses it: it has memory of its own, which no compute process holds.
    display_active: bool | None = None
    compute_mode: str | None = None
    mig_enabled: bool | None = None
    mig_pending: bool | None = None
    recovery_action: str | None = None

    pcie_generation: int | None = None
    pcie_generation_max: int | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    pcie_replays: int | None = None

    nvlinks: tuple[NvLink, ...] = ()
    nvlink_replay_errors: int | None = None
    nvlink_recovery_errors: int | None = None
    nvlink_crc_flit_errors: int | None = None
    nvlink_crc_data_errors: int | None = None
    fabric_state: str | None = None
    fabric_status: int | None = None
    fabric_health_mask: int | None = None
    fabric_clique: int | None = None
    #: The UUID of a fabric of several nodes; empty on a node that has its fabric for itself.
    fabric_cluster: str | None = None
    fabric_health: str | None = None
    #: Over NVLink, can it reach each GPU of the node? `ok`, `topology_not_supported` ..., `self` for itself.
    nvlink_peers: tuple[str, ...] | None = None

    #: With a compute context; the clients of an MPS server are not among them, nor what a container hides.
    processes: tuple[GpuProcess, ...] | None = None
    error: NvmlError | None = None
    failures: tuple[NvmlError, ...] = ()

    @property
    def part(self) -> str:
        """The part of a node that it is, `gpu@0000:3b:00.0`; by index only where nobody knows its address."""
        return gpu_part(self.pci) if self.pci else f"gpu{self.index}"

    def blind(self, *fields: str) -> str:
        """Why some of `fields` could not be looked at; empty when they could or this card lacks them."""
        reasons = [f for f in self.failures if set(f.fields) & set(fields)]
        # a GPU that wants a reset may still answer much: only the calls that failed are unknown
        whole = self.error and (self.error.name != "RESET_REQUIRED" or not self.error.fields)
        if self.error and whole and any(getattr(self, f) is None for f in fields):
            reasons.append(self.error)
        if not reasons:
            return ""
        return f"GPU {self.index} ({self.part}): {'; '.join(sorted({str(e) for e in reasons}))}"


@dataclass(frozen=True, slots=True)
class Nvml:
    """The library's answer about the machine; with `error` it did not start and there are no GPUs."""

    driver: str | None = None
    nvml: str | None = None
    cuda: str | None = None
    gpus: tuple[Gpu, ...] = ()
    error: NvmlError | None = None


def gpus(host: Host) -> list[Gpu]:
    """Every GPU that NVML lists. A lost one is among them, with `error`.

    Raises NotApplicable without an NVIDIA GPU on the PCI bus or without its driver; Unobservable when the
    driver does not answer (`gpu_count` reports that as the fault it is); Unparsable for an answer of unknown
    form.
    """
    devices = nvidia_devices(host)
    if not devices:
        raise NotApplicable("no NVIDIA device on the PCI bus")
    answer = nvml(host)
    if answer.error and is_unused(host, answer.error):
        raise NotApplicable(UNUSED)
    if answer.error:
        raise Unobservable(f"the NVIDIA driver does not answer: {answer.error}")
    return located(answer.gpus, devices)


def nvml(host: Host) -> Nvml:
    """Ask NVML once. Raises Unobservable when the child hangs or dies, Unparsable when it babbles.

    Where the child could not use the library (its binding is not installed, it died), nvidia-smi is asked;
    not where it hung: nvidia-smi would hang in the same place.
    """
    done = host.run(PYTHON, "-m", "clustertools.sources.nvidia", "--json", timeout_seconds=TIMEOUT_SECONDS)
    answer = parse(done.stdout) if done.returncode == 0 else None
    if answer and not (answer.error and answer.error.name == "PYNVML_NOT_INSTALLED"):
        return answer
    told = _by_nvidia_smi(host)
    if told is not None:
        return told
    if answer is None:
        done.check()
    assert answer is not None
    return answer


def _by_nvidia_smi(host: Host) -> Nvml | None:
    """What `nvidia-smi -q -x` says; None when it cannot be run, or does not speak of the driver."""
    from clustertools.sources.tools import nvidia_smi_xml

    try:
        done = host.run(*nvidia_smi_xml.COMMAND, timeout_seconds=TIMEOUT_SECONDS)
    except Unobservable:
        return None
    told = nvidia_smi_xml.nvml_of(done.stdout, done.returncode)
    return None if told.error and told.error.name == "UNKNOWN" else told


#: Why nothing is asked of GPUs that nothing here uses.
UNUSED = "no NVIDIA driver is installed here, or this container was given no GPU"


def is_unused(host: Host, error: NvmlError) -> bool:
    """Whether the library is missing where nobody meant to use the GPUs: nor are their device files there.

    So it is on a laptop with another driver, and in a container that was started without GPUs; on a node
    whose library is gone the loaded module keeps /dev/nvidiactl.
    """
    if error.name not in ("LIBRARY_NOT_FOUND", "PYNVML_NOT_INSTALLED"):
        return False
    try:
        host.stat("/dev/nvidiactl")
    except Absent:
        return True
    except Unobservable:
        return False
    return False


def nvlink_ber(raw: int) -> tuple[int, int]:
    """(mantissa, exponent) of a coded bit error rate, which is mantissa * 10 ** -exponent.

    Bits 8 to 11 and 0 to 7 (NVML_NVLINK_ERROR_COUNTER_BER_GET in nvml.h). The least that it can say, and
    what a link without errors says, is 15e-255.
    """
    return raw >> 8 & 0xF, raw & 0xFF


def located(listed: Sequence[Gpu], devices: Collection[str]) -> list[Gpu]:
    """`listed` with an address for those that are too lost to tell theirs, where it follows from the others.

    When as many devices of the PCI bus are unaccounted for as GPUs have no address, they are these (NVML
    counts in the order of the bus).
    """
    unknown = [g.index for g in listed if not g.pci]
    spare = sorted(set(devices) - {g.pci for g in listed})
    if not unknown or len(unknown) != len(spare):
        return list(listed)
    address = dict(zip(unknown, spare, strict=True))
    return [g if g.pci else dataclasses.replace(g, pci=address[g.index]) for g in listed]


def alike(listed: Sequence[Gpu]) -> list[list[Gpu]]:
    """The GPUs in groups of one model of one board maker, those of which nothing is known left out.

    Only these can be compared: two cards of one chip from two makers differ in firmware, clocks and cooling.
    """
    groups: dict[tuple[str, int | None], list[Gpu]] = {}
    for gpu in listed:
        if gpu.name and not (gpu.error and gpu.error.name != "RESET_REQUIRED"):
            groups.setdefault((gpu.name, gpu.pci_subsystem), []).append(gpu)
    return list(groups.values())


# every GPU check of a look reads the same answer: all of it is frozen, so one may be handed to all
@functools.lru_cache(maxsize=2)
def parse(text: str) -> Nvml:
    """The child's JSON. Raises Unparsable for anything else, another schema, or a value of another type."""
    try:
        data = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as exc:
        raise Unparsable("the NVML child did not print JSON", text) from exc
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise Unparsable(f"the NVML child's answer is not of schema {SCHEMA}", text)
    try:
        answer: Nvml = _typed(Nvml, data, "answer")
        for address in filter(None, (g.pci for g in answer.gpus)):
            pci_address(address)
    except (TypeError, ValueError, OverflowError) as exc:
        raise Unparsable(f"the NVML child's answer has an unexpected form ({exc})", text) from exc
    return answer


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a number")


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _typed(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`, checked to the last leaf. Raises TypeError with the place of what does not fit.

    A field that is absent keeps its default: a recording may be older than the field.
    """
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        hints = _hints(kind)
        given = {k: _typed(hints[k], v, f"{where}.{k}") for k, v in value.items() if k in hints}
        return kind(**given)
    if isinstance(kind, types.UnionType):
        inner = next(a for a in typing.get_args(kind) if a is not type(None))
        return None if value is None else _typed(inner, value, where)
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        inner = typing.get_args(kind)[0]
        return tuple(_typed(inner, v, f"{where}[{i}]") for i, v in enumerate(value))
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise TypeError(f"{where} is not a finite number")
        return float(value)
    # bool is an int to Python, not to us
    if type(value) is kind:
        return value
    raise TypeError(f"{where} is {type(value).__name__}, expected {getattr(kind, '__name__', kind)}")


if __name__ == "__main__":
    from clustertools.sources.nvml_questions import main

    sys.exit(main())
