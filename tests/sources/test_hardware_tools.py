"""Readers of what smartctl, nvme, mdadm, zpool, ipmitool, dmidecode and lscpu print, in several versions.

The samples are from prometheus-community/smartctl_exporter (testdata: real drives, smartctl 7.2 to 7.4), from
kellyjonbrazil/jc (fixtures of mdadm and zpool), from the sources named beside each text, and recorded
from ipmitool 1.8.19 against OpenIPMI's ipmi_sim and from util-linux 2.38. Serial numbers, ids and
names were changed.
"""

from __future__ import annotations

import contextlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import Unparsable
from clustertools.sources.tools import (
    dmidecode_memory,
    ipmitool_chassis,
    ipmitool_sdr,
    ipmitool_sel,
    lscpu,
    mdadm,
    nvme_smart_log,
    readers,
    smartctl,
    zpool_status,
)
from clustertools.sources.tools.json_object import number
from tests.lab.parts import bmc, processors
from tests.tools import sample

OURS = (
    dmidecode_memory, ipmitool_chassis, ipmitool_sdr, ipmitool_sel, lscpu, mdadm, nvme_smart_log, smartctl,
    zpool_status,
)  # fmt: skip


# ------------------------------------------------------------------ smartctl and nvme


def test_an_nvme_drive():
    told = smartctl.read(sample("smartctl/7.3-nvme.json"))
    assert told["model"] == "SAMSUNG MZQL23T8HCLS-00A07"
    assert (told["passed"], told["warnings"], told["media_errors"]) == (True, [], 0)
    assert (told["used_ratio"], told["spare_ratio"], told["spare_threshold_ratio"]) == (0.03, 1.0, 0.1)
    assert told["written_bytes"] == 639454618 * 512000
    assert "problem" not in told


def test_a_drive_whose_capacitors_failed():
    told = smartctl.read(sample("smartctl/nvme-backup-failed.json"))
    assert (told["passed"], told["critical_warning"], told["warnings"]) == (False, 16, ["backup_failed"])


def test_an_ata_drive():
    told = smartctl.read(sample("smartctl/ata.json"))
    assert (told["protocol"], told["passed"]) == ("ATA", True)
    assert {"reallocated_sectors", "pending_sectors", "uncorrectable_sectors"} <= told.keys()
    assert told["failed_attributes"] == []
    data = json.loads(sample("smartctl/ata.json"))
    data["ata_smart_attributes"]["table"][0]["when_failed"] = "now"
    assert smartctl.read(json.dumps(data))["failed_attributes"] == ["Reallocated_Sector_Ct"]


def test_a_sas_drive():
    told = smartctl.read(sample("smartctl/7.4-scsi.json"))
    assert (told["protocol"], told["grown_defects"], told["media_errors"]) == ("SCSI", 260, 536)


def test_a_drive_that_may_not_be_opened():
    # smartctl 7.3 without root
    text = """{"json_format_version": [1, 0], "smartctl": {"version": [7, 3], "exit_status": 2, "messages": [
      {"string": "Smartctl open device: /dev/sda failed: Permission denied", "severity": "error"}]}}"""
    assert smartctl.read(text)["problem"] == "Smartctl open device: /dev/sda failed: Permission denied"


NVME_1 = sample("nvme-smart-log/1.json")
NVME_2 = sample("nvme-smart-log/2-h.json")


def test_nvme_smart_log():
    told = nvme_smart_log.read(NVME_1)
    assert (told["temperature_celsius"], told["used_ratio"], told["warnings"]) == (36, 0.02, [])
    told = nvme_smart_log.read(NVME_2)
    assert (told["warnings"], told["media_errors"]) == (["read_only"], 2**128 - 1)
    with pytest.raises(Unparsable):
        nvme_smart_log.read(NVME_1.replace(": 0,", ": null,", 1))


def test_a_number_is_not_a_word():
    data = {"a": True, "b": "12", "c": "1.5", "d": "x", "e": float("inf"), "f": None}
    assert [number(data, key) for key in "abcdefg"] == [None, 12, 1.5, None, None, None, None]


# ------------------------------------------------------------------ RAID and ZFS

MDSTAT = sample("mdadm/mdstat.txt")


def test_mdstat():
    degraded, pending, container, broken = mdadm.read(MDSTAT)["arrays"]
    assert (degraded["devices"], degraded["working"], degraded["level"]) == (2, 1, "raid10")
    assert (degraded["action"], round(degraded["action_done_ratio"], 3)) == ("recovery", 0.052)
    assert (pending["level"], pending["action"]) == ("raid1", "resync pending")
    assert [m["name"] for m in pending["members"] if m["failed"]] == ["sdb"]
    assert (container["active"], container["metadata"], container["level"]) == (False, "external:imsm", "")
    assert (broken["broken"], broken["active"], "devices" in broken) == (True, False, False)
    assert mdadm.mdstat("Personalities : \nunused devices: <none>\n") == []


@pytest.mark.parametrize("line", ["md0 : somehow raid1 sda[0]", "md0 : active raid1 sda", "what is this"])
def test_mdstat_of_another_form(line):
    with pytest.raises(Unparsable):
        mdadm.read(f"Personalities : [raid1]\n{line}\n")


@pytest.mark.parametrize(
    ("name", "state", "wanted", "working", "bad"),
    [
        ("raid1-faulty-and-removed", ["clean", "degraded"], 2, 1, [""]),
        ("raid1-syncing", ["clean", "resyncing"], 2, 2, []),
        ("raid1-failed-and-flags", ["clean"], 2, 2, ["vda4"]),
        ("raid5-ok", ["clean"], 3, 3, []),
    ],
)
def test_mdadm_detail(name, state, wanted, working, bad):
    array = mdadm.read(sample(f"mdadm/{name}.txt"))["arrays"][0]
    assert (array["state"], array["devices"], array["working"]) == (state, wanted, working)
    assert [m["name"] for m in array["members"] if m["failed"] or m["removed"]] == bad
    if "syncing" in name:
        assert (array["action"], array["action_done_ratio"]) == ("resync", 0.04)


def test_a_container_of_mdadm():
    assert mdadm.read(sample("mdadm/container1-root.txt"))["arrays"][0]["level"] == "container"


def test_zpools():
    [pool] = zpool_status.read(sample("zpool-status/spares.txt"))["pools"]
    assert (pool["state"], len(pool["devices"]), pool["has_data_errors"]) == ("ONLINE", 13, False)
    assert pool["devices"][-1] == {
        "name": "sdf", "state": "AVAIL", "read_errors": 0, "write_errors": 0, "checksum_errors": 0,
        "note": "",
    }  # fmt: skip
    assert [p["name"] for p in zpool_status.read(sample("zpool-status/v.txt"))["pools"]] == [
        "zhgstera6", "zint500", "zsam53",
    ]  # fmt: skip
    [pool] = zpool_status.read(sample("zpool-status/v2.txt"))["pools"]
    assert (pool["state"], pool["devices"][-1]["note"]) == ("DEGRADED", "cannot open")
    assert pool["status"].endswith("continue functioning in a degraded state.")
    [pool] = zpool_status.read(sample("zpool-status/v3.txt"))["pools"]
    assert (pool["state"], pool["has_data_errors"], pool["devices"][-1]["read_errors"]) == (
        "UNAVAIL",
        True,
        4,
    )
    assert zpool_status.read("no pools available\n") == {"pools": []}


def test_zpools_as_json():
    # in the form of zpool-status(8) of OpenZFS 2.3
    device = {"name": "sdb", "vdev_type": "disk", "state": "FAULTED", "read_errors": "1.2K",
              "write_errors": "0", "checksum_errors": "3"}  # fmt: skip
    mirror = {"name": "mirror-0", "state": "DEGRADED", "read_errors": "0", "vdevs": {"sdb": device}}
    root = {"name": "tank", "vdev_type": "root", "state": "DEGRADED", "vdevs": {"mirror-0": mirror}}
    pool = {"name": "tank", "state": "DEGRADED", "error_count": "4", "vdevs": {"tank": root}}
    text = json.dumps({"output_version": {"command": "zpool status"}, "pools": {"tank": pool}})
    assert zpool_status.recognise(text)
    [told] = zpool_status.read(text)["pools"]
    assert (told["state"], told["has_data_errors"]) == ("DEGRADED", True)
    assert [(d["name"], d["read_errors"], d["checksum_errors"]) for d in told["devices"]] == [
        ("mirror-0", 0, 0), ("sdb", 1200, 3),
    ]  # fmt: skip


# ------------------------------------------------------------------ the BMC

SEL = sample("ipmitool-sel/several-makers.txt")


def test_the_event_log():
    lost, corrected, uncorrectable, early, redundant, panic, hot, back = ipmitool_sel.read(SEL)["events"]
    assert (lost["time"], lost["sensor"], lost["asserted"]) == (1686736877.0, "Power Supply PS2 Status", True)
    assert (corrected["record"], corrected["time"]) == ("3a", 1671059384.0)
    assert uncorrectable["time"] == 1740502209.0
    assert uncorrectable["event"] == "Uncorrectable ECC (UnCorrectable ECC | DIMMD7)"
    assert "time" not in early
    assert (redundant["event"], "asserted" in redundant) == ("Fully Redundant", False)
    assert panic["event"] == "Linux kernel panic: Fatal excep"
    assert hot["detail"] == "Reading 75 > Threshold 70 degrees C"
    assert back["asserted"] is False
    assert ipmitool_sel.read("SEL has no entries\n") == {"events": []}


def test_the_event_log_as_csv():
    first, second = ipmitool_sel.read(sample("ipmitool-sel/csv-1.8.19.txt"))["events"]
    assert (first["sensor"], first["event"]) == ("Power Supply #0xc8", "Power Supply AC lost")
    assert (second["sensor"], second["time"]) == ("Drive Slot / Bay #0x42", 1631016755.0)


@pytest.mark.parametrize("line", ["hello", "1 | 06/14/2023 | 10:01:17", "zz | 06/14/2023 | 10:01:17 | a | b"])
def test_an_event_log_of_another_form(line):
    with pytest.raises(Unparsable):
        ipmitool_sel.read(f"{line}\n")


def test_a_date_that_no_calendar_has_is_no_time():
    [event] = ipmitool_sel.read("1 | 31/31/2023 | 10:01:17 | Fan F1 | Failure | Asserted\n")["events"]
    assert "time" not in event


SDR_ELIST = sample("ipmitool-sdr/elist.txt")


def test_sensors():
    told = {s["name"]: s for s in ipmitool_sdr.read(SDR_ELIST)["sensors"]}
    assert told["Inlet Temp 2"] == {
        "name": "Inlet Temp 2", "state": "ucr", "entity": "7.1", "value": 75.0, "unit": "celsius",
        "events": [],
    }  # fmt: skip
    assert told["Status"]["events"] == ["Presence detected", "Power Supply AC lost"]
    assert (told["Power Supply 1"]["value"], told["Power Supply 1"]["events"]) == (
        50.0,
        ["Presence detected"],
    )
    assert told["PS Redundancy"]["events"] == told["PSU2_STATUS"]["events"] == []


@pytest.mark.parametrize(
    ("line", "state", "value"),
    [
        ("Inlet Temp       | 24 degrees C      | ok", "ok", 24.0),
        ("Inlet Temp,75,degrees C,ucr", "ucr", 75.0),
        ("Inlet Temp       | 75.000     | degrees C  | cr    | na | na | na | 60.000 | 70.000 | 80.000", "cr", 75.0),  # noqa: E501
        ("Inlet Temp,75.000,degrees C,cr,na,na,na,60.000,70.000,80.000", "cr", 75.0),
        ("PS1 Status       | 0x1        | discrete   | 0x0100| na | na | na | na | na | na", "", None),
        ("Fan 9            | na         | RPM        | na    | na | na | na | na | na | na", "na", None),
    ],
)  # fmt: skip
def test_sensors_in_other_forms(line, state, value):
    assert ipmitool_sdr.recognise(line)
    [told] = ipmitool_sdr.read(line)["sensors"]
    assert (told.get("state", ""), told.get("value")) == (state, value)


def test_the_chassis():
    told = ipmitool_chassis.read(bmc.LAMPS)
    assert told.pop("power") == "on"
    assert not any(told.values())
    assert ipmitool_chassis.read(bmc.LAMPS.replace("Fault          : false", "Fault : true"))["drive_fault"]


# ------------------------------------------------------------------ processors and modules

OLD_DMIDECODE = sample("dmidecode-memory/2.12.txt")


def test_memory_modules():
    told = dmidecode_memory.read(processors.dimms(4, odd={1: (0, 0), 2: (32, 4000)}))
    assert (told["sockets"], [m["size_bytes"] >> 30 for m in told["modules"]]) == (4, [64, 32, 64])
    assert told["modules"][1]["configured_transfers_per_second"] == 4_000_000_000
    told = dmidecode_memory.read(OLD_DMIDECODE)
    assert told == {
        "sockets": 2,
        "modules": [
            {"place": "DIMM_A1", "size_bytes": 16 << 30, "type": "DDR3",
             "speed_transfers_per_second": 1_866_000_000, "configured_transfers_per_second": 1_333_000_000}
        ],
    }  # fmt: skip
    with pytest.raises(Unparsable):
        dmidecode_memory.read(OLD_DMIDECODE.replace("16384 MB", "plenty"))
    with pytest.raises(Unparsable):
        dmidecode_memory.read("# dmidecode 3.3\n/dev/mem: Permission denied\n")


@pytest.mark.parametrize("name", ["lscpu/2.38.json", "lscpu/2.38.txt"])
def test_lscpu(name):
    told = lscpu.read(sample(name))
    assert told == {
        "architecture": "x86_64", "cpus": 2, "online": [0, 1], "vendor": "AuthenticAMD", "model": "AMD EPYC",
        "threads_per_core": 1, "cores_per_socket": 2, "sockets": 1, "hypervisor": "KVM", "numa_nodes": 1,
    }  # fmt: skip


def test_lscpu_with_children_and_without_sockets():
    # newer util-linux nests; an ARM virtual machine does not know its sockets
    inner = [{"field": "Socket(s):", "data": "-"}, {"field": "Core(s) per cluster:", "data": "4"}]
    rows = [
        {
            "field": "CPU(s):",
            "data": "4",
            "children": [{"field": "Vendor ID:", "data": None, "children": inner}],
        }
    ]
    assert lscpu.read(json.dumps({"lscpu": rows})) == {"cpus": 4, "cores_per_socket": 4}


def test_lists_of_cpus():
    assert lscpu.cpu_list("0-3,8\n") == [0, 1, 2, 3, 8]
    for text in ("", "a", "1-", "0-999999", "3--4"):
        with pytest.raises(Unparsable):
            lscpu.cpu_list(text)


# ------------------------------------------------------------------ all of them

EVERY = {
    "dmidecode-memory": [OLD_DMIDECODE, processors.dimms(2)],
    "ipmitool-chassis": [bmc.LAMPS],
    "ipmitool-sdr": [SDR_ELIST],
    "ipmitool-sel": [SEL, "SEL has no entries\n", bmc.OLD_EVENTS],
    "lscpu": [sample("lscpu/2.38.json"), sample("lscpu/2.38.txt")],
    "mdadm": [MDSTAT, sample("mdadm/raid5-ok.txt"), sample("mdadm/container1-root.txt")],
    "nvme-smart-log": [NVME_1, NVME_2],
    "smartctl": [sample(f"smartctl/{n}.json") for n in ("7.3-nvme", "ata", "7.4-scsi", "nvme-backup-failed")],
    "zpool-status": [sample(f"zpool-status/{n}.txt") for n in ("spares", "v", "v2", "v3", "v4")],
}


HOSTILE = st.one_of(
    st.text(max_size=300),
    st.sampled_from([t for texts in EVERY.values() for t in texts]).flatmap(
        lambda text: st.tuples(
            st.integers(0, len(text)),
            st.integers(0, len(text)),
            st.sampled_from(["", "\0", "|", "é\n", "9" * 5000, "{["]),
        ).map(lambda cut: text[: cut[0]] + cut[2] + text[cut[1] :])
    ),
)


@given(HOSTILE)
@settings(max_examples=300, deadline=None)
def test_whatever_comes_is_read_or_unparsable(text):
    for reader in OURS:
        reader.recognise(text)
        with contextlib.suppress(Unparsable):
            assert json.dumps(reader.read(text))


@pytest.mark.parametrize("kind", sorted(EVERY))
def test_a_line_of_two_megabytes_does_not_hang(kind):
    reader = readers()[kind]
    began = time.monotonic()
    for piece in (" ", "| ", "[", "x", "\t0", "(F)", '{"a":', "1,"):
        for text in (piece * (2_000_000 // len(piece)), EVERY[kind][0] + piece * (1_000_000 // len(piece))):
            reader.recognise(text)
            with contextlib.suppress(Unparsable):
                reader.read(text)
    assert time.monotonic() - began < 5
