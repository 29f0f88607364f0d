"""File systems: each trouble by itself, what is left out, and a real one that went read-only."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clustertools.host import LocalHost, RecordedHost
from clustertools.model import Remedy, Status, Verdict

Run = Callable[..., Verdict]
GIB = 1 << 30
FINE = {
    "total_bytes": 100 * GIB,
    "free_bytes": 60 * GIB,
    "used_ratio": 0.4,
    "inodes": 1000,
    "inodes_free": 900,
}
Build = Callable[..., RecordedHost]


@pytest.fixture
def machine(tmp_path: Path) -> Build:
    """A host with these mount lines, and what the probe says about each point (None: hangs)."""
    count = iter(range(100))

    def build(table: str, answers: dict[str, dict[str, Any]], fstab: str = "", **files: str) -> RecordedHost:
        folder = tmp_path / str(next(count))
        for path, text in {"proc/self/mountinfo": table, "etc/fstab": fstab, **files}.items():
            (folder / "files" / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / "files" / path).write_text(text)
        (folder / "host.yaml").write_text("name: n1\ntime: 2000\n")
        argv = ["python", "-m", "clustertools.sources.mounts", "--deadline", "5", *answers]
        lines = [json.dumps({"path": path, **answer}) for path, answer in answers.items()]
        (folder / "commands").mkdir()
        (folder / "commands/1.yaml").write_text(json.dumps({"argv": argv, "stdout": "\n".join(lines)}))
        return RecordedHost(folder)

    return build


def line(point: str, kind: str = "ext4", device: str = "8:1", options: str = "rw", number: int = 30) -> str:
    return f"{number} 1 {device} / {point} rw,relatime shared:1 - {kind} /dev/x {options}\n"


def codes(verdict: Verdict) -> list[tuple[str, str, Status]]:
    return [(f.code, f.subject.part.removeprefix("mount@"), f.status) for f in verdict.findings]


def test_every_trouble_at_once(run: Run) -> None:
    verdict = run("host_storage", "host-storage-trouble")
    assert set(codes(verdict)) == {
        ("HostMountReadOnly", "/data", Status.CRITICAL),
        ("HostInodesFull", "/", Status.CRITICAL),
        ("HostShmSmall", "/dev/shm", Status.WARNING),
        ("HostDiskFull", "/scratch", Status.CRITICAL),
        ("HostMountHung", "/lustre", Status.CRITICAL),
        ("HostMountStale", "/home", Status.CRITICAL),
    }
    assert not verdict.blind
    by_code = {f.code: f for f in verdict.findings}
    assert "99.9% of its space in use (limit 98%): 28.0 GiB" in by_code["HostDiskFull"].summary
    assert "198.18.0.1@o2ib" in by_code["HostMountHung"].summary


@pytest.mark.parametrize(
    ("ratio", "status"),
    [(0.899, Status.OK), (0.9, Status.WARNING), (0.979, Status.WARNING), (0.98, Status.CRITICAL)],
)
def test_full(run: Run, machine: Build, ratio: float, status: Status) -> None:
    verdict = run("host_storage", machine(line("/"), {"/": {**FINE, "used_ratio": ratio}}))
    assert verdict.status is status
    inodes = {**FINE, "inodes_free": round(1000 * (1 - ratio))}
    assert run("host_storage", machine(line("/"), {"/": inodes})).status is status


def test_what_is_left_out(run: Run, machine: Build) -> None:
    kinds = {
        "/proc": "proc", "/net": "autofs", "/snap/a/1": "squashfs", "/cd": "iso9660", "/opt/x": "tmpfs",
        "/var/lib/docker/overlay2/1/merged": "overlay", "/run/user/0": "tmpfs", "/dev/shm": "tmpfs",
    }  # fmt: skip
    table = line("/") + line("/var/lib/x", device="8:1") + line("/boot", device="8:2")
    table += "".join(line(point, kind, f"0:{n}") for n, (point, kind) in enumerate(kinds.items()))
    full = {**FINE, "used_ratio": 0.999}
    verdict = run("host_storage", machine(table, {"/": FINE, "/boot": full, "/dev/shm": FINE}))
    assert (verdict.status, verdict.blind) == (Status.OK, "")


def test_read_only_after_it_took_writes(run: Run, machine: Build) -> None:
    writable = run("host_storage", machine(line("/data"), {"/data": FINE}))
    assert writable.status is Status.OK
    after = machine(line("/data", options="ro"), {"/data": FINE})
    verdict = run("host_storage", after, past=writable.memory)
    assert codes(verdict) == [("HostMountReadOnly", "/data", Status.CRITICAL)]
    # and it stays one, until it takes writes or is another mount
    assert run("host_storage", after, past=verdict.memory).codes == {"HostMountReadOnly"}
    other = machine(line("/data", options="ro", number=77), {"/data": FINE})
    assert run("host_storage", other, past=verdict.memory).status is Status.OK


def test_read_only_against_fstab(run: Run, machine: Build) -> None:
    table = line("/data", options="ro") + line("/sets", "nfs4", "0:9", options="ro")
    fstab = "# comment\n\nbroken line\n/dev/x /data ext4 defaults 0 0\nsrv:/s /sets nfs4 ro,hard 0 0\n"
    verdict = run("host_storage", machine(table, {"/data": FINE, "/sets": FINE}, fstab))
    assert codes(verdict) == [("HostMountReadOnly", "/data", Status.CRITICAL)]
    assert "/etc/fstab" in verdict.findings[0].summary


def test_expected_mounts(run: Run, machine: Build) -> None:
    host = machine(line("/") + line("/opt/x", "tmpfs", "0:3"), {"/opt/x": FINE, "/": FINE})
    verdict = run("host_storage", host, expect={"mounts": ["/lustre", "/opt/x"]})
    assert codes(verdict) == [("HostMountMissing", "/lustre", Status.CRITICAL)]


@pytest.mark.parametrize(
    ("kind", "error", "status", "blind"),
    [
        ("nfs4", "ESTALE", Status.CRITICAL, False),
        ("fuse.sshfs", "ENOTCONN", Status.CRITICAL, False),
        ("xfs", "EIO", Status.CRITICAL, False),
        ("fuse.sshfs", "EACCES", Status.OK, False),
        ("nfs4", "EACCES", Status.UNKNOWN, True),
        ("ext4", "ENOENT", Status.OK, False),
    ],
)
def test_errors(run: Run, machine: Build, kind: str, error: str, status: Status, blind: bool) -> None:
    verdict = run("host_storage", machine(line("/m", kind), {"/m": {"error": error}}))
    assert (verdict.status, bool(verdict.blind)) == (status, blind)


def test_a_mount_that_holds_an_unkillable_process_is_not_asked_again(run: Run, machine: Build) -> None:
    table = line("/") + line("/lustre", "lustre", "0:9")
    stat = "77 (python) D 1 7 7 0 -1 4194560 9 0 0 0 1 1 0 0 20 0 3 0 555 900 5 0 0"
    proc = {"proc/stat": "btime 1000\n", "proc/77/stat": stat}
    hung = machine(table, {"/": FINE, "/lustre": {"hung": True, "stuck_pid": 77}}, **proc)
    first = run("host_storage", hung)
    assert first.findings[0].remedy is Remedy.REBOOT_NODE
    assert first.memory["stuck"] == {"/lustre": [77, 555]}
    # only / is asked: the recording knows no other question
    second = run("host_storage", machine(table, {"/": FINE}, **proc), past=first.memory)
    assert (second.codes, second.blind) == ({"HostMountHung"}, "")
    assert second.memory["stuck"] == {"/lustre": [77, 555]}
    # the process is gone: asked again
    well = machine(
        table, {"/": FINE, "/lustre": FINE}, **{**proc, "proc/77/stat": stat.replace("555", "999")}
    )
    assert run("host_storage", well, past=second.memory).status is Status.OK


def test_a_probe_that_fails_is_unknown(run: Run, machine: Build) -> None:
    verdict = run("host_storage", machine(line("/"), {"/elsewhere": FINE}))
    assert verdict.status is Status.UNKNOWN


def test_this_machine(run: Run) -> None:
    verdict = run("host_storage", LocalHost())
    assert not verdict.blind
    assert "mount@/" in {r.subject.part for r in verdict.readings}
    assert not verdict.codes & {"HostMountHung", "HostMountStale", "HostMountReadOnly"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real ext4 of 16 MiB on a loop device."""
    image, point = tmp_path / "image", tmp_path / "disk"
    point.mkdir()
    image.write_bytes(b"")
    os.truncate(image, 16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-N", "64", str(image)], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", str(image), str(point)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a loop device here: {mounted.stderr.strip()}")
    yield point
    subprocess.run(["umount", str(point)], check=True)


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mkfs.ext4") is None, reason="needs root and mkfs.ext4")
def test_a_real_disk_that_fills_and_goes_read_only(run: Run, disk: Path) -> None:
    def look(past: Any = None) -> set[str]:
        nonlocal memory
        verdict = run("host_storage", LocalHost(), past=past)
        memory = verdict.memory
        return {f.code for f in verdict.findings if f.subject.part == f"mount@{disk}"}

    memory: Any = None
    assert look() == set()
    made = [disk / str(n) for n in range(100)]
    with contextlib.suppress(OSError):
        for path in made:
            path.touch()
    assert not made[-1].exists()
    assert look() == {"HostInodesFull"}
    for path in made:
        path.unlink(missing_ok=True)
    with pytest.raises(OSError, match="No space"):
        (disk / "fill").write_bytes(b"x" * (32 << 20))
    assert look() == {"HostDiskFull"}
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert look(memory) == {"HostMountReadOnly"}
