"""The Alertmanager sink against a real Alertmanager, which notifies a webhook of the test."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest

from clustertools.errors import DeliveryFailed
from clustertools.model import Finding, Incident, Status, Subject
from clustertools.sinks.alertmanager import AlertmanagerSink
from clustertools.sinks.standing import Standing
from tests.lab.service_stub import Answer, ServiceStub

#: Nothing is waited for: groups are sent at once and looked at every second.
CONFIG = """\
route: {{receiver: ear, group_by: [alertname], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}}
receivers: [{{name: ear, webhook_configs: [{{url: '{url}', send_resolved: true}}]}}]
global: {{resolve_timeout: 1s}}
"""
HOSTILE = 'x\r\n\x1b[31m {{ .Labels }} <!channel> "quoted" \\ {0} %s\u202e'

pytestmark = pytest.mark.slow


@pytest.fixture
def ear():
    with ServiceStub() as stub:
        stub.usual = Answer(200)
        yield stub


@pytest.fixture
def alertmanager(tmp_path, ear):
    """The address of one that forgets everything at its end, and is killed with the test run."""
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if not program:
        pytest.skip("no prometheus-alertmanager here")
    (tmp_path / "config.yml").write_text(CONFIG.format(url=ear.url))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    argv = [
        "setpriv", "--pdeathsig", "KILL", program, f"--config.file={tmp_path}/config.yml",
        f"--storage.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]  # fmt: skip
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(f"{url}/-/ready"), (tmp_path / "log").read_text)
        yield url
    finally:
        process.kill()
        process.wait(10)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def wait_for(true, why=lambda: ""):
    end = time.monotonic() + 30
    while not (found := true()):
        assert time.monotonic() < end, why()
        time.sleep(0.05)
    return found


def active(url: str):
    with urllib.request.urlopen(f"{url}/api/v2/alerts", timeout=5) as answer:
        return json.load(answer)


def incident(node: str, *, status=Status.CRITICAL, since: float):
    found = Finding(
        "gpu_xid", "GpuLost", Subject(cluster="alps", node=node), status, f"lost {HOSTILE}", (HOSTILE,)
    )
    return Incident(found, "open", since, since, opened_at=since)


def test_from_opened_to_resolved(alertmanager, ear):
    now = time.time()
    sink = AlertmanagerSink(alertmanager)
    both = {i.key: i for i in (incident("gpu-017", since=now - 60), incident(HOSTILE, since=now - 60))}
    memory = sink.keep_up(Standing(now, lambda: True, both), {})
    assert {a["labels"]["node"].isprintable() for a in active(alertmanager)} == {True}
    time.sleep(1.2)  # longer than resolve_timeout: what we send carries its own end
    (told,) = wait_for(lambda: ear.bodies)
    assert told["status"] == "firing"
    assert {a["labels"]["severity"] for a in told["alerts"]} == {"critical"}
    assert len(told["alerts"]) == len(active(alertmanager)) == 2

    warned = {k: incident(k, status=Status.WARNING, since=now) for k in ["gpu-017"]}
    memory = sink.keep_up(Standing(time.time(), lambda: True, {i.key: i for i in warned.values()}), memory)
    wait_for(lambda: {a["labels"]["severity"] for a in active(alertmanager)} == {"warning"})
    sink.keep_up(Standing(time.time(), lambda: True, {}), memory)
    wait_for(lambda: active(alertmanager) == [])
    wait_for(lambda: ear.bodies[-1]["status"] == "resolved")


def test_what_it_refuses_is_told_in_its_words(alertmanager):
    now = time.time()
    nameless = incident("gpu-017", since=now)
    sink = AlertmanagerSink(alertmanager)
    sink.keep_up(Standing(now, lambda: True, {nameless.key: nameless}), {})
    wrong = AlertmanagerSink(f"{alertmanager}/elsewhere")
    with pytest.raises(DeliveryFailed, match="HTTP status 404"):
        wrong.keep_up(Standing(now, lambda: True, {nameless.key: nameless}), {})
