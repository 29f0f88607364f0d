"""What `nvidia-smi nvlink` prints of the links: their state (`-s`) and their error counters (`-e`).

The same form since driver 418: a line for each GPU, and lines for its links below it. Blackwell's counters
have other names than those before; any name that ends in a number is taken as it stands.
"""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "nvidia-smi-nvlink"

FIELDS = {
    "gpus[].gpu": "number of the GPU",
    "gpus[].name": "of the GPU",
    "gpus[].uuid": "of the GPU",
    "gpus[].state": "links, or why there are none: not supported, all inactive",
    "gpus[].links[].link": "number of the link",
    "gpus[].links[].active": "whether it is up (-s)",
    "gpus[].links[].bytes_per_second": "one way (-s)",
    "gpus[].links[].counters.*": "by name: replay_errors, symbol_ber ... (-e); null for N/A",
}

#: What stands behind or below a GPU that tells nothing of its links.
WITHOUT = {
    "device does not have or support nvlink": "not supported",
    "nvml: unable to retrieve nvlink information as all links are inactive": "all inactive",
}


def recognise(text: str) -> bool:
    """A line of a GPU, and one of a link or of the lack of them."""
    head = text[:100_000]
    return bool(
        re.search(r"^GPU \d{1,3}: .{1,200}\(UUID: ", head, re.MULTILINE)
        and (
            re.search(r"^\s+Link \d{1,3}: (?:[\d.]{1,12} GB/s|<inactive>|[\w -]{1,60}: )", head, re.MULTILINE)
            or any(words in head.lower() for words in WITHOUT)
        )
    )


def read(text: str) -> dict[str, Any]:
    """`gpus`: gpu, name, uuid, state ("links", "not supported", "all inactive", ""), links.

    A link has its number; `active` and `bytes_per_second` by -s; `counters` by -e. Raises Unparsable.
    """
    gpus: dict[int, dict[str, Any]] = {}
    gpu: dict[str, Any] | None = None
    for line in text.splitlines():
        line = line[:1000].rstrip("\0 \t\r")
        if not line.strip():
            continue
        # GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-00000000-0000-4000-8000-000000000000)
        head = re.fullmatch(r"GPU (\d{1,3}): (.{1,200}?) \(UUID: ([\w-]{1,60})\)(.*)", line)
        if head:
            gpu = gpus.setdefault(
                int(head[1]),
                {"gpu": int(head[1]), "name": head[2], "uuid": head[3], "state": "", "links": {}},
            )
            line = head[4]
            if not line.strip():
                continue
        if gpu is None:
            raise Unparsable("nvidia-smi nvlink: a line stands before any GPU", line)
        state = WITHOUT.get(line.strip().lower())
        if state is not None:
            gpu["state"] = state
            continue
        _link(gpu, line)
    if not gpus:
        raise Unparsable("nvidia-smi nvlink: no GPU", text)
    return {"gpus": [{**g, "links": [g["links"][n] for n in sorted(g["links"])]} for g in gpus.values()]}


def _link(gpu: dict[str, Any], line: str) -> None:
    #      Link 0: 26.562 GB/s          Link 4: <inactive>
    found = re.fullmatch(r"\s*Link (\d{1,3}): (?:([\d]{1,6}(?:\.\d{1,6})?) GB/s|(<inactive>))", line)
    if found:
        link = _of(gpu, found[1])
        link["active"] = found[3] is None
        link["bytes_per_second"] = None if found[2] is None else round(float(found[2]) * 1e9)
        return
    #      Link 0: Replay Errors: 0     Link 17: FEC Errors - 3: 175     Link 0: Effective BER: 15e-255
    number = r"(\d{1,20})|(\d{1,6}(?:\.\d{1,6})?e[+-]?\d{1,3})|N/A"
    found = re.fullmatch(rf"\s*Link (\d{{1,3}}): ([A-Za-z][\w -]{{0,60}}?): (?:{number})", line)
    if not found:
        raise Unparsable("nvidia-smi nvlink: a line of unknown form", line)
    name = re.sub(r"[ -]+", "_", found[2].strip()).lower()
    value = int(found[3]) if found[3] else float(found[4]) if found[4] else None
    _of(gpu, found[1]).setdefault("counters", {})[name] = value


def _of(gpu: dict[str, Any], number: str) -> dict[str, Any]:
    gpu["state"] = "links"
    link: dict[str, Any] = gpu["links"].setdefault(int(number), {"link": int(number)})
    return link
