"""Files whose names count several kinds of parallel ranks: `pp-rank-0-of-2_tp-rank-1-of-4` (nanotron)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from clustertools.sources.checkpoint_layouts import Entry, is_weights
from clustertools.sources.checkpoint_problem import Problem

# model_weight_pp-rank-0-of-2_tp-rank-1-of-4.safetensors
# optimizer_pp-0-of-2_dp-1-of-8_tp-0-of-4_exp-0-of-1.pt
# nanotron, src/nanotron/serialize/utils.py and optimizer.py
DIMENSION = re.compile(r"(?:^|[_-])(?P<what>pp|tp|dp|cp|exp)(?:-rank)?-(?P<number>\d+)-of-(?P<total>\d+)")
#: A block of the model lives on one pipeline stage, and an expert's on some ranks: only all files together
#: show every one of them.
_OVERALL = frozenset(("pp", "exp"))


def dimension_gaps(entries: Sequence[Entry]) -> list[Problem]:
    """Ranks of which no file is there, in each kind of parallelism by itself."""
    seen: dict[tuple[str, str, int], set[int]] = defaultdict(set)
    for entry in entries:
        # random states are those of the ranks that there were, and nobody misses one
        if not is_weights(entry.name) or entry.name.startswith("random/"):
            continue
        for match in DIMENSION.finditer(entry.base):
            what, number, total = match["what"], int(match["number"]), int(match["total"])
            place = entry.name.partition("/")[0] + "/"
            if what not in _OVERALL:
                start, end = match.span("number")
                place = f"{entry.folder}{entry.base[:start]}*{entry.base[end:]}"
            seen[what, place, total].add(number)
    return [
        Problem("incomplete", f"only {len(numbers)} of {total} {what} ranks of {place} are there")
        for (what, place, total), numbers in sorted(seen.items())
        if len(numbers) < total
    ]
