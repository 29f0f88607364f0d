"""A kernel log in any of its forms becomes records, events and counts."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import Unparsable
from clustertools.sources.tools import kernel_log, readers

XID = "NVRM: Xid (PCI:0000:5d:00): 79, pid=1234, name=python3, GPU has fallen off the bus."
AT = 1_795_267_851.0  # 2026-11-21 13:30:51 UTC

#: form -> (a line with XID, seconds since 1970, seconds since boot, level)
FORMS = {
    "dmesg": (f"[88120.443901] {XID}", None, 88120.443901, None),
    "dmesg, early": (f"[    5.120077] {XID}", None, 5.120077, None),
    "dmesg, caller": (f"[88120.443901][  T412] {XID}", None, 88120.443901, None),
    "dmesg -T": (f"[Sat Nov 21 13:30:51 2026] {XID}", AT, None, None),
    "dmesg -T, day": (f"[Sat Nov  7 13:30:51 2026] {XID}", AT - 14 * 86400, None, None),
    "dmesg iso": (f"2026-11-21T13:30:51,443901+00:00 {XID}", AT + 0.443901, None, None),
    "dmesg iso, zone": (f"2026-11-21T15:30:51,443901+02:00 {XID}", AT + 0.443901, None, None),
    "dmesg -x": (f"kern  :err   : [88120.443901] {XID}", None, 88120.443901, "err"),
    "dmesg -r": (f"<3>[88120.443901] {XID}", None, 88120.443901, "err"),
    "kmsg": (f"3,911,88120443901,-;{XID}", None, 88120.443901, "err"),
    "kmsg, caller": (f"3,911,88120443901,-,caller=T412;{XID}", None, 88120.443901, "err"),
    "syslog": (f"Nov 21 13:30:51 gpu-017 kernel: [88120.443901] {XID}", None, 88120.443901, None),
    "syslog, day": (f"Nov  7 13:30:51 gpu-017 kernel: {XID}", None, None, None),
    "rsyslog": (f"2026-11-21T13:30:51.443901+00:00 gpu-017 kernel: {XID}", AT + 0.443901, None, None),
    "rsyslog, Z": (f"2026-11-21T13:30:51Z gpu-017 kernel: [88120.4] {XID}", AT, 88120.4, None),
    "journalctl -o short-iso": (f"2026-11-21T13:30:51+0000 gpu-017 kernel: {XID}", AT, None, None),
    "journal": (
        json.dumps(
            {
                "__CURSOR": "s=a;i=1",
                "__REALTIME_TIMESTAMP": str(int(AT * 1e6)),
                "_SOURCE_MONOTONIC_TIMESTAMP": "88120443901",
                "_TRANSPORT": "kernel",
                "PRIORITY": "3",
                "SYSLOG_IDENTIFIER": "kernel",
                "MESSAGE": XID,
            }
        ),
        AT,
        88120.443901,
        "err",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_line_of_each_form(form: str) -> None:
    line, when, boot, level = FORMS[form]
    assert kernel_log.recognise(line)
    told = kernel_log.read(line + "\n")
    (record,) = told["records"]
    assert told["form"] == form.split(",")[0].replace("journalctl -o short-iso", "rsyslog")
    assert (record["time_seconds"], record["since_boot_seconds"], record["level"]) == (when, boot, level)
    assert record["text"] == XID
    assert record["event"]["name"] == "xid 79"
    assert (record["event"]["pid"], record["event"]["process"]) == (1234, "python3")
    assert json.loads(json.dumps(told)) == told


@pytest.mark.parametrize(
    ("text", "event"),
    [
        (
            "NVRM: Xid (PCI:0000:5d:00): 74, NVLink: fatal error detected on link 14(0x0, 0x0, 0x10000, 0x0, "
            "0x0, 0x0, 0x0)",
            {"name": "xid 74", "link": 14},
        ),
        (
            "NVRM: Xid (PCI:0009:01:00): 149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 01 (0x021425c6 0x0 0x0)",
            {"name": "xid 149", "unit": "NETIR_LINK_EVT", "do": "peer", "look_at": "the peer device"},
        ),
        (
            "NVRM: Xid (PCI:0009:01:00): 154, GPU recovery action changed from "
            "0x0 (None) to 0x4 (Drain and Reset)",
            {"name": "xid 154", "recovery_action": "Drain and Reset"},
        ),
        (
            "NVRM: Xid (PCI:0000:0e:00): 13, pid=1, name=x, Graphics SM Warp Exception on (GPC 4, TPC 0, "
            "SM 0): x",
            {"name": "xid 13", "gpc": 4, "tpc": 0},
        ),
        (
            "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 32 LTSSM Fault Up",
            {"name": "sxid 20034", "fatal": True, "link": 32},
        ),
        (
            "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=step_0,mems_allowed=0-1,"
            "task_memcg=/slurm/uid_1000/job_4812/step_0,task=python3,pid=31177,uid=1000",
            {"name": "oom-kill", "what": "python3", "pid": 31177, "job": "4812"},
        ),
        (
            "NVRM: GPU at PCI:0000:3b:00: GPU-00000000-0000-4000-8000-000000000003",
            {"name": "gpu-uuid", "pci": "0000:3b:00.0"},
        ),
    ],
)
def test_what_a_line_says(text: str, event: dict[str, object]) -> None:
    (record,) = kernel_log.read(f"[1.0] {text}\n")["records"]
    assert event.items() <= record["event"].items()


def test_other_programs_of_a_syslog_say_nothing_of_the_kernel() -> None:
    text = f"Nov 21 13:30:51 gpu-017 sshd[411]: {XID}\nNov 21 13:30:52 gpu-017 kernel: {XID}\n"
    first, second = kernel_log.read(text)["records"]
    assert (first["program"], "event" in first) == ("sshd", False)
    assert second["event"]["name"] == "xid 79"


def test_a_storm_is_counted_and_lost_records_are_said() -> None:
    text = "".join(
        f"3,{n if n < 5 else n + 90},{n}000000,-;{XID}\n SUBSYSTEM=pci\n DEVICE=+pci:x\n" for n in range(9)
    )
    told = kernel_log.read(text)
    assert told["events"] == [{"name": "xid 79", "what": "0000:5d:00.0", "count": 9, "first": 0, "last": 8}]
    assert (told["lost_records"], told["other_lines"]) == (90, 0)


def test_a_wrapped_line_continues_the_one_above() -> None:
    told = kernel_log.read(
        f"[1.0] NVRM: The NVIDIA GPU 0000:18:00.0\nNVRM: fallen off the bus\n[2.0] {XID}\n"
    )
    assert len(told["records"]) == 2
    assert told["other_lines"] == 1
    assert told["records"][0]["text"].endswith("\nNVRM: fallen off the bus")
    assert told["records"][0]["event"]["name"] == "xid 79"


def test_nuls_as_a_crash_leaves_them() -> None:
    told = kernel_log.read("\0" * 4000 + f"[1.0] {XID}\0\0\n\0\0\n[2.0] more\r\n")
    assert [record["text"] for record in told["records"]] == [XID, "more"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello\nworld\n",
        "[2026-11-21T13:30:51.123] error: slurmd: x\n",  # Slurm
        "[Nov 21 2026 13:30:51] [ERROR] [tid 123] fabric manager\n",
        "2026-11-21 13:30:51,123 INFO step 4\n",
        '{"step": 4, "loss": 2.1}\n',
        "gpu-017: [1] NCCL INFO x\n",
        "Nov 21 13:30:51 gpu-017 sshd[411]: Accepted\n" * 5,
    ],
)
def test_other_logs_are_not_taken_for_one(text: str) -> None:
    assert not kernel_log.recognise(text)


def test_no_line_of_a_kernel_log_is_unparsable() -> None:
    with pytest.raises(Unparsable):
        kernel_log.read("hello\nworld\n")


def test_it_is_among_the_readers() -> None:
    assert readers()["kernel-log"] is kernel_log


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        f"[1.0] {XID}" + "x" * 10_000_000,
        "[1.0] a\n" + "(" * 10_000_000,
        '{"MESSAGE": "' + "[" * 10_000_000,
        "[1.0] x\n" + "{" * 10_000_000,
        "Nov 21 13:30:51 " + "a" * 10_000_000,
        "[1.0] NVRM: Xid (PCI:" + "0000:" * 2_000_000,
        "[1.0] task_memcg=" + "/job_" * 2_000_000 + " out of memory: Killed process 1 (x)",
        "[1.0] \n" * 100_000,
    ],
    ids=range(8),
)
def test_ten_megabytes_are_answered_at_once(text: str) -> None:
    began = time.monotonic()
    kernel_log.recognise(text)
    with contextlib.suppress(Unparsable):
        assert kernel_log.read(text)["records"]
    assert time.monotonic() - began < 10


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from([line for line, *_ in FORMS.values()]),
            st.text(max_size=60),
            st.tuples(
                st.sampled_from([line for line, *_ in FORMS.values()]),
                st.integers(0, 90),
                st.text(max_size=20),
            ).map(lambda cut: cut[0][: cut[1]] + cut[2]),
        ),
        max_size=12,
    )
)
def test_any_text_is_answered_or_unparsable(lines: list[str]) -> None:
    text = "\n".join(lines)
    assert kernel_log.recognise(text) in (True, False)
    try:
        told = kernel_log.read(text)
    except Unparsable:
        return
    assert json.dumps(told)
    assert len(told["records"]) <= text.count("\n") + 1
