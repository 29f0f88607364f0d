"""Drives and arrays: each trouble by itself, what stays quiet, and what cannot be seen."""

from __future__ import annotations

import json

import pytest
from clustertools.checks.disk_hung import disk_hung
from clustertools.checks.disk_smart import disk_smart

from clustertools.errors import Absent, Unobservable
from clustertools.model import Remedy, Status
from tests.checks.altered_node import AlteredNode
from tests.lab.parts import storage

CLASS = "/sys/class/nvme"
SPACES = "/sys/class/nvme/nvme*/nvme*n[0-9]*"


def parts(verdict):
    return {(f.code, f.subject.part, f.status.name) for f in verdict.findings}


def look(run, name, node, **more):
    return run(name, node, expect=node.expect, **more)


# ------------------------------------------------------------------ NVMe


def test_drives_that_died(run):
    node = AlteredNode("h100-drives-failing")
    verdict = look(run, "disk_nvme", node)
    assert parts(verdict) == {
        ("NvmeDead", "nvme@nvme3", "CRITICAL"), ("NvmeDead", "nvme@0000:46:00.0", "CRITICAL"),
        ("NvmeMissing", "nvme", "CRITICAL"),
    }  # fmt: skip
    assert {r.name: r.value for r in verdict.readings} == {"nvme_drives_total": 8}


@pytest.mark.parametrize(("state", "code"), [
    ("live", ""), ("new", ""), ("resetting", "NvmeNotLive"), ("connecting", "NvmeNotLive"),
    ("dead", "NvmeDead"),
    ("?" * 9999, "NvmeNotLive"),
])  # fmt: skip
def test_states(run, state, code):
    node = AlteredNode()
    node.files[f"{CLASS}/nvme0/state"] = f"{state}\n"
    assert look(run, "disk_nvme", node).codes == ({code} if code else set())


def test_drives_over_a_network_are_not_counted(run):
    node = AlteredNode()
    node.files |= {f"{CLASS}/nvme0/transport": "tcp\n", f"{CLASS}/nvme0/state": "connecting\n"}
    node.expect = {"nvme_count": 9}
    assert look(run, "disk_nvme", node).status is Status.OK


def test_a_drive_that_went_away_since_the_last_look(run):
    node = AlteredNode()
    node.expect = {}
    past = look(run, "disk_nvme", node).memory
    node.files[f"{CLASS}/nvme9/transport"] = None  # vanishes between the listing and the look
    gone = look(run, "disk_nvme", node, past=past)
    assert parts(gone) == {("NvmeMissing", "nvme", "WARNING")}
    assert look(run, "disk_nvme", node, past=gone.memory).codes == {"NvmeMissing"}
    node.boot = "another"
    assert look(run, "disk_nvme", node, past=gone.memory).status is Status.OK


def test_more_drives_than_expected_is_a_note(run):
    node = AlteredNode()
    node.expect = {"nvme_count": 9}
    verdict = look(run, "disk_nvme", node)
    assert (verdict.status, "may be old" in verdict.detail) == (Status.OK, True)
    node.expect = {"nvme_count": 10}
    assert look(run, "disk_nvme", node).detail == ""


def test_no_drives_and_none_expected(run):
    node = AlteredNode()
    node.expect = {}
    node.globs |= {f"{CLASS}/nvme[0-9]*/state": [], "/sys/bus/pci/drivers/nvme/[0-9a-f]*:*": []}
    assert look(run, "disk_nvme", node).status is Status.SKIPPED
    node.expect = {"nvme_count": 8}
    assert look(run, "disk_nvme", node).codes == {"NvmeMissing"}


def test_a_drive_without_a_namespace_and_one_with_several_paths(run):
    node = AlteredNode()
    # a namespace with several paths stands as nvme0c0n1 under its controller
    node.globs[SPACES] = [f"{CLASS}/nvme0/nvme0c0n1", *(f"{CLASS}/nvme{n}/nvme{n}n1" for n in range(1, 9))]
    assert parts(look(run, "disk_nvme", node)) == {("NvmeNoNamespace", "nvme@nvme9", "WARNING")}


def test_a_state_that_may_not_be_read(run):
    node = AlteredNode()
    node.files[f"{CLASS}/nvme0/state"] = Unobservable("EIO")
    assert look(run, "disk_nvme", node).status is Status.UNKNOWN


# ------------------------------------------------------------------ RAID


def array(text):
    return f"Personalities : [raid1] [raid6]\n{text}\nunused devices: <none>\n"


@pytest.mark.parametrize(("text", "found"), [
    ("md0 : active raid1 sdb[1] sda[0]\n      9 blocks [2/2] [UU]\n", set()),
    ("md0 : active raid1 sda[0]\n      9 blocks [2/1] [U_]\n", {("MdDegraded", "raid@md0", "WARNING")}),
    ("md0 : active raid6 sda[0]\n      9 blocks level 6 [6/4] [UUUU__]\n",
     {("MdDegraded", "raid@md0", "WARNING")}),
    ("md0 : active raid6 sda[0]\n      9 blocks level 6 [6/3] [UUU___]\n",
     {("MdFailed", "raid@md0", "CRITICAL")}),
    ("md0 : active raid5 sda[0]\n      9 blocks level 5 [3/1] [U__]\n",
     {("MdFailed", "raid@md0", "CRITICAL")}),
    ("md0 : active raid1 sda[0](F)\n      9 blocks [2/0] [__]\n", {("MdFailed", "raid@md0", "CRITICAL")}),
    ("md0 : broken raid0 sda[0](F) sdb[1]\n      9 blocks\n", {("MdFailed", "raid@md0", "CRITICAL")}),
    ("md0 : inactive sda[0]\n      9 blocks super 1.2\n", {("MdInactive", "raid@md0", "WARNING")}),
    ("md127 : inactive sda[0](S)\n      9 blocks super external:imsm\n", set()),
    ("md0 : active raid1 sdc[2](F) sdb[1] sda[0]\n      9 blocks [2/2] [UU]\n",
     {("MdDegraded", "raid@md0", "WARNING")}),
    ("md0 : active raid1 sdc[2](S) sdb[1] sda[0]\n      9 blocks [2/2] [UU]\n", set()),
    ("md0 : active raid1 sdb[1] sda[0]\n      9 blocks [2/2] [UU]\n      [>..]  check =  1.0% (1/9)\n",
     set()),
])  # fmt: skip
def test_arrays(run, text, found):
    node = AlteredNode()
    node.files["/proc/mdstat"] = array(text)
    assert parts(look(run, "disk_raid", node)) == found


def test_a_mirror_that_is_being_rebuilt(run):
    verdict = look(run, "disk_raid", AlteredNode("a100-hardware-worn"))
    assert verdict.findings[0].summary == "1 of 2 devices of md0 (raid1) work; recovery runs"
    assert verdict.findings[0].evidence == ()
    assert look(run, "disk_raid", AlteredNode("h100-drives-failing")).findings[0].evidence == (
        "failed: nvme3n1",
    )
    assert [(r.name, round(r.value, 3)) for r in verdict.readings] == [("raid_rebuild_ratio", 0.052)]


def test_no_arrays_none_seen_or_an_unknown_form(run):
    node = AlteredNode()
    for text, status in (
        (array(""), "SKIPPED"),
        (None, "SKIPPED"),
        (Unobservable("no"), "UNKNOWN"),
        ("md?", "UNKNOWN"),
    ):
        node.files["/proc/mdstat"] = text
        assert look(run, "disk_raid", node).status.name == status


def test_zfs(run):
    verdict = look(run, "disk_zfs", AlteredNode("cpu-pool-gone"))
    assert parts(verdict) == {("ZpoolFailed", "zpool@scratch", "CRITICAL")}
    assert (
        verdict.findings[0].evidence[1]
        == "nvme2n1 FAULTED: 3 read, 1200 write, 0 checksum errors too many errors"
    )
    node = AlteredNode("cpu-healthy")
    fine = storage.ZFS_POOL
    for altered, found in (
        (fine, set()),
        (fine.replace(" state: ONLINE", " state: DEGRADED"), {("ZpoolDegraded", "zpool@scratch", "WARNING")}),
        (fine.replace("nvme3n1  ONLINE ", "nvme3n1  OFFLINE"),
         {("ZpoolDegraded", "zpool@scratch", "WARNING")}),
        (fine.replace("nvme3n1  ONLINE       0", "nvme3n1  FAULTED      9"),
         {("ZpoolDegraded", "zpool@scratch", "WARNING")}),
        (fine.replace("nvme3n1  ONLINE       0     0     0", "nvme3n1  ONLINE       0     0     3"),
         {("ZpoolErrors", "zpool@scratch", "WARNING")}),
        (fine.replace("nvme3n1  ONLINE       0", "nvme3n1  ONLINE       7"),
         {("ZpoolErrors", "zpool@scratch", "WARNING")}),
        (fine.replace("No known data errors", "1 data errors, use '-v' for a list"),
         {("ZpoolErrors", "zpool@scratch", "WARNING")}),
    ):  # fmt: skip
        node.commands["zpool", "status"] = altered
        verdict = look(run, "disk_zfs", node)
        assert parts(verdict) == found
        assert all(len(f.evidence) <= 1 for f in verdict.findings), "a device is named once"
    node.commands["zpool", "status"] = Unobservable("zpool status did not answer within 10 s")
    assert look(run, "disk_zfs", node).status is Status.UNKNOWN
    node.files["/sys/module/zfs/version"] = None
    assert look(run, "disk_zfs", node).status is Status.SKIPPED


# ------------------------------------------------------------------ SMART


def smart(run, node, number=0, past=None, **changes):
    node.commands[storage.asked(number)] = storage.health(number, 8 if changes else 0, **changes)
    return look(run, "disk_smart", node, past=past)


@pytest.mark.parametrize(("changes", "found"), [
    ({"critical_warning": 4}, {("DiskFailing", "disk@nvme0", "CRITICAL")}),
    ({"critical_warning": 8}, {("DiskFailing", "disk@nvme0", "CRITICAL")}),
    ({"critical_warning": 16}, {("DiskFailing", "disk@nvme0", "WARNING")}),
    ({"critical_warning": 2}, {("DiskHot", "disk@nvme0", "WARNING")}),
    ({"critical_warning": 1, "available_spare": 9}, {("DiskWorn", "disk@nvme0", "WARNING")}),
    ({"percentage_used": 89}, set()),
    ({"percentage_used": 90}, {("DiskWorn", "disk@nvme0", "WARNING")}),
    ({"available_spare": 10}, set()),
    ({"critical_warning": 1}, {("DiskWorn", "disk@nvme0", "WARNING")}),  # the bit says it, the number not yet
    ({"available_spare": 9}, {("DiskWorn", "disk@nvme0", "WARNING")}),
    ({"available_spare": 0, "available_spare_threshold": 0, "critical_warning": 2},
     {("DiskHot", "disk@nvme0", "WARNING")}),
    ({"available_spare": 0, "available_spare_threshold": 0}, set()),  # a cloud volume
    ({"media_errors": 12}, set()),  # from long ago, as far as is known
    ({"num_err_log_entries": 99999}, set()),
])  # fmt: skip
def test_nvme_health(run, changes, found):
    verdict = smart(run, AlteredNode(), **changes)
    assert parts(verdict) == found
    assert not verdict.blind


def test_media_errors_that_grow(run):
    node = AlteredNode()
    past = smart(run, node, media_errors=12).memory
    node.time += 86400
    grown = smart(run, node, past=past, media_errors=13)
    assert parts(grown) == {("DiskErrors", "disk@nvme0", "WARNING")}
    assert "1 new media errors" in grown.findings[0].summary
    assert grown.findings[0].remedy is Remedy.REPLACE
    assert smart(run, node, past=grown.memory, media_errors=13).status is Status.OK
    assert smart(run, node, past=grown.memory, media_errors=5).status is Status.OK  # the counter began anew


def ata(**changes):
    told = json.loads(storage.health(0))
    del told["nvme_smart_health_information_log"]
    rows = [{"id": n, "name": f"attribute {n}", "raw": {"value": v}, "when_failed": ""}
            for n, v in ((5, 0), (197, 0), (198, 0))]  # fmt: skip
    return told | {"ata_smart_attributes": {"table": rows}} | changes


def test_a_disk_with_ata(run):
    node = AlteredNode()
    node.commands[storage.asked(0)] = json.dumps(ata())
    verdict = look(run, "disk_smart", node)
    assert (verdict.status, verdict.detail) == (Status.OK, "")
    failed = ata(smart_status={"passed": False})
    failed["ata_smart_attributes"]["table"][0]["when_failed"] = "now"
    failed["ata_smart_attributes"]["table"][1]["raw"]["value"] = 8
    node.commands[storage.asked(0)] = json.dumps(failed)
    verdict = look(run, "disk_smart", node)
    assert parts(verdict) == {
        ("DiskFailing", "disk@nvme0", "CRITICAL"),
        ("DiskErrors", "disk@nvme0", "WARNING"),
    }
    assert "its own health test failed (attribute 5)" in verdict.findings[0].summary


def answered(status, message):
    return json.dumps({"json_format_version": [1, 0],
                       "smartctl": {"exit_status": status, "messages": [{"string": message}]}})  # fmt: skip


def test_a_drive_that_sleeps_and_one_that_may_not_be_opened(run):
    node = AlteredNode()
    node.commands[storage.asked(0)] = answered(2, "Device is in STANDBY mode, exit(2)")
    verdict = look(run, "disk_smart", node)
    assert (verdict.status, verdict.detail) == (Status.OK, "/dev/nvme0 sleeps and was not woken")
    node.commands[storage.asked(0)] = answered(
        2, "Smartctl open device: /dev/nvme0 failed: Permission denied"
    )
    verdict = look(run, "disk_smart", node)
    assert (verdict.status, "Permission denied" in verdict.blind) == (Status.UNKNOWN, True)
    node.commands[storage.asked(0)] = Unobservable("smartctl did not answer within 15 s")
    assert look(run, "disk_smart", node).status is Status.UNKNOWN


def test_a_drive_without_smart(run):
    node = AlteredNode()
    told = json.loads(storage.health(0))
    del told["nvme_smart_health_information_log"], told["smart_status"]
    node.commands[storage.asked(0)] = json.dumps(told)
    verdict = look(run, "disk_smart", node)
    assert (verdict.status, "has no SMART" in verdict.detail) == (Status.OK, True)


@pytest.mark.parametrize(("answer", "status"), [
    (Absent("smartctl is not installed"), "SKIPPED"), (storage.scan([]), "SKIPPED"), ("oops", "UNKNOWN"),
    ('{"devices": [3]}', "UNKNOWN"), ("[" * 100000, "UNKNOWN"),
])  # fmt: skip
def test_no_drives_to_ask(run, answer, status):
    node = AlteredNode()
    node.commands[storage.SCAN] = answer
    assert look(run, "disk_smart", node).status.name == status


def test_limits_of_wear(run):
    limits = disk_smart.limits(worn_ratio=0.02)
    assert run("disk_smart", AlteredNode(), limits=limits).codes == {"DiskWorn"}


# ------------------------------------------------------------------ disks that hang


def stat(done, flying, extra="0 0 0 0 9 0"):
    return f" {done} 0 0 0 5 0 0 0 {flying} 0 0 {extra}\n"


def hang(run, node, done, flying, past=None, seconds=0, disk="nvme0n1"):
    node.time += seconds
    node.files[f"/sys/block/{disk}/stat"] = stat(done, flying)
    return look(run, "disk_hung", node, past=past)


def test_a_disk_that_completes_nothing(run):
    node = AlteredNode()
    first = hang(run, node, 100, 3)
    assert first.status is Status.OK
    assert hang(run, node, 100, 3, first.memory, 59).status is Status.OK
    found = hang(run, node, 100, 4, first.memory, 1)
    assert parts(found) == {("DiskHung", "disk@nvme0n1", "WARNING")}
    assert hang(run, node, 101, 4, found.memory, 60).status is Status.OK
    assert hang(run, node, 100, 0, found.memory, 60).status is Status.OK


def test_a_busy_disk_and_a_short_limit(run):
    node = AlteredNode()
    past = hang(run, node, 100, 30).memory
    assert hang(run, node, 90000, 30, past, 600).status is Status.OK
    node = AlteredNode()
    past = hang(run, node, 100, 30).memory
    node.time += 6
    assert run("disk_hung", node, past=past, limits=disk_hung.limits(silent_seconds=5)).codes == {"DiskHung"}


def test_scsi_disks_off_line(run):
    node = AlteredNode()
    node.globs["/sys/block/*/stat"] = [
        f"/sys/block/{d}/stat" for d in ("sda", "sdb", "dm-0", "loop3", "md0", "nvme0c1n1")
    ]
    node.files |= {"/sys/block/sda/stat": stat(1, 0, ""), "/sys/block/sda/device/state": "offline\n",
                   "/sys/block/sda/size": "1000\n", "/sys/block/sdb/stat": None}  # fmt: skip
    assert parts(look(run, "disk_hung", node)) == {("ScsiDiskOffline", "disk@sda", "WARNING")}
    node.files["/sys/block/sda/size"] = "0\n"  # the BMC's virtual media, empty
    assert look(run, "disk_hung", node).status is Status.OK
    node.files["/sys/block/sda/device/state"] = "running\n"
    assert look(run, "disk_hung", node).status is Status.OK


@pytest.mark.parametrize("text", ["", "1 2 3", "a b c d e f g h i j k", Unobservable("EIO")])
def test_a_disk_whose_counters_are_strange(run, text):
    node = AlteredNode()
    node.files["/sys/block/nvme0n1/stat"] = text
    assert look(run, "disk_hung", node).status is Status.UNKNOWN
