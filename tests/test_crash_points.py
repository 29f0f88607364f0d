"""The watchdog killed at every commit of a whole restart, before it and after it; and its shim killed.

Each time `clustertools run` is then started again, and the run must end as if nothing had happened: restarted
once, from the right step, never two copies, nothing left.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lab.runs import RunLab, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]
HARNESS = Path(__file__).parent / "lab" / "crashing_watchdog.py"
#: Saves at 5, hangs at 7: a restart goes on from 5.
TRAINER = ("--steps", "14", "--do", "stop@7")
#: Each waits most of the time.
AT_ONCE = 4


def crashed(lab: RunLab, number: int, when: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(HARNESS), str(number), when, *lab.options(), "--", *lab.command(*TRAINER)]
    return subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)


def one_point(folder: Path, number: int, when: str) -> tuple[str, list[str]]:
    """Kill at one commit, run again, and look: (what the point was, what is wrong); "" when there is none."""
    lab = RunLab(folder / f"{when}-{number}", f"crash-{os.getpid()}-{when}-{number}")
    try:
        first = crashed(lab, number, when)
        point = re.search(r"crash point \d+ \w+: (.*)", first.stderr)
        if point is None:
            return "", [] if first.returncode == 0 else [
                f"exit code {first.returncode}: {first.stderr[-800:]}"
            ]
        if "ended well" in first.stderr:
            # it had told its end: what is started after this is another run
            return point[1], faults(lab, first.stderr)
        second = lab.run(*TRAINER)
        wrong = faults(lab, first.stderr + second.stderr)
        if second.returncode != 0:
            wrong.append(f"exit code {second.returncode}")
        return point[1], wrong and [*wrong, first.stderr[-1500:], second.stderr[-3000:]]
    finally:
        lab.clean_up()


def faults(lab: RunLab, said: str) -> list[str]:
    wrong = []
    if lab.starts() != ["0 0", "1 5"]:
        wrong.append(f"starts: {lab.starts()}")
    if lab.two_copies:
        wrong.append("two copies at the same time")
    if lab.finished != ["14"]:
        wrong.append(f"finished: {lab.finished}")
    if lab.left():
        wrong.append(f"left behind: {lab.left()}")
    if len(re.findall(r"^CRITICAL run .* is stuck", said, re.M)) not in (1, 2):
        wrong.append("the hang was not told once, or at most once more")
    return wrong


def test_killed_at_every_commit_it_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Before or after each commit, by the toss of a coin; CLUSTERTOOLS_ALL_POINTS=1 tries both."""
    both, coin = bool(os.environ.get("CLUSTERTOOLS_ALL_POINTS")), random.randrange(2)
    table: list[tuple[int, str, str, list[str]]] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for begin in range(1, 200, 4):
            cases = [
                (n, when)
                for n in range(begin, begin + 4)
                for odd, when in enumerate(("before", "after"))
                if both or (n + odd) % 2 == coin
            ]
            jobs = [(n, when, pool.submit(one_point, tmp_path, n, when)) for n, when in cases]
            table += [(n, when, *job.result()) for n, when, job in jobs]
            # the last commits of a run may be one more or one less
            if not any(point for _, _, point, _ in table[-4:]):
                break
    for number, when, point, wrong in table:
        print(f"{number:3d} {when:6} {'FAULT' if wrong else 'ok' if point else 'not reached':11} {point}")
    wrong = [(n, when, point, what) for n, when, point, what in table if what]
    assert not wrong, "\n".join(f"{n} {when} {point}: " + "\n".join(what) for n, when, point, what in wrong)
    points = [point for _, _, point, _ in table if point]
    # every step of the sequence was among them
    for step in ("stop", "wait_end", "choose", "submit", "wait_step"):
        assert any(f"action goes to {step}" in point for point in points), step
    assert any("action ends" in point for point in points)
    assert any("JobHung opened" in point for point in points)


@pytest.mark.parametrize("moment", ["trains", "hangs", "both"])
def test_a_shim_that_is_killed_costs_the_exit_code_and_nothing_else(tmp_path: Path, moment: str) -> None:
    lab = RunLab(tmp_path)
    words = (*TRAINER, "--do", "stop@9/1") if moment == "both" else TRAINER
    watchdog = lab.start(*words)
    try:
        for attempt in (1, 2) if moment == "both" else (1,):
            until(lambda n=attempt: len(lab.starts()) == n, "a start")  # type: ignore[misc]
            if moment == "hangs":
                log = lab.attempt_folders()[-1] / "output.log"
                until(lambda p=log: b"step 7/" in p.read_bytes(), "step 7")  # type: ignore[misc]
            until((lab.attempt_folders()[-1] / "claimed").exists, "a shim")
            os.kill(lab.shim_pid(), signal.SIGKILL)
        _, said = watchdog.communicate(timeout=60)
        assert watchdog.returncode == 0, said.decode()
        # it was the hang that ended it: while it trained without its shim nobody took it for dead
        assert b" is stuck " in said
        assert b" ended: " not in said
        assert lab.starts() == (["0 0", "1 5", "2 5"] if moment == "both" else ["0 0", "1 5"])
        assert lab.finished == ["14"]
        assert not lab.two_copies
        assert not lab.left()
    finally:
        watchdog.kill()
        lab.clean_up()


def test_a_shim_killed_in_the_last_attempt_is_told_and_the_run_is_started_again(tmp_path: Path) -> None:
    lab = RunLab(tmp_path)
    watchdog = lab.start("--steps", "12")
    try:
        until(lambda: len(lab.starts()) == 1, "a start")
        os.kill(lab.shim_pid(), signal.SIGKILL)
        _, said = watchdog.communicate(timeout=60)
        assert watchdog.returncode == 0, said.decode()
        assert "its supervisor was killed: nobody saw how it ended" in said.decode()
        assert lab.starts() == ["0 0", "1 10"]
        assert not lab.two_copies
        assert not lab.left()
    finally:
        watchdog.kill()
        lab.clean_up()


def test_watchdog_and_shim_and_command_killed_together(tmp_path: Path) -> None:
    lab = RunLab(tmp_path)
    watchdog = lab.start("--steps", "200")
    until(lambda: (lab.checkpoints / "step_000010.pt").exists(), "a checkpoint")
    for pid in (watchdog.pid, lab.shim_pid(), lab.trainer_pid()):
        os.kill(pid, signal.SIGKILL)
    watchdog.communicate()
    saved = max(int(p.stem[5:]) for p in lab.checkpoints.glob("step_*.pt"))
    done = lab.run("--steps", str(saved + 5))
    assert done.returncode == 0, done.stderr
    assert lab.starts() == ["0 0", f"1 {saved}"]
    assert "its supervisor was killed" in done.stderr
    assert not lab.left()


def test_a_watchdog_that_is_killed_again_and_again_gets_there(tmp_path: Path) -> None:
    lab, rng, kills, code = RunLab(tmp_path), random.Random(7), 0, -1
    said = tmp_path / "said"
    said.touch()
    try:
        # once it has told its end, what is started next is another run
        while kills < 60 and "ended well" not in said.read_text():
            with said.open("wb") as stderr:
                watchdog = lab.start(*TRAINER, stdout=subprocess.DEVNULL, stderr=stderr)
            try:
                # at work after about 0.3 s: the first kills come before that, the last ones long after
                code = watchdog.wait(rng.uniform(0.2, 0.9) + 0.02 * kills)
                break
            except subprocess.TimeoutExpired:
                watchdog.kill()
                watchdog.wait()
                kills += 1
        assert code == 0 or "ended well" in said.read_text()
        assert kills > 3
        assert lab.starts() == ["0 0", "1 5"]
        assert lab.finished == ["14"]
        assert not lab.two_copies
        assert not lab.left()
    finally:
        lab.clean_up()
