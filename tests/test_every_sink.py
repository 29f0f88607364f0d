"""Every kind of sink out of one config, as cron starts the watchdog: real processes against real servers."""

from __future__ import annotations

import os

import pytest

from tests.lab.service_stub import MailStub, ServiceStub, self_signed
from tests.lab.site import Site

pytestmark = pytest.mark.slow

CONFIG = """\
cluster: alps
node_classes:
  here: {{nodes: {node}, hardware: none}}
  elsewhere: {{nodes: "far-[1-9]", hardware: none}}
sinks:
  chat: {{kind: webhook, webhook_file: {folder}/hook, body: text, ca_file: {ca}}}
  pager: {{kind: pagerduty, url: '{pager}', token_file: {credentials}/key, min_status: CRITICAL}}
  post:
    {{kind: mail, server: '{mail}', sender: ct@example.org, to: [a@example.org], user: clustertools,
     token_env: MAIL_PASSWORD, ca_file: {ca}, only: ["Lab*:alps/*"]}}
  nobody: {{kind: webhook, url: '{pager}/nobody', only: ["Gpu*"]}}
  far: {{kind: webhook, url: '{pager}/far', classes: [elsewhere]}}
  near: {{kind: webhook, url: '{pager}/near', classes: [here]}}
  alerts: {{kind: alertmanager, url: '{pager}'}}
  beat: {{kind: deadman, webhook_env: BEAT}}
  prometheus: {{kind: metrics, path: {folder}/clustertools.prom}}
"""


def test_from_a_fault_to_everybody_and_back(tmp_path):
    ca = self_signed(tmp_path)
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "key").write_text("k" * 32)
    (credentials / "key").chmod(0o440)  # as systemd hands them out
    with (
        ServiceStub(certificate=ca) as chat,
        ServiceStub() as pager,
        MailStub(tls="starttls", certificate=ca) as mail,
    ):
        (tmp_path / "hook").write_text(f"{chat.url}/hook/HUSH\n")
        (tmp_path / "hook").chmod(0o600)
        (tmp_path / "site").mkdir()
        site = Site(tmp_path / "site")
        node = os.uname().nodename.split(".")[0]
        site.write_config(
            CONFIG.format(
                folder=tmp_path, ca=ca, pager=pager.url, mail=mail.address, credentials=credentials, node=node
            )
        )
        environment = {
            "MAIL_PASSWORD": mail.password, "BEAT": f"{pager.url}/beat/HUSH",
            "CREDENTIALS_DIRECTORY": str(credentials), "no_proxy": "*",
        }  # fmt: skip
        site.fault("LabFault gpu@1 it <broke> @here")
        done = site.watch("--once", environment=environment)
        assert done.returncode == 2, done.stderr
        for name in ("chat", "pager", "post", "near"):
            assert f"{name}: 1 sent" in done.stdout
        assert "HUSH" not in done.stdout + done.stderr + (site.state / "state.db").read_bytes().decode(
            "latin-1"
        )
        (said,) = chat.bodies
        assert f"CRITICAL {node} · it &lt;broke&gt; @\u200bhere" in said["text"]
        asked = {request.path: request for request in pager.asked}
        assert asked.keys() == {"/v2/enqueue", "/api/v2/alerts", "/beat/HUSH", "/near"}
        assert asked["/v2/enqueue"].body["dedup_key"] == f"LabFault:alps/{node}/gpu@1"
        assert asked["/api/v2/alerts"].body[0]["labels"]["node"] == node
        (first,) = mail.mails
        assert first.encrypted
        assert first.mail["Subject"].startswith(f"[alps] CRITICAL {node} · it <broke> @here · ")
        assert "clustertools_finding{" in (tmp_path / "clustertools.prom").read_text()

        site.fault()
        assert site.watch("--once", environment=environment).returncode == 0
        assert pager.asked[-1].path == "/api/v2/alerts"  # the heartbeat was told less than a minute ago
        actions = [r.body["event_action"] for r in pager.asked if r.path == "/v2/enqueue"]
        assert actions == ["trigger", "resolve"]
        assert mail.mails[1].mail["In-Reply-To"] == first.mail["Message-ID"]
        assert "clustertools_finding{" not in (tmp_path / "clustertools.prom").read_text()


def test_a_class_that_does_not_exist_is_told(tmp_path):
    site = Site(tmp_path)
    site.write_config("sinks:\n  a: {kind: webhook, url: 'http://127.0.0.1:1', classes: [h1000]}\n")
    done = site.watch("--once")
    assert done.returncode == 3
    assert "sinks.a.classes: there is no node class h1000" in done.stderr
