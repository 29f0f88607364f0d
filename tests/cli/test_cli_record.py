"""`record --run`: a support bundle that replays, and that holds no secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from clustertools.check import discover
from clustertools.cli import main
from clustertools.cli.bundle import Tails, changes, log_paths, look, run_data, run_facts
from clustertools.host import LocalHost, RecordedHost
from clustertools.model import Attempt, Job
from clustertools.recorder import Recorder
from clustertools.replay import replay
from clustertools.schedulers.shim import write_json
from clustertools.sources.processes import RANK_VARIABLES
from clustertools.store import Store
from tests.lab.memory_host import MemoryHost

#: What must not be in a bundle, wherever it stood.
SECRETS = (
    "plantedpassword",
    "hf_plantedplantedplanted",
    "carol",
    "10.20.30.40",
    "165492200123",
    "corp-alpha",
)
LINES = "".join(f"iter {i}: loss 2.1034, time 500.11ms, mfu 41.20%\n" for i in range(100, 130))


def forbidden(folder: Path) -> list[str]:
    """Which secret stands in which file."""
    texts = {p: p.read_text(errors="replace") + str(p) for p in folder.rglob("*") if p.is_file()}
    return [f"{secret} in {p}" for p, text in texts.items() for secret in SECRETS if secret in text]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state of a run that ended with an error; its log names people and secrets."""
    folder = tmp_path / "state" / "runs" / "corp-alpha-7"
    attempt = Attempt(
        "corp-alpha-7", 1, "abcdef123456", started_at=time.time() - 600, resume_step=100,
        resume_path="/home/carol/ckpt/step-100",
    )  # fmt: skip
    store = Store(folder / "state.db")
    with store.transaction():
        store.put_attempt(attempt)
    store.close()
    work = folder / "attempts" / "corp-alpha-7" / "001-abcdef123456"
    work.mkdir(parents=True)
    write_json(work / "claimed", {})
    write_json(work / "exit.json", {"ended_at": time.time() - 60, "returncode": 1})
    (work / "output.log").write_text(
        LINES + "user=carol password=plantedpassword from 10.20.30.40\n"
        "Serial Number: 165492200123\npush to https://carol:plantedpassword@hub/ hf_plantedplantedplanted\n"
    )
    return tmp_path / "state"


def test_a_bundle_replays_and_holds_no_secret(state: Path, tmp_path: Path, capsys):
    folder = tmp_path / "bundle"
    command = ["record", str(folder), "--run", "corp-alpha-7", "--state", str(state)]
    assert main([*command, "job_exit", "job_progress", "job_restarts", "--what", "it crashed"]) == 0
    out = capsys.readouterr().out
    assert forbidden(folder) == []
    for name in ("host.yaml", "run.yaml", "history.jsonl", "output.log"):
        assert name in out, "every file is listed for review"
    assert "redacted: " in out
    assert "token" in out
    assert "answers differently" not in out
    told = replay(folder)
    assert [t.incident.finding.code for t in told.transitions] == ["JobCrashed"]
    assert [a.blocked for a in told.actions] == ["observe mode"]
    assert "iter 129" in RecordedHost(folder).read(
        yaml.safe_load((folder / "run.yaml").read_text())["run"]["log"][0]
    )


def test_a_bundle_tells_what_happened(state: Path, tmp_path: Path, capsys):
    folder = tmp_path / "bundle"
    command = ["record", str(folder), "--run", "corp-alpha-7", "--state", str(state), "job_exit", "--json"]
    assert main(command) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["bytes"] == sum(Path(p).stat().st_size for p in row["files"])
    assert row["redacted"]["job"] > 0
    assert row["changed"] == {}
    events = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events if e["kind"] == "event"] == ["start"]


def test_a_bundle_is_a_recorded_host_too(state: Path, tmp_path: Path, capsys):
    folder = tmp_path / "bundle"
    assert main(["record", str(folder), "host_memory", "--run", "corp-alpha-7", "--state", str(state)]) == 0
    assert main(["check", "host_memory", "--host", str(folder)]) in (0, 1, 2)


def test_a_run_that_nobody_knows(state: Path, tmp_path: Path, capsys):
    assert main(["record", str(tmp_path / "b"), "--run", "beta", "--state", str(state)]) == 3
    assert "there is corp-alpha-7" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_moments_need_a_run(tmp_path: Path, capsys):
    assert main(["record", str(tmp_path / "b"), "--moments", "2"]) == 3
    assert "--run" in capsys.readouterr().err


def test_a_plain_word_is_not_taken_out_of_every_line(tmp_path: Path, state: Path, capsys):
    (state / "runs" / "corp-alpha-7").rename(state / "runs" / "train")
    store = Store(state / "runs" / "train" / "state.db")
    with store.transaction():
        store.put_attempt(Attempt("train", 1, "abcdef123456", started_at=time.time() - 600))
    store.close()
    command = ["record", str(tmp_path / "b"), "job_restarts", "--run", "train", "--state", str(state)]
    assert main(command) == 0
    assert "'train', is a plain word and was left in" in capsys.readouterr().out


# the parts, on a machine in memory


def test_of_a_log_the_last_part_is_kept_from_a_whole_line_on():
    host = MemoryHost()
    host.files["/data/log"] = LINES
    tails = Tails(host, ["/data/log"], keep_bytes=200)
    info = tails.stat("/data/log")
    text = tails.read("/data/log")
    assert LINES.endswith(text)
    assert text.startswith("iter ")
    assert len(text) == info.size_bytes <= 200
    host.files["/data/log"] = LINES + "iter 130: loss 2\n"
    assert tails.read("/data/log") == text + "iter 130: loss 2\n", "what is appended later is appended"
    assert tails.read("/data/log", len(text)) == "iter 130: loss 2\n"
    host.files["/data/log"] = "iter 0: anew\n"
    assert tails.read("/data/log") == "iter 0: anew\n"


def job(**more) -> Job:
    return Job("r#1", "r", "running", 1, ("n1",), (11,), log_paths=("/data/log",), **more)


def training() -> MemoryHost:
    host = MemoryHost()
    host.files["/data/log"] = LINES
    host.process(11, rank=0)
    host.files["/proc/11/environ"] = "RANK=0\0HOME=/home/carol\0KEY=plantedpassword\0"
    host.files["/proc/11/cmdline"] = "python\0train.py\0--hub-token\0hf_plantedplantedplanted\0"
    host.process(99)
    host.files["/proc/99/cmdline"] = "ssh\0carol@10.20.30.40\0"
    host.stack(11, [("step", "train.py", 4)])
    return host


def checks(*names: str):
    found = discover(site_folders=())
    return [found[name] for name in names]


def test_of_other_peoples_processes_nothing_is_kept(tmp_path: Path):
    recorder = Recorder(training(), tmp_path, keep_variables=RANK_VARIABLES)
    look(recorder, [], checks("job_progress"), job(), {})
    recorder.save({})
    recorded = RecordedHost(tmp_path)
    assert recorded.glob("/proc/[0-9]*") == ["/proc/11"]
    assert not (tmp_path / "files/proc/99").exists()
    assert recorded.read("/proc/11/environ") == "RANK=0\0"
    assert "plantedpassword" not in "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    assert any("stacks" in p.name for p in (tmp_path / "commands").iterdir()), "stacks are always saved"


def test_a_token_between_nul_bytes_is_taken_out():
    from clustertools.redact import Redactor

    assert Redactor()("python\0--hub-token\0hunter2hunter\0--lr\x001e-4\0") == (
        "python\0--hub-token\0REDACTED\0--lr\x001e-4\0"
    )


def test_two_moments_differ_by_what_changed(tmp_path: Path):
    host = training()
    one = Recorder(host, tmp_path)
    look(one, [], checks("job_progress"), job(), {})
    host.files["/data/log"] = LINES + "iter 130: loss 2.0\n"
    host.process(12, 11)
    host.stack(11, [("all_reduce", "dist.py", 9)])
    two = Recorder(host, tmp_path)
    look(two, [], checks("job_progress"), job(), {})
    told = changes(one, two)
    assert told["append"] == {"/data/log": "iter 130: loss 2.0\n"}
    assert "/proc/12/stat" in told["set"]
    assert [c["argv"][-1] for c in told["commands"]] == ["11"]
    assert changes(two, two) == {}
    back = changes(two, one)
    assert any(p.startswith("/proc/12/") for p in back["remove"])


@pytest.mark.slow
def test_a_live_run_in_three_moments(tmp_path: Path, capsys):
    program = tmp_path / "loop.py"
    program.write_text(
        "import time\nfor i in range(10**6):\n"
        "    print(f'iter {i}: loss 2.1, time 100.0ms, mfu 40.00%', flush=True)\n    time.sleep(0.1)\n"
    )
    state = tmp_path / "state"
    command = [
        sys.executable, "-m", "clustertools", "run", "--name", "corp-alpha-8", "--state", str(state),
        "--interval", "1s", "--", sys.executable, str(program), "--hub-token", "hf_plantedplantedplanted",
    ]  # fmt: skip
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "API_KEY": "plantedpassword"}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not list(state.glob("runs/corp-alpha-8/attempts/*/*/running.json")):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(2)
        folder = tmp_path / "bundle"
        words = ["record", str(folder), "--run", "corp-alpha-8", "--state", str(state), "--moments", "3"]
        assert main([*words, "--every", "1s", "job_progress", "job_exit", "-q"]) == 0
    finally:
        child.terminate()
        child.wait(30)
    assert forbidden(folder) == []
    told = replay(folder)
    assert told.passes == 3
    assert told.transitions == ()
    environ = list(folder.glob("files/proc/*/environ"))
    assert [p.read_text().split("\0")[0] for p in environ] in (["RANK=0"], ["WORLD_SIZE=1"])
    entries = yaml.safe_load((folder / "run.yaml").read_text())["timeline"]
    assert all("append" in e for e in entries[1:]), "the log grew from moment to moment"


def test_run_data_is_a_recording(state: Path, tmp_path: Path):
    facts = run_facts("corp-alpha-7", state, [], "")
    assert facts.spec.checkpoint_dir == "/home/carol/ckpt"
    assert log_paths(facts)[0].endswith("output.log")
    recorder = Recorder(Tails(LocalHost(), log_paths(facts)), tmp_path)
    data = run_data(facts, checks("job_exit"), [(recorder, facts)], 30.0, "what", "where from")
    assert data["run"]["attempts"][0]["resume_step"] == 100
    assert data["timeline"][0]["job"]["state"] == "ended"
