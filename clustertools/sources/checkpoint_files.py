"""Whether one file of a checkpoint is whole: torch.save (archive or legacy), safetensors, pickles, JSON.

    verify_file("step_000100.pt").verdict      # good, torn, hostile, unknown or in_progress

PyTorch is not needed and nothing in the file is run. Cheap by default (directory, index and sizes);
`deep=True` also reads every byte that has a checksum.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

from clustertools.sources import checkpoint_zip as archive
from clustertools.sources.checkpoint_pickle import (
    PICKLE_CAP_BYTES,
    HostilePickle,
    PickleRead,
    TornPickle,
    read_pickle,
)
from clustertools.sources.checkpoint_zip import TornZip

FileVerdict = Literal["good", "torn", "hostile", "unknown", "in_progress"]

#: The first pickle of a legacy file: protocol 2, the number 0x1950a86a20f9469cfc6c. torch/serialization.py
LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
#: The safetensors format allows no larger header. huggingface/safetensors README, "Format".
SAFETENSORS_HEADER_CAP_BYTES = 100_000_000
#: huggingface/safetensors, enum Dtype; in bits, since F4 and F6 are not whole bytes.
SAFETENSORS_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
JSON_CAP_BYTES = 256 << 20
#: Top-level numbers of a saved dictionary that say where it stands.
STEP_KEYS = ("step", "global_step", "iteration", "iter_num", "num_updates", "global_steps", "iter", "steps")
_FACT_KEYS = frozenset((*STEP_KEYS, "dp_world_size", "mp_world_size"))
_ZEROS = bytes(64)


class OutOfTime(Exception):
    """The caller's deadline passed in the middle of a file."""


@dataclass(frozen=True, slots=True)
class FileReport:
    """What became of one file. `reason` is a sentence that begins with the file's name; empty when good.

    `facts` are whole numbers found at the top of a saved dictionary (`step`, `dp_world_size`). `note` is
    something odd that proves nothing, such as a sparse file.
    """

    name: str
    kind: str
    verdict: FileVerdict
    reason: str = ""
    note: str = ""
    size_bytes: int = 0
    facts: Mapping[str, int] = field(default_factory=dict)

    @property
    def step(self) -> int | None:
        """The training step that the file itself tells."""
        return next((self.facts[k] for k in STEP_KEYS if k in self.facts), None)


@dataclass(frozen=True, slots=True)
class Found:
    """What a reader of one format found in a good file."""

    kind: str
    facts: Mapping[str, int] = field(default_factory=dict)
    note: str = ""


class Torn(Exception):
    """The file cannot be whole; the text says why."""


class NotKnown(Exception):
    """The file is of no format known here; nothing can be said about it."""


def _never_late() -> None:
    """No deadline."""


@dataclass(frozen=True, slots=True)
class Look:
    """How to look: `deep`, the site's own packages, and a function that raises OutOfTime when it is late."""

    deep: bool = False
    allow: tuple[str, ...] = ()
    tick: Callable[[], object] = _never_late


def size_text(count: float) -> str:
    """`3145728` as `3.1 MB`, decimal as disks are sold."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def verify_file(path: str, *, name: str = "", look: Look | None = None) -> FileReport:
    """Look at one file. `name` is what the report calls it (default: the file's own name).

    An unreadable file, a format not known here, and a file that changed meanwhile are not "torn":
    they are `unknown` or `in_progress`. Raises only OutOfTime.
    """
    name = name or os.path.basename(path)
    look = look or Look()
    try:
        with open(path, "rb") as file:
            before = os.fstat(file.fileno())
            report = _verify_open(file, name, before.st_size, look)
            after = os.fstat(file.fileno())
    except OSError as exc:
        return FileReport(name, "file", "unknown", f"{name}: cannot be read: {exc.strerror or exc}")
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        return FileReport(
            name, report.kind, "in_progress", f"{name}: changed while it was read", "", after.st_size
        )
    # compressing file systems do this to healthy files, hence a note only
    if before.st_size >= 1 << 20 and before.st_blocks * 512 < before.st_size // 2 and not report.note:
        held = size_text(before.st_blocks * 512)
        note = f"{name}: only {held} of {size_text(before.st_size)} are on disk (sparse or compressed)"
        return FileReport(
            name, report.kind, report.verdict, report.reason, note, report.size_bytes, report.facts
        )
    return report


def _verify_open(file: BinaryIO, name: str, size: int, look: Look) -> FileReport:
    kind = "file"
    try:
        if size == 0:
            raise Torn("is empty (0 bytes)")
        head = file.read(64)
        kind, reader = _format_of(name, head, size)
        found = reader(file, size, look)
        return FileReport(name, found.kind, "good", "", found.note, size, found.facts)
    except NotKnown as exc:
        return FileReport(name, kind, "unknown", f"{name}: {exc}", "", size)
    except HostilePickle as exc:
        return FileReport(name, kind, "hostile", f"{name}: {exc}; nothing of it was run", "", size)
    except (Torn, TornZip, TornPickle) as exc:
        return FileReport(name, kind, "torn", f"{name}: {exc} ({size_text(size)} on disk)", "", size)
    except RecursionError:
        return FileReport(
            name, kind, "hostile", f"{name}: nested without end; nothing of it was run", "", size
        )
    except MemoryError:
        return FileReport(name, kind, "unknown", f"{name}: too large an index to read here", "", size)


Reader = Callable[[BinaryIO, int, Look], Found]


def _format_of(name: str, head: bytes, size: int) -> tuple[str, Reader]:
    """The format, by the first bytes; by the name only where the format has no magic number."""
    if head.startswith(archive.LOCAL_MAGIC):
        return "torch zip", _read_torch_zip
    if head.startswith(LEGACY_MAGIC):
        return "torch legacy", _read_torch_legacy
    if name.endswith(".safetensors"):
        return "safetensors", _read_safetensors
    if name.endswith(".json"):
        return "json", _read_json
    if head[:1] == b"\x80" and len(head) > 1 and 2 <= head[1] <= 5:
        return "pickle", _read_plain_pickle
    if head == _ZEROS[: len(head)]:
        raise Torn("begins with zeros, its blocks were never written")
    if LEGACY_MAGIC.startswith(head) or archive.LOCAL_MAGIC.startswith(head):
        raise Torn("breaks off within its first bytes")
    if len(head) >= 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= max(size, 1 << 20):
        return "safetensors", _read_safetensors
    raise NotKnown(f"begins with {head[:8].hex()}, which is no format known here")


def _facts(root: Any) -> dict[str, int]:
    if not isinstance(root, dict):
        return {}
    found = {k: v for k, v in root.items() if isinstance(k, str) and k in _FACT_KEYS}
    return {k: v for k, v in found.items() if type(v) is int and 0 <= v < 1 << 62}


def _foreign_note(read: PickleRead) -> str:
    if not read.foreign:
        return ""
    return f"holds objects of {', '.join(sorted(read.foreign)[:3])}, which were not looked into"


# torch.save since 1.6: an archive <name>/data.pkl, <name>/data/<key>, <name>/version. torch/serialization.py


def verify_zip(file: BinaryIO, start: int, size: int, look: Look) -> Found:
    """A torch.save archive that fills bytes `start` to `start + size`.

    Raises TornZip, Torn or HostilePickle. The pickle's own CRC-32 is always compared, the others when deep.
    """
    members = {m.name: m for m in archive.read_directory(file, start, size)}
    index = next((m for m in members.values() if m.name.endswith("/data.pkl")), None)
    if index is None:
        # numpy.savez writes archives too
        if not members or not all(m.name.endswith(".npy") for m in members.values()):
            raise Torn("an archive without data.pkl, not written by torch.save")
        read = PickleRead()
    else:
        read = _read_index(file, start, index, members, look)
    if look.deep:
        for member in members.values():
            look.tick()
            archive.read_member(file, start, member, lambda _: look.tick())
    return Found("torch zip" if index else "npz", _facts(read.root), _foreign_note(read))


def _read_index(
    file: BinaryIO, start: int, index: archive.Member, members: Mapping[str, archive.Member], look: Look
) -> PickleRead:
    if index.size_bytes > PICKLE_CAP_BYTES:
        raise Torn(f"its data.pkl claims {size_text(index.size_bytes)}, far more than any index")
    text = io.BytesIO()
    archive.read_member(file, start, index, text.write)
    text.seek(0)
    try:
        read = read_pickle(text, allow=look.allow)
    except TornPickle as exc:
        raise Torn(f"data.pkl: {exc}") from exc
    prefix = index.name[: -len("data.pkl")]
    if prefix + "version" not in members and prefix + ".data/version" not in members:
        raise Torn("the archive has no version record, the writer did not finish")
    for storage in read.storages.values():
        member = members.get(f"{prefix}data/{storage.key}")
        if member is None:
            raise Torn(f"storage {storage.key} is named in data.pkl and not in the archive")
        if storage.size_bytes is not None and member.size_bytes != storage.size_bytes:
            held, named = member.size_bytes, storage.size_bytes
            raise Torn(f"storage {storage.key} holds {held} bytes where data.pkl names {named}")
    _look_into_nested(read, look)
    return read


def _look_into_nested(read: PickleRead, look: Look) -> None:
    """Saved files inside a pickle: a loader loads them without asking, so they are looked at as well."""
    for blob in read.nested:
        if not isinstance(blob, bytes):
            raise HostilePickle("it loads a saved file from something that is not bytes")
        _, reader = _format_of("", blob[:64], len(blob))
        reader(io.BytesIO(blob), len(blob), look)


def _read_torch_zip(file: BinaryIO, size: int, look: Look) -> Found:
    try:
        return verify_zip(file, 0, size, look)
    except TornZip as exc:
        expected = _named_bytes(file, look)
        if expected > size:
            raise Torn(f"{exc}; its own index names {size_text(expected)} of tensors") from exc
        raise


def _named_bytes(file: BinaryIO, look: Look) -> int:
    """What the index of a cut archive says the tensors take: data.pkl comes first, and is often intact."""
    file.seek(0)
    header = file.read(30)
    if len(header) < 30:
        return 0
    name_bytes, extra_bytes = struct.unpack_from("<2H", header, 26)
    if not file.read(name_bytes).endswith(b"/data.pkl"):
        return 0
    file.seek(extra_bytes, os.SEEK_CUR)
    with contextlib.suppress(TornPickle):
        read = read_pickle(file, allow=look.allow)
        return sum(s.size_bytes or 0 for s in read.storages.values())
    return 0


def _read_torch_legacy(file: BinaryIO, size: int, look: Look) -> Found:
    """Five pickles (magic, protocol, system, object, keys), then for each key a count and its elements."""
    file.seek(0)
    reads = [read_pickle(file, allow=look.allow) for _ in range(5)]
    keys, storages = reads[4].root, reads[3].storages
    if not isinstance(keys, list) or not all(isinstance(k, str) and k in storages for k in keys):
        raise Torn("the list of storages does not match the object")
    for key in keys:
        look.tick()
        header = file.read(8)
        if len(header) < 8:
            raise Torn(f"ends before storage {key}")
        storage = storages[key]
        if struct.unpack("<q", header)[0] != storage.count or storage.size_bytes is None:
            raise Torn(f"storage {key} is not where it should be")
        if file.tell() + storage.size_bytes > size:
            raise Torn(f"ends inside storage {key}")
        file.seek(storage.size_bytes, os.SEEK_CUR)
    if file.tell() != size:
        raise Torn(f"{size_text(size - file.tell())} follow the last storage")
    _look_into_nested(reads[3], look)
    return Found("torch legacy", _facts(reads[3].root), _foreign_note(reads[3]))


def _read_plain_pickle(file: BinaryIO, size: int, look: Look) -> Found:
    """One pickle or several, to the end of the file."""
    if size > PICKLE_CAP_BYTES:
        raise NotKnown(f"a pickle of {size_text(size)}, too large to look through")
    file.seek(0)
    first: PickleRead | None = None
    while file.tell() < size:
        look.tick()
        read = read_pickle(file, allow=look.allow)
        _look_into_nested(read, look)
        first = first or read
    assert first is not None
    return Found("pickle", _facts(first.root), _foreign_note(first))


def safetensors_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The tensors by name and the offset of their data. Raises Torn."""
    file.seek(0)
    start = file.read(8)
    if len(start) < 8:
        raise Torn("too short for a safetensors header")
    length = struct.unpack("<Q", start)[0]
    if length > SAFETENSORS_HEADER_CAP_BYTES:
        raise Torn(f"claims a header of {size_text(length)}, more than the format allows")
    if 8 + length > size:
        raise Torn(f"ends inside its header of {size_text(length)}: the write was cut")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as exc:
        raise Torn("its header is not JSON") from exc
    if not isinstance(header, dict):
        raise Torn("its header is not an object")
    header.pop("__metadata__", None)
    return header, 8 + length


def _read_safetensors(file: BinaryIO, size: int, look: Look) -> Found:
    header, data_at = safetensors_header(file, size)
    spans = []
    for tensor, about in header.items():
        try:
            begin, end = about["data_offsets"]
            shape, dtype = about["shape"], about["dtype"]
            whole = all(type(n) is int and n >= 0 for n in (begin, end, *shape)) and begin <= end
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise Torn(f"tensor {tensor[:80]} is described wrongly in the header")
        bits = SAFETENSORS_BITS.get(dtype) if isinstance(dtype, str) else None
        if bits is not None and math.prod(shape) * bits != (end - begin) * 8:
            raise Torn(f"tensor {tensor[:80]} of shape {shape} and {dtype} is given {end - begin} bytes")
        spans.append((begin, end, tensor))
    reached = 0
    for begin, end, tensor in sorted(spans):
        if begin != reached:
            raise Torn(f"tensor {tensor[:80]} does not begin where the one before it ends")
        reached = end
    if data_at + reached > size:
        raise Torn(f"its header names {size_text(data_at + reached)}: the write was cut")
    if data_at + reached < size:
        raise Torn(f"{size_text(size - data_at - reached)} follow its last tensor")
    return Found("safetensors")


def _read_json(file: BinaryIO, size: int, look: Look) -> Found:
    if size > JSON_CAP_BYTES:
        raise NotKnown(f"a JSON file of {size_text(size)}, too large to look through")
    file.seek(0)
    try:
        value = json.loads(file.read())
    except (ValueError, RecursionError) as exc:
        raise Torn("is not whole JSON") from exc
    return Found("json", _facts(value))


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a `.distcp` file: one tensor's chunk, saved by torch.save. `plain`: not transformed."""

    offset: int
    length: int
    name: str
    is_tensor: bool
    plain: bool = True


def verify_segments(
    path: str, segments: Iterable[Segment], *, name: str = "", look: Look | None = None
) -> FileReport:
    """A file that a distributed checkpoint's `.metadata` divides into segments.

    Sizes must match exactly and nothing may overlap. Objects that are not tensors are always looked into,
    since a loader unpickles them without a guard; tensors only when deep. Raises only OutOfTime.
    """
    name = name or os.path.basename(path)
    look = look or Look()
    ordered = sorted(segments, key=lambda s: (s.offset, s.length))
    size = 0
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check_extents(ordered, size)
            for segment in ordered:
                look.tick()
                if segment.plain and segment.length and (look.deep or not segment.is_tensor):
                    _check_segment(file, segment, look)
    except OSError as exc:
        return FileReport(name, "distcp", "unknown", f"{name}: cannot be read: {exc.strerror or exc}")
    except HostilePickle as exc:
        return FileReport(name, "distcp", "hostile", f"{name}: {exc}; nothing of it was run", "", size)
    except (Torn, TornZip, TornPickle) as exc:
        return FileReport(name, "distcp", "torn", f"{name}: {exc} ({size_text(size)} on disk)", "", size)
    return FileReport(name, "distcp", "good", "", "", size)


def _check_extents(ordered: list[Segment], size: int) -> None:
    reached = 0
    for segment in ordered:
        if segment.offset < reached and segment.length:
            raise Torn(f"{segment.name[:80]} overlaps the one before it")
        reached = max(reached, segment.offset + segment.length)
    if reached > size:
        raise Torn(f".metadata names {size_text(reached)}: the write was cut")
    if reached < size:
        raise Torn(f"{size_text(size - reached)} more than .metadata names: from another save")


def _check_segment(file: BinaryIO, segment: Segment, look: Look) -> None:
    file.seek(segment.offset)
    head = file.read(min(4, segment.length))
    if head == archive.LOCAL_MAGIC:
        try:
            verify_zip(file, segment.offset, segment.length, look)
        except (Torn, TornZip) as exc:
            raise Torn(f"{segment.name[:80]}: {exc}") from exc
    elif segment.is_tensor or not head.strip(b"\0"):
        raise Torn(f"{segment.name[:80]}: does not begin with an archive, overwritten or never written")


def checksum(path: str, algorithm: str, tick: Callable[[], object]) -> str:
    """The digest of a whole file in hexadecimal, or "" for an algorithm not known here. Raises OSError."""
    import hashlib

    if algorithm == "crc32":
        crc = 0
        with open(path, "rb") as file:
            while piece := file.read(archive.CHUNK_BYTES):
                tick()
                crc = zlib.crc32(piece, crc)
        return f"{crc:08x}"
    if algorithm not in hashlib.algorithms_guaranteed or algorithm.startswith("shake"):
        return ""
    digest = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while piece := file.read(archive.CHUNK_BYTES):
            tick()
            digest.update(piece)
    return digest.hexdigest()
