"""TensorBoard event files (`events.out.tfevents.*`): the scalars of a run, read while it writes them.

    read_events(host, path, after=0)     what came since byte 0; runs this module as a child

A file is a series of TFRecords: length (u64, little endian), masked CRC-32C of the length, payload, masked
CRC-32C of the payload; the payload is an Event message (tensorflow core/util/event.proto and
core/framework/summary.proto, tensorboard/compat/proto). Neither TensorFlow nor protobuf is needed.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clustertools.errors import Unparsable
from clustertools.host import PYTHON, Host
from clustertools.sources.protobuf import fields
from clustertools.sources.training_values import Event, Point, StepsBack, canonical, from_json, to_json

#: A longer record is an image or an embedding: no scalar. It is skipped, its checksum not computed.
_PAYLOAD_CAP_BYTES = 1 << 14
#: No summary is longer; a length beyond it is damage even if its checksum agrees.
_LENGTH_LIMIT_BYTES = 1 << 30
#: Bytes of one call of the child: its answer must stay below what the host port keeps.
READ_CAP_BYTES = 4 << 20
_HEADER = struct.Struct("<QI")
_U32 = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8  # tensorflow core/lib/hash/crc32c.h


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)  # Castagnoli's polynomial, reflected
        table.append(value)
    return tuple(table)


_CRC_TABLE = _crc_table()


def masked_crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, appendix B.4), rotated and shifted as TFRecord stores it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def is_event_file(head: bytes) -> bool:
    """Whether a file that begins so is one: the length of its first record agrees with its checksum."""
    if len(head) < _HEADER.size:
        return False
    length, crc = _HEADER.unpack_from(head)
    return bool(length <= _LENGTH_LIMIT_BYTES and masked_crc32c(head[:8]) == crc)


# "lm loss vs samples", "steps-vs-samples/y=steps,x=samples": Megatron-LM's, whose step is no step
_OTHER_AXIS = re.compile(r"[ -]vs[ -]")


class EventReader:
    """Turns the bytes of an event file into points, one for each tag and step, however they are cut.

    A record that is not whole yet waits for the rest: its writer lives. `damaged` counts records whose
    payload does not agree with its checksum. A point's `values` have canonical names, as in training_log.
    """

    def __init__(self) -> None:
        self.position = 0
        self.damaged = 0
        self._pending = b""
        self._skip_bytes = 0
        self._steps = StepsBack()

    def feed(self, data: bytes) -> list[Point | Event]:
        """The points of all records that `data` completes.

        Raises Unparsable when the length of a record does not agree with its checksum: what follows cannot
        be found. `position` is then the byte of that record.
        """
        found: list[Point | Event] = []
        if self._skip_bytes:
            skipped = min(self._skip_bytes, len(data))
            self._skip_bytes -= skipped
            self.position += skipped
            data = data[skipped:]
        buffer, place = self._pending + data, 0
        try:
            while (after := self._record(buffer, place, found)) is not None:
                self.position += after - place
                place = after
                if place > len(buffer):
                    self._skip_bytes = place - len(buffer)
                    self.position -= self._skip_bytes
                    place = len(buffer)
        except Unparsable:
            if not found:
                raise  # else the next call does, after what was found before the damage
        finally:
            self._pending = buffer[place:]
        return found

    def _record(self, buffer: bytes, place: int, found: list[Point | Event]) -> int | None:
        """The place after the record at `place`, perhaps beyond the buffer; None: it is not whole yet."""
        if len(buffer) - place < _HEADER.size:
            return None
        header = buffer[place : place + _HEADER.size]
        length, crc = _HEADER.unpack(header)
        if masked_crc32c(header[:8]) != crc or length > _LENGTH_LIMIT_BYTES:
            if not any(buffer[place:]):
                return None  # zeros: space that a file system reserved before the bytes came
            raise Unparsable(
                f"byte {self.position} is no TFRecord: the checksum of its length disagrees", header.hex()
            )
        begin, end = place + _HEADER.size, place + _HEADER.size + length
        if length > _PAYLOAD_CAP_BYTES:
            return int(end + 4)
        if len(buffer) < end + 4:
            return None
        payload = buffer[begin:end]
        if masked_crc32c(payload) != _U32.unpack_from(buffer, end)[0]:
            self.damaged += 1
        else:
            self._points(payload, self.position, found)
        return int(end + 4)

    def _points(self, payload: bytes, offset: int, found: list[Point | Event]) -> None:
        wall_time, step, scalars = _decode_event(payload)
        for tag, value in scalars:
            if _OTHER_AXIS.search(tag):
                continue
            before = self._steps.previous(tag, step)
            if before is not None:
                text = f"the step went back from {before} to {step}"
                found.append(Event("restart_marker", step, text, "", wall_time, None, offset))
            found.append(Point(step, wall_time, {canonical(tag): value}, offset_bytes=offset))

    @property
    def pending_bytes(self) -> int:
        """Bytes behind `position` that were read and not used yet."""
        return len(self._pending)

    def state(self) -> dict[str, Any]:
        """JSON-ready; `from_state` goes on from it."""
        return {
            "position": self.position,
            "damaged": self.damaged,
            "pending": base64.b64encode(self._pending).decode(),
            "skip_bytes": self._skip_bytes,
            "steps": self._steps.state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> EventReader:
        """Raises KeyError, TypeError or ValueError on data of another shape."""
        reader = cls()
        reader.position, reader.damaged = int(state["position"]), int(state["damaged"])
        reader._pending = base64.b64decode(state["pending"])
        reader._skip_bytes = int(state["skip_bytes"])
        reader._steps = StepsBack(**state["steps"])
        return reader


def _decode_event(payload: bytes) -> tuple[float | None, int, list[tuple[str, float]]]:
    wall_time, step, scalars = None, 0, []
    for number, wire, value in fields(payload):
        if number == 1 and wire == 1:
            wall_time = struct.unpack("<d", value)[0]
        elif number == 2 and wire == 0:
            step = value - (1 << 64) if value >= 1 << 63 else value
        elif number == 5 and wire == 2:
            scalars += [s for n, w, v in fields(value) if n == 1 and w == 2 and (s := _decode_value(v))]
    if wall_time is not None and not math.isfinite(wall_time):
        wall_time = None
    return wall_time, step, scalars


def _decode_value(message: bytes) -> tuple[str, float] | None:
    """(tag, number) of a Summary.Value: `simple_value`, or a tensor with one number."""
    tag, scalar = "", None
    for number, wire, value in fields(message):
        if number == 1 and wire == 2:
            tag = value.decode("utf-8", "replace")
        elif number == 2 and wire == 5:
            scalar = struct.unpack("<f", value)[0]
        elif number == 8 and wire == 2:
            scalar = _decode_tensor(value)
    return (tag, scalar) if tag and scalar is not None else None


# DataType of tensorflow core/framework/types.proto: float, double, int32, half, int64
_CONTENT = {1: "<f", 2: "<d", 3: "<i", 19: "<e", 9: "<q"}
# float_val and double_val of tensorflow core/framework/tensor.proto
_PACKED = {5: "<f", 6: "<d"}


def _decode_tensor(message: bytes) -> float | None:
    """The number of a TensorProto that has just one; None for texts, histograms and the like."""
    kind, found = 0, None
    for number, wire, value in fields(message):
        if number == 1 and wire == 0:
            kind = value
        elif number == 4 and wire == 2 and kind in _CONTENT and len(value) == struct.calcsize(_CONTENT[kind]):
            found = struct.unpack(_CONTENT[kind], value)[0]
        elif number in _PACKED and wire in (1, 2, 5) and len(value) == struct.calcsize(_PACKED[number]):
            found = struct.unpack(_PACKED[number], value)[0]
        elif number in (7, 10) and wire == 0 and kind in (3, 9):
            found = value - (1 << 64) if value >= 1 << 63 else value
    return float(found) if found is not None else None


@dataclass(frozen=True, slots=True)
class Events:
    """What `read_events` found: hand `state` to the next call."""

    items: tuple[Point | Event, ...]
    state: Mapping[str, Any]
    size_bytes: int
    damaged: int

    @property
    def behind_bytes(self) -> int:
        """Bytes of the file that were not looked at yet."""
        return max(0, self.size_bytes - int(self.state["position"]))


def read_events(
    host: Host, path: str, after: int = 0, *, state: Mapping[str, Any] | None = None,
    timeout_seconds: float = 20.0,
) -> Events:  # fmt: skip
    """The records of an event file after byte `after` (a record's beginning), or after an earlier `state`; of
    a `.wandb` file as well.

    The file is binary, so a child reads it. Raises Unparsable for a damaged file, Unobservable otherwise.
    """
    stored = json.dumps(state) if state else ""
    done = host.run(
        PYTHON, "-m", "clustertools.sources.tensorboard", path, "--after", str(after), "--json",
        *(["--state-from-stdin"] if stored else []),
        timeout_seconds=timeout_seconds, stdin=stored,
    ).check()  # fmt: skip
    try:
        data = json.loads(done.stdout)
        if "error" in data:
            raise Unparsable(f"{path}: {data['error']}")
        items = tuple(from_json(item) for item in data["items"])
        return Events(items, data["state"], int(data["size_bytes"]), int(data["state"]["damaged"]))
    except (ValueError, KeyError, TypeError) as exc:
        raise Unparsable("the reader of event files answered nonsense", done.stdout[:160]) from exc


# events.out.tfevents.1700000000.host.4711.0
_STARTED = re.compile(r"\.tfevents\.(\d{1,15})\.")


def event_files(host: Host, folder: str) -> list[str]:
    """The event files of `folder`, oldest first by the time in their names: every restart adds one."""

    def started(path: str) -> tuple[int, str]:
        match = _STARTED.search(os.path.basename(path))
        return (int(match[1]) if match else 0, path)

    return sorted(host.glob(f"{folder.rstrip('/')}/*tfevents*"), key=started)


def main(arguments: list[str] | None = None) -> int:
    """Read one file and print one JSON object, or a line for each record."""
    import sys

    from clustertools.sources.wandb_file import WandbReader

    parser = argparse.ArgumentParser(prog="python -m clustertools.sources.tensorboard", description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--after", type=int, default=0, help="byte at which a record begins")
    parser.add_argument("--json", action="store_true", help="one JSON object with items, state and size")
    parser.add_argument(
        "--state-from-stdin", action="store_true", help="go on from the state of an earlier run"
    )
    options = parser.parse_args(arguments)
    kind = WandbReader if options.file.endswith(".wandb") else EventReader
    reader = kind()
    reader.position = options.after
    if options.state_from_stdin:
        reader = kind.from_state(json.load(sys.stdin))
    # bytes of a record that is not whole are kept in the state, behind `position`
    with open(options.file, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(reader.position + reader.pending_bytes)
        data = file.read(READ_CAP_BYTES)
    answer: dict[str, Any] = {"size_bytes": size}
    try:
        answer["items"] = [to_json(item) for item in reader.feed(data)]
    except Unparsable as exc:
        answer["error"] = str(exc)
    answer["state"] = reader.state()
    if options.json:
        print(json.dumps(answer))
    else:
        for item in answer.get("items", ()):
            print(json.dumps(item))
        print(answer.get("error", f"read up to byte {reader.position} of {size}"), file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
