"""What accelerators can do at most, and the best that others have measured: the catalogue `performance.yaml`.

    gpu_row("NVIDIA H100 80GB HBM3").flops["bfloat16"]         # 989.4e12

The maker's peaks are physics; the measured figures are a hint, never a threshold.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from clustertools.catalog import packaged_text
from clustertools.errors import ConfigError

_FILE = "performance.yaml"


@dataclass(frozen=True, slots=True)
class Measured:
    """Somebody's best figure. Empty and 0 match anything; `network` is a node's, in bytes a second."""

    probe: str
    value: float
    source: str
    date: str
    dtype: str = ""
    collective: str = ""
    nodes: int = 0
    ranks: int = 0
    size_bytes: int = 0
    network: float = 0.0
    in_network: bool = False


@dataclass(frozen=True, slots=True)
class GpuRow:
    """One accelerator. Rates are a second and one way; 0 is not known or not there."""

    name: str
    names: tuple[str, ...]
    flops: Mapping[str, float]
    memory_bytes_per_second: float
    source: str
    date: str
    nvlink_bytes_per_second: float = 0.0
    in_network: bool = False
    host_bytes_per_second: float = 0.0
    pcie_generation: int = 0
    pcie_width: int = 0
    measured: tuple[Measured, ...] = ()


@dataclass(frozen=True, slots=True)
class EfaRow:
    """An EC2 instance's network devices."""

    devices: int
    bits_per_second: float
    source: str
    gpu: str = ""


def gpu_row(name: str) -> GpuRow | None:
    """The row of a device by the name that its driver or PyTorch tells; None when nobody described it."""
    fitting = [(len(begin), row) for row in gpu_rows() for begin in row.names if name.startswith(begin)]
    return max(fitting, key=lambda pair: pair[0])[1] if fitting else None


def efa_bytes_per_second(devices: int, gpu: str = "") -> float:
    """What so many EFA devices carry together, one way; 0 when the number fits no instance that is known."""
    rows = [row for row in efa_rows() if row.devices == devices and row.gpu in ("", gpu)]
    best = max(rows, key=lambda row: bool(row.gpu), default=None)
    return best.devices * best.bits_per_second / 8 if best else 0.0


@functools.cache
def gpu_rows() -> tuple[GpuRow, ...]:
    """All accelerators. Raises ConfigError when the file is not as it should be."""
    return tuple(_made(_gpu_row, _document()["gpus"]))


@functools.cache
def efa_rows() -> tuple[EfaRow, ...]:
    """All kinds of EFA network. Raises ConfigError when the file is not as it should be."""
    return tuple(_made(_efa_row, _document()["efa"]))


def _made(make: Any, rows: Iterable[Mapping[str, Any]]) -> Iterable[Any]:
    for row in rows:
        try:
            yield make(row)
        except (KeyError, TypeError, ValueError) as exc:
            raise ConfigError(f"{_FILE}: the row {row.get('name', row)} is wrong: {exc!r}") from exc


@functools.cache
def _document() -> Mapping[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document: Mapping[str, Any] = loader(packaged_text(_FILE)).get_single_data()
    return document


def _gpu_row(row: Mapping[str, Any]) -> GpuRow:
    pcie = row.get("pcie", {})
    return GpuRow(
        row["name"],
        tuple(row["names"]),
        {dtype: float(value) for dtype, value in row["flops"].items()},
        float(row["memory"]),
        row["source"],
        str(row["date"]),
        float(row.get("nvlink", 0)),
        bool(row.get("in_network", False)),
        float(row.get("host", 0)),
        int(pcie.get("generation", 0)),
        int(pcie.get("width", 0)),
        tuple(Measured(**{**one, "date": str(one["date"])}) for one in row.get("measured", ())),
    )


def _efa_row(row: Mapping[str, Any]) -> EfaRow:
    return EfaRow(int(row["devices"]), float(row["bits_per_second"]), row["source"], row.get("gpu", ""))
