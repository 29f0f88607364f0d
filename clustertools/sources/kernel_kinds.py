"""Kernel lines by their kind: a line with what differs from one time to the next taken out.

kind_of("nvme nvme3: I/O 12 QID 5 timeout")       # "nvme nvme#: I/O # QID # timeout"
is_familiar(line.text)            # healthy machines write such lines, or another check judges them
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from clustertools.catalog import packaged_text
from clustertools.errors import ConfigError
from clustertools.sources.kernel import is_driver_load, is_post_rx_failure, parse_sxid, parse_xid
from clustertools.sources.kernel_events import parse_host_event

KIND_CHARACTERS = 160
#: Lines of a site, of the same form.
SITE_LINES = "/etc/clustertools/kernel_lines.txt"

# hexadecimal words, addresses and numbers; names in brackets and quotes are left: they tell kinds apart
_VARIES = r"0x[0-9a-f]+|\b[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\b|\b[0-9a-f]{6,16}\b|\d+"


def kind_of(text: str) -> str:
    """The line without its numbers and addresses, cut to a length that still tells kinds apart."""
    return re.sub(_VARIES, "#", text[: 4 * KIND_CHARACTERS], flags=re.IGNORECASE)[:KIND_CHARACTERS].strip()


def is_familiar(text: str) -> bool:
    """Whether a line is known: another check judges it, or it is in catalog/kernel_lines.txt.

    Raises ConfigError when a line of the list is not a pattern.
    """
    judged = (parse_host_event, parse_xid, parse_sxid, is_driver_load, is_post_rx_failure)
    if any(parse(text) for parse in judged):
        return True
    return any(pattern.search(text[:4096]) for pattern in _known())


@functools.cache
def _known() -> tuple[re.Pattern[str], ...]:
    patterns = []
    lists = {"catalog/kernel_lines.txt": packaged_text("kernel_lines.txt")}
    if Path(SITE_LINES).exists():
        lists[SITE_LINES] = Path(SITE_LINES).read_text(encoding="utf-8")
    for path, text in lists.items():
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            try:
                patterns.append(re.compile(line.strip()))
            except re.error as exc:
                raise ConfigError(f"{path}:{number}: not a regular expression: {exc}") from exc
    return tuple(patterns)
