"""What is wrong with the faulty recorded hosts, a module for each room; each has MACHINES."""

from __future__ import annotations

import importlib
import pkgutil

from tests.lab.host_faults import Machine


def machines() -> list[Machine]:
    """The machines of all modules."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__))
    return [m for name in names for m in importlib.import_module(f"{__name__}.{name}").MACHINES]
