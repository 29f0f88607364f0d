"""The bytes of a metrics file or a pipe: unpacked, out of UTF-16, with its beginning looked at first."""

from __future__ import annotations

import bz2
import codecs
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from clustertools.errors import Unobservable, Unparsable
from clustertools.sources.tensorboard import is_event_file

#: Bytes that are read at once, and that one step of unpacking may give: a bomb is read like any long file.
BLOCK_BYTES = 1 << 18
#: So much of a file is looked at to recognise it, when it has no line break before.
HEAD_BYTES = 1 << 16

_PACKERS: tuple[tuple[bytes, Callable[[], Any]], ...] = (
    (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
    (b"BZh", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\x00", lzma.LZMADecompressor),
)
#: What begins like this, what it is, and what may be tried.
_UNREADABLE = (
    (b"PAR1", "a Parquet file", "pandas: read_parquet(FILE).to_csv(...)"),
    (b"(\xb5/\xfd", "packed with zstd", "zstd -dc FILE | clustertools metrics scan -"),
    (b"\x04\"M\x18", "packed with lz4", "lz4 -dc FILE | clustertools metrics scan -"),
    (b"PK\x03\x04", "a zip archive", "unzip -p FILE MEMBER | clustertools metrics scan -"),
    (b"SQLite format 3", "an SQLite database", "sqlite3 -csv -header FILE 'select ...'"),
    (b"\x93NUMPY", "a NumPy array", "numpy.savetxt, with a header line step,loss"),
    (b"\x89HDF", "an HDF5 file", "h5dump, or pandas' to_csv"),
    (b"%PDF", "a PDF", "the log it was made of"),
    (b"\x7fELF", "a program", "the log that it writes"),
    (b"ARROW1", "an Arrow file", "pandas' to_csv"),
    (b"\x80", "a pickle", "to write it as JSON Lines: a pickle may run any program and is never opened"),
)  # fmt: skip


class Bytes:
    """What is in a file that may be packed (gzip, bz2, xz) or in UTF-16, in pieces of some 256 KiB.

    Nothing is sought, so a pipe will do. Raises Unparsable for a file that is neither text nor known, and
    Unobservable when reading fails.
    """

    def __init__(self, name: str, file: BinaryIO) -> None:
        self.name = name
        self.bytes_read = 0
        self.notes: list[str] = []
        self._file = file
        self._unpacked: Iterator[bytes] | None = None
        self._decode: codecs.IncrementalDecoder | None = None
        self._head: bytes | None = None
        self._told = False

    def head(self) -> bytes:
        """The first bytes: at least a line, or 64 KiB, or all there is."""
        if self._head is not None:
            return self._head
        head = self._raw()
        while head and len(head) < 16 and (more := self._raw()):
            head += more
        for magic, make in _PACKERS:
            if head.startswith(magic):
                self._unpacked = self._unpack(head, make)
                head = next(self._unpacked, b"")
                break
        if self._decode is not None or _utf16(head):
            self._decode = self._decode or codecs.getincrementaldecoder(_utf16(head) or "utf-16")("replace")
            head = self._decode.decode(head).encode("utf-8", "replace")
        while len(head) < HEAD_BYTES and b"\n" not in head.strip() and (more := self._piece()):
            head += more
        self._refuse(head)
        self._head = head
        return head

    def read(self) -> bytes:
        """The next bytes, the head first; none at the end."""
        if not self._told:
            self._told = True
            return self.head() or self._piece()
        return self._piece()

    def close(self) -> None:
        if self._file is not sys.stdin.buffer:
            self._file.close()

    def _raw(self) -> bytes:
        read = getattr(self._file, "read1", self._file.read)
        try:
            data: bytes = read(BLOCK_BYTES)
        except OSError as exc:
            raise Unobservable(f"{self.name} cannot be read further: {os.strerror(exc.errno or 0)}") from exc
        self.bytes_read += len(data)
        return data

    def _piece(self) -> bytes:
        while True:
            data = next(self._unpacked, b"") if self._unpacked is not None else self._raw()
            if self._decode is None:
                return data
            text = self._decode.decode(data, final=not data)
            if text or not data:
                return text.encode("utf-8", "replace")

    def _unpack(self, packed: bytes, make: Callable[[], Any]) -> Iterator[bytes]:
        """What is packed; of an archive that is damaged or cut off, what comes before."""
        tool = make()
        while True:
            try:
                data = tool.decompress(packed, BLOCK_BYTES)
            except (zlib.error, OSError, lzma.LZMAError, EOFError, ValueError) as exc:
                self.notes.append(f"the packed file is damaged after {self.bytes_read} bytes: {exc}")
                return
            if data:
                yield data
            if tool.eof:
                # several archives one behind the other, as log rotation leaves them
                packed = tool.unused_data.lstrip(b"\0") or self._raw()
                if not packed:
                    return
                tool = make()
                continue
            packed = getattr(tool, "unconsumed_tail", b"")
            if not packed and len(data) < BLOCK_BYTES and getattr(tool, "needs_input", True):
                packed = self._raw()
                if not packed:
                    self.notes.append("the packed file is cut off: its end is missing")
                    return

    def _refuse(self, head: bytes) -> None:
        if binary_kind(head):
            return
        for magic, what, instead in _UNREADABLE:
            if head.startswith(magic):
                raise Unparsable(f"{self.name} is {what}, which is not read here; try {instead}")
        start = head[:4096]
        odd = sum(1 for b in start if b < 32 and b not in b"\t\n\r\x0b\x0c\x1b\x08\x07")
        if odd > len(start) // 20:
            raise Unparsable(
                f"{self.name} is neither text nor a metrics file that is known (TensorBoard events, .wandb, "
                "JSON, CSV, a training log, each also packed with gzip, bz2 or xz); is it the right file?",
                start[:24].hex(),
            )


def binary_kind(head: bytes) -> str:
    """ "tensorboard" or "wandb" by the first bytes, else empty."""
    if head.startswith(b":W&B"):
        return "wandb"
    return "tensorboard" if is_event_file(head) else ""


def _utf16(head: bytes) -> str:
    """The encoding, when the text has two bytes a character; with a byte order mark or without."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    start = head[:512]
    half = len(start) // 2
    if half >= 8 and not is_event_file(head):
        if start[1::2].count(0) > 0.8 * half and start[::2].count(0) < 0.1 * half:
            return "utf-16-le"
        if start[::2].count(0) > 0.8 * half and start[1::2].count(0) < 0.1 * half:
            return "utf-16-be"
    return ""
