"""`nvidia-smi -q -x`: the GPUs of a node, where NVML's Python binding is missing, or in a recording.

    answer = nvml_of(text)      # the same values as `sources.nvidia` has from NVML
    read(text)                  # the same as plain data, without what a card does not have

Element names are those of nvsmi_device_v10.dtd to v13.dtd, drivers 418 to 595. What nvidia-smi does not tell
in this form (NVLinks, energy, what the ECC mode is by default) is a failure of each GPU, so that it counts as
not seen. The document's type is only named, never read: one with declarations of its own is refused.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from clustertools.errors import Unparsable
from clustertools.model import pci_address
from clustertools.sources.nvidia import Gpu, GpuProcess, Nvml, NvmlError, RowHistogram
from clustertools.sources.nvml_questions import THROTTLE_REASONS

KIND = "nvidia-smi-xml"
FIELDS = {
    "driver": "version of the driver",
    "cuda": "newest CUDA version that the driver knows",
    "error.*": "why nvidia-smi told nothing else: its exit code, NVML's name of that, its first line",
    "gpus[].index": "its number in the output, from 0",
    "gpus[].pci": "its PCI address",
    "gpus[].throttle_reasons[]": "what holds the clocks down, as NVML names it",
    "gpus[].throttle_reasons_raw": "the same as NVML's bits",
    "gpus[].remap_histogram.*": "memory banks by how many spare rows they have left",
    "gpus[].processes[].pid": "a process with a compute context",
    "gpus[].processes[].memory_bytes": "GPU memory that it holds",
    "gpus[].nvlinks[]": "not told by nvidia-smi -q; `nvidia-smi nvlink -s` does",
    "gpus[].error.*": "why the GPU as a whole does not answer: lost, needs a reset",
    "gpus[].*": "the figure with its unit in the name; ones that the card does not have are left out",
}
COMMAND = ("nvidia-smi", "-q", "-x")

#: More than eight GPUs with all their clocks (8 x 45 KB) by far; what is longer is not read.
MOST_CHARACTERS = 16 << 20
MOST_DEPTH = 16

#: What stands for "this card, mode or driver does not have it".
_LACKS = frozenset(
    ("", "n/a", "[n/a]", "none", "not supported", "[not supported]", "not found", "unknown",
     "requested functionality has been deprecated", "function not found")
)  # fmt: skip
#: nvmlErrorString of the calls that failed, which stand as values, with their nvmlReturn_t (nvml.h).
_ERRORS = {
    "gpu is lost": (15, "GPU_IS_LOST"),
    "gpu requires reset": (16, "RESET_REQUIRED"),
    "unknown error": (999, "UNKNOWN"),
    "err!": (999, "UNKNOWN"),
    "insufficient permissions": (4, "NO_PERMISSION"),
    "timeout": (10, "TIMEOUT"),
    "interrupt request issue": (11, "IRQ_ISSUE"),
    "gpu access blocked by the operating system": (17, "OPERATING_SYSTEM"),
    "driver not loaded": (9, "DRIVER_NOT_LOADED"),
}
_OF_THE_DEVICE = frozenset(("GPU_IS_LOST", "RESET_REQUIRED", "IRQ_ISSUE"))
#: nvidia-smi's own exit codes (its manual page, RETURN VALUE) are nvmlReturn_t.
_EXIT_CODES = {
    4: "NO_PERMISSION", 6: "NOT_FOUND", 8: "INSUFFICIENT_POWER", 9: "DRIVER_NOT_LOADED", 10: "TIMEOUT",
    11: "IRQ_ISSUE", 12: "LIBRARY_NOT_FOUND", 14: "CORRUPTED_INFOROM", 15: "GPU_IS_LOST",
    18: "LIB_RM_VERSION_MISMATCH",
}  # fmt: skip
#: Exit codes with which it still printed all that it could.
_STILL_TELLS = frozenset((0, 14, 15))

#: Fields of Gpu that `nvidia-smi -q -x` has no element for.
NOT_TOLD = (
    "energy_joules", "power_violation_seconds", "thermal_violation_seconds",
    "board_limit_violation_seconds", "reliability_violation_seconds", "ecc_default", "nvlinks",
    "nvlink_replay_errors", "nvlink_recovery_errors", "nvlink_crc_flit_errors", "nvlink_crc_data_errors",
    "nvlink_peers",
    "fabric_health_mask", "memory_allocated_bytes",
)  # fmt: skip


@dataclass
class Element:
    """One element: its text, attributes and children by name, in order."""

    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def find(self, path: str) -> Element | None:
        """The first at `a/b/c` below it."""
        here: Element | None = self
        for name in path.split("/"):
            here = next((c for c in here.children if c.name == name), None) if here else None
        return here

    def all(self, name: str) -> list[Element]:
        return [c for c in self.children if c.name == name]


def recognise(text: str) -> bool:
    """Whether this is `nvidia-smi -q -x`."""
    head = text[:2000]
    return "<nvidia_smi_log" in head and ("<?xml" in head or head.lstrip().startswith("<"))


def read(text: str) -> dict[str, Any]:
    """Driver, CUDA version and GPUs as plain data. Raises Unparsable for what is not this document."""
    answer = nvml_of(text)
    plain: dict[str, Any] = _without_none(dataclasses.asdict(answer))
    for gpu in plain["gpus"]:
        del gpu["failures"]
    return plain


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, (list, tuple)) else value


def nvml_of(text: str, returncode: int = 0) -> Nvml:
    """What `nvidia-smi -q -x` printed, and its exit code, as NVML's answer.

    Raises Unparsable for a text of another form, for a document that declares anything itself, and for a
    value that is neither of its unit, nor known to stand for a missing one or an error.
    """
    if returncode not in _STILL_TELLS and not recognise(text):
        name = _EXIT_CODES.get(returncode, "UNKNOWN")
        said = (text.strip().splitlines() or ["it said nothing"])[0][:200]
        return Nvml(error=NvmlError(returncode, name, "nvidia-smi", said))
    document, end, after = text.rpartition("</nvidia_smi_log>")
    # WARNING: infoROM is corrupted at gpu 0000:5D:00.0
    corrupt = re.findall(r"infoROM is corrupted at gpu ([0-9A-Fa-f:.]{7,20})", after)
    root = parse(document + end if corrupt else text)
    if root.name != "nvidia_smi_log":
        raise Unparsable(f"this is <{root.name[:40]}>, not nvidia-smi's document", text)
    driver, cuda = (_word(root, name) for name in ("driver_version", "cuda_version"))
    bad = {pci_address(address) for address in corrupt}
    listed = [_Gpu(element, index).told() for index, element in enumerate(root.all("gpu"))]
    told = (dataclasses.replace(g, inforom_valid=False) if g.pci in bad else g for g in listed)
    return Nvml(driver, None, cuda, tuple(told))


def parse(text: str) -> Element:
    """`text` as a tree, by expat, without any entity or outside document. Raises Unparsable."""
    from xml.parsers import expat

    if len(text) > MOST_CHARACTERS:
        raise Unparsable(f"{len(text)} characters are more than nvidia-smi prints", text[:200])
    top = Element("")
    open_elements = [top]

    def start(name: str, attributes: dict[str, str]) -> None:
        if len(open_elements) > MOST_DEPTH:
            raise Unparsable("elements are nested deeper than nvidia-smi does", name)
        element = Element(name, attributes)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def declares(*said: Any) -> None:
        raise Unparsable("the document declares entities or has a type of its own", str(said[:2]))

    def doctype(name: str, system: str | None, public: str | None, own: int) -> None:
        if own:
            declares(name, system)

    def characters(said: str) -> None:
        open_elements[-1].text += said

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda name: open_elements.pop()
    parser.CharacterDataHandler = characters
    parser.StartDoctypeDeclHandler = doctype
    parser.EntityDeclHandler = declares
    parser.SkippedEntityHandler = declares
    try:
        # a process may call itself anything; XML knows no control characters, nor halves of a character
        parser.Parse(re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]", "?", text).strip(), True)
    except expat.ExpatError as exc:
        raise Unparsable(f"not XML ({exc})", text) from exc
    return top.children[0]


def _word(element: Element, path: str) -> str | None:
    found = element.find(path)
    text = found.text.strip() if found else ""
    return None if text.lower() in _LACKS else text


# ---- values --------------------------------------------------------------------------------------------

#: 1 MiB, 31 C, 72.30 W, 345 MHz, 97 %, 16x, 64 bank(s), 0
_NUMBER = re.compile(r"(-?\d{1,20}(?:\.\d{1,6})?)(?: ?(MiB|C|W|MHz|%|x|bank\(s\)|us))?")
_YES = {"yes": True, "enabled": True, "active": True, "no": False, "disabled": False, "not active": False}


def _number(unit: str) -> Callable[[str], float]:
    def convert(text: str) -> float:
        match = _NUMBER.fullmatch(text)
        if match is None or (match[2] or "") != unit:
            raise ValueError(text)
        return float(match[1])

    return convert


def _whole(unit: str = "") -> Callable[[str], int]:
    number = _number(unit)
    return lambda text: int(number(text))


def _flag(text: str) -> bool:
    if text.lower() not in _YES:
        raise ValueError(text)
    return _YES[text.lower()]


def _mebibytes(text: str) -> int:
    return round(_number("MiB")(text)) << 20


def _words(text: str) -> str:
    return text.lower().replace(" ", "_").replace("-", "_")


def _recovery(text: str) -> str:
    # "Reset", "Reboot", "Drain P2P", "Drain and Reset" of nvidia-smi are NVML's gpu_reset, node_reboot ...
    return {"reset": "gpu_reset", "reboot": "node_reboot"}.get(_words(text), _words(text))


def _virtualization(text: str) -> str:
    return {"pass_through": "passthrough", "host_vsga": "host_vsga"}.get(_words(text), _words(text))


def _subsystem(text: str) -> int | None:
    # 16C110DE; those who publish such documents take it out
    return int(text, 16) if re.fullmatch("[0-9A-Fa-f]{1,8}", text) else None


def _cluster(text: str) -> str:
    return text if text.strip("0-") else ""  # all zero: of no NVLink domain


def _compute_mode(text: str) -> str:
    return _words(text)


def _status(text: str) -> int:
    return 0 if text == "Success" else 999  # NVML_ERROR_UNKNOWN: it is told in words


#: Field of Gpu: where it may be, the newest first, and how it is read.
_FIELDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "uuid": ("uuid", str),
    "serial": ("serial", str),
    "name": ("product_name", str),
    "minor": ("minor_number", _whole()),
    "vbios": ("vbios_version", str),
    "inforom": ("inforom_version/img_version", str),
    "gsp_firmware": ("gsp_firmware_version", str),
    "pci_subsystem": ("pci/pci_sub_system_id", _subsystem),
    "temperature_celsius": ("temperature/gpu_temp", _whole("C")),
    "memory_temperature_celsius": ("temperature/memory_temp", _whole("C")),
    "shutdown_celsius": ("temperature/gpu_temp_max_threshold", _whole("C")),
    "slowdown_celsius": ("temperature/gpu_temp_slow_threshold", _whole("C")),
    "max_operating_celsius": ("temperature/gpu_temp_max_gpu_threshold", _whole("C")),
    "memory_max_operating_celsius": ("temperature/gpu_temp_max_mem_threshold", _whole("C")),
    "margin_celsius": ("temperature/gpu_temp_tlimit", _whole("C")),
    "shutdown_margin_celsius": ("temperature/gpu_temp_max_tlimit_threshold", _whole("C")),
    "slowdown_margin_celsius": ("temperature/gpu_temp_slow_tlimit_threshold", _whole("C")),
    "max_operating_margin_celsius": ("temperature/gpu_temp_max_gpu_tlimit_threshold", _whole("C")),
    "power_watts": (
        "gpu_power_readings/average_power_draw gpu_power_readings/power_draw "
        "gpu_power_readings/instant_power_draw power_readings/power_draw", _number("W"),
    ),
    "power_limit_watts": (
        "gpu_power_readings/current_power_limit power_readings/enforced_power_limit "
        "power_readings/power_limit", _number("W"),
    ),
    "power_default_limit_watts": (
        "gpu_power_readings/default_power_limit power_readings/default_power_limit", _number("W"),
    ),
    "power_max_limit_watts": (
        "gpu_power_readings/max_power_limit power_readings/max_power_limit", _number("W"),
    ),
    "sm_clock_mhz": ("clocks/sm_clock", _whole("MHz")),
    "sm_clock_max_mhz": ("max_clocks/sm_clock", _whole("MHz")),
    "memory_clock_mhz": ("clocks/mem_clock", _whole("MHz")),
    "memory_clock_max_mhz": ("max_clocks/mem_clock", _whole("MHz")),
    "application_sm_clock_mhz": ("applications_clocks/graphics_clock", _whole("MHz")),
    "application_sm_clock_default_mhz": ("default_applications_clocks/graphics_clock", _whole("MHz")),
    "gpu_utilisation_percent": ("utilization/gpu_util", _whole("%")),
    "memory_utilisation_percent": ("utilization/memory_util", _whole("%")),
    "memory_total_bytes": ("fb_memory_usage/total", _mebibytes),
    "memory_used_bytes": ("fb_memory_usage/used", _mebibytes),
    "memory_reserved_bytes": ("fb_memory_usage/reserved", _mebibytes),
    "ecc_enabled": ("ecc_mode/current_ecc", _flag),
    "ecc_pending": ("ecc_mode/pending_ecc", _flag),
    "ecc_sram_threshold_exceeded": ("ecc_errors/aggregate/sram_threshold_exceeded", _flag),
    "memory_unrepairable": ("ecc_errors/unrepairable_memory", _flag),
    "channel_repair_pending": ("ecc_errors/channel_repair_pending", _flag),
    "tpc_repair_pending": ("ecc_errors/tpc_repair_pending", _flag),
    "remapped_correctable": ("remapped_rows/remapped_row_corr", _whole()),
    "remapped_uncorrectable": ("remapped_rows/remapped_row_unc", _whole()),
    "remap_pending": ("remapped_rows/remapped_row_pending", _flag),
    "remap_failed": ("remapped_rows/remapped_row_failure", _flag),
    "retired_pages_corrected": ("retired_pages/multiple_single_bit_retirement/retired_count", _whole()),
    "retired_pages_uncorrected": ("retired_pages/double_bit_retirement/retired_count", _whole()),
    "retired_pages_pending": ("retired_pages/pending_retirement", _flag),
    "persistence": ("persistence_mode", _flag),
    "display_active": ("display_active", _flag),
    "compute_mode": ("compute_mode", _compute_mode),
    "mig_enabled": ("mig_mode/current_mig", _flag),
    "mig_pending": ("mig_mode/pending_mig", _flag),
    "pcie_generation": ("pci/pci_gpu_link_info/pcie_gen/current_link_gen", _whole()),
    "pcie_generation_max": ("pci/pci_gpu_link_info/pcie_gen/max_link_gen", _whole()),
    "pcie_width": ("pci/pci_gpu_link_info/link_widths/current_link_width", _whole("x")),
    "pcie_width_max": ("pci/pci_gpu_link_info/link_widths/max_link_width", _whole("x")),
    "pcie_replays": ("pci/replay_counter", _whole()),
    "fabric_state": ("fabric/state", _words),
    "fabric_status": ("fabric/status", _status),
    "fabric_clique": ("fabric/cliqueId", _whole()),
    "fabric_cluster": ("fabric/clusterUuid", _cluster),
    "fabric_health": ("fabric/health/summary", _words),
}  # fmt: skip
#: Where "None" is a value and not a lack.
_NONE_IS_TOLD = {
    "recovery_action": ("gpu_recovery_action", _recovery),
    "virtualization": ("gpu_virtualization_mode/virtualization_mode", _virtualization),
}
_REASONS = {name: bit for bit, name in THROTTLE_REASONS.items()} | {"display_clocks_setting": 0x100}
#: Kind of error: the elements that are summed, by the form since 2020, then by the one before.
_ECC = {
    "dram_corrected": ("dram_correctable", "single_bit/device_memory"),
    "dram_uncorrected": ("dram_uncorrectable", "double_bit/device_memory"),
    "sram_corrected": ("sram_correctable",),
    "sram_uncorrected": ("sram_uncorrectable", "sram_uncorrectable_parity", "sram_uncorrectable_secded"),
}


class _Gpu:
    """Reads one <gpu>."""

    def __init__(self, element: Element, index: int) -> None:
        self.element = element
        self.index = index
        self.found: dict[str, Any] = {}
        self.error: NvmlError | None = None
        self.failures: list[NvmlError] = []

    def told(self) -> Gpu:
        address = self.element.attributes.get("id", "") or _word(self.element, "pci/pci_bus_id") or ""
        try:
            self.found["pci"] = pci_address(address)
        except ValueError as exc:
            raise Unparsable("a <gpu> without a PCI address", address) from exc
        for name, (paths, convert) in _FIELDS.items():
            self._take(name, paths, convert)
        for name, (paths, convert) in _NONE_IS_TOLD.items():
            self._take(name, paths, convert, none_is_told=True)
        self._ecc()
        self._reasons()
        self._histogram()
        self._processes()
        untold = NvmlError(-1, "NOT_TOLD_HERE", "nvidia-smi -q -x", "", NOT_TOLD)
        return Gpu(self.index, **self.found, error=self.error, failures=(*self.failures, untold))

    def _value(self, name: str, path: str, convert: Callable[[str], Any], none_is_told: bool = False) -> Any:
        element = self.element.find(path)
        text = element.text.strip() if element else ""
        if text.lower() in _LACKS and not (none_is_told and text == "None"):
            return None
        if text.lower() in _ERRORS:
            code, error = _ERRORS[text.lower()]
            failed = NvmlError(code, error, f"nvidia-smi -q -x: {path}", text, (name,))
            if error in _OF_THE_DEVICE:
                self.error = self.error or failed
            self.failures.append(failed)
            return None
        try:
            return convert(text)
        except (ValueError, OverflowError) as exc:
            raise Unparsable(f"nvidia-smi's {path} has an unknown form", text) from exc

    def _take(self, name: str, paths: str, convert: Callable[[str], Any], none_is_told: bool = False) -> None:
        for path in paths.split():
            value = self._value(name, path, convert, none_is_told)
            if value is not None:
                self.found[name] = value
                return

    def _ecc(self) -> None:
        for life in ("volatile", "aggregate"):
            sums: dict[str, int] = {}
            for kind, names in _ECC.items():
                field_name = f"ecc_{kind}_{life}"
                counts = [self._value(field_name, f"ecc_errors/{life}/{name}", _whole()) for name in names]
                known = [count for count in counts if count is not None]
                if known:
                    self.found[field_name] = sum(known)
                    total = f"ecc_{kind.split('_')[1]}_{life}"
                    sums[total] = sums.get(total, 0) + sum(known)
            for old, kind in (("single_bit", "corrected"), ("double_bit", "uncorrected")):
                field_name = f"ecc_{kind}_{life}"
                total_count = self._value(field_name, f"ecc_errors/{life}/{old}/total", _whole())
                if total_count is not None:
                    sums[field_name] = total_count
            self.found |= sums

    def _reasons(self) -> None:
        block = self.element.find("clocks_event_reasons") or self.element.find("clocks_throttle_reasons")
        bits, names, seen = 0, [], False
        for element in block.children if block else ():
            name = re.sub(r"^clocks_(?:event|throttle)_reason_", "", element.name)
            active = self._value("throttle_reasons_raw", f"{block.name}/{element.name}", _flag)  # type: ignore[union-attr]
            seen = seen or active is not None
            if active:
                bits |= _REASONS.get(name, 0)
                names.append(THROTTLE_REASONS.get(_REASONS.get(name, 0), name))
        if seen:
            self.found["throttle_reasons_raw"] = bits
            self.found["throttle_reasons"] = tuple(names)

    def _histogram(self) -> None:
        path = "remapped_rows/row_remapper_histogram/row_remapper_histogram_"
        counts = {
            name: self._value("remap_histogram", path + name, _whole("bank(s)"))
            for name in ("max", "high", "partial", "low", "none")
        }
        if all(count is not None for count in counts.values()):
            self.found["remap_histogram"] = RowHistogram(**counts)

    def _processes(self) -> None:
        block = self.element.find("processes")
        if block is None or (not block.children and block.text.strip().lower() in _LACKS - {"", "none"}):
            return
        found = []
        for one in block.all("process_info"):
            # C computes, G draws, C+G does both, M+C computes as a client of MPS
            if "C" not in (_word(one, "type") or "C"):
                continue
            pid, used = _word(one, "pid"), _word(one, "used_memory")
            if pid is None or not re.fullmatch(r"\d{1,10}", pid):
                raise Unparsable("a process without a number", pid or "")
            memory = _NUMBER.fullmatch(used) if used else None
            found.append(GpuProcess(int(pid), round(float(memory[1])) << 20 if memory else None))
        self.found["processes"] = tuple(found)
