"""`clustertools goodput`: real forms of logs, several files, a watchdog's own state; and `plan` from them."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest

from clustertools.cli import main
from clustertools.model import Attempt, Reading, Status, Subject, Verdict
from clustertools.store import Store

MEGATRON = (
    " [{stamp}] iteration {step:8d}/  500000 | consumed samples: {step:12d} | elapsed time per iteration "
    "(ms): {ms:.1f} | learning rate: 1.200000E-05 | lm loss: 7.123456E+00 | number of nan iterations:   0 |\n"
)


def stamp(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))


def megatron(first: int, last: int, at: float, *, every: int = 10, pace: float = 6.0) -> str:
    return "".join(
        MEGATRON.format(stamp=stamp(at + pace * (n - first)), step=n, ms=1000 * pace)
        for n in range(first, last + 1, every)
    )


def resumed(step: int, at: float) -> str:
    said = "successfully loaded checkpoint from /c [ t 1/1, p 1/1 ]"
    return f"[{stamp(at)}] {said} at iteration {step}\n"


BEGAN = 1_790_000_000.0


@pytest.fixture
def log(tmp_path) -> Path:
    """An hour: to step 300, a hang until 2600 s, again from step 200."""
    path = tmp_path / "train.log"
    path.write_text(
        megatron(10, 300, BEGAN + 60) + resumed(200, BEGAN + 2600) + megatron(210, 330, BEGAN + 2880)
    )
    return path


def measured(capsys, *words) -> dict:
    assert main(["goodput", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_log_with_a_restart(log, capsys):
    found = measured(capsys, log)
    assert found["kind"] == "goodput"
    assert found["wall_seconds"] == 3600
    assert found["ettr"] == pytest.approx(330 * 6 / 3600)
    assert found["seconds"]["rolled back"] == pytest.approx(600)
    assert found["seconds"]["stopped"] == pytest.approx(800)
    assert found["seconds"]["starting"] == pytest.approx(220)
    assert main(["goodput", str(log)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("ETTR 0.550: 33 min of training that was kept, in 60 min\n")
    assert "training, lost and done again" in text
    assert "silent or down: a log cannot tell which" in text


def test_a_log_for_each_job_in_any_order(log, tmp_path, capsys):
    text = log.read_text()
    second = text.index("successfully") - 22
    one, other = tmp_path / "slurm-2.out", tmp_path / "slurm-1.out.gz"
    one.write_text(text[second:])
    other.write_bytes(gzip.compress(text[:second].encode()))
    both = measured(capsys, one, other)
    whole = measured(capsys, log)
    assert both["seconds"] == pytest.approx(whole["seconds"])
    assert both["kept_steps"] == whole["kept_steps"]


def test_a_second_file_of_the_same_time_is_left_out(log, tmp_path, capsys):
    other = tmp_path / "metrics.jsonl"
    other.write_text("".join(
        json.dumps({"step": n, "loss": 2.0, "timestamp": BEGAN + 6 * n}) + "\n" for n in range(50, 301, 50)
    ))  # fmt: skip
    assert main(["goodput", str(log), str(other), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["ettr"] == pytest.approx(0.55)
    assert "metrics.jsonl tells of the same time as" in said.err


def test_without_times_the_share_is_not_known(tmp_path, capsys):
    path = tmp_path / "nano.log"
    path.write_text("".join(f"iter {n}: loss 3.1, time 500.00ms, mfu 35.20%\n" for n in range(1, 201)))
    assert main(["goodput", str(path)]) == 0
    assert capsys.readouterr().out.startswith("ETTR: not known; 200 steps kept, 0 lost")
    assert measured(capsys, path, "--wall", "200s")["ettr"] == pytest.approx(0.5)


@pytest.fixture
def state(tmp_path, monkeypatch, log) -> Path:
    """A watchdog that looked after this run; its clock is that of the world, the log's is two hours ahead."""
    folder = tmp_path / "state"
    monkeypatch.setenv("CLUSTERTOOLS_STATE", str(folder))
    store = Store(folder / "state.db")
    run = Subject(cluster="c", run="big")
    ahead = BEGAN - 7200
    with store.transaction():
        store.put_attempt(Attempt(
            "big", 1, "t1", "11", started_at=ahead, ended_at=ahead + 2400, end="silent", ended_by="us",
            first_step=10, last_step=300,
        ))  # fmt: skip
        store.put_attempt(Attempt(
            "big", 2, "t2", "11", started_at=ahead + 2500, ended_at=ahead + 3700, end="exit code 0",
            resume_step=200, first_step=210, last_step=330,
        ))  # fmt: skip
        store.save_verdict(Verdict(
            "job_progress", run, Status.OK, time=ahead, memory={"files": {str(log): {}, "/gone": {}}},
            readings=(Reading(run, "job_step_seconds", 6.0, ahead),),
        ))  # fmt: skip
    store.close()
    return folder


def test_a_run_that_is_watched(state, capsys):
    found = measured(capsys, "--run", "big")
    assert found["wall_seconds"] == 3700
    assert found["ettr"] == pytest.approx(330 * 6 / 3700)
    assert found["seconds"]["down"] == pytest.approx(100)
    # of the first attempt from its last step on, of the second from its last step to its end
    assert found["seconds"]["silent"] == pytest.approx(600 + 100)
    assert found["failures"] == 1


def test_a_run_whose_logs_are_gone(state, log, capsys):
    log.unlink()
    found = measured(capsys, "--run", "big")
    # the steps before the first line are not known
    assert found["ettr"] == pytest.approx((330 - 9) * 6 / 3700)
    assert found["seconds"]["unknown"] > 1000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say which: log files, --run NAME, or both"),
        (["--run", "bog"], "did you mean big?"),
        (["/nowhere"], "No such file"),
        ([__file__], "there is nothing to measure"),
    ],
)
def test_what_cannot_be_measured_is_said(words, said, state, capsys):
    assert main(["goodput", *words]) == 3
    assert said in capsys.readouterr().err


def test_a_plan_from_a_runs_own_history(state, capsys):
    assert main(["plan", "--run", "big", "--save-seconds", "30", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["costs"]["mtbf_seconds"] == 3700
    assert made["costs"]["step_seconds"] == 6
    assert made["costs"]["restart_seconds"] == pytest.approx(700 + 320)
    assert made["sources"]["mtbf_seconds"] == "1 failure in 61.7 min"
    assert "save_seconds" in made["sources"]


def test_a_plan_from_a_log(log, tmp_path, capsys):
    text, at = "", BEGAN
    for block in range(4):
        first = 100 * block + 10
        text += megatron(first, first + 90, at + 60)
        text += (
            f"[{stamp(at + 600)}] saving checkpoint at iteration {first + 90} to /c in torch_dist format\n"
        )
        text += f"[{stamp(at + 630)}] successfully saved checkpoint from iteration {first + 90} to /c\n"
        at += 630
    log.write_text(text + resumed(400, at + 60) + megatron(410, 600, at + 300))
    assert main(["plan", str(log), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["costs"]["save_seconds"] == pytest.approx(30)
    assert made["now"]["interval_seconds"] == pytest.approx(630)
    assert made["best"]["steps"] > 0
    assert main(["plan", str(log), "--save-seconds", "60"]) == 0
    text = capsys.readouterr().out
    assert "(given)" in text
    assert "1 failure in" in text
