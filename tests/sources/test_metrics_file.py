"""Any metrics file opened by what is in it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import math
import random
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.curves import Row
from clustertools.curves.rows import rows_of
from clustertools.errors import Absent, ConfigError, Unparsable
from clustertools.sources import metrics_file
from clustertools.sources.metrics_bytes import Bytes
from clustertools.sources.metrics_file import Metrics, open_metrics
from clustertools.sources.tensorboard import masked_crc32c
from clustertools.sources.training_values import Event, Point

LOGS = Path(__file__).parent.parent / "runs" / "logs"


def read(data: bytes, name: str = "x") -> tuple[Metrics, list[Point | Event]]:
    metrics = Metrics(name, Bytes(name, io.BytesIO(data)))
    return metrics, list(metrics)


def losses(data: bytes | str, name: str = "x") -> list[tuple[int | None, float | None]]:
    found = read(data.encode() if isinstance(data, str) else data, name)[1]
    return [(i.step, i.values.get("loss")) for i in found if isinstance(i, Point)]


def event_record(step: int, wall_time: float, **values: float) -> bytes:
    """A TFRecord with scalars, as TensorBoard writes it."""
    summary = b""
    for tag, value in values.items():
        inner = b"\x0a" + bytes([len(tag)]) + tag.encode() + b"\x15" + struct.pack("<f", value)
        summary += b"\x0a" + bytes([len(inner)]) + inner
    payload = (
        b"\x09"
        + struct.pack("<d", wall_time)
        + b"\x10"
        + bytes([step])
        + b"\x2a"
        + bytes([len(summary)])
        + summary
    )
    length = struct.pack("<Q", len(payload))
    return (
        length
        + struct.pack("<I", masked_crc32c(length))
        + payload
        + struct.pack("<I", masked_crc32c(payload))
    )


RECORDS = [{"step": n, "loss": n / 100, "grad_norm": 1.0} for n in (10, 20, 30)]
EXPECTED = [(10, 0.1), (20, 0.2), (30, 0.3)]
SHAPES = {
    "json lines": "\n".join(json.dumps(r) for r in RECORDS),
    "json lines with an end": "".join(json.dumps(r) + "\n" for r in RECORDS),
    "array": json.dumps(RECORDS),
    "array of lines": "[\n" + ",\n".join(json.dumps(r) for r in RECORDS) + "\n]",
    "array indented": json.dumps(RECORDS, indent=4),
    "trainer state": json.dumps({"best_metric": None, "log_history": RECORDS, "max_steps": 99}, indent=2),
    "trainer state in a line": json.dumps({"log_history": RECORDS}),
    "list under a key": json.dumps({"run": "x", "history": RECORDS}),
    "arrays": json.dumps({"step": [10, 20, 30], "loss": [0.1, 0.2, 0.3], "note": ["a"]}),
    "arrays deeper": json.dumps({"train": {"step": [10, 20, 30], "loss": [0.1, 0.2, 0.3]}}),
    "pairs": json.dumps({"train_loss": [[10, 0.1], [20, 0.2], [30, 0.3]]}),
    "golden": json.dumps(
        {
            "lm loss": {
                "start_step": 1,
                "end_step": 30,
                "step_interval": 10,
                "values": {"1": "nan", "10": 0.1, "20": 0.2, "30": 0.3},
            }
        }
    ),
    "golden list": json.dumps(
        {"lm loss": {"start_step": 10, "end_step": 35, "step_interval": 10, "values": [0.1, 0.2, 0.3]}}
    ),
    "pandas columns": json.dumps(
        {"step": {"0": 10, "1": 20, "2": 30}, "loss": {"0": 0.1, "1": 0.2, "2": 0.3}}
    ),
    "pandas split": json.dumps({"columns": ["step", "loss"], "data": [[10, 0.1], [20, 0.2], [30, 0.3]]}),
    "by step": json.dumps({"10": {"loss": 0.1}, "20": {"loss": 0.2}, "30": {"loss": 0.3}}),
    "series by step": json.dumps({"train_loss": {"10": 0.1, "20": 0.2, "30": 0.3}}),
    "tensorboard json": json.dumps(
        [[1700000000.5, 10, 0.1], [1700000001.5, 20, 0.2], [1700000002.5, 30, 0.3]]
    ),
    "tensorboard csv": "Wall time,Step,Value\n1700000000,10,0.1\n1700000001,20,0.2\n1700000002,30,0.3\n",
    "csv": "step,loss\n10,0.1\n20,0.2\n30,0.3\n",
    "csv, half a line": "step,loss\n10,0.1\n20,0.2\n30,0.3\n4",
    "csv quoted": '"step","loss"\n"10","0.1"\n"20","0.2"\n"30","0.3"\n',
    "tabs": "iteration\ttrain loss\n10\t0.1\n20\t0.2\n30\t0.3\n",
    "semicolons": "Step;Loss\n10;0,1\n20;0,2\n30;0,3\n",
    "wandb csv": (
        '"Step","a - train/loss","a - train/loss__MIN","a - train/loss__MAX","b - train/loss"\n'
        '"10","0.1","0.0","9","7"\n"20","0.2","0.0","9","7"\n"30","0.3","0.0","9",""\n'
    ),
    "wandb history": "\n".join(
        json.dumps({"_step": i, "_runtime": i, "train/global_step": r["step"], "train/loss": r["loss"]})
        for i, r in enumerate(RECORDS)
    ),
    "llm.c": "s:10 trl:0.1 norm:1.0\ns:10 tel:0.7\ns:20 trl:0.2 norm:1.0\ns:30 trl:0.3 norm:1.0\n",
    "build-nanogpt": "10 val 0.9\n10 hella 0.9\n10 train 0.1\n20 train 0.2\n30 train 0.3\n",
    "bare nan": '{"step": 5, "loss": 1.0, "x": nan}\n' + "\n".join(json.dumps(r) for r in RECORDS),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_every_shape(name: str, ends: str) -> None:
    found = [
        pair for pair in losses(SHAPES[name].replace("\n", ends)) if pair[1] is not None and pair[1] < 0.9
    ]
    assert found == EXPECTED


@pytest.mark.parametrize("name", sorted(p.name for p in LOGS.iterdir() if p.suffix != ".md"))
def test_the_samples_as_their_reader_reads_them(name: str) -> None:
    with open_metrics(str(LOGS / name)) as metrics:
        assert sum(isinstance(item, Point) for item in metrics) >= 2
        assert metrics.format not in (None, "text")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_packed_and_in_other_encodings(pack: Any, encoding: str) -> None:
    text = SHAPES["csv"].encode(encoding)
    assert losses(text) == EXPECTED
    assert losses(pack(text)) == EXPECTED
    assert losses(pack(text[:20]) + pack(text[20:])) == EXPECTED


def test_a_packed_file_that_is_cut_off() -> None:
    text = "step,loss\n" + "".join(f"{n},{random.Random(n).random()}\n" for n in range(5000))
    metrics, found = read(gzip.compress(text.encode())[:-1000])
    assert 3000 < len(found) < 5000
    assert any("cut off" in note for note in metrics.notes)


def test_event_files_by_their_content(tmp_path: Path) -> None:
    data = b"".join(event_record(n, 1700000000.0 + n, loss=n / 100, grad_norm=1.0) for n in (10, 20, 30))
    rows = [r for r in rows_of(iter(read(data)[1])) if isinstance(r, Row)]
    assert [(r.step, round(r.values["loss"], 3), r.values["grad_norm"]) for r in rows] == [
        (s, v, 1.0) for s, v in EXPECTED
    ]
    damaged, found = read(data[: 2 * len(data) // 3] + b"\xff" * 40)
    assert len(found) == 4
    assert damaged.notes
    # two files of one run, the second begun after a restart from step 20
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "events.out.tfevents.1700000000.a.1.0").write_bytes(data)
    again = b"".join(event_record(n, 1700009000.0 + n, loss=n / 100, grad_norm=2.0) for n in (20, 30, 40))
    (tmp_path / "logs" / "events.out.tfevents.1700009000.a.2.0").write_bytes(again)
    with open_metrics(str(tmp_path)) as metrics:
        steps = [(row.step, isinstance(row, Row)) for row in rows_of(iter(metrics))]
    assert metrics.format == "tensorboard"
    assert steps == [(10, True), (20, True), (30, True), (20, False), (20, True), (30, True), (40, True)]


def test_series_over_another_axis_are_no_steps() -> None:
    data = event_record(
        10, 1.0, **{"lm loss": 2.5, "lm loss vs samples": 2.5, "steps-vs-samples/y=steps": 9.0}
    )
    assert [(i.step, dict(i.values)) for i in read(data)[1] if isinstance(i, Point)] == [(10, {"loss": 2.5})]


@pytest.mark.parametrize(
    ("line", "step", "values"),
    [
        ("completed step: 10, seconds: 0.5, TFLOP/s/device: 100.1, Tokens/s/device: 1000.1, loss: 10.1", 10,
         {"loss": 10.1, "step_seconds": 0.5, "throughput_tokens_per_second": 1000.1}),
        ("07/10/2024 16:05:48 [INFO|DP=0|PP=0|ip-1]: iteration: 10 / 100 | consumed_tokens: 1.31M | "
         "elapsed_time_per_iteration_ms: 350 | tokens_per_sec: 375K | lm_loss: 10.9 | lr: 0.0003 ",
         10,
         {"loss": 10.9, "tokens": 1310000.0, "step_seconds": 0.35, "throughput_tokens_per_second": 375000.0}),
        ("01/29 21:35:34 - mmengine - INFO - Iter(train) [ 10/720]  lr: 9.0e-05  eta: 0:31:46  time: 2.68  "
         "data_time: 0.0077  loss: 2.69", 10, {"loss": 2.69, "step_seconds": 2.68, "learning_rate": 9e-05}),
        ("x - mmengine - INFO - Epoch(train)  [2][ 50/60]  lr: 9.0e-05  eta: 0:31:46  loss: 2.69", 110,
         {"loss": 2.69}),
        ("Epoch 1 | iter 10 step 5 | loss train: 2.345, val: n/a | iter time: 123.4 ms (step)", 10,
         {"loss": 2.345, "step_seconds": 0.1234}),
        ("[batch=10/4800]:\n\t Train time/batch: 9\n\t Train loss/train/total: 11.9\n", 10, {"loss": 11.9}),
        ("step:1 - actor/entropy_loss:0.5 - actor/pg_loss:-0.01 - actor/grad_norm:0.2 - timing_s/step:20.5",
         1,
         {"actor_pg_loss": -0.01, "grad_norm": 0.2, "step_seconds": 20.5}),
        ("Training epoch 0, iteration 10/100 | lr: 2.9e-06 | global_step: 110 | reduced_train_loss: 9.1 | "
         "train_step_timing in s: 5.2", 110, {"loss": 9.1, "step_seconds": 5.2}),
        ("step 5 loss: tensor(2.345, device='cuda:0')", 5, {"loss": 2.345}),
        ("2024 | INFO | Train Epoch: 1 [ 262/1000 (26%)] Loss: 10.9 Batch (t): 1.2 LR: 0.0001", 1262,
         {"loss": 10.9, "step_seconds": 1.2, "learning_rate": 0.0001}),
        ("Epoch: [0][  10/5005]\tTime  0.361 ( 1.2)\tLoss 6.9e+00 (7.0e+00)", 10,
         {"loss": 6.9, "step_seconds": 0.361}),
    ],
)  # fmt: skip
def test_lines_of_other_frameworks(line: str, step: int, values: dict[str, float]) -> None:
    (point,) = read(line.encode())[1]
    assert isinstance(point, Point)
    assert point.step == step
    assert {name: point.values.get(name) for name in values} == pytest.approx(values)


def test_mlflow_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    for key in ("loss", "grad_norm"):
        lines = [f"1700000{n}0000 {n / 100} {n}\n" for n in (10, 20, 30)]
        (tmp_path / "metrics" / key).write_text("".join(lines))
    with open_metrics(str(tmp_path / "metrics" / "loss")) as metrics:
        assert [(i.step, i.values["loss"]) for i in metrics if isinstance(i, Point)] == EXPECTED
    with open_metrics(str(tmp_path)) as metrics:
        rows = [r for r in rows_of(iter(metrics)) if isinstance(r, Row)]
    assert [(r.step, r.values["loss"], r.values["grad_norm"]) for r in rows] == [
        (s, v, v) for s, v in EXPECTED
    ]


def test_a_folder_says_what_it_chose(tmp_path: Path) -> None:
    inner = tmp_path / "out" / "checkpoint-30"
    inner.mkdir(parents=True)
    (inner / "trainer_state.json").write_text(SHAPES["trainer state"])
    with open_metrics(str(tmp_path)) as metrics:
        assert len(list(metrics)) == 3
    assert "trainer_state.json" in metrics.notes[0]


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"), (b" \n\n", "empty"), (b"PAR1....", "Parquet"), (b"(\xb5/\xfd....", "zstd"),
        (b"\x80\x04\x95....", "pickle"),
        (random.Random(1).randbytes(5000), "right file"), (b"PK\x03\x04....", "zip"),
        (b"hello\nthere\n", "header line"), (b"{}", "no metrics"), (b"[]", "no metrics"),
        (b"[[[[[[", "no metrics"),
        (b'{"a": ' * 5000, "no metrics"), (b"[" * 100_000, "no metrics"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_what_to_try(data: bytes, word: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(Unparsable, match=word):
        list(open_metrics(str(path)))


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Absent, match="there is no"):
        open_metrics(str(tmp_path / "no"))
    with pytest.raises(Absent, match="give the file itself"):
        open_metrics(str(tmp_path))
    with pytest.raises(ConfigError, match="choose from"):
        open_metrics(str(LOGS / "olmo.log"), "ollmo")
    with pytest.raises(Unparsable, match="neither a file"):
        open_metrics("/dev/zero")


def test_a_document_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_file, "DOCUMENT_CAP_BYTES", 1 << 20)
    large = b'{"a": [' + b"1, " * (1 << 20)
    with pytest.raises(Unparsable, match="jq -c"):
        read(large)


def test_an_array_of_any_size_is_streamed() -> None:
    data = b"[" + b",\n".join(b'{"step": %d, "loss": NaN}' % n for n in range(15_000)) + b', {"step": 4'
    metrics, found = read(data)
    assert len(found) == 15_000
    assert metrics.unread == 1


def test_half_a_document_gives_what_is_in_it() -> None:
    metrics, found = read(SHAPES["trainer state"].encode()[:-80])
    assert [i.step for i in found] == [10, 20]
    assert metrics.notes


@pytest.mark.parametrize(
    "text",
    [
        "nan",
        "NaN",
        "NAN",
        "-nan",
        '"nan"',
        '"NaN"',
        "1.#QNAN",
        "-1.#IND",
        "nan(ind)",
        "-nan(ind)",
        '"-nan"',
    ],
)
def test_nan_in_every_spelling(text: str) -> None:
    before = '{"step": 1, "loss": 2.0, "lr": 1}\n'
    assert math.isnan(losses(before + f'{{"step": 2, "loss": {text}, "lr": 1}}\n')[1][1] or 0.0)
    assert math.isnan(losses(f"step,loss,lr\n1,2.0,1\n2,{text},1\n")[1][1] or 0.0)
    plain = text.strip('"')
    assert math.isnan(losses(f"step 1 loss: 2.0\nstep 2 loss: {plain} lr: 1\n")[1][1] or 0.0)


@pytest.mark.parametrize("text", ["inf", "Infinity", "-Infinity", "-inf", "INF", "1.#INF", '"inf"'])
def test_infinity_in_every_spelling(text: str) -> None:
    assert math.isinf(losses(f'{{"step": 2, "loss": {text}}}\n')[0][1] or 0.0)
    assert math.isinf(losses(f"step,loss\n2,{text}\n")[0][1] or 0.0)
    plain = text.strip('"')
    assert math.isinf(losses(f"step 2 loss: {plain}\n")[0][1] or 0.0)


@pytest.mark.parametrize("text", ["null", "None"])
def test_null_where_a_number_was_is_missing(text: str) -> None:
    found = read(
        ('{"step": 1, "loss": 2.0, "lr": 1}\n' + f'{{"step": 2, "loss": {text}, "lr": 1}}\n').encode()
    )[1]
    assert isinstance(found[1], Point)
    assert found[1].missing == ("loss",)


def test_what_could_not_be_read_is_counted() -> None:
    lines = (
        '{"step": 1, "loss": 2.0}\n{"step": 2, "lo\n{"step": 3, "lo{"step": 4, "loss": 2.5}\n{"step": 5, "los'
    )
    metrics, found = read(lines.encode())
    assert [i.step for i in found] == [1, 4]
    assert metrics.unread == 3
    metrics, found = read(b"step,loss,lr\n1,2.0,1\n2,2.\n3,2.0,1\nfoo,bar,baz\n\n")
    assert [i.step for i in found] == [1, 3]
    assert metrics.unread == 2


class Endless(io.RawIOBase):
    """A pipe through which `size` bytes come, made of one piece again and again."""

    def __init__(self, head: bytes, piece: bytes, size: int) -> None:
        self.head, self.piece, self.left = head, piece, size

    def read1(self, count: int = -1) -> bytes:
        if self.head:
            head, self.head = self.head, b""
            return head
        data = self.piece[: min(len(self.piece), self.left)]
        self.left -= len(data)
        return data


def _rss_kb() -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0])


LINE = b"a line of the data loader 0123456789 abcdefghij klmnopqrst uvwxyz\n"


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"iter 1: loss 2.5, time 5.0ms\n", LINE * 4000),
        (b"step,loss\n1,2.0\n", b"x" * 200_000),
        (b'{"step": 1, "loss": 2.0}\n', b'{"step": 2, "loss": ' + b" " * 200_000),
        (b'[{"step": 1, "loss": 2.0},\n', b'{"a": "' + b"x" * 250_000),
        (gzip.compress(b'{"step": 1, "loss": 2.0}\n'), gzip.compress(b"x" * 5_000_000)),
    ],
    ids=["text", "csv", "json lines", "json array", "gzip"],
)
def test_flat_memory(head: bytes, piece: bytes) -> None:
    size = 20_000_000 if piece[:2] != b"\x1f\x8b" else 200_000
    source: BinaryIO = Endless(head, piece, size)  # type: ignore[assignment]
    before, most = _rss_kb(), 0
    bytes_of = Bytes("x", source)
    real, count = bytes_of.read, 0

    def counted() -> bytes:
        nonlocal most, count
        count += 1
        if count % 50 == 0:
            most = max(most, _rss_kb())
        return real()

    bytes_of.read = counted  # type: ignore[method-assign]
    metrics = Metrics("x", bytes_of)
    assert sum(1 for _ in metrics) >= 1
    assert max(most, _rss_kb()) - before < 60_000


_TOKENS = st.sampled_from(
    [
        b'{"step": 1, "loss": 2.0}', b"{", b"[", b'"', b"step", b"loss", b",", b":", b"\n", b"\r\n", b"1",
        b"nan", b"NaN", b"-nan(ind)", b"null", b"step,loss\n", b"1,2.0\n",
        b"iter 5: loss nan, time 1.0ms\n", b"\x00", b"\xff\xfe", b"}", b"]",
        b" iteration  3/ 9 | lm loss: 2.0 | ", b"\xef\xbb\xbf", b"1e999", b"-", b"Wall time,Step,Value\n",
        b"step: 3 loss: ", b"{'loss': 2.0, 'epoch': 0.1}\n", b"s:5 trl:",
        b" 12%|x| 5/9 [00:01<00:02, 1.0it/s]\r", b'{"log_history": [', b'"values": {"1": "nan"}',
        b"1700000000000 2.0 5\n", b"\x1f\x8b", b":W&B\xe1\xbe\x00",
    ]
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(_TOKENS, _TOKENS, st.binary(max_size=6)), max_size=40))
def test_any_content_is_read_or_refused(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    try:
        metrics = Metrics("x", Bytes("x", io.BytesIO(data)))
        items = list(metrics)
    except Unparsable:
        return
    for row in rows_of(iter(items)):
        assert isinstance(row.step, int)


def test_bytes_that_come_one_by_one_through_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            return super().read1(1)

    for text in (SHAPES["csv"], SHAPES["array"], SHAPES["json lines"], SHAPES["trainer state"]):
        metrics = Metrics("-", Bytes("-", Slow(text.encode())))
        assert [(i.step, i.values["loss"]) for i in metrics if isinstance(i, Point)] == EXPECTED


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    class Input:
        buffer = io.BytesIO(SHAPES["csv"].encode())

    monkeypatch.setattr(sys, "stdin", Input)
    with open_metrics("-") as metrics:
        assert len(list(metrics)) == 3
