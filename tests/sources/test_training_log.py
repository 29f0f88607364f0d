"""Training logs of every family, however they are cut, prefixed, coloured, rotated or torn."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import Absent, ConfigError, Unparsable
from clustertools.host import LocalHost
from clustertools.sources import training_log
from clustertools.sources.training_log import (
    Event,
    LogReader,
    Point,
    follow,
    from_json,
    to_json,
)
from clustertools.sources.training_loggers import read_trainer_state, read_wandb_summary

LOGS = Path(__file__).parent.parent / "runs" / "logs"
ALL = sorted(p.name for p in LOGS.iterdir() if p.suffix in (".log", ".jsonl", ".csv"))


def records(text: str | bytes, format: str | None = None) -> list[Point | Event]:
    reader = LogReader(format)
    return reader.feed(text) + reader.close()


def points(text: str | bytes) -> list[Point]:
    return [r for r in records(text) if isinstance(r, Point)]


def events(name: str) -> list[tuple[str, int | None]]:
    return [(r.kind, r.step) for r in records((LOGS / name).read_bytes()) if isinstance(r, Event)]


def sample(name: str) -> tuple[list[Point], LogReader]:
    reader = LogReader()
    found = reader.feed((LOGS / name).read_bytes()) + reader.close()
    return [r for r in found if isinstance(r, Point)], reader


def same(a: list[Point | Event], b: list[Point | Event]) -> bool:
    return [to_json(x) for x in a] == [to_json(x) for x in b]  # nan is not equal to itself; its JSON is


FORMAT_OF = {
    "deepspeed.log": "deepspeed",
    "fairseq.log": "fairseq",
    "generic.jsonl": "jsonl",
    "generic.log": "generic",
    "hf_trainer.log": "hf_trainer",
    "lightning.log": "progress_bar",
    "llamafactory.jsonl": "llamafactory",
    "llm_c.log": "generic",
    "megatron.log": "megatron",
    "megatron_deepspeed.log": "megatron",
    "metaseq.log": "metaseq",
    "metrics.csv": "csv",
    "nanogpt.log": "nanogpt",
    "olmo.log": "olmo",
    "olmo_core.log": "olmo",
    "torchtitan.log": "torchtitan",
}


@pytest.mark.parametrize("name", ALL)
def test_the_format_is_recognised(name: str) -> None:
    assert sample(name)[1].format == FORMAT_OF[name]


def losses(name: str) -> list[tuple[int | None, float]]:
    """(step, loss) of the points that have one; nan as -1 so that lists compare."""
    found = [(p.step, p.values["loss"]) for p in sample(name)[0] if "loss" in p.values]
    return [(s, v if math.isfinite(v) else -1.0) for s, v in found]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fairseq.log", [(100, 9.1), (200, 8.2)]),
        ("generic.jsonl", [(10, 3.41), (20, 3.31), (30, -1.0)]),
        ("generic.log", [(101, 3.4), (102, 3.35), (103, 3.3), (105, -1.0)]),
        ("hf_trainer.log", [(120, 2.3451), (130, 0.0), (140, 2.1)]),
        ("lightning.log", [(12, 2.34), (100, 2.11), (101, 2.09)]),
        ("llamafactory.jsonl", [(10, 1.8123), (20, 1.6034), (30, -1.0), (20, 1.6001)]),
        ("llm_c.log", [(1, 11.009), (2, 10.9501), (3, 10.7501)]),
        ("megatron.log", [(91, 7.223456), (92, 7.193321), (93, 7.150019), (95, 7.123456), (96, 7.091919)]),
        ("metaseq.log", [(3000, 5.123), (3001, 5.119), (3002, -1.0)]),
        ("metrics.csv", [(49, 2.51), (99, 2.11), (149, 1.98), (199, -1.0)]),
        ("nanogpt.log", [(0, 10.9886), (10, 9.5432), (20, 8.912), (30, -1.0)]),
        ("olmo.log", [(100, 2.345), (101, 2.331), (102, 2.321)]),
        ("olmo_core.log", [(100, 2.345), (110, -1.0)]),
        ("torchtitan.log", [(510, 7.12345), (520, 7.02345), (530, -1.0)]),
    ],
)
def test_losses(name: str, expected: list[tuple[int, float]]) -> None:
    assert losses(name) == expected


def test_the_loss_is_told_once_when_deepspeed_runs_under_megatron() -> None:
    assert losses("megatron_deepspeed.log")[-2:] == [(12696, 2.451118), (12697, 2.470022)]


def test_megatron_values_and_the_loss_that_is_left_out() -> None:
    found, _ = sample("megatron.log")
    first, nan = found[0], found[3]
    assert first.values["step_seconds"] == pytest.approx(25.2103)
    assert first.values["param_norm"] == 100.101
    assert (first.rank, first.total_steps) == (7, 500000)
    assert found[1].time is not None
    assert found[1].time - (found[0].time or 0) == pytest.approx(5.2103)
    assert (nan.step, nan.missing, nan.non_finite) == (94, ("loss",), True)
    assert math.isnan(nan.values["grad_norm"])
    assert [p.step for p in found if p.non_finite] == [94]
    evaluation = next(p for p in found if p.evaluation)
    assert (evaluation.step, evaluation.values["eval_loss"]) == (95, 7.101234)


def test_a_megatron_line_that_was_torn_off_is_no_nan() -> None:
    line = " iteration 7/ 90 | lm loss: 2.0E+00 | grad norm: 0.5 | number of nan iterations: 0 |"
    torn = (
        " iteration 8/ 90 | learning rate: 1E-5 | iteration 9/ 90 | learning rate: 1E-5 | lm loss: 2.0E+00 |"
    )
    found = points(f"{line}\n{torn}\n")
    assert [p.step for p in found] == [7, 8, 9]
    assert not any(p.missing for p in found)


def test_hf_steps_come_from_the_training_bar_not_the_evaluations() -> None:
    found, _ = sample("hf_trainer.log")
    assert {p.total_steps for p in found} == {1000}
    assert [p.step for p in found if p.evaluation] == [130]
    # loss 0.0 beside a nan grad norm is how the Trainer prints a loss that is not a number
    assert [p.step for p in found if p.non_finite] == [130]


def bar(n: int, total: int, what: str = "", more: str = "") -> str:
    return f"\r{what}{100 * n // total:3d}%|███  | {n}/{total} [00:10<01:20,  1.50it/s{more}]"


def test_hf_bars_when_only_the_losses_tell_which_bar_is_the_training() -> None:
    loss = "\r{'loss': 2.5, 'epoch': 0.1}\n"
    # seen from inside an evaluation: its bar comes first, and the training's after it
    text = bar(3, 50) + bar(50, 50) + bar(101, 1000) + loss + bar(7, 50) + bar(102, 1000) + "\n"
    found = points(text)
    assert [p.step for p in found if "loss" in p.values] == [101]
    assert [p.step for p in found][-2:] == [101, 102]
    # the longer bar is believed until a loss follows the other
    assert [p.step for p in points(bar(9, 1000) + bar(3, 50) + bar(10, 1000) + "\n")] == [9, 10]
    short = points(bar(5, 20) + loss + bar(30, 500) + bar(6, 20) + loss)
    assert [p.step for p in short if "loss" in p.values] == [5, 6]
    # an evaluation longer than the training is taken for it until the first loss
    short = points(bar(30, 500) + bar(5, 20) + loss + bar(40, 500) + bar(6, 20) + "\n")
    assert [(p.step, p.total_steps) for p in short][1:] == [(5, 20), (6, 20)]


@pytest.mark.parametrize("what", ["", "Training: "])
def test_a_bar_that_begins_anew_every_epoch_goes_on_counting(what: str) -> None:
    more = ", loss=2.5" if what else ""
    text = "".join(bar(n, 4, what, more) for _ in range(3) for n in range(5)) + "\n"
    found = records(text)
    assert [r.step for r in found] == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 10, 11, 12]
    assert all(isinstance(r, Point) for r in found)


def test_epoch_bars_of_other_spellings() -> None:
    text = bar(3, 10, "Epoch [2/5]: ") + bar(4, 10, "Epoch 2/5: ") + "\n"
    assert [p.step for p in points(text)] == [23, 24]


def test_torchtitan_colours_separators_and_units() -> None:
    found, _ = sample("torchtitan.log")
    assert found[0].values["throughput_tokens_per_second"] == 7123
    assert found[0].values["grad_norm"] == 1.2345
    assert "mfu" not in found[1].values
    assert found[0].rank == 0
    assert next(p for p in found if p.evaluation).values["eval_loss"] == 7.1234


def test_olmo_records_end_with_the_next_line_of_their_rank() -> None:
    found, _ = sample("olmo_core.log")
    # a line of another rank stands between the fields of the first record
    assert found[0].values["learning_rate"] == 3e-4
    assert found[0].values["tokens"] == 419430400
    assert found[0].total_steps is None
    assert sample("olmo.log")[0][0].total_steps == 500000


def test_deepspeed_overflows_are_points_without_a_step() -> None:
    found, _ = sample("deepspeed.log")
    assert [p.values["loss_scale"] for p in found if p.step is None] == [32768, 16384]
    assert found[2].values["skipped_steps_total"] == 2


def test_json_null_is_missing_where_a_number_was() -> None:
    found, _ = sample("generic.jsonl")
    assert (found[3].step, found[3].missing) == (40, ("loss",))
    assert found[2].values["grad_norm"] == math.inf
    assert found[0].time == 1767323045.5


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("megatron.log", ["resumed 90", "checkpoint_started 95", "checkpoint_saved 95", "finished 96"]),
        ("deepspeed.log", ["checkpoint_started 10", "checkpoint_saved 10"]),
        ("hf_trainer.log", ["evaluation None", "checkpoint_started 130", "finished 140", "finished None"]),
        ("lightning.log", ["evaluation None", "evaluation None", "finished None"]),
        ("llamafactory.jsonl", ["restart_marker 20"]),
        ("nanogpt.log", ["checkpoint_started None"]),
        (
            "torchtitan.log",
            ["resumed 500", "checkpoint_started None", "checkpoint_saved None", "finished None"],
        ),
        ("olmo.log", ["resumed 99", "checkpoint_started None", "checkpoint_saved 101", "evaluation None"]),
        ("olmo_core.log", ["checkpoint_started 110", "checkpoint_saved 110", "finished None"]),
        (
            "fairseq.log",
            [
                "resumed 50",
                "evaluation None",
                "checkpoint_started 200",
                "checkpoint_saved 200",
                "finished None",
            ],
        ),
        ("generic.log", ["resumed 100"]),
    ],
)
def test_events(name: str, expected: list[str]) -> None:
    assert [f"{kind} {step}" for kind, step in events(name)] == expected


@pytest.mark.parametrize(
    "text",
    [
        "Loading checkpoint shards:  50%|█████     | 1/2 [00:03<00:03,  3.10s/it]",
        "torchtitan - INFO - Training starts at step 1",
        "WARNING: could not load any checkpoint, will start from random",
        "checkpoint_interval ............... 500",
        "Training arguments: resume_from_checkpoint=None, evaluation_strategy=steps",
        "NCCL INFO Channel 05/0 : 3[3] -> 11[3] [send] via NET/IB/3/GDRDMA step 0",
        "[step by step guide] see the loss of precision",
        "{'a': 1}",
        "step",
        "{}",
        '{"step": 3, "msg": "opened"}',
        "loss",
    ],
)
def test_lines_that_say_nothing(text: str) -> None:
    assert records(text + "\n") == []


@pytest.mark.parametrize(
    ("prefix", "rank"),
    [
        ("[default7]:", 7),
        ("[rank3]: ", 3),
        ("12: ", 12),
        ("[1,5]<stdout>:", 5),
        ("[Rank 4] ", 4),
        ("2026-01-02T03:04:05.123456789Z stdout F ", None),
        ("2026-01-02T03:04:05.123456789Z ", None),
        ("(Trainer pid=4711, ip=10.0.0.1) ", None),
        ("2026-01-02 03:04:05,678 - root - INFO - ", None),
        ("[2026-01-02 03:04:05,678] [INFO] [train.py:10:main] ", None),
        ("\x1b[36m[rank2]:\x1b[0m ", 2),
    ],
)
@pytest.mark.parametrize(
    "line",
    ["iter 100: loss 3.5, time 250.00ms, mfu 35.20%", '{"step": 100, "loss": 3.5}', "step=100 loss=3.5"],
)
def test_prefixes_come_off(prefix: str, rank: int | None, line: str) -> None:
    (point,) = points(prefix + line + "\n")
    assert (point.step, point.values["loss"], point.rank) == (100, 3.5, rank)
    if "2026" in prefix:
        assert point.time is not None
        assert int(point.time) == 1767323045


def test_text_inside_the_json_of_a_container_runtime() -> None:
    wrapped = {"log": "[rank3]: step=7 loss=2.5\n", "stream": "stdout", "time": "2026-01-02T03:04:05.5Z"}
    (point,) = points(json.dumps(wrapped) + "\n")
    assert (point.step, point.values["loss"], point.rank, point.time) == (7, 2.5, 3, 1767323045.5)


@pytest.mark.parametrize("text", ["nan", "NaN", "-nan", "NAN", '"nan"', '"NaN"'])
def test_spellings_of_nan(text: str) -> None:
    plain = text.strip('"')
    for line in (f"step=5 loss={plain}", f'{{"step": 5, "loss": "{plain}"}}'):
        (point,) = points(line + "\n")
        assert math.isnan(point.values["loss"])


def test_interleaved_ranks_restart_once() -> None:
    def steps(first: int, last: int) -> str:
        return "".join(f"[rank{r}]: step={s} loss=2.0\n" for s in range(first, last) for r in (1, 0, 2))

    found = records(steps(10, 20) + steps(15, 22) + steps(12, 14))
    assert [(e.kind, e.step) for e in found if isinstance(e, Event)] == [
        ("restart_marker", 15),
        ("restart_marker", 12),
    ]


def test_ranks_that_lag_behind_are_no_restart() -> None:
    found = records("[rank0]: step=11 loss=2\n[rank1]: step=10 loss=2\n[rank0]: step=12 loss=2\n")
    assert not any(isinstance(e, Event) for e in found)


def test_every_rank_says_that_it_saves_and_it_is_told_once() -> None:
    text = "".join(f"[rank{r}]: saving checkpoint at iteration 50 to /c\n" for r in range(8))
    assert len(records(text)) == 1


def test_times_in_records() -> None:
    stamps = [1767323045.5, 1767323045500, "2026-01-02T03:04:05.5+00:00", "2026-01-02T05:34:05.5+02:30"]
    for stamp in stamps:
        (point,) = points(json.dumps({"step": 1, "loss": 2.0, "timestamp": stamp}) + "\n")
        assert point.time == 1767323045.5
    # seconds since the start of the run are a number, not a moment
    (point,) = points('{"step": 1, "loss": 2.0, "time": 12.5}\n')
    assert point.time is None


def test_offsets_are_bytes_of_the_file() -> None:
    data = "wärmup ✓\nstep=1 loss=2\nnothing\n[rank0]: step=2 loss=3\n".encode()
    found = points(data)
    assert [data[p.offset_bytes :].split(b"\n")[0] for p in found] == [
        b"step=1 loss=2",
        b"[rank0]: step=2 loss=3",
    ]


def test_a_line_over_the_cap_is_cut_and_counted() -> None:
    reader = LogReader()
    found = reader.feed(b"x" * (3 << 20) + b"\nstep=1 loss=2\n" + b"y" * (2 << 20) + b" step=9 loss=1\n")
    assert [p.step for p in found if isinstance(p, Point)] == [1]
    assert reader.cut_lines == 2


def test_a_format_may_be_fixed() -> None:
    text = "step=1 loss=2\niter 100: loss 3.5, time 250.00ms, mfu 35.20%\n"
    assert [p.step for p in records(text, "nanogpt") if isinstance(p, Point)] == [100]
    with pytest.raises(ConfigError, match="no log format"):
        LogReader("word")


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_cutting_and_any_restart_give_the_same(name: str, data: st.DataObject) -> None:
    whole = (LOGS / name).read_bytes()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    reader, found = LogReader(), []
    for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        found += reader.feed(whole[begin:end])
        if data.draw(st.booleans()):
            reader = LogReader.from_state(json.loads(json.dumps(reader.state())))
    found += reader.close()
    assert same(found, records(whole))


@pytest.mark.parametrize("name", ALL)
def test_byte_by_byte_gives_the_same(name: str) -> None:
    whole = (LOGS / name).read_bytes()
    reader, found = LogReader(), []
    for i in range(len(whole)):
        found += reader.feed(whole[i : i + 1])
    assert same(found + reader.close(), records(whole))


_PIECES = st.sampled_from(
    [
        b"\n", b"\r", b"\x00", b"\xff\xfe", b"\x1b[31m", b"[step=1/2,epoch=0]\n", b"    a/b=nan\n",
        b"{'loss': nan", b'{"step": ', b"}", b"iteration 5/ 9 | ", b"lm loss: ", b"| ", b"step=", b"9" * 40,
        b" 12%|##| 1/9 [00:01<00:02, 1.0it/s]", b"[default", b"2026-99-99 99:99:99 ", b"epoch,step,loss\n",
        b"1,2,3\n", b"1e999", b"nan", b"saving checkpoint at iteration 5 to ", b"[" * 3000,
        b"OVERFLOW! Skipping step. Attempted loss scale: ", b'{"step": 1, "loss": ' + b"[" * 2000,
        b"epoch 1: 1 / 2 loss=1, num_updates=", "١٢".encode(),
    ]
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(_PIECES, st.binary(max_size=20)), max_size=30))
def test_hostile_input_is_answered(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    reader, found = LogReader(), []
    for piece in pieces:
        found += reader.feed(piece)
        json.dumps(reader.state())
    found += reader.close()
    assert same(found, records(whole))
    for item in found:
        assert same([from_json(json.loads(json.dumps(to_json(item), allow_nan=False)))], [item])


@pytest.mark.parametrize(
    "line",
    [
        b"step " * 200_000,
        b"loss=1 " * 140_000,
        b"a " * 500_000 + b"step=5",
        b"step=1 " + b"a.b/c-" * 160_000,
        b"{'" + b"'a': 1, " * 120_000 + b"}",
        b"%|" * 500_000,
        b" " * 1_000_000 + b"%| loss",
        b"[step=" + b"1," * 500_000 + b"]",
        b'{"step": 1, ' + b'"a": {' * 150_000,
        b"resuming " * 100_000 + b"step 5",
        b"\x1b" * 1_000_000 + b"loss",
        b"[default1]:" * 90_000 + b" step",
    ],
    ids=range(12),
)
def test_long_lines_take_no_long_time(line: bytes) -> None:
    import time

    began = time.monotonic()
    records(line + b"\n")
    assert time.monotonic() - began < 2.0  # quadratic behaviour would take minutes


@pytest.fixture
def host() -> LocalHost:
    return LocalHost()


def test_follow_reads_only_what_is_new(tmp_path: Path, host: LocalHost) -> None:
    log = tmp_path / "train.log"
    log.write_text("step=1 loss=3\nstep=2 lo")
    look = follow(host, str(log), {})
    assert [p.step for p in look.points] == [1]
    assert look.grew
    with log.open("a") as file:
        file.write("ss=2.5\nstep=3 loss=2\n")
    look = follow(host, str(log), json.loads(json.dumps(look.memory)))
    assert [(p.step, p.values["loss"]) for p in look.points] == [(2, 2.5), (3, 2.0)]
    assert (look.format, look.behind_bytes, look.size_bytes) == ("generic", 0, log.stat().st_size)
    again = follow(host, str(log), look.memory)
    assert (again.items, again.grew, again.rotated, again.truncated) == ((), False, False, False)


def test_follow_after_rotation_reads_the_rest_of_the_old_file(tmp_path: Path, host: LocalHost) -> None:
    log = tmp_path / "train.log"
    log.write_text("step=1 loss=3\n")
    look = follow(host, str(log), {})
    with log.open("a") as file:
        file.write("step=2 loss=2.5\n")
    log.rename(tmp_path / "train.log.1")
    log.write_text("step=3 loss=2\n")
    look = follow(host, str(log), look.memory)
    assert [p.step for p in look.points] == [2, 3]
    assert look.rotated
    assert "replaced" in look.note


@pytest.mark.parametrize("text", ["step=9 loss=1\n", "step=9 loss=1\n" + "longer than before\n" * 9])
def test_follow_notices_a_file_written_anew_in_place(tmp_path: Path, host: LocalHost, text: str) -> None:
    log = tmp_path / "train.log"
    log.write_text("step=1 loss=3\nstep=2 loss=2\n")
    look = follow(host, str(log), {})
    log.write_text(text)
    os.utime(log, (1, 1))
    look = follow(host, str(log), look.memory)
    assert look.truncated
    assert [p.step for p in look.points] == [9]
    assert [e.kind for e in look.events] == []  # a step further on: the run did not go back


def test_follow_a_csv_whose_header_was_rewritten(tmp_path: Path, host: LocalHost) -> None:
    log = tmp_path / "metrics.csv"
    log.write_text("step,train_loss\n1,3.0\n2,2.9\n")
    look = follow(host, str(log), {})
    log.write_text("step,train_loss,val_loss\n1,3.0,\n2,2.9,\n3,2.8,\n3,,2.95\n")
    look = follow(host, str(log), look.memory)
    assert look.truncated
    assert look.points[-1].values == {"eval_loss": 2.95}


def test_follow_a_huge_file_from_near_its_end_and_in_parts(
    tmp_path: Path, host: LocalHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_log, "FIRST_LOOK_BYTES", 1000)
    monkeypatch.setattr(training_log, "READ_CAP_BYTES", 300)
    log = tmp_path / "metrics.csv"
    log.write_text("step,loss\n" + "".join(f"{i},2.5\n" for i in range(1000)))
    look, seen = follow(host, str(log), {}), []
    assert "first seen" in look.note
    while True:
        seen += [p.step for p in look.points]
        if not look.behind_bytes:
            break
        look = follow(host, str(log), look.memory)
    assert seen == list(range(seen[0], 1000))
    assert 100 < len(seen) < 200


def test_follow_counts_bytes_not_characters(tmp_path: Path, host: LocalHost) -> None:
    log = tmp_path / "train.log"
    log.write_bytes(b"\xff\xfe\xfa caf\xc3" * 50 + b"\nstep=1 loss=3\n")
    look = follow(host, str(log), {})
    with log.open("ab") as file:
        file.write(b"step=2 loss=3\n")
    look = follow(host, str(log), look.memory)
    assert [p.step for p in look.points] == [2]
    assert log.read_bytes()[look.points[0].offset_bytes :] == b"step=2 loss=3\n"


def test_follow_ends_an_olmo_record_when_its_writer_is_quiet(tmp_path: Path, host: LocalHost) -> None:
    log = tmp_path / "train.log"
    log.write_text("[step=5/9,epoch=0]\n    train/CrossEntropyLoss=2.5\n")
    look = follow(host, str(log), {})
    assert look.points == ()
    look = follow(host, str(log), look.memory)
    assert [(p.step, p.values["loss"]) for p in look.points] == [(5, 2.5)]
    assert follow(host, str(log), look.memory).points == ()


def test_follow_without_a_file_and_with_foreign_memory(tmp_path: Path, host: LocalHost) -> None:
    with pytest.raises(Absent):
        follow(host, str(tmp_path / "none.log"), {})
    log = tmp_path / "train.log"
    log.write_text("step=1 loss=3\n")
    assert len(follow(host, str(log), {"offset": 99, "reader": {"version": 0}}).points) == 1


def test_trainer_state() -> None:
    text = json.dumps(
        {
            "max_steps": 300,
            "log_history": [
                {"epoch": 0.1, "grad_norm": 1.5, "learning_rate": 1e-5, "loss": 2.5, "step": 10},
                {"epoch": 0.2, "eval_loss": 2.25, "eval_runtime": 3.0, "step": 20},
                {"epoch": 1.0, "step": 300, "train_loss": 2.0, "train_runtime": 100.0},
            ],
        }
    )
    first, second = read_trainer_state(text)
    assert (first.step, first.values["loss"], first.total_steps) == (10, 2.5, 300)
    assert second.evaluation
    for broken in ("", "[]", '{"log_history": 3}', text[:50]):
        with pytest.raises(Unparsable):
            read_trainer_state(broken)


def test_wandb_summary() -> None:
    point = read_wandb_summary(
        '{"_step": 40, "_runtime": 12.5, "_timestamp": 1767323045.5, "train/loss": "NaN"}'
    )
    assert point is not None
    assert (point.step, point.time) == (40, 1767323045.5)
    assert point.non_finite
    assert read_wandb_summary("{}") is None
    with pytest.raises(Unparsable):
        read_wandb_summary("torn {")


def test_run_as_a_program(tmp_path: Path) -> None:
    shutil.copy(LOGS / "metaseq.log", tmp_path / "a.log")
    done = subprocess.run(
        [sys.executable, "-m", "clustertools.sources.training_log", str(tmp_path / "a.log"), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1]["values"]["loss"] == "nan"
    assert same([from_json(line) for line in lines], records((LOGS / "metaseq.log").read_bytes()))
    assert "format metaseq" in done.stderr
