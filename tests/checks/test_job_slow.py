"""A run that became slower, what only looks like it, and the node that it waits for."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest

from clustertools.model import Status, Verdict
from clustertools.sources.job_look import JobLook
from tests.lab.job_nodes import Nodes
from tests.lab.run_log import FollowedRun

OK = frozenset()


class Paced(FollowedRun):
    """A run whose steps take as long as the test says."""

    def __init__(self, nodes: int = 4, noise: float = 0.003) -> None:
        names = tuple(f"n{i}" for i in range(1, nodes + 1))
        super().__init__("job_slow", nodes=names)
        self.nodes = Nodes(names, ranks=8)
        self.noise = noise
        self.step = 0
        self.looks = 0
        self.random = random.Random(7)
        self.last_look = self.host.time

    def train(self, seconds: float, lines: int = 40, *, every: int = 1, batch: int = 2048) -> Verdict:
        """So many lines of the log, each `every` steps; the last verdict."""
        for _ in range(lines):
            self.step += every
            told = seconds * (1 + self.random.gauss(0, self.noise))
            line = (
                f" iteration {self.step:8}/  115311 | consumed samples: {self.step * batch} | "
                f"elapsed time per iteration (s): {told:.2f} | learning rate: 5.969E-05 | "
                f"global batch size: {batch} | lm loss: 2.463556E+00 | grad norm: 0.174 |"
            )
            verdict = self.pass_by(line, after=told * every)
        return verdict

    def pass_by(self, *lines: str, after: float = 60.0) -> Verdict:
        verdict = self.look(*lines, after=after)
        if verdict.wants_look:
            self.looks += 1
            seen = self.nodes.look(self.host.time - self.last_look)
            self.last_look = self.host.time
            verdict = self.look(after=0.0, looked=seen)
        return verdict


@pytest.fixture
def big() -> Paced:
    run = Paced()
    assert run.train(10.0, 150).codes == OK
    return run


def test_bloom_with_a_slow_node() -> None:
    """BLOOM-176B's chronicles: 105.2, 106.25, 110.17, 111.14 s per iteration, and no change of the loss."""
    run = Paced(noise=0.0)
    for seconds in (105.2, 106.25, 110.17):
        assert run.train(seconds).codes == OK
    verdict = run.train(111.14)
    assert (verdict.codes, verdict.status) == ({"JobSlow"}, Status.WARNING)
    assert "is 5.6 % slower than it was: 111.1 s a step instead of 105.2" in verdict.findings[0].summary
    assert run.train(105.2, 25).codes == OK, "recovery clears it"


def test_it_is_told_within_tens_of_steps_and_stays(big: Paced) -> None:
    assert big.train(11.0, 20).codes == OK
    assert big.train(11.0, 25).codes == {"JobSlow"}
    assert big.train(11.0, 1500).codes == {"JobSlow"}, "it does not become the usual pace by lasting"


@pytest.mark.parametrize("share", [0.02, 0.04])
def test_a_day_and_a_night_are_no_change(share: float) -> None:
    run = Paced()
    for hour in range(72):
        swing = 1 + share / 2 * math.sin(2 * math.pi * hour / 24)
        assert run.train(30.0 * swing, 30, every=4).codes == OK, hour


def test_noise_raises_the_limit() -> None:
    run = Paced(noise=0.3)
    for _ in range(20):
        assert run.train(10.0, 60).codes == OK
    assert run.train(30.0, 60).codes == {"JobSlow"}


def test_another_batch_size_is_another_kind_of_steps(big: Paced) -> None:
    assert big.train(20.0, 100, batch=4096).codes == OK
    assert big.train(10.0, 100).codes == OK
    assert big.train(22.0, 60, batch=4096).codes == {"JobSlow"}


def test_other_nodes_are_another_kind_of_steps(big: Paced) -> None:
    big.again(150)
    big.job = dataclasses.replace(big.job, nodes=("n1", "n2"))
    assert big.train(20.0, 100).codes == OK


def test_the_pace_is_kept_over_restarts(big: Paced) -> None:
    big.again(150)
    verdict = big.train(11.0, 60)
    assert verdict.codes == {"JobSlow"}
    assert "from the first steps of this start on" in verdict.findings[0].evidence[0]
    assert big.train(11.0, 2100).codes == OK, "after six hours it is what its owner wanted"


def test_evaluations_saves_and_warm_up_are_not_steps() -> None:
    """The log's clock is the only one here. From step 200 on it evaluates and saves far more often."""
    run = Paced()
    at = 0.0
    for n in range(1, 400):
        at += 10.0
        if n % (30 if n < 200 else 2) == 0:
            run.say(f"[2026-01-02 {stamp(at)}] step {n}: train loss 2.9, val loss 2.9")
            at += 300.0
        if n > 200 and n % 15 == 0:
            at += 100.0
            run.say(f"[2026-01-02 {stamp(at)}] Saved checkpoint at step {n}")
        assert run.pass_by(f"[2026-01-02 {stamp(at)}] iteration {n}/1000 | loss 2.5", after=10.0).codes == OK


def stamp(at: float) -> str:
    return f"{int(at // 3600):02}:{int(at % 3600 // 60):02}:{int(at % 60):02}"


def test_tokens_per_second_are_a_pace_as_well() -> None:
    run = Paced()

    def train(speed: float, lines: int) -> Verdict:
        for _ in range(lines):
            run.step += 10
            verdict = run.pass_by(
                f"step: {run.step}  loss:  7.1  tps: {speed * run.random.gauss(1, 0.003):,.0f}"
            )
        return verdict

    assert train(7000, 60).codes == OK
    verdict = train(6000, 30)
    assert "16.7 % slower" in verdict.findings[0].summary or "16." in verdict.findings[0].summary
    assert "tokens/s instead of 7,0" in verdict.findings[0].summary


def test_a_throttled_node_is_named_at_once_and_blamed_after_a_second_look(big: Paced) -> None:
    big.nodes.odd_gpus = {("n3", 2): {"throttle_reasons": ("HW thermal slowdown",), "sm_clock_mhz": 1100.0}}
    finding = big.train(11.0, 45).findings[0]
    assert "n3 differs perhaps: GPU 2 is throttled: HW thermal slowdown" in finding.summary
    assert finding.blamed == ()
    finding = big.train(11.0, 120).findings[0]
    assert finding.blamed == finding.nodes == ("n3",)
    assert any("a GPU runs at 1100 MHz, on the other nodes at 1700" in line for line in finding.evidence)
    assert big.looks < 10


def test_what_differs_by_its_place_only_hints(big: Paced) -> None:
    """The first stage of a pipeline draws less power and sends more bytes."""
    big.nodes.odd_gpus = {("n1", i): {"power_watts": 300.0} for i in range(8)}
    finding = big.train(11.0, 300).findings[0]
    assert finding.blamed == ()
    assert "n1 differs perhaps" in finding.summary
    assert any(
        "what would find it: the same job for some steps on 2 of its nodes" in e for e in finding.evidence
    )


def test_when_all_differ_nobody_does(big: Paced) -> None:
    big.nodes.odd_gpus = {
        (n, i): {"throttle_reasons": ("SW thermal slowdown",)} for n in big.nodes.names for i in range(8)
    }
    finding = big.train(11.0, 300).findings[0]
    assert finding.blamed == ()
    assert "none of its 4 nodes stands out" in finding.summary


def test_nodes_that_cannot_be_seen_leave_it_open(big: Paced) -> None:
    big.nodes.unseen = dict.fromkeys(big.nodes.names, "no route to host")
    finding = big.train(11.0, 45).findings[0]
    assert "n1 could not be looked at: no route to host" in finding.evidence
    assert big.pass_by().codes == {"JobSlow"}
    del big.memory["seen"]
    assert big.look(after=0.0, looked=JobLook()).codes == {"JobSlow"}
