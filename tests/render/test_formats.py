"""Verdicts in the forms that people, Nagios, node-problem-detector and JUnit readers expect."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.model import Finding, Reading, Remedy, Status, Subject, Verdict, from_data
from clustertools.render import formats

NODE = Subject(node="gpu-017")
GPU = Subject(node="gpu-017", part="gpu@0000:3b:00.0")


def finding(status: Status = Status.CRITICAL, summary: str = "3 uncorrectable errors (limit 0)") -> Finding:
    return Finding(
        "gpu_ecc", "EccUncorrected", GPU, status, summary, evidence=("volatile: 3",), remedy=Remedy.RESET_GPU
    )


def verdict(check: str, status: Status, **more) -> Verdict:
    return Verdict(check, more.pop("subject", NODE), status, time=1_700_000_000.0, **more)


BAD = verdict(
    "gpu_ecc", Status.CRITICAL, findings=(finding(),), readings=(Reading(GPU, "ecc_errors_total", 3, 0),)
)
BLIND = verdict("gpu_xid", Status.UNKNOWN, blind="/dev/kmsg: Operation not permitted")
GOOD = verdict("host_memory", Status.OK, readings=(Reading(NODE, "available_bytes", 24833277952.0, 0),))
SKIPPED = [
    verdict(n, Status.SKIPPED, detail="no NVIDIA device on the PCI bus") for n in ("gpu_count", "gpu_fan")
]
OTHER_SKIP = verdict("ib_link", Status.SKIPPED, detail="no InfiniBand port")


def test_text_has_a_line_for_each_check_and_the_worst_status_last():
    lines = formats.text([GOOD, BAD, BLIND]).splitlines()
    assert lines[0] == "OK        host_memory"
    assert lines[1] == "CRITICAL  gpu_ecc      gpu@0000:3b:00.0: 3 uncorrectable errors (limit 0)"
    assert lines[2] == "    EccUncorrected  remedy: reset-gpu"
    assert lines[3] == "      | volatile: 3"
    assert lines[4] == "UNKNOWN   gpu_xid      could not look: /dev/kmsg: Operation not permitted"
    assert lines[-1] == "CRITICAL: gpu-017: 1 critical, 1 unknown, 1 ok"


def test_text_shows_every_finding_of_a_check():
    two = verdict("gpu_ecc", Status.CRITICAL, findings=(finding(), finding(Status.WARNING, "slow")))
    lines = formats.text([two]).splitlines()
    assert lines[0] == "CRITICAL  gpu_ecc  2 findings"
    assert lines[1].startswith("    EccUncorrected  gpu@0000:3b:00.0: 3 uncorrectable")
    assert lines[3].startswith("    WARNING EccUncorrected  gpu@0000:3b:00.0: slow")


def test_text_shows_findings_beside_blindness():
    half = verdict(
        "gpu_ecc", Status.UNKNOWN, findings=(finding(Status.WARNING),), blind="GPU 3 did not answer"
    )
    said = formats.text([half])
    assert "could not look: GPU 3 did not answer" in said
    assert "3 uncorrectable errors" in said
    critical = verdict("gpu_ecc", Status.CRITICAL, findings=(finding(),), blind="GPU 3 did not answer")
    assert "not everything could be seen: GPU 3 did not answer" in formats.text([critical])


def test_text_folds_skipped_checks_by_their_reason():
    said = formats.text([GOOD, *SKIPPED, OTHER_SKIP]).splitlines()
    assert said[1] == (
        "skipped 3: no NVIDIA device on the PCI bus: gpu_count, gpu_fan; no InfiniBand port: ib_link"
    )
    # what does not apply here is not the answer once something did
    assert said[-1] == "OK: gpu-017: 3 skipped, 1 ok"
    assert formats.text(SKIPPED).splitlines()[-1] == "SKIPPED: gpu-017: 2 skipped"


def test_text_quiet_leaves_only_what_is_wrong():
    assert formats.text([GOOD, BLIND, *SKIPPED], quiet=True).splitlines() == [
        "UNKNOWN   gpu_xid      could not look: /dev/kmsg: Operation not permitted",
        "UNKNOWN: gpu-017: 1 unknown, 2 skipped, 1 ok",
    ]


def test_colour_only_when_asked():
    assert "\x1b" not in formats.text([BAD])
    assert "\x1b[1;31mCRITICAL\x1b[0m" in formats.text([BAD], color=True)


def test_terminal_escapes_of_a_log_are_shown_not_sent():
    evil = verdict("gpu_xid", Status.UNKNOWN, blind="line \x1b]0;owned\x07\x9b2J\nnext")
    for form in (formats.text, formats.nagios, formats.npd):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", form([evil]))
    assert "\\x1b]0;owned" in formats.text([evil])


def test_json_is_one_versioned_object_a_line_and_reads_back():
    lines = formats.json_lines([BAD, GOOD]).splitlines()
    data = [json.loads(line) for line in lines]
    assert [(d["schema"], d["kind"], d["status"]) for d in data] == [
        (1, "verdict", "CRITICAL"),
        (1, "verdict", "OK"),
    ]
    assert from_data(Verdict, data[0]) == BAD


def test_nagios_first_line_perfdata_and_long_text():
    lines = formats.nagios([GOOD, BAD, BLIND]).splitlines()
    said, _, performance = lines[0].partition(" | ")
    assert said == ("CRITICAL: gpu_ecc: gpu@0000:3b:00.0: 3 uncorrectable errors (limit 0) (and 1 more)")
    assert performance == "'available_bytes'=24833277952B 'gpu@0000:3b:00.0 ecc_errors_total'=3c"
    assert lines[1].startswith("CRITICAL gpu_ecc EccUncorrected: ")
    assert lines[2].startswith("UNKNOWN gpu_xid: could not look")


def test_nagios_pipes_quotes_and_nan_do_not_break_the_line():
    odd = verdict(
        "x", Status.WARNING, findings=(finding(Status.WARNING, "a | b"),),
        readings=(Reading(Subject(part="p'=|"), "v_ratio", float("nan"), 0), Reading(NODE, "w", 1e-7, 0)),
    )  # fmt: skip
    first = formats.nagios([odd]).splitlines()[0]
    assert first.count("|") == 1
    assert "a / b" in first
    assert first.endswith("'p___ v_ratio'=U 'w'=0.0000001")


def test_nagios_all_fine_and_all_skipped():
    assert formats.nagios([GOOD, *SKIPPED]).startswith("OK: 1 checks fine, 2 skipped | ")
    assert formats.nagios(SKIPPED) == "OK: 0 checks fine, 2 skipped"


def test_nagios_stays_within_what_nagios_reads():
    many = tuple(
        Reading(Subject(part=f"gpu@0000:{i:02x}:00.0"), f"r{j}_total", j, 0)
        for i in range(64)
        for j in range(9)
    )
    huge = verdict("x", Status.CRITICAL, findings=(finding(summary="y" * 5000),) * 20, readings=many)
    out = formats.nagios([huge])
    assert len(out.encode()) <= formats.NAGIOS_OUTPUT_BYTES
    assert out.startswith("CRITICAL: x: gpu@")


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [([GOOD], 0), (SKIPPED, 0), ([BAD], 1), ([BLIND], 3), ([BLIND, BAD], 1), ([], 0)],
)
def test_npd_has_exit_codes_of_its_own(verdicts, code):
    assert formats.exit_code("npd", verdicts) == code


@pytest.mark.parametrize(("verdicts", "code"), [([GOOD], 0), ([BAD], 2), ([BLIND], 3), ([BLIND, BAD], 2)])
def test_other_formats_exit_by_the_worst_status(verdicts, code):
    assert {formats.exit_code(f, verdicts) for f in formats.FORMATS.keys() - {"npd", "nhc"}} == {code}


def test_npd_puts_place_and_number_first():
    assert formats.npd([GOOD, *SKIPPED]) == "OK"
    assert formats.npd([BAD]) == "gpu@0000:3b:00.0: 3 uncorrectable errors (limit 0)"
    assert formats.npd([BLIND]).startswith("gpu_xid could not look: /dev/kmsg")
    said = formats.npd([BAD, BLIND, verdict("z", Status.WARNING, findings=(finding(Status.WARNING),) * 2)])
    assert said.endswith(" (+3)")


def test_nhc_prints_the_first_failure_and_nothing_else():
    assert formats.nhc([GOOD, *SKIPPED]) == ""
    assert formats.nhc([]) == ""
    line = formats.nhc([GOOD, BLIND, BAD])
    # the line of die() in LBNL NHC's driver, which log parsers know
    assert re.fullmatch(r"ERROR:  nhc:  Health check failed:  (\w+):  (.*)", line)
    assert line.endswith("gpu_ecc:  EccUncorrected gpu@0000:3b:00.0: 3 uncorrectable errors (limit 0)")
    assert (
        formats.nhc([BLIND]) == "WARNING:  nhc:  gpu_xid:  could not look: /dev/kmsg: Operation not permitted"
    )
    assert [formats.exit_code("nhc", [v]) for v in (GOOD, BAD, BLIND, SKIPPED[0])] == [0, 1, 0, 0]
    warned = verdict("gpu_ecc", Status.WARNING, findings=(finding(Status.WARNING),))
    assert (formats.nhc([warned]), formats.exit_code("nhc", [warned])) == ("", 0)


def test_junit_counts_and_kinds():
    other = verdict(
        "gpu_ecc", Status.WARNING, findings=(finding(Status.WARNING),), subject=Subject(node="gpu-018")
    )
    root = ElementTree.fromstring(formats.junit([BAD, BLIND, GOOD, *SKIPPED, other]))
    first, second = root.findall("testsuite")
    assert first.attrib["name"] == "gpu-017"
    assert {k: first.attrib[k] for k in ("tests", "failures", "errors", "skipped")} == {
        "tests": "5", "failures": "1", "errors": "1", "skipped": "2",
    }  # fmt: skip
    failure = first.find("testcase[@name='gpu_ecc']/failure")
    assert failure is not None
    assert failure.attrib["type"] == "EccUncorrected"
    assert "volatile: 3" in (failure.text or "")
    assert second.find("testcase/system-out") is not None
    assert second.attrib["failures"] == "0"


texts = st.text(max_size=200) | st.sampled_from(["]]><x/>", "\x1b[0m", "µ" * 90, "a|b", "\x00", "\ud800"])


@settings(max_examples=100)
@given(texts, texts, texts, st.sampled_from(list(Status)), st.floats())
def test_any_text_fits_every_format(summary, part, blind, status, number):
    subject = Subject(node="n", part=part)
    item = Finding("c", "Code", subject, Status.WARNING, summary, evidence=(blind,))
    one = Verdict("c", subject, status, (item,), (Reading(subject, "x_bytes", number, 0),), blind, blind)
    for name, form in formats.FORMATS.items():
        out = form([one])
        if name == "npd":
            assert len(out.encode("utf-8", "replace")) <= formats.NPD_MESSAGE_BYTES
            assert "\n" not in out
        if name == "json":
            assert json.loads(out)["kind"] == "verdict"
            assert "\n" not in out
        if name == "junit":
            ElementTree.fromstring(out.encode("utf-8", "replace"))
        if name == "nagios":
            assert "\x00" not in out


def test_checks_that_say_nothing_or_the_same_are_folded() -> None:
    node = Subject(node="n1")
    fine = [Verdict(f"fine_{n}", node, Status.OK) for n in range(6)]
    told = Verdict("told", node, Status.OK, detail="ignored by policy: 3 events")
    blind = [Verdict(f"blind_{n}", node, Status.UNKNOWN, blind="needs root") for n in range(3)]
    other = Verdict("other", node, Status.UNKNOWN, blind="no answer")
    lines = formats.text([*fine, told, *blind, other]).splitlines()
    assert [line.split(None, 1)[1] for line in lines[:-1]] == [
        "told     ignored by policy: 3 events",
        "blind_0  could not look: needs root (also blind_1, blind_2)",
        "other    could not look: no answer",
        "6 checks: fine_0, fine_1, fine_2, fine_3, fine_4, fine_5",
    ]
    assert lines[-1] == "UNKNOWN: n1: 4 unknown, 7 ok"
    assert len(formats.text([*fine, told, *blind, other], verbose=1).splitlines()) > 11
    assert "6 checks" not in formats.text(fine, quiet=True)
