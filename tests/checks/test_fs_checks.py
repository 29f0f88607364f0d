"""Lustre, NFS, FUSE, and the rules for files and mounts of a node class."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import Unobservable, Unparsable
from clustertools.host import Completed
from clustertools.model import Remedy, Status
from clustertools.sources.mountstats import nfs_counts
from tests.checks.altered_node import AlteredNode
from tests.lab.parts import storage

OST = f"/proc/fs/lustre/osc/{storage.LUSTRE}-OST0001-osc-ffff9c0e4d3a2000/state"
HEALTH = "/sys/fs/lustre/health_check"
STATS = "/proc/self/mountstats"


def parts(verdict):
    return {(f.code, f.subject.part, f.status.name) for f in verdict.findings}


# ------------------------------------------------------------------ Lustre


def test_a_server_that_is_away_and_an_assertion(run):
    verdict = run("fs_lustre", "h100-lustre-away")
    assert parts(verdict) == {
        ("LustreUnhealthy", "lustre", "CRITICAL"), ("LustreTargetAway", "lustre@fs1-OST0001", "CRITICAL"),
    }  # fmt: skip
    assert verdict.findings[0].remedy is Remedy.REBOOT_NODE
    assert "is DISCONN for 901 s" in verdict.findings[1].summary
    assert verdict.findings[0].summary.endswith("an assertion failed in it")
    assert verdict.findings[1].since == AlteredNode().time - 901
    assert [r.value for r in verdict.readings] == [0]
    fine = run("fs_lustre", AlteredNode())
    assert ([r.value for r in fine.readings], fine.detail) == ([1], "")


@pytest.mark.parametrize(("state", "ago", "found"), [
    ("FULL", 0, ""), ("IDLE", 9999, ""), ("CONNECTING", 200, "WARNING"), ("DISCONN", 298, "WARNING"),
    ("DISCONN", 299, "CRITICAL"), ("EVICTED", 5, "WARNING"), ("REPLAY_WAIT", 5, "WARNING"),
])  # fmt: skip
def test_states_of_a_target(run, state, ago, found):
    node = AlteredNode()
    node.files[OST] = storage.target(state, int(node.time) - ago)
    assert {f.status.name for f in run("fs_lustre", node).findings} == ({found} if found else set())


def test_the_time_away_begins_after_the_last_good_state(run):
    node = AlteredNode()
    now = int(node.time)
    history = [(now - 9000, "FULL"), (now - 40, "DISCONN"), (now - 20, "CONNECTING"), (now - 10, "DISCONN")]
    told = "".join(f" - [ {at}, {state} ]\n" for at, state in history)
    node.files[OST] = f"current_state: DISCONN\nstate_history:\n{told}"
    finding = run("fs_lustre", node).findings[0]
    assert ("for 40 s" in finding.summary, finding.since) == (True, now - 40)
    node.files[OST] = "current_state: DISCONN\nstate_history:\n"
    assert run("fs_lustre", node).findings[0].summary == "Lustre target fs1-OST0001 is DISCONN"


@pytest.mark.parametrize("text", ["", "FULL", "current_state: ", "current_state: \0\0", Unobservable("EIO")])
def test_a_target_of_another_form(run, text):
    node = AlteredNode()
    node.files[OST] = text
    assert run("fs_lustre", node).status is Status.UNKNOWN


def test_health_and_what_is_not_there(run):
    node = AlteredNode()
    node.files[HEALTH] = "device fs1-OST0001-osc reported unhealthy\nNOT HEALTHY\n"
    finding = run("fs_lustre", node).findings[0]
    assert (finding.remedy, "assertion" in finding.summary) == (Remedy.INSPECT, False)
    node.files |= {HEALTH: None, "/proc/fs/lustre/health_check": None}
    assert run("fs_lustre", node).status is Status.SKIPPED
    node.files["/proc/fs/lustre/health_check"] = "healthy\n"  # before Lustre 2.11
    assert run("fs_lustre", node).status is Status.OK
    node.files[OST] = None  # unmounted in between
    assert run("fs_lustre", node).status is Status.OK


# ------------------------------------------------------------------ NFS


def stats(operations=100, again=0, timeouts=0, sent=100, received=100):
    return (
        "device nas:/export mounted on /home with fstype nfs4 statvers=1.1\n\topts:\trw,vers=4.2\n"
        f"\txprt:\ttcp 940 0 2 0 1 {sent} {received} 0 9 0\n\tper-op statistics\n"
        f"\t        READ: {operations} {operations + again} {timeouts} 9 9 9 {operations * 2} 9 0\n"
    )


def nfs(run, node, past=None, seconds=60, **counts):
    node.time += seconds
    node.files[STATS] = stats(**counts)
    return run("fs_nfs", node, past=past)


def test_what_the_client_counted():
    node = AlteredNode()
    [home] = nfs_counts(node)
    assert (home.point, home.source, home.operations) == ("/home", "198.18.0.9:/export/home", 356405)
    assert (home.sent, home.received, home.retransmissions, home.major_timeouts) == (938505, 938505, 0, 0)
    # UDP and nconnect: two connections of one mount, then RDMA
    node.files[STATS] = stats().replace(
        "\txprt:\ttcp 940 0 2 0 1 100 100 0 9 0\n",
        "\txprt:\tudp 700 1 7 5 0 9\n\txprt:\trdma 0 0 2 0 1 30 20 9 9\n",
    )
    [home] = nfs_counts(node)
    assert (home.sent, home.received) == (37, 25)
    node.files[STATS] = stats().replace("/home", "/my\\040home")
    assert nfs_counts(node)[0].point == "/my home"


@pytest.mark.parametrize(("counts", "codes"), [
    ({"operations": 200, "sent": 200, "received": 200}, set()),
    ({"operations": 200, "again": 4, "sent": 200, "received": 200}, set()),
    ({"operations": 200, "again": 5, "sent": 200, "received": 200}, {"NfsSlow"}),
    ({"operations": 1000, "again": 40, "sent": 900, "received": 900}, set()),
    ({"operations": 101, "timeouts": 1, "sent": 200, "received": 200}, {"NfsSlow"}),
    ({"sent": 103}, {"NfsNotAnswering"}),
    ({}, set()),  # idle
    ({"operations": 3, "sent": 3, "received": 3}, set()),  # mounted anew
])  # fmt: skip
def test_growth(run, counts, codes):
    node = AlteredNode()
    first = nfs(run, node)
    assert (first.status, first.readings) == (Status.OK, ())
    found = nfs(run, node, first.memory, **counts)
    assert (found.codes, found.blind) == (codes, "")


def test_how_long_an_answer_takes_and_how_long_silence_lasts(run):
    node = AlteredNode()
    past = nfs(run, node).memory
    told = nfs(run, node, past, operations=160, sent=160, received=160)
    assert {r.name: r.value for r in told.readings} == {
        "nfs_operations_per_second": 1,
        "nfs_answer_seconds": 0.002,
    }
    node.time = past["counters"]["time"]
    assert nfs(run, node, past, seconds=29, sent=103).codes == set()
    assert nfs(run, node, past, seconds=1, sent=103).codes == {"NfsNotAnswering"}


def test_no_nfs_and_other_forms(run):
    node = AlteredNode()
    node.files[STATS] = "device proc mounted on /proc with fstype proc\n"
    assert run("fs_nfs", node).status is Status.SKIPPED
    for text in (
        stats().replace(" 100 100 0 9 0", " many"),
        stats().replace("READ: 100", "READ: -"),
        Unobservable("no"),
    ):
        node.files[STATS] = text
        assert run("fs_nfs", node).status is Status.UNKNOWN


@given(st.integers(0, 300), st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_torn_counts_are_read_or_unparsable(place, text):
    node = AlteredNode("cpu-healthy")
    whole = stats()
    node.files[STATS] = whole[:place] + text + whole[place:]
    with contextlib.suppress(Unparsable):
        assert all(mount.sent >= 0 for mount in nfs_counts(node))


# ------------------------------------------------------------------ FUSE

FUSE = "/sys/fs/fuse/connections"


@pytest.mark.parametrize(
    ("waiting", "codes"), [("0", set()), ("9", set()), ("10", {"FuseCongested"}), ("x", None)]
)
def test_requests_that_wait(run, waiting, codes):
    node = AlteredNode()
    node.globs[f"{FUSE}/[0-9]*/waiting"] = [f"{FUSE}/46/waiting"]
    node.files |= {f"{FUSE}/46/waiting": f"{waiting}\n", f"{FUSE}/46/congestion_threshold": "10\n"}
    verdict = run("fs_fuse", node)
    if codes is None:
        assert verdict.status is Status.UNKNOWN
    else:
        assert verdict.codes == codes
        assert verdict.readings[0].subject.part == "mount@/home"  # by its device, 0:46
        node.files[f"{FUSE}/46/congestion_threshold"] = "0\n"
        assert run("fs_fuse", node).codes == set()
    node.files[f"{FUSE}/46/waiting"] = Unobservable(f"{FUSE}/46/waiting: Permission denied")
    verdict = run("fs_fuse", node)
    assert (verdict.status, "Permission denied" in verdict.detail) == (Status.OK, True)
    node.files[f"{FUSE}/46/waiting"] = None
    assert run("fs_fuse", node).status is Status.OK


# ------------------------------------------------------------------ files

LINE = "644 root root 1000 1785909000 regular file\t/etc/x\n"
CONF = "/etc/x"


def files(run, rules, stdout=LINE, stderr="", text="a = 1\nb = 2\n"):
    node = AlteredNode()
    node.commands["stat",] = Completed((), 1 if stderr else 0, stdout, stderr)
    node.files[CONF] = text
    return run("host_files", node, expect={"files": rules})


@pytest.mark.parametrize(("rule", "wrong"), [
    ({}, ""), ({"owner": "root", "group": "root", "mode": "0644", "kind": "file"}, ""),
    ({"mode": 0o644}, ""), ({"mode": "0600"}, "mode 0644, not 0600"),
    ({"owner": "slurm"}, "owner root, not slurm"),
    ({"group": "wheel"}, "group root, not wheel"), ({"kind": "folder"}, "a regular file, not a folder"),
    ({"min_size_bytes": 1000, "max_size_bytes": 1000}, ""),
    ({"min_size_bytes": 1001}, "1000 bytes, less than 1001"),
    ({"max_size_bytes": 999}, "1000 bytes, more than 999"), ({"max_age_seconds": 91000}, ""),
    ({"max_age_seconds": 90000}, "not changed for 25.3 h (limit 25.0 h)"), ({"contains": "^b = [0-9]$"}, ""),
    ({"contains": "c"}, "nothing in it matches 'c'"), ({"absent": True}, "/etc/x is there and should not be"),
])  # fmt: skip
def test_rules_for_a_file(run, rule, wrong):
    verdict = files(run, [{"path": CONF, **rule}])
    assert [f.summary.removeprefix("/etc/x: ") for f in verdict.findings] == ([wrong] if wrong else [])
    assert verdict.codes == ({"HostFileWrong"} if wrong else set())
    assert not verdict.blind


def test_files_that_are_not_there_or_may_not_be_seen(run):
    gone = "stat: cannot statx '/etc/x': No such file or directory\n"
    assert parts(files(run, [CONF], "", gone)) == {("HostFileMissing", "file@/etc/x", "CRITICAL")}
    assert files(run, [{"path": CONF, "absent": True}], "", gone).status is Status.OK
    assert files(run, [CONF], "", "stat: cannot stat '/etc/x': Not a directory\n").codes == {
        "HostFileMissing"
    }
    refused = files(run, [CONF], "", "stat: cannot statx '/etc/x': Permission denied\n")
    assert (refused.status, refused.blind) == (Status.UNKNOWN, "/etc/x: Permission denied")
    assert files(run, [CONF], "nonsense\n").status is Status.UNKNOWN


@pytest.mark.parametrize(
    "rules",
    [
        ["etc"],
        [{"owner": "root"}],
        [{"path": "/a", "mod": 1}],
        [7],
        [{"path": CONF, "mode": "rw"}],
        [{"path": CONF, "contains": "("}],
    ],
)
def test_rules_that_are_wrong_themselves(run, rules):
    verdict = files(run, rules)
    assert (verdict.status, "expect.files" in verdict.blind) == (Status.UNKNOWN, True)


def test_real_files(run, tmp_path):
    from clustertools.host import LocalHost

    path = tmp_path / "a b\n.conf"
    path.write_text("key: value\n")
    path.chmod(0o640)
    odd = tmp_path / "it's"
    rules = [{"path": str(tmp_path), "kind": "folder"}, {"path": str(odd)}]
    verdict = run("host_files", LocalHost(), expect={"files": rules})
    assert parts(verdict) == {("HostFileMissing", f"file@{odd}", "CRITICAL")}
    odd.write_text("x")
    odd.chmod(0o640)
    rules[1] = {
        "path": str(odd),
        "mode": "0640",
        "min_size_bytes": 1,
        "max_age_seconds": 600,
        "contains": "x",
    }
    assert run("host_files", LocalHost(), expect={"files": rules}).status is Status.OK


# ------------------------------------------------------------------ mounts as the class wants them


@pytest.mark.parametrize(("rule", "found"), [
    ({"type": "nfs4", "source": "198.18.0.9:/export/home", "options": ["hard", "vers=4.2"]}, None),
    ({"type": "lustre"}, "type nfs4, not lustre"),
    ({"source": "nas2:/home"}, "source 198.18.0.9:/export/home, not"),
    ({"options": "soft,rw"}, "without soft"), ({"options": ["noatime", "nodev"]}, "without noatime, nodev"),
])  # fmt: skip
def test_mounts_otherwise_than_wanted(run, rule, found):
    wanted = ["/", "/raid", {"point": "/home", **rule}]
    verdict = run("host_storage", "h100-healthy", expect={"mounts": wanted})
    assert parts(verdict) == ({("HostMountWrong", "mount@/home", "WARNING")} if found else set())
    assert all(found in f.summary for f in verdict.findings)
    assert not verdict.blind


@pytest.mark.parametrize(
    ("size", "codes"),
    [(30_726_047_858_688, set()), (32 * 10**12, set()), (33 * 10**12, {"HostFilesystemSmall"})],
)
def test_a_file_system_that_is_too_small(run, size, codes):
    wanted = ["/", {"point": "/raid", "size_bytes": size}, "/home"]
    verdict = run("host_storage", "h100-healthy", expect={"mounts": wanted})
    assert (verdict.codes, verdict.blind) == (codes, "")


def test_a_mount_that_is_missing_and_a_rule_that_is_wrong(run):
    verdict = run("host_storage", "h100-healthy", expect={"mounts": [{"point": "/data", "type": "xfs"}]})
    assert parts(verdict) == {("HostMountMissing", "mount@/data", "CRITICAL")}
    for rule in ({"type": "xfs"}, {"point": "data"}, {"point": "/data", "fstype": "xfs"}, 3):
        verdict = run("host_storage", "h100-healthy", expect={"mounts": [rule]})
        assert (verdict.status, "expect.mounts" in verdict.blind) == (Status.UNKNOWN, True)
