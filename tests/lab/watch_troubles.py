"""What befalls the watchdog itself and its way of seeing, while real jobs train: two plays on a real Slurm.

    rows = blind(folder)     # the controller frozen and killed, a log on a mount that hangs, two watchdogs
    rows = killed(folder)    # kill -9 at each commit of a restart

A row says what was wrong with the answer, as those of `fault_matrix`.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.lab.cluster_watch import ClusterWatch
from tests.lab.fault_matrix import Fault, Row
from tests.lab.stuck_files import Mounted, mounted

#: Longer than the silence after which a job is called stuck.
AWAY_SECONDS = 10.0
#: A reader that hangs is given 10 s, and the next ones 2 s each (clustertools.hanging_files).
HELD_UP_SECONDS = 40.0
BLIND = (
    Fault("Slurm's controller does not answer while a rank is stopped", "hung", 0, ("JobHung",)),
    Fault("Slurm's controller is killed and comes back", "steady", starts=False),
    Fault("the log lies on a mount that hangs", "steady", starts=False),
    Fault("a second watchdog is started", "steady", starts=False),
)
KILLED = (
    Fault("the watchdog is killed (kill -9) at each commit of a restart", "hung", 0, ("JobHung",)),
)  # fmt: skip
TROUBLES = (*BLIND, *KILLED)
#: More commits than a restart has, dying twice at each.
MOST_DEATHS = 80


def blind(folder: Path) -> list[Row]:
    with mounted(folder / "mount") as mount, ClusterWatch(folder / "lab", nodes=4) as lab:
        lab.plan("hung", "--steps", "130", "--plain", "--do", "stop@100")
        lab.plan("steady", "--steps", "100000", "--plain", folder=mount.real, log=[str(mount.outer / "log")])
        lab.begin()
        lab.until(lambda: lab.trained("hung", 0) > 20 and lab.trained("steady", 0) > 20, "both train")
        rows = [
            _frozen_controller(lab),
            _killed_controller(lab),
            _stale_mount(lab, mount),
            _second_watchdog(lab),
        ]
        lab.end_watch()
    return rows


def _frozen_controller(lab: ClusterWatch) -> Row:
    row = Row(BLIND[0])
    lab.slurm.freeze("slurmctld")
    lab.until(lambda: lab.trace("hung", "fault"), "the rank stops")
    at = lab.trace("hung", "fault")[0]["time"]
    time.sleep(AWAY_SECONDS)
    expect(row, not lab.actions("hung"), "something was done while nothing was known")
    expect(row, not lab.opened("hung", "JobHung"), "a hang was told while the job was not known to be there")
    expect(row, "job_list" in lab.heartbeat().get("blind", [""])[0], "it did not say that it is blind")
    lab.slurm.freeze("slurmctld", signal.SIGCONT)
    back = time.time()
    lab.until(lambda: lab.done("hung"), "the job ends well after a restart")
    _went_on(row, lab, "hung", at)
    row.detect_seconds = lab.opened("hung", "JobHung")[0].time - back if row.told else None
    row.did = "waited, then started again"
    return row


def _killed_controller(lab: ClusterWatch) -> Row:
    row = Row(BLIND[1], did="waited")
    lab.slurm.kill("slurmctld")
    time.sleep(AWAY_SECONDS)
    step = lab.trained("steady", 0)
    lab.slurm.start("slurmctld")
    lab.until(lambda: lab.state("steady") == "RUNNING", "the controller answers")
    lab.until(lambda: not lab.heartbeat().get("blind"), "the watchdog sees again")
    _nothing_happened(row, lab, step)
    return row


def _stale_mount(lab: ClusterWatch, mount: Mounted) -> Row:
    row = Row(BLIND[2], did="says that it cannot read the log, waits")
    before, at = lab.trained("steady", 0), time.time()
    mount.freeze()
    seen: list[float] = [at]

    def is_said() -> bool:
        beat = lab.heartbeat()
        seen.append(beat["at"])
        return any("steady" in line for line in beat["blind"])

    try:
        lab.until(is_said, "the watchdog says that it cannot read the log", HELD_UP_SECONDS)
        row.detect_seconds = time.time() - at
        # what does not answer is not asked in each pass: they go on
        lab.until(
            lambda: is_said() and seen[-1] > at + HELD_UP_SECONDS / 2, "a later pass ends", HELD_UP_SECONDS
        )
    except AssertionError as exc:
        row.wrong.append(str(exc).partition("\n")[0])
    finally:
        mount.thaw()
    lab.until(lambda: not lab.heartbeat()["blind"], "the watchdog sees again")
    _nothing_happened(row, lab, before)
    return row


def _second_watchdog(lab: ClusterWatch) -> Row:
    row = Row(BLIND[3], did="the second refuses")
    second = lab.watch()
    code = second.wait(60)
    expect(row, code == 3, f"the second ended with exit code {code}")
    expect(row, "already watched" in lab.said().text, lab.said().text[-300:])
    lab.watchdogs.pop()
    expect(row, lab.said().code is None, "the first has ended")
    return row


def killed(folder: Path) -> list[Row]:
    with ClusterWatch(folder, nodes=4) as lab:
        lab.plan("hung", "--steps", "60", "--plain", "--do", "stop@25")
        lab.write_config()
        lab.submit("hung")
        points = lab.folder / "points"
        points.touch()
        deaths = _die_until_done(lab, points)
        row = Row(KILLED[0], did=f"started again once, although killed {deaths} times")
        _went_on(row, lab, "hung", lab.trace("hung", "fault")[0]["time"])
        said = points.read_text().splitlines()
        for step in ("stop", "wait_end", "choose", "submit", "wait_step"):
            for when in ("before", "after"):
                found = any(line.startswith(when) and f"goes to {step}" in line for line in said)
                expect(row, found, f"it was never killed {when} the commit of {step}")
    return [row]


def _die_until_done(lab: ClusterWatch, points: Path) -> int:
    """Start the watchdog as often as it dies, until the job is at its end; how often that was."""
    deaths = 0
    end = time.monotonic() + 300
    while True:
        child = lab.watch(program=("-m", "tests.lab.dying_watchdog", str(points)))
        while child.poll() is None:
            assert time.monotonic() < end, f"it does not come to its end: {lab.story()}"
            time.sleep(0.05)
            if lab.done("hung") and lab.heartbeat().get("at", 0.0) > lab.trace("hung", "done")[0]["time"] + 3:
                lab.end_watch()
                return deaths
        deaths += 1
        assert child.poll() == -signal.SIGKILL, lab.said().text
        assert deaths < MOST_DEATHS, points.read_text()


def _went_on(row: Row, lab: ClusterWatch, name: str, at: float) -> None:
    """The job was begun anew once, from its last checkpoint, by one action of ours, and ended well."""
    fault = row.fault
    opened = [t for t in lab.opened(name) if t.incident.finding.code in fault.codes]
    row.told = tuple(dict.fromkeys(t.incident.finding.code for t in opened))
    expect(row, len(opened) == 1, f"told {len(opened)} times")
    if opened:
        row.detect_seconds = opened[0].time - at
    began = [r for r in lab.trace(name, "began") if r["attempt"] > 0]
    expect(row, len(began) == 1, f"it was begun anew {len(began)} times")
    starts = lab.starts(name)
    row.resumed = starts[-1][1]
    last = [r["step"] for r in lab.trace(name, "saved") if r["attempt"] == 0][-1]
    expect(row, row.resumed == last, f"it went on from step {row.resumed}, not {last}")
    restarts = [a for a in lab.actions(name) if a.action.kind == "restart" and a.state != "blocked"]
    expect(row, len(restarts) == 1, f"{len(restarts)} restarts in the audit")
    steps = [r["time"] for r in lab.trace(name, "step") if r["attempt"] == 1]
    row.recover_seconds = steps[0] - at if steps else None


def _nothing_happened(row: Row, lab: ClusterWatch, step: int) -> None:
    """The steady job trains, was told of by nobody, and nothing was done to it."""
    lab.until(lambda: lab.trained("steady", 0) > step + 20, "it trains on")
    opened = [t.incident.finding for t in lab.opened("steady")]
    expect(row, not [f for f in opened if f.status.name == "CRITICAL"], f"told: {opened}")
    expect(row, not lab.actions("steady"), "something was done")
    expect(row, len(lab.trace("steady", "began")) == 1, "it was begun anew")


def expect(row: Row, true: object, otherwise: str) -> None:
    if not true:
        row.wrong.append(otherwise)
