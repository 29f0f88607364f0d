"""TensorBoard event files: written here byte by byte as the format says, whole, cut, torn and damaged."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import Unobservable, Unparsable
from clustertools.host import LocalHost
from clustertools.sources.tensorboard import EventReader, event_files, masked_crc32c, read_events
from clustertools.sources.training_values import Event, Point, to_json


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def message(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def simple(tag: str, value: float) -> bytes:
    return message(1, tag.encode()) + varint(2 << 3 | 5) + struct.pack("<f", value)


def tensor(tag: str, kind: int, content: bytes) -> bytes:
    inside = varint(1 << 3) + varint(kind) + message(2, b"") + content
    return message(1, tag.encode()) + message(8, inside) + message(9, message(1, message(1, b"scalars")))


def record(payload: bytes) -> bytes:
    head = struct.pack("<Q", len(payload))
    parts = head, struct.pack("<I", masked_crc32c(head)), payload, struct.pack("<I", masked_crc32c(payload))
    return b"".join(parts)


def event(step: int, *values: bytes, time: float = 1000.0) -> bytes:
    body = varint(1 << 3 | 1) + struct.pack("<d", time) + varint(2 << 3) + varint(step)
    return record(body + message(5, b"".join(message(1, v) for v in values)))


VERSION = record(varint(1 << 3 | 1) + struct.pack("<d", 1.0) + message(3, b"brain.Event:2"))
FILE = (
    VERSION
    + event(1, simple("train/loss", 2.5), simple("train/grad_norm", 0.5), time=1001.5)
    + event(2, tensor("loss", 1, message(4, struct.pack("<f", 2.25))))
    + event(3, tensor("loss", 2, message(6, struct.pack("<d", 2.125))))
    + event(4, tensor("step_count", 9, varint(10 << 3) + varint(-7)))
    + event(5, simple("loss", float("nan")))
    + event(5, tensor("text", 7, message(8, b"a note")), simple("lr", 1e-4))
    + event(6, b"\x0a\x05image" + message(4, b"\x00" * 40000))
    + event(3, simple("loss", 2.0))
)


def read(data: bytes) -> list[Point | Event]:
    return EventReader().feed(data)


def test_checksum_of_the_standard() -> None:
    # RFC 3720, appendix B.4: 32 bytes of zeros give aa 36 91 8a; masked as TFRecord does
    crc = 0x8A9136AA
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    assert masked_crc32c(b"\x00" * 32) == masked


def test_scalars_of_every_form() -> None:
    found = read(FILE)
    shown = [(p.step, *p.values.items()) for p in found if isinstance(p, Point)]
    assert str(shown) == str(
        [
            (1, ("loss", 2.5)), (1, ("grad_norm", 0.5)), (2, ("loss", 2.25)), (3, ("loss", 2.125)),
            (4, ("step_count", -7.0)), (5, ("loss", float("nan"))),
            (5, ("learning_rate", struct.unpack("<f", struct.pack("<f", 1e-4))[0])), (3, ("loss", 2.0)),
        ]
    )  # fmt: skip
    assert found[0].time == 1001.5
    assert [(e.kind, e.step) for e in found if isinstance(e, Event)] == [("restart_marker", 3)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(FILE)), max_size=10), st.lists(st.booleans(), min_size=11, max_size=11))
def test_any_cutting_and_any_restart_give_the_same(cuts: list[int], restarts: list[bool]) -> None:
    reader, found = EventReader(), []
    cuts = sorted(cuts)
    for begin, end, restart in zip([0, *cuts], [*cuts, len(FILE)], restarts, strict=False):
        found += reader.feed(FILE[begin:end])
        if restart:
            reader = EventReader.from_state(json.loads(json.dumps(reader.state())))
    assert [to_json(p) for p in found] == [to_json(p) for p in read(FILE)]
    assert reader.position == len(FILE)


def test_a_torn_tail_and_reserved_space_are_not_yet() -> None:
    reader = EventReader()
    assert reader.feed(VERSION + event(1, simple("loss", 1.0))[:-1]) == []
    assert reader.position == len(VERSION)
    reader = EventReader()
    assert len(reader.feed(event(1, simple("loss", 1.0)) + b"\x00" * 100)) == 1


def test_damage() -> None:
    good = event(1, simple("loss", 1.0))
    flipped = bytearray(good)
    flipped[20] ^= 1
    reader = EventReader()
    assert [p.step for p in reader.feed(bytes(flipped) + event(2, simple("loss", 1.0)))] == [2]
    assert reader.damaged == 1
    with pytest.raises(Unparsable, match="checksum of its length"):
        read(VERSION + b"\x01" + good)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(record)))
def test_hostile_bytes(data: bytes) -> None:
    reader = EventReader()
    try:
        reader.feed(VERSION + data)
    except Unparsable:
        assert reader.position == len(VERSION)


def test_through_the_port(tmp_path: Path) -> None:
    host, path = LocalHost(), tmp_path / "events.out.tfevents.1700000000.node.1.0"
    half = len(FILE) // 2
    path.write_bytes(FILE[:half])
    first = read_events(host, str(path))
    with path.open("ab") as file:
        file.write(FILE[half:])
    second = read_events(host, str(path), state=first.state)
    assert [to_json(p) for p in first.items + second.items] == [to_json(p) for p in read(FILE)]
    assert (second.size_bytes, second.behind_bytes, second.damaged) == (len(FILE), 0, 0)
    after = read_events(host, str(path), after=len(VERSION))
    assert [to_json(p) for p in after.items] == [to_json(p) for p in read(FILE)]
    with pytest.raises(Unobservable):
        read_events(host, str(tmp_path / "none"))
    path.write_bytes(b"no event file at all")
    with pytest.raises(Unparsable):
        read_events(host, str(path))


def test_files_of_a_run_in_the_order_of_its_starts(tmp_path: Path) -> None:
    names = ["events.out.tfevents.999.b.1.0", "events.out.tfevents.1000.a.1.0"]
    for name in reversed(names):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 1))
    assert [os.path.basename(p) for p in event_files(LocalHost(), str(tmp_path))] == names
