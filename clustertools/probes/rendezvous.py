"""How the ranks of a group find each other, and what a communication library's complaint means.

The first node of a group serves torch's key-value store from a child of its own, so that the end of a rank
does not take the store away. Each rank says there that it came; so whoever never came is known by name.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from clustertools.measurement import Ending
from clustertools.probes.children import Progress
from clustertools.probes.orders import Report
from clustertools.text import plain

#: A rank polls the store for those that are not there yet; many ranks do so at the same time.
_POLL_SECONDS = (0.005, 0.1)


class NotMet(Exception):
    """The group did not come together; `blamed` are those that never came."""

    def __init__(self, text: str, blamed: Iterable[str]) -> None:
        super().__init__(text)
        self.blamed = list(blamed)


@dataclass(frozen=True, slots=True)
class Meeting:
    """The group as it came together: each node's ranks, in order, and the address that it came from."""

    store: Any
    rank: int
    ranks: int
    node_of: tuple[str, ...]
    address_of: Mapping[str, str]

    def local(self, node: str) -> list[int]:
        return [rank for rank, name in enumerate(self.node_of) if name == node]


def serve_store(port: int, seconds: float, progress: Progress) -> Report:
    """Serve the store until this child is killed: nobody but our parent knows when all have left."""
    import torch.distributed

    dist: Any = torch.distributed

    progress.at(1)
    try:
        store = dist.TCPStore(
            "0.0.0.0",  # noqa: S104 - the other nodes of the group come to it
            port,
            None,
            True,
            timeout=timedelta(seconds=seconds),
            wait_for_workers=False,
        )
    except (RuntimeError, OSError) as exc:
        return Report(Ending.COULD_NOT_RUN, f"the rendezvous cannot listen on port {port}: {_last(exc)}")
    while True:
        progress.at(1, store.num_keys())
        time.sleep(60)


def meet(
    address: str,
    port: int,
    *,
    meeting: str,
    nodes: Sequence[str],
    node: str,
    local_rank: int,
    local_ranks: int,
    until: float,
) -> Meeting:
    """Come to the store as rank `local_rank` of `node`, and wait until all ranks of all `nodes` came.

    `meeting` keeps apart two groups that use the same port after each other; `until` is of the monotonic
    clock. Raises NotMet when it has passed.
    """
    import torch.distributed

    dist: Any = torch.distributed

    own = _reach(address, port, nodes[0], until)
    left = timedelta(seconds=max(1.0, until - time.monotonic()))
    try:
        store = dist.PrefixStore(
            meeting, dist.TCPStore(address, port, None, False, timeout=left, wait_for_workers=False)
        )
        store.set(f"came/{node}/{local_rank}", json.dumps({"ranks": local_ranks, "address": own}))
        _wait(store, {f"came/{name}/0": name for name in nodes}, until)
        said = _values(store, [f"came/{name}/0" for name in nodes])
        counts = [int(told["ranks"]) for told in said]
        _wait(
            store,
            {
                f"came/{name}/{n}": f"{name} (its rank {n})"
                for name, count in zip(nodes, counts, strict=True)
                for n in range(1, count)
            },
            until,
        )
    except (RuntimeError, OSError, ValueError, KeyError) as exc:
        raise NotMet(
            f"the store on {nodes[0]} ({address}:{port}) failed during the rendezvous: {_last(exc)}",
            [nodes[0]],
        ) from exc
    node_of = [name for name, count in zip(nodes, counts, strict=True) for _ in range(count)]
    return Meeting(
        store,
        node_of.index(node) + local_rank,
        len(node_of),
        tuple(node_of),
        {name: str(told["address"]) for name, told in zip(nodes, said, strict=True)},
    )


def _reach(address: str, port: int, whose: str, until: float) -> str:
    """Our own address towards the store, as soon as that listens."""
    pause, last = _POLL_SECONDS[0], "no answer"
    while (left := until - time.monotonic()) > 0:
        try:
            with socket.create_connection((address, port), timeout=left) as link:
                return str(link.getsockname()[0])
        except OSError as exc:
            last = exc.strerror or str(exc)
        time.sleep(min(pause, max(0.0, until - time.monotonic())))
        pause = min(_POLL_SECONDS[1], pause * 1.5)
    raise NotMet(f"the rendezvous on {whose} ({address}:{port}) was not reached in time: {last}", [whose])


def _wait(store: Any, wanted: Mapping[str, str], until: float) -> None:
    """Until every key of `wanted` is in the store. Raises NotMet with the names of those that are not."""
    pause = _POLL_SECONDS[0]
    while wanted and not store.check(list(wanted)):
        if time.monotonic() >= until:
            missing = [name for key, name in wanted.items() if not store.check([key])]
            blamed = list(dict.fromkeys(name.split(" ", 1)[0] for name in missing))
            raise NotMet(
                f"{len(missing)} of the group never came to the rendezvous: {', '.join(missing[:20])}", blamed
            )
        time.sleep(pause)
        pause = min(_POLL_SECONDS[1], pause * 1.5)


def _values(store: Any, keys: Sequence[str]) -> list[dict[str, Any]]:
    # one question for all keys where this torch has it: a thousand ranks ask at the same time
    raw = store.multi_get(list(keys)) if hasattr(store, "multi_get") else [store.get(key) for key in keys]
    return [json.loads(value) for value in raw]


#: Words of a complaint, what kind it is. NCCL and gloo both name the peer where they know it.
_KINDS: tuple[tuple[str, Ending, str], ...] = (
    # CUDA out of memory. Tried to allocate 16.00 GiB. GPU 0 has a total capacity of ...
    # [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ...
    (
        r"out of memory|can't allocate memory|bad_alloc|Cannot allocate memory",
        Ending.COULD_NOT_RUN,
        "not enough memory for this size",
    ),
    # CUDA error: uncorrectable ECC error encountered
    (
        r"CUDA error|cudaError|CUBLAS_STATUS|Xid|uncorrectable ECC",
        Ending.CRASH,
        "the GPU or its driver failed",
    ),
    # [.../gloo/transport/tcp/pair.cc:537] Read error [10.77.0.3]:8622: Connection reset by peer.
    # socketProgress: Connection closed by remote peer node2<50324>
    (
        r"closed by (?:remote )?peer|reset by peer|Broken pipe|remote process exited|unexpected EOF",
        Ending.CRASH,
        "a peer closed the connection",
    ),
    # [.../gloo/transport/tcp/pair.cc:799] connect [10.77.0.3]:8622: Connection refused
    (
        r"[Cc]onnection refused|No route to host|[Nn]etwork is unreachable|EHOSTUNREACH",
        Ending.CRASH,
        "a peer could not be reached",
    ),
    # Timed out waiting 30000ms for recv operation to complete
    (r"[Tt]imed? ?out|[Tt]imeout", Ending.CRASH, "the library gave up waiting"),
)


def known_complaint(text: str, address_of: Mapping[str, str], own: str) -> Report | None:
    """What an error text of torch, gloo or NCCL means, or None when it is none of those that are known.

    A failure of our own GPU is our own node's; all else points at the peers whose address or name is in the
    text, if any.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    for pattern, ending, meaning in _KINDS:
        hit = next((line for line in lines if re.search(pattern, line)), None)
        if hit is None:
            continue
        blamed = [own] if meaning.startswith("the GPU") else _named(text, address_of, own)
        if ending is Ending.COULD_NOT_RUN:
            blamed = []
        return Report(ending, f"{meaning}: {plain(hit, 300)}", lines[-8:], blamed)
    return None


def complaint(text: str, address_of: Mapping[str, str], own: str) -> Report:
    """The same for any error text; one that is not known is a crash in its own last words."""
    if (known := known_complaint(text, address_of, own)) is not None:
        return known
    lines = [line for line in text.splitlines() if line.strip()]
    last = plain(lines[-1], 300) if lines else "it said nothing"
    return Report(Ending.CRASH, last, lines[-8:], _named(text, address_of, own))


def _named(text: str, address_of: Mapping[str, str], own: str) -> list[str]:
    # an address that several nodes have (a loopback) names nobody
    values = list(address_of.values())
    found = []
    for name, address in address_of.items():
        words = [name] if values.count(address) > 1 else [name, address]
        if name != own and any(re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w.-])", text) for word in words):
            found.append(name)
    return found


def _last(exc: Exception) -> str:
    return plain(str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__, 200)
