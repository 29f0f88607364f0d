"""What a healthy node answers, a module for each room: `pcie`, `infiniband`, `host_limits`, ...

Each may define, of a `Shape`:

    files(shape)     path -> text of /proc, /sys, /etc ...
    commands(shape)  argv -> {"stdout", "returncode", "seconds"}, or {"error": ..., "absent": True}
    absent(shape)    paths that were looked for and are not there
    globs(shape)     pattern -> paths, where a folder has nothing that matches
    expect(shape)    what its node class expects of it
    PROVENANCE       where the formats and values come from

`whole_node` puts them together. A check that reads something new adds it to the module of its room.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Hca:
    """A network adapter with one port: its RDMA device, PCI address, network device and rate."""

    name: str
    pci: str
    netdev: str
    rate_gbps: int = 400
    link_layer: str = "InfiniBand"
    numa: int = 0


@dataclass(frozen=True)
class Shape:
    """A kind of node: what its parts have to agree upon. `gpu` is "nvidia", "amd" or empty."""

    node_class: str
    gpu: str = ""
    gpu_name: str = ""
    gpus: tuple[str, ...] = ()
    gpu_device: str = ""
    driver: str = ""
    pcie_generation: int = 5
    hcas: tuple[Hca, ...] = ()
    nvmes: int = 0
    intel: bool = False
    cpu: str = "AMD EPYC 7763 64-Core Processor"
    sockets: int = 2
    cores_per_socket: int = 64
    threads_per_core: int = 2
    memory_kib: int = 527955012
    kernel: str = "5.15.0-113-generic"
    product: str = "AS -2024US-TRT"
    vendor: str = "Supermicro"
    installed_gib: int = 2048

    @property
    def cpus(self) -> int:
        return self.sockets * self.cores_per_socket * self.threads_per_core


def together(name: str, shape: Shape) -> dict[Any, Any]:
    """The mappings of all parts called `name`. Raises ValueError where two parts say one thing."""
    found: dict[Any, Any] = {}
    for module in _modules():
        told = getattr(module, name, lambda shape: {})(shape)
        both = found.keys() & told.keys()
        if both:
            raise ValueError(f"{module.__name__}.{name}: {sorted(map(str, both))} is said by another part")
        found |= told
    return found


def absent(shape: Shape) -> list[str]:
    """The paths that are not there, by all parts."""
    return sorted(path for module in _modules() for path in getattr(module, "absent", lambda s: ())(shape))


def provenance() -> str:
    """Where the formats and values of all parts come from."""
    return "".join(f"; {module.PROVENANCE}" for module in _modules() if hasattr(module, "PROVENANCE"))


def _modules() -> list[Any]:
    names = sorted(found.name for found in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f"{__name__}.{name}") for name in names]
