"""What monitoring plugins print, well-behaved ones and others."""

from __future__ import annotations

import math
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.sources.plugin_output import LINE_CHARACTERS, LINES, VALUES, read

#: Forms as the Monitoring Plugins' check_* print them, and the example of several lines of the chapter
#: "Nagios Plugin API" of Nagios Core's manual.
DISK = """\
DISK OK - free space: / 3326 MB (56%); | /=2643MB;5948;5958;0;5968
/ 15272 MB (77%);
/boot 68 MB (69%);
/home 69357 MB (27%);
/var/log 819 MB (84%); | /boot=68MB;88;93;0;98
/home=69357MB;253404;253409;0;253414
/var/log=818MB;970;975;0;980
"""
MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "summary", "values"),
    [
        (
            "HTTP OK: HTTP/1.1 200 OK - 20156 bytes in 0.271 second response time |time=0.270634s;;;0.000000 "
            "size=20156B;;;0\n",
            "HTTP OK: HTTP/1.1 200 OK - 20156 bytes in 0.271 second response time",
            {"time_seconds": 0.270634, "size_bytes": 20156},
        ),
        (
            "PING OK - Packet loss = 0%, RTA = 0.80 ms|rta=0.800000ms;100.000000;500.000000;0.000000 "
            "pl=0%;20;60;0",
            "PING OK - Packet loss = 0%, RTA = 0.80 ms",
            {"rta_seconds": 0.0008, "pl_ratio": 0.0},
        ),
        (
            "OK - load average: 0.16, 0.22, 0.25|load1=0.160;15.000;30.000;0; load5=0.220;10.000;25.000;0;",
            "OK - load average: 0.16, 0.22, 0.25",
            {"load1": 0.16, "load5": 0.22},
        ),
        ("x|'a ''b''=c d'=3c;1:;@2:3 'GPU 0 temp'=41", "x", {"a_b_c_d_total": 3, "gpu_0_temp": 41}),
        ("x|a=1us b=2KB c=1.5GB d=1TB e=-3.2 f=1.2e-05s g=3µs", "x",
         {"a_seconds": 1e-6, "b_bytes": 2048, "c_bytes": 1.5 * 2**30, "d_bytes": 2**40, "e": -3.2,
          "f_seconds": 1.2e-05, "g_seconds": 3e-6}),
        ("x|/a-b=1 /a_b=2 A.B=3%", "x", {"a_b": 1, "a_b_2": 2, "a_b_ratio": 0.03}),
    ],
)  # fmt: skip
def test_a_line(text, summary, values):
    told = read(text)
    assert (told.summary, told.lines, told.strange) == (summary, (), 0)
    assert {v.name: v.value for v in told.values} == pytest.approx(values)


def test_several_lines():
    told = read(DISK)
    assert told.summary == "DISK OK - free space: / 3326 MB (56%);"
    assert told.lines == (
        "/ 15272 MB (77%);", "/boot 68 MB (69%);", "/home 69357 MB (27%);", "/var/log 819 MB (84%);"
    )  # fmt: skip
    assert {v.name: v.value for v in told.values} == {
        "root_bytes": 2643 * MIB, "boot_bytes": 68 * MIB, "home_bytes": 69357 * MIB,
        "var_log_bytes": 818 * MIB,
    }  # fmt: skip


@pytest.mark.parametrize(
    "numbers",
    ["a", "a=", "=3", "a=U", "a=1,5s", "a=nan", "a=inf", "a=1e999", "a=5parsec", "'a=3", "a=0x10", "''=3"],
)
def test_a_number_of_an_unknown_form_is_counted(numbers):
    told = read(f"fine|{numbers}\n")
    assert (told.summary, told.values, told.strange) == ("fine", (), 1)


def test_too_many_numbers_and_lines_are_cut():
    told = read(
        "x|" + " ".join(f"a{n}=1" for n in range(VALUES + 7)) + "\n" + "y" * 5000 + "\n" + "z\n" * 9999
    )
    assert (len(told.values), told.strange, len(told.lines)) == (VALUES, 7, LINES)
    assert len(told.lines[0]) == LINE_CHARACTERS


def test_escapes_are_dropped():
    told = read("\x1b[31mred\x1b[0m \x00\u202e<b>|\x1b[1m=3\nlong\x1b]0;title\x07 text\n")
    assert (told.summary, told.lines) == ("red <b>", ("long text",))
    assert [v.name for v in told.values] == ["1m"]


def test_an_empty_answer():
    assert read("").summary == read("\n\n").summary == read("| a=1").summary == ""


ANY = st.one_of(st.text(), st.text(alphabet="'=|;% \n\x001.eEsBkMc-µ/", max_size=400))


@given(ANY)
@settings(max_examples=300, deadline=None)
def test_any_text_is_an_answer(text):
    told = read(text)
    assert "\n" not in told.summary
    assert all(re.fullmatch(r"[a-z0-9_]+", v.name) and math.isfinite(v.value) for v in told.values)
    assert len({v.name for v in told.values}) == len(told.values) <= VALUES


@pytest.mark.parametrize("piece", ["'", "''", "a=1 ", "|", "\n", "'a' ", "=", "' ''", "a='", "1"])
def test_ten_megabytes_are_no_work(piece):
    began = time.monotonic()
    read("x|" + piece * (10_000_000 // len(piece)))
    assert time.monotonic() - began < 1.0
