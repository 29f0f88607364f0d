"""The questions that the NVML child asks, one GPU after another, each call guarded for itself.

Runs only in a child with a deadline (`python -m clustertools.sources.nvidia --json`): any of these calls may
hang in the driver. The values that it prints are described at `clustertools.sources.nvidia.Gpu`.

A call may fail in three ways: the card does not have the thing (the value is null); the device as a whole
does not answer (the GPU gets `error`; the others are still asked); anything else (an entry in `failures`).
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from clustertools.model import pci_address
from clustertools.sources.nvidia import SCHEMA, NvmlError

#: nvmlReturn_t (nvml.h) that mean "not on this card, in this mode, or not with this driver".
NOT_HERE = frozenset(
    (
        "INVALID_ARGUMENT NOT_SUPPORTED NOT_FOUND FUNCTION_NOT_FOUND NO_DATA VGPU_ECC_NOT_SUPPORTED "
        "ARGUMENT_VERSION_MISMATCH DEPRECATED"
    ).split()
)
#: nvmlReturn_t that speak of the device, not of the call.
DEVICE_ERRORS = frozenset(("GPU_IS_LOST", "RESET_REQUIRED", "IRQ_ISSUE", "GPU_NOT_FOUND"))
#: After these, more calls only cost time.
GONE = DEVICE_ERRORS - {"RESET_REQUIRED"}

#: nvmlClocksEventReasons (nvml.h): what holds the clocks down.
THROTTLE_REASONS = {
    0x1: "gpu_idle", 0x2: "applications_clocks_setting", 0x4: "sw_power_cap", 0x8: "hw_slowdown",
    0x10: "sync_boost", 0x20: "sw_thermal_slowdown", 0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown", 0x100: "display_clock_setting", 0x200: "board_limit",
    0x400: "reliability",
}  # fmt: skip
#: NVML_GPU_RECOVERY_ACTION_* (nvml.h), the value of NVML_FI_DEV_GET_GPU_RECOVERY_ACTION.
RECOVERY_ACTIONS = (
    "none gpu_reset node_reboot drain_p2p drain_and_reset recover_imex_domain bus_reset system_reboot"
).split()
COMPUTE_MODES = ("default", "exclusive_thread", "prohibited", "exclusive_process")
#: nvmlGpuVirtualizationMode_t.
VIRTUALIZATION = ("none", "passthrough", "vgpu", "host_vgpu", "host_vsga")
FABRIC_STATES = ("not_supported", "not_started", "in_progress", "completed")
#: NVML_GPU_FABRIC_HEALTH_SUMMARY_* (nvml.h).
FABRIC_SUMMARIES = ("not_supported", "healthy", "unhealthy", "limited_capacity")
#: nvmlGpuP2PStatus_t (nvml.h); its 1 is spelt wrongly there.
P2P_STATUSES = (
    "ok chipset_not_supported gpu_not_supported topology_not_supported disabled_by_regkey not_supported "
    "unknown"
).split()
#: NVML_P2P_CAPS_INDEX_NVLINK; pynvml has a tuple where it means another number of this list.
P2P_NVLINK = 2
#: The member of the union nvmlValue_t that each nvmlValueType_t fills.
VALUE_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _thousandth(value: float) -> float:
    return value / 1000


def _named(names: tuple[str, ...] | list[str]) -> Callable[[int], str]:
    return lambda value: names[value] if 0 <= value < len(names) else str(value)


def _reasons(value: int) -> tuple[int, list[str]]:
    names = [name for bit, name in THROTTLE_REASONS.items() if value & bit]
    unknown = value & ~sum(THROTTLE_REASONS)
    return value, names + ([f"{unknown:#x}"] if unknown else [])


def _nanoseconds(value: Any) -> float:
    return float(value.violationTime) / 1e9


def _memory(value: Any) -> tuple[int, int]:
    return value.total, value.used


def _inforom_valid(nvml: Any, handle: Any) -> bool:
    """Whether the checksums of the infoROM are right; nvidia-smi asks the same at each of its calls."""
    try:
        nvml.nvmlDeviceValidateInforom(handle)
    except nvml.NVMLError as exc:
        if exc.value != nvml.NVML_ERROR_CORRUPTED_INFOROM:
            raise
        return False
    return True


def _memory_of_ours(nvml: Any, handle: Any) -> tuple[int, int]:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    return memory.reserved, memory.used


def _address(value: Any) -> tuple[str, int]:
    return pci_address(_text(value.busId)), value.pciSubSystemId


def _processes(value: Any) -> list[dict[str, int | None]]:
    return [{"pid": p.pid, "memory_bytes": p.usedGpuMemory} for p in value]


def _sram_status(nvml: Any, handle: Any) -> bool:
    status = nvml.c_nvmlEccSramErrorStatus_v1_t()
    nvml.nvmlDeviceGetSramEccErrorStatus(handle, ctypes.byref(status))
    return bool(status.bThresholdExceeded)


def _uuid(value: Any) -> str:
    digits = bytes(value).hex()
    if not any(bytes(value)):
        return ""
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _fabric(nvml: Any, handle: Any) -> tuple[str, int, int, int, str, str | None]:
    # the third form adds the summary; a driver or a pynvml that is older knows the second only
    form, info = 3, getattr(nvml, "c_nvmlGpuFabricInfo_v3_t", nvml.c_nvmlGpuFabricInfo_v2_t)()
    try:
        info.version = nvml.nvmlGpuFabricInfo_v3
        nvml.nvmlDeviceGetGpuFabricInfoV(handle, ctypes.byref(info))
    except (AttributeError, nvml.NVMLError) as exc:
        if isinstance(exc, nvml.NVMLError) and error_name(nvml, exc.value) not in NOT_HERE:
            raise
        form, info = 2, nvml.c_nvmlGpuFabricInfo_v2_t()
        info.version = nvml.nvmlGpuFabricInfo_v2
        nvml.nvmlDeviceGetGpuFabricInfoV(handle, ctypes.byref(info))
    return (
        _named(FABRIC_STATES)(info.state),
        info.status,
        info.healthMask,
        info.cliqueId,
        _uuid(info.clusterUuid),
        _named(FABRIC_SUMMARIES)(info.healthSummary) if form == 3 else None,
    )


def _histogram(value: Any) -> dict[str, int]:
    return {name: getattr(value, name) for name in ("max", "high", "partial", "low", "none")}


def _bools(value: Any) -> tuple[bool, ...]:
    return tuple(bool(v) for v in value)


def _ecc_counters() -> list[Question]:
    found: list[Question] = []
    for kind in ("corrected", "uncorrected"):
        for life in ("volatile", "aggregate"):
            which = (f"NVML_MEMORY_ERROR_TYPE_{kind.upper()}", f"NVML_{life.upper()}_ECC")
            found.append(Question(f"ecc_{kind}_{life}", "nvmlDeviceGetTotalEccErrors", which))
            for place in ("dram", "sram"):
                located = (*which, f"NVML_MEMORY_LOCATION_{place.upper()}")
                name = f"ecc_{place}_{kind}_{life}"
                found.append(Question(name, "nvmlDeviceGetMemoryErrorCounter", located))
    return found


@dataclasses.dataclass(frozen=True)
class Question:
    """One call: the fields that it fills, the function, its arguments (names of NVML constants).

    `otherwise` is asked when the driver does not know `call`.
    """

    fields: str
    call: str | Callable[[Any, Any], Any]
    arguments: tuple[str, ...] = ()
    convert: Callable[[Any], Any] | None = None
    otherwise: str = ""


QUESTIONS: tuple[Question, ...] = (
    Question("uuid", "nvmlDeviceGetUUID", convert=_text),
    Question("serial", "nvmlDeviceGetSerial", convert=_text),
    Question("name", "nvmlDeviceGetName", convert=_text),
    Question("minor", "nvmlDeviceGetMinorNumber"),
    Question("vbios", "nvmlDeviceGetVbiosVersion", convert=_text),
    Question("inforom", "nvmlDeviceGetInforomImageVersion", convert=_text),
    Question("inforom_valid", _inforom_valid),
    Question("gsp_firmware", "nvmlDeviceGetGspFirmwareVersion", convert=_text),
    Question("virtualization", "nvmlDeviceGetVirtualizationMode", convert=_named(VIRTUALIZATION)),
    Question("temperature_celsius", "nvmlDeviceGetTemperature", ("NVML_TEMPERATURE_GPU",)),
    *(
        Question(field, "nvmlDeviceGetTemperatureThreshold", (f"NVML_TEMPERATURE_THRESHOLD_{which}",))
        for field, which in (
            ("shutdown_celsius", "SHUTDOWN"),
            ("slowdown_celsius", "SLOWDOWN"),
            ("max_operating_celsius", "GPU_MAX"),
            ("memory_max_operating_celsius", "MEM_MAX"),
        )
    ),
    Question("margin_celsius", "nvmlDeviceGetMarginTemperature"),
    # NVML counts milliwatts and millijoules
    Question("power_watts", "nvmlDeviceGetPowerUsage", convert=_thousandth),
    Question("power_limit_watts", "nvmlDeviceGetEnforcedPowerLimit", convert=_thousandth),
    Question("power_default_limit_watts", "nvmlDeviceGetPowerManagementDefaultLimit", convert=_thousandth),
    Question("power_max_limit_watts", "nvmlDeviceGetPowerManagementLimitConstraints",
             convert=lambda v: v[1] / 1000),
    Question("energy_joules", "nvmlDeviceGetTotalEnergyConsumption", convert=_thousandth),
    Question("sm_clock_mhz", "nvmlDeviceGetClockInfo", ("NVML_CLOCK_SM",)),
    Question("sm_clock_max_mhz", "nvmlDeviceGetMaxClockInfo", ("NVML_CLOCK_SM",)),
    Question("memory_clock_mhz", "nvmlDeviceGetClockInfo", ("NVML_CLOCK_MEM",)),
    Question("memory_clock_max_mhz", "nvmlDeviceGetMaxClockInfo", ("NVML_CLOCK_MEM",)),
    # NVML_CLOCK_GRAPHICS is what an application clock is set by; SM and graphics clock are one since Pascal
    Question("application_sm_clock_mhz", "nvmlDeviceGetApplicationsClock", ("NVML_CLOCK_GRAPHICS",)),
    Question("application_sm_clock_default_mhz", "nvmlDeviceGetDefaultApplicationsClock",
             ("NVML_CLOCK_GRAPHICS",)),
    Question("throttle_reasons_raw throttle_reasons", "nvmlDeviceGetCurrentClocksEventReasons",
             convert=_reasons, otherwise="nvmlDeviceGetCurrentClocksThrottleReasons"),
    *(
        Question(f"{policy.lower()}_violation_seconds", "nvmlDeviceGetViolationStatus",
                 (f"NVML_PERF_POLICY_{policy}",), _nanoseconds)
        for policy in ("POWER", "THERMAL", "BOARD_LIMIT", "RELIABILITY")
    ),
    Question("gpu_utilisation_percent memory_utilisation_percent", "nvmlDeviceGetUtilizationRates",
             convert=lambda v: (v.gpu, v.memory)),
    Question("memory_total_bytes memory_used_bytes", "nvmlDeviceGetMemoryInfo", convert=_memory),
    Question("memory_reserved_bytes memory_allocated_bytes", _memory_of_ours),
    Question("ecc_enabled ecc_pending", "nvmlDeviceGetEccMode", convert=_bools),
    Question("ecc_default", "nvmlDeviceGetDefaultEccMode", convert=lambda v: bool(v[0])),
    *_ecc_counters(),
    Question("ecc_sram_threshold_exceeded", _sram_status),
    Question("remapped_correctable remapped_uncorrectable remap_pending remap_failed",
             "nvmlDeviceGetRemappedRows", convert=lambda v: (v[0], v[1], bool(v[2]), bool(v[3]))),
    Question("remap_histogram", "nvmlDeviceGetRowRemapperHistogram", convert=_histogram),
    Question("retired_pages_pending", "nvmlDeviceGetRetiredPagesPendingStatus", convert=bool),
    Question("memory_unrepairable", "nvmlDeviceGetUnrepairableMemoryFlag_v1", convert=bool),
    Question("channel_repair_pending tpc_repair_pending", "nvmlDeviceGetRepairStatus", convert=_bools),
    Question("persistence", "nvmlDeviceGetPersistenceMode", convert=bool),
    Question("display_active", "nvmlDeviceGetDisplayActive", convert=bool),
    Question("compute_mode", "nvmlDeviceGetComputeMode", convert=_named(COMPUTE_MODES)),
    Question("mig_enabled mig_pending", "nvmlDeviceGetMigMode", convert=_bools),
    Question("pcie_generation", "nvmlDeviceGetCurrPcieLinkGeneration"),
    Question("pcie_generation_max", "nvmlDeviceGetMaxPcieLinkGeneration"),
    Question("pcie_width", "nvmlDeviceGetCurrPcieLinkWidth"),
    Question("pcie_width_max", "nvmlDeviceGetMaxPcieLinkWidth"),
    Question("pcie_replays", "nvmlDeviceGetPcieReplayCounter"),
    Question(
        "fabric_state fabric_status fabric_health_mask fabric_clique fabric_cluster fabric_health", _fabric
    ),
    Question("processes", "nvmlDeviceGetComputeRunningProcesses", convert=_processes),
)  # fmt: skip

#: Figures that NVML gives as field values: all of a GPU's in one call.
FIELD_VALUES: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    # cards without the sensor may say 0
    "memory_temperature_celsius": ("NVML_FI_DEV_MEMORY_TEMP", lambda value: value or None),
    "shutdown_margin_celsius": ("NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT", int),
    "slowdown_margin_celsius": ("NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT", int),
    "max_operating_margin_celsius": ("NVML_FI_DEV_TEMPERATURE_GPU_MAX_TLIMIT", int),
    "retired_pages_corrected": ("NVML_FI_DEV_RETIRED_SBE", int),
    "retired_pages_uncorrected": ("NVML_FI_DEV_RETIRED_DBE", int),
    "recovery_action": ("NVML_FI_DEV_GET_GPU_RECOVERY_ACTION", _named(RECOVERY_ACTIONS)),
    "nvlink_replay_errors": ("NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL", int),
    "nvlink_recovery_errors": ("NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL", int),
    "nvlink_crc_flit_errors": ("NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", int),
    "nvlink_crc_data_errors": ("NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL", int),
}

#: Counters and error rates of one link. Blackwell has other counters than the generations before it: what
#: the first active link does not have is not asked of the others.
LINK_VALUES: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    # the speed is in megabytes a second
    "bytes_per_second": ("NVML_FI_DEV_NVLINK_GET_SPEED", lambda mega: mega * 1e6),
    "replay_errors": ("NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY", int),
    "recovery_errors": ("NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY", int),
    "crc_errors": ("NVML_FI_DEV_NVLINK_ERROR_DL_CRC", int),
    "receive_errors": ("NVML_FI_DEV_NVLINK_COUNT_RCV_ERRORS", int),
    "recovery_events": ("NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS", int),
    "recovery_failed_events": ("NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS", int),
    "effective_ber_raw": ("NVML_FI_DEV_NVLINK_COUNT_EFFECTIVE_BER", int),
    "symbol_ber_raw": ("NVML_FI_DEV_NVLINK_COUNT_SYMBOL_BER", int),
}


class Asker:
    """Asks one GPU and keeps what it said, what it does not have, and what went wrong."""

    def __init__(self, nvml: Any, index: int) -> None:
        self.nvml = nvml
        self.index = index
        self.entry: dict[str, Any] = {"index": index}
        self.failures: list[NvmlError] = []
        self.error: NvmlError | None = None
        self.handle: Any = None

    def run(self) -> None:
        """Ask everything that this GPU tells by itself; `told` gives it."""
        try:
            self.handle = self.nvml.nvmlDeviceGetHandleByIndex(self.index)
        except self.nvml.NVMLError as exc:
            self.error = failure(self.nvml, exc, "nvmlDeviceGetHandleByIndex")
            return
        self._ask(Question("pci pci_subsystem", "nvmlDeviceGetPciInfo", convert=_address))
        for question in QUESTIONS:
            self._ask(question)
        self._ask_field_values()
        self._ask_nvlinks()

    def told(self) -> dict[str, Any]:
        """What was found, as `Gpu` spells it."""
        self.entry["error"] = self.error and dataclasses.asdict(self.error)
        self.entry["failures"] = [dataclasses.asdict(f) for f in self.failures]
        return self.entry

    def _call(self, question: Question) -> Any:
        if callable(question.call):
            return question.call(self.nvml, self.handle)
        arguments = [getattr(self.nvml, name) for name in question.arguments]
        try:
            return getattr(self.nvml, question.call)(self.handle, *arguments)
        except self.nvml.NVMLError as exc:
            if not question.otherwise or error_name(self.nvml, exc.value) not in NOT_HERE:
                raise
            return getattr(self.nvml, question.otherwise)(self.handle, *arguments)

    def _ask(self, question: Question) -> None:
        fields = question.fields.split()
        self.entry.update(dict.fromkeys(fields))
        if self.error and self.error.name in GONE:
            return
        try:
            value = self._call(question)
        except AttributeError:
            return  # pynvml is older than this call: the same as a driver that does not know it
        except self.nvml.NVMLError as exc:
            call = question.call if isinstance(question.call, str) else question.call.__name__.strip("_<>")
            self._note(failure(self.nvml, exc, call, fields))
            return
        value = question.convert(value) if question.convert else value
        self.entry.update(zip(fields, value if len(fields) > 1 else (value,), strict=True))

    def _note(self, found: NvmlError) -> None:
        if found.name in NOT_HERE:
            return
        if found.name in DEVICE_ERRORS:
            self.error = self.error or found
        if found.name not in GONE:
            self.failures.append(found)

    def _values(self, wanted: list[Any], fields: list[str]) -> list[tuple[int, Any]] | None:
        """(nvmlReturn_t, value) for each of `wanted`, or None when the call as a whole failed."""
        if self.error and self.error.name in GONE:
            return None
        try:
            answers = self.nvml.nvmlDeviceGetFieldValues(self.handle, wanted)
        except self.nvml.NVMLError as exc:
            self._note(failure(self.nvml, exc, "nvmlDeviceGetFieldValues", fields))
            return None
        # a value of a type that is not in VALUE_MEMBERS is one that nobody here can read
        unreadable = self.nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH
        return [
            (a.nvmlReturn, None)
            if a.nvmlReturn
            else (0, getattr(a.value, VALUE_MEMBERS[a.valueType]))
            if a.valueType < len(VALUE_MEMBERS)
            else (unreadable, None)
            for a in answers
        ]

    def _ask_field_values(self) -> None:
        self.entry.update(dict.fromkeys(FIELD_VALUES))
        known = {f: getattr(self.nvml, name, None) for f, (name, _) in FIELD_VALUES.items()}
        fields = [f for f, number in known.items() if number is not None]
        for field, (code, value) in zip(
            fields, self._values([known[f] for f in fields], fields) or (), strict=False
        ):
            if code:
                self._note(failure(self.nvml, self.nvml.NVMLError(code), FIELD_VALUES[field][0], [field]))
            else:
                self.entry[field] = FIELD_VALUES[field][1](value)

    def _ask_nvlinks(self) -> None:
        active: list[bool | None] = []
        for link in range(self.nvml.NVML_NVLINK_MAX_LINKS):
            if self.error and self.error.name in GONE:
                return
            try:
                active.append(bool(self.nvml.nvmlDeviceGetNvLinkState(self.handle, link)))
            except self.nvml.NVMLError as exc:
                if error_name(self.nvml, exc.value) != "NOT_SUPPORTED":
                    # INVALID_ARGUMENT: past the last link of this card; what is a fault, _note keeps
                    self._note(failure(self.nvml, exc, "nvmlDeviceGetNvLinkState", ["nvlinks"]))
                    break
                active.append(None)
        while active and active[-1] is None:
            active.pop()
        figures = self._link_values(active)
        self.entry["nvlinks"] = [{"link": n, "active": state, **figures[n]} for n, state in enumerate(active)]

    def _link_values(self, active: list[bool | None]) -> list[dict[str, Any]]:
        """For each link, those of LINK_VALUES that it has."""
        found: list[dict[str, Any]] = [{} for _ in active]
        if not active:
            return found
        first = next((n for n, state in enumerate(active) if state), 0)
        numbers = {f: getattr(self.nvml, name, None) for f, (name, _) in LINK_VALUES.items()}
        fields = [f for f, number in numbers.items() if number is not None]
        for link in (first, *(n for n in range(len(active)) if n != first)):
            answers = self._values([(numbers[f], link) for f in fields], []) or () if fields else ()
            for field, (code, value) in zip(fields, answers, strict=False):
                if not code and value is not None:
                    found[link][field] = LINK_VALUES[field][1](value)
            if link == first:
                fields = [f for f in fields if f in found[first]]
        return found

    def ask_peers(self, others: list[Asker]) -> None:
        """Over NVLink, can it reach each of the node's GPUs? In their order, `self` for itself."""
        told: list[str] = []
        for other in others:
            if other is self:
                told.append("self")
                continue
            if self.error or other.error or self.handle is None or other.handle is None:
                told.append("unknown")
                continue
            try:
                status = self.nvml.nvmlDeviceGetP2PStatus(self.handle, other.handle, P2P_NVLINK)
            except self.nvml.NVMLError as exc:
                self._note(failure(self.nvml, exc, "nvmlDeviceGetP2PStatus", ["nvlink_peers"]))
                told.append("not_supported")
                if error_name(self.nvml, exc.value) in NOT_HERE:
                    return
                continue
            told.append(_named(P2P_STATUSES)(status))
        self.entry["nvlink_peers"] = told


@functools.cache
def error_name(nvml: Any, code: int) -> str:
    """NVML's name of an error code, without its prefix: `GPU_IS_LOST`; `CODE_77` for one that has none."""
    for name in dir(nvml):
        if name.startswith("NVML_ERROR_") and getattr(nvml, name) == code:
            return name.removeprefix("NVML_ERROR_")
    return f"CODE_{code}"


def failure(nvml: Any, exc: Any, call: str, fields: list[str] | tuple[str, ...] = ()) -> NvmlError:
    """An NVMLError as a value."""
    return NvmlError(exc.value, error_name(nvml, exc.value), call, str(exc), tuple(fields))


def answer() -> dict[str, Any]:
    """Everything, or why the library could not be used. Raises nothing that NVML can cause."""
    told: dict[str, Any] = {
        "schema": SCHEMA,
        "driver": None,
        "nvml": None,
        "cuda": None,
        "error": None,
        "gpus": [],
    }
    try:
        import pynvml as nvml
    except ImportError as exc:
        told["error"] = dataclasses.asdict(NvmlError(-1, "PYNVML_NOT_INSTALLED", "import pynvml", str(exc)))
        return told
    call = "nvmlInit"
    try:
        nvml.nvmlInit()
        call = "nvmlSystemGetDriverVersion"
        told["driver"] = _text(nvml.nvmlSystemGetDriverVersion())
        told["nvml"] = _text(nvml.nvmlSystemGetNVMLVersion())
        # 12040 is CUDA 12.4
        cuda = nvml.nvmlSystemGetCudaDriverVersion()
        told["cuda"] = f"{cuda // 1000}.{cuda % 1000 // 10}"
        call = "nvmlDeviceGetCount"
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as exc:
        told["error"] = dataclasses.asdict(failure(nvml, exc, call))
        return told
    askers = [Asker(nvml, index) for index in range(count)]
    for asker in askers:
        asker.run()
    for asker in askers:
        if len(askers) > 1 and any(link["active"] for link in asker.entry.get("nvlinks", ())):
            asker.ask_peers(askers)
    told["gpus"] = [asker.told() for asker in askers]
    return told


def main() -> int:
    """Print the answer. Exit code 0 also for a driver that is broken: the looking worked."""
    parser = argparse.ArgumentParser(prog="clustertools.sources.nvidia", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object (the only form)")
    parser.parse_args()
    print(json.dumps(answer(), separators=(",", ":")))
    return 0
