"""W&B's own file of a run (`run-*.wandb`): its history, read while it is written, also of an offline run.

After a header of 7 bytes (`:W&B`, 0xBEE1, a version) the file is a series of 32 KiB blocks in LevelDB's log
format: chunks of checksum (CRC-32 of type and data), length (u16), type (1 whole, 2 first, 3 middle, 4 last)
and data (wandb/sdk/internal/datastore.py). A record is a protobuf message (wandb/proto/wandb_internal.proto):
field 2 is a HistoryRecord of items with a key (1) or a nested key (2), and a value as JSON (16). The writer
passes on whole blocks, so new steps come in bursts of 32 KiB.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from clustertools.errors import Unparsable
from clustertools.sources import training_formats as formats
from clustertools.sources.protobuf import fields
from clustertools.sources.training_records import mapping_point
from clustertools.sources.training_values import Event, Line, Point, StepsBack

_BLOCK_BYTES = 32768
_CHUNK = struct.Struct("<IHB")
_HEADER_BYTES = 7
_MAGIC = b":W&B"
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
#: A longer record is a config, a table or a text: no line of numbers.
_RECORD_CAP_BYTES = 1 << 16


class WandbReader:
    """Turns the bytes of a `.wandb` file into points, one for each logged step, however they are cut.

    A chunk that is not whole yet waits for the rest. `damaged` counts chunks that do not agree with their
    checksum. Points have canonical names, as in training_log.
    """

    def __init__(self) -> None:
        self.position = 0
        self.damaged = 0
        self._pending = b""
        self._record: bytes | None = None
        self._memory = formats.Memory()
        self._steps = StepsBack()

    @property
    def pending_bytes(self) -> int:
        """Bytes behind `position` that were read and not used yet."""
        return len(self._pending)

    def feed(self, data: bytes) -> list[Point | Event]:
        """The points of all records that `data` completes. Raises Unparsable when it is no such file."""
        found: list[Point | Event] = []
        buffer, place = self._pending + data, 0
        if self.position == 0 and len(buffer) >= _HEADER_BYTES:
            if not buffer.startswith(_MAGIC):
                raise Unparsable("no W&B file: it does not begin with :W&B", buffer[:8].hex())
            place = _HEADER_BYTES
        elif self.position == 0:
            self._pending = buffer
            return found
        try:
            while (after := self._chunk(buffer, place, found)) is not None:
                place = after
        except Unparsable:
            if not found:
                raise  # else the next call does, after what was found before the damage
        self.position += place
        self._pending = buffer[place:]
        return found

    def _chunk(self, buffer: bytes, place: int, found: list[Point | Event]) -> int | None:
        """The place after the chunk at `place`; None: it is not whole yet."""
        left = _BLOCK_BYTES - (self.position + place) % _BLOCK_BYTES
        if left < _CHUNK.size:
            return int(place + left) if len(buffer) >= place + left else None
        if len(buffer) < place + _CHUNK.size:
            return None
        checksum, length, kind = _CHUNK.unpack_from(buffer, place)
        begin, end = place + _CHUNK.size, place + _CHUNK.size + length
        if kind == 0 and length == 0:
            return None  # space that was reserved before the bytes came
        if end > place + left:
            raise Unparsable(f"byte {self.position + place}: a chunk is longer than its block")
        if len(buffer) < end:
            return None
        data = buffer[begin:end]
        if zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
            self.damaged += 1
            self._record = None
            return int(end)
        if kind in (_WHOLE, _FIRST):
            self._record = b""
        if self._record is not None:
            self._record = (self._record + data)[: _RECORD_CAP_BYTES + 1]
            if kind in (_WHOLE, _LAST):
                self._tell(self._record, self.position + place, found)
                self._record = None
        return int(end)

    def _tell(self, record: bytes, offset: int, found: list[Point | Event]) -> None:
        if len(record) > _RECORD_CAP_BYTES:
            return
        for number, wire, history in fields(record):
            if number != 2 or wire != 2:
                continue
            values = dict(filter(None, (_item(v) for n, w, v in fields(history) if n == 1 and w == 2)))
            point = mapping_point(values, Line("", offset), self._memory)
            if point is None or point.step is None:
                continue
            before = self._steps.previous("", point.step)
            if before is not None:
                text = f"the step went back from {before} to {point.step}"
                found.append(Event("restart_marker", point.step, text, "", point.time, None, offset))
            found.append(point)

    def state(self) -> dict[str, Any]:
        """JSON-ready; `from_state` goes on from it."""
        return {
            "position": self.position,
            "damaged": self.damaged,
            "pending": base64.b64encode(self._pending).decode(),
            "record": None if self._record is None else base64.b64encode(self._record).decode(),
            "seen": list(self._memory.seen),
            "step_key": self._memory.step_key,
            "steps": self._steps.state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> WandbReader:
        """Raises KeyError, TypeError or ValueError on data of another shape."""
        reader = cls()
        reader.position, reader.damaged = int(state["position"]), int(state["damaged"])
        reader._pending = base64.b64decode(state["pending"])
        reader._record = None if state["record"] is None else base64.b64decode(state["record"])
        reader._memory.seen = [str(name) for name in state["seen"]]
        reader._memory.step_key = str(state.get("step_key", ""))
        reader._steps = StepsBack(**state["steps"])
        return reader


def _item(message: bytes) -> tuple[str, Any] | None:
    """(key, value) of a HistoryItem; None when the value is no JSON."""
    keys: list[str] = []
    value: Any = None
    for number, wire, content in fields(message):
        if wire != 2:
            continue
        if number in (1, 2):
            keys.append(content.decode("utf-8", "replace"))
        elif number == 16:
            try:
                value = json.loads(content)
            except (ValueError, RecursionError):
                return None
    return ("/".join(filter(None, keys)), value) if keys else None
