"""`clustertools metrics`: real forms of logs, pipes, hostile and broken ones; what is told, the exit code."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import re
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from clustertools.cli import main
from clustertools.cli.metrics_read import read as read_series
from clustertools.cli.metrics_scan import KINDS, event_rows, scan
from clustertools.cli.metrics_tail import Screen
from clustertools.cli.metrics_tail import tail as follow
from clustertools.curves import CurveEvent, News, watch

LOGS = Path(__file__).parent.parent / "runs" / "logs"
FIRST_KEYS = [
    "kind", "metric", "step", "end_step", "value", "baseline", "confidence", "severity", "message",
]  # fmt: skip


#: What no terminal and no page may get as it is.
HOSTILE = "\x1b]0;owned\x07<script>alert(1)</script>\u202e\x9b31m"


class Ten:
    """A detector of which every test knows what it says: a loss of ten and more is a spike while it lasts."""

    def __init__(self, state, options):
        self.extra, self.open = options.extra, state and CurveEvent(**state)

    def add(self, row, story, told):
        for name in ("loss", *self.extra):
            value = row.values.get(name)
            if value is None:
                continue
            if value >= 10 and self.open is None:
                severity = "page" if value >= 1000 else "notice"
                self.open = CurveEvent(
                    story.number(), "spike", name, row.step, row.step, value, 2.0, 0.9, severity,
                    f"{name} {value:g} at step {row.step}",
                )  # fmt: skip
                told.append(News("began", self.open))
            elif value < 10 and self.open is not None:
                told.append(
                    News("recovered", replace(self.open, end_step=row.step - 1, recovered_step=row.step))
                )
                self.open = None

    def restart(self, restart, story, told):
        pass

    def finish(self, story, told):
        pass

    def state(self):
        return self.open and asdict(self.open)


@pytest.fixture
def ten(monkeypatch):
    monkeypatch.setattr(watch, "DETECTORS", {"ten": Ten})


def log(path: Path, losses: dict[int, object], *, key: str = "loss") -> Path:
    path.write_text("".join(json.dumps({"step": step, key: loss}) + "\n" for step, loss in losses.items()))
    return path


@pytest.fixture
def spiky(tmp_path, ten) -> Path:
    return log(tmp_path / "spiky.jsonl", {n: 20.0 if n in (50, 51, 80) else 2.0 for n in range(100)})


def scanned(capsys, *words, code):
    assert main(["metrics", "scan", *map(str, words)]) == code
    return capsys.readouterr()


@pytest.mark.parametrize("name", sorted(p.name for p in LOGS.iterdir() if p.suffix != ".md"))
def test_every_real_form_is_recognised(name, capsys):
    assert main(["metrics", "scan", str(LOGS / name)]) in (0, 1, 2)
    told = capsys.readouterr()
    assert re.search(r" rows?; steps \d", told.err)
    assert "(None)" not in told.err


def test_one_event_a_line_in_the_order_of_steps(spiky, capsys):
    told = scanned(capsys, spiky, code=1)
    first, second = told.out.splitlines()
    assert first.split() == "notice spike loss 50-51 2 -> 20 0.90 loss 20 at step 50".split()
    assert second.split()[3] == "80"
    assert "100 rows; steps 0 to 99; 1 series (loss); 0 isolated outliers" in told.err


def test_json_has_the_nine_keys_first(spiky, capsys):
    told = scanned(capsys, spiky, "--json", code=1)
    events = [json.loads(line) for line in told.out.splitlines()]
    assert [list(e)[:9] for e in events] == [FIRST_KEYS] * 2
    assert events[0]["kind"] == "spike"
    assert (events[0]["step"], events[0]["end_step"], events[0]["recovered_step"]) == (50, 51, 52)
    assert events[0]["file"] == str(spiky)
    assert events[0]["schema"] == 1


def test_a_number_that_json_cannot_say(tmp_path, ten, capsys):
    path = tmp_path / "inf.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": Infinity}\n')
    told = scanned(capsys, path, "--json", code=2)
    assert json.loads(told.out, parse_constant=pytest.fail)["value"] == "inf"


@pytest.mark.parametrize(
    ("words", "code", "count"),
    [
        (["--kinds", "nan,divergence"], 0, 0),
        (["--kinds", "nan,spike"], 1, 2),
        (["--min-severity", "page"], 0, 0),
        (["--min-severity", "notice"], 1, 2),
        (["--since", "52"], 1, 1),
        (["--since", "51"], 1, 2),
        (["--since", "99"], 0, 0),
        (["--metric", "grad_norm"], 0, 0),
        (["--metric", "train/loss"], 1, 2),
    ],
)
def test_less_can_be_told(spiky, capsys, words, code, count):
    assert len(scanned(capsys, spiky, *words, code=code).out.splitlines()) == count


def test_a_page_is_two_and_what_cannot_be_read_three(tmp_path, spiky, capsys):
    page = log(tmp_path / "page.jsonl", {1: 2.0, 2: 5000.0, 3: 2.0})
    fine = log(tmp_path / "fine.jsonl", {1: 2.0, 2: 2.0})
    told = scanned(capsys, fine, spiky, page, tmp_path / "none.log", code=2)
    assert [line.split(":")[0] for line in told.out.splitlines()] == [str(spiky)] * 2 + [str(page)]
    assert "none.log" in told.err
    assert scanned(capsys, fine, spiky, tmp_path / "none.log", code=3).out.count("\n") == 2
    scanned(capsys, fine, code=0)


def test_a_series_of_no_known_name_is_watched_when_it_is_asked_for(tmp_path, ten, capsys):
    path = log(tmp_path / "r.jsonl", {1: 2.0, 2: 50.0, 3: 2.0}, key="badness")
    told = scanned(capsys, path, code=3)
    assert "badness" in told.err
    assert "--metric" in told.err
    assert "badness 50 at step 2" in scanned(capsys, path, "--metric", "badness", code=1).out


def test_gzip_and_a_pipe(spiky, capsys, monkeypatch, tmp_path):
    packed = tmp_path / "old.log.gz"
    packed.write_bytes(gzip.compress(spiky.read_bytes()))
    expected = scanned(capsys, spiky, code=1).out
    assert scanned(capsys, packed, code=1).out == expected
    for data in (spiky.read_bytes(), packed.read_bytes()):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        told = scanned(capsys, "-", code=1)
        assert told.out == expected
        assert "the standard input" in told.err


def test_a_folder_and_a_trainer_state(tmp_path, ten, capsys):
    history = [{"step": n, "loss": 20.0 if n == 7 else 2.0, "epoch": n / 10} for n in range(1, 12)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history, "max_steps": 20}))
    for path in (tmp_path, tmp_path / "trainer_state.json"):
        told = scanned(capsys, path, code=1)
        assert "loss 20 at step 7" in told.out
        assert "(trainer_state): 1 notice; 11 rows" in told.err


def test_what_is_no_log_says_so(tmp_path, capsys):
    empty, prose, binary = tmp_path / "empty.log", tmp_path / "README.md", tmp_path / "core"
    empty.write_bytes(b"")
    prose.write_text("# A project\n\nIt trains models.\n")
    binary.write_bytes(bytes(range(256)) * 500)
    for path in (empty, prose, binary, tmp_path / f"missing{HOSTILE.replace('/', '')}.log"):
        for words in (["scan"], ["read"], ["tail", "--once"]):
            if words[0] == "tail" and path.exists():
                continue  # it may yet become one
            assert main(["metrics", *words, str(path)]) == 3
            told = capsys.readouterr()
            assert told.out == ""
            assert path.name[:7] in told.err
            assert not {"\x1b", "\x9b", "\u202e", "\x07"} & set(told.err)


@pytest.mark.root
def test_no_permission(spiky):
    spiky.chmod(0)
    child = os.fork()
    if child == 0:
        code = 9
        try:
            os.setuid(65534)
            code = main(["metrics", "scan", str(spiky)])
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_nothing_from_a_log_reaches_the_terminal_unescaped(tmp_path, ten, capsys):
    path = tmp_path / f"run-{HOSTILE.replace('/', '')}.jsonl"
    lines = [{"step": n, "loss": 20.0 if n == 5 else 2.0, HOSTILE: 1.0} for n in range(10)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for words in ([], ["--json"], ["--plot"]):
        told = scanned(capsys, path, path, *words, code=1)
        assert not {"\x1b", "\x9b", "\u202e", "\x07"} & set(told.out + told.err)
    for words in ([], ["--json"], ["--csv"], ["--records"], ["--records", "--json"]):
        assert main(["metrics", "read", str(path), *words]) == 0
        told = capsys.readouterr()
        assert not {"\x1b", "\x9b", "\u202e", "\x07"} & set(told.out + told.err)


def test_the_words_of_a_log_are_printed_plain(tmp_path, capsys):
    path = tmp_path / "train.log"
    path.write_text(
        f" iteration 5/ 9 | elapsed time per iteration (ms): 5.0 | lm loss: 7.0E+00 | grad norm: 1.0 |\n"
        f"saving checkpoint at iteration 5 to /ckpt/\u202e{HOSTILE}\n"
    )
    for words in ([], ["--json"]):
        assert main(["metrics", "read", str(path), "--records", *words]) == 0
        told = capsys.readouterr()
        assert "checkpoint_started" in told.out
        assert not {"\x1b", "\x9b", "\u202e", "\x07"} & set(told.out + told.err)
    event = CurveEvent(1, "spike", HOSTILE, 1, 1, 1.0, 1.0, 1.0, "page", f"said {HOSTILE}", 2)
    assert not {"\x1b", "\x9b", "\u202e", "\x07"} & set("".join(event_rows([event])))


def test_a_torn_last_line_is_no_event(tmp_path, ten, capsys):
    path = log(tmp_path / "torn.jsonl", dict.fromkeys(range(20), 2.0))
    with path.open("a") as file:
        file.write('{"step": 20, "lo')
    scanned(capsys, path, code=0)


def test_the_plot_is_below_the_events(spiky, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = scanned(capsys, spiky, "--plot", code=1).out.splitlines()
    assert lines[0].startswith("notice")
    assert lines[2] == "loss"
    assert any("⡇" in line or "⢸" in line or "⠁" in line for line in lines[3:])
    assert "spike 50" in lines[-1]
    assert max(map(len, lines[2:])) <= 60
    monkeypatch.setenv("TERM", "dumb")
    assert scanned(capsys, spiky, "--plot", code=1).out.isascii()


def read(capsys, *words) -> str:
    assert main(["metrics", "read", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_read_prints_one_row_a_step(tmp_path, capsys):
    path = log(tmp_path / "a.jsonl", {1: 2.5, 2: 2.25})
    assert read(capsys, path).splitlines() == ["         1  loss=2.5", "         2  loss=2.25"]
    row = json.loads(read(capsys, path, "--json").splitlines()[1])
    assert (row["kind"], row["step"], row["values"]) == ("row", 2, {"loss": 2.25})
    assert read(capsys, path, "--since", "2").split() == ["2", "loss=2.25"]


def test_read_tells_of_a_loss_that_is_left_out(capsys):
    rows = [json.loads(line) for line in read(capsys, LOGS / "megatron.log", "--json").splitlines()]
    (lost,) = [row for row in rows if row["missing"]]
    assert (lost["step"], lost["missing"]) == (94, ["loss"])
    assert lost["values"]["grad_norm"] == "nan"


def test_what_read_writes_as_csv_is_read_again(capsys, tmp_path):
    table = read(capsys, LOGS / "megatron.log", "--csv", "--metric", "loss", "--metric", "grad_norm")
    assert table.splitlines()[0] == "step,grad_norm,loss,time"
    assert table.splitlines()[4].startswith("94,nan,,")
    again = tmp_path / "again.csv"
    again.write_text(table)
    first = [line.split()[1:3] for line in read(capsys, again, "--metric", "loss").splitlines()]
    assert ["loss=7.223456"] in first


def test_read_says_what_it_cannot(tmp_path, capsys):
    path = log(tmp_path / "a.jsonl", {1: 2.5})
    assert main(["metrics", "read", str(path), "--metric", "nothing"]) == 3
    assert "nothing of nothing" in capsys.readouterr().err
    assert main(["metrics", "read", str(path), "--csv", "--json"]) == 3


def test_the_page_is_written(spiky, tmp_path, capsys):
    out = tmp_path / "curves.html"
    told = scanned(capsys, spiky, spiky, "--html", out, code=1)
    page = out.read_text()
    assert told.out.count("\n") == 4
    assert page.count("loss 20 at step 80") > 2
    assert page.count("<figure>") == 4
    told = scanned(capsys, spiky, "--html", tmp_path / "no" / "such.html", code=3)
    assert "cannot write the page" in told.err


def tail(capsys, *words, code=0):
    assert main(["metrics", "tail", *map(str, words)]) == code
    return capsys.readouterr()


def append(path: Path, losses: dict[int, object]) -> None:
    with path.open("a") as file:
        file.write("".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in losses.items()))


@pytest.fixture
def live(monkeypatch):
    """Has one thing happen in each pause of `metrics tail`, then Ctrl-C."""

    def install(*happenings):
        left = list(happenings)

        def sleep(seconds):
            assert seconds >= 1
            if not left:
                raise KeyboardInterrupt
            left.pop(0)()

        monkeypatch.setattr("clustertools.cli.metrics_tail.time.sleep", sleep)

    return install


def changes(told) -> list[tuple[str, int]]:
    return [(line.split()[1], int(line.split()[5].split("-")[0])) for line in told.out.splitlines()]


def test_tail_tells_an_event_when_it_begins_and_when_it_is_over(tmp_path, ten, live, capsys):
    path = log(tmp_path / "live.jsonl", {1: 2.0, 2: 20.0, 3: 2.0})
    live(
        lambda: append(path, {4: 2.0, 5: 30.0}),
        lambda: None,
        lambda: append(path, {6: 40.0, 7: 2.0}),
    )
    told = tail(capsys, path, code=130)
    assert changes(told) == [("recovered", 2), ("began", 5), ("recovered", 5)]
    assert [line.split()[0] == "earlier" for line in told.out.splitlines()] == [True, False, False]
    assert "3 rows, step 3; no event goes on" in told.err


def test_tail_waits_for_a_file_and_follows_rotation_and_truncation(tmp_path, ten, live, capsys):
    path = tmp_path / "live.jsonl"
    live(
        lambda: log(path, {1: 2.0, 2: 20.0, 3: 2.0}),
        lambda: (path.rename(tmp_path / "live.jsonl.1"), log(path, {4: 2.0, 5: 20.0, 6: 2.0})),
        lambda: log(path, {7: 20.0}),
        lambda: append(path, {8: 2.0}),
    )
    told = tail(capsys, path, code=130)
    assert changes(told) == [("began", n) if k == 0 else ("recovered", n) for n in (2, 5, 7) for k in (0, 1)]
    assert "waiting for it" in told.err
    assert "was replaced" in told.err
    assert "truncated" in told.err


def test_tail_goes_on_from_its_state(tmp_path, ten, capsys):
    path, state = tmp_path / "live.jsonl", tmp_path / "deep" / "state.json"
    log(path, {1: 2.0, 2: 2000.0})
    told = tail(capsys, path, "--once", "--state", state, "--json", code=2)
    (event,) = [json.loads(line) for line in told.out.splitlines()]
    assert (list(event)[:9], event["change"], event["end_step"]) == (FIRST_KEYS, "began", None)
    told = tail(capsys, path, "--once", "--state", state, code=2)
    assert told.out == ""
    assert "1 event goes on" in told.err
    append(path, {3: 2.0})
    told = tail(capsys, path, "--once", "--state", state, "--json", code=2)
    assert [json.loads(line)["change"] for line in told.out.splitlines()] == ["recovered"]
    assert "no event goes on" in tail(capsys, path, "--once", "--state", state).err
    other = tmp_path / "other.jsonl"
    log(other, {1: 2.0})
    assert "a state of its own" in tail(capsys, other, "--once", "--state", state, code=3).err
    state.write_text("{")
    assert "begun anew" in tail(capsys, path, "--once", "--state", state, code=2).err
    assert "no event goes on" in tail(capsys, path, "--once", "--state", state).err
    assert json.loads(state.read_text())["version"] == 1
    assert tail(capsys, tmp_path / "none.jsonl", "--once", code=3).out == ""
    assert "a pipe cannot be read again" in tail(capsys, "-", "--once", code=3).err


def test_tail_of_what_can_never_be_read_ends(tmp_path, live, capsys):
    live(lambda: None)
    circle = tmp_path / "circle.log"
    circle.symlink_to(circle)
    assert "circle.log" in tail(capsys, circle, code=3).err


def test_tail_of_a_pipe_tells_at_once_and_ends_with_it(tmp_path, ten, capsys, monkeypatch):
    path = log(tmp_path / "a.jsonl", {1: 2.0, 2: 20.0, 3: 2.0})
    with path.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert changes(tail(capsys, "-", code=1)) == [("began", 2), ("recovered", 2)]


class Terminal:
    """As much of a terminal as `metrics tail` uses."""

    def __init__(self) -> None:
        self.lines, self.row = [""], 0

    def write(self, text: str) -> None:
        for piece in re.findall(r"\x1b\[\d*[A-Zm]|\n|\r|[^\x1b\n\r]+", text):
            if piece == "\n":
                self.row += 1
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif piece[0] == "\x1b":
                count, what = int(piece[2:-1]), piece[-1]
                self.row += {"A": -count, "B": count}.get(what, 0)
                assert 0 <= self.row < len(self.lines)
                if what == "K":
                    self.lines[self.row] = ""
            elif piece != "\r":
                assert self.lines[self.row] == ""
                self.lines[self.row] = piece

    def flush(self) -> None:
        pass


def test_the_line_of_an_open_event_is_edited_in_place(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "8")
    terminal, screen = Terminal(), Screen()
    monkeypatch.setattr(sys, "stdout", terminal)
    long = "seven words that need two whole lines here"
    for key, text in (
        (1, "one"),
        (2, long),
        (3, "three"),
        (1, "ONE"),
        (2, "two"),
        (2, long.upper()),
        (3, "THREE"),
    ):
        screen.show(key, text, str)
    assert terminal.lines == ["ONE", "SEVEN WORDS THAT NEED TWO WHOLE LINES", "    HERE", "THREE", ""]
    screen.forget()
    screen.show(1, "again", str)
    for number in range(10, 18):
        screen.show(number, f"line {number}", str)
    screen.show(1, "it has scrolled away", str)
    assert terminal.lines[0] == "ONE"
    assert terminal.lines[4] == "again"
    assert terminal.lines[-2] == "it has scrolled away"


PAGE = LOGS.parent.parent.parent / "docs" / "metrics.md"


def test_the_commands_of_the_documentation_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "tests").symlink_to(LOGS.parent.parent)
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^\$ clustertools (metrics .+)$", PAGE.read_text(), re.M)
    assert len(lines) >= 7
    codes = {line: main(shlex.split(line)) for line in lines}
    assert set(codes.values()) <= {0, 1, 2}, codes
    assert (tmp_path / "curves.html").stat().st_size > 5000


def test_the_documentation_names_every_kind_and_option():
    page = PAGE.read_text()
    assert [kind for kind in KINDS if f"`{kind}`" not in page] == []
    options = {name for one in (scan, follow, read_series) for p in one.params for name in p.opts}
    options -= {"--no-color", "-q", "--quiet", "-v", "--verbose"}
    assert [name for name in options if name.startswith("-") and f"{name}" not in page] == []


#: watchdog.md 6.6: iterations 31214 to 31222 and 31250 of tr11-176B (bigscience, chronicles.md).
BLOOM_LOSS = [2.198845, 2.220424, 2.595213, 2.241558, 2.345279, 5.098124, 3.492029, 3.213059, 2.804948]
BLOOM_GRAD = [0.242, 0.947, 2.390, 15.886, 145.119, 960.351, 353.2, 379.3, 650.2]


def bloom_lines() -> list[str]:
    """The recorded values; before and after them noise at the levels of that run, a way down between."""
    noise, lines = random.Random(176), []
    for step in range(30_600, 31_400):
        loss, grad = 2.2 + noise.gauss(0, 0.02), 0.24 + abs(noise.gauss(0, 0.02))
        place = step - 31_214
        if 0 <= place < len(BLOOM_LOSS):
            loss, grad = BLOOM_LOSS[place], BLOOM_GRAD[place]
        elif len(BLOOM_LOSS) <= place < 30:
            loss, grad = loss + 0.6 * 0.85 ** (place - 8), grad + 650 * 0.3 ** (place - 8)
        lines.append(
            f" iteration {step:8d}/  115311 | consumed samples: {step * 2048:12d} | consumed tokens: "
            f"{step * 4194304:15d} | elapsed time per iteration (s): {105.2 + noise.gauss(0, 0.3):.2f} | "
            f"learning rate: 5.969E-05 | global batch size:  2048 | lm loss: {loss:.6E} | "
            f"grad norm: {grad:.3f} | num zeros: 0.0 | "
            "number of skipped iterations:   0 | number of nan iterations:   0 | "
            "samples per second: 19.463 | TFLOPs: 149.02 |\n"
        )
    return lines


def test_the_first_spike_of_bloom_is_told_in_time_and_has_recovered(tmp_path, capsys):
    path = tmp_path / "bloom.log"
    path.write_text("".join(bloom_lines()))
    told = scanned(capsys, path, "--json", "--kinds", "spike,divergence,nan,restart,level_shift", code=2)
    (event,) = [json.loads(line) for line in told.out.splitlines()]
    assert (event["kind"], event["metric"], event["severity"]) == ("spike", "loss", "page")
    assert 31_214 <= event["step"] <= 31_216
    assert event["alarm_step"] <= 31_217
    assert event["recovered_step"] <= 31_250
    assert (event["value"], event["file"]) == (5.098124, str(path))


def test_a_log_is_not_written_over_by_a_page(spiky, tmp_path, capsys):
    before = spiky.read_bytes()
    assert "not written over" in scanned(capsys, spiky, "--html", spiky, code=3).err
    assert spiky.read_bytes() == before
    out = tmp_path / "curves.html"
    for _ in range(2):
        scanned(capsys, spiky, "--html", out, code=1)
    assert "--html goes with both" in scanned(capsys, spiky, "--plot", "--json", code=3).err


def test_a_file_without_a_loss_is_told_as_such(tmp_path, ten, capsys):
    told = scanned(capsys, log(tmp_path / "g.jsonl", {1: 2.0, 2: 2.1}, key="grad_norm"), code=0)
    assert "nothing to tell; 2 rows" in told.err
    assert "there is no loss in it" in told.err
