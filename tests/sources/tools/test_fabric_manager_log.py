"""Fabric manager's log as records, events and counts."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustertools.errors import Unparsable
from clustertools.sources.tools import fabric_manager_log as reader
from tests.tools import sample

TEAM = sample("fabric-manager-log/team.txt")


def test_records_and_what_they_say():
    told = reader.read(TEAM)
    first = told["records"][0]
    assert (first["time_seconds"], first["level"], first["thread"]) == (1740491985.0, "info", 1803)
    assert "\nMessage payload details:Team release request" in first["text"]
    assert [(event["kind"], event["code"], event["count"]) for event in told["events"]] == [
        ("non-fatal", 12028, 1), ("fatal", 20034, 1),
    ]  # fmt: skip
    assert told["events"][1]["part"] == "pci@0000:86:00.0"
    assert told["records"][told["events"][1]["last"]]["event"]["code"] == 20034
    assert reader.read(sample("fabric-manager-log/imex-570.txt"))["versions"] == ["570.124.06"]


def test_a_day_that_no_calendar_has():
    (record,) = reader.read("[Feb 31 2025 13:59:45] [INFO] [tid 1] x\n")["records"]
    assert record["time_seconds"] is None


@given(st.text(max_size=200), st.integers(0, 400))
def test_any_text_is_read_or_refused(text, at):
    for form in (text, TEAM[:at] + text, TEAM[:at] + "\0" + TEAM[at:]):
        reader.recognise(form)
        with contextlib.suppress(Unparsable):
            assert json.dumps(reader.read(form))


def test_ten_megabytes_are_answered_at_once():
    began = time.monotonic()
    for text in (
        "[" * 10_000_000,
        TEAM + "x" * 10_000_000,
        "[Feb 25 2025 13:59:45] [INFO] [tid 1] \n" * 100_000,
    ):
        reader.recognise(text)
        with contextlib.suppress(Unparsable):
            reader.read(text)
    assert time.monotonic() - began < 10


def test_another_log_is_not_taken_for_one():
    with pytest.raises(Unparsable):
        reader.read("[2026-11-21 13:30:51] [INFO] step 4\n")
    assert not reader.recognise("[2025-12-12 22:50:06.171] [Server] [debug] [tid 36738] x\n")
