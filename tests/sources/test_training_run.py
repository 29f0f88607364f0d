"""All files of a run as one stream: patterns, folders, rotation, and files that are written as a whole."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from clustertools.errors import Unobservable
from clustertools.host import LocalHost
from clustertools.model import Job
from clustertools.sources.training_run import FILES_AT_MOST, RunNews, not_there, read_run
from clustertools.sources.training_values import Event, Point
from tests.lab.memory_host import MemoryHost
from tests.sources.test_tensorboard_events import event, simple

JOB = Job("1", "big", "running", 1, started_at=1_000_000.0)


class Reader:
    def __init__(self, *paths: str | Path, host: Any = None, metrics: str | Path = "") -> None:
        self.host = host or LocalHost("n1")
        self.job = dataclasses.replace(JOB, log_paths=tuple(map(str, paths)), metrics_path=str(metrics))
        self.memory: Any = {}
        self.news = RunNews((), {}, ())

    def look(self) -> list[int | str | None]:
        """Steps of points, and kinds of events."""
        self.news = read_run(self.host, self.job, self.memory)
        self.memory = json.loads(json.dumps(self.news.memory))
        return [i.kind if isinstance(i, Event) else i.step for i in self.news.items]

    def values(self) -> dict[str, float]:
        return {k: v for i in self.news.items if isinstance(i, Point) for k, v in i.values.items()}


def write(path: Path, text: str, *, mtime: float | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)
    if mtime is not None:
        os.utime(path, (mtime, mtime))
    return path


def lines(*steps: int) -> str:
    return "".join(f"step {n}/1000 | loss 2.5\n" for n in steps)


def test_a_pattern_gives_the_newest_files_of_this_start(tmp_path: Path) -> None:
    write(tmp_path / "old.log", lines(700), mtime=JOB.started_at - 3600)
    for rank in range(FILES_AT_MOST + 3):
        write(tmp_path / f"rank{rank}.log", lines(1, 2), mtime=JOB.started_at + rank)
    reader = Reader(tmp_path / "*.log")
    assert reader.look() == [1, 2], "the ranks tell the same steps; they are told once"
    assert len(reader.news.paths) == FILES_AT_MOST
    assert str(tmp_path / "old.log") not in reader.news.paths


def test_the_metrics_lead_and_the_log_tells_of_checkpoints(tmp_path: Path) -> None:
    metrics = write(tmp_path / "metrics.jsonl", '{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.4}\n')
    log = write(tmp_path / "log", lines(1, 2) + "Saved checkpoint at step 2\n")
    reader = Reader(log, metrics=metrics)
    assert reader.look() == [1, 2, "checkpoint_saved"]
    write(log, lines(3))
    assert reader.look() == [3], "what is further in another file counts"
    write(metrics, '{"step": 3, "loss": 2.3}\n{"step": 4, "loss": 2.2}\n')
    assert reader.look() == [3, 4]


def test_a_restart_that_two_files_tell_of_is_one(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a", lines(1, 2, 3)), write(tmp_path / "b", lines(1, 2, 3))
    reader = Reader(one, other)
    reader.look()
    write(one, lines(2))
    assert reader.look() == ["restart_marker", 2]
    write(other, lines(2, 3))
    assert reader.look() == [3]
    write(other, lines(1))
    assert reader.look() == ["restart_marker", 1], "the second one is news, whoever tells it first"


def test_between_the_steps_of_a_rotation_nothing_is_forgotten(tmp_path: Path) -> None:
    log = write(tmp_path / "log", lines(1, 2))
    reader = Reader(log)
    reader.look()
    write(log, lines(3))
    log.rename(tmp_path / "log.1")
    assert reader.look() == []
    assert reader.news.paths == ()
    write(log, lines(4))
    assert reader.look() == [3, 4]


def test_a_folder_of_tensorboard(tmp_path: Path) -> None:
    file = tmp_path / "tb" / "events.out.tfevents.1000000.n1.1.0"
    file.parent.mkdir()
    file.write_bytes(event(1, simple("train/loss", 2.5)) + event(2, simple("train/loss", 2.4)))
    reader = Reader(metrics=tmp_path / "tb")
    assert reader.look() == [1, 2]
    assert reader.news.format == "tensorboard"
    assert reader.look() == [], "no child is started for a file that did not grow"
    with file.open("ab") as more:
        more.write(event(3, simple("train/loss", 2.3)))
    assert reader.look() == [3]
    with file.open("ab") as more:
        more.write(b"nonsense that is no record")
    assert reader.look() == []
    assert "is damaged" in reader.news.notes[0]
    assert reader.look() == [], "and it is not read again and again"
    assert reader.news.notes == ()


def test_a_folder_of_wandb(tmp_path: Path) -> None:
    files = tmp_path / "run-20260102_030405-abc" / "files"
    summary = write(files / "wandb-summary.json", '{"_step": 10, "train/loss": 2.5, "_timestamp": 1.7e9}')
    write(files / "output.log", "loading\n")
    reader = Reader(metrics=tmp_path / "run-20260102_030405-abc")
    assert reader.look() == [10]
    summary.write_text('{"_step": 30, "train/loss": "NaN"')
    assert reader.look() == [], "half written"
    summary.write_text('{"_step": 30, "train/loss": "NaN"}')
    assert reader.look() == [30]
    assert reader.news.items[0].non_finite  # type: ignore[union-attr]
    assert not reader.news.whole
    summary.write_text('{"_step": 20, "train/loss": 2.25}')
    assert reader.look() == ["restart_marker", 20]


def test_a_folder_of_a_trainer_and_one_of_mlflow(tmp_path: Path) -> None:
    state = {"max_steps": 100, "log_history": [{"step": 10, "loss": 2.5}, {"step": 20, "loss": 2.25}]}
    path = write(tmp_path / "out" / "trainer_state.json", json.dumps(state))
    reader = Reader(metrics=tmp_path / "out")
    assert reader.look() == [10, 20]
    state["log_history"].append({"step": 30, "loss": 2.0})  # type: ignore[attr-defined]
    path.write_text(json.dumps(state))
    assert reader.look() == [30]
    loss = write(
        tmp_path / "ml" / "metrics" / "train_loss", "1786000000000 2.5 1\n1786000001000 2.4 2\n17860"
    )
    reader = Reader(metrics=tmp_path / "ml")
    assert reader.look() == [1, 2]
    assert reader.values() == {"loss": 2.4}
    write(loss, "00002000 2.3 3\nnot a line\n1786000003000 nan 1\n")
    assert reader.look() == [3, "restart_marker", 1]
    assert reader.look() == []


def test_what_cannot_be_read_is_not_passed_over() -> None:
    host = MemoryHost()
    host.files["/a"] = Unobservable("/a: Stale file handle")
    with pytest.raises(Unobservable, match="Stale"):
        Reader("/a", host=host).look()


def test_a_log_that_never_comes_is_told() -> None:
    reader = Reader("/none", host=MemoryHost())
    assert reader.look() == []
    assert not_there(reader.job, reader.news, JOB.started_at + 10, 300) is None
    assert "/none does not exist 400 s" in str(not_there(reader.job, reader.news, JOB.started_at + 400, 300))
    assert "say --log" in str(not_there(JOB, reader.news, JOB.started_at + 10, 300))
