"""The wire format of protobuf messages, as far as logs of training need it: fields by number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def fields(message: bytes) -> Iterator[tuple[int, int, Any]]:
    """(field number, wire type, value) of a protobuf message; ends where it stops making sense."""
    place, end = 0, len(message)
    while place < end:
        key, place = _varint(message, place)
        wire = key & 7
        value: Any
        if wire == 0:
            value, place = _varint(message, place)
        elif wire == 2:
            length, place = _varint(message, place)
            value, place = message[place : place + length], place + length
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, place = message[place : place + size], place + size
        else:
            return
        if place > end:
            return
        yield key >> 3, wire, value


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(message) and shift < 70:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, place
        shift += 7
    return value, len(message) + 1
