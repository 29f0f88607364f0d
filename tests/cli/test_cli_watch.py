"""`clustertools watch` as cron and systemd start it: real processes, signals, a real notification socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from clustertools.cli import main
from tests.lab.site import Site

SOON = 20.0


@pytest.fixture
def site(tmp_path: Path):
    return Site(tmp_path)


def wait_for(true, what: str):
    end = time.monotonic() + SOON
    while not (found := true()):
        assert time.monotonic() < end, f"not within {SOON:g} s: {what}"
        time.sleep(0.02)
    return found


class Daemon:
    """`clustertools watch` in the background; its lines are gathered as they come."""

    def __init__(self, site: Site, *words: str, **environment: str):
        self.process = site.start("watch", *words, environment=environment)
        self.lines: list[str] = []
        self.notes: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.lines), (self.process.stderr, self.notes))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream, into):
        into.extend(iter(stream.readline, ""))

    def said(self, text: str, times: int = 1):
        wait_for(lambda: sum(text in line for line in [*self.lines, *self.notes]) >= times, text)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(SOON)
        for reader in self._readers:
            reader.join(5)
        return code


@pytest.fixture
def daemon(site):
    started: list[Daemon] = []

    def start(*words: str, **environment: str) -> Daemon:
        started.append(Daemon(site, *words, **environment))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait(5)


# once


@pytest.mark.slow
def test_once_says_what_it_saw_and_ends_with_the_worst(site):
    done = site.watch("--once")
    assert (done.returncode, done.stdout) == (0, "0 findings\n")
    site.fault("LabWarning - a little")
    done = site.watch("--once")
    assert done.returncode == 1
    assert done.stdout.startswith("1 finding, opened LabWarning")
    assert done.stderr.startswith("WARNING ")
    site.fault("LabWarning - a little", "LabFault - a lot")
    assert site.watch("--once").returncode == 2
    site.fault("blind")
    done = site.watch("--once")
    assert (done.returncode, done.stdout) == (3, "0 findings, could not look: lab_fault\n")


@pytest.mark.slow
def test_json_is_one_object_a_pass(site):
    site.fault("LabFault - it \x1b[31mbroke")
    done = site.watch("--once", "--json")
    (line,) = done.stdout.splitlines()
    assert json.loads(line) == {
        "schema": 1, "kind": "pass", "status": "CRITICAL", "blind": [],
        "sentence": "1 finding, opened LabFault",
    }  # fmt: skip
    assert done.stderr == ""


@pytest.mark.slow
def test_a_second_one_says_who_holds_it_and_does_nothing(site, daemon):
    site.fault("LabFault - it broke")
    first = daemon("--interval", "1h")
    first.said("opened LabFault")
    site.fault()
    before = (site.state / "state.db-wal").stat().st_mtime_ns
    second = site.watch("--once")
    assert second.returncode == 3
    assert f"this machine is already watched by process {first.process.pid} (since " in second.stderr
    assert second.stdout == ""
    assert (site.state / "state.db-wal").stat().st_mtime_ns == before
    assert first.end() == 0
    # whoever is killed leaves no lock behind
    again = daemon("--interval", "1h")
    again.said("resolved LabFault")
    again.process.kill()
    again.process.wait(5)
    assert site.watch("--once").returncode == 0


@pytest.mark.slow
def test_a_hundred_cron_lines_at_once_are_one_watchdog(site):
    running = [site.start("watch", "--once") for _ in range(6)]
    done = [(p.communicate(timeout=60), p.returncode) for p in running]
    assert {code for _, code in done} <= {0, 3}
    assert [code for _, code in done].count(0) >= 1
    assert all("already watched" in err for (_, err), code in done if code == 3)


# the config


def test_a_wrong_config_is_told_whole_with_lines_before_anything_starts(site):
    site.write_config("policy: {mode: perhaps}\njobs:\n  big: {grace: 5}\nfans: 7\n")
    done = site.watch("--once")
    lines = done.stderr.splitlines()
    assert done.returncode == 3
    assert len(lines) == 3
    for text in ("policy.mode: expected one of observe, ask, act", "jobs.big.grace: 5 has no unit",
                 "fans: unknown key"):  # fmt: skip
        (line,) = [x for x in lines if text in x]
        assert f"{site.config}:" in line
    assert not site.state.exists()


@pytest.mark.slow
def test_a_check_that_does_not_exist_and_a_sink_that_cannot_be_used(site):
    site.write_config("  gpu_fam: {enabled: false}\n")
    done = site.watch("--once")
    assert done.returncode == 3
    assert "checks.gpu_fam: there is no check of this name" in done.stderr
    site.write_config(
        "sinks:\n  a: {kind: webhook, url: 'http://x', token_env: T}\n"
        "  b: {kind: mail, server: smtp.example.org, sender: nobody, to: [a@example.org]}\n"
    )
    done = site.watch("--once")
    assert done.returncode == 3
    assert [line.split(": ", 2)[-1] for line in done.stderr.splitlines()] == [
        "sink a: url must begin with https://, the token travels with each call",
        "sink b: 'nobody' is not a mail address such as oncall@example.org",
    ]
    assert f"{site.config}:" in done.stderr
    assert not site.state.exists()


@pytest.mark.slow
def test_options_and_the_systems_folder(site):
    site.etc.mkdir()
    (site.etc / "config.yaml").write_text("cluster: alps\n")
    site.fault("LabFault - it broke")
    site.watch("--once")
    out = json.loads(site.run("status", "--json").stdout.splitlines()[1])
    assert out["key"].startswith("LabFault:alps/")
    done = site.watch("--once", "-o", "cluster=eiger")
    assert "opened LabFault" in done.stdout
    done = site.watch("--once", "-o", "policy.moed=act")
    assert done.returncode == 3
    assert "did you mean mode?" in done.stderr


@pytest.mark.parametrize("words", [("--interval", "0s"), ("--interval", "5"), ("--interval", "5 min")])
def test_a_wrong_duration_is_wrong_usage(site, words, capsys):
    assert main(["watch", "--once", *words]) == 3
    assert "--interval" in capsys.readouterr().err


def test_what_a_person_might_expect_and_will_not_get(site):
    site.write_config("jobs:\n  pretrain: {log: /x}\n")
    done = site.watch("--once", "--act")
    assert "--act changes nothing while policy.mode is observe" in done.stderr
    assert "not at the jobs of the config (pretrain)" in done.stderr


# for ever


@pytest.mark.slow
def test_sigterm_ends_the_wait_at_once(site, daemon):
    watch = daemon("--interval", "1h")
    watch.said("0 findings")
    began = time.monotonic()
    assert watch.end() == 0
    assert time.monotonic() - began < 3
    assert watch.notes == []


@pytest.mark.slow
def test_sigterm_in_a_pass_lets_it_end(site, daemon):
    """The pass waits in a check; what it finds is still written down and told."""
    slow = 'import subprocess\n    ctx.host.run("sleep", "1.5")\n    for line in ctx.host.read'
    path = site.checks / "lab_fault.py"
    path.write_text(path.read_text().replace("for line in ctx.host.read", slow))
    site.fault("LabFault - it broke")
    watch = daemon("--interval", "1h")
    wait_for(lambda: (site.state / "state.db").exists(), "the store")
    time.sleep(0.3)
    assert watch.end() == 0
    assert any("opened LabFault" in line for line in watch.lines)
    assert site.run("status").returncode == 2


@pytest.mark.slow
def test_sighup_reads_the_config_again_and_keeps_the_old_one_when_it_is_wrong(site, daemon):
    site.fault("LabFault - it broke", "LabWarning - a little")
    watch = daemon("--interval", "200ms")
    watch.said("2 findings")
    site.write_config("policy: {mode: perhaps}\n")
    watch.process.send_signal(signal.SIGHUP)
    watch.said("the config is wrong, the old one stays in force")
    watch.said("policy.mode: expected one of")
    count = len(watch.lines)
    wait_for(lambda: len(watch.lines) > count + 2, "passes with the old config")
    assert watch.lines[-1].startswith("2 findings")
    site.write_config("  lab_fault: {enabled: false}\n")
    watch.process.send_signal(signal.SIGHUP)
    watch.said("config read again")
    watch.said("no check was due")
    assert watch.end(signal.SIGINT) == 0


@pytest.mark.slow
def test_systemd_hears_of_everything(site, daemon, tmp_path):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(SOON)
        watch = daemon("--interval", "300ms", NOTIFY_SOCKET=path, WATCHDOG_USEC="30000000")

        def until(text: str) -> list[str]:
            found = []
            while not (found and found[-1].startswith(text)):
                found.append(sock.recv(4096).decode())
            return found

        assert until("READY=1") == ["READY=1"]
        assert "WATCHDOG=1" in until("STATUS=0 findings")
        site.fault("blind")
        assert "WATCHDOG=1" in until("STATUS=0 findings, could not look")
        assert "WATCHDOG=1" in until("STATUS=0 findings, could not look")
        watch.process.send_signal(signal.SIGHUP)
        until("RELOADING=1\nMONOTONIC_USEC=")
        until("READY=1")
        watch.process.terminate()
        until("STOPPING=1")
    assert watch.process.wait(SOON) == 0


@pytest.mark.slow
def test_a_store_that_cannot_be_written_is_told_and_tried_again(site, daemon):
    """Another process holds the write lock for longer than we wait."""
    import sqlite3

    watch = daemon("--interval", "100ms")
    watch.said("0 findings")
    other = sqlite3.connect(site.state / "state.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    watch.said("nothing was decided or done in this pass: cannot write the state")
    other.execute("ROLLBACK")
    other.close()
    count = len(watch.lines)
    wait_for(lambda: len(watch.lines) > count, "a pass again")
    assert watch.end() == 0


@pytest.mark.slow
def test_a_job_of_cron_with_nobody_to_read_it(site):
    """cron without mail: standard output is closed."""
    site.fault("LabFault - it broke")
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -m clustertools watch --once >&- 2>&-', os.sys.executable],
        env=site.environment(), check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert site.run("status").returncode == 2
