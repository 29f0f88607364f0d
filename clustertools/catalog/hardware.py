"""Which hardware a machine is, and what to expect of it, from what is there: the catalogue `hardware.yaml`.

    recognise(seen).expect["gpu_count"]         # 8 on a DGX H100, of which one GPU does not show
    recognise(seen).origin["gpu_count"]         # "DGX H100 or H200: NVIDIA DGX H100/H200 user guide ..."

What is looked at (`Seen`) is gathered by `sources.hardware`. A node class of the config overrides key by key.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clustertools.catalog import packaged_text
from clustertools.errors import ConfigError

_FILE = "hardware.yaml"
#: SMBIOS makers and products of virtual machines; a cloud's bare metal names its maker, or "metal".
_VIRTUAL = (
    "QEMU", "KVM", "VMware", "Xen", "OpenStack", "Virtual Machine", "Google Compute Engine", "Bochs",
    "BHYVE", "Parallels",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seen:
    """What a machine shows of itself: SMBIOS names, and `vendor:device` of each GPU on the PCI bus."""

    vendor: str = ""
    product: str = ""
    gpus: tuple[str, ...] = ()

    @property
    def is_virtual(self) -> bool:
        """Whether SMBIOS names a virtual machine. An EC2 instance is one unless its type ends in "metal"."""
        if self.vendor == "Amazon EC2":
            return "metal" not in self.product
        return any(word in text for word in _VIRTUAL for text in (self.vendor, self.product))


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the catalogue."""

    name: str
    expect: Mapping[str, Any]
    source: str
    date: str
    bare_metal: Mapping[str, Any] = field(default_factory=dict)
    ids: tuple[str, ...] = ()
    vendor: str = ""
    products: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()

    def fits(self, seen: Seen) -> bool:
        """Whether `seen` is this system; for a GPU whether every GPU there is of this kind."""
        if self.ids:
            return bool(seen.gpus) and all(gpu in self.ids for gpu in seen.gpus)
        return (
            seen.vendor.startswith(self.vendor)
            and any(seen.product.startswith(product) for product in self.products)
            and (not self.gpus or any(gpu in self.gpus for gpu in seen.gpus))
        )


@dataclass(frozen=True, slots=True)
class Recognised:
    """The rows that fit, what they expect, and which row each expectation is from."""

    entries: tuple[Entry, ...] = ()
    expect: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return ", ".join(entry.name for entry in self.entries)


def recognise(seen: Seen, named: str = "") -> Recognised:
    """What to expect of such a machine; empty when the catalogue does not know it.

    With `named` it is that system, whatever SMBIOS says (its GPUs still count). Raises ConfigError for a name
    that is not in the catalogue.
    """
    gpus, systems = catalogue()
    if named:
        fitting = [entry for entry in (*gpus, *systems) if entry.name == named]
        if not fitting:
            names = ", ".join(entry.name for entry in (*gpus, *systems))
            raise ConfigError(f"hardware {named!r} is not in the catalogue; it has: {names}")
        fitting = [*(entry for entry in gpus if entry.fits(seen) and entry not in fitting), *fitting]
    else:
        fitting = [entry for entry in (*gpus, *systems) if entry.fits(seen)]
    expect: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for entry in fitting:
        told = {**entry.expect, **({} if seen.is_virtual else entry.bare_metal)}
        expect |= told
        origin |= dict.fromkeys(told, f"{entry.name}: {entry.source} ({entry.date})")
    return Recognised(tuple(fitting), expect, origin)


@functools.cache
def catalogue() -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """The GPUs and the systems that are known. Raises ConfigError when the file is not as it should be."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document = loader(packaged_text(_FILE)).get_single_data()
    return tuple(_entries(document["gpus"])), tuple(_entries(document["systems"]))


def _entries(rows: Sequence[Mapping[str, Any]]) -> Iterator[Entry]:
    for row in rows:
        match = row.get("match", {})
        try:
            yield Entry(
                row["name"], row["expect"], row["source"], str(row["date"]), row.get("bare_metal", {}),
                tuple(row.get("ids", ())), match.get("vendor", ""), tuple(match.get("product", ())),
                tuple(match.get("gpu", ())),
            )  # fmt: skip
        except KeyError as exc:
            raise ConfigError(f"{_FILE}: the row {row.get('name', row)} lacks {exc}") from exc
