"""PyTorch's flight recorder: what a rank's dump says of the collectives that it enqueued and finished.

    dump = read_dump(data, rank=3)
    dump.states, dump.pending
    summary([dump, ...], world_size=8)      "rank 2 is behind in default_pg (0): enqueued 5 ..."

A dump is a pickle or JSON, one a rank, of format 2.x (torch/csrc/distributed/c10d/FlightRecorder.hpp; PyTorch
2.3 to 2.13). A pickle is a program, so it is read by one that knows plain values only: whatever names a class
is refused, nothing is imported or run, and no index of its can make us reserve memory. With gloo every state
stays "scheduled" and only `retired` is right; with NCCL both are.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clustertools.errors import Unparsable
from clustertools.model import RankState
from clustertools.sources.stacks import rank_set
from clustertools.text import plain

#: The default, 2000 entries with their stacks, is under 2 MB; reading takes a quarter of a second a megabyte.
MOST_BYTES = 16 << 20
MOST_GROUPS = 256
#: A rank that hangs has a few that it has not finished.
MOST_PENDING = 50
_CHARACTERS = 120
#: Operations that every rank of a group calls with the same sizes.
_ALIKE = ("all_reduce", "allreduce", "broadcast", "reduce", "reduce_scatter", "all_gather", "allgather")


@dataclass(frozen=True, slots=True)
class Pending:
    """A collective, or a send or receive (`is_p2p`), that a rank enqueued and has not finished.

    `sequence` counts those of its group and kind. `sizes` is its input's shape and type (`[1000] Float`),
    `where` the innermost call outside PyTorch, and `time` when it was enqueued.
    """

    group: str
    sequence: int
    operation: str
    sizes: str = ""
    state: str = ""
    where: str = ""
    time: float = 0.0
    is_p2p: bool = False


@dataclass(frozen=True, slots=True)
class Dump:
    """One rank's dump. `states` has one for each process group of which the dump tells the name."""

    rank: int
    version: str
    states: tuple[RankState, ...] = ()
    pending: tuple[Pending, ...] = ()


class _PlainValues(pickle._Unpickler):
    """Numbers, texts, lists, dictionaries. Python's own form: that in C reserves memory for any index."""

    def find_class(self, module: str, name: str, /) -> Any:
        raise ValueError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any, /) -> Any:
        raise ValueError("it refers to something outside of it")

    def get_extension(self, code: int) -> None:
        raise ValueError("it names a registered class")


def read_dump(data: bytes, rank: int) -> Dump:
    """What the dump of `rank` says. Which rank it is of stands in the name of its file only.

    Raises Unparsable for what is cut, of another form, larger than MOST_BYTES, or names any class at all.
    """
    if len(data) > MOST_BYTES:
        raise Unparsable(f"the dump of rank {rank} has {len(data)} bytes, more than are read")
    try:
        root = json.loads(data) if data[:1] == b"{" else _PlainValues(io.BytesIO(data)).load()
        return _dump(root, rank)
    except Unparsable:
        raise
    except MemoryError as exc:
        raise Unparsable(f"the dump of rank {rank} asks for more memory than any dump needs") from exc
    # a damaged pickle raises whatever it hits first
    except Exception as exc:
        said = plain(f"{type(exc).__name__}: {exc}", _CHARACTERS)
        raise Unparsable(f"the dump of rank {rank} cannot be read ({said})") from exc


def _dump(root: Any, rank: int) -> Dump:
    version = _text(root["version"])
    # 2.10
    if not re.fullmatch(r"2\.\d{1,4}", version):
        raise Unparsable(f"the dump of rank {rank} is of the version {version!r}, and 2.x is known")
    names: dict[str, str] = {}
    pending: list[Pending] = []
    # absent where only the status was asked for
    for entry in root.get("entries", ()):
        names.setdefault(str(_number(entry["pg_id"])), _group(entry["process_group"]))
        if entry["state"] != "completed" and not entry.get("retired", False):
            pending.append(_pending(entry))
    states = []
    for key, status in list(root.get("pg_status", {}).items())[:MOST_GROUPS]:
        # the number of a group is this process's own; its name is the same on all ranks, and the entries tell
        # it. The first is the default one.
        group = names.get(str(key), "default_pg (0)" if str(key) == "0" else "")
        if group:
            last = [_number(status[f"last_{what}_collective"]) for what in ("enqueued", "completed")]
            states.append(RankState(rank, group, *last))
    return Dump(rank, version, tuple(states), tuple(pending[-MOST_PENDING:]))


def _pending(entry: Mapping[str, Any]) -> Pending:
    is_p2p = entry.get("is_p2p") is True
    shapes = entry.get("input_sizes") or []
    sizes = " ".join([*(str([_number(n) for n in s]) for s in shapes[:4]), *map(_text, _types(entry)[:1])])
    return Pending(
        _group(entry["process_group"]), _number(entry["p2p_seq_id" if is_p2p else "collective_seq_id"]),
        # gloo:all_reduce, nccl:all_gather
        _text(entry["profiling_name"]).rpartition(":")[2], plain(sizes, _CHARACTERS), _text(entry["state"]),
        _where(entry.get("frames") or ()), _number(entry.get("time_created_ns") or 0) / 1e9, is_p2p,
    )  # fmt: skip


def _types(entry: Mapping[str, Any]) -> list[Any]:
    types = entry.get("input_dtypes") or []
    return types if isinstance(types, list) else []


def _group(pair: Any) -> str:
    # ('0', 'default_pg')   a mesh's: ('7', 'mesh_tp')   without a description: ('7', 'undefined')
    name, description = (_text(one) for one in pair)
    return f"{description} ({name})" if description and description != "undefined" else name


def _where(frames: Iterable[Mapping[str, Any]]) -> str:
    """The innermost frame that is not PyTorch's own."""
    for frame in frames:
        file = _text(frame["filename"])
        if "/torch/" not in file:
            return f"{_text(frame['name'])} ({file.rpartition('/')[2]}:{_number(frame['line'])})"
    return ""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, not {type(value).__name__}")
    return plain(value, _CHARACTERS)


def _number(value: Any) -> int:
    """A whole number; in the JSON form some are texts."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,19}", value):
        return int(value)
    if type(value) is not int or not math.isfinite(value) or abs(value) >= 1 << 63:
        raise TypeError("expected a number")
    return value


# what all of them say together


def summary(dumps: Sequence[Dump], world_size: int = 0) -> list[str]:
    """In sentences: who is behind, who calls another operation, who waits for what, whose dump is missing."""
    return [*_behind(dumps), *_at_odds(dumps), *_waiting(dumps), *_missing(dumps, world_size)]


def _behind(dumps: Sequence[Dump]) -> list[str]:
    groups: dict[str, dict[int, int]] = {}
    for state in (state for dump in dumps for state in dump.states):
        groups.setdefault(state.group, {})[state.rank] = state.last_enqueued
    said = []
    for group, enqueued in groups.items():
        least, most = min(enqueued.values()), max(enqueued.values())
        if least < most:
            late = [rank for rank, count in enqueued.items() if count == least]
            said.append(
                f"{_ranks(late)} behind in {group}: enqueued {least} collectives, the foremost {most}"
            )
    return said


def _at_odds(dumps: Sequence[Dump]) -> list[str]:
    """The same place in the sequence of a group, and different operations or sizes there."""
    places: dict[tuple[str, int], dict[tuple[str, str], list[int]]] = {}
    for dump in dumps:
        for one in dump.pending:
            if not one.is_p2p:
                # of the others the sizes may well differ between ranks
                sizes = one.sizes if one.operation.lstrip("_") in _ALIKE else ""
                call = places.setdefault((one.group, one.sequence), {})
                call.setdefault((one.operation, sizes), []).append(dump.rank)
    return [
        f"the ranks do not agree on collective {sequence} of {group}: "
        + ", ".join(
            f"{_ranks(ranks, verb='')} {operation}{f' {sizes}' if sizes else ''}"
            for (operation, sizes), ranks in sorted(calls.items(), key=lambda item: len(item[1]))
        )
        for (group, sequence), calls in places.items()
        if len(calls) > 1
    ]


def _waiting(dumps: Sequence[Dump]) -> list[str]:
    oldest: dict[tuple[str, str, int, str], list[int]] = {}
    for dump in dumps:
        for one in sorted(dump.pending, key=lambda p: p.time)[:1]:
            oldest.setdefault((one.operation, one.group, one.sequence, one.where), []).append(dump.rank)
    return [
        f"{_ranks(ranks, verb='')} not done with {operation}, number {sequence} of {group}"
        + (f", called in {where}" if where else "")
        for (operation, group, sequence, where), ranks in sorted(
            oldest.items(), key=lambda item: len(item[1])
        )
    ]


def _missing(dumps: Sequence[Dump], world_size: int) -> list[str]:
    missing = sorted(set(range(world_size)) - {dump.rank for dump in dumps})
    return [f"no dump of {_ranks(missing, verb='')}"] if missing and dumps else []


def _ranks(ranks: Sequence[int], verb: str = "are") -> str:
    one = len(ranks) == 1
    words = [("rank " if one else "ranks ") + rank_set(ranks), "is" if one and verb else verb]
    return " ".join(word for word in words if word)
