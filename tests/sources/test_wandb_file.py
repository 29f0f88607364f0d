"""W&B's own file: written here as its format says, over several blocks, cut, torn, damaged and hostile."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import Unparsable
from clustertools.host import LocalHost
from clustertools.sources.tensorboard import read_events
from clustertools.sources.training_values import Event, Point, to_json
from clustertools.sources.wandb_file import WandbReader
from tests.sources.test_tensorboard_events import message

HEADER = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
BLOCK = 32768


def history(**values: object) -> bytes:
    """A record as wandb 0.19 writes it: nested keys, and values as JSON."""
    items = b""
    for key, value in values.items():
        words = b"".join(message(2, word.encode()) for word in key.split("__"))
        items += message(1, words + message(16, json.dumps(value).encode()))
    return b"\x08\x07" + message(2, items)


def file_of(*records: bytes) -> bytes:
    """The records in blocks: what does not fit into one goes on in the next."""
    data = bytearray(HEADER)
    for record in records:
        rest, first = record, True
        while True:
            left = BLOCK - len(data) % BLOCK
            if left < 7:
                data += bytes(left)
                continue
            piece, rest = rest[: left - 7], rest[left - 7 :]
            kind = {(True, False): 1, (True, True): 2, (False, True): 3, (False, False): 4}[first, bool(rest)]
            data += struct.pack("<IHB", zlib.crc32(bytes([kind]) + piece), len(piece), kind) + piece
            first = False
            if not rest:
                break
    return bytes(data)


SETTINGS = b"\x08\x01" + message(6, b"\x0a\x05other" * 900)
FILE = file_of(
    SETTINGS, *(history(_step=n, train__loss=2.5 - n / 100, _timestamp=1.7e9 + n) for n in range(40)),
    SETTINGS * 11, *(history(_step=n, train__loss="NaN" if n == 45 else 2.0) for n in range(40, 50)),
    history(_step=30, train__loss=2.25), history(_step=31, image={"_type": "image-file"}),
)  # fmt: skip


def read(data: bytes) -> list[Point | Event]:
    return WandbReader().feed(data)


def told(items: list[Point | Event]) -> list[str]:
    return [json.dumps(to_json(i)) for i in items]


def test_the_history_over_several_blocks() -> None:
    assert len(FILE) > 2 * BLOCK
    found = read(FILE)
    assert [i.step for i in found if isinstance(i, Point)] == [*range(50), 30]
    assert found[1].values == {"loss": 2.49}  # type: ignore[union-attr]
    assert found[1].time == 1.7e9 + 1
    assert [i.step for i in found if isinstance(i, Point) and i.non_finite] == [45]
    assert [(i.kind, i.step) for i in found if isinstance(i, Event)] == [("restart_marker", 30)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, len(FILE)), max_size=6))
def test_any_cutting_and_any_restart_give_the_same(cuts: list[int]) -> None:
    reader, found, before = WandbReader(), [], 0
    for cut in [*sorted(cuts), len(FILE)]:
        found += reader.feed(FILE[before:cut])
        reader = WandbReader.from_state(json.loads(json.dumps(reader.state())))
        before = cut
    assert told(found) == told(read(FILE))


def test_damage() -> None:
    with pytest.raises(Unparsable, match="no W&B file"):
        read(b"something else")
    broken = bytearray(file_of(history(_step=1, loss=2.5), history(_step=2, loss=2.5)))
    broken[20] ^= 1
    reader = WandbReader()
    assert [i.step for i in reader.feed(bytes(broken))] == [2]
    assert reader.damaged == 1
    assert read(FILE + bytes(40))[-1].step == 30, "space that was reserved is no chunk"
    with pytest.raises(Unparsable, match="longer than its block"):
        read(HEADER + struct.pack("<IHB", 0, 65535, 1))


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=300))
def test_hostile_records(data: bytes) -> None:
    for record in (data, message(2, data), message(2, message(1, data))):
        read(file_of(record))


def test_through_the_port(tmp_path: Path) -> None:
    path = tmp_path / "run-abc.wandb"
    path.write_bytes(FILE[:20000])
    host = LocalHost("n1")
    first = read_events(host, str(path))
    path.write_bytes(FILE)
    rest = read_events(host, str(path), state=first.state)
    assert told([*first.items, *rest.items]) == told(read(FILE))
