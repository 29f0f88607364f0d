"""chronyc, timedatectl and ntpq. Samples in the forms of their manual pages, hosts replaced."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustertools.errors import Unparsable
from clustertools.sources.tools import chronyc, ntpq, timedatectl

TRACKING = """\
Reference ID    : C6120009 (time1.example.org)
Stratum         : 3
Ref time (UTC)  : Thu Aug 06 06:39:41 2026
System time     : 0.000001592 seconds slow of NTP time
Last offset     : -0.000001617 seconds
Leap status     : Normal
"""
SOURCES = """\
MS Name/IP address         Stratum Poll Reach LastRx Last sample
===============================================================================
^* time1.example.org             2   6   377    23    -12us[  -20us] +/-   15ms
^? 198.18.0.8                    0   8     0     -     +0ns[   +0ns] +/-    0ns
"""
STATUS = """\
               Local time: Thu 2026-08-06 06:40:00 UTC
           Universal time: Thu 2026-08-06 06:40:00 UTC
                 RTC time: Thu 2026-08-06 06:40:00
                Time zone: Etc/UTC (UTC, +0000)
System clock synchronized: no
              NTP service: active
          RTC in local TZ: no
"""
SHOW = "Timezone=Etc/UTC\nLocalRTC=no\nCanNTP=yes\nNTP=yes\nNTPSynchronized=yes\nTimeUSec=Thu 2026-08-06\n"
PEERS = """\
     remote           refid      st t when poll reach   delay   offset  jitter
==============================================================================
*time1.example.o 198.18.0.1       2 u   33   64  377    0.412   -0.031   0.018
 198.18.0.8      .INIT.          16 u    -   64    0    0.000    0.000   0.000
"""
READERS = (chronyc, timedatectl, ntpq)
SAMPLES = {TRACKING: chronyc, SOURCES: chronyc, STATUS: timedatectl, SHOW: timedatectl, PEERS: ntpq}


def test_chronyc():
    told = chronyc.read(TRACKING)
    assert (told["offset_seconds"], told["tracking"]["leap_status"]) == (-0.000001592, "Normal")
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
def test_each_output_has_one_reader(text):
    assert [reader for reader in READERS if reader.recognise(text)] == [SAMPLES[text]]


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
