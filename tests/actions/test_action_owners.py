"""Trackers of another user, and on a mount that cannot be written: repaired rightly, or said clearly."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoint_builders import megatron_checkpoint

pytestmark = [pytest.mark.root]
NOBODY, OWNER = 65534, 4242
TRACKER = "latest_checkpointed_iteration.txt"
SCRIPT = """
import sys, time
from clustertools.actions.tracker import repair_tracker, set_aside
from clustertools.errors import ActionFailed
from clustertools.sources.checkpoints import last_good, list_checkpoints
folder, what = sys.argv[1:]
report = last_good(list_checkpoints(folder, now=time.time()))
try:
    print("done:", repair_tracker(folder, report) if what == "repair" else set_aside(report.path))
except ActionFailed as exc:
    print("failed:", exc)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Checkpoints of user 4242, readable by all, in a place that every user can reach."""
    # not below pytest's own folder: another pytest closes that to other users
    with tempfile.TemporaryDirectory(prefix="ct-owners-") as made:
        Path(made).chmod(0o755)
        where = Path(made) / "ck"
        megatron_checkpoint(where, 200, 1, 1)
        (where / TRACKER).write_text("300")
        for path in (where, *where.rglob("*")):
            os.chown(path, OWNER, OWNER)
        yield where


def act(folder: Path, what: str, *before: str) -> str:
    done = subprocess.run(
        [*before, sys.executable, "-c", SCRIPT, str(folder), what],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


def as_user(number: int) -> list[str]:
    return ["setpriv", f"--reuid={number}", f"--regid={number}", "--clear-groups"]


def test_root_gives_it_back_to_its_owner(folder: Path) -> None:
    assert act(folder, "repair").startswith("done:")
    assert (folder / TRACKER).read_text() == "200"
    assert (folder / TRACKER).stat().st_uid == OWNER
    # where there was none, the run must be able to write it at its next save
    (folder / TRACKER).unlink()
    act(folder, "repair")
    assert (folder / TRACKER).stat().st_uid == OWNER
    assert act(folder, "aside").startswith("done: iter_0000200 set aside")


@pytest.mark.parametrize("what", ["repair", "aside"])
def test_another_user_is_told_who_could(folder: Path, what: str) -> None:
    said = act(folder, what, *as_user(NOBODY))
    assert said.startswith("failed: could not")
    assert f"belongs to user {OWNER} (mode 755) and the watchdog runs as user {NOBODY}" in said
    assert (folder / TRACKER).read_text() == "300"
    assert sorted(os.listdir(folder)) == ["iter_0000200", TRACKER]


def test_a_tracker_that_its_run_could_not_write_afterwards_is_left(folder: Path) -> None:
    folder.chmod(0o777)
    said = act(folder, "repair", *as_user(NOBODY))
    assert f"belongs to user {OWNER}, who could not write it after a repair" in said
    assert (folder / TRACKER).read_text() == "300"
    assert sorted(os.listdir(folder)) == ["iter_0000200", TRACKER], "nothing half done is left"


@pytest.mark.parametrize("what", ["repair", "aside"])
def test_a_mount_that_is_read_only_is_said(folder: Path, what: str) -> None:
    if shutil.which("unshare") is None:
        pytest.fail("unshare (util-linux) is missing")
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    said = act(folder, what, "unshare", "-m", "sh", "-c", mount, str(folder))
    assert "is mounted read-only on this machine" in said
    assert sorted(os.listdir(folder)) == ["iter_0000200", TRACKER]


def test_a_name_that_is_swapped_for_a_link_changes_nothing_elsewhere(folder: Path, tmp_path: Path) -> None:
    """The run's user can put links into its own folder; with root's rights none is followed."""
    secret = tmp_path / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    (folder / TRACKER).unlink()
    (folder / TRACKER).symlink_to(secret)
    act(folder, "repair")
    info = secret.stat()
    assert (secret.read_text(), info.st_uid, info.st_mode & 0o777) == ("root's", 0, 0o600)
