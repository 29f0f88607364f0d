"""Messages on a terminal."""

from __future__ import annotations

import errno
import io

import pytest

from clustertools.errors import DeliveryFailed
from clustertools.model import Status
from clustertools.sinks.message import Message
from clustertools.sinks.terminal import TerminalSink, render, use_colour

MESSAGE = Message(
    key="XidGpuLost:gpu-017",
    kind="opened",
    status=Status.CRITICAL,
    title="CRITICAL gpu-017 · GPU fell off the bus · 12:02:11",
    lines=("next: drain gpu-017", "look: clustertools show XidGpuLost:gpu-017"),
    evidence=("NVRM: Xid 79",),
    runbook="a long text",
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_block() -> None:
    stream = io.StringIO()
    assert TerminalSink(stream, environ={}).deliver(MESSAGE, "") == ""
    assert stream.getvalue() == (
        "CRITICAL gpu-017 · GPU fell off the bus · 12:02:11\n"
        "  next: drain gpu-017\n"
        "  look: clustertools show XidGpuLost:gpu-017\n"
        "  | NVRM: Xid 79\n"
    )


def test_colour_only_where_it_is_wanted() -> None:
    assert not use_colour(io.StringIO(), {})
    assert use_colour(Terminal(), {"TERM": "xterm"})
    assert not use_colour(Terminal(), {"TERM": "dumb"})
    assert use_colour(io.StringIO(), {"FORCE_COLOR": "1"})
    assert not use_colour(Terminal(), {"NO_COLOR": "1", "FORCE_COLOR": "1"})
    assert use_colour(Terminal(), {"NO_COLOR": ""})
    assert render(MESSAGE, colour=True).startswith("\x1b[1;31mCRITICAL\x1b[0m gpu-017")


def test_an_escape_that_got_this_far_stops_here() -> None:
    hostile = Message("k", "opened", Status.OK, "a\x1b[2Jb", ("c\x1b]0;x\x07d",), ("e\rf",))
    assert render(hostile) == "ab\n  cd\n  | e f\n"


def test_a_stream_that_knows_only_ascii() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    TerminalSink(stream, environ={}).deliver(MESSAGE, "")
    assert raw.getvalue().startswith(b"CRITICAL gpu-017 ? GPU fell off the bus")


def test_a_closed_stream_is_a_permanent_failure() -> None:
    stream = io.StringIO()
    stream.close()
    with pytest.raises(DeliveryFailed) as failure:
        TerminalSink(stream, environ={}).deliver(MESSAGE, "")
    assert failure.value.permanent


def test_a_full_disk_is_not() -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DeliveryFailed) as failure:
        TerminalSink(Full(), environ={}).deliver(MESSAGE, "")
    assert not failure.value.permanent
