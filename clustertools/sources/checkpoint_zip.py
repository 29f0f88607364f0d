"""Zip archives as PyTorch writes them, read strictly: the archive must fill its bytes exactly.

Python's `zipfile` looks for an end record anywhere in the last 64 KiB and forgives bytes before the archive,
so a torn file whose last tensor happens to hold an archive would pass. Here the end record is the last 22
bytes and the directory lies right before it: no proper prefix of an archive is an archive.
Layout: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.4. PyTorch always writes the zip64 end records.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

LOCAL_MAGIC = b"PK\x03\x04"
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
#: A directory of a million records; more is damage.
_DIRECTORY_CAP_BYTES = 256 << 20
CHUNK_BYTES = 1 << 20


class TornZip(Exception):
    """The archive is cut or damaged; the text says where."""


@dataclass(frozen=True, slots=True)
class Member:
    """One record of the archive. `header_offset` counts from the start of the archive."""

    name: str
    size_bytes: int
    stored_bytes: int
    crc: int
    method: int
    header_offset: int
    name_bytes: int


def _exactly(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise TornZip("the file is shorter than it was a moment ago")
    return data


def read_directory(file: BinaryIO, start: int, size: int) -> list[Member]:
    """The members of the archive that fills bytes `start` to `start + size`. Raises TornZip."""
    if size < _END.size:
        raise TornZip("it is too short to be an archive")
    end_at = size - _END.size
    magic, disk, _, here, total, length, offset, comment = _END.unpack(
        _exactly(file, start + end_at, _END.size)
    )
    if magic != b"PK\x05\x06" or comment or disk:
        raise TornZip("zip central directory missing: the write was cut")
    directory_end = end_at
    if end_at >= _END64_LOCATOR.size + _END64.size:
        locator = _END64_LOCATOR.unpack(
            _exactly(file, start + end_at - _END64_LOCATOR.size, _END64_LOCATOR.size)
        )
        if locator[0] == b"PK\x06\x07":
            directory_end = locator[2]
            if directory_end + _END64.size + _END64_LOCATOR.size != end_at:
                raise TornZip("zip end records do not meet: bytes were lost or added")
            record = _END64.unpack(_exactly(file, start + directory_end, _END64.size))
            if record[0] != b"PK\x06\x06":
                raise TornZip("zip64 end record damaged")
            here, total, length, offset = record[6:]
    if here != total or offset + length != directory_end or length > _DIRECTORY_CAP_BYTES:
        raise TornZip("zip central directory is not where the end record says: bytes were lost or added")
    members = _entries(_exactly(file, start + offset, length), total)
    _check_places(members, offset)
    return members


def _entries(data: bytes, total: int) -> list[Member]:
    members, at = [], 0
    while at < len(data):
        if at + _ENTRY.size > len(data):
            raise TornZip("zip central directory breaks off")
        entry = _ENTRY.unpack_from(data, at)
        if entry[0] != b"PK\x01\x02":
            raise TornZip("zip central directory damaged")
        method, crc, stored, size = entry[4], entry[7], entry[8], entry[9]
        name_bytes, extra_bytes, comment_bytes, offset = entry[10], entry[11], entry[12], entry[16]
        name_at = at + _ENTRY.size
        extra = data[name_at + name_bytes : name_at + name_bytes + extra_bytes]
        size, stored, offset = _zip64(extra, size, stored, offset)
        name = data[name_at : name_at + name_bytes].decode("utf-8", "replace")
        members.append(Member(name, size, stored, crc, method, offset, name_bytes))
        at = name_at + name_bytes + extra_bytes + comment_bytes
    if at != len(data) or len(members) != total:
        raise TornZip(f"zip central directory lists {len(members)} records and claims {total}")
    return members


def _zip64(extra: bytes, size: int, stored: int, offset: int) -> tuple[int, int, int]:
    """Sizes and offset of a member, from the zip64 field where the short ones are full."""
    at, values = 0, b""
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            values = extra[at + 4 : at + 4 + length]
        at += 4 + length
    answer = []
    for short in (size, stored, offset):
        if short == 0xFFFFFFFF:
            if len(values) < 8:
                raise TornZip("zip64 sizes missing from the central directory")
            short, values = struct.unpack("<Q", values[:8])[0], values[8:]
        answer.append(short)
    return answer[0], answer[1], answer[2]


def _check_places(members: list[Member], directory_at: int) -> None:
    """Every record lies before the next one and before the directory."""
    ordered = sorted(members, key=lambda m: m.header_offset)
    for member, following in zip(ordered, [*ordered[1:], None], strict=True):
        limit = following.header_offset if following else directory_at
        if member.header_offset + _LOCAL.size + member.name_bytes + member.stored_bytes > limit:
            raise TornZip(f"record {member.name} overlaps what follows it")


def read_member(
    file: BinaryIO, start: int, member: Member, sink: Callable[[bytes], object] | None = None
) -> None:
    """Read one record in pieces, each to `sink`, and compare its CRC-32. Raises TornZip."""
    header = _LOCAL.unpack(_exactly(file, start + member.header_offset, _LOCAL.size))
    if header[0] != LOCAL_MAGIC or header[9] != member.name_bytes:
        raise TornZip(f"record {member.name}: its header was overwritten or never written")
    file.seek(start + member.header_offset + _LOCAL.size + header[9] + header[10])
    if member.method not in (0, 8):
        raise TornZip(f"record {member.name}: compressed by an unknown method {member.method}")
    inflate = zlib.decompressobj(-15) if member.method == 8 else None
    left, crc, seen, zeros = member.stored_bytes, 0, 0, True
    while left:
        piece = file.read(min(left, CHUNK_BYTES))
        if not piece:
            raise TornZip(f"record {member.name}: the file ends inside it")
        left -= len(piece)
        zeros = zeros and piece.count(0) == len(piece)
        for data in _inflated(inflate, piece) if inflate else (piece,):
            crc, seen = zlib.crc32(data, crc), seen + len(data)
            if seen > member.size_bytes:
                raise TornZip(f"record {member.name}: longer than the central directory says")
            if sink:
                sink(data)
    if crc != member.crc or seen != member.size_bytes:
        how = (
            "all zeros on disk, the blocks were never written" if zeros else "damaged or partly never written"
        )
        raise TornZip(f"record {member.name}: CRC-32 does not match ({how})")


def _inflated(inflate: zlib._Decompress, piece: bytes) -> list[bytes]:
    try:
        pieces = []
        while piece:
            # bounded steps: a few bytes may unpack to gigabytes
            pieces.append(inflate.decompress(piece, CHUNK_BYTES))
            piece = inflate.unconsumed_tail
            if len(pieces) > 2048:
                raise TornZip("a record unpacks to far more than any saved file does")
        return pieces
    except zlib.error as exc:
        raise TornZip(f"compressed data damaged ({exc})") from exc
