"""chronyc, timedatectl and ntpq. Samples in the forms of their manual pages, hosts replaced."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustertools.errors import Unparsable
from clustertools.sources.tools import chronyc, ntpq, timedatectl
from tests.tools import sample

TRACKING = sample("chronyc/tracking.txt")
SOURCES = sample("chronyc/sources.txt")
STATUS = sample("timedatectl/252.txt")
SHOW = sample("timedatectl/show.txt")
PEERS = sample("ntpq/4.2.txt")
READERS = (chronyc, timedatectl, ntpq)
SAMPLES = {TRACKING: chronyc, SOURCES: chronyc, STATUS: timedatectl, SHOW: timedatectl, PEERS: ntpq}


def test_chronyc():
    told = chronyc.read(TRACKING)
    tracking = told["tracking"]
    assert (tracking["offset_seconds"], tracking["stratum"], tracking["leap_status"]) == (
        -1.592e-6,
        3,
        "Normal",
    )
    assert tracking["frequency_ppm"] == -12.123
    first, second = chronyc.read(SOURCES)["sources"]
    assert (first["state"], first["reach"], first["poll_seconds"]) == ("selected", 255, 64.0)
    # the number in brackets is the one that was measured
    assert first["offset_seconds"] == pytest.approx(-20e-6)
    assert (second["state"], second["reach"]) == ("unreachable", 0)


def test_timedatectl():
    assert timedatectl.read(STATUS) == {
        "synchronised": False, "ntp": True, "rtc_in_local_time": False, "time_zone": "Etc/UTC",
    }  # fmt: skip
    assert timedatectl.read(SHOW)["synchronised"] is True


def test_ntpq():
    first, second = ntpq.read(PEERS)["peers"]
    assert (first["name"], first["state"], first["offset_seconds"]) == (
        "time1.example.o",
        "selected",
        -0.031e-3,
    )
    assert (second["state"], second["reach"]) == ("rejected", 0)


@pytest.mark.parametrize("text", SAMPLES)
def test_an_unknown_line_is_refused(text):
    with pytest.raises(Unparsable):
        SAMPLES[text].read(text + "what is this?\n")


@given(st.text(), st.sampled_from(sorted(SAMPLES)), st.integers(0, 400))
def test_any_text_is_read_or_refused(text, sample, at):
    for reader in READERS:
        for form in (text, sample[:at] + text, sample[:at] + "\0" + sample[at:]):
            reader.recognise(form)
            with contextlib.suppress(Unparsable):
                reader.read(form)
