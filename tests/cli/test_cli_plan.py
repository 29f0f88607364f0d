"""`clustertools plan`: the papers' tables once more, as a person types them."""

from __future__ import annotations

import json

import pytest

from clustertools.cli import main
from tests.test_goodput import AUPY


def planned(capsys, *words: str) -> dict:
    assert main(["plan", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def told(capsys, *words: str) -> str:
    assert main(["plan", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("mtbf", "young", "daly", "rfo", "optimum"), AUPY)
def test_aupy(mtbf, young, daly, rfo, optimum, capsys):
    made = planned(capsys, "--mtbf", f"{mtbf}s", "--save-seconds", "600", "--restart-seconds", "660")
    assert made["kind"] == "plan"
    assert made["methods"]["young"] == pytest.approx(young, abs=1)
    assert made["methods"]["daly"] == pytest.approx(daly, abs=1)
    assert made["methods"]["rfo"] == pytest.approx(rfo, abs=1)
    assert made["best"]["interval_seconds"] == pytest.approx(optimum, rel=0.0015)


@pytest.mark.parametrize(
    ("words", "ettr"),
    [
        ("--nodes 2000 --failures-per-node-day 0.0065 --save-seconds 0 --interval 60m", 0.684),
        ("--nodes 2000 --failures-per-node-day 0.0065 --save-seconds 0 --interval 5m", 0.932),
        ("--nodes 1500 --failures-per-node-day 0.0065 --save-seconds 300 --interval 2306s", 0.706),
        ("--nodes 1500 --failures-per-node-day 0.0065 --save-seconds 10 --interval 421s", 0.919),
        ("--nodes 1500 --failures-per-node-day 0.001 --save-seconds 300 --interval 98m", 0.893),
    ],
)
def test_kokolis(words, ettr, capsys):
    text = told(capsys, *words.split(), "--restart-seconds", "300")
    assert f"  {ettr:.3f}  " in next(line for line in text.splitlines() if line.startswith("now"))


def test_the_rate_of_the_hardware_is_not_all(capsys):
    text = told(capsys, *"--nodes 128 --failures-per-node-day 0.0065 --save-seconds 30".split())
    assert "every 28.8 h" in text
    assert "reckoned 28.8 h and saw 7.9 h" in text


def test_what_was_seen_goes_first(capsys):
    words = "--nodes 128 --failures-per-node-day 0.0065 --failures 91 --over 30d --save-seconds 30".split()
    made = planned(capsys, *words)
    assert made["costs"]["mtbf_seconds"] == pytest.approx(30 * 86400 / 91)
    assert made["sources"]["mtbf_seconds"] == "91 failures in 30 d"
    assert any("would fail every 28.8 h; not used" in note for note in made["notes"])
    assert not any("saw 7.9 h" in note for note in made["notes"])


def test_llama_3(capsys):
    text = told(capsys, *"--failures 419 --over 54d --save-seconds 300".split())
    assert "A failure every 3.09 h (419 failures in 54 d)" in text
    assert "kokolis 43.1 min" in text


def test_bloom(capsys):
    text = told(capsys, *"--mtbf 10d --save-seconds 40 --interval 3h --checkpoint-size 2.3TB".split())
    now = next(line for line in text.splitlines() if line.startswith("now"))
    assert "0.37%" in now
    assert "18.4 TB" in now


def test_dlrover(capsys):
    text = told(capsys, *"--nodes 1000 --failures-per-node-day 0.0027 --save-seconds 10".split())
    assert "at least one a day with 93.3%" in text


def test_byterobust(capsys):
    for nodes, spare in ((128, 2), (256, 2), (512, 3), (1024, 4)):
        words = f"--nodes {nodes} --failures-per-node-day 0.0012 --save-seconds 10".split()
        assert planned(capsys, *words)["spare_nodes"] == spare


def test_few_failures_leave_room(capsys):
    made = planned(capsys, *"--failures 3 --over 10d --save-seconds 60".split())
    low, high = sorted(one["interval_seconds"] for one in made["may_be"])
    assert low < made["best"]["interval_seconds"] < high
    none = planned(capsys, *"--failures 0 --over 30d --save-seconds 60".split())
    assert none["costs"]["mtbf_seconds"] == pytest.approx(10 * 86400)
    assert "cautiously" in none["sources"]["mtbf_seconds"]


def test_steps_and_a_good_interval(capsys):
    text = told(capsys, *"--mtbf 8h --save-seconds 30 --step-seconds 7 --interval 23m".split())
    assert "the interval is good as it is" in text
    assert " steps " in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "how often the job fails is not known"),
        ("", "how long a save holds training up is not known"),
        ("--failures 3 --save-seconds 3", "--failures and --over belong together"),
        ("--failures-per-node-day 0.1 --save-seconds 3", "needs --nodes"),
        ("--mtbf 1h --save-seconds 100 --interval 1m", "leaves no time to train"),
        ("--mtbf 1h --save-seconds 100 --checkpoint-size 2.3", "--checkpoint-size"),
    ],
)
def test_what_is_missing_or_wrong_is_said(words, said, capsys):
    assert main(["plan", *words.split()]) == 3
    assert said in capsys.readouterr().err
