"""How training frameworks leave out the data of some steps: the catalogue `skip_data.yaml`.

around(31215, begun=31200)           (31201, 31315)
how("megatron", 31201, 31315)        "Megatron-LM: --iterations-to-skip $(seq 31200 31314): ..."
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clustertools.catalog import packaged_text

_FILE = "skip_data.yaml"
#: The data that is left out around the first bad step, of what comes after the checkpoint. GLM-130B left out
#: 200 steps, half of them before it; PaLM 200 to 500 batches after going back about 100 steps.
BEFORE, AFTER = 100, 100
_OTHER = "the job script's work, for steps {first}-{last} (CLUSTERTOOLS_SKIP_STEPS)"


@dataclass(frozen=True, slots=True)
class Framework:
    """One row. `can`: yes, part or no."""

    name: str
    formats: tuple[str, ...]
    can: str
    how: str
    source: str
    date: str


def around(bad_step: int, begun: int = 0) -> tuple[int, int]:
    """First and last step whose data is to be left out by a run that goes on after step `begun`."""
    return max(begun + 1, bad_step - BEFORE), bad_step + AFTER


def how(format: str, first: int, last: int) -> str:
    """What to do in the framework that writes such logs; what holds for all where none is known."""
    row = next((row for row in frameworks() if format in row.formats), None)
    text = f"{row.name}: {row.how}" if row is not None else _OTHER
    steps = {
        "first": first,
        "last": last,
        "before_first": first - 1,
        "before_last": last - 1,
        "stop": last + 1,
    }
    for name, step in steps.items():
        text = text.replace(f"{{{name}}}", str(step))
    return text


@functools.cache
def frameworks() -> tuple[Framework, ...]:
    """Every row, in the order of the file."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document: Mapping[str, Any] = loader(packaged_text(_FILE)).get_single_data()
    return tuple(
        Framework(row["name"], tuple(row["formats"]), row["can"], row["how"], row["source"], str(row["date"]))
        for row in document["frameworks"]
    )
